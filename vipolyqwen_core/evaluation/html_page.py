"""A report as one HTML file, from a Jinja template, and what stands in it: small pictures and cut texts."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vipolyqwen_core.written_aside import written_aside


def write_page(path: Path, template: Path, **content: Any) -> None:
    """Fill a template and write the page; all values are escaped, and a name that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template.name).render(**content)
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8")


def thumbnail_url(image: Image.Image, max_pixels: int) -> str:
    """The picture, neither side longer than so many pixels, as a JPEG that stands in the page itself."""
    small = image.copy()
    small.thumbnail((max_pixels, max_pixels))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def cut(text: str, max_chars: int, max_lines: int) -> str:
    """The text, cut where it has many characters or lines."""
    short = "\n".join(text[:max_chars].split("\n")[:max_lines])
    return text if short == text else short + " …"
