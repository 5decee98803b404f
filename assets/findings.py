"""What the asset checks look at: counts and leaks, read from the tables themselves and not from summaries.

Pure functions of files: a check, and an asset that checks its inputs once more, ask the same question.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quality.accepted import judged_folder
from vipolyqwen_core.config import Recipe
from vipolyqwen_core.contract import MINED_TABLE, Side, Split
from vipolyqwen_core.corpus.tables import VECTOR_ROWS, StageSummary, read_arrow, read_batches, read_stage
from vipolyqwen_core.training.result import TrainingResult
from vipolyqwen_core.workspace import Workspace

MAX_REFUSED_SHARE = 0.05
"""More steps without a finite gradient are no accident."""
MIN_DEVIATION = 0.1
MIN_EFFECTIVE_RANK = 2.0
"""Vectors below these are nearly one point, or lie on one line."""
UNIT_TOLERANCE = 1e-3
EVAL_SHARE = (
    "split.eval_share, which is that of new rows: others keep their side, unless you delete split/ while "
    "no model has been trained"
)


@dataclass(frozen=True)
class Finding:
    """The answer to one question about data or a model."""

    passed: bool
    sentence: str
    """For a person: what was found."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers behind it, and examples."""
    harmful: bool = True
    """Whether it would harm training where it failed; else a blocking check only warns."""

    @property
    def forbids(self) -> bool:
        """Whether nothing may be trained on it."""
        return self.harmful and not self.passed


def curation_loses_nothing(place: Workspace, source: str) -> Finding:
    """Records = those that gave pairs + those in the ledger; pairs read = pairs out + pairs in the ledger."""
    folder = place.curated(source)
    summary = stage_summary(folder)
    out, ledger = num_rows(folder / "pairs.parquet"), ledger_rows(folder / "ledger.parquet")
    records, pairs = ledger.get("read", 0), ledger.get("curated", 0)
    return Finding(
        passed=summary.records == summary.records_with_pairs + records and summary.pairs_in == out + pairs,
        sentence=(
            f"{summary.records:,} records: {summary.records_with_pairs:,} gave pairs, "
            f"{records:,} in the ledger; "
            f"{summary.pairs_in:,} pairs: {out:,} out, {pairs:,} in the ledger"
        ),
        facts={
            "records": summary.records,
            "records with pairs": summary.records_with_pairs,
            "records in the ledger": records,
            "pairs in": summary.pairs_in,
            "pairs out": out,
            "pairs in the ledger": pairs,
        },
    )


def tagging_loses_nothing(place: Workspace, source: str) -> Finding:
    """Curated pairs = tagged pairs + pairs in the ledger of tagging."""
    return _stage_loses_nothing("tagged", place.curated(source), place.tagged(source))


def validation_loses_nothing(place: Workspace, source: str) -> Finding:
    """Tagged pairs = validated pairs + pairs in the ledger of validation, of the version judged last."""
    folder = place.validated(source)
    version = judged_folder(folder, stage_summary(folder))
    return _stage_loses_nothing("validated", place.tagged(source), version)


def _stage_loses_nothing(stage: str, before: Path, folder: Path) -> Finding:
    came, out = num_rows(before / "pairs.parquet"), num_rows(folder / "pairs.parquet")
    rejected = ledger_rows(folder / "ledger.parquet").get(stage, 0)
    return Finding(
        passed=came == out + rejected,
        sentence=f"{came:,} pairs in, {out:,} out, {rejected:,} in the ledger",
        facts={"pairs in": came, "pairs out": out, "pairs in the ledger": rejected},
    )


def expectations_hold(lines: Sequence[Mapping[str, Any]]) -> Finding:
    """Every expectation of a suite holds. It blocks where a critical one does not."""
    failed = [line for line in lines if not line["success"]]
    words = [
        f"{line['expectation']} of {line['column'] or 'the table'} ({line['severity']}):"
        f" observed {line['observed']}"
        for line in failed
    ]
    return Finding(
        passed=not failed,
        sentence="; ".join(words)
        or (
            f"all {len(lines)} expectations hold"
            if lines
            else "the source has nothing that the suite is about"
        ),
        facts={"expectations": len(lines), "failed": len(failed), "observed": [dict(line) for line in lines]},
        harmful=any(line["severity"] == "critical" for line in failed),
    )


def curated_expectations(place: Workspace, source: str) -> Finding:
    """The suite of curated pairs: schema, ranges, languages, lengths, no answer in its query."""
    from quality.stage_expectations import judge_curated

    return expectations_hold(judge_curated(source, place))


def tagged_expectations(place: Workspace, source: str) -> Finding:
    """The suite of tagged pairs: prefix, placeholders, identities, tokens."""
    from quality.stage_expectations import judge_tagged

    return expectations_hold(judge_tagged(source, place))


