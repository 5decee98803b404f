"""Packing: items of any length become one sequence for the language model and one for the vision tower.

Nothing is padded. Everything that depends on lengths and grids is computed here, in NumPy, off the main
thread: rotary positions, segment boundaries, where visual tokens stand. The model only multiplies.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vipolyqwen_core.processing.patches import PatchLayout
from vipolyqwen_core.processing.processor import EncodedItem, Grid

BUCKET_GROWTH: Final = 1.25
"""Short segments share a bucket when the longest is at most this much longer than the shortest."""
SHORT_SEGMENT: Final = 128
"""Longer segments share a bucket only with those of the same length: what attention would compute for fill
costs more there than another call."""

DEFAULT_LAYOUT: Final = PatchLayout()
"""That of Qwen2-VL."""


@dataclass(frozen=True)
class Buckets:
    """Segments sorted into dense batches of about one length, for devices without kernels for segments.

    A segment that is shorter than its batch repeats its last row; laid end to end the batches have R rows.
    """

    shapes: tuple[tuple[int, int], ...]
    """Segments and length of each batch."""
    masks: tuple[Tensor | None, ...]
    """[n, 1, 1, l] bool for each batch: rows before the end of their segment; None where all are."""
    rows: Tensor
    """[R] int64 packed row that stands in each place."""
    places: Tensor
    """[T] int64 place of each packed row."""
    fill: Tensor
    """[F] int64 places beyond the end of their segment."""


@dataclass(frozen=True)
class Segments:
    """Boundaries of the segments of a packed sequence."""

    lengths: tuple[int, ...]
    """Length of each segment; none is 0."""
    cu_seqlens: Tensor
    """[S + 1] int32 boundaries."""

    @classmethod
    def of(cls, lengths: Iterable[int], device: torch.device | str = "cpu") -> "Segments":
        """Segments of the given lengths, one after the other."""
        lengths = tuple(int(length) for length in lengths)
        boundaries = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return cls(lengths, to_device(torch.from_numpy(boundaries), device))

    @property
    def num_rows(self) -> int:
        """Rows of all segments."""
        return sum(self.lengths)

    @cached_property  # every layer asks
    def max_length(self) -> int:
        """Length of the longest segment."""
        return max(self.lengths)

    @cached_property
    def equal_length(self) -> bool:
        """Whether all segments have one length, so that the packed sequence is already a dense batch."""
        return len(set(self.lengths)) == 1

    @cached_property
    def buckets(self) -> Buckets:
        """Short segments by length within `BUCKET_GROWTH`, long ones by equal length."""
        lengths = np.asarray(self.lengths)
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(lengths, kind="stable")
        rows, holds, begin = [], [], 0
        for end in range(1, len(order) + 1):
            longest = lengths[order[begin]]
            if longest <= SHORT_SEGMENT:
                longest = min(BUCKET_GROWTH * longest, SHORT_SEGMENT)
            if end == len(order) or lengths[order[end]] > longest:
                members = order[begin:end]
                place = np.arange(lengths[members].max())
                rows.append(starts[members, None] + np.minimum(place, lengths[members, None] - 1))
                holds.append(place < lengths[members, None])
                begin = end
        device = self.cu_seqlens.device
        flat_rows = np.concatenate([batch.ravel() for batch in rows])
        held = np.concatenate([batch.ravel() for batch in holds])
        places = np.empty(self.num_rows, dtype=np.int64)
        places[flat_rows[held]] = held.nonzero()[0]
        return Buckets(
            shapes=tuple((len(batch), batch.shape[1]) for batch in rows),
            masks=tuple(
                None if batch.all() else torch.from_numpy(batch[:, None, None]).to(device) for batch in holds
            ),
            rows=torch.from_numpy(flat_rows).to(device),
            places=torch.from_numpy(places).to(device),
            fill=torch.from_numpy((~held).nonzero()[0]).to(device),
        )


@dataclass(frozen=True)
class Pictures:
    """All pictures of a batch, for the vision tower."""

    patches: Tensor
    """[P, patch bytes] uint8 patches, one frame each; 588 bytes for patches of 14 x 14 pixels."""
    grid: Tensor
    """[N, 3] int64 frames, rows and columns of patches; it stays on the host."""
    position_ids: Tensor
    """[P, 2] int64 row and column of each patch in its picture."""
    segments: Segments
    """A picture attends to itself only."""
    tokens: Tensor
    """[V] int64 packed tokens that the visual tokens replace. A dummy picture has visual tokens beyond V."""


@dataclass(frozen=True)
class PackedBatch:
    """Items packed into one sequence."""

    input_ids: Tensor
    """[T] int64."""
    position_ids: Tensor
    """[4, 1, T] int64: row 0 counts the tokens of each segment, rows 1 to 3 are frame, line and column."""
    segment_ids: Tensor
    """[T] int64 item that a token belongs to."""
    segments: Segments
    """An item attends to itself only."""
    pictures: Pictures | None
    """None where no item has a picture."""
    truncated_tokens: int = 0
    """Tokens of text that were cut from the items."""

    @property
    def num_items(self) -> int:
        """S."""
        return len(self.segments.lengths)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def num_patches(self) -> int:
        """P."""
        return 0 if self.pictures is None else len(self.pictures.patches)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The batch on a device, copied without waiting where its memory is pinned."""
        return _moved(self, lambda tensor: to_device(tensor, device))

    def pin_memory(self) -> "PackedBatch":
        """The batch in pinned memory; torch's DataLoader calls this."""
        return _moved(self, lambda tensor: tensor.pin_memory())


