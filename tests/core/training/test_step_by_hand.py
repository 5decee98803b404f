"""Steps of recipes at random equal those by hand: each item embedded alone, each loss as DESIGN.md has it."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.core.objectives import reference
from tests.core.training.stand_in import WIDTH, StandIn, step_of
from tests.core.training.training_files import WrittenPair, write_training_files
from vipolyqwen_core.config import BatchSettings, Negatives, ObjectiveSettings, Term
from vipolyqwen_core.contract import MINED, Task, Turn
from vipolyqwen_core.corpus.tables import StageSummary, arrow_schema
from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor
from vipolyqwen_core.training.plan import drops_prefix, plan_chunks, read_plan_index

TEXTS = ("phở", "hóa đơn", "a red circle", "two blue squares beside a green triangle", "三角形", "total: 12")
"""Few, so that equal sides meet."""
NUM_PAIRS = 40


@dataclass(frozen=True)
class Corpus:
    """A training set, and what was written into it."""

    folder: Path
    mined: Path
    pictures: list[Image.Image]
    pairs: list[WrittenPair]
    mined_rows: list[list[int]]


@pytest.fixture(scope="module")
def corpus(tiny_backbone, tiny_processing, tmp_path_factory) -> Corpus:
    chance = random.Random(0)
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 256, (28, 28 + 14 * n, 3), np.uint8)) for n in range(3)]
    pairs: dict[tuple[Any, ...], WrittenPair] = {}
    while len(pairs) < NUM_PAIRS:
        task = chance.choice(list(Task))
        asked, told = (tuple(chance.choices(range(3), k=chance.choice([0, 0, most]))) for most in (2, 1))
        pair = WrittenPair(
            task,
            "<image>" * len(asked) + chance.choice(TEXTS),
            "<image>" * len(told) + chance.choice(TEXTS),
            asked,
            (Turn("user", "hello"), Turn("assistant", "yes?")) if chance.random() < 0.1 else (),
            tuple(chance.choices(TEXTS, k=chance.choice([0, 0, 0, 2]))),
            chance.choice([0.1, 0.75, None]) if task is Task.TEXT_PAIR else None,
            told,
            chance.choice([None, None, "key"]),
        )
        pairs[pair.task, pair.query, pair.target, asked, told, pair.history, pair.score] = pair
    written = list(pairs.values())
    folder = tmp_path_factory.mktemp("by_hand")
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    write_training_files(folder / "set", processor, pictures, written)
    tasks = [pair.task for pair in written]
    chosen = [
        chance.sample([row for row, task in enumerate(tasks) if task is own], chance.choice([0, 0, 2]))
        for own in tasks
    ]
    sizes = dict.fromkeys(("tokens", "patches", "images"), 1)  # bounds, of which only being some counts
    mined = [{"negatives": rows, "similarities": [0.5] * len(rows), **sizes} for rows in chosen]
    (folder / "mined").mkdir()
    table = pa.Table.from_pylist(mined, schema=arrow_schema(MINED))
    with pa.ipc.new_file(folder / "mined" / "mined.arrow", table.schema) as writer:
        writer.write_table(table)
    StageSummary("hard_negatives", "f", "mined1", NUM_PAIRS, NUM_PAIRS, {}).write(folder / "mined")
    return Corpus(folder / "set", folder / "mined", pictures, written, chosen)


class ByHand:
    """The loss of a step as a function of the weights."""

    def __init__(self, corpus: Corpus, processor: ViPolyQwenProcessor, dropped: Any) -> None:
        self.corpus, self.processor, self.dropped = corpus, processor, dropped
        self.names: dict[Any, int] = {}
        self.packed: dict[Any, Any] = {}

    def name(self, *content: Any) -> int:
        """A number for each content; 0 is none."""
        return self.names.setdefault(content, len(self.names) + 1)

    def vector(self, model: StandIn, *content: Any) -> list[float]:
        """Of a text, its pictures, its prefix and its history, alone in its batch."""
        if content not in self.packed:
            text, pictures, prefix, history = content
            shown = tuple(self.corpus.pictures[place] for place in pictures)
            item = Item(text, shown, history=history, prefix=prefix)
            self.packed[content] = pack([self.processor.encode(item)])
        return model(self.packed[content])[0].tolist()

    def pair(self, model: StandIn, row: int) -> reference.Pair:
        pairs, pair = self.corpus.pairs, self.corpus.pairs[row]
        prefix = None if self.dropped[row] else pair.task
        of_target = prefix if pair.task is Task.TEXT_PAIR else None

        def keys(of: WrittenPair) -> tuple[int, int, int]:
            key = self.name("key", of.positive_key) if of.positive_key else 0
            query = self.name(of.query, of.pictures, of.history)
            return self.name(of.target, of.target_pictures, ()), query, key

        wrong = [
            (self.name(text, (), ()), 0, 0, self.vector(model, text, (), of_target, ()))
            for text in pair.negatives
        ]
        for other in (pairs[number] for number in self.corpus.mined_rows[row]):
            vector = self.vector(model, other.target, other.target_pictures, of_target, ())
            wrong.append((*keys(other), vector))
        target, query, key = keys(pair)
        return reference.Pair(
            pair.task,
            self.vector(model, pair.query, pair.pictures, prefix, pair.history),
            self.vector(model, pair.target, pair.target_pictures, of_target, ()),
            *(query, target, key, None if pair.score is None else float(np.float32(pair.score))),
            wrong,
        )

    @torch.no_grad()
    def loss(self, model: StandIn, groups: list[list[int]], objective: ObjectiveSettings, dims: Any) -> float:
        num_pairs = sum(len(group) for group in groups)
        embedded = [[self.pair(model, row) for row in group] for group in groups]
        return sum(reference.total(group, group, objective, num_pairs, dims) for group in embedded)


@pytest.mark.parametrize("seed", range(4))
def test_a_step_of_any_recipe_has_the_loss_and_the_gradient_by_hand(
    corpus, tiny_backbone, tiny_processing, seed
):
    chance = random.Random(seed)
    rows = chance.sample(range(NUM_PAIRS), 12)
    objective = ObjectiveSettings(
        temperature=chance.choice([0.2, 1.0]),
        margin=chance.choice([0.2, 1.0]),
        positive_score=chance.choice([0.5, 0.75]),
        term_weights={Term.SCORE_MSE: chance.choice([0.3, 2.0])},
        task_weights={Task.OCR: chance.choice([0.5, 3.0])},
        cross_task_negatives=chance.random() < 0.5,
        uniformity_weight=chance.choice([0.0, 0.4]),
    )
    dims = chance.choice([(), (WIDTH - 1, WIDTH - 3)])
    negatives, chunk_pairs, dropout = list(Negatives)[seed % 2], chance.choice([1, 3, 5]), 0.4
    loss, after = step_of(
        (corpus.folder, tiny_backbone, tiny_processing),
        rows,
        negatives,
        chunk_pairs,
        objective=objective,
        prefix_dropout=dropout,
        mined=corpus.mined,
        matryoshka_dims=dims,
    )
    index = read_plan_index(corpus.folder / "index.parquet")
    batches = BatchSettings(pairs_per_step=64, chunk_pairs=chunk_pairs)
    groups = [chunk.rows[0].tolist() for chunk in plan_chunks(index, np.array(rows), batches, 1)]
    if negatives is Negatives.STEP:
        groups = [rows]
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)
    by_hand = ByHand(corpus, processor, drops_prefix(index.keys, dropout, 0, 0))
    model = StandIn()
    assert loss == pytest.approx(by_hand.loss(model, groups, objective, dims), rel=1e-9)

    # at rate 1 the weights have gone down by the gradient: along it, and along noise, the loss must change so
    gradient = {name: before - after[name] for name, before in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(part.shape, generator=generator) for name, part in gradient.items()}
    for direction in (gradient, noise):
        length = float(sum(part.square().sum() for part in direction.values())) ** 0.5
        ends = []
        for step in (1e-5, -1e-5):
            moved = StandIn()
            moved.load_state_dict(
                {name: part + step / length * direction[name] for name, part in model.state_dict().items()}
            )
            ends.append(by_hand.loss(moved, groups, objective, dims))
        slope = float(sum((gradient[name] * part).sum() for name, part in direction.items())) / length
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-7)
