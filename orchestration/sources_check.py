"""`sources check`: what each source would give, without writing anything."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from vipolyqwen_core.config import CurationSettings, Recipe
from vipolyqwen_core.corpus.manifest import Manifest, Source
from vipolyqwen_core.terminal import printable
from vipolyqwen_core.workspace import Workspace

if TYPE_CHECKING:
    from vipolyqwen_core.corpus.image_root import ImageRoot
    from vipolyqwen_core.corpus.readers import RawPair, Record

NUM_REJECTS = 3
MAX_PATHS = 5000
"""So many picture paths of a source are looked up; the factory looks at all."""
MAX_JUDGED = 5000
"""So many pairs of a source are judged by the rules for rows; the factory judges all."""
MAX_CHARS = 200


@dataclass
class Reading:
    """What was read of a source."""

    records: int = 0
    pairs: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    first_rejects: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Place, rule, reason, value."""
    staying: int = 0
    """Pairs with no picture that was found to be lost and, of those that are judged, that no rule rejects."""
    paths: dict[int, bool] = field(default_factory=dict)
    """Picture paths that were looked up, by their hashes, since a picture may stand in the place of its path,
    and whether they were refused."""
    lost: Counter[str] = field(default_factory=Counter)
    """Rules that refused some of them."""
    first_lost: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Place, path and reason of the first by rule."""
    judged: list[tuple[str, dict[str, Any], bool]] = field(default_factory=list)
    """Place of each of the first pairs, what rules look at (the number of pictures, not these), and whether
    none of its pictures was found to be lost."""
    refused: Counter[str] = field(default_factory=Counter)
    """Rules for rows, and that of placeholders, which would reject some of these."""
    first_refused: dict[str, str] = field(default_factory=dict)
    """Place of the first by rule."""

    @property
    def is_useless(self) -> bool:
        """Whether no pair would stay, as far as was looked."""
        return self.staying == 0


def read(source: Source, settings: CurationSettings) -> Reading:
    """Read a whole source and count.

    Raises:
        ValueError: it cannot be read at all
    """
    from vipolyqwen_core.corpus.image_root import ImageRoot
    from vipolyqwen_core.corpus.readers import check_source, read_source

    check_source(source, settings.dialogue_turns)
    reading = Reading()
    root = ImageRoot(source.image_root)
    for record in read_source(source, settings.dialogue_turns):
        whole = _look_up_pictures(record, root, reading)
        reading.records += 1
        reading.staying += sum(whole)
        some = record.pairs[: MAX_JUDGED - len(reading.judged)]
        place = f"{record.file}:{record.line}"
        reading.judged += [
            (place, _judged_row(pair), is_whole) for pair, is_whole in zip(some, whole, strict=False)
        ]
        reading.pairs += len(record.pairs)
        reading.tasks.update(pair.task.value for pair in record.pairs)
        if record.rejection is not None:
            reject = record.rejection
            reading.rejects[reject.rule] += 1
            if len(reading.first_rejects) < NUM_REJECTS:
                reading.first_rejects.append((place, reject.rule, reject.reason, reject.value))
    _judge(reading, settings)
    return reading


def _judged_row(pair: "RawPair") -> dict[str, Any]:
    """What rules look at. A pair may hold the bytes of its pictures: numbers stand for them."""
    from vipolyqwen_core.corpus.normalised_pair import normalise_pair

    return normalise_pair(pair).columns([[str(i) for i in range(len(side))] for side in pair.images])


def _judge(reading: Reading, settings: CurationSettings) -> None:
    """Which of the first pairs the rules for rows would reject, and of the others tagging."""
    import polars as pl

    from quality.polars_tables import polars_schema
    from quality.rules import first_failure, row_rules
    from vipolyqwen_core.contract import PAIR
    from vipolyqwen_core.corpus.tagging import TOO_MANY_PLACEHOLDERS, repaired_sides
    from vipolyqwen_core.corpus.text import PlaceholderError

    rows = [row for _, row, _ in reading.judged]
    rules = first_failure(pl.DataFrame(rows, schema=polars_schema(PAIR)), row_rules(settings))["rule"]
    for (place, row, is_whole), rule in zip(reading.judged, rules, strict=True):
        if rule is None:
            try:
                repaired_sides(row)
            except PlaceholderError:
                rule = TOO_MANY_PLACEHOLDERS
        if rule is not None:
            reading.refused[rule] += 1
            reading.staying -= is_whole
            reading.first_refused.setdefault(rule, place)


def _look_up_pictures(record: "Record", root: "ImageRoot", reading: Reading) -> list[bool]:
    """Whether all pictures of each pair are there, as far as was looked; none is opened.

    Paths that name no file that may be read are noted.
    """
    from vipolyqwen_core.corpus.pictures import PictureError

    whole = []
    for pair in record.pairs:
        for path in chain.from_iterable(pair.images):
            if not isinstance(path, str) or hash(path) in reading.paths or len(reading.paths) >= MAX_PATHS:
                continue
            reading.paths[hash(path)] = False
            try:
                root.check(path)
            except PictureError as error:
                reading.paths[hash(path)] = True
                reading.lost[error.rule] += 1
                reading.first_lost.setdefault(error.rule, (f"{record.file}:{record.line}", path, str(error)))
        paths = [path for path in chain.from_iterable(pair.images) if isinstance(path, str)]
        whole.append(not any(reading.paths.get(hash(path)) for path in paths))
    return whole


def print_sources(manifest: Manifest, recipe: Recipe, workspace: Workspace, console: Console) -> bool:
    """Print each source; False where one of them cannot be read, or would give no pair.

    Raises:
        ValueError: a suite of the manifest's `expectations` is wrong, or the recipe's backbone is not there
            or has no tokenizer, which is no source's fault
    """
    from vipolyqwen_core.corpus.tagging import preview
    from vipolyqwen_core.processing.processor import ViPolyQwenProcessor

    if manifest.expectations:
        from quality.own_suites import own_suites

        names = [suite.name for suite in own_suites(manifest)]
        console.print(f"Suites of your own: {', '.join(names)}", highlight=False, soft_wrap=True)

    unreadable, useless = [], []
    with backbone_for_reading(recipe.backbone, workspace) as backbone:
        ViPolyQwenProcessor.from_backbone(backbone, recipe.processing)
        for source in manifest.sources:
            console.rule(f"{source.name}  ({source.format.value})", align="left")
            try:
                with console.status("reading"):
                    reading = read(source, recipe.curation)
                _print_reading(reading, console)
                if reading.is_useless:
                    useless.append(source.name)
                rows, refused = preview(source, recipe.curation, recipe.processing, backbone)
                _print_refused(refused, console)
                for row in rows:
                    _print_pair(row, console)
            except ValueError as error:
                unreadable.append(source.name)
                console.print(
                    f"[bold red]cannot be read:[/] {shown(str(error))}",
                    highlight=False,
                    soft_wrap=True,
                )
    total = len(manifest.sources)
    console.rule(align="left")
    if unreadable:
        console.print(f"Cannot be read, of {total}: {', '.join(unreadable)}", highlight=False)
    if useless:
        console.print(f"No pair would stay, of {total}: {', '.join(useless)}", highlight=False)
    if unreadable or useless:
        return False
    all_of_them = f"All {total} sources" if total > 1 else "The source"
    console.print(f"{all_of_them} can be read. Nothing was written.", highlight=False)
    return True


@contextmanager
def backbone_for_reading(name: str, workspace: Workspace) -> Iterator[Path | str]:
    """The backbone whose tokenizer counts; the tiny one may be made in a folder that goes again."""
    from vipolyqwen_core.model.backbone import TINY, resolve_backbone, tiny_directory

    if name == TINY and not tiny_directory(workspace).is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            yield resolve_backbone(name, Workspace(Path(scratch)))
    else:
        yield resolve_backbone(name, workspace)


def _print_refused(lines: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The first pair by rule that tagging would reject. Too many placeholders are counted elsewhere."""
    from vipolyqwen_core.corpus.tagging import TOO_MANY_PLACEHOLDERS

    first = {line["rule"]: line for line in reversed(lines) if line["rule"] != TOO_MANY_PLACEHOLDERS}
    for rule, line in first.items():
        place = f"[yellow]{shown(line['file'])}:{line['line']}[/]"
        console.print(
            f"  {place} would be rejected as {rule}: {shown(line['reason'])}",
            highlight=False,
            soft_wrap=True,
        )