def pack(
    items: Sequence[EncodedItem], layout: PatchLayout = DEFAULT_LAYOUT, dummy_picture: bool = False
) -> PackedBatch:
    """The items as one sequence, in their order.

    `dummy_picture` adds a blank picture where no item has one: its visual tokens replace nothing, but the
    vision tower runs, as it must on every rank when it runs on one.

    Raises:
        ValueError: no items
    """
    if not items:
        raise ValueError("pack: no items")
    merge_size = layout.merge_size
    lengths = np.asarray([item.num_tokens for item in items])
    input_ids = np.concatenate([item.input_ids for item in items])
    grids = [grid for item in items for grid in item.image_grid]
    counts = [grid[1] * grid[2] // merge_size**2 for grid in grids]
    starts = np.cumsum(lengths) - lengths
    spots = [
        int(start) + spot for start, item in zip(starts, items, strict=True) for spot in item.image_starts
    ]
    patches = [item.patches for item in items if item.patches is not None]
    pictures = None
    if patches:
        tokens = np.concatenate(
            [start + np.arange(count) for start, count in zip(spots, counts, strict=True)]
        )
        pictures = _pictures(np.concatenate(patches), grids, tokens, merge_size)
    elif dummy_picture:
        blank = np.zeros((merge_size**2, layout.patch_bytes), dtype=np.uint8)
        pictures = _pictures(blank, [(1, merge_size, merge_size)], np.empty(0, dtype=np.int64), merge_size)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(_position_ids(lengths, spots, counts, grids, merge_size)),
        segment_ids=torch.from_numpy(np.repeat(np.arange(len(items)), lengths)),
        segments=Segments.of(lengths),
        pictures=pictures,
        truncated_tokens=sum(item.truncated_tokens for item in items),
    )


def _pictures(
    patches: NDArray[np.uint8], grids: Sequence[Grid], tokens: NDArray[np.int64], merge_size: int
) -> Pictures:
    return Pictures(
        patches=torch.from_numpy(patches),
        grid=torch.tensor(grids, dtype=torch.int64, device="cpu"),  # whatever the caller's default device
        position_ids=torch.from_numpy(np.concatenate([_patch_positions(grid, merge_size) for grid in grids])),
        segments=Segments.of([rows * columns for _, rows, columns in grids]),
        tokens=torch.from_numpy(tokens),
    )


def _patch_positions(grid: Grid, merge_size: int) -> NDArray[np.int64]:
    """[p, 2] row and column of each patch, in the order of the merge."""
    _, rows, columns = grid
    blocks = np.indices((rows, columns)).reshape(2, rows // merge_size, merge_size, -1, merge_size)
    return blocks.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def _position_ids(
    lengths: NDArray[np.int64],
    spots: Sequence[int],
    counts: Sequence[int],
    grids: Sequence[Grid],
    merge_size: int,
) -> NDArray[np.int64]:
    """[4, 1, T] positions. A picture of r x c visual tokens advances the text after it by max(r, c) only.

    Reference:
        `get_rope_index` of transformers' Qwen2VLModel
    """
    num_tokens = int(lengths.sum())
    text = np.arange(num_tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    shift = np.zeros(num_tokens + 1, dtype=np.int64)
    for spot, count, (_, rows, columns) in zip(spots, counts, grids, strict=True):
        shift[spot + count] += max(rows, columns) // merge_size - count
    shift = np.cumsum(shift)[:num_tokens]
    flat = text + shift - np.repeat(shift[np.cumsum(lengths) - lengths], lengths)
    positions = np.stack([text, flat, flat, flat])
    for spot, count, (_, rows, columns) in zip(spots, counts, grids, strict=True):
        inside = np.indices((1, rows // merge_size, columns // merge_size))  # a picture has one frame
        positions[1:, spot : spot + count] = flat[spot] + inside.reshape(3, -1)
    return positions[:, None]


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device, copied without waiting where its memory is pinned.

    Apple's GPUs would copy later, when the memory may be another's: wrong values, without a word.

    Reference:
        https://github.com/pytorch/pytorch/issues/189690
    """
    return tensor.to(device, non_blocking=torch.device(device).type != "mps")


def _moved(batch: PackedBatch, move: Callable[[Tensor], Tensor]) -> PackedBatch:
    """The batch with every tensor that the device needs moved."""
    pictures = batch.pictures
    return replace(
        batch,
        input_ids=move(batch.input_ids),
        position_ids=move(batch.position_ids),
        segment_ids=move(batch.segment_ids),
        segments=_moved_segments(batch.segments, move),
        pictures=pictures
        and replace(
            pictures,
            patches=move(pictures.patches),
            position_ids=move(pictures.position_ids),
            segments=_moved_segments(pictures.segments, move),
            tokens=move(pictures.tokens),
        ),
    )


def _moved_segments(segments: Segments, move: Callable[[Tensor], Tensor]) -> Segments:
    return replace(segments, cu_seqlens=move(segments.cu_seqlens))
