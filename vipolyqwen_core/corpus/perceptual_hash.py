"""The perceptual hash that proposes equal pictures; a comparison of thumbnails decides."""

import imagehash
from PIL import Image

HASHED_PIXELS = (32, 32)
"""What `imagehash.phash` looks at."""
REDUCING_GAP = 3.0


def perceptual_hash(image: Image.Image) -> str:
    """16 hex digits: the signs of the 64 lowest frequencies of the picture in grey (Zauner 2010).

    The picture is averaged over blocks down to three times the size that is looked at, then filtered: a fifth
    of the time, and copies in other sizes stay as close.
    """
    grey = image.convert("L")
    small = grey.resize(HASHED_PIXELS, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    return str(imagehash.phash(small))
