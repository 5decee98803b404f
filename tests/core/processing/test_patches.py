"""Pictures are resized and cut as transformers does it."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from tests.core.model.plain import picture, pixel_values
from vipolyqwen_core.processing.patches import (
    MAX_ASPECT_RATIO,
    PatchLayout,
    cut_patches,
    patch_grid,
    resized_size,
    shrink,
)

LAYOUT = PatchLayout()
QWEN3_VL = PatchLayout(patch_size=16, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
SIDES = st.integers(1, 3000)


@example(200, 1, 1, 1500)  # the longest strip
@example(122, 104, 1, 15)  # rounded, it is as large as it may be
@example(122, 104, 16, 1)  # and as small
@example(70, 182, 1, 1500)  # halves are rounded to what is even
@given(SIDES, SIDES, st.integers(1, 64), st.integers(1, 1500))
def test_sizes_are_those_of_transformers(width: int, height: int, least: int, more: int) -> None:
    min_pixels, max_pixels = least * 784, (least + more) * 784
    if max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
        with pytest.raises(ValueError, match=f"{width} x {height}"):
            resized_size(width, height, 28, min_pixels, max_pixels)
        return
    expected = smart_resize(height, width, 28, min_pixels, max_pixels)
    assert resized_size(width, height, 28, min_pixels, max_pixels) == expected[::-1]


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_an_empty_picture_is_refused(width: int, height: int) -> None:
    with pytest.raises(ValueError, match=f"a picture of {width} x {height} pixels is empty"):
        resized_size(width, height, 28, 784, 7840)


@pytest.mark.parametrize("layout", [LAYOUT, QWEN3_VL], ids=["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize(
    ("width", "height"), [(28, 28), (112, 84), (97, 203), (5, 7), (640, 31), (1200, 900)]
)
def test_pixel_values_are_those_of_transformers(width: int, height: int, layout: PatchLayout) -> None:
    image = picture(width, height)
    process = Qwen2VLImageProcessorPil(min_pixels=4 * 784, max_pixels=64 * 784, **asdict(layout))
    theirs = process(image, return_tensors="np")
    grid = patch_grid(width, height, layout, 4 * 784, 64 * 784)
    patches = cut_patches(image, grid, layout)
    assert patches.dtype == np.uint8
    assert patches.shape == (grid[1] * grid[2], 3 * layout.patch_size**2)
    assert [list(grid)] == theirs["image_grid_thw"].tolist()
    np.testing.assert_allclose(pixel_values(patches, layout), theirs["pixel_values"], atol=2e-6)


@example(2000, 1500, 4, 60)
@example(2000, 15, 4, 60)  # at its new size it would be cut otherwise
@example(5598, 28, 1, 8)  # at its new size it would be refused
@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.integers(1, 16), st.integers(1, 64))
def test_a_shrunk_picture_has_the_same_patches(width: int, height: int, least: int, more: int) -> None:
    budget = least * 784, (least + more) * 784
    assume(max(width, height) <= MAX_ASPECT_RATIO * min(width, height))
    image = picture(width, height)
    small = shrink(image, LAYOUT, *budget)
    grid = patch_grid(width, height, LAYOUT, *budget)
    assert patch_grid(*small.size, LAYOUT, *budget) == grid
    assert np.array_equal(cut_patches(small, grid, LAYOUT), cut_patches(image, grid, LAYOUT))
    assert small.width * small.height <= width * height


def test_a_large_picture_is_shrunk_and_a_small_one_stays() -> None:
    budget = LAYOUT, 784, 36 * 784
    assert shrink(picture(2000, 1500), *budget).size == (168, 140)
    for image in (picture(64, 48), picture(168, 140)):
        assert shrink(image, *budget) is image
    with pytest.raises(ValueError, match="a picture of 1000 x 1 pixels"):
        shrink(picture(1000, 1), *budget)


def test_patches_of_a_visual_token_stand_together() -> None:
    values = np.zeros((56, 56, 3), dtype=np.uint8)
    values[:28, 28:] = 200  # the second visual token of the first row
    patches = cut_patches(Image.fromarray(values), (1, 4, 4), LAYOUT)
    assert patches.max(1).tolist() == [0] * 4 + [200] * 4 + [0] * 8


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="must be RGB"):
        cut_patches(Image.new(mode, (28, 28)), (1, 2, 2), LAYOUT)


def test_layout_reads_only_its_own_keys() -> None:
    content = {"patch_size": 16, "image_mean": [0.5, 0.5, 0.5], "do_resize": True}
    layout = PatchLayout.of(content)
    assert layout.patch_size == 16
    assert layout.image_mean == (0.5, 0.5, 0.5)
    assert layout.merge_size == 2
    theirs = Qwen2VLImageProcessorPil()
    assert {name: getattr(theirs, name) for name in asdict(LAYOUT)} == asdict(LAYOUT)
