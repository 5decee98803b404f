"""Formats of one's own: `adapter: package.module:function` in the manifest.

The function is called with the source and a file (`SourceFile`) and yields one thing a record: a `RawPair`, a
list of them, or a `Rejection`. A pair whose fields are other than `RawPair` says, or whose task is another
than the manifest names, rejects its record.

    def receipts(source: Source, file: SourceFile) -> Iterator[RawPair | Rejection]:
        ...
"""

import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.hashing import content_digest
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.files import SourceFile
from vipolyqwen_core.corpus.readers.records import (
    UNREADABLE,
    RawPair,
    RawSide,
    Record,
    Rejection,
    shorten,
)
from vipolyqwen_core.corpus.storage import StorageError
from vipolyqwen_core.corpus.text import writable
from vipolyqwen_core.named_function import load_function
from vipolyqwen_core.processing.prompt import ROLES

Adapter = Callable[[Source, SourceFile], Iterable[Any]]


def load_adapter(source: Source) -> Adapter:
    """The function that the manifest names.

    Raises:
        ValueError: there is no such module or function
    """
    assert source.adapter is not None, "the manifest demands an adapter"
    return load_function(source.adapter, f"source {source.name!r}: adapter {source.adapter}")


def adapter_digest(source: Source) -> str:
    """Hash of the module that holds the adapter; empty for other formats, and for a module without a file."""
    if source.adapter is None:
        return ""
    file = getattr(importlib.import_module(source.adapter.split(":")[0]), "__file__", None)
    return "" if file is None else content_digest([Path(file)])


def read_adapted(source: Source, file: SourceFile) -> Iterator[Record]:
    """The records that the adapter makes of a file, numbered in its order.

    Raises:
        ValueError: the adapter fails, or yields something else
        OSError and the others of UNREADABLE: the file cannot be read
    """
    for number, made in _made(source, file):
        if isinstance(made, Rejection):
            told = Rejection(made.rule, writable(made.reason), shorten(made.value))
            yield Record(file.name, number, (), told)
            continue
        pairs = tuple(made) if isinstance(made, (list, tuple)) else (made,)
        if strange := [type(pair).__name__ for pair in pairs if not isinstance(pair, RawPair)]:
            raise ValueError(
                f"source {source.name!r}: adapter {source.adapter} yielded {strange[0]} for"
                f" record {number} of {file.name}; expected RawPair, a list of them, or Rejection"
            )
        rejection = next(filter(None, (_refusal(pair, source) for pair in pairs)), None)
        if not pairs:
            rejection = Rejection("no_pairs", "the adapter made no pair of the record", "")
        yield Record(file.name, number, () if rejection else pairs, rejection)


def _made(source: Source, file: SourceFile) -> Iterator[tuple[int, Any]]:
    """What the adapter yields, numbered; where it fails, the error names the place, of many."""
    function, number = load_adapter(source), 0
    try:
        for number, made in enumerate(function(source, file), 1):
            yield number, made
    except (*UNREADABLE, StorageError):
        raise
    except Exception as error:
        raise ValueError(
            f"source {source.name!r}: adapter {source.adapter} failed behind record {number} of {file.name}:"
            f" {type(error).__name__}: {error}"
        ) from error


def _refusal(pair: RawPair, source: Source) -> Rejection | None:
    """Why a pair rejects its record: for the reasons that a reader has, too."""
    if (wrong := _wrong_field(pair)) is not None:
        return wrong
    if source.task is not None and pair.task is not source.task:
        return Rejection("other_task", f"the source holds {source.task} only", pair.task.value)
    role = next((turn.role for turn in pair.history or () if turn.role not in ROLES), None)
    if role is not None:
        reason = f"the role of an earlier turn is none of {', '.join(ROLES)}"
        return Rejection("unknown_role", reason, shorten(role))
    return None


def _wrong_field(pair: RawPair) -> Rejection | None:
    """The rejection of a pair that is none of a reader's: a function may well hand on a text that is null."""
    is_right = {
        "task": isinstance(pair.task, Task),
        **{name: isinstance(getattr(pair, name), str) for name in ("query", "target")},
        **{name: _all(getattr(pair, name), _is_image) for name in ("query_images", "target_images")},
        "history": pair.history is None or _all(pair.history, _is_turn),
        "score": pair.score is None or (isinstance(pair.score, (int, float)) and 0 <= pair.score <= 1),
        "negatives": _all(pair.negatives, _is_negative),
        **{name: isinstance(getattr(pair, name), (str, NoneType)) for name in ("group_id", "positive_key")},
    }
    wrong = next((name for name, right in is_right.items() if not right), None)
    if wrong is None:
        return None
    return Rejection("wrong_type", f"the adapter's pair has no right {wrong}", shorten(getattr(pair, wrong)))


def _all(things: Any, are: Callable[[Any], bool]) -> bool:
    """Whether it is a tuple or list of such things; a lone path would be taken letter by letter."""
    return isinstance(things, (tuple, list)) and all(map(are, things))


def _is_image(image: Any) -> bool:
    return isinstance(image, (str, bytes))


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Turn) and isinstance(turn.role, str) and isinstance(turn.text, str)


def _is_negative(side: Any) -> bool:
    return isinstance(side, RawSide) and isinstance(side.text, str) and _all(side.images, _is_image)
