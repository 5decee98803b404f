"""DejaVu Sans Bold, which covers Vietnamese and travels with matplotlib; it has no Chinese characters."""

import importlib.util
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]


def font_path() -> Path:
    """The font's file inside matplotlib, which is not imported for it.

    Raises:
        ValueError: matplotlib is not installed
    """
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        raise ValueError("the built-in corpus needs the fonts of matplotlib: install vipolyqwen[train]")
    return Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font at a size in pixels."""
    return ImageFont.truetype(str(font_path()), size)


@lru_cache(maxsize=4096)
def fitted(text: str, width: int, size: int) -> ImageFont.FreeTypeFont:
    """The largest font up to `size` in which the text is no wider than `width` pixels."""
    while size > 8 and font(size).getlength(text) > width:
        size -= 1
    return font(size)


def write_line(
    draw: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int], colour: Colour, size: int
) -> None:
    """Write a text on one line, in the middle of a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    chosen = fitted(text, right - left, size)
    draw.text(((left + right) / 2, (top + bottom) / 2), text, fill=colour, font=chosen, anchor="mm")


def blank(width: int, height: int, colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and its pen."""
    image = Image.new("RGB", (width, height), colour)
    return image, ImageDraw.Draw(image)
