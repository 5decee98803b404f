"""The manifest: a YAML file that describes the sources of a corpus.

    sources:
      - name: receipts                    # letters, digits, _ : partition key and folder name
        task: ocr                         # text_pair, instr, ocr, vqa_single, vqa_multi
        format: image_qa                  # see Format
        paths: [receipts/*.jsonl]         # globs, relative to this file, or any fsspec URL
        image_root: receipts/images       # pictures lie below it; nothing above it is ever read
        languages: [vi, en]               # what is expected; the language itself is detected
        license: CC BY 4.0
        weight: 2.0                       # expected uses of a row an epoch
        columns: {images: picture, query: question, target: answer}

    expectations:                         # suites of one's own, beside those that always judge
      - suites/receipts.yaml              # a file, relative to this one
      - my_suites:chats                   # package.module:function

A manifest that is wrong is refused with the file, the source, the key and what was expected.
"""

import math
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from vipolyqwen_core.config import STRICT, Positive, PositiveFloat
from vipolyqwen_core.contract import IMAGE_TASKS, Task
from vipolyqwen_core.workspace import data_root_setting


class Format(StrEnum):
    """Formats that are read."""

    OWNER_JSONL = "owner_jsonl"  # one sample a line, `data_type` naming the kind; several tasks in a file
    STS_TABLE = "sts_table"  # two texts and a score: CSV, TSV, JSONL, Parquet
    ALPACA = "alpaca"  # instruction, input, output, and pictures: JSON, JSONL, CSV, Parquet
    MESSAGES = "messages"  # ShareGPT-like dialogues with pictures, as LLaMA-Factory and ms-swift write them
    IMAGE_QA = "image_qa"  # picture(s), question, answer: CSV, TSV, JSON, JSONL, Parquet
    PARALLEL_LINES = "parallel_lines"  # line i of each file belongs together
    ADAPTER = "adapter"  # a function of one's own


TASKS_OF_FORMAT: dict[Format, frozenset[Task]] = {
    Format.OWNER_JSONL: frozenset(Task),
    Format.STS_TABLE: frozenset({Task.TEXT_PAIR}),
    Format.ALPACA: IMAGE_TASKS | {Task.INSTR},
    Format.MESSAGES: IMAGE_TASKS | {Task.INSTR},
    Format.IMAGE_QA: IMAGE_TASKS,
    Format.PARALLEL_LINES: frozenset({Task.TEXT_PAIR}),
    Format.ADAPTER: frozenset(Task),
}

COLUMNS_OF_FORMAT: dict[Format, frozenset[str]] = {
    Format.OWNER_JSONL: frozenset({"group_id", "positive_key", "negatives"}),
    Format.STS_TABLE: frozenset({"query", "target", "score", "group_id", "positive_key", "negatives"}),
    Format.ALPACA: frozenset(
        {"instruction", "input", "target", "history", "images", "group_id", "positive_key"}
    ),
    Format.MESSAGES: frozenset({"messages", "images", "role", "content", "group_id", "positive_key"}),
    Format.IMAGE_QA: frozenset({"images", "query", "target", "group_id", "positive_key", "negatives"}),
    Format.PARALLEL_LINES: frozenset({"query", "target", "score"}),
    Format.ADAPTER: frozenset(),
}
"""Keys that `columns` may map to a field of the file (`a.b` reaches into nested objects), a 0-based column
number of a table without header, or, for parallel lines, a file."""

OPTIONAL_COLUMNS = frozenset({"group_id", "positive_key", "negatives", "history", "input", "score"})
"""Those of them that a row may lack, and a manifest may map to null."""

NAMES_TAKEN = {
    "training_set": "pages in Data Docs",
    "hard_negatives": "data set in MLflow",
    "all": "row in reports, that of all sources together",
}
"""Names of the factory's own results beside those of sources, and where they stand."""

MAX_VALUES = 1_000_000
"""Of a manifest. By aliases a kilobyte of YAML may be a list of billions, which a message would write out."""

