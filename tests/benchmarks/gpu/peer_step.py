"""sentence-transformers on the same weights and pairs: its model and its cached loss in a plain loop.

Its own trainer is left out, as it needs `datasets`; what it adds to a step is bookkeeping. AdamW and autocast
are as ours. Texts and pictures go in steps apart, since its processor wants one kind at a time. Preparing
inputs on the main thread, as its collator does, is timed apart.
"""

import time
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor, nn
from transformers import AutoConfig

from tests.benchmarks.gpu.rates import synchronize
from tests.benchmarks.gpu.scale import Scale
from tests.benchmarks.peer import build_peer
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.training.loading import ChunkLoader
from vipolyqwen_core.training.plan import PlanIndex

Inputs = list[Any]


class Peer:
    """The peer with its optimizer, and the pairs of one step as it takes them."""

    def __init__(
        self, run: TrainingRun, loader: ChunkLoader, index: PlanIndex, scale: Scale, device: torch.device
    ) -> None:
        """Build it, and read the pairs: some of the training set, in the shares of the mix."""
        width = AutoConfig.from_pretrained(run.backbone).get_text_config().hidden_size
        projection = nn.Linear(width, run.recipe.model.embedding_dim)
        self.device = device
        self.model = build_peer(run.backbone, run.recipe.processing, projection, device=device.type).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)
        self.temperature = run.recipe.objective.temperature
        rows = np.random.default_rng(0).permutation(len(index))[: scale.peer_pairs]
        self.kinds = [_sides(loader, rows[index.images[rows] == count]) for count in (0, 1)]
        self.num_pairs = sum(len(queries) for queries, _ in self.kinds)

    def step(self, mini_batch: int, most: int | None = None) -> tuple[float, float]:
        """Seconds to prepare the inputs of a step, and seconds of the step.

        Args:
            most: pairs of either kind, where not all are wanted
        """
        loss = CachedMultipleNegativesRankingLoss(
            self.model, scale=1.0 / self.temperature, mini_batch_size=mini_batch
        )
        started = time.perf_counter()
        features = [[self._prepared(side[:most]) for side in sides] for sides in self.kinds]
        synchronize(self.device)
        prepared = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        for of_kind in features:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss(of_kind, torch.empty(0)).backward()  # which embeds again, and in bfloat16 too
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        synchronize(self.device)
        return prepared - started, time.perf_counter() - prepared

    def _prepared(self, inputs: Inputs) -> dict[str, Any]:
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in self.model.preprocess(inputs).items()
        }


def measure_peer(peer: Peer, mini_batch: int) -> dict[str, Any]:
    """Figures of a step, behind one of a mini-batch of either kind, in which kernels are chosen."""
    if peer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(peer.device)
    peer.step(mini_batch, most=mini_batch)
    preparing, stepping = peer.step(mini_batch)
    on_gpu = peer.device.type == "cuda"
    return {
        "pairs_per_second": peer.num_pairs / (preparing + stepping),
        "pairs_per_second_prepared": peer.num_pairs / stepping,
        "waiting_share": preparing / (preparing + stepping),
        "peak_gb": torch.cuda.max_memory_allocated(peer.device) / 1e9 if on_gpu else None,
        "mini_batch": mini_batch,
        "pairs_of_a_step": peer.num_pairs,
    }


def _sides(loader: ChunkLoader, rows: np.ndarray) -> tuple[Inputs, Inputs]:
    """Queries, with their picture where they have one, and targets."""
    taken = loader.rows.take(rows)
    keys = [[(row["source"], image) for image in row["query_image_rows"]] for row in taken]
    pictures = loader.pictures.read([key for of_row in keys for key in of_row])
    queries = [
        {"image": pictures[of_row[0]], "text": row["query"].removeprefix("<image>")}
        if of_row
        else row["query"]
        for row, of_row in zip(taken, keys, strict=True)
    ]
    return queries, [row["target"] for row in taken]
