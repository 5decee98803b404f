"""Curation of text rows: rows a second, peak memory, and what the rules for copies and leakage find.

A synthetic corpus with known answers (synthetic_corpus.py) goes from files on disk through `curate` of each
source and `build_training_set`. Tagging needs a tokenizer and looks at no other row, so it is left out of the
times: its columns are filled with constants between the two. Beside it, on the same rows, the search for
duplicates alone and datatrove's MinHash pipeline, where a Python that has it is named:

    VIPOLYQWEN_PEER_PYTHON=/path/to/python python -m tests.benchmarks curation       1M rows
    python -m tests.benchmarks.bench_curation 1000000 11000000                       other sizes

A retraining builds the training set once more, by another seed of the split, from the same sources: every row
has an earlier side that counts.

Recall is that of planted pairs: a copy and its original do not both stay. Precision is that of rows that were
dropped: the row that stays for them is a copy of theirs, as planted.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from quality.curate import curate
from quality.intake import PictureIntake, normalised_rows
from quality.ledger import polars_schema
from quality.row_duplicates import find_duplicates
from quality.training_set import build_training_set
from tests.benchmarks.__main__ import record
from tests.benchmarks.measure import Measured, measure
from tests.benchmarks.synthetic_corpus import (
    BANNED_RUN,
    BENCHMARK,
    EXACT,
    SHARED_QUERY,
    manifest_of,
    read_answers,
    write_corpus,
)
from vipolyqwen_core.contract import TAGGED
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.readers import read_source
from vipolyqwen_core.corpus.tables import read_stage, written_aside
from vipolyqwen_core.recipes import qwen2vl_2b_h100x4
from vipolyqwen_core.workspace import Workspace

PEER_ROWS = 50_000
"""The peer is compared on so many rows at most: it takes a millisecond of CPU time a row."""
LOW_THRESHOLD = 0.7
"""A second run of ours, whose recall over all planted near copies is to reach the peer's."""
THRESHOLD = qwen2vl_2b_h100x4().curation.near_duplicate_threshold
SIDED = ("train", "eval")
COPIES = ("exact_duplicate", "near_duplicate")
PLACE = ("source", "line")


def curate_all(folder: Path, home: Path) -> None:
    """Curate every source of a corpus."""
    for source in manifest_of(folder).sources:
        curate(source, qwen2vl_2b_h100x4().curation, Workspace(home))


def accept_all(folder: Path, home: Path) -> None:
    """Make the curated pairs accepted versions, with constants and plain hashes for what tagging adds."""
    workspace = Workspace(home)
    whole = {"query_tokens": 32, "target_tokens": 32, "query_patches": 0, "target_patches": 0}
    for source in manifest_of(folder).sources:
        stage = read_stage(workspace.curated(source.name))
        assert stage is not None
        with written_aside(workspace.validated(source.name) / stage.data_version) as aside:
            aside.mkdir(parents=True)
            rows = pl.scan_parquet(workspace.curated(source.name) / "pairs.parquet").with_columns(
                *(pl.lit(value, dtype=pl.Int32).alias(name) for name, value in whole.items()),
                pl.lit(0, dtype=pl.UInt64).alias("positive_hash"),
                *(pl.col(side).hash(seed=0).alias(f"{side}_hash") for side in ("query", "target")),
                prefix=pl.col("task"),
            )
            rows.select(polars_schema(TAGGED).names()).sink_parquet(
                aside / "pairs.parquet", row_group_size=50_000
            )
            stage.write(aside)
        accepted = workspace.validated(source.name) / "accepted.json"
        accepted.write_text(json.dumps({"version": stage.data_version}), encoding="utf-8")


def train_all(folder: Path, home: Path) -> None:
    """Build the training set."""
    build_training_set(manifest_of(folder), qwen2vl_2b_h100x4(), Workspace(home))


def retrain_all(folder: Path, home: Path) -> None:
    """Build the training set again by another recipe: every row that has a side keeps it."""
    recipe = qwen2vl_2b_h100x4()
    other = replace(recipe.split, seed=recipe.split.seed + 1)
    build_training_set(manifest_of(folder), replace(recipe, split=other), Workspace(home))


def changed_sides(before: Path, after: Path) -> float:
    """The share of the assigned rows that have another side afterwards, or none."""
    later = pl.scan_parquet(after).select("sample_id", later="split")
    found = pl.scan_parquet(before).join(later, on="sample_id", how="left")
    changed = found.select((pl.col("split").ne_missing(pl.col("later"))).mean())
    return float(changed.collect(engine="streaming").item())


