"""A packed batch says of every token and patch what transformers would say of the item alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLModel
from transformers.vision_utils import get_vision_position_ids

from vipolyqwen_core.config import ProcessingSettings
from vipolyqwen_core.contract import Turn
from vipolyqwen_core.processing.packing import Segments, pack, to_device
from vipolyqwen_core.processing.processor import EncodedItem, Item, ViPolyQwenProcessor

SIZES = ((84, 56), (28, 28), (28, 140), (140, 28))
PICTURES = tuple(Image.new("RGB", size) for size in SIZES)


@pytest.fixture(scope="module")
def encoded(tiny_backbone: Path, tiny_processing: ProcessingSettings) -> list[EncodedItem]:
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    items = [
        Item("xin chào các bạn"),
        Item("<image><image> hai <image>và<image>", PICTURES),
        Item(""),
        Item("<image>", PICTURES[2:3]),
        Item("gì?", PICTURES[:1], (Turn("user", "xem <image>"), Turn("assistant", "ô"))),
    ]
    return processor.encode_batch(items)


def test_positions_are_those_of_transformers(tiny_backbone: Path, encoded: list[EncodedItem]) -> None:
    config = Qwen2VLConfig.from_pretrained(tiny_backbone)
    with torch.device("meta"):
        model = Qwen2VLModel(config)
    expected = []
    for item in encoded:
        ids = torch.from_numpy(item.input_ids)[None]
        grid = torch.tensor(item.image_grid).reshape(-1, 3)
        kinds = (ids == config.image_token_id).int()
        expected.append(model.get_rope_index(ids, kinds, grid)[0][:, 0])
    batch = pack(encoded)
    assert batch.position_ids.shape == (4, 1, batch.num_tokens)
    torch.testing.assert_close(batch.position_ids[1:, 0], torch.cat(expected, dim=1))
    counted = torch.cat([torch.arange(item.num_tokens) for item in encoded])
    torch.testing.assert_close(batch.position_ids[0, 0], counted)


def test_patch_positions_are_those_of_transformers(encoded: list[EncodedItem]) -> None:
    pictures = pack(encoded).pictures
    assert pictures is not None
    torch.testing.assert_close(pictures.position_ids, get_vision_position_ids(pictures.grid, 2))


def test_a_batch_holds_its_items_in_order(tiny_backbone: Path, encoded: list[EncodedItem]) -> None:
    batch = pack(encoded)
    assert batch.num_items == 5
    assert batch.truncated_tokens == 0
    assert pack([replace(item, truncated_tokens=3) for item in encoded]).truncated_tokens == 15
    assert batch.segments.lengths == tuple(item.num_tokens for item in encoded)
    for number, item in enumerate(encoded):
        np.testing.assert_array_equal(batch.input_ids[batch.segment_ids == number], item.input_ids)
    assert batch.pictures is not None
    image_token = Qwen2VLConfig.from_pretrained(tiny_backbone).image_token_id
    torch.testing.assert_close(batch.pictures.tokens, (batch.input_ids == image_token).nonzero()[:, 0])
    assert batch.num_patches == sum(item.num_patches for item in encoded)
    assert batch.pictures.segments.lengths == tuple(r * c for i in encoded for _, r, c in i.image_grid)


def test_a_dummy_picture_replaces_no_token(encoded: list[EncodedItem]) -> None:
    batch = pack(encoded[:1], dummy_picture=True)
    assert batch.pictures is not None
    assert len(batch.pictures.tokens) == 0
    assert batch.num_patches == 4
    assert pack(encoded[:1]).pictures is None
    assert pack(encoded, dummy_picture=True).num_patches == pack(encoded).num_patches


def test_no_items_are_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        pack([])


def test_moving_keeps_everything_but_the_grid_moves(encoded: list[EncodedItem]) -> None:
    moved = pack(encoded).to("meta")
    assert moved.pictures is not None
    parts = (moved, moved.segments, moved.pictures, moved.pictures.segments)
    tensors = [value for part in parts for value in vars(part).values() if isinstance(value, torch.Tensor)]
    assert [tensor is moved.pictures.grid for tensor in tensors if not tensor.is_meta] == [True]


@pytest.mark.parametrize(("device", "waits"), [("cuda:1", False), (torch.device("mps"), True)])
def test_a_copy_to_apples_gpus_waits_and_one_to_others_need_not(
    monkeypatch: pytest.MonkeyPatch, device: torch.device | str, waits: bool
) -> None:
    asked = {}
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where, **how: asked.update(how, where=where))
    to_device(torch.zeros(1), device)
    assert asked == {"where": (device,), "non_blocking": not waits}


def test_short_segments_share_a_bucket_within_a_quarter_and_long_ones_at_one_length() -> None:
    lengths = [200, 8, 110, 10, 11, 128, 130, 140, 200]
    assert Segments.of(lengths).buckets.shapes == ((2, 10), (1, 11), (2, 128), (1, 130), (1, 140), (2, 200))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_buckets_hold_every_row_once(lengths: list[int]) -> None:
    segments = Segments.of(lengths)
    buckets = segments.buckets
    rows = torch.arange(segments.num_rows)
    assert sum(count * length for count, length in buckets.shapes) == len(buckets.rows)
    assert sum(count for count, _ in buckets.shapes) == len(lengths)
    torch.testing.assert_close(buckets.rows[buckets.places], rows)
    kept = torch.ones(len(buckets.rows), dtype=torch.bool)
    kept[buckets.fill] = False
    torch.testing.assert_close(buckets.rows[kept].sort().values, rows)
    masks = [
        (torch.ones(count, length, dtype=torch.bool) if mask is None else mask[:, 0, 0]).flatten()
        for (count, length), mask in zip(buckets.shapes, buckets.masks, strict=True)
    ]
    assert torch.equal(torch.cat(masks), kept)
