"""Reads one file that a test writes."""

import json
from pathlib import Path
from typing import Any

from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers import Record, read_source


def read(folder: Path, name: str, content: str | bytes, turns: str = "last", **keys: Any) -> list[Record]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_source(Source(name="s", paths=(str(path),), **keys), turns))


def rules(records: list[Record]) -> list[str | None]:
    return [record.rejection and record.rejection.rule for record in records]


def jsonl(*rows: Any) -> str:
    """Objects as lines of JSON."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
