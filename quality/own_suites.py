"""Suites of one's own, as the manifest's key `expectations` names them: YAML files, or Python functions.

    name: receipts_have_a_total          # as in Data Docs; default: the name of the file
    table: pairs                         # pairs (default), balance, pictures or facts
    task: ocr                            # only the rows of this task
    sources: [receipts]                  # only these sources
    columns:                             # further columns of `pairs`: SQL over those of the tagged table
      has_total: target LIKE '%TOTAL%'
    expectations:                        # Great Expectations' own names and arguments
      - expectation: ExpectColumnValuesToBeInSet
        column: has_total
        value_set: [true]
        mostly: 0.9
        severity: warning                # critical (default) keeps the source from training

A function, `package.module:function`, takes nothing and returns a `Suite` or a list of them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from inspect import isabstract
from itertools import combinations
from pathlib import Path
from typing import Any

import great_expectations.expectations as classes
import polars as pl
import yaml
from great_expectations.compatibility.pydantic import ValidationError
from great_expectations.expectations.expectation import Expectation

from quality.built_in_suites import BUILT_IN
from quality.expectations import CRITICAL, TABLES, Suite, names_of_columns
from quality.polars_tables import polars_schema
from vipolyqwen_core.contract import TAGGED, Task
from vipolyqwen_core.corpus.manifest import Manifest, UniqueKeys, check_name
from vipolyqwen_core.named_function import call_function

KEYS = ("name", "table", "task", "sources", "columns", "expectations")
COLUMN_ARGUMENTS = ("column", "column_A", "column_B", "column_list")
"""Arguments by which Great Expectations' expectations name the columns that they look at."""
NAME = r"[^\s./\\][^/\\\n]{0,79}"
"""A name of a suite that its page in Data Docs, a file, can bear."""


def own_suites(manifest: Manifest) -> list[Suite]:
    """All suites that the manifest names.

    Raises:
        ValueError: names the file or function, the suite, the key and what was expected
    """
    suites, places = [], []
    for entry in manifest.expectations:
        if check_name(entry) in BUILT_IN:  # the check would report the built-in suite as well
            raise ValueError(
                f"expectations {entry}: a built-in suite is called {check_name(entry)!r}; give the "
                f"{'function' if ':' in Path(entry).name else 'file'} another name"
            )
        found = _of_function(entry) if ":" in Path(entry).name else [_of_file(Path(entry))]
        suites += [replace(suite, check=check_name(entry)) for suite in found]
        places += [f"expectations {entry}, suite {suite.name!r}" for suite in found]
    names = [suite.name for suite in suites]
    for suite, where in zip(suites, places, strict=True):
        if names.count(suite.name) > 1 or suite.name in BUILT_IN:
            raise ValueError(f"expectations: suite {suite.name!r} needs a name that no other suite has")
        if not re.fullmatch(NAME, suite.name):
            raise ValueError(
                f"expectations: suite {suite.name!r:.100} needs a name that its page in Data Docs can bear:"
                " up to 80 characters, no slash or backslash, and neither a dot nor a space to begin with"
            )
        strange = sorted(suite.sources - set(manifest.names))
        if strange:
            raise ValueError(f"{where}, key 'sources': the manifest has no source {strange[0]!r}")
        _check_columns(suite, where)
    for one, other in combinations(suites, 2):
        _check_together(one, other)
    return suites


def _of_function(entry: str) -> Sequence[Suite]:
    made = call_function(entry, f"expectations {entry}")
    suites = [made] if isinstance(made, Suite) else made
    if not isinstance(suites, list) or not all(isinstance(suite, Suite) for suite in suites):
        raise ValueError(
            f"expectations {entry} returned {type(made).__name__}; expected Suite, or a list of them"
        )
    for suite in suites:
        if suite.table not in TABLES:
            where = f"expectations {entry}, suite {suite.name!r}"
            raise ValueError(f"{where}: table {suite.table!r} is none of {_listed(TABLES)}")
    return suites


