"""A quick evaluation between steps: the loss of a fixed sample of evaluation pairs, to choose a checkpoint.

It is no judge of the model: that is `vipolyqwen_core.evaluation`. Pairs that choose a checkpoint favour it a
little, so this is off unless `eval_steps` asks for it.
"""

from pathlib import Path

import numpy as np
import torch

from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.contract import Split
from vipolyqwen_core.corpus.tables import read_arrow
from vipolyqwen_core.hashes import sample_keys, splitmix
from vipolyqwen_core.objectives.negatives import gather
from vipolyqwen_core.objectives.pairs import PairVectors, join_pairs
from vipolyqwen_core.objectives.routing import compute_losses
from vipolyqwen_core.training.engine import Engine
from vipolyqwen_core.training.loading import ChunkLoader, ChunkRequest
from vipolyqwen_core.training.plan import TASK_CODES, IntArray, PlanIndex, plan_chunks
from vipolyqwen_core.training.ranks import sums
from vipolyqwen_core.training.tracking import loss_metrics

MAX_PAIRS = 1024


class QuickEvaluation:
    """The sample, and how it is embedded. All ranks take part."""

    def __init__(self, run: TrainingRun, engine: Engine, version: str | None) -> None:
        """Choose the sample: the same pairs whatever their order in the table.

        Args:
            version: of the training set, from before the plan was made
        Raises:
            ValueError: there are no evaluation pairs, or the training set was replaced just now
        """
        recipe = run.recipe
        self.engine = engine
        self.objective = recipe.objective
        self.batches = recipe.batches
        self.matryoshka_dims = recipe.model.matryoshka_dims
        self.loader = ChunkLoader(
            run.training_set,
            str(run.backbone),
            recipe.processing,
            prefix_dropout=0.0,
            seed=recipe.training.seed,
            table=Split.EVAL.file,
            versions=(version, None),
        )
        path = run.training_set / Split.EVAL.file
        self.index = read_evaluation_index(path)
        if not len(self.index):
            raise ValueError(f"eval_steps is set, but {path} holds no pairs")
        self.rows: IntArray = np.sort(np.argsort(splitmix(self.index.keys), kind="stable")[:MAX_PAIRS])
        self.loader.open()  # at the first evaluation, hours later, the next training set may lie there

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """`eval/loss`, and each term by task."""
        accelerator = self.engine.accelerator
        rank, num_ranks = accelerator.process_index, accelerator.num_processes
        embedded: list[PairVectors] = []
        for chunk in plan_chunks(self.index, self.rows, self.batches, num_ranks):
            loaded = self.loader[ChunkRequest(0, 0, chunk.rows[rank], chunk.has_pictures)]
            embedded.append(self.engine.embed(loaded))
        pairs = join_pairs(embedded)
        losses = compute_losses(
            pairs,
            gather(pairs),
            self.objective,
            num_step_pairs=len(self.rows),
            matryoshka_dims=self.matryoshka_dims,
        )
        (loss,) = sums([float(losses.total)], losses.total.device)
        return {f"eval/{name}": value for name, value in loss_metrics(loss, losses.terms.reduced()).items()}


def read_evaluation_index(path: Path) -> PlanIndex:
    """What the plan of chunks needs to know of the evaluation pairs; there are few.

    Raises:
        ValueError: the table is missing, or was cut
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: build the training set first")
    table = read_arrow(path)
    patches = table["query_patches"].to_numpy() + table["target_patches"].to_numpy()
    return PlanIndex(
        keys=sample_keys(table["sample_id"].to_pylist()),
        tasks=np.array([TASK_CODES[task] for task in table["task"].to_pylist()], dtype=np.int8),
        sources=np.zeros(len(table), dtype=np.int32),
        source_names=("all",),
        tokens=table["query_tokens"].to_numpy() + table["target_tokens"].to_numpy(),
        patches=patches,
        images=(patches > 0).astype(np.int32),
    )
