"""Pictures as Qwen2-VL sees them: resized to whole patches, cut into uint8 rows in the order of the merge.

Pillow does what transformers' processor does with torchvision or Pillow, but the result stays uint8 and holds
one temporal frame: 588 bytes a patch instead of 4,704. The second frame of a still picture is a copy of the
first; the device normalises and adds it (`model/patch_embedding.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_ASPECT_RATIO: Final = 200
"""Longer strips are refused, as by transformers."""


@dataclass(frozen=True, kw_only=True)
class PatchLayout:
    """How a backbone wants its pictures: the part of preprocessor_config.json that its weights depend on."""

    patch_size: int = 14
    """Side of a patch in pixels."""
    merge_size: int = 2
    """So many patches a side become one visual token."""
    temporal_patch_size: int = 2
    """Frames of a patch; a still picture repeats its one frame."""
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of each channel, of values in [0, 1]."""
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Deviation of each channel."""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "PatchLayout":
        """The layout in a preprocessor_config.json, whose other keys mean nothing here."""
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value := content[key], list) else value
            for key in cls.__dataclass_fields__
            if key in content
        }
        return cls(**known)

    @property
    def factor(self) -> int:
        """Sides of a resized picture are multiples of this: one visual token."""
        return self.patch_size * self.merge_size

    @property
    def patch_bytes(self) -> int:
        """Bytes of one frame of a patch."""
        return 3 * self.patch_size * self.patch_size


def resized_size(width: int, height: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Width and height after resizing: multiples of `factor`, an area within the budget, the aspect kept.

    Raises:
        ValueError: an empty picture, or one side over 200 times the other
    Reference:
        `smart_resize` of transformers' Qwen2VLImageProcessor
    """
    if min(width, height) < 1:
        raise ValueError(f"a picture of {width} x {height} pixels is empty")
    if max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"a picture of {width} x {height} pixels: one side is over {MAX_ASPECT_RATIO} times the other"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return new_width, new_height


def patch_grid(
    width: int, height: int, layout: PatchLayout, min_pixels: int, max_pixels: int
) -> tuple[int, int, int]:
    """Frames, rows and columns of patches that a picture of this size is cut into.

    Raises:
        ValueError: as `resized_size`
    """
    new_width, new_height = resized_size(width, height, layout.factor, min_pixels, max_pixels)
    return 1, new_height // layout.patch_size, new_width // layout.patch_size


def shrink(image: Image.Image, layout: PatchLayout, min_pixels: int, max_pixels: int) -> Image.Image:
    """The picture at the size that it is cut at, where that is smaller: the patches are the same.

    It stays as it is where a picture of that size would be cut at yet another one, as some long strips are.

    Raises:
        ValueError: as `resized_size`
    """
    budget = layout.factor, min_pixels, max_pixels
    width, height = resized_size(*image.size, *budget)
    is_smaller = width * height < image.width * image.height
    is_cut_alike = max(width, height) <= MAX_ASPECT_RATIO * min(width, height) and resized_size(
        width, height, *budget
    ) == (width, height)
    if not (is_smaller and is_cut_alike):
        return image
    return image.resize((width, height), resample=Image.Resampling.BICUBIC)


def cut_patches(image: Image.Image, grid: tuple[int, int, int], layout: PatchLayout) -> NDArray[np.uint8]:
    """The picture resized to its grid and cut: one row a patch, the four patches of a visual token together.

    Shapes:
        image: RGB
        returns: [rows * columns, 588] uint8; within a row channel, then line, then column
    Raises:
        ValueError: the picture is not RGB
    """
    if image.mode != "RGB":
        raise ValueError(f"a picture of mode {image.mode}; pictures must be RGB (corpus.pictures normalises)")
    _, rows, columns = grid
    size = (columns * layout.patch_size, rows * layout.patch_size)
    if image.size != size:
        image = image.resize(size, resample=Image.Resampling.BICUBIC)
    merge, side = layout.merge_size, layout.patch_size
    blocks = np.asarray(image).reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(
        rows * columns, layout.patch_bytes
    )
