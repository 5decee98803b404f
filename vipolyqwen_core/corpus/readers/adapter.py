"""Formats of one's own: `adapter: package.module:function` in the manifest.

The function is called with the source and a file (`SourceFile`) and yields one thing a record: a `RawPair`, a
list of them, or a `Rejection`.

    def receipts(source: Source, file: SourceFile) -> Iterator[RawPair | Rejection]:
        ...
"""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.files import SourceFile
from vipolyqwen_core.corpus.readers.records import RawPair, Record, Rejection, shorten
from vipolyqwen_core.corpus.text import writable

Adapter = Callable[[Source, SourceFile], Iterable[Any]]


def load_adapter(source: Source) -> Adapter:
    """The function that the manifest names.

    Raises:
        ValueError: there is no such module or function
    """
    assert source.adapter is not None, "the manifest demands an adapter"
    module_name, function_name = source.adapter.split(":")
    where = f"source {source.name!r}: adapter {source.adapter}"
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as error:
        raise ValueError(f"{where} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    if not callable(function):
        raise ValueError(f"{where}: module {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


def read_adapted(source: Source, file: SourceFile) -> Iterator[Record]:
    """The records that the adapter makes of a file, numbered in its order.

    Raises:
        ValueError: the adapter yields something else
    """
    for number, made in enumerate(load_adapter(source)(source, file), 1):
        if isinstance(made, Rejection):
            told = Rejection(made.rule, writable(made.reason), shorten(made.value))
            yield Record(file.name, number, (), told)
            continue
        pairs = tuple(made) if isinstance(made, (list, tuple)) else (made,)
        strange = next((pair for pair in pairs if not isinstance(pair, RawPair)), None)
        if strange is not None:
            raise ValueError(
                f"source {source.name!r}: adapter {source.adapter} yielded {type(strange).__name__} for"
                f" record {number} of {file.name}; expected RawPair, a list of them, or Rejection"
            )
        nothing = None if pairs else Rejection("no_pairs", "the adapter made no pair of the record", "")
        yield Record(file.name, number, pairs, nothing)
