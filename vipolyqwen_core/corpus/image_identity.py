"""The identity of a picture: its pixels, whatever file they came in."""

import xxhash
from PIL import Image


def image_id(image: Image.Image) -> str:
    """32 hex digits: hash (XXH3, 128 bits) of size and RGB pixels of a normalised picture.

    A cryptographic hash of all pixels takes as long as decoding them, and nothing here depends on secrecy:
    who can make two pictures collide can as well write either of them into the corpus.
    """
    assert image.mode == "RGB", f"normalise first: mode {image.mode}"
    digest = xxhash.xxh3_128(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