def fates(folder: Path, home: Path) -> pl.DataFrame:
    """The answers, each with its `fate` (split or rule), `component`, and the place of what it copies."""
    workspace = Workspace(home)
    ledgers = [workspace.curated(source.name) / "ledger.parquet" for source in manifest_of(folder).sources]
    kept = pl.col("reason").str.extract_groups(r"line (?<kept_line>\d+) of source (?<kept_source>\w+)")
    lost = pl.concat(
        [pl.scan_parquet(path) for path in (*ledgers, workspace.training_set / "ledger.parquet")]
    )
    sided = pl.concat([pl.scan_ipc(workspace.training_set / f"{side}.arrow") for side in SIDED])
    found = pl.concat(
        [
            lost.select(*PLACE, fate="rule", found=kept).unnest("found").cast({"kept_line": pl.Int64}),
            sided.select(*PLACE, fate="split", component="component", chars=pl.col("query").str.len_chars()),
        ],
        how="diagonal",
    )
    return (
        read_answers(folder).lazy().join(found, on=PLACE, how="left").collect(engine="streaming").sort("row")
    )


def score(rows: pl.DataFrame) -> dict[str, float]:
    """Shares by name: recall and precision of each rule."""
    copy = pl.col("similarity").is_not_null()
    rows = rows.with_columns(root=pl.when(copy).then("original").otherwise("row"))
    originals = rows.select(original="row", other_fate="fate", other_component="component")
    pairs = rows.drop_nulls("original").join(originals, on="original", how="left")
    both = pl.col("fate").is_in(SIDED) & pl.col("other_fate").is_in(SIDED)
    banned = pl.col("kind").str.starts_with("banned")
    near = pl.col("kind").str.starts_with("near")
    above = pl.col("similarity") >= THRESHOLD
    dropped = rows.filter(pl.col("fate").is_in(COPIES))
    roots = rows.select(kept_source="source", kept_line="line", kept_root="root")
    dropped = dropped.join(roots, on=("kept_source", "kept_line"), how="left")
    shared = pairs.filter(pl.col("kind") == SHARED_QUERY, both, pl.col("chars") >= 32)
    linked = rows.filter(pl.col("fate") == "linked_to_off_limits")
    assert rows["fate"].null_count() == 0, "rows without a fate"

    def share(some: pl.DataFrame, condition: pl.Expr) -> float:
        return float(some.select(condition.mean()).item())

    right = pl.col("root") == pl.col("kept_root")
    sides_differ = pl.col("fate") != pl.col("other_fate")
    return {
        "exact copies, recall": share(pairs.filter(pl.col("kind") == EXACT), ~both),
        "exact copies, precision": share(dropped.filter(pl.col("fate") == COPIES[0]), right),
        "near copies, recall over all planted": share(pairs.filter(near), ~both),
        "near copies above the threshold, share of all planted": share(pairs.filter(near), above),
        "near copies above the threshold, recall": share(pairs.filter(near, above), ~both),
        "near copies, precision": share(dropped.filter(pl.col("fate") == COPIES[1]), right),
        "shared long queries, recall of links": share(
            shared, pl.col("component") == pl.col("other_component")
        ),
        "shared long queries on both sides of the split": share(shared, sides_differ),
        "benchmark: copies kept out": share(
            pairs.filter(pl.col("kind") == "banned_exact"), ~pl.col("fate").is_in(SIDED)
        ),
        "benchmark: near copies above the threshold kept out": share(
            pairs.filter(pl.col("kind").str.starts_with("banned_near"), above), ~pl.col("fate").is_in(SIDED)
        ),
        "benchmark: runs of 16 words kept out": share(
            pairs.filter(pl.col("kind") == BANNED_RUN), ~pl.col("fate").is_in(SIDED)
        ),
        "benchmark: precision of rows kept out": share(linked, banned),
    }


def corpus_of(rows: int, folder: Path) -> Path:
    """A corpus of so many rows below a folder; one that is complete is used again."""
    corpus = folder / f"corpus_{rows}"
    if not (corpus / "complete").is_file():
        shutil.rmtree(corpus, ignore_errors=True)
        write_corpus(corpus, rows)
        (corpus / "complete").touch()
    return corpus


