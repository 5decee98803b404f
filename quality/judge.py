"""Great Expectations as the judge: suites against frames, in one run, with Data Docs as HTML."""

from collections.abc import Mapping, Sequence
from copy import copy
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import great_expectations as gx
import polars as pl
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.execution_engine import pandas_execution_engine

from quality.expectations import Suite
from vipolyqwen_core.written_aside import written_aside

pandas_execution_engine.HASH_THRESHOLD = 0  # frames below 1 GB are fingerprinted with md5 otherwise
SITE = "data_docs"
PAGE = "index.html"
"""The first page of a folder of Data Docs."""
PLAIN_LIST = """<div id="plain-list"><p>{site}</p><ul>{links}</ul></div>
<script>document.getElementById("plain-list").hidden = Boolean(window.jQuery)</script>
"""
SHOWN = ("check", "suite", "expectation", "column", "severity", "success", "observed")


def judge(
    suites: Sequence[Suite], tables: Mapping[str, pl.DataFrame], docs: Path | None
) -> list[dict[str, Any]]:
    """Validate each suite against its table; one line for each expectation.

    A suite of a task without rows, or of a table that the source has not, is left out. A metric that raised
    counts as a failure, and says so.

    Args:
        suites: what is expected
        tables: frames by the name that suites use
        docs: folder for Data Docs, replaced as a whole; none: no HTML
    Returns:
        dicts of check, suite, expectation, column, severity, success, observed
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    datasource = context.data_sources.add_pandas("frames")
    lines: list[dict[str, Any]] = []
    for suite in suites:
        if not suite.expectations:
            continue
        frame = tables.get(suite.table)
        if frame is None:
            continue
        if suite.task is not None:
            frame = frame.filter(pl.col("task") == suite.task.value)
            if frame.is_empty():
                continue
        batch = datasource.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("whole")
        copies = [copy(expectation) for expectation in suite.expectations]  # one belongs to one context
        expected = gx.ExpectationSuite(name=suite.name, expectations=copies)
        definition = gx.ValidationDefinition(name=suite.name, data=batch, suite=context.suites.add(expected))
        context.validation_definitions.add(definition)
        result = definition.run(batch_parameters={"dataframe": frame.to_pandas()}, result_format="SUMMARY")
        lines += [_line(suite, single) for single in result.results]
    if docs is not None:
        _escape_texts(context)
        with written_aside(docs) as aside:
            _write_docs(context, aside)
            failed = {line["suite"] for line in lines if not line["success"]}
            words = {
                each.name: f": table {each.table}" + (", failed" if each.name in failed else "")
                for each in suites
            }
            _list_without_internet(aside, "/".join(docs.parts[-2:]), words)
    return lines


def _line(suite: Suite, result: ExpectationValidationResult) -> dict[str, Any]:
    config = result.expectation_config
    assert config is not None
    severity = config.severity
    values = (
        suite.check or suite.name,
        suite.name,
        config.type,
        config.kwargs.get("column"),
        str(getattr(severity, "value", severity)),
        bool(result.success),
        _observed(result),
    )
    return dict(zip(SHOWN, values, strict=True))


def _observed(result: ExpectationValidationResult) -> str:
    """What was seen, in a few words."""
    raised = result.exception_info or {}
    messages = [raised] if "raised_exception" in raised else list(raised.values())
    for message in messages:
        if isinstance(message, dict) and message.get("raised_exception"):
            return f"the metric raised: {str(message.get('exception_message'))[:200]}"
    seen = result.result
    if "observed_value" in seen:
        return _short(seen["observed_value"]) + _bounds(result)
    given = seen.get("element_count", 0) - seen.get("missing_count", 0)
    if seen.get("unexpected_count"):
        sample = ", ".join(_short(value)[:40] for value in seen.get("partial_unexpected_list", [])[:3])
        count = f"{seen['unexpected_count']:,} of {given:,} unexpected"
        return f"{count}: {sample}{_bounds(result)}"
    return f"0 of {given:,} unexpected"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bounds(result: ExpectationValidationResult) -> str:
    """What an expectation that failed allows, where it is a range."""
    config = result.expectation_config
    kwargs = {} if config is None or result.success else config.kwargs
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    words = [] if low is None else [f"at least {low:g}"]
    words += [] if high is None else [f"at most {high:g}"]
    return f"; expected {' and '.join(words)}" if words else ""


def _escape_texts(context: Any) -> None:
    """Let no text of a corpus, which a suite of a user's may judge, be HTML in the pages."""
    store = context.validation_results_store
    for key in store.list_keys():
        found = store.get(key)
        for single in found.results:
            single.result = _escaped(single.result)
        store.set(key, found)


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _escaped(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_escaped(part) for part in value]
    return escape(value) if isinstance(value, str) else value


def _write_docs(context: Any, folder: Path) -> None:
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,  # a bar that advertises tutorials
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
    }
    context.add_data_docs_site(site_name=SITE, site_config=site)
    context.build_data_docs(site_names=[SITE])


def _list_without_internet(folder: Path, site: str, words: Mapping[str, str]) -> None:
    """Let the first page name the others where jQuery, which makes its table, could not be loaded.

    Args:
        site: what the pages are about
        words: what there is to say of each suite
    """
    pages = [page.relative_to(folder) for page in sorted(folder.glob("validations/**/*.html"))]
    links = ""
    for page in pages:
        suite = _suite_of(page)  # not quite its name where that has two dots beside each other
        links += f'<li><a href="{quote(page.as_posix())}">{escape(suite)}</a>{words.get(suite, "")}</li>'
    index = folder / PAGE
    body, _, rest = index.read_text(encoding="utf-8").rpartition("</body>")
    index.write_text(
        f"{body}{PLAIN_LIST.format(site=escape(site), links=links)}</body>{rest}", encoding="utf-8"
    )


def _suite_of(page: Path) -> str:
    """`validations/SUITE/RUN/TIME/BATCH.html`, where a dot of the suite's name begins another folder."""
    return ".".join(page.parts[1:-3])
