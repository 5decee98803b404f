"""Loading: rows of the training set become packed chunks, in worker processes or in this one.

What a chunk holds is a function of its request alone, so results do not depend on the number of workers.
This module imports neither the model nor transformers: workers are spawned, and each would pay for it.
"""

import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vipolyqwen_core.config import ProcessingSettings, TrainingRun
from vipolyqwen_core.contract import PREFIXED_SIDES, Side, Split, Task, Turn
from vipolyqwen_core.hashes import sample_keys
from vipolyqwen_core.objectives.pairs import PairKeys, pair_keys
from vipolyqwen_core.processing.packing import PackedBatch, pack
from vipolyqwen_core.processing.processor import Item, ItemError, ViPolyQwenProcessor
from vipolyqwen_core.training.hard_negatives import HardNegative, HardNegatives
from vipolyqwen_core.training.identity import data_version
from vipolyqwen_core.training.loader_workers import all_started, begin_worker, received
from vipolyqwen_core.training.plan import IntArray, PlanIndex, drops_prefix
from vipolyqwen_core.training.rows import PictureKey, TrainingPictures, TrainingRows

MEASURED_PAIRS = 8
"""Pairs that are measured again before a run, of all and of those with pictures."""
CHUNKS_AHEAD = 4
"""Chunks that each worker prepares ahead."""


@dataclass(frozen=True, eq=False)
class ChunkRequest:
    """What a worker needs to know to make one chunk of one rank."""

    step: int
    """Number of the step, for messages."""
    epoch: int
    """Decides which prefixes are left out."""
    rows: IntArray
    """[B] rows of this rank's pairs; may be empty."""
    needs_picture: bool
    """Whether the vision tower must run, because another rank has a picture."""
    rows_by_rank: tuple[IntArray, ...] = ()
    """Rows of every rank's pairs, where there are several ranks."""


@dataclass(frozen=True)
class LoadedChunk:
    """One rank's part of a chunk: queries, then targets, then hard negatives, packed.

    A rank without pairs has one empty item, so that it can take part in the forward and the backward.
    """

    packed: PackedBatch
    """The items."""
    keys: PairKeys
    """Keys of the B pairs and M hard negatives; the first 2B + M items are theirs."""
    filler_tokens: int
    """Tokens of the packed batch that belong to no pair."""
    seconds: float
    """Time it took to make."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Pairs and hard negatives of every rank, where the request names their rows: known before the device has
    come to them, so that the host need not wait for it in order to gather vectors."""

    def pin_memory(self) -> "LoadedChunk":
        """The chunk in pinned memory; torch's DataLoader calls this."""
        return replace(self, packed=self.packed.pin_memory(), keys=self.keys.pin_memory())