STS_PLACES = {"query": 0, "target": 1, "score": 2}
"""Columns of an STS table without header, where `columns` does not name them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Source:
    """One source of the manifest. Paths are absolute, or URLs."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
    """Partition key and folder name."""
    format: Format
    """How to read it."""
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Globs or URLs of the files."""
    task: Task | None = None
    """The task; left out only for `owner_jsonl` and `adapter`, whose rows name their own."""
    image_root: str | None = None
    """Folder or URL that all pictures lie below."""
    languages: tuple[str, ...] = ()
    """Languages that are expected; for reports and checks, never believed."""
    license: str = "unknown"
    """For the model card."""
    weight: PositiveFloat = 1.0
    """Expected uses of a row an epoch."""
    columns: dict[str, str | int | None] = Field(default_factory=dict)
    """Our name -> field of the file; null: the file has none, whatever its fields are called."""
    header: bool = True
    """Whether a CSV or TSV begins with a line of names."""
    score_range: tuple[FiniteFloat, FiniteFloat] = (0.0, 1.0)
    """Lowest and highest score in the file; scaled to [0, 1]."""
    query_text: str | None = None
    """The question of rows that have none, as pictures that come with an answer only: `image_qa`."""
    adapter: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """`package.module:function`, for format `adapter`: called with the source and a file, yields records."""
    max_rows: Positive | None = None
    """Read so many records of each file at most."""
    off_limits: bool = False
    """A benchmark: its rows never train, and rows linked to them do not either."""

    @field_validator("name")
    @classmethod
    def _not_taken(cls, name: str) -> str:
        if name.lower() in NAMES_TAKEN:  # upper and lower case are the same on some disks
            raise ValueError(
                f"the factory calls something of its own {name.lower()} ({NAMES_TAKEN[name.lower()]}), which"
                " would be mixed up with the source's: choose another name"
            )
        return name

    @field_validator("weight", "max_rows", "score_range", mode="before")
    @classmethod
    def _numbers(cls, given: Any) -> Any:
        for number in given if isinstance(given, list | tuple) else (given,):
            if isinstance(number, bool):  # else it would be 1 or 0
                raise ValueError(
                    f"expected a number, given {str(number).lower()}; YAML reads yes, no, on and off so"
                )
        return given

    @field_validator("columns", mode="before")
    @classmethod
    def _no_truths(cls, columns: Any) -> Any:
        for key, value in columns.items() if isinstance(columns, dict) else ():
            if isinstance(value, bool):  # else it would be column 1 or 0
                raise ValueError(
                    f"{key}: expected the name or number of a field, given {str(value).lower()}; YAML reads "
                    "yes, no, on and off so: such a name needs quotes"
                )
        return columns

    @model_validator(mode="after")
    def _consistent(self) -> "Source":
        if self.format is Format.ADAPTER and self.adapter is None:
            raise ValueError("format adapter needs the key adapter: package.module:function")
        if self.format is not Format.ADAPTER and self.adapter is not None:
            raise ValueError(f"adapter is given, but format is {self.format.value}")
        if self.task is None and self.format not in (Format.OWNER_JSONL, Format.ADAPTER):
            raise ValueError(f"task is missing: format {self.format.value} does not name it by row")
        if self.task is not None and self.task not in TASKS_OF_FORMAT[self.format]:
            allowed = ", ".join(sorted(task.value for task in TASKS_OF_FORMAT[self.format]))
            raise ValueError(f"format {self.format.value} holds {allowed}, not {self.task.value}")
        if self.query_text is not None and self.format not in (Format.IMAGE_QA, Format.ADAPTER):
            raise ValueError(f"query_text: format {self.format.value} has questions of its own")
        for key in self.columns:
            if key not in COLUMNS_OF_FORMAT[self.format]:
                allowed = ", ".join(sorted(COLUMNS_OF_FORMAT[self.format])) or "no columns"
                raise ValueError(f"columns.{key}: format {self.format.value} maps {allowed}")
            if self.columns[key] is None and key not in OPTIONAL_COLUMNS:
                nullable = ", ".join(sorted(OPTIONAL_COLUMNS))
                raise ValueError(f"columns.{key}: only {nullable} may be null")
        if self.format is Format.STS_TABLE and not self.header:
            self._distinct_places()
        for language in self.languages:
            if not re.fullmatch("[a-z]{2,3}|other", language):
                raise ValueError(f"languages: {language!r} is no code as vi, en and zh are")
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError(f"score_range {list(self.score_range)}: the first must be below the second")
        return self

    @property
    def mapped(self) -> dict[str, str | int]:
        """Those of `columns` that name a field."""
        return {name: key for name, key in self.columns.items() if key is not None}

    @cached_property  # asked for at each field of each row
    def taken(self) -> frozenset[str | int]:
        """Fields that are part of a pair by `columns`, and stand for no other part by their usual names."""
        return frozenset(key for name, key in self.mapped.items() if name not in ("group_id", "positive_key"))

    def placed(self, change: Callable[[str], str]) -> "Source":
        """The source with its paths and image root changed."""
        root = None if self.image_root is None else change(self.image_root)
        return replace(self, paths=tuple(map(change, self.paths)), image_root=root)

    def _distinct_places(self) -> None:
        """Refuse a column that would be read twice: `columns` may name the one and not the other.

        Raises:
            ValueError: two of query, target and a score that is named are the same column
        """
        names: dict[str | int, str] = {}
        for name, place in STS_PLACES.items():
            if name == "score" and name not in self.mapped:
                continue
            column = self.mapped.get(name, place)
            if column in names:
                raise ValueError(
                    f"columns: {names[column]} and {name} are both column {column}; without a header query"
                    " and target are columns 0 and 1 where they are not named"
                )
            names[column] = name


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Manifest:
    """All sources of a corpus, in the order of the file."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """The sources."""
    expectations: tuple[str, ...] = ()
    """YAML files, or `package.module:function`, with suites of the user's own."""

    @model_validator(mode="after")
    def _distinct(self) -> "Manifest":
        checks = [check_name(entry) for entry in self.expectations]
        for entry, name in zip(self.expectations, checks, strict=True):
            if not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(f"expectations: {entry!r} is no YAML file and no package.module:function")
            if checks.count(name) > 1:
                raise ValueError(f"expectations: two of them are called {name!r}")
        folders: dict[str, str] = {}  # of some disks, where upper and lower case are the same
        for name in self.names:
            if name in folders.values():
                raise ValueError(f"sources: name {name!r} is used twice")
            if (other := folders.setdefault(name.lower(), name)) != name:
                raise ValueError(f"sources: names {other!r} and {name!r} differ in case alone")
        return self

    def source(self, name: str) -> Source:
        """The source of that name.

        Raises:
            ValueError: there is none
        """
        for source in self.sources:
            if source.name == name:
                return source
        raise ValueError(f"no source {name!r} in the manifest: it has {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources, in order."""
        return tuple(source.name for source in self.sources)


def check_name(entry: str) -> str:
    """Name of the check that reports an entry of `expectations`: that of its file or function."""
    if (function := re.fullmatch(r"[\w.]+:(\w+)", entry)) is not None:
        return function[1]
    path = Path(entry)
    return path.stem if path.suffix in (".yaml", ".yml") else ""


def load_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """The manifest of a YAML file.

    Relative paths are taken from `root`, else from `VIPOLYQWEN_DATA_ROOT`, else from the file's own folder:
    one manifest serves every machine, wherever the corpora lie there.

    Args:
        root: a folder, or the fsspec URL of one
    Raises:
        ValueError: names the file, the source, the key and what was expected
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise ValueError(f"manifest {path} {'is no file' if path.exists() else 'does not exist'}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"manifest {path} is not YAML: {' '.join(str(error).split())}") from error
    if _num_values(content, {}) > MAX_VALUES:
        raise ValueError(
            f"manifest {path}: with what its aliases repeat it has more than {MAX_VALUES} values"
        )
    if not isinstance(content, dict) or not isinstance(content.get("sources"), list):
        raise ValueError(f"manifest {path}: expected a mapping with a list `sources`")
    folder = str(root or data_root_setting() or path.resolve().parent)
    anchored = {
        **content,
        "sources": [
            _anchor(source, folder) if isinstance(source, dict) else source for source in content["sources"]
        ],
    }
    if isinstance(own := content.get("expectations"), list):
        anchored["expectations"] = [_anchor_suite(entry, str(path.resolve().parent)) for entry in own]
    try:
        return TypeAdapter(Manifest).validate_python(anchored)
    except ValidationError as error:
        raise ValueError(f"manifest {path}: " + "; ".join(_mistakes(error, content["sources"]))) from error


class UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name no key twice; elsewhere the last one silently wins, whole sources included.

    A date that there is not, or a number of too many digits, is a mistake at its place.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(
                problem=str(error), problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            is_merged = not node.start_mark.index <= key.start_mark.index < node.end_mark.index
            if is_merged or not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _num_values(value: Any, known: dict[int, float]) -> float:
    """Values in a value, each as often as it stands there; infinite where one holds itself."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_num_values(each, known) for each in inner)
    return known[id(value)]


def _anchor(source: dict[str, Any], folder: str) -> dict[str, Any]:
    """The source with its relative paths made absolute. A lone string in `paths` is a list of one."""
    anchored = dict(source)
    if isinstance(paths := source.get("paths"), str):
        anchored["paths"] = [paths]
    if isinstance(anchored.get("paths"), list):
        anchored["paths"] = [anchor_path(p, folder) if isinstance(p, str) else p for p in anchored["paths"]]
    if isinstance(root := source.get("image_root"), str):
        anchored["image_root"] = anchor_path(root, folder)
    return anchored


def _anchor_suite(entry: Any, folder: str) -> Any:
    """A file of expectations belongs to the manifest, wherever the corpora lie."""
    is_file = isinstance(entry, str) and entry.endswith((".yaml", ".yml"))
    return anchor_path(entry, folder) if is_file else entry


def anchor_path(path: str, folder: str) -> str:
    """The path as it is where it is a URL or absolute, else below the folder; `~` is the user's own."""
    inner, chain, archive = path.rpartition("::")
    if chain and "://" in inner:  # `zip://*.jsonl::rows.zip`
        return f"{inner}::{anchor_path(archive, folder)}"
    if "://" in path:
        return path
    local = os.path.expanduser(path)
    scheme, is_url, place = folder.partition("://")
    if is_url and not os.path.isabs(local):
        place, chained, outer = place.partition("::")
        return f"{scheme}://{posixpath.normpath(posixpath.join(place, local))}{chained}{outer}"
    return str(Path(folder) / local)


def unfilled(path: str) -> str:
    """What to add where a path leads nowhere: that no variable in it was filled in, as a shell does."""
    return "; `$` is a plain character: write the path out, or begin it with ~" if "$" in path else ""


def _mistakes(error: ValidationError, sources: list[Any]) -> Iterator[str]:
    """One sentence for each mistake, with the name of the source where it has one."""
    mistakes = error.errors()
    if len(mistakes) > 1:  # pydantic counts the list that is left after refusing entries as too short
        left = ("too_short", ("sources",))
        mistakes = [mistake for mistake in mistakes if (mistake["type"], mistake["loc"]) != left]
    for mistake in mistakes:
        place = [str(part) for part in mistake["loc"]]
        if len(place) >= 2 and place[0] == "sources" and place[1].isdigit():
            entry = sources[int(place[1])]
            name = entry.get("name") if isinstance(entry, dict) else None
            where = f"source {name!r}" if name else f"source number {int(place[1]) + 1}"
            key = ".".join(place[2:])
        else:
            where, key = "the manifest", ".".join(place)
        given = "" if mistake["type"] in ("missing", "value_error") else f", given {mistake['input']!r:.80}"
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "unexpected_keyword_argument":
            known = fields(Source if place[0] == "sources" else Manifest)
            message = f"there is no such key, expected one of {', '.join(field.name for field in known)}"
        elif mistake["type"] == "tuple_type":
            message = "expected a list in brackets"
        yield f"{where}, {f'key {key!r}: ' if key else ''}{message}{given}"
