"""What a person reads when the factory has run: metrics, verdict, version, times, example searches."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestration.factory import FactoryOutcome
from orchestration.jobs import ASSET_KEYS
from orchestration.sources_check import short
from vipolyqwen_core.evaluation import REPORT_FILE
from vipolyqwen_core.terminal import evaluation_tables, hits_table, print_verdict, printable
from vipolyqwen_core.workspace import Workspace

NUM_EXAMPLES = 3
NUM_HITS = 3
EXAMPLE_TASKS = ("text_pair", "ocr", "vqa_single", "vqa_multi", "instr")
"""Of the first of these that are there, an example is shown."""


def print_summary(outcome: FactoryOutcome, workspace: Workspace, console: Console) -> None:
    """Everything at the end of a run, the most important last but one: what can be searched now."""
    from vipolyqwen_core.evaluation.results import read_evaluation

    folder = Path(str(outcome.stage("evaluation_report").metadata["folder"]))
    evaluation = read_evaluation(folder)
    console.print()
    console.print(evaluation_tables(evaluation))
    print_verdict(evaluation, console)
    for warning in outcome.warnings:
        if "check learned" in warning:
            continue  # said above, in the verdict
        console.print(f"[yellow]warning:[/] {escape(printable(warning))}", highlight=False, soft_wrap=True)
    console.print(times_table(outcome))
    registered = outcome.stage("registered_model").metadata
    console.print(
        f"Registered: version [bold]{registered['version']}[/] of {registered['model']}, "
        f"alias [bold]{registered['alias']}[/]: {escape(str(registered['decision']))}",
        soft_wrap=True,
    )
    print_examples(workspace, console)
    console.print(f"Report:   {folder / REPORT_FILE}", soft_wrap=True, markup=False)
    console.print(
        f"Table:    {workspace.lancedb} (LanceDB, table `embeddings`)", soft_wrap=True, markup=False
    )
    console.print('Next:     vipolyqwen search "..."   vipolyqwen ui   vipolyqwen trace SAMPLE_ID')


def times_table(outcome: FactoryOutcome) -> Table:
    """Seconds by stage, and what was reused."""
    seconds: dict[str, float] = defaultdict(float)
    runs: dict[str, int] = defaultdict(int)
    reused: dict[str, int] = defaultdict(int)
    for stage in outcome.stages:
        seconds[stage.asset] += stage.seconds
        runs[stage.asset] += 1
        reused[stage.asset] += stage.reused
    shown = Table(title="time by stage", title_justify="left")
    shown.add_column("stage")
    shown.add_column("seconds", justify="right")
    shown.add_column("reused, since nothing had changed")
    for asset in ASSET_KEYS:
        if asset in runs:
            word = (
                ""
                if not reused[asset]
                else "yes"
                if runs[asset] == 1
                else f"{reused[asset]} of {runs[asset]} sources"
            )
            shown.add_row(asset, f"{seconds[asset]:.1f}", word)
    shown.add_row("all", f"{sum(seconds.values()):.1f}", "", style="bold")
    return shown


def print_examples(workspace: Workspace, console: Console) -> None:
    """Searches with queries of evaluation pairs, of three tasks: which targets are found for them?"""
    from vipolyqwen_core.contract import Side, Split
    from vipolyqwen_core.processing.processor import ItemError
    from vipolyqwen_core.serving.search import search
    from vipolyqwen_core.serving.stored_sides import SideRequest, StoredSides, read_split, side_texts
    from vipolyqwen_core.training.identity import data_version

    version = data_version(workspace.training_set)
    table = read_split(workspace.training_set, Split.EVAL)
    queries, targets = side_texts(table, Side.QUERY), side_texts(table, Side.TARGET)
    rows = example_rows(table.column("task").to_pylist())
    items = StoredSides(workspace.training_set, Split.EVAL, version).items(
        SideRequest(row, Side.QUERY) for row in rows
    )
    for row, item in zip(rows, items, strict=True):
        try:
            hits = search(workspace, queries[row], item.images, NUM_HITS, where="side = 'target'")
        except ItemError:  # an older champion has room for less than the recipe that pairs were measured by
            continue
        shown = f" with {len(item.images)} picture(s)" if item.images else ""
        console.print()
        console.print(hits_table(hits, f"search: {short(queries[row])!r}{shown}"))
        target = escape(short(targets[row]))
        console.print(f"[dim]the pair's own target:[/] {target}", highlight=False, soft_wrap=True)


def example_rows(tasks: Sequence[str]) -> list[int]:
    """Rows to show: the first of each task, texts and pictures mixed, as many as there are tasks at most."""
    first = {task: row for row, task in reversed(list(enumerate(tasks)))}
    return [first[task] for task in EXAMPLE_TASKS if task in first][:NUM_EXAMPLES]


def print_trace(wanted: str, workspace: Workspace, console: Console) -> None:
    """What happened at each stage to a pair, or to the record at a place."""
    from quality.trace import REJECTED, trace

    for step in trace(wanted, workspace):
        colour = "yellow" if step.outcome == REJECTED else "green"
        console.print(
            f"[bold]{step.stage}[/] [{colour}]{step.outcome}[/] {escape(printable(step.sentence))}",
            highlight=False,
        )
        for name, value in step.details:
            console.print(f"    [dim]{name}:[/] {escape(printable(value))}", highlight=False)