def run_size(rows: int, folder: Path) -> tuple[list[str], dict[str, float]]:
    """A line of the table of costs, and the scores."""
    corpus, home = corpus_of(rows, folder), folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    curated = measure(curate_all, corpus, home)
    measure(accept_all, corpus, home)
    trained = measure(train_all, corpus, home)
    scores = measure(_scores, corpus, home).value
    assignments, before = Workspace(home).assignments, home / "before.parquet"
    shutil.copyfile(assignments, before)
    retrained = measure(retrain_all, corpus, home)
    scores["retraining: rows that changed sides"] = measure(changed_sides, before, assignments).value
    shutil.rmtree(home)
    seconds, cpu = curated.seconds + trained.seconds, curated.cpu_seconds + trained.cpu_seconds
    line = (
        f"| {rows:,} | {rows / seconds:,.0f} | {curated.seconds:,.0f} + {trained.seconds:,.0f}"
        f" | {curated.cpu_seconds:,.0f} + {trained.cpu_seconds:,.0f} | {cpu / rows * 1e6:.1f}"
        f" | {curated.peak_gb:.2f} | {trained.peak_gb:.2f}"
        f" | {retrained.seconds:,.0f} | {retrained.cpu_seconds:,.0f} | {retrained.peak_gb:.2f} |"
    )
    print(line, scores, flush=True)
    return [line], scores


def _scores(corpus: Path, home: Path) -> dict[str, float]:
    return score(fates(corpus, home))


def intake_table(corpus: Path, path: Path) -> None:
    """All rows but the benchmark's in one table as `find_duplicates` takes it."""
    settings = qwen2vl_2b_h100x4().curation
    path.mkdir(parents=True)
    pictures, start = PictureIntake(ImageRoot(None), settings.max_image_pixels), 0
    for source in manifest_of(corpus).sources:
        batch: list[Any] = []
        records = read_source(source, settings.dialogue_turns) if source.name != BENCHMARK else iter(())
        for each in records:
            batch.append(each)
            if len(batch) == 50_000:
                start = _write_intake(batch, source.name, pictures, start, path)
                batch = []
        if batch:
            start = _write_intake(batch, source.name, pictures, start, path)
    pictures.close()


def _write_intake(batch: list[Any], source: str, pictures: PictureIntake, start: int, path: Path) -> int:
    rows = normalised_rows(batch, source, pictures, qwen2vl_2b_h100x4().curation)
    rows = rows.with_columns(row=pl.int_range(start, start + rows.height, dtype=pl.Int64))
    rows.write_parquet(path / f"{start:012}.parquet", compression="lz4")
    return start + rows.height


def own_duplicates(table: Path, scratch: Path, threshold: float) -> None:
    """Our search for duplicates over the table; the rows that are dropped go to `scratch`.parquet."""
    settings = replace(qwen2vl_2b_h100x4().curation, near_duplicate_threshold=threshold)
    dropped = find_duplicates(pl.scan_parquet(table / "*.parquet"), settings, scratch)
    dropped.write_parquet(scratch.with_suffix(".parquet"))


def peer_input(table: Path, folder: Path) -> None:
    """The same rows as datatrove reads them: JSON Lines of `id` and `text`, Chinese characters apart."""
    (folder / "input").mkdir(parents=True)
    spaced = pl.format("{}\n{}", "query", "target").str.replace_all(r"(\p{Han})", " $1 ")
    for number, part in enumerate(sorted(table.iterdir())):
        rows = pl.read_parquet(part).select(id=pl.col("row").cast(pl.String), text=spaced)
        rows.write_ndjson(folder / "input" / f"{number:04}.jsonl")


def peer_pipeline(python: str, folder: Path) -> None:
    """datatrove over `folder`/input."""
    program = Path(__file__).with_name("peer_datatrove.py")
    with open(folder / "log.txt", "wb") as log:
        subprocess.run([python, str(program), str(folder)], check=True, stdout=log, stderr=log)


