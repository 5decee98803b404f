"""Sides of the pairs of a training set, as items ready to be encoded, pictures from the pinned stores."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from vipolyqwen_core.contract import Side, Split, Task, Turn
from vipolyqwen_core.corpus.pictures import Shrink, as_it_is
from vipolyqwen_core.corpus.tables import read_arrow
from vipolyqwen_core.processing.processor import Item
from vipolyqwen_core.training.identity import refuse_built_anew
from vipolyqwen_core.training.rows import LatePicture, PictureKey, TrainingPictures, TrainingRows

BLOCK_SIDES: Final = 64
"""Sides whose texts and files of pictures are read at once."""


@dataclass(frozen=True)
class SideRequest:
    """A side of a row of a table."""

    row: int
    side: Side
    prefix: Task | None = None
    pictures_of: int | None = None
    """Row whose pictures are shown in place of its own: to see whether the pictures matter."""

    @property
    def picture_row(self) -> int:
        """The row whose pictures are shown."""
        return self.row if self.pictures_of is None else self.pictures_of


def read_split(training_set: Path, split: Split) -> pa.Table:
    """The table of a split, memory-mapped.

    Raises:
        ValueError: the training set is not there, or the table was cut
    """
    path = training_set / split.file
    if not path.is_file():
        raise ValueError(f"no training set at {training_set}: {path.name} is missing")
    return read_arrow(path)


def side_texts(table: pa.Table, side: Side) -> list[str]:
    """What each row of a table says on a side; the earlier turns of a dialogue stand before its query."""
    texts: list[str] = table[side.value].to_pylist()
    if side is Side.TARGET:
        return texts
    return [
        "\n".join([*(f"{turn['role']}: {turn['text']}" for turn in turns or ()), text])
        for turns, text in zip(table["history"].to_pylist(), texts, strict=True)
    ]


class StoredSides:
    """Reads sides of one split of a training set. Another process opens its files by their paths, too."""

    def __init__(self, training_set: Path, split: Split, version: str | None) -> None:
        """Nothing is opened yet.

        Args:
            version: of the training set, as `data_version` gave it before anything was read of it
        """
        self.arguments = training_set, split, version
        self.rows = TrainingRows(training_set / split.file)
        self.pictures = TrainingPictures(training_set)
        self._is_open = False

    def __reduce__(self) -> tuple[type["StoredSides"], tuple[Path, Split, str | None]]:
        return StoredSides, self.arguments

    def _open(self) -> None:
        """Open the files, and only then look whether they are those of the version; they stay what they are.

        Raises:
            ValueError: the training set was built anew meanwhile
        """
        if not self._is_open:
            self.rows.take([])
            _ = self.pictures.pinned
            training_set, _, version = self.arguments
            refuse_built_anew(training_set, version)
            self._is_open = True

    def items(self, requests: Iterable[SideRequest]) -> Iterator[Item]:
        """The requested sides, in order.

        Raises:
            ValueError: the training set was built anew since its version was read, or a row or a picture of
                it cannot be read
        """
        return (make() for make in self.late_items(requests))

    def late_items(
        self, requests: Iterable[SideRequest], shrink: Shrink = as_it_is
    ) -> Iterator[Callable[[], Item]]:
        """What makes the requested sides, in order, in any thread: only then are their pictures decoded.

        A picture that several sides of a block show is decoded and shrunk once.

        Raises:
            ValueError: as `items`, but for a picture that cannot be decoded or shrunk: whoever makes its item
                learns that
        """
        self._open()
        waiting = iter(requests)
        while block := list(islice(waiting, BLOCK_SIDES)):
            rows = self.rows.take([request.row for request in block])
            shown = self._picture_keys(block)
            pictures = self.pictures.late([key for keys in shown for key in keys], shrink)
            for request, row, keys in zip(block, rows, shown, strict=True):
                yield partial(_item, request, row, [pictures[key] for key in keys])

    def _picture_keys(self, block: list[SideRequest]) -> list[list[PictureKey]]:
        """Where the pictures of each side lie."""
        rows = self.rows.take([request.picture_row for request in block])
        return [
            [(row["source"], number) for number in row[f"{request.side.value}_image_rows"] or ()]
            for request, row in zip(block, rows, strict=True)
        ]


def _item(request: SideRequest, row: dict[str, Any], pictures: Sequence[LatePicture]) -> Item:
    turns = row["history"] if request.side is Side.QUERY else None
    return Item(
        text=row[request.side.value],
        images=tuple(picture() for picture in pictures),
        history=tuple(Turn(turn["role"], turn["text"]) for turn in turns or ()),
        prefix=request.prefix,
    )
