"""The gallery: some queries of each pool with what the model found, and where in the pictures it looked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vipolyqwen_core.contract import Side, Task, prefix_of
from vipolyqwen_core.evaluation import results
from vipolyqwen_core.evaluation.encoding import EvaluationPairs, RowVectors
from vipolyqwen_core.evaluation.html_page import cut, thumbnail_url
from vipolyqwen_core.evaluation.judged_pool import JudgedPool
from vipolyqwen_core.evaluation.metrics import PRIMARY
from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.processor import Item
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder
from vipolyqwen_core.serving.stored_sides import SideRequest

NUM_HITS: Final = 3
THUMBNAIL_PIXELS: Final = 360
MAX_TEXT_CHARS: Final = 400
MAX_TEXT_LINES: Final = 12


@dataclass(frozen=True)
class ShownSide:
    """A side as the report shows it."""

    text: str
    pictures: tuple[str, ...]
    """Data URIs."""


@dataclass(frozen=True)
class ShownHit:
    """A target that was found."""

    rank: int
    cosine: float
    is_right: bool
    side: ShownSide


@dataclass(frozen=True)
class ShownQuery:
    """A query with its hits."""

    pool: str
    rank_of_right: int | None
    """Rank of the first right answer; None: not among the first ten."""
    query: ShownSide
    heat_maps: tuple[str, ...]
    """Data URIs of its pictures under the weights of the pooling."""
    hits: tuple[ShownHit, ...]
    right: ShownSide
    """A right answer, for a query whose hits hold none."""


def build_gallery(
    judged: Sequence[JudgedPool],
    pairs: EvaluationPairs,
    vectors: RowVectors,
    embedder: ViPolyQwenEmbedder,
    num_queries: int,
    seed: int,
) -> list[ShownQuery]:
    """So many queries of each task, shared by its languages; half of them answered at once, half not."""
    shown = []
    for task in Task:
        of_task = [each for each in judged if each.pool.task is task]
        of_task.sort(key=lambda each: -each.pool.num_pairs)
        for i, each in enumerate(of_task):
            share = num_queries // len(of_task) + (i < num_queries % len(of_task))
            reciprocal_ranks = each.rankings[results.TRAINED].by_query[PRIMARY]
            shown += [
                _show(each, place, pairs, vectors, embedder)
                for place in choose(reciprocal_ranks, share, seed)
            ]
    return shown


def choose(reciprocal_ranks: NDArray[np.floating], count: int, seed: int) -> list[int]:
    """Places of `count` queries at random: up to half of them answered on rank one, the rest from the others.

    Args:
        reciprocal_ranks: [Q], of the first right answer to each query
    """
    order = np.random.default_rng(seed).permutation(len(reciprocal_ranks))
    found = [int(place) for place in order if reciprocal_ranks[place] == 1]
    missed = [int(place) for place in order if reciprocal_ranks[place] < 1]
    num_found = max(min(len(found), (count + 1) // 2), count - len(missed))
    return [*found[:num_found], *missed[: count - num_found]]


def _show(
    judged: JudgedPool,
    place: int,
    pairs: EvaluationPairs,
    vectors: RowVectors,
    embedder: ViPolyQwenEmbedder,
) -> ShownQuery:
    pool, ranking = judged.pool, judged.rankings[results.TRAINED]
    row = int(pool.queries[place])
    found = [int(column) for column in ranking.nearest[place][:NUM_HITS] if column >= 0]
    cosines = vectors.target[pool.targets[found]] @ vectors.query[row]
    reciprocal_rank = ranking.by_query[PRIMARY][place]
    (item,) = pairs.sides.items([SideRequest(row, Side.QUERY, prefix_of(pool.task, Side.QUERY))])
    right = pool.targets[pool.relevant.indices[pool.relevant.indptr[place]]]
    return ShownQuery(
        pool=pool.name,
        rank_of_right=round(1 / reciprocal_rank) if reciprocal_rank else None,
        query=_side(item, pairs.texts(pool.queries[[place]], Side.QUERY)[0]),
        heat_maps=tuple(heat_maps(embedder, item)),
        hits=tuple(
            ShownHit(
                rank, float(cosine), bool(pool.relevant[place, column]), _target(pairs, pool.targets[column])
            )
            for rank, (column, cosine) in enumerate(zip(found, cosines, strict=True), start=1)
        ),
        right=_target(pairs, right),
    )


def _target(pairs: EvaluationPairs, row: np.int64) -> ShownSide:
    (item,) = pairs.sides.items([SideRequest(int(row), Side.TARGET)])
    return _side(item, item.text)


def _side(item: Item, text: str) -> ShownSide:
    pictures = tuple(thumbnail_url(image, THUMBNAIL_PIXELS) for image in item.images)
    return ShownSide(cut(text, MAX_TEXT_CHARS, MAX_TEXT_LINES), pictures)


def heat_maps(embedder: ViPolyQwenEmbedder, item: Item) -> list[str]:
    """The pictures of an item, coloured by how much each part weighs in its vector."""
    return [
        thumbnail_url(_tinted(image, weights), THUMBNAIL_PIXELS)
        for image, weights in zip(item.images, picture_weights(embedder, item), strict=True)
    ]


def picture_weights(embedder: ViPolyQwenEmbedder, item: Item) -> list[NDArray[np.float32]]:
    """Weights of the visual tokens of each picture: [lines, columns] of visual tokens, as it lies there."""
    if not item.images:
        return []
    layout = embedder.processor.layout
    (encoded,) = embedder.processor.encode_batch([item], exceed=True)  # as its vector was made
    with torch.inference_mode():
        weights = embedder.model.pooling_weights(pack([encoded], layout).to(embedder.device))
    by_token = weights.float().cpu().numpy()
    grids = []
    for start, (frames, rows, columns) in zip(encoded.image_starts, encoded.image_grid, strict=True):
        shape = (rows // layout.merge_size, columns // layout.merge_size)
        grids.append(
            by_token[start : start + frames * shape[0] * shape[1]].reshape(frames, *shape).sum(axis=0)
        )
    return grids


def _tinted(image: Image.Image, weights: NDArray[np.float32]) -> Image.Image:
    """The picture in grey under colours that go from its least weight to its largest."""
    spread = float(np.ptp(weights))
    level = (weights - weights.min()) / spread if spread > 0 else np.zeros_like(weights)
    smooth = Image.fromarray((level * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    coloured = matplotlib.colormaps["inferno"](np.asarray(smooth) / 255.0)[:, :, :3]
    heat = Image.fromarray((coloured * 255).astype(np.uint8))
    return Image.blend(image.convert("L").convert("RGB"), heat, 0.55)