class ChunkLoader(Dataset[LoadedChunk]):
    """Makes chunks. Travels to workers as paths and settings, and opens its files there."""

    def __init__(
        self,
        training_set: Path,
        backbone: str | Path,
        processing: ProcessingSettings,
        prefix_dropout: float,
        seed: int,
        table: str = Split.TRAIN.file,
        mined: Path | None = None,
        versions: tuple[str | None, str | None] | None = None,
    ) -> None:
        """`mined`: folder of mined hard negatives; `versions`: of the training set and of these, as
        `read_versions` gave them before the plan was read, or as they are now."""
        opened = versions or read_versions(training_set, mined)
        self.arguments = training_set, backbone, processing, prefix_dropout, seed, table, mined, opened
        self._is_open = False
        self.rows = TrainingRows(training_set / table)
        self.hard_negatives = HardNegatives(self.rows, mined)
        self.pictures = TrainingPictures(training_set)
        self.prefix_dropout = prefix_dropout
        self.seed = seed

    def __reduce__(self) -> tuple[type["ChunkLoader"], tuple[Any, ...]]:
        return ChunkLoader, self.arguments

    @cached_property
    def processor(self) -> ViPolyQwenProcessor:
        """The processor of the model that is trained."""
        _, backbone, processing, *_ = self.arguments
        return ViPolyQwenProcessor.from_backbone(backbone, processing)

    def open(self) -> None:
        """Open the files here, and only then look whether they are those that the plan was made for.

        The first chunk does it. A worker opens them minutes after the plan was read; afterwards they stay
        what they were.

        Raises:
            ValueError: they were replaced meanwhile
        """
        training_set, *_, mined, versions = self.arguments
        nothing = np.empty(0, dtype=np.int64)
        self.hard_negatives.of(nothing, self.rows.take(nothing))
        self.pictures.check()
        if read_versions(training_set, mined) != versions:
            raise ValueError(
                f"{training_set} or {mined} was replaced while a run trained on it: start it anew"
            )
        self._is_open = True

    def __getitem__(self, request: ChunkRequest) -> LoadedChunk:
        """The chunk of a request.

        Raises:
            ValueError: a row, a picture or an item cannot be read; it names the sample
        """
        started = time.perf_counter()
        if not self._is_open:
            self.open()
        rows = self.rows.take(request.rows)
        negatives = self.hard_negatives.of(request.rows, rows)
        keys = _keys_of(rows, negatives)
        try:
            items = self._items(rows, negatives, request.epoch) or [Item()]
            encoded = self.processor.encode_batch(items)
        except ItemError as error:
            row, side = _place_of_item(error.item, negatives)
            sample = rows[row]["sample_id"]
            raise ValueError(f"step {request.step}, sample {sample}, {side}: {error.reason}") from error
        packed = pack(encoded, self.processor.layout, dummy_picture=request.needs_picture)
        return LoadedChunk(
            packed=packed,
            keys=keys,
            filler_tokens=0 if rows else packed.num_tokens,
            seconds=time.perf_counter() - started,
            sizes=tuple(
                (len(of_rank), int(self.hard_negatives.count(of_rank).sum()))
                for of_rank in request.rows_by_rank
            ),
        )

    def _items(
        self, rows: list[dict[str, Any]], negatives: list[list[HardNegative]], epoch: int
    ) -> list[Item]:
        """Queries, then targets, then hard negatives.

        Raises:
            ItemError: a picture cannot be read
        """
        pictures = self._read_pictures(_picture_keys(rows, negatives))
        dropped = drops_prefix(
            sample_keys([row["sample_id"] for row in rows]), self.prefix_dropout, self.seed, epoch
        )

        def side(source: str, text: str, image_rows: Sequence[int] | None, prefix: Task | None) -> Item:
            images = tuple(pictures[source, image] for image in image_rows or ())
            return Item(text, images, prefix=prefix)

        queries, targets, wrong = [], [], []
        for row, of_row, without in zip(rows, negatives, dropped, strict=True):
            prefix = None if without else Task(row["prefix"])
            of_target = prefix if Side.TARGET in PREFIXED_SIDES[Task(row["task"])] else None
            query = side(row["source"], row["query"], row["query_image_rows"], prefix)
            history = tuple(Turn(turn["role"], turn["text"]) for turn in row["history"] or ())
            queries.append(replace(query, history=history))
            targets.append(side(row["source"], row["target"], row["target_image_rows"], of_target))
            wrong += [side(each.source, each.text, each.image_rows, of_target) for each in of_row]
        return queries + targets + wrong

    def _read_pictures(self, shown: list[list[PictureKey]]) -> dict[PictureKey, Image.Image]:
        """The pictures that items show, shrunk; where one cannot be read, its item is looked for.

        Raises:
            ItemError: names the first item of such a picture
        """
        try:
            return self.pictures.read([key for keys in shown for key in keys], self.processor.shrink)
        except ValueError:
            for number, keys in enumerate(shown):
                try:
                    self.pictures.read(keys, self.processor.shrink)
                except ValueError as error:
                    raise ItemError(number, "picture", str(error)) from error
            raise


