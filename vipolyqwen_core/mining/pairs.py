"""Training pairs as mining sees them: whose target is a right answer to whose query."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vipolyqwen_core.contract import Split
from vipolyqwen_core.hashes import Hashes, is_among, sample_keys, splitmix
from vipolyqwen_core.mining.nearest import Ints
from vipolyqwen_core.objectives.pairs import NO_KEY, TASKS
from vipolyqwen_core.objectives.positives import is_positive
from vipolyqwen_core.serving.stored_sides import read_split


@dataclass(frozen=True, eq=False)
class Pairs:
    """What mining knows of the R rows of `train.arrow`: columns, each [R]."""

    keys: Hashes
    """`sample_keys` of their ids."""
    task: NDArray[np.int64]
    """Place in `TASKS`."""
    query: Hashes
    """Identity of the query side."""
    target: Hashes
    """Identity of the target side."""
    positive: Hashes
    """Identity of the declared key, 0: none."""
    asks: NDArray[np.bool_]
    """Whether the pair is a positive."""
    sizes: dict[str, Ints]
    """Tokens, patches and pictures of the target."""

    def __len__(self) -> int:
        return len(self.keys)


def read_pairs(training_set: Path, positive_score: float) -> Pairs:
    """The pairs of `train.arrow`.

    Raises:
        ValueError: it is missing
    """
    table = read_split(training_set, Split.TRAIN)
    codes = pa.array([task.value for task in TASKS], table["task"].type)
    # texts become Python objects a batch at a time
    keys = [sample_keys(batch["sample_id"].to_pylist()) for batch in table.select(["sample_id"]).to_batches()]
    return Pairs(
        keys=np.concatenate([np.empty(0, dtype=np.uint64), *keys]),
        task=pc.index_in(table["task"], codes).to_numpy().astype(np.int64),
        query=table["query_hash"].to_numpy(),
        target=table["target_hash"].to_numpy(),
        positive=table["positive_hash"].to_numpy(),
        asks=is_positive(table["score"].to_numpy(), positive_score),
        sizes={
            "tokens": table["target_tokens"].to_numpy().astype(np.int64),
            "patches": table["target_patches"].to_numpy().astype(np.int64),
            "images": pc.list_value_length(table["target_image_rows"])
            .fill_null(0)
            .to_numpy()
            .astype(np.int64),
        },
    )


class KnownAnswers:
    """Which target is a right answer to which query, by what the pairs declare."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        keyed = pairs.positive != NO_KEY
        self._of_query = np.unique(_joint(pairs.query, pairs.target))
        self._of_key = np.unique(_joint(pairs.positive[keyed], pairs.target[keyed]))

    def among(self, anchors: Ints, rows: Ints) -> NDArray[np.bool_]:
        """Whether the target of a row answers the query of an anchor, or is that query.

        Shapes:
            anchors: [A]; rows: [A, n]
            returns: [A, n]
        """
        query, positive = self.pairs.query[anchors, None], self.pairs.positive[anchors, None]
        target = self.pairs.target[rows]
        keyed = is_among(_joint(positive, target), self._of_key)
        answered = is_among(_joint(query, target), self._of_query)
        return np.asarray(keyed | answered | (target == query))


def _joint(left: Hashes, right: Hashes) -> Hashes:
    """One hash of two."""
    return splitmix(left) + right
