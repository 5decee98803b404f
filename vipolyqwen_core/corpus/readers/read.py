"""One source, whatever its format: its records, and the check that it can be read at all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from vipolyqwen_core.corpus.image_root import ImageRoot, below_no_root
from vipolyqwen_core.corpus.manifest import OPTIONAL_COLUMNS, Format, Source
from vipolyqwen_core.corpus.readers.adapter import load_adapter, read_adapted
from vipolyqwen_core.corpus.readers.alpaca import alpaca_needs, alpaca_pairs
from vipolyqwen_core.corpus.readers.files import SourceFile, list_files
from vipolyqwen_core.corpus.readers.image_qa import image_qa_needs, image_qa_pairs
from vipolyqwen_core.corpus.readers.messages import message_needs, message_pairs
from vipolyqwen_core.corpus.readers.owner_jsonl import owner_needs, owner_pairs
from vipolyqwen_core.corpus.readers.parallel_lines import parallel_files, read_parallel_lines
from vipolyqwen_core.corpus.readers.records import (
    UNREADABLE,
    RawPair,
    Record,
    RecordError,
    Rejection,
    shorten,
)
from vipolyqwen_core.corpus.readers.row_fields import MISSING, Key, Needs, look_up
from vipolyqwen_core.corpus.readers.rows import DELIMITED, read_rows
from vipolyqwen_core.corpus.readers.sts_table import sts_needs, sts_pairs
from vipolyqwen_core.corpus.storage import StorageError
from vipolyqwen_core.corpus.without_secrets import without_secrets

HEAD_RECORDS = 100
"""Records of each file that `check_source` looks at."""

PairsOfRow = Callable[[Mapping[Key, Any], Source, str], list[RawPair]]

ROW_FORMATS: dict[Format, tuple[PairsOfRow, Callable[[Source], Needs]]] = {
    Format.OWNER_JSONL: (owner_pairs, owner_needs),
    Format.STS_TABLE: (sts_pairs, sts_needs),
    Format.ALPACA: (alpaca_pairs, alpaca_needs),
    Format.MESSAGES: (message_pairs, message_needs),
    Format.IMAGE_QA: (image_qa_pairs, image_qa_needs),
}
"""Formats whose records are rows of a table, and what these need; the others read files in their own way."""


def read_source(source: Source, dialogue_turns: str = "last", only: str | None = None) -> Iterator[Record]:
    """The records of all files of a source, streaming, by name of file and line.

    A file that breaks off gives what was read before and one rejection with rule `unreadable_file`; a file
    without records gives one with rule `empty_file`.

    Args:
        dialogue_turns: `last` or `each`: which answers of a dialogue become pairs
        only: the name of one file; none: all of them
    Raises:
        ValueError: there is no file, or one has a suffix that is not read: what `check_source` refuses; or
            the storage broke off
    """
    if source.format is Format.PARALLEL_LINES:
        sides = parallel_files(source)
        records = _whole(read_parallel_lines(source, sides), sides["query"].name, source)
        yield from islice(records, source.max_rows)
        return
    for file in list_files(source, read_unversioned=False):
        if only is not None and file.name != only:
            continue
        if source.format is Format.ADAPTER:
            records = read_adapted(source, file)
        else:
            records = _row_records(file, source, dialogue_turns)
        yield from _some(islice(_whole(records, file.name, source), source.max_rows), file.name)


def _some(records: Iterator[Record], name: str) -> Iterator[Record]:
    """The records of a file, or the rejection of a file without any."""
    first = next(records, None)
    yield first or Record(name, 1, (), Rejection("empty_file", "the file holds no records", ""))
    yield from records


def _whole(records: Iterator[Record], name: str, source: Source) -> Iterator[Record]:
    """The records, and a last one for the rest of a file that cannot be read.

    Raises:
        ValueError: the file lies elsewhere and could not be fetched, which says nothing about it
    """
    line = 0
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except UNREADABLE as error:
            reason = "the rest of the file cannot be read" if line else "the file cannot be read"
            yield Record(name, line + 1, (), Rejection("unreadable_file", reason, shorten(str(error))))
            return
        except StorageError as error:
            raise ValueError(f"source {source.name!r}: behind line {line} of {name}: {error}") from error
        line = record.line
        yield record


def _row_records(file: SourceFile, source: Source, dialogue_turns: str) -> Iterator[Record]:
    pairs_of, needs_of = ROW_FORMATS[source.format]
    for row in read_rows(file, source, needs_of(source)):
        try:
            if row.error is not None:
                raise row.error
            yield Record(file.name, row.line, tuple(pairs_of(row.fields, source, dialogue_turns)))
        except RecordError as error:
            yield Record(file.name, row.line, (), error.rejection)


def check_source(source: Source, dialogue_turns: str = "last") -> list[SourceFile]:
    """The files of a source, after a look at each; refuses before any work what cannot work.

    Args:
        dialogue_turns: as for `read_source`
    Raises:
        ValueError: names the source and what is wrong: no file, none that can be read or that holds
            what the format needs, a mapped column that no row has, an image root that is missing
    """
    where = f"source {source.name!r}"
    files = list_files(source)
    try:
        ImageRoot(source.image_root)
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(f"{where}: {error}") from error
    if source.format is Format.ADAPTER:
        load_adapter(source)
    heads = _heads(source, files, dialogue_turns)
    if all(head.num_records == 0 or _is_unreadable(head.rejected) for head in heads):
        raise ValueError(f"{where}: file {_trouble(heads[0])}")
    if source.format in ROW_FORMATS:
        _check_columns(source, files)
    if not any(head.has_pairs for head in heads):
        first = next(head.rejected for head in heads if head.rejected is not None)
        assert first.rejection is not None
        num_records = sum(head.num_records for head in heads)
        raise ValueError(
            f"{where}: none of the first {num_records} records can be read as {source.format};"
            f" {first.file}, line {first.line}: {first.rejection.reason} ({first.rejection.value})"
            f"{_way_out(source, files, first.rejection.rule)}"
        )
    path = next((head.path for head in heads if head.path is not None), None)
    if source.image_root is None and path is not None:
        if (reason := below_no_root(path)) is not None:  # a root would not help
            raise ValueError(f"{where}: {reason} ({shorten(path)!r})")
        raise ValueError(f"{where}: image_root is missing: below which folder does {shorten(path)!r} lie?")
    return files


class Head(NamedTuple):
    """What the first records of a file tell; not these: they may hold pictures, and there are many files."""

    file: SourceFile
    num_records: int
    has_pairs: bool
    rejected: Record | None
    """The first record, where it gave no pair."""
    path: str | None
    """The first picture's path."""


