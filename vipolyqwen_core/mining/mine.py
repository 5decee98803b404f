"""Stage `hard_negatives`: for each training pair, the targets of others that are nearest to its query.

    hard_negatives/mined.arrow   MINED: row i describes row i of `train.arrow`
    hard_negatives/stage.json    StageSummary; details: the model that found them, counts, similarities

The vectors are those of the exported table, which is brought up to date first: only what is new is encoded.
A workspace without an export has no model that could find any; then nothing is mined, and training goes
without. What was mined stands as long as data and settings do: a new champion does not change it, or every
run of the factory would train anew.

Known right answers are never chosen: a target of any pair with the same query or the same `positive_key`, and
the query itself. Unknown ones are guarded against by similarity, as "TopK-PercPos" of NV-Retriever does it
(Moreira et al. 2024, arXiv 2407.15831): a target must be less similar than a share of the similarity of the
pair's own. A scored pair below `positive_score` asks nothing, as in the losses.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from vipolyqwen_core.config import MiningSettings, Recipe
from vipolyqwen_core.contract import MINED, Side, Split
from vipolyqwen_core.corpus.hashing import content_digest
from vipolyqwen_core.corpus.tables import (
    StageSummary,
    arrow_schema,
    read_stage,
    unchanged_stage,
    written_aside,
)
from vipolyqwen_core.mining.nearest import Floats, Ints, Sides, Vectors, nearest_below, similarities
from vipolyqwen_core.objectives.pairs import NO_KEY
from vipolyqwen_core.serving.current_export import CurrentExport, current_model, read_current
from vipolyqwen_core.serving.export import export
from vipolyqwen_core.serving.stored_sides import read_split
from vipolyqwen_core.training.hard_negatives import MINED_TABLE, SIZES
from vipolyqwen_core.training.identity import MINING, mining_fingerprint
from vipolyqwen_core.training.plan import mix, sample_keys
from vipolyqwen_core.workspace import Workspace

logger = logging.getLogger(__name__)

Hashes = NDArray[np.uint64]

QUERIES_AT_ONCE: Final = 262_144
"""Queries whose vectors are in memory at once: 0.5 GB of 1,024 dimensions."""
SPARE: Final = 16
"""Nearest targets beyond those that are wanted: some may turn out to be right answers."""
WRITTEN_ROWS: Final = 65_536


def mine(workspace: Workspace, recipe: Recipe) -> StageSummary:
    """Mine hard negatives for the workspace's training set with the model of its last export.

    Raises:
        ValueError: the recipe asks for none, or there is no training set
    """
    started = time.monotonic()
    if not recipe.mining.negatives_per_pair:
        raise ValueError(f"recipe {recipe.name!r} mines nothing: its mining.negatives_per_pair is 0")
    stage = read_stage(workspace.training_set)
    if stage is None:
        raise ValueError(f"no training set at {workspace.training_set}: it has no stage.json")
    folder, mark = workspace.hard_negatives, mining_fingerprint(recipe, stage.data_version)
    teacher = teacher_of(workspace)
    earlier = unchanged_stage(folder, mark)
    if earlier is not None and (earlier.details["teacher"] or teacher is None):
        logger.info("hard negatives: unchanged")
        return earlier
    pairs = read_pairs(workspace.training_set, recipe.objective.positive_score)
    mined = Mined.none(len(pairs), recipe.mining)
    with written_aside(folder) as aside:
        aside.mkdir(parents=True)
        if teacher is not None:
            model = current_model(workspace)
            exported = export(workspace.training_set, model, teacher.model_version, workspace, recipe.export)
            vectors = read_vectors(exported.parquet, pairs, aside)
            mined = find_negatives(pairs, vectors, recipe.mining)
            vectors.remove()
        write_mined(mined, pairs, aside / MINED_TABLE)
        summary = StageSummary(
            stage=MINING,
            fingerprint=mark,
            data_version=content_digest([aside / MINED_TABLE]),
            pairs_in=len(pairs),
            pairs_out=len(pairs),
            rejected={},
            seconds=time.monotonic() - started,
            details={
                "teacher": "" if teacher is None else teacher.model_version,
                "teacher_digest": "" if teacher is None else teacher.model_digest,
                **mined.facts(pairs),
            },
        )
        summary.write(aside)
    logger.info("hard negatives: %s", summary.details)
    return summary


def teacher_of(workspace: Workspace) -> CurrentExport | None:
    """The export whose model finds the negatives; None: nothing was exported yet."""
    return read_current(workspace) if (workspace.exports / "current.json").is_file() else None


@dataclass(frozen=True, eq=False)
class Pairs:
    """What mining knows of the R rows of `train.arrow`: columns, each [R]."""

    keys: Hashes
    """`sample_keys` of their ids."""
    task: NDArray[np.int64]
    """A number for each task."""
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
    score = table["score"].to_numpy()
    _, task = np.unique(np.asarray(table["task"].to_pylist(), dtype=object), return_inverse=True)
    pictures = np.asarray([len(shown or ()) for shown in table["target_image_rows"].to_pylist()], np.int64)
    return Pairs(
        keys=sample_keys(table["sample_id"].to_pylist()),
        task=task.astype(np.int64),
        query=table["query_hash"].to_numpy(),
        target=table["target_hash"].to_numpy(),
        positive=table["positive_hash"].to_numpy(),
        asks=np.isnan(score) | (score >= positive_score),
        sizes={
            "tokens": table["target_tokens"].to_numpy().astype(np.int64),
            "patches": table["target_patches"].to_numpy().astype(np.int64),
            "images": pictures,
        },
    )


@dataclass(frozen=True, eq=False)
class PairVectors:
    """Unit vectors of the distinct contents of each side, on disk, and which of them each pair has.

    Shapes:
        query, target: [U, D]
        query_rows, target_rows: [R]
    """

    query: Vectors
    query_rows: Ints
    target: Vectors
    target_rows: Ints
    files: tuple[Path, ...]

    def remove(self) -> None:
        """Delete the files."""
        for file in self.files:
            file.unlink()


def read_vectors(parquet: Path, pairs: Pairs, folder: Path) -> PairVectors:
    """The vectors of an export, in half precision: 45 GB on disk for 11 million pairs of distinct sides.

    Raises:
        ValueError: the export lacks a side of a pair
    """
    order = np.argsort(pairs.keys)
    ordered = pairs.keys[order]
    found: dict[str, tuple[Vectors, Ints, Path]] = {}
    seen: dict[str, NDArray[np.bool_]] = {}
    with pq.ParquetFile(parquet) as file:
        dim = file.schema_arrow.field("embedding").type.list_size
        for side, content in ((Side.QUERY, pairs.query), (Side.TARGET, pairs.target)):
            distinct, number = np.unique(content, return_inverse=True)
            path = folder / f"{side.value}.f16"
            empty = np.memmap(path, np.float16, "w+", shape=(len(distinct), dim))
            found[side.value] = empty, number.astype(np.int64), path
            seen[side.value] = np.zeros(len(distinct), dtype=bool)
        for batch in file.iter_batches(columns=["sample_id", "side", "split", "embedding"]):
            rows = pa.Table.from_batches([batch])
            for name, (vectors, number, _) in found.items():
                chosen = rows.filter((pc.field("split") == "train") & (pc.field("side") == name))
                keys = sample_keys(chosen["sample_id"].to_pylist())
                places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
                known = ordered[places] == keys
                contents = number[order[places[known]]]
                vectors[contents] = _matrix(chosen["embedding"], dim)[known]
                seen[name][contents] = True
    missing = sum(int((~side).sum()) for side in seen.values())
    if missing:
        raise ValueError(f"{parquet} lacks {missing:,} sides of the training set: export anew")
    query, target = found[Side.QUERY.value], found[Side.TARGET.value]
    return PairVectors(query[0], query[1], target[0], target[1], (query[2], target[2]))


def _matrix(column: pa.ChunkedArray, dim: int) -> Floats:
    return np.asarray(column.combine_chunks().flatten(), dtype=np.float32).reshape(-1, dim)


@dataclass(frozen=True, eq=False)
class Mined:
    """What was found for R pairs.

    Shapes:
        negatives: [R, n] rows of `train.arrow`, nearest first; -1: none
        similarities: [R, n]
        own: [R] similarity of the pair's own target, NaN where it asks nothing
    """

    negatives: Ints
    similarities: Floats
    own: Floats

    @classmethod
    def none(cls, num_pairs: int, settings: MiningSettings) -> "Mined":
        """Nothing was found."""
        shape = num_pairs, settings.negatives_per_pair
        return cls(
            np.full(shape, -1, dtype=np.int64),
            np.zeros(shape, dtype=np.float32),
            np.full(num_pairs, np.nan, dtype=np.float32),
        )

    def facts(self, pairs: Pairs) -> dict[str, Any]:
        """Counts, and mean similarities."""
        found = self.negatives >= 0
        facts: dict[str, Any] = {
            "pairs_that_ask": int(pairs.asks.sum()),
            "pairs_with_negatives": int(found.any(axis=1).sum()),
            "negatives": int(found.sum()),
        }
        if found.any():
            own = np.broadcast_to(self.own[:, None], found.shape)[found]  # of pairs that have negatives
            facts["mean_similarity_of_targets"] = round(float(own.mean(dtype=np.float64)), 4)
            mean = self.similarities[found].mean(dtype=np.float64)
            facts["mean_similarity_of_negatives"] = round(float(mean), 4)
        return facts


def find_negatives(pairs: Pairs, vectors: PairVectors, settings: MiningSettings) -> Mined:
    """The nearest targets of the same task that are no right answer, below the share of the pair's own."""
    mined = Mined.none(len(pairs), settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = KnownAnswers(pairs)
    for task in np.unique(pairs.task):
        of_task = pairs.task == task
        members = np.flatnonzero(of_task)
        candidates = members[np.unique(pairs.target[members], return_index=True)[1]]
        targets = _sides(vectors.target, vectors.target_rows, pairs, candidates)
        asking = np.flatnonzero(of_task & pairs.asks)
        for start in range(0, len(asking), QUERIES_AT_ONCE):
            anchors = asking[start : start + QUERIES_AT_ONCE]
            queries = _sides(vectors.query, vectors.query_rows, pairs, anchors)
            own = similarities(queries, _sides(vectors.target, vectors.target_rows, pairs, anchors))
            limits = (own - (1 - settings.max_similarity_share) * np.abs(own)).astype(np.float32)
            count = settings.negatives_per_pair + SPARE
            values, places = nearest_below(queries, targets, limits, count, device)
            rows = candidates[places]
            wrong = np.isfinite(values) & ~known.among(anchors, rows)
            first = np.argsort(~wrong, axis=1, kind="stable")[:, : settings.negatives_per_pair]
            chosen = np.take_along_axis(wrong, first, axis=1)
            mined.negatives[anchors] = np.where(chosen, np.take_along_axis(rows, first, axis=1), -1)
            mined.similarities[anchors] = np.where(chosen, np.take_along_axis(values, first, axis=1), 0)
            mined.own[anchors] = own
    return mined


def _sides(vectors: Vectors, rows: Ints, pairs: Pairs, chosen: Ints) -> Sides:
    return Sides(vectors, rows[chosen], pairs.positive[chosen].view(np.int64))


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
        keyed = (positive != NO_KEY) & _is_among(_joint(positive, target), self._of_key)
        answered = _is_among(_joint(query, target), self._of_query)
        return np.asarray(keyed | answered | (target == query))


def _joint(left: Hashes, right: Hashes) -> Hashes:
    """One hash of two."""
    return mix(left) + right


def _is_among(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    if len(known) == 0:
        return np.zeros(hashes.shape, dtype=bool)
    return np.asarray(known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes)


def write_mined(mined: Mined, pairs: Pairs, path: Path) -> None:
    """Write the table of the stage."""
    schema = arrow_schema(MINED)
    with pa.ipc.new_file(path, schema) as writer:
        for start in range(0, len(pairs), WRITTEN_ROWS):
            part = slice(start, start + WRITTEN_ROWS)
            rows = mined.negatives[part]
            found = rows >= 0
            offsets = pa.array(np.concatenate([[0], np.cumsum(found.sum(axis=1))]), pa.int64())
            added = {name: np.where(found, pairs.sizes[name][rows], 0).sum(axis=1) for name in SIZES}
            lists = (rows[found], mined.similarities[part][found])
            columns = [pa.LargeListArray.from_arrays(offsets, pa.array(values)) for values in lists]
            columns += [pa.array(added[name], pa.int32()) for name in SIZES]
            writer.write_batch(pa.record_batch(columns, schema=schema))
