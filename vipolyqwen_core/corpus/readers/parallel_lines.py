"""Parallel line files: line i of the query file, of the target file and of the score file belong together."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.files import SourceFile, list_files, read_cut_lines, too_long
from vipolyqwen_core.corpus.readers.records import RawPair, Record, RecordError, parse_score
from vipolyqwen_core.corpus.text import compose
from vipolyqwen_core.corpus.without_secrets import without_secrets

SIDES = ("query", "target", "score")


def parallel_files(source: Source) -> dict[str, SourceFile]:
    """The file of each side, by `columns` (name of a file, or its place in `paths`), else in that order.

    Raises:
        ValueError: a path names several files, a column names none of them, or there are not two or three
    """
    ordered: list[SourceFile] = []
    names = {file.location: file for file in list_files(source, read_unversioned=False)}
    for path in source.paths:
        found = list_files(replace(source, paths=(path,), columns={}), read_unversioned=False)
        if len(found) != 1:
            told = f"{without_secrets(path)} names {len(found)} files"
            raise ValueError(f"source {source.name!r}: {told}; parallel lines need one")
        ordered.append(names.get(found[0].location, found[0]))  # one file may stand for two sides
    if not source.mapped:
        if len(ordered) not in (2, 3):
            raise ValueError(f"source {source.name!r}: parallel lines need 2 or 3 paths, not {len(ordered)}")
        return dict(zip(SIDES, ordered, strict=False))
    sides = {side: _named(source, side, ordered) for side in SIDES if side in source.mapped}
    for side in ("query", "target"):
        if side not in sides:
            raise ValueError(f"source {source.name!r}: columns.{side} is missing: which file is it?")
    return sides


def _named(source: Source, side: str, files: list[SourceFile]) -> SourceFile:
    wanted = source.mapped[side]
    if isinstance(wanted, int):
        if 0 <= wanted < len(files):
            return files[wanted]
    else:
        name = compose(wanted)
        for file in files:
            if name == compose(file.name) or compose(file.location).endswith(f"/{name}"):
                return file
    known = ", ".join(file.name for file in files)
    raise ValueError(f"source {source.name!r}: columns.{side} names {wanted!r}, the files are {known}")


def read_parallel_lines(source: Source, files: Mapping[str, SourceFile]) -> Iterator[Record]:
    """A record a line; a line that is blank in every file is none, one that a file lacks is a rejection.

    Args:
        files: as `parallel_files` gives them
    """
    streams = [read_cut_lines(file.location, source.languages) for file in files.values()]
    name = files["query"].name
    for number, lines in enumerate(zip_longest(*streams), 1):
        texts = {side: None if line is None else line.text for side, line in zip(files, lines, strict=True)}
        cut = next((line for line in lines if line is not None and line.is_cut), None)
        if cut is not None:
            yield Record(name, number, (), too_long(cut).rejection)
        elif any(text and text.strip() for text in texts.values()):
            try:
                yield Record(name, number, (_pair_of(texts, source),))
            except RecordError as error:
                yield Record(name, number, (), error.rejection)


def _pair_of(texts: dict[str, str | None], source: Source) -> RawPair:
    query, target = texts["query"], texts["target"]
    if query is None or target is None or None in texts.values():
        lacking = ", ".join(side for side, text in texts.items() if text is None)
        raise RecordError("missing_line", f"the file of {lacking} has fewer lines", query or target)
    score = texts.get("score")
    return RawPair(
        task=Task.TEXT_PAIR,
        query=query,
        target=target,
        score=None if score is None else parse_score(score, source.score_range),
    )