def _print_pair(row: Mapping[str, Any], console: Console) -> None:
    """A pair as it would be tagged: prefix, sides, what they cost."""
    place = f"{row['file']}:{row['line']}"
    score = "" if row["score"] is None else f", score {row['score']:.2f}"
    console.print(f"[bold cyan]<{row['prefix']}>[/] [dim]{shown(place)}{score}[/]", highlight=False)
    for turn in row["history"] or ():
        console.print(f"  {turn['role']:>8}: {escape(short(turn['text']))}", highlight=False)
    for side in ("query", "target"):
        pictures = len(row[f"{side}_images"] or ())
        cost = f"{row[f'{side}_tokens']} tokens" + (f", {pictures} picture(s)" if pictures else "")
        console.print(f"  {side:>8}: {escape(short(row[side]))} [dim]({cost})[/]", highlight=False)


def shown(text: str) -> str:
    """A text, as a file's name is one, that neither rich nor the terminal obeys."""
    return escape(printable(text))


def short(text: str) -> str:
    """A text on one line, cut."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= MAX_CHARS else line[: MAX_CHARS - 1] + "…"


def _print_reading(reading: Reading, console: Console) -> None:
    """Counts, and the first rejects with their reason."""
    tasks = ", ".join(f"{count:,} {task}" for task, count in reading.tasks.most_common())
    rejected = reading.rejects.total()
    console.print(
        f"{reading.records:,} records: {reading.pairs:,} pairs ({tasks}); records rejected: {rejected:,}",
        highlight=False,
    )
    for rule, count in reading.rejects.most_common():
        console.print(f"  {count:,} x {escape(rule)}", highlight=False)
    for place, rule, reason, value in reading.first_rejects:
        told = shown(f"{rule}: {reason} ({short(value)})")
        console.print(f"  [yellow]{shown(place)}[/] {told}", highlight=False)
    for rule, count in reading.refused.most_common():
        first = f"{count:,} of the first {len(reading.judged):,} pairs would be rejected as {rule}"
        console.print(f"  {first}: [yellow]{shown(reading.first_refused[rule])}[/]", highlight=False)
    if reading.paths:
        known = f"the first {MAX_PATHS:,}" if len(reading.paths) >= MAX_PATHS else f"{len(reading.paths):,}"
        lost = f"{reading.lost.total():,} cannot be read" if reading.lost else "each is there"
        console.print(f"{known} picture paths: {lost}", highlight=False)
    for rule, count in reading.lost.most_common():
        place, path, reason = reading.first_lost[rule]
        told = escape(f"{short(path)!r}: {short(reason)}")
        console.print(f"  {count:,} x {rule}: [yellow]{shown(place)}[/] {told}", highlight=False)
