"""What a run names beside its recipe reaches the plan, the chunks and the dry run."""

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.contract import MINED, MINED_TABLE
from vipolyqwen_core.corpus.tables import StageSummary, arrow_schema
from vipolyqwen_core.training.dry_run import describe
from vipolyqwen_core.training.rows import TrainingRows
from vipolyqwen_core.training.setup import prepare
from vipolyqwen_core.training.train import chunk_stream


def planned(run: TrainingRun) -> tuple[int, int, int]:
    """Pairs and items of all chunks, and tokens of the index."""
    training = prepare(run)
    with closing(chunk_stream(training, 0)) as stream:
        chunks = list(stream)
    pairs = sum(chunk.keys.num_pairs for chunk in chunks)
    told = re.search(r"uses in all steps +([\d,]+)", describe(run))
    assert told is not None
    assert pairs == int(told[1].replace(",", ""))
    return pairs, sum(chunk.packed.num_items for chunk in chunks), int(training.plan.index.tokens.sum())


def write_mined(folder: Path, training_set: Path) -> tuple[int, int]:
    """Row 1 as a wrong answer of every tenth row; how many rows have it, and the tokens it adds."""
    rows = TrainingRows(training_set / "train.arrow", ("target_tokens",))
    chosen = [[1] if row % 10 == 6 else [] for row in range(len(rows))]
    (answer,) = (row["target_tokens"] for row in rows.take([1]))
    columns = {
        "negatives": chosen,
        "similarities": [[0.5] * len(of_row) for of_row in chosen],
        "tokens": [answer * len(of_row) for of_row in chosen],
        "patches": [0] * len(rows),
        "images": [0] * len(rows),
    }
    folder.mkdir()
    table = pa.table(columns, schema=arrow_schema(MINED))
    with pa.ipc.new_file(folder / MINED_TABLE, table.schema) as writer:
        writer.write_table(table)
    StageSummary("hard_negatives", "f", "mined1", len(rows), len(rows), {}).write(folder)
    return sum(map(len, chosen)), sum(columns["tokens"])


def test_weights_of_sources_and_mined_negatives_reach_the_plan_and_the_chunks(make_run, tmp_path):
    run, folder = make_run(), tmp_path / "mined"
    rows, tokens = write_mined(folder, run.training_set)
    pairs, items, length = planned(run)
    assert planned(replace(run, source_weights={"shop": 2.0}))[0] == 2 * pairs
    mined = planned(replace(run, hard_negatives=folder))
    assert mined == (pairs, items + run.recipe.training.epochs * rows, length + tokens)
