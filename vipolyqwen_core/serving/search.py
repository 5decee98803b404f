"""Search in the exported vectors, with the model that made them: the one whose digest the table records."""

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from numbers import Integral
from pathlib import Path
from typing import Any, Final

import lancedb
import pyarrow as pa
from lancedb.query import MatchQuery
from lancedb.table import Table

from vipolyqwen_core.contract import EMBEDDING_DIM, Task
from vipolyqwen_core.corpus.text import normalise_text
from vipolyqwen_core.serving.current_export import CurrentExport, read_current
from vipolyqwen_core.serving.encoder import Vectors, ViPolyQwenEmbedder
from vipolyqwen_core.serving.inputs import Pictures, listed
from vipolyqwen_core.serving.model_directory import model_digest
from vipolyqwen_core.workspace import Workspace

TABLE: Final = "embeddings"
"""Name of the table in the workspace's LanceDB folder."""

OVERSAMPLING: Final = 4
"""Rows fetched for each hit at first: many rows may say the same (`yes`), and are shown once."""

LARGEST_OVERSAMPLING: Final = OVERSAMPLING**3
"""Where so many do not suffice, texts that were seen are left out instead: a corpus may hold `yes` a million
times."""

OPENINGS: Final = 5
"""How often a table is opened because another export was swapped in at that moment."""

LARGEST_LIMIT: Final = 2**31 - 1
"""LanceDB counts the rows and partitions that are asked for in 32 bits."""

REFINE_FACTOR: Final = 10
"""With a vector index so many candidates for each row are compared again by their exact vectors, and more of
shorter ones, as many floats: an index of one bit a dimension knows these less well."""

PARTITION_ROWS: Final = 4096
"""Rows of a partition of the vector index, on average."""

LEAST_PROBED: Final = 50
PROBED_SHARE: Final = 5
"""A search looks into a fifth of the partitions, 50 at least."""

PANIC: Final = "RustPanic"
"""What LanceDB raises for what its authors have not written yet; the class cannot be imported."""

_BRACKETS: Final = {"(": 1, ")": -1}
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|--[^\n]*")
"""What may hold brackets that are none: strings, names and comments."""
_SHOWN: Final = ["sample_id", "side", "split", "origin", "source", "task", "language", "text", "image_ids"]


@dataclass(frozen=True)
class Hit:
    """A side of a pair that was found."""

    rank: int
    """From 1."""
    score: float
    """Cosine with the query; in a full-text search the BM25 score."""
    source: str
    task: str
    side: str
    """query or target"""
    language: str
    text: str
    origin: str
    """Path of its pictures below the image root, or file:line of the pair."""
    image_ids: tuple[str, ...]
    """Its pictures in the image store of the source."""
    sample_id: str
    """The pair; `vipolyqwen trace` tells more about it."""


def search(
    workspace: Workspace,
    text: str | None = None,
    images: Pictures = None,
    top: int = 10,
    where: str | None = None,
    prefix: Task | str | None = None,
) -> list[Hit]:
    """The sides nearest to a text, to pictures, or to both; sides that say and show the same count once.

    `where` is an SQL filter on the table's columns: `language = 'vi' AND side = 'target'`.

    Raises:
        ValueError: nothing was exported, nothing is asked, the filter is wrong, or the table cannot be read
            or was replaced again and again meanwhile
    """
    _check(top, where)
    if text is not None and not isinstance(text, str):
        raise ValueError(f"text must be a string, not {type(text).__name__}: a search has one query")
    pictures = listed(images)

    @cache
    def vector_under(model: Path, digest: str) -> Vectors:
        embedder = _embedder(model, digest)
        return embedder.encode(text, pictures if text is not None else [pictures], prefix).reshape(-1)

    def hits(current: CurrentExport, table: Table) -> list[Hit]:
        if text is None and not pictures:
            raise ValueError("nothing to look for: give a text, pictures or both")
        vector = vector_under(current.model_directory(), current.model_digest)

        def fetch(limit: int, said: Collection[str]) -> pa.Table:
            query = nearest(table, vector, limit, is_filtered=bool(where or said))
            return _run(query, where, said, "_distance")

        return _distinct_hits(fetch, top, lambda row: 1.0 - row["_distance"])

    return _in_current_table(workspace, hits)


