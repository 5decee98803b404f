"""Hard negatives of rows: those that a row declares, and those that were mined from the targets of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vipolyqwen_core.contract import MINED, MINED_TABLE
from vipolyqwen_core.corpus.hashing import side_hash
from vipolyqwen_core.corpus.tables import read_arrow
from vipolyqwen_core.objectives.pairs import NO_KEY
from vipolyqwen_core.training.rows import TrainingRows

SIZES: Final = ("tokens", "patches", "images")
assert {"negatives", *SIZES} <= {column.name for column in MINED}


@dataclass(frozen=True)
class HardNegative:
    """A target that is wrong for the query of a row."""

    text: str
    """With its placeholders."""
    source: str
    """Source whose image store holds its pictures."""
    image_rows: tuple[int, ...]
    """Rows of its pictures there."""
    content_hash: int
    """Identity of the side."""
    query_hash: int = NO_KEY
    """Query of the pair that it is the target of: for that query it is right."""
    positive_hash: int = NO_KEY
    """Declared key of that pair."""


def mined_sizes(folder: Path) -> tuple[npt.NDArray[np.int32], ...]:
    """Tokens, patches and pictures that mined hard negatives add to each row: three arrays of [R].

    Raises:
        ValueError: nothing was mined there, or the table was cut
    """
    path = folder / MINED_TABLE
    if not path.is_file():
        raise ValueError(f"{path} does not exist: mine hard negatives first")
    table = read_arrow(path)
    return tuple(table[name].to_numpy().copy() for name in SIZES)


class HardNegatives:
    """The hard negatives of rows of `train.arrow`."""

    def __init__(self, rows: TrainingRows, mined: Path | None) -> None:
        """`rows` declare their own; `mined` is the folder of what mining found, None: nothing was mined."""
        self.rows = rows
        self._mined = None if mined is None else TrainingRows(mined / MINED_TABLE, ("negatives",))

    def of(self, numbers: npt.NDArray[np.int64], rows: Sequence[dict[str, Any]]) -> list[list[HardNegative]]:
        """The hard negatives of each of n rows: those that it declares, then those that were mined.

        Args:
            numbers: [n], of the rows in `train.arrow`
            rows: the same n rows
        Raises:
            ValueError: the tables do not belong together
        """
        found = [declared_negatives(row) for row in rows]
        if self._mined is not None:
            chosen = [entry["negatives"] for entry in self._mined.take(numbers)]
            others = iter(self.rows.take([number for of_row in chosen for number in of_row]))
            for negatives, of_row in zip(found, chosen, strict=True):
                negatives += [target_of(next(others)) for _ in of_row]
        return found

    def count(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many `of` gives for each row, [n], without reading the rows. `numbers`: [n], as for `of`."""
        declared = self.rows.lengths("negatives", numbers)
        return declared if self._mined is None else declared + self._mined.lengths("negatives", numbers)


def declared_negatives(row: dict[str, Any]) -> list[HardNegative]:
    """The hard negatives that a row brings along."""
    negatives = row["negatives"] or ()
    image_rows = row["negative_image_rows"] or [None] * len(negatives)
    return [
        HardNegative(
            negative["text"],
            row["source"],
            tuple(images or ()),
            side_hash(negative["text"], negative["images"] or ()),
        )
        for negative, images in zip(negatives, image_rows, strict=True)
    ]


def target_of(row: dict[str, Any]) -> HardNegative:
    """The target of a row as another row's hard negative."""
    return HardNegative(
        row["target"],
        row["source"],
        tuple(row["target_image_rows"] or ()),
        row["target_hash"],
        row["query_hash"],
        row["positive_hash"],
    )
