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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from vipolyqwen_core.config import MiningSettings, Recipe
from vipolyqwen_core.contract import MINED, MINED_TABLE
from vipolyqwen_core.corpus.hashing import content_digest
from vipolyqwen_core.corpus.tables import StageSummary, arrow_schema, read_stage, unchanged_stage
from vipolyqwen_core.hashes import splitmix
from vipolyqwen_core.mining.nearest import Floats, HalfVectors, Ints, Sides, nearest_below, similarities
from vipolyqwen_core.mining.pairs import KnownAnswers, Pairs, read_pairs
from vipolyqwen_core.mining.vectors import DistinctVectors, read_vectors
from vipolyqwen_core.objectives.pairs import NO_KEY
from vipolyqwen_core.serving.current_export import CURRENT_FILE, CurrentExport, read_current
from vipolyqwen_core.serving.export import export
from vipolyqwen_core.training.hard_negatives import SIZES
from vipolyqwen_core.training.identity import MINING, mining_fingerprint, refuse_built_anew
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

QUERIES_AT_ONCE: Final = 262_144
"""Queries whose vectors are in memory at once: 0.5 GB of 1,024 dimensions."""
SPARE: Final = 16
"""Nearest targets beyond those that are wanted: some may turn out to be right answers."""
WRITTEN_ROWS: Final = 65_536


def teacher_of(workspace: Workspace) -> CurrentExport | None:
    """The export whose model finds the negatives; None: nothing was exported yet."""
    return read_current(workspace) if (workspace.exports / CURRENT_FILE).is_file() else None


def is_lost(workspace: Workspace) -> bool:
    """Whether a table was in use and is gone, as far as its folder is still there."""
    link = workspace.exports / CURRENT_FILE
    return link.is_symlink() and not link.is_file()


def refuse_lost_table(workspace: Workspace) -> None:
    """Refuse to mine nothing where a table was exported once and is gone: the model would be silently worse.

    Raises:
        ValueError: there is no table, but there are versions of models
    """
    if is_lost(workspace) or any(workspace.models.glob("v*/config.json")):
        raise ValueError(
            f"the exported table, {workspace.lancedb}, is gone, and no model can find hard negatives without "
            "it: materialise embedding_export, or run `vipolyqwen export` with the champion's model and "
            "version first, which takes the vectors that its Parquet file holds"
        )


def mine(
    workspace: Workspace,
    recipe: Recipe,
    find_model: Callable[[CurrentExport], Path] = CurrentExport.model_directory,
    bring_back: Callable[[Workspace], None] = refuse_lost_table,
) -> StageSummary:
    """Mine hard negatives for the workspace's training set with the model of its last export.

    Args:
        find_model: gives the directory of that model; called only where something is mined
        bring_back: may export under the version in use; called where there is no table to mine with, unless
            what was mined stands
    Raises:
        ValueError: the recipe asks for none, there is no training set or it was built anew meanwhile, or the
            exported table is gone
    """
    started = time.monotonic()
    if not recipe.mining.negatives_per_pair:
        raise ValueError(f"recipe {recipe.name!r} mines nothing: its mining.negatives_per_pair is 0")
    stage = read_stage(workspace.training_set)
    if stage is None:
        raise ValueError(f"no training set at {workspace.training_set}: it has no stage.json")
    folder, mark = workspace.hard_negatives, mining_fingerprint(recipe, stage.data_version)
    teacher = teacher_of(workspace)
    earlier = unchanged_stage(folder, mark, (MINED_TABLE,))
    stands = earlier is not None and bool(earlier.details["teacher"])
    if teacher is None and not stands:
        bring_back(workspace)
        teacher = teacher_of(workspace)
    if earlier is not None and (stands or teacher is None):
        logger.info("hard negatives: unchanged")
        return earlier
    pairs = read_pairs(workspace.training_set, recipe.objective.positive_score)
    mined = Mined.none(len(pairs), recipe.mining)
    with written_aside(folder) as aside:
        aside.mkdir(parents=True)
        parquet = None
        if teacher is not None:
            model = find_model(teacher)
            exported = export(workspace.training_set, model, teacher.model_version, workspace, recipe.export)
            parquet = exported.parquet
        refuse_built_anew(workspace.training_set, stage.data_version)  # from here on it is not read again
        if parquet is not None:
            vectors = read_vectors(parquet, pairs, aside)
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


@dataclass(frozen=True, eq=False)
class Mined:
    """What was found for R pairs.

    Shapes:
        negatives: [R, n] rows of `train.arrow`, nearest first; -1: none
        similarities: [R, n]; nothing where there is no negative
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


def find_negatives(pairs: Pairs, vectors: DistinctVectors, settings: MiningSettings) -> Mined:
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
            mined.similarities[anchors] = np.take_along_axis(values, first, axis=1)
            mined.own[anchors] = own
    return mined


def _sides(vectors: HalfVectors, rows: Ints, pairs: Pairs, chosen: Ints) -> Sides:
    """Sides of the chosen pairs, each with the declared key of its pair, or else its query.

    Without keys, the other right answers of a pair, where they are more than `SPARE`, would crowd out what is
    wrong.
    """
    positive = pairs.positive[chosen]
    keys = np.where(positive != NO_KEY, positive, splitmix(pairs.query[chosen]))
    return Sides(vectors, rows[chosen], keys.view(np.int64))


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
