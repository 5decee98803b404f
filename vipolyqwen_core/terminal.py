"""Tables for a terminal: an evaluation beside chance and the untrained model, and the hits of a search."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # both bring numeric libraries along, and `--help` must be quick
    from vipolyqwen_core.evaluation.results import Evaluation, PoolResult
    from vipolyqwen_core.serving.search import Hit

MAX_TEXT_CHARS = 160
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text without what a terminal would obey or could not be written to it."""
    return _UNPRINTABLE.sub("\ufffd", text)


def evaluation_tables(evaluation: "Evaluation") -> Group:
    """Metrics by task and language for each system, their mean and its gains, and scored pairs."""
    from vipolyqwen_core.evaluation import results

    metric = evaluation.primary_metric
    pools = _narrow_table(f"{metric} over the evaluation pairs", space=1)
    pools.add_column("pool", no_wrap=True)
    pools.add_column("pairs", justify="right", no_wrap=True)
    systems = {
        "this\nmodel": results.TRAINED,
        "no\nprefix": results.PLAIN,
        "un-\ntrained": results.UNTRAINED,
        "cham-\npion": results.CHAMPION,
        "BM25": results.BM25,
        "swap-\nped": results.SWAPPED,
        "chance": results.CHANCE,
    }
    shown = {
        name: system for name, system in systems.items() if any(system in p.scores for p in evaluation.pools)
    }
    for name in (*shown, "recall\n@1"):
        pools.add_column(name, justify="right", no_wrap=True)
    for pool in evaluation.pools:
        pools.add_row(
            pool.name + ("" if pool.counts else " [dim]*[/]"),
            f"{pool.num_pairs:,}",
            *(_number(_score(pool, system, metric)) for system in shown.values()),
            _number(_score(pool, results.TRAINED, "recall@1")),
        )
    mean = (evaluation.primary.get(system, math.nan) for system in shown.values())
    pools.add_row("mean", "", *(_number(value) for value in mean), style="bold")
    parts: list[RenderableType] = [pools, f"[dim]{evaluation.note_on_mean()}[/]"]
    for rival, gain in (
        (results.UNTRAINED, evaluation.gain_over_untrained),
        (results.CHAMPION, evaluation.gain_over_champion),
    ):
        if gain is not None:
            parts.append(Text(f"gain over {evaluation.labels[rival]}: {gain}"))
    if evaluation.similarities:
        parts.append(_similarities(evaluation))
    return Group(*parts)


def _narrow_table(title: str, space: int = 2) -> Table:
    """A table without frames: all of it fits a terminal of 80 columns."""
    return Table(title=title, title_justify="left", box=None, padding=(0, space, 0, 0), pad_edge=False)


def _similarities(evaluation: "Evaluation") -> Table:
    """Scored pairs: how well the cosine follows the score."""
    scored = _narrow_table("scored pairs: Spearman")
    scored.add_column("language")
    scored.add_column("pairs", justify="right")
    systems = list(evaluation.similarities[0].scores)
    for system in systems:
        scored.add_column(evaluation.labels[system], justify="right")
    for result in evaluation.similarities:
        scores = (result.scores.get(system, {}).get("spearman", math.nan) for system in systems)
        scored.add_row(result.language, f"{result.num_pairs:,}", *(_number(score) for score in scores))
    return scored


def _score(pool: "PoolResult", system: str, metric: str) -> float:
    return pool.scores.get(system, {}).get(metric, math.nan)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def print_verdict(evaluation: "Evaluation", console: Console) -> None:
    """Whether the model has learned, and what speaks against it."""
    verdict = evaluation.verdict
    if verdict.learned:
        console.print(f"[bold green]The model has learned[/]: all {len(verdict.facts)} conditions hold.")
        return
    held = len(verdict.facts)
    console.print(
        f"[bold yellow]Not shown that the model has learned[/]: {held} of {held + len(verdict.failures)} "
        "conditions hold. Against it:"
    )
    for sentence in verdict.failures:
        console.print(f"  - {escape(sentence)}", highlight=False)


def hits_table(hits: Sequence["Hit"], title: str) -> Table:
    """Rank, score, source, text, and the picture's path."""
    found = Table(title=escape(title), title_justify="left", show_lines=True)
    found.add_column("rank", justify="right")
    found.add_column("score", justify="right")
    found.add_column("source")
    found.add_column("text", overflow="fold")
    found.add_column("picture or row", overflow="fold")
    for hit in hits:
        text = " ".join(hit.text.split())
        text = text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"
        said = (escape(printable(part)) for part in (text, hit.origin))
        found.add_row(str(hit.rank), f"{hit.score:.3f}", escape(hit.source), *said)
    return found
