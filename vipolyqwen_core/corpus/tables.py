"""Tables between stages: schemas of the contract's columns, how they are read, and `stage.json`."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vipolyqwen_core.contract import Column
from vipolyqwen_core.portable_paths import meant, spelled
from vipolyqwen_core.written_aside import written_aside

SCALARS: dict[str, pa.DataType] = {
    "string": pa.large_string(),
    "binary": pa.large_binary(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
}


VECTOR_ROWS = 4096
"""Rows with a vector each that are read at once: 16 MB of 1,024 dimensions."""


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file to be read piece by piece: by itself pyarrow keeps all that it has read to the end.

    Raises:
        ValueError: it is damaged; pyarrow does not name it
    """
    with _damage_named(path):
        return pq.ParquetFile(path, pre_buffer=False)


def read_batches(path: Path, num_rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A Parquet file, so many rows at once.

    Raises:
        ValueError: as `open_parquet`, of bytes in the middle too
    """
    with open_parquet(path) as file, _damage_named(path):
        yield from file.iter_batches(num_rows, columns=columns)


def refuse_damage(path: Path) -> None:
    """Read a Parquet file to its end, where another reader failed and did not name it.

    Raises:
        ValueError: as `read_batches`
    """
    for _ in read_batches(path, VECTOR_ROWS):
        pass


def read_arrow(path: Path) -> pa.Table:
    """An Arrow file, memory-mapped.

    Raises:
        ValueError: as `open_parquet`
    """
    with _damage_named(path):
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def arrow_type(dtype: str) -> pa.DataType:
    """The Arrow type that a `Column.dtype` spells.

    Raises:
        ValueError: the spelling is none of the contract's
    """
    if dtype in SCALARS:
        return SCALARS[dtype]
    if match := re.fullmatch(r"fixed_size_list<(.+)>\[(\d+)\]", dtype):
        return pa.list_(arrow_type(match[1]), int(match[2]))
    if match := re.fullmatch(r"list<(.+)>", dtype):
        return pa.large_list(arrow_type(match[1]))
    if match := re.fullmatch(r"struct<(.+)>", dtype):
        members = re.findall(r"(\w+): ((?:[^,<]|<[^>]*>)+)", match[1])
        return pa.struct([(name, arrow_type(kind.strip())) for name, kind in members])
    raise ValueError(f"unknown column type {dtype!r}")


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of a table of the contract."""
    return pa.schema([(column.name, arrow_type(column.dtype)) for column in columns])


def link_or_copy(file: Path | str, place: Path | str) -> None:
    """A second name for a file that is never written in place, or a copy where the disk cannot link."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copy2(file, place)


def read_json(path: Path) -> Any:
    """The content of a JSON file that the factory wrote.

    Raises:
        ValueError: it is damaged, as after a power cut; names it
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the decoding, too
        raise _damage(path, error) from error


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What Arrow says of wrong bytes, with the name of the file; what the disk says stays as it is."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damage(path, error) from error


def _damage(path: Path, error: Exception) -> ValueError:
    """What to say of a file that the factory wrote and cannot read."""
    what = " ".join(str(error).split())  # Arrow has several lines for some
    return ValueError(f"{path} is damaged ({what}): delete it, and what wrote it runs again")


@dataclass(frozen=True)
class StageSummary:
    """What a stage did: the file `stage.json` beside its tables."""

    stage: str
    """Name of the stage: curated, tagged, validated, training_set ..."""
    fingerprint: str
    """Hash of everything the result depends on: inputs, settings, version of the code."""
    data_version: str
    """Hash of the tables' content: equal content, equal version."""
    pairs_in: int
    """Pairs that came in; for `curated`: pairs that were read."""
    pairs_out: int
    """Pairs that went out."""
    rejected: dict[str, int]
    """Pairs in this stage's ledger, by rule."""
    records: int = 0
    """Only `curated`: records of the source files."""
    records_with_pairs: int = 0
    """Only `curated`: records that gave at least one pair."""
    records_rejected: dict[str, int] = field(default_factory=dict)
    """Only `curated`: records in the ledger under stage `read`, by rule."""
    seconds: float = 0.0
    """How long the stage took."""
    details: dict[str, Any] = field(default_factory=dict)
    """More for a person: counts by language, number of pictures, outcome of expectations."""
    reused: bool = False
    """True where nothing had changed and the tables of an earlier run stand; never written."""

    def write(self, folder: Path) -> None:
        """Write `stage.json` into a folder; paths of its workspace are spelled relative to it."""
        content = {key: value for key, value in asdict(self).items() if key != "reused"}
        content["details"] = _with_paths(self.details, lambda path: spelled(Path(path), folder))
        text = json.dumps(content, ensure_ascii=False, indent=2)
        with written_aside(folder / "stage.json") as aside:
            aside.write_text(text, encoding="utf-8")


def read_stage(folder: Path) -> StageSummary | None:
    """The summary in a folder; None where the stage has not run."""
    path = folder / "stage.json"
    if not path.is_file():
        return None
    found = StageSummary(**read_json(path))
    return replace(found, details=_with_paths(found.details, lambda written: str(meant(written, folder))))


def _with_paths(details: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Details of a stage with the paths in them changed: of the image store, and of Data Docs."""
    changed = dict(details)
    if details.get("images"):
        changed["images"] = {**details["images"], "path": change(details["images"]["path"])}
    if details.get("data_docs"):
        changed["data_docs"] = change(details["data_docs"])
    return changed


def unchanged_stage(folder: Path, fingerprint: str, tables: Sequence[str] = ()) -> StageSummary | None:
    """The summary of an earlier run with the same fingerprint, marked as reused; None: run the stage.

    Args:
        tables: names of files in the folder; where one of them is gone or was cut, the stage runs again
    """
    summary = read_stage(folder)
    if summary is None or summary.fingerprint != fingerprint:
        return None
    if not all(is_whole(folder / name) for name in tables):
        return None
    return replace(summary, reused=True)


def is_whole(path: Path) -> bool:
    """Whether a Parquet, Arrow or JSON file is there and was not cut."""
    try:
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".parquet":
            pq.read_metadata(path)
        else:
            pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, ValueError):  # Arrow's own error of a cut file is a ValueError
        return False
    return True
