"""Progress on a terminal, out of what Dagster logs while a job runs in this process."""

import logging
import time
from types import TracebackType

import dagster as dg
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from assets.metadata import was_reused
from orchestration.jobs import ASSET_KEYS
from orchestration.pools import Say
from vipolyqwen_core.terminal import printable

MAX_NEWS_CHARS = 70


class FactoryProgress:
    """A bar over all stages, the stage that runs and its last word; a line for each stage that is done."""

    def __init__(self, console: Console, num_stages: int) -> None:
        self.console = console
        self.source = ""
        """The source that the running job is for."""
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[news]}", table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            expand=True,  # news take what the others leave
            transient=True,
            redirect_stdout=False,  # both are the log's: rich would print on the terminal what libraries say
            redirect_stderr=False,
        )
        self.task = self.bar.add_task("starting", total=num_stages, news="")
        self.started: dict[str, float] = {}

    def __enter__(self) -> "FactoryProgress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def start(self, asset: str) -> None:
        """A stage begins."""
        self.started[asset] = time.monotonic()
        self.bar.update(self.task, description=f"{asset} [dim]{self.source}[/]", news="")

    def say(self, news: str) -> None:
        """The running stage has a word to say."""
        self.bar.update(self.task, news=escape(printable(" ".join(news.split())[:MAX_NEWS_CHARS])))

    def finish(self, asset: str, facts: str) -> None:
        """A stage is done."""
        seconds = time.monotonic() - self.started.get(asset, time.monotonic())
        self.console.print(
            f"[green]✓[/] {asset:<17} {self.source:<20} {seconds:6.1f} s  [dim]{escape(facts)}",
            highlight=False,
            soft_wrap=True,
        )
        self.bar.advance(self.task)


class ProgressHandler(logging.Handler):
    """Turns the records of a Dagster run into progress."""

    def __init__(self, progress: FactoryProgress) -> None:
        super().__init__()
        self.progress = progress
        self.facts: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """One record: an event of the run, or a line that a stage logged."""
        event: dg.DagsterEvent | None = getattr(record, "dagster_event", None)
        if event is None:
            if record.levelno >= logging.INFO:
                meta = getattr(record, "dagster_meta", {})
                self.progress.say(str(meta.get("orig_message") or record.getMessage()))
        elif event.step_key in ASSET_KEYS:
            if event.event_type == dg.DagsterEventType.STEP_START:
                self.progress.start(event.step_key)
            elif event.is_step_materialization:
                self.facts[event.step_key] = facts(event.step_materialization_data.materialization)
            elif event.is_step_success:
                self.progress.finish(event.step_key, self.facts.get(event.step_key, ""))


def facts(materialization: dg.AssetMaterialization) -> str:
    """Rows, rejects, whether it was reused: one short line."""
    values = {name: value.value for name, value in materialization.metadata.items()}
    words = ["reused"] if was_reused(values) else []
    if "summary" in values:
        words.append(str(values["summary"]))
    elif "dagster/row_count" in values:
        words.append(f"{values['dagster/row_count']:,} rows")
    for what in ("record", "pair"):
        if count := values.get(f"{what}s rejected"):
            words.append(f"{count:,} {what}{'s' if count != 1 else ''} rejected")
    return ", ".join(words)


class StepNews(logging.Handler):
    """Says a sentence as soon as a step has succeeded: the steps behind it may take hours."""

    def __init__(self, step: str, sentence: str, say: Say) -> None:
        super().__init__()
        self.step, self.sentence, self.say = step, sentence, say

    def emit(self, record: logging.LogRecord) -> None:
        """One record of a run."""
        event: dg.DagsterEvent | None = getattr(record, "dagster_event", None)
        if event is not None and event.is_step_success and event.step_key == self.step:
            self.say(self.sentence)


def logger_of(handler: logging.Handler, description: str) -> dg.LoggerDefinition:
    """A Dagster logger that hands every record of a run to the handler, and writes nothing."""

    def listen(_context: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.Logger("factory", level=logging.DEBUG)
        logger.addHandler(handler)
        return logger

    return dg.LoggerDefinition(listen, description=description)
