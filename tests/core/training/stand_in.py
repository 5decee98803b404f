"""A model of a few weights in float64, so that ranks and chunks can be compared to 1e-9."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vipolyqwen_core.config import BatchSettings, Negatives, ObjectiveSettings, ProcessingSettings
from vipolyqwen_core.model.pooling import concentration, segment_softmax
from vipolyqwen_core.processing.packing import PackedBatch
from vipolyqwen_core.training.engine import Engine, PlannedStep
from vipolyqwen_core.training.loading import ChunkLoader, ChunkRequest
from vipolyqwen_core.training.plan import Chunk, plan_chunks, read_plan_index

VOCABULARY = 4096
WIDTH = 6
OBJECTIVE = ObjectiveSettings(temperature=0.3)


class StandIn(nn.Module):
    """Mean of token embeddings and of projected pictures by item, through a linear map, as unit vectors.

    How even a pooling by the rows of the map would be is said on request: it has gradients of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.visual = nn.Linear(588, WIDTH)
        self.head = nn.Linear(WIDTH, WIDTH)
        self.double()

    def forward(self, batch: PackedBatch, with_concentration: bool = False) -> Any:
        states = self.tokens(batch.input_ids % VOCABULARY)
        if batch.pictures is not None:
            patches = self.visual(batch.pictures.patches.double() / 255)
            merged = patches.unflatten(0, (-1, 4)).mean(1)
            num_tokens = len(batch.pictures.tokens)
            states = states.index_copy(0, batch.pictures.tokens, merged[:num_tokens])
            states = states + 0.0 * merged[num_tokens:].sum()
        sums = states.new_zeros(batch.num_items, WIDTH).index_add(0, batch.segment_ids, states)
        counts = torch.bincount(batch.segment_ids, minlength=batch.num_items)[:, None]
        vectors = nn.functional.normalize(self.head(torch.tanh(sums / counts)), dim=1)
        if not with_concentration:
            return vectors
        weights = segment_softmax(states @ self.head.weight.T, batch.segment_ids, batch.num_items)
        return vectors, concentration(weights, batch.segment_ids, batch.num_items)


def step_of(
    data: tuple[Path, Path, ProcessingSettings],
    rows: list[int],
    negatives: Negatives,
    chunk_pairs: int,
    planned_ranks: int | None = None,
    num_held: int | None = None,
    objective: ObjectiveSettings = OBJECTIVE,
    prefix_dropout: float = 0.0,
    mined: Path | None = None,
    **options: Any,
) -> tuple[float, dict[str, Tensor]]:
    """Loss of one step over all ranks, and the weights after a step of plain gradient descent at rate 1.

    With `planned_ranks` a single process replays the chunks of so many ranks: the same groups of candidates.
    With `num_held` the chunks after the first so many come twice. Other options are the engine's.
    """
    training_set, backbone, processing = data
    accelerator = Accelerator(cpu=True)
    bare = StandIn()
    model, optimizer = accelerator.prepare(bare, torch.optim.SGD(bare.parameters(), lr=1.0))
    engine = Engine(
        accelerator,
        model,
        optimizer.optimizer,
        vision_parameters=list(accelerator.unwrap_model(model).visual.parameters()),
        objective=objective,
        negatives=negatives,
        max_grad_norm=1e9,
        **options,
    )
    index = read_plan_index(training_set / "index.parquet", mined)
    ranks = planned_ranks or accelerator.num_processes
    settings = BatchSettings(pairs_per_step=64, chunk_pairs=chunk_pairs)
    chunks = plan_chunks(index, np.array(rows), settings, ranks)
    if planned_ranks is not None:
        chunks = [Chunk((np.concatenate(chunk.rows),), chunk.has_pictures) for chunk in chunks]
    loader = ChunkLoader(training_set, backbone, processing, prefix_dropout, seed=0, mined=mined)
    loaded = [
        loader[
            ChunkRequest(
                0,
                0,
                chunk.rows[accelerator.process_index],
                chunk.has_pictures or (ranks > 1 and number == len(chunks) - 1),
                chunk.rows,
            )
        ]
        for number, chunk in enumerate(chunks)
    ]
    planned = PlannedStep(
        number=0,
        num_pairs=len(rows),
        num_chunks=len(chunks),
        has_pictures=any(chunk.has_pictures for chunk in chunks),
        learning_rate=1.0,
        num_held=len(loaded) if num_held is None else num_held,
    )
    result = engine.step(planned, iter(loaded + loaded[planned.num_held :]))
    loss = accelerator.reduce(result.loss.clone(), "sum")
    weights = accelerator.unwrap_model(model).state_dict()
    return float(loss), {name: tensor.detach().clone() for name, tensor in weights.items()}
