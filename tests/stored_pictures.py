"""Pictures of tests as files, and as rows of an image store."""

import io
from typing import Any

from PIL import Image

from vipolyqwen_core.corpus.image_identity import image_id


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def store_row(image: Image.Image, origin: str, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    """A row of `IMAGE_STORE`."""
    return {
        "image_id": image_id(image),
        "bytes": file_of(image, kind, **options),
        "format": kind,
        "width": image.width,
        "height": image.height,
        "phash": "0" * 16,
        "origin": origin,
        "reencoded": False,
    }