def suite_holds(place: Workspace, source: str, check: str) -> Finding:
    """The suites that report under a name hold for the last judgement of a source."""
    lines = stage_summary(place.validated(source)).details["expectations"]
    return expectations_hold([line for line in lines if line["check"] == check])


def has_pairs(place: Workspace, source: str) -> Finding:
    """At least one curated pair is left; else the sentence says which rules took them."""
    folder = place.curated(source)
    if rows := num_rows(folder / "pairs.parquet"):
        return Finding(passed=True, sentence=f"{rows:,} pairs")
    summary = stage_summary(folder)
    rejected = Counter(summary.rejected) + Counter(summary.records_rejected)
    rules = ", ".join(f"{count:,} {rule}" for rule, count in rejected.most_common())
    return Finding(passed=False, sentence=f"no pair is left; in the ledger: {rules or 'nothing'}")


def stage_summary(folder: Path) -> StageSummary:
    """The summary of a stage that has run.

    Raises:
        ValueError: it has not
    """
    summary = read_stage(folder)
    if summary is None:
        raise ValueError(f"{folder} holds no stage.json: its stage has not run")
    return summary


def num_rows(pairs: Path) -> int:
    """Rows of a Parquet or Arrow table."""
    from quality.polars_tables import count_rows, scan_table

    return count_rows(scan_table(pairs))


def ledger_rows(ledger: Path) -> dict[str, int]:
    """Rows of a ledger by stage."""
    from quality.polars_tables import count_values, scan_table

    return count_values(scan_table(ledger), "stage")


def sources_are_accounted_for(place: Workspace, _: Recipe) -> Finding:
    """For each source: accepted pairs = training + evaluation pairs + pairs in the training set's ledger."""
    import polars as pl

    from quality.polars_tables import count_values, scan_training_set

    training_set = place.training_set
    sources = stage_summary(training_set).details["sources"]
    came: dict[str, int] = {name: facts["pairs_in"] for name, facts in sources.items()}
    tables = scan_training_set(training_set), pl.scan_parquet(training_set / "ledger.parquet")
    found = count_values(pl.concat(rows.select("source") for rows in tables), "source")
    wrong = [name for name in sorted({*came, *found}) if came.get(name, 0) != found.get(name, 0)]
    words = [f"{name}: {came.get(name, 0):,} in, {found.get(name, 0):,} found" for name in wrong]
    return Finding(
        passed=not wrong,
        sentence="; ".join(words)
        or f"{sum(found.values()):,} pairs of {len(found)} sources are in the split or in the ledger",
        facts={"pairs in": came, "pairs found": found},
    )


def largest_component(place: Workspace, recipe: Recipe) -> Finding:
    """No component of linked rows holds more than its share of the rows; else the links are wrong.

    Of the rows that the builder asked it of, among them those that the split left out.
    """
    from quality.polars_tables import scan_training_set
    from quality.split import SMALL_COMPONENT

    counts = scan_training_set(place.training_set).group_by("component").len()
    sizes = counts.sort("len", descending=True).collect()
    largest = int(sizes["len"][0]) if len(sizes) else 0
    rows = stage_summary(place.training_set).details.get("largest_component", {}).get("of")
    rows = rows or int(sizes["len"].sum())
    share = largest / rows if rows else 0.0
    return Finding(
        passed=largest <= SMALL_COMPONENT or share <= recipe.split.max_component_share,
        sentence=f"the largest of {len(sizes):,} components holds {largest:,} of {rows:,} rows ({share:.1%})",
        facts={"largest": largest, "share": share, "components": len(sizes)},
    )


def no_leak(place: Workspace, recipe: Recipe) -> Finding:
    """Training and evaluation share no component, picture, declared group, dialogue or long text."""
    import polars as pl

    from quality.components import dialogue
    from quality.duplicates import UNBUFFERED, comparable
    from quality.pair_columns import num_pictures, whole_query
    from quality.polars_tables import scan_split

    min_chars = recipe.curation.min_linking_chars
    texts = {"query": comparable(whole_query()), "target": comparable(pl.col("target"))}  # as rows are linked

    def values(split: Split) -> dict[str, pl.LazyFrame]:
        rows = scan_split(place.training_set, split)
        sides = [rows.filter(num_pictures(side) == 0).select(value=text) for side, text in texts.items()]
        pictures = [rows.select(pl.col(f"{side}_images").explode().alias("value")) for side in texts]
        grouped = pl.concat_str("source", "group_id", separator=" ", ignore_nulls=False)
        return {
            "components": rows.select(pl.col("component").alias("value")),
            "pictures": pl.concat(pictures),
            "declared groups": rows.select(grouped.alias("value")),
            "dialogues": rows.drop_nulls("history").select(value=pl.concat_str(dialogue(), separator=" ")),
            "long texts": pl.concat(sides).filter(pl.col("value").str.len_chars() >= min_chars),
        }

    train, evaluation = values(Split.TRAIN), values(Split.EVAL)
    shared = {}
    for kind, rows in train.items():
        held = evaluation[kind].drop_nulls().unique().collect().to_series()
        # A filter reads what it keeps; a join would hold the texts of all training pairs meanwhile.
        found = rows.filter(pl.col("value").is_in(held.implode())).unique()
        shared[kind] = found.collect(engine="streaming", optimizations=UNBUFFERED)
    leaks = {kind: frame["value"].head(5).to_list() for kind, frame in shared.items() if not frame.is_empty()}
    return Finding(
        passed=not leaks,
        sentence="; ".join(f"{shared[kind].height:,} {kind} stand on both sides" for kind in leaks)
        or "training and evaluation share no component, picture, group, dialogue or long text",
        facts={"examples": leaks} if leaks else {},
    )


