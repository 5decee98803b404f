"""A pair of a source as tables hold it: texts normalised, declared keys composed, pictures by their ids."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.hashing import pair_hashes
from vipolyqwen_core.corpus.readers.records import RawPair
from vipolyqwen_core.corpus.text import declared_key, normalise_text


class NormalisedPair(NamedTuple):
    """What a pair says itself, but for its pictures: who knows their ids hands them in.

    These come as `RawPair.images` does: those of the query, of the target, of each hard negative.
    """

    task: Task
    query: str
    target: str
    history: tuple[Turn, ...] | None
    score: float | None
    negatives: tuple[str, ...]
    """Texts of the hard negatives."""
    group_id: str | None
    positive_key: str | None

    def hashes(self, images: Sequence[Sequence[str]]) -> tuple[str, int, int]:
        """`sample_id` of the pair, and `side_hash` of its query and of its target."""
        return pair_hashes(self.task, self.query, self.target, images[0], images[1], self.history, self.score)

    def columns(self, images: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The columns of PAIR that do not depend on where the pair stands."""
        query_images, target_images, *of_negatives = images
        negatives = [
            {"text": text, "images": ids} for text, ids in zip(self.negatives, of_negatives, strict=True)
        ]
        return {
            "task": self.task.value,
            "query": self.query,
            "query_images": query_images,
            "history": None if self.history is None else [turn._asdict() for turn in self.history],
            "target": self.target,
            "target_images": target_images,
            "score": self.score,
            "negatives": negatives or None,
            "group_id": self.group_id,
            "positive_key": self.positive_key,
        }


def normalise_pair(pair: RawPair) -> NormalisedPair:
    """The pair with all its texts and keys in the form that is compared and trained on."""
    return NormalisedPair(
        task=pair.task,
        query=normalise_text(pair.query),
        target=normalise_text(pair.target),
        history=tuple(Turn(turn.role, normalise_text(turn.text)) for turn in pair.history or ()) or None,
        score=pair.score,
        negatives=tuple(normalise_text(side.text) for side in pair.negatives),
        group_id=declared_key(pair.group_id),
        positive_key=declared_key(pair.positive_key),
    )