def compare(rows: int, folder: Path, python: str) -> list[str]:
    """Our search for duplicates beside the peer's, on the same rows."""
    corpus, table = corpus_of(rows, folder), folder / "table"
    measure(intake_table, corpus, table)
    numbers = pl.read_parquet(table / "*.parquet", columns=["row", *PLACE])
    lines = ["", f"Duplicates alone, the same {rows:,} rows:", ""]
    lines += [
        "| | rows/s | seconds | CPU seconds | peak GB | recall exact | recall near, all | recall near, above"
        " | dropped | of them in planted sets |",
        "| --- " * 10 + "|",
    ]
    costs = []
    for threshold in (THRESHOLD, LOW_THRESHOLD):
        own = measure(own_duplicates, table, folder / "own", threshold)
        gone = pl.read_parquet(folder / "own.parquet")["row"]
        lines.append(_compared(f"ours, threshold {threshold}", own, _recalls(corpus, numbers, gone), rows))
        costs.append(own)
    peer_folder = folder / "peer"
    peer_input(table, peer_folder)
    peer = measure(peer_pipeline, python, peer_folder)
    found = [
        pl.read_ndjson(path).select(pl.col("id").cast(pl.Int64)) for path in (peer_folder / "kept").iterdir()
    ]
    gone = numbers.filter(~pl.col("row").is_in(pl.concat(found)["id"].implode()))["row"]
    lines.append(_compared("datatrove", peer, _recalls(corpus, numbers, gone), rows))
    times = [
        f"{peer.seconds / own.seconds:.1f} ({peer.cpu_seconds / own.cpu_seconds:.1f} by CPU time)"
        for own in costs
    ]
    lines += ["", f"Rows/s of ours over datatrove's: {times[0]}; at threshold {LOW_THRESHOLD}: {times[1]}."]
    shutil.rmtree(table)
    shutil.rmtree(peer_folder)
    return lines


def _recalls(corpus: Path, numbers: pl.DataFrame, gone: pl.Series) -> list[float]:
    lost = numbers.filter(pl.col("row").is_in(gone.implode())).select(*PLACE, gone=pl.lit(True))
    answers = (
        read_answers(corpus).join(lost, on=PLACE, how="left").with_columns(pl.col("gone").fill_null(False))
    )
    copies = answers.filter(pl.col("similarity").is_not_null(), ~pl.col("kind").str.starts_with("banned"))
    pairs = copies.join(answers.select(original="row", other="gone"), on="original", how="left")
    found, near = pl.col("gone") | pl.col("other"), pl.col("kind").str.starts_with("near")
    planted = pl.concat([copies["row"], copies["original"]]).unique()
    of_sets = answers.filter("gone").select(pl.col("row").is_in(planted.implode()).mean()).item()
    recalls = [
        pairs.filter(some).select(found.mean()).item()
        for some in (pl.col("kind") == EXACT, near, near & (pl.col("similarity") >= THRESHOLD))
    ]
    return [*recalls, float(gone.len()), of_sets]


def _compared(name: str, cost: Measured, found: list[float], rows: int) -> str:
    exact, near, above, dropped, of_sets = found
    return (
        f"| {name} | {rows / cost.seconds:,.0f} | {cost.seconds:,.0f} | {cost.cpu_seconds:,.0f}"
        f" | {cost.peak_gb:.2f} | {exact:.4f} | {near:.4f} | {above:.4f} | {dropped:,.0f} | {of_sets:.4f} |"
    )


def run(sizes: tuple[int, ...] = (1_000_000,), scratch: Path | None = None) -> list[str]:
    """Tables of costs, scores, and the comparison at the smallest size."""
    folder = Path(tempfile.mkdtemp(prefix="curation_", dir=scratch)) if scratch is None else scratch
    lines = [
        "| rows | rows/s | seconds, curate + training set | CPU seconds | CPU µs a row | peak GB, curate"
        " | peak GB, training set | retraining: seconds | CPU seconds | peak GB |",
        "| --- " * 10 + "|",
    ]
    scores = {}
    for rows in sizes:
        costs, scores[rows] = run_size(rows, folder)
        lines += costs
    lines += [
        "",
        "| found | " + " | ".join(f"{rows:,} rows" for rows in sizes) + " |",
        "| --- " * (len(sizes) + 1) + "|",
    ]
    names = next(iter(scores.values()))
    lines += [
        f"| {name} | " + " | ".join(f"{scores[rows][name]:.4f}" for rows in sizes) + " |" for name in names
    ]
    if python := os.environ.get("VIPOLYQWEN_PEER_PYTHON"):
        lines += compare(min(*sizes, PEER_ROWS), folder, python)
    if scratch is None:
        shutil.rmtree(folder)
    return lines


def main() -> None:
    """Measure the sizes of the command line and record them."""
    started = time.perf_counter()
    scratch = os.environ.get("VIPOLYQWEN_BENCH_FOLDER")
    sizes = tuple(int(size) for size in sys.argv[1:])
    lines = run(sizes or (1_000_000,), Path(scratch) if scratch else None)
    print("\n".join(lines), flush=True)
    record("curation", lines, time.perf_counter() - started)


if __name__ == "__main__":
    main()
