"""Curation of text rows: rows a second, peak memory, and what the rules for copies and leakage find.

A synthetic corpus with known answers (synthetic_corpus.py) goes from files on disk through `curate` of each
source and `build_training_set`. Tagging needs a tokenizer and looks at no other row, so it is left out of the
times: its columns are filled with constants between the two. The search for duplicates alone, beside a peer
on the same rows, is bench_duplicates.py.

    python -m tests.benchmarks curation                              1M rows
    python -m tests.benchmarks.bench_curation 1000000 11000000       other sizes

A retraining builds the training set once more, by another seed of the split, from the same sources: every row
has an earlier side that counts.

What recall of copies is, planted_copies.py says. Precision is that of rows that were dropped: the row that
stays for them is a copy of theirs, as planted.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import polars as pl

from quality.curate import curate
from quality.polars_tables import polars_schema
from quality.training_set import build_training_set
from tests.benchmarks.__main__ import run_and_record, scratch_folder
from tests.benchmarks.measure import measure
from tests.benchmarks.planted_copies import recalls
from tests.benchmarks.synthetic_corpus import (
    BANNED_RUN,
    SHARED_QUERY,
    manifest_of,
    read_answers,
    write_corpus,
)
from vipolyqwen_core.contract import TAGGED
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.recipes import qwen2vl_2b_h100x4
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

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

    recall = recalls(rows.with_columns(stays=pl.col("fate").is_in(SIDED)), (THRESHOLD,))
    right = pl.col("root") == pl.col("kept_root")
    sides_differ = pl.col("fate") != pl.col("other_fate")
    return {
        "exact copies, recall": recall["exact"],
        "exact copies, precision": share(dropped.filter(pl.col("fate") == COPIES[0]), right),
        "near copies, recall over all planted": recall["near"],
        "near copies above the threshold, share of all planted": share(pairs.filter(near), above),
        "near copies above the threshold, recall": recall[f"near {THRESHOLD}"],
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


def run(sizes: tuple[int, ...] = (1_000_000,), scratch: Path | None = None) -> list[str]:
    """Tables of costs and scores."""
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
    if scratch is None:
        shutil.rmtree(folder)
    return lines


def main() -> None:
    """Measure the sizes of the command line and record them."""
    sizes = tuple(int(size) for size in sys.argv[1:])
    run_and_record("curation", run, sizes or (1_000_000,), scratch_folder())


if __name__ == "__main__":
    main()
