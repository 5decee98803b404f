"""The search for copies alone: ours beside datatrove's MinHash pipeline, on the same rows in one run.

The rows are those of the curation benchmark (synthetic_corpus.py), normalised; both sides read them from disk
and leave on disk which rows go. Both have the two cores: Polars its threads, datatrove two workers. Without a
Python that has datatrove only ours is measured:

    VIPOLYQWEN_PEER_PYTHON=/path/to/python python -m tests.benchmarks duplicates     1M rows
    python -m tests.benchmarks.bench_duplicates 50000                                another size

What recall and precision are, planted_copies.py says. Similarity is the lower one of the two sides, by
character 5-grams; the columns of recall are the same for all lines, whatever their threshold.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import polars as pl

from quality.intake import PictureIntake, normalised_rows
from quality.row_duplicates import find_duplicates
from tests.benchmarks.__main__ import run_and_record, scratch_folder
from tests.benchmarks.bench_curation import corpus_of
from tests.benchmarks.measure import Measured, measure
from tests.benchmarks.planted_copies import precision, recalls
from tests.benchmarks.synthetic_corpus import BENCHMARK, manifest_of, read_answers
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.readers import read_source
from vipolyqwen_core.recipes import qwen2vl_2b_h100x4

ROWS = 1_000_000
ROWS_PER_FILE = 50_000
SETTINGS = qwen2vl_2b_h100x4().curation
THRESHOLDS = (SETTINGS.near_duplicate_threshold, 0.7)
"""The default, and one that finds as many of the near copies as the peer."""
PLACE = ("source", "line")


def write_table(corpus: Path, table: Path) -> None:
    """All rows but the benchmark's, as `find_duplicates` takes them, in files of `ROWS_PER_FILE`."""
    table.mkdir(parents=True)
    for start, rows in _intake(corpus):
        rows.write_parquet(table / f"{start:012}.parquet", compression="lz4")


def _intake(corpus: Path) -> Iterator[tuple[int, pl.DataFrame]]:
    pictures, start = PictureIntake(ImageRoot(None), SETTINGS.max_image_pixels), 0
    for source in manifest_of(corpus).sources:
        if source.name == BENCHMARK:
            continue
        remaining = iter(read_source(source, SETTINGS.dialogue_turns))
        while records := list(islice(remaining, ROWS_PER_FILE)):
            rows = normalised_rows(records, source.name, pictures, SETTINGS)
            yield start, rows.with_columns(row=pl.int_range(start, start + rows.height, dtype=pl.Int64))
            start += rows.height
    pictures.close()


def own_duplicates(table: Path, scratch: Path, threshold: float) -> None:
    """Our search over the table; the rows that are dropped go to `scratch`.parquet."""
    settings = replace(SETTINGS, near_duplicate_threshold=threshold)
    dropped = find_duplicates(pl.scan_parquet(table / "*.parquet"), settings, scratch)
    dropped.write_parquet(scratch.with_suffix(".parquet"))


def write_peer_input(table: Path, folder: Path) -> None:
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
        subprocess.run([python, program, folder], check=True, stdout=log, stderr=log, cwd=folder)


def peer_duplicates(python: str, folder: Path, rows: pl.Series) -> tuple[Measured, pl.Series]:
    """What the peer's run cost, and which rows it dropped."""
    cost = measure(peer_pipeline, python, folder)
    kept = pl.concat([pl.read_ndjson(path)["id"].cast(pl.Int64) for path in (folder / "kept").iterdir()])
    return cost, rows.filter(~rows.is_in(kept.implode()))


def found(corpus: Path, numbers: pl.DataFrame, gone: pl.Series) -> dict[str, str]:
    """What a search found, by column of the table.

    Args:
        numbers: `row` of the table and PLACE, of all rows
        gone: the rows of the table that it dropped
    """
    stays = numbers.select(*PLACE, stays=~pl.col("row").is_in(gone.implode()))
    rows = read_answers(corpus).join(stays, on=PLACE)
    recall = recalls(rows, THRESHOLDS)
    return {
        "recall exact": f"{recall['exact']:.4f}",
        "recall near": f"{recall['near']:.4f}",
        **{f"of similarity {least} and more": f"{recall[f'near {least}']:.4f}" for least in THRESHOLDS},
        "dropped": f"{gone.len():,}",
        "precision": f"{precision(rows):.5f}",
    }


def costs(name: str, cost: Measured, rows: int) -> dict[str, str]:
    """What a search cost, by column of the table."""
    return {
        "": name,
        "rows/s": f"{rows / cost.seconds:,.0f}",
        "rows/CPU s": f"{rows / cost.cpu_seconds:,.0f}",
        "seconds": f"{cost.seconds:,.0f}",
        "CPU seconds": f"{cost.cpu_seconds:,.0f}",
        "peak GB": f"{cost.peak_gb:.2f}",
    }


def compare(rows: int, folder: Path, python: str | None) -> list[str]:
    """The table of costs and findings, and the ratios of the costs."""
    corpus, table = corpus_of(rows, folder), folder / "table"
    shutil.rmtree(table, ignore_errors=True)
    measure(write_table, corpus, table)
    numbers = pl.read_parquet(table / "*.parquet", columns=["row", *PLACE])
    own, lines = {}, []
    for threshold in THRESHOLDS:
        own[threshold] = measure(own_duplicates, table, folder / "own", threshold)
        gone = pl.read_parquet(folder / "own.parquet")["row"]
        name = f"ours, threshold {threshold}"
        lines.append(costs(name, own[threshold], numbers.height) | found(corpus, numbers, gone))
        print(lines[-1], flush=True)
    ratios = []
    if python is not None:
        shutil.rmtree(folder / "peer", ignore_errors=True)
        write_peer_input(table, folder / "peer")
        peer, gone = peer_duplicates(python, folder / "peer", numbers["row"])
        lines.append(costs("datatrove", peer, numbers.height) | found(corpus, numbers, gone))
        ratios = [
            f"Threshold {threshold}: {peer.seconds / cost.seconds:.1f} times datatrove's rows/s by the clock,"
            f" {peer.cpu_seconds / cost.cpu_seconds:.1f} by CPU time."
            for threshold, cost in own.items()
        ]
        shutil.rmtree(folder / "peer")
    shutil.rmtree(table)
    return [
        f"{numbers.height:,} rows.",
        "",
        f"| {' | '.join(lines[0])} |",
        "| --- " * len(lines[0]) + "|",
        *(f"| {' | '.join(line.values())} |" for line in lines),
        "",
        *ratios,
    ]


def run(rows: int = ROWS, scratch: Path | None = None) -> list[str]:
    """The comparison, in a folder that is removed, or in `scratch`, where a corpus is used again."""
    folder = scratch or Path(tempfile.mkdtemp(prefix="duplicates_"))
    lines = compare(rows, folder, os.environ.get("VIPOLYQWEN_PEER_PYTHON"))
    if scratch is None:
        shutil.rmtree(folder)
    return lines


def main() -> None:
    """Measure the size of the command line and record it."""
    run_and_record("duplicates", run, int(sys.argv[1]) if sys.argv[1:] else ROWS, scratch_folder())


if __name__ == "__main__":
    main()