def _heads(source: Source, files: list[SourceFile], dialogue_turns: str) -> list[Head]:
    """The beginning of each file."""
    if source.format is Format.PARALLEL_LINES:
        return [_head(parallel_files(source)["query"], read_source(source))]
    heads = []
    for file in files:
        is_adapted = source.format is Format.ADAPTER
        records = read_adapted(source, file) if is_adapted else _row_records(file, source, dialogue_turns)
        heads.append(_head(file, _whole(records, file.name, source)))
    return heads


def _head(file: SourceFile, records: Iterator[Record]) -> Head:
    num_records, has_pairs = 0, False
    rejected: Record | None = None
    path: str | None = None
    for num_records, record in enumerate(islice(records, HEAD_RECORDS), 1):
        has_pairs |= bool(record.pairs)
        if num_records == 1 and record.rejection is not None:
            rejected = record
        path = path or next(_paths(record.pairs), None)
    return Head(file, num_records, has_pairs, rejected, path)


def _is_unreadable(record: Record | None) -> bool:
    return record is not None and record.rejection is not None and record.rejection.rule == "unreadable_file"


def _trouble(head: Head) -> str:
    """Why a file gives no record."""
    place = without_secrets(head.file.location)
    if head.file.size_bytes == 0:
        return f"{place} is empty"
    if head.rejected is None or head.rejected.rejection is None:
        return f"{place} holds no records"
    return f"{place} cannot be read: {head.rejected.rejection.value}"


def _check_columns(source: Source, files: list[SourceFile]) -> None:
    """Refuse a mapped column that none of the first rows has."""
    # `role` and `content` are keys of a message, not of a row; what bears our own name needs no mapping, so
    # naming it says nothing about the first rows, which may well do without a `group_id`
    missing = {
        name: key
        for name, key in source.mapped.items()
        if name not in ("role", "content") and not (name == key and name in OPTIONAL_COLUMNS)
    }
    seen: dict[Key, None] = {}
    _, needs_of = ROW_FORMATS[source.format]
    for file in files:
        with suppress(*UNREADABLE, StorageError):  # the rest of a file; reading tells it
            for row in islice(read_rows(file, source, needs_of(source)), HEAD_RECORDS):
                seen.update(dict.fromkeys(row.fields))
                missing = {name: key for name, key in missing.items() if look_up(row.fields, key) is MISSING}
        if not missing:
            return
    name, key = next(iter(missing.items()))
    known = ", ".join(str(key) for key in list(seen)[:30])
    raise ValueError(
        f"source {source.name!r}, columns.{name}: no row has {key!r}; the rows have {known}"
        f"{_headless(source, files)}{_nested(files)}"
    )


def _way_out(source: Source, files: list[SourceFile], rule: str) -> str:
    """What to add where the records lack a field: which keys of the manifest say where it is."""
    is_mapped = source.format in ROW_FORMATS and source.format is not Format.OWNER_JSONL
    if rule == "score_not_a_number" and is_mapped:
        return "; `columns: {score: null}` tells that a table has no scores"
    if rule not in ("missing_field", "no_images") or not is_mapped:
        return ""
    return f"; `columns` maps fields of other names{_headless(source, files)}{_nested(files)}"


def _headless(source: Source, files: list[SourceFile]) -> str:
    """What to add where a table may have no line of names, so that its first row was taken for one."""
    is_named = source.header and any(file.suffix in DELIMITED for file in files)
    return "; a table without a line of names needs `header: false`" if is_named else ""


def _nested(files: list[SourceFile]) -> str:
    """What to add where other things may have been taken for the records: these are not in one list."""
    is_document = any(file.suffix == ".json" for file in files)
    return "; records in several lists, or below their ids, need an adapter" if is_document else ""


def _paths(pairs: Sequence[RawPair]) -> Iterator[str]:
    for pair in pairs:
        yield from (image for images in pair.images for image in images if isinstance(image, str))