def training_set_expectations(place: Workspace, _: Recipe) -> Finding:
    """The suites of the training set: schemas, rows, shares of sources, and both sides of the split alike."""
    from quality.training_set_expectations import judge_training_set

    return expectations_hold(judge_training_set(place))


def both_splits(place: Workspace, recipe: Recipe) -> Finding:
    """There are pairs to train on, and pairs to evaluate on of which some can be ranked.

    Evaluation would refuse the others as well, but after the training.
    """
    from vipolyqwen_core.evaluation.retrieval import build_pools, read_rows

    training_set = place.training_set
    rows = {split.value: num_rows(training_set / split.file) for split in Split}
    sentence = ", ".join(f"{count:,} pairs in {split}" for split, count in rows.items())
    if not all(rows.values()):
        rejected = Counter(stage_summary(training_set).rejected).most_common()
        rules = ", ".join(f"{count:,} {rule}" for rule, count in rejected)
        sentence += f"; in the ledger: {rules or 'nothing'}. Add data, or change {EVAL_SHARE}"
        return Finding(passed=False, sentence=sentence, facts=rows)
    evaluation = read_rows(read_arrow(training_set / Split.EVAL.file))
    if not build_pools(evaluation, recipe.objective.positive_score):
        sentence += (
            "; these make no pool of positives with two targets, so there is nothing to rank: "
            f"add data, or raise {EVAL_SHARE}"
        )
        return Finding(passed=False, sentence=sentence, facts=rows)
    return Finding(passed=True, sentence=sentence, facts=rows)


TRAINING_SET: Mapping[str, Callable[[Workspace, Recipe], Finding]] = {
    "nothing_vanishes": sources_are_accounted_for,
    "both_splits": both_splits,
    "largest_component": largest_component,
    "no_leak": no_leak,
    "expectations": training_set_expectations,
}
"""The questions about the training set, by the names of their checks. All of them block."""


def negatives_are_wrong(place: Workspace, recipe: Recipe) -> Finding:
    """Mined negatives are targets of the same task, and right for no pair with the row's query or key."""
    import polars as pl

    from quality.polars_tables import count_rows, scan_split

    if not recipe.mining.negatives_per_pair:
        return Finding(passed=True, sentence="the recipe mines no hard negatives")
    pairs = scan_split(place.training_set, Split.TRAIN).select(
        pl.int_range(pl.len()).alias("row"), "task", "query_hash", "target_hash", "positive_hash"
    )
    mined = (
        pl.scan_ipc(place.hard_negatives / MINED_TABLE)
        .select(pl.int_range(pl.len()).alias("row"), pl.col("negatives").alias("negative"))
        .explode("negative")
        .drop_nulls("negative")
        .join(pairs, on="row")
        .join(pairs.select(negative="row", of_task="task", content="target_hash"), on="negative", how="left")
    )
    keyed = pairs.filter(pl.col("positive_hash") != 0).select("positive_hash", content="target_hash").unique()
    counts = {
        "hard negatives": mined,
        "of no row or another task": mined.filter(pl.col("task").ne_missing(pl.col("of_task"))),
        "the query itself": mined.filter(pl.col("content") == pl.col("query_hash")),
        "right for the same query": mined.join(
            pairs.select("query_hash", content="target_hash").unique(),
            on=["query_hash", "content"],
            how="semi",
        ),
        "right by the same key": mined.join(keyed, on=["positive_hash", "content"], how="semi"),
    }
    found = {name: count_rows(rows) for name, rows in counts.items()}
    wrong = {name: count for name, count in found.items() if count and name != "hard negatives"}
    return Finding(
        passed=not wrong,
        sentence="; ".join(f"{count:,} mined negatives are {name}" for name, count in wrong.items())
        or f"none of {found['hard negatives']:,} mined negatives is a right answer that is known",
        facts=found,
    )