def _of_file(path: Path) -> Suite:
    if not path.is_file():
        raise ValueError(f"expectations {path}: there is no such file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"expectations {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("expectations"), list):
        raise ValueError(f"expectations {path}: expected a mapping with a list `expectations`")
    name = str(path.stem if (given := content.get("name")) is None else given)
    where = f"expectations {path}, suite {name!r}"
    for key in content:
        if key not in KEYS:
            raise ValueError(f"{where}, key {key!r}: expected one of {_listed(KEYS)}")
    return Suite(
        name,
        _one_of(content.get("table", "pairs"), TABLES, f"{where}, key 'table'"),
        [
            _expectation(said, f"{where}, expectation {i}")
            for i, said in enumerate(content["expectations"], 1)
        ],
        task=None
        if (task := content.get("task")) is None
        else Task(_one_of(task, list(Task), f"{where}, key 'task'")),
        sources=frozenset(_names(content.get("sources") or [], f"{where}, key 'sources'")),
        columns=dict(_columns(content.get("columns") or {}, f"{where}, key 'columns'")),
    )


def _expectation(said: Any, where: str) -> Expectation:
    if not isinstance(said, dict) or not isinstance(said.get("expectation"), str):
        raise ValueError(f"{where}: expected a mapping with the key `expectation`, given {said!r:.80}")
    name = said["expectation"]
    kind = getattr(classes, _camel(name), None)
    if not (isinstance(kind, type) and issubclass(kind, Expectation)) or isabstract(kind):
        raise ValueError(f"{where}, key 'expectation': Great Expectations has no {name!r}")
    arguments = {str(key): value for key, value in said.items() if key != "expectation"}
    try:
        return kind(**{"severity": CRITICAL, **arguments})
    except ValidationError as error:
        mistakes = (
            f"key {'.'.join(map(str, mistake['loc']))!r}: {mistake['msg']}" for mistake in error.errors()
        )
        raise ValueError(f"{where} ({name}), {'; '.join(mistakes)}") from error


def _camel(name: str) -> str:
    """`expect_column_max_to_be_between` is another way to write `ExpectColumnMaxToBeBetween`."""
    return "".join(part.capitalize() for part in name.split("_")) if "_" in name else name


def _columns(said: Any, where: str) -> Iterator[tuple[str, pl.Expr]]:
    if not isinstance(said, dict):
        raise ValueError(f"{where}: expected a mapping of names to SQL, given {said!r:.80}")
    schema = polars_schema(TAGGED)
    for name, sql in said.items():
        try:
            value = pl.sql_expr(str(sql))
            pl.DataFrame(schema=schema).select(value)
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{where}, {name}: {' '.join(str(error).split())[:200]}") from error
        yield str(name), value


def _check_columns(suite: Suite, where: str) -> None:
    """Refuse a column that `pairs` cannot have."""
    if suite.task is not None and suite.table not in ("pairs", "balance"):
        raise ValueError(f"{where}, key 'task': table {suite.table} has no rows of a task")
    if suite.table != "pairs":
        if suite.columns:
            raise ValueError(f"{where}, key 'columns': only table pairs takes further columns")
        return
    for name in suite.columns:
        if name in names_of_columns():
            raise ValueError(f"{where}, key 'columns': table pairs has {name!r} already")
    known = (*names_of_columns(), *suite.columns)
    for expectation in suite.expectations:
        for key, column in _columns_of(expectation):
            if column not in known:
                raise ValueError(
                    f"{where}, {type(expectation).__name__}, key {key!r}: table pairs has no {column!r}; it"
                    f" has {_listed(known)}"
                )


def _columns_of(expectation: Expectation) -> Iterator[tuple[str, str]]:
    """The columns that an expectation looks at, each with the argument that names it."""
    for key in COLUMN_ARGUMENTS:
        said = getattr(expectation, key, None)
        for column in said if isinstance(said, (list, tuple)) else (said,):
            if isinstance(column, str):
                yield key, column


def _check_together(one: Suite, other: Suite) -> None:
    """Refuse a column that two suites of a source define differently: they judge one table."""
    if one.sources and other.sources and not one.sources & other.sources:
        return
    for name in sorted(one.columns.keys() & other.columns.keys()):
        if not one.columns[name].meta.eq(other.columns[name]):
            raise ValueError(f"suite {other.name!r}, key 'columns': suite {one.name!r} has another {name!r}")


def _names(said: Any, where: str) -> list[str]:
    if not isinstance(said, list) or not all(isinstance(name, str) for name in said):
        raise ValueError(f"{where}: expected a list of names, given {said!r:.80}")
    return said


def _one_of(said: Any, allowed: Any, where: str) -> str:
    if said not in list(allowed):
        raise ValueError(f"{where}: expected one of {_listed(allowed)}, given {said!r}")
    return str(said)


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names)