def refuse_other_lengths(run: TrainingRun, index: PlanIndex) -> None:
    """Make sure that pairs are those of the plan and as long, by a few of them: any, with pictures, longest.

    Tagging has measured them by the tokenizer and the `processing` of its day. By others a chunk is not what
    its budgets allow, and a device runs out of memory. Mined hard negatives are left out: what the plan adds
    for them is a bound, not a length.

    Raises:
        ValueError: the plan's index is of other rows; a pair has another length; or it cannot be read
    """
    loader = ChunkLoader(run.training_set, run.backbone, run.recipe.processing, 0.0, 0)
    table = TrainingRows(run.training_set / Split.TRAIN.file, ("sample_id", "query_tokens", "target_tokens"))
    mixed = f"{run.training_set}: index.parquet and train.arrow are not of one training set: build it anew"
    if len(table) != len(index):
        raise ValueError(mixed)
    with_pictures = np.flatnonzero(index.images)
    some = [rows[:: -(-len(rows) // MEASURED_PAIRS) or 1] for rows in (np.arange(len(index)), with_pictures)]
    longest = [table.largest(column) for column in ("query_tokens", "target_tokens")]  # where limits show
    for row in np.concatenate([*some, longest, [index.patches.argmax()]]):
        request = ChunkRequest(step=0, epoch=0, rows=np.array([row]), needs_picture=False)
        (tagged,) = table.take([row])
        if sample_keys([tagged["sample_id"]])[0] != index.keys[row]:
            raise ValueError(mixed)
        measured = tagged["query_tokens"] + tagged["target_tokens"]
        found = loader[request].packed.num_tokens
        if found != measured:
            raise ValueError(
                f"{run.training_set} was measured for another `processing` or backbone than the "
                f"recipe's: sample {tagged['sample_id']} has {measured} tokens there and {found} now. "
                "Build the training set with this recipe (`vipolyqwen run`), or train with that one's"
            )


def read_versions(training_set: Path, mined: Path | None) -> tuple[str | None, str | None]:
    """Versions of a training set and of the hard negatives mined for it."""
    return data_version(training_set), None if mined is None else data_version(mined)


def _keys_of(rows: list[dict[str, Any]], negatives: list[list[HardNegative]]) -> PairKeys:
    return pair_keys(
        [row["task"] for row in rows],
        [row["query_hash"] for row in rows],
        [row["target_hash"] for row in rows],
        scores=[row["score"] for row in rows],
        positive_hashes=[row["positive_hash"] for row in rows],
        negative_hashes=[[each.content_hash for each in of_row] for of_row in negatives],
        negative_query_hashes=[[each.query_hash for each in of_row] for of_row in negatives],
        negative_positive_hashes=[[each.positive_hash for each in of_row] for of_row in negatives],
    )


def _picture_keys(rows: list[dict[str, Any]], negatives: list[list[HardNegative]]) -> list[list[PictureKey]]:
    """The pictures of each item: of queries, then targets, then the negatives of each row."""
    shown = [
        [(row["source"], image) for image in row[f"{side}_image_rows"] or ()] for side in Side for row in rows
    ]
    wrong = [negative for of_row in negatives for negative in of_row]
    return [*shown, *([(each.source, image) for image in each.image_rows] for each in wrong)]


def _place_of_item(item: int, negatives: list[list[HardNegative]]) -> tuple[int, str]:
    """Which row an item belongs to, and what it is there."""
    num_rows = len(negatives)
    places = [(row, side.value) for side in Side for row in range(num_rows)]
    places += [
        (row, f"hard negative {number}")
        for row, of_row in enumerate(negatives)
        for number in range(1, len(of_row) + 1)
    ]
    return places[item]


def load_chunks(
    loader: ChunkLoader, requests: Iterable[ChunkRequest], num_workers: int, pin_memory: bool
) -> Generator[LoadedChunk]:
    """The chunks of the requests, in their order, prepared ahead by spawned workers; 0: in this process.

    Close it, also where its user fails: workers leave then.

    Raises:
        ValueError: a chunk cannot be made; names the sample
        OSError: a worker could not be started, or could not hand one over; says what that wants
    """
    made = DataLoader(
        loader,
        sampler=requests,
        batch_size=None,  # a request is a whole chunk already
        num_workers=num_workers,
        prefetch_factor=CHUNKS_AHEAD if num_workers else None,
        multiprocessing_context="spawn" if num_workers else None,  # Lance does not survive a fork
        pin_memory=pin_memory,
        worker_init_fn=begin_worker,
    )
    with all_started():
        chunks = iter(made)
    return received(chunks, pin_memory) if num_workers else (chunk for chunk in chunks)