def losses_are_finite(result: TrainingResult) -> Finding:
    """The last loss is a number, and hardly a step was refused for its gradient."""
    loss = result.metrics.get("loss", math.nan)
    share = result.refused_steps / max(result.steps, 1)
    return Finding(
        passed=math.isfinite(loss) and share <= MAX_REFUSED_SHARE,
        sentence=f"last loss {loss:.4f}; {result.refused_steps:,} of {result.steps:,} steps were refused",
        facts={"loss": loss, "refused steps": result.refused_steps},
    )


def loss_fell(lines: Sequence[Mapping[str, Any]]) -> Finding:
    """The mean loss of the last tenth of the lines is below that of the first; one line proves nothing."""
    losses = [line["loss"] for line in lines]
    if len(losses) == 1:
        sentence = f"loss {losses[0]:.4f} in the only line: lower training.log_steps to see whether it falls"
        return Finding(passed=True, sentence=sentence, facts={"first": losses[0], "last": losses[0]})
    part = max(1, len(losses) // 10)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    return Finding(
        passed=last < first,
        sentence=f"loss {first:.4f} at the start, {last:.4f} at the end",
        facts={"first": first, "last": last},
    )


def not_collapsed(metrics: Mapping[str, float]) -> Finding:
    """The vectors of the last step are not all alike: they spread, over more than a direction or two."""
    needed = {"collapse/deviation": MIN_DEVIATION, "collapse/effective_rank": MIN_EFFECTIVE_RANK}
    seen = {name: metrics[name] for name in needed if name in metrics}
    words = [
        f"{name.removeprefix('collapse/').replace('_', ' ')} {value:.3f}, at least {needed[name]} is needed"
        for name, value in seen.items()
    ]
    return Finding(
        passed=len(seen) == len(needed) and all(value >= needed[name] for name, value in seen.items()),
        sentence="; ".join(words) or "the last line of metrics says nothing of collapse",
        facts=seen,
    )


def encodes_unit_vectors(model: Path) -> Finding:
    """The model directory loads on its own and encodes a text and a picture, each to a unit vector.

    On the processor: a GPU may be full of a training at that moment.
    """
    import numpy as np
    from PIL import Image

    from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder

    embedder = ViPolyQwenEmbedder.from_pretrained(model, device="cpu")
    vectors = np.stack(
        [embedder.encode("Xin chào"), embedder.encode(images=Image.new("RGB", (64, 64), "red"))]
    )
    norms = np.linalg.norm(vectors, axis=1)
    return Finding(
        passed=bool(np.isfinite(norms).all() and np.abs(norms - 1).max() < UNIT_TOLERANCE),
        sentence=f"a text and a picture become vectors of {vectors.shape[1]} dimensions and length "
        f"{norms[0]:.4f} and {norms[1]:.4f}",
    )


def export_is_complete(place: Workspace, _: Recipe) -> Finding:
    """Each side of each pair has one row and a vector of length 1, in Parquet and in the table."""
    import numpy as np
    import polars as pl

    from quality.id_numbers import id_number
    from quality.polars_tables import count_rows, scan_training_set
    from vipolyqwen_core.serving.search import open_export

    exported, in_table = open_export(place)
    number = id_number(pl.col("sample_id"))
    pairs = scan_training_set(place.training_set).select(number)
    rows = pl.scan_parquet(exported.parquet).select(number, "side")
    counts = {
        "expected": len(Side) * count_rows(pairs),
        "rows in Parquet": count_rows(rows),
        "rows in the table": in_table.count_rows(),
        "missing": 0,
        "not expected": 0,
        "vectors off": 0,
    }
    for side in Side:  # one after the other: it is their ids that fill the memory
        found = rows.filter(pl.col("side") == side.value)
        counts["missing"] += count_rows(pairs.join(found, on="sample_id", how="anti"))
        counts["not expected"] += count_rows(found.join(pairs, on="sample_id", how="anti"))
    for batch in read_batches(Path(exported.parquet), VECTOR_ROWS, ["embedding"]):
        vectors = batch.column(0).flatten().to_numpy().reshape(len(batch), -1)
        norms = np.linalg.norm(vectors, axis=1)
        counts["vectors off"] += int(np.sum(~(np.abs(norms - 1) < UNIT_TOLERANCE)))
    whole = counts["expected"] == counts["rows in Parquet"] == counts["rows in the table"]
    return Finding(
        passed=whole and not (counts["missing"] or counts["not expected"] or counts["vectors off"]),
        sentence=", ".join(f"{name} {count:,}" for name, count in counts.items()),
        facts=counts,
    )