def search_words(workspace: Workspace, words: str, top: int = 10, where: str | None = None) -> list[Hit]:
    """The sides whose text holds the words, by BM25; accents and case do not matter.

    Raises:
        ValueError: nothing was exported, no words are given, the filter is wrong, or the table cannot be read
    """
    _check(top, where)
    if not isinstance(words, str):
        raise ValueError(f"words must be a string, not {type(words).__name__}")
    asked = normalise_text(words)

    def hits(_: CurrentExport, table: Table) -> list[Hit]:
        if not asked:
            raise ValueError("nothing to look for: no words are given")
        # no bare string: LanceDB takes quoted words for a phrase, for which the index has no positions
        match = MatchQuery(asked, "text")  # type: ignore[call-arg]  # it has defaults that mypy does not see

        def fetch(limit: int, said: Collection[str]) -> pa.Table:
            query = table.search(match, query_type="fts").limit(min(limit, LARGEST_LIMIT))
            return _run(query, where, said, "_score")

        return _distinct_hits(fetch, top, lambda row: row["_score"])

    return _in_current_table(workspace, hits)


def _in_current_table(workspace: Workspace, look: Callable[[CurrentExport, Table], list[Hit]]) -> list[Hit]:
    """What `look` finds in the exported table; it looks again where another was swapped in meanwhile.

    A swap deletes the table that is open here, and loading the model leaves it seconds for that.

    Raises:
        ValueError: another was swapped in each time
    """
    for _ in range(OPENINGS):
        opened = _identity(workspace)
        try:
            return look(*open_export(workspace))
        except (ValueError, RuntimeError, OSError):  # LanceDB raises the first two where files are gone
            if _identity(workspace) == opened:
                raise
    raise ValueError(f"another export was swapped in {OPENINGS} times during the search: search again")


def _identity(workspace: Workspace) -> tuple[int, int] | None:
    """Tells the folder of the table from one that is swapped in; None where nothing was exported."""
    try:
        found = workspace.lancedb.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def open_export(workspace: Workspace) -> tuple[CurrentExport, Table]:
    """The exported table, and what is known about it; the table itself says which model made it.

    Raises:
        ValueError: nothing was exported, the table cannot be read, or it is not the one that `current.json`
            describes
    """
    for _ in range(OPENINGS):
        current = read_current(workspace)
        if not (workspace.lancedb / f"{TABLE}.lance").is_dir():
            raise ValueError(f"the exported table is gone: {workspace.lancedb} holds no table {TABLE!r}")
        try:
            table = lancedb.connect(workspace.lancedb).open_table(TABLE)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the exported table cannot be read: {_one_line(error)}") from error
        made_by = table.schema.metadata or {}
        if made_by.get(b"model_digest") == current.model_digest.encode():
            return current, table
    raise ValueError(
        f"the table in {workspace.lancedb} was made by another model than version {current.model_version}, "
        "which current.json names: export anew"
    )


@lru_cache(maxsize=1)
def _embedder(model: Path, digest: str) -> ViPolyQwenEmbedder:
    """The embedder of a model directory; kept, since several searches often follow each other.

    Raises:
        ValueError: the directory holds another model than the one of that digest
    """
    if model_digest(model) != digest:
        raise ValueError(f"{model} holds another model by now than the one that made the table: export anew")
    return ViPolyQwenEmbedder.from_pretrained(model)


