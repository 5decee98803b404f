"""The perceptual hash that proposes equal pictures; a comparison of thumbnails decides."""

import imagehash
from PIL import Image


def perceptual_hash(image: Image.Image) -> str:
    """16 hex digits: the signs of the 64 lowest frequencies of the picture in grey (Zauner 2010)."""
    return str(imagehash.phash(image))