def nearest(table: Table, vector: Vectors, limit: int, is_filtered: bool) -> Any:
    """The query for so many rows nearest to a vector; without a vector index it compares them all.

    LanceDB makes room for all candidates that are asked for, and ends the process where it cannot.
    """
    rows = max(1, table.count_rows())
    limit = min(limit, rows)
    refined = max(REFINE_FACTOR, REFINE_FACTOR * EMBEDDING_DIM // len(vector))
    # what a filter leaves may lie in any partition
    probed = LARGEST_LIMIT if is_filtered else max(LEAST_PROBED, rows // PARTITION_ROWS // PROBED_SHARE)
    query: Any = table.search(vector, vector_column_name="embedding")
    query = query.distance_type("cosine").nprobes(probed).limit(limit)
    return query.refine_factor(min(refined, -(-rows // limit)))


def _check(top: int, where: str | None) -> None:
    if not (isinstance(top, Integral) and top >= 1):
        raise ValueError(f"top must be at least 1, not {top!r}")
    if where is not None and not isinstance(where, str):
        raise ValueError(f"where must be a string, not {type(where).__name__}")
    depths = accumulate(_BRACKETS.get(char, 0) for char in _QUOTED.sub("", where or ""))
    if min(depths, default=0) < 0:  # it would end the brackets around it, and set other conditions aside
        raise ValueError(f"where {where!r} cannot be used: it closes a bracket that it did not open")


def _run(query: Any, where: str | None, said: Collection[str], score: str) -> pa.Table:
    """The best rows that the filter leaves, without those that say nothing but one of the texts `said`.

    Raises:
        ValueError: the filter is wrong, or the table cannot be read
    """
    # in brackets, since the parser stops in silence where an expression could end: a forgotten AND
    conditions = [*([_says_other_than(said)] if said else []), *([f"({where}\n)"] if where else [])]
    if conditions:
        query = query.where(" AND ".join(conditions), prefilter=True)
    query = query.select([*_SHOWN, score])
    try:
        return query.to_arrow()
    except Exception as error:
        panicked = type(error).__name__ == PANIC
        if not (panicked or isinstance(error, (ValueError, RuntimeError))):
            raise
        if where and (panicked or not _can_be_planned(query)):
            raise ValueError(f"where {where!r} cannot be used: {_one_line(error)}") from error
        searched = f"with where {where!r} " if where else ""
        raise ValueError(f"{searched}the exported table cannot be read: {_one_line(error)}") from error


def _says_other_than(texts: Collection[str]) -> str:
    """A filter: rows with other texts, and all rows that show pictures."""
    quoted = ", ".join("'{}'".format(text.replace("'", "''")) for text in texts)
    return f"(text NOT IN ({quoted}) OR array_length(image_ids) > 0)"


def _can_be_planned(query: Any) -> bool:
    """Whether the filter of a query that failed can be understood: planning reads no rows."""
    try:
        query.explain_plan()
    except (ValueError, RuntimeError):  # LanceDB raises either for a filter that it cannot read
        return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _distinct_hits(
    fetch: Callable[[int, Collection[str]], pa.Table], top: int, score: Callable[[dict[str, Any]], float]
) -> list[Hit]:
    """The best rows, of those with the same text and pictures only the first."""
    limit = top * OVERSAMPLING
    said: set[str] = set()
    distinct: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    while True:
        rows = fetch(limit, said).to_pylist()
        for row in rows:
            distinct.setdefault((row["text"], tuple(row["image_ids"] or ())), row)
        if len(distinct) >= top or len(rows) < limit:
            break
        times = Counter(row["text"] for row in rows if not row["image_ids"])
        repeated = {text for text, count in times.items() if count > 1}
        if repeated and limit >= top * LARGEST_OVERSAMPLING:
            said |= repeated
        else:
            limit *= OVERSAMPLING
    best = sorted(distinct.values(), key=lambda row: -score(row))[:top]
    return [
        Hit(
            rank=rank,
            score=score(row),
            source=row["source"],
            task=row["task"],
            side=row["side"],
            language=row["language"],
            text=row["text"],
            origin=row["origin"],
            image_ids=tuple(row["image_ids"] or ()),
            sample_id=row["sample_id"],
        )
        for rank, row in enumerate(best, start=1)
    ]
