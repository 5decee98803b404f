"""Suites of one's own: read from YAML and Python, judged with the others, refused where they are wrong."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from great_expectations.expectations import ExpectColumnValuesToBeInSet

from assets.findings import suite_holds
from quality.accepted import accepted_folder
from quality.curate import curate
from quality.expectations import Suite
from quality.own_suites import own_suites
from quality.validate import validate
from tests.quality.conftest import instruction, question
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.corpus.manifest import Manifest, load_manifest
from vipolyqwen_core.corpus.tagging import tag

SUITE = {
    "task": "instr",
    "columns": {"ends_well": "target LIKE '%.'"},
    "expectations": [
        {"expectation": "ExpectColumnValuesToBeInSet", "column": "ends_well", "value_set": [True]},
        {
            "expectation": "expect_column_max_to_be_between",
            "column": "target_chars",
            "max_value": 20,
            "severity": "warning",
        },
    ],
}
PAIR_EQUAL = "ExpectColumnPairValuesToBeEqual"
COMPOUND_UNIQUE = "ExpectCompoundColumnsToBeUnique"
FUNCTIONS = """
from great_expectations.expectations import ExpectTableRowCountToBeBetween

from quality.expectations import Suite


def many_rows():
    return [Suite("many", "pairs", [ExpectTableRowCountToBeBetween(min_value=9, severity="critical")])]


def nothing():
    return None


def elsewhere():
    return Suite("far", "rows", [])


def failing():
    return None.oops
"""


def write_suite(folder: Path, **changes: object) -> Path:
    path = folder / "my_suite.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **changes}), encoding="utf-8")
    return path


def manifest_of(source, *entries: object) -> Manifest:
    return Manifest(sources=(source,), expectations=tuple(map(str, entries)))


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suites_of_test.py").write_text(FUNCTIONS)
    (tmp_path / "broken_suites.py").write_text("x = undefined_name")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("before", "after"),
    [("task IN ('ocr', 'instr')", "task IN ('ocr', 'vqa')"), ("ROUND(score, 1)", "ROUND(score, 2)")],
)
def test_a_column_that_changes_changes_its_suite(write_source, tmp_path, before: str, after: str) -> None:
    def digest(sql: str) -> str:
        suite = write_suite(tmp_path, columns={"ends_well": sql})
        return own_suites(manifest_of(write_source([]), suite))[0].digest()

    assert digest(before) == digest(before)
    assert digest(before) != digest(after)


def test_sets_have_no_order() -> None:
    """As Great Expectations makes lists of them: in an order that each process has of its own."""

    def digest(*languages: str) -> str:
        among = ExpectColumnValuesToBeInSet(
            column="language", value_set=list(languages), meta={"of": set(languages)}
        )
        return Suite("mine", "pairs", [among]).digest()

    assert digest("vi", "en") == digest("en", "vi") != digest("en", "zh")


def test_a_suite_with_another_limit_task_or_file_is_another_one(write_source, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return own_suites(manifest_of(write_source([]), path))[0].digest()

    first = digest(write_suite(tmp_path, name="mine"))
    assert digest(write_suite(tmp_path, name="mine")) == first
    limit = {**SUITE["expectations"][1], "max_value": 30}
    for changes in ({"expectations": [SUITE["expectations"][0], limit]}, {"task": "ocr"}):
        assert digest(write_suite(tmp_path, name="mine", **changes)) != first
    assert digest(write_suite(tmp_path, name="mine").rename(tmp_path / "other.yaml")) != first


def test_a_column_of_one_name_means_one_thing_in_a_source(write_source, tmp_path: Path) -> None:
    def suites(sql: str, **changes: object) -> Manifest:
        sources = [write_source([]), write_source([], name="other")]
        files = [write_suite(tmp_path, sources=["corpus"]).rename(tmp_path / "a.yaml")]
        between = write_suite(tmp_path, columns={}, expectations=[], name="between")
        files.append(between.rename(tmp_path / "between.yaml"))
        changes = {"columns": {"ends_well": sql}, "name": "second", **changes}
        files.append(write_suite(tmp_path, **changes).rename(tmp_path / "b.yaml"))
        return Manifest(sources=tuple(sources), expectations=tuple(map(str, files)))

    assert len(own_suites(suites("target LIKE '%.'"))) == 3
    assert len(own_suites(suites("target LIKE '%!'", sources=["other"]))) == 3
    with pytest.raises(ValueError, match="suite 'a' needs a name that no other suite has"):
        own_suites(suites("target LIKE '%.'", name="a"))
    with pytest.raises(ValueError, match="suite 'second', key 'columns': suite 'a' has another 'ends_well'"):
        own_suites(suites("target LIKE '%!'"))


@pytest.mark.usefixtures("functions")
def test_they_are_judged_with_the_others_and_a_critical_one_blocks(
    workspace, write_source, tiny_backbone, tiny_processing, tmp_path
) -> None:
    source = write_source([instruction(i) for i in range(6)] + [question(0)], pictures=[0])
    curate(source, CurationSettings(), workspace)
    tag(source, tiny_processing, tiny_backbone, workspace)
    manifest = manifest_of(source, write_suite(tmp_path, name="ends.v1 #<1>"))
    summary = validate(source, workspace, own_suites(manifest))
    lines = [line for line in summary.details["expectations"] if line["check"] == "my_suite"]
    assert [(line["column"], line["severity"], line["success"]) for line in lines] == [
        ("ends_well", "critical", True),
        ("target_chars", "warning", False),
    ]
    assert summary.details["accepted"]
    page = Path(summary.details["data_docs"]).read_text(encoding="utf-8")
    assert "<p>corpus/validated</p>" in page
    link = re.search(r'<a href="([^"#<]*)">ends\.v1 #&lt;1&gt;</a>: table pairs, failed</li>', page)
    assert re.search(r">stages</a>: table facts</li>", page)
    assert (Path(summary.details["data_docs"]).parent / unquote(link[1])).is_file()

    # Under the name of its file a suite reports, whatever its own name is.
    renamed = write_suite(tmp_path, name="ends.v1 #<1>").rename(tmp_path / "renamed.yaml")
    validate(source, workspace, own_suites(manifest_of(source, renamed)))
    finding = suite_holds(workspace, "corpus", "renamed")
    assert (finding.facts["expectations"], finding.facts["failed"]) == (2, 1)

    manifest = manifest_of(source, write_suite(tmp_path), "suites_of_test:many_rows")
    summary = validate(source, workspace, own_suites(manifest))
    assert not summary.reused  # another suite, another verdict
    assert not summary.details["accepted"]
    assert accepted_folder(workspace.validated("corpus")) is not None
    assert {line["check"] for line in summary.details["expectations"] if not line["success"]} == {
        "my_suite",
        "many_rows",
    }


def test_a_suite_may_be_for_other_sources(
    workspace, write_source, tiny_backbone, tiny_processing, tmp_path
) -> None:
    source = write_source([instruction(i) for i in range(3)])
    other = write_source([instruction(9)], name="other")
    curate(source, CurationSettings(), workspace)
    tag(source, tiny_processing, tiny_backbone, workspace)
    path = write_suite(tmp_path, sources=["other"])
    suites = own_suites(Manifest(sources=(source, other), expectations=(str(path),)))
    assert {line["check"] for line in validate(source, workspace, suites).details["expectations"]}.isdisjoint(
        {"my_suite"}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tabel": "pairs"}, "key 'tabel': expected one of name, table"),
        ({"table": "rows"}, "key 'table': expected one of pairs, balance"),
        ({"task": "song"}, "key 'task': expected one of text_pair"),
        ({"sources": ["nowhere"]}, "key 'sources': the manifest has no source 'nowhere'"),
        ({"name": None, "sources": ["x"]}, "my_suite.yaml, suite 'my_suite', key 'sources'"),
        ({"sources": "corpus"}, "key 'sources': expected a list of names"),
        ({"columns": {"x": "LENGTH(nothing) > 3"}}, "key 'columns', x: .*nothing"),
        ({"columns": {"x": "not sql ("}}, "key 'columns', x: "),
        ({"table": "facts"}, "key 'task': table facts has no rows of a task"),
        ({"table": "balance"}, "key 'columns': only table pairs takes further columns"),
        ({"columns": {"score": "1"}}, "key 'columns': table pairs has 'score' already"),
        ({"name": "drift"}, "suite 'drift' needs a name that no other suite has"),
        *(({"name": name}, "Data Docs can bear") for name in ("a/b", "a\\b", ".a", "", "ế" * 81)),
        ({"expectations": "all is well"}, "a mapping with a list `expectations`"),
        ({"expectations": ["all is well"]}, "expectation 1: expected a mapping with the key `expectation`"),
        *(
            ({"expectations": [{"expectation": name}]}, f"Great Expectations has no '{name}'")
            for name in ("ExpectMiracles", "Expectation")
        ),
        (  # what YAML reads of `on: score`
            {"expectations": [{"expectation": "ExpectColumnValuesToNotBeNull", True: "score"}]},
            "key 'True': extra fields not permitted",
        ),
        (
            {"expectations": [{"expectation": "ExpectColumnValuesToNotBeNull", "colum": "score"}]},
            "expectation 1 .ExpectColumnValuesToNotBeNull., .*key 'colum': extra fields not permitted",
        ),
        (
            {"expectations": [{"expectation": "ExpectColumnValuesToNotBeNull", "column": "scores"}]},
            "my_suite.yaml, suite .*key 'column': table pairs has no 'scores'; it has sample_id, task",
        ),
        (
            {"expectations": [{"expectation": PAIR_EQUAL, "column_A": "score", "column_B": "scores"}]},
            "key 'column_B': table pairs has no 'scores'",
        ),
        (
            {"expectations": [{"expectation": COMPOUND_UNIQUE, "column_list": ["sample_id", "scores"]}]},
            "key 'column_list': table pairs has no 'scores'",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_file_suite_and_key(
    write_source, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    manifest = manifest_of(write_source([instruction(1)]), write_suite(tmp_path, **changes))
    with pytest.raises(ValueError, match=message) as refused:
        own_suites(manifest)
    assert "\n" not in str(refused.value)


def test_brackets_without_end_are_refused(write_source, tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    suite.write_text("[" * 5000)
    with pytest.raises(ValueError, match=r"my_suite.yaml is not YAML: maximum recursion depth"):
        own_suites(manifest_of(write_source([instruction(1)]), suite))


def test_a_key_that_stands_twice_is_refused(write_source, tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    suite.write_text(suite.read_text() + "expectations: []\n")
    with pytest.raises(ValueError, match=r"my_suite.yaml is not YAML: key 'expectations' stands twice"):
        own_suites(manifest_of(write_source([instruction(1)]), suite))


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nowhere.yaml", "nowhere.yaml: there is no such file"),
        ("no_such_module:f", "no_such_module:f cannot be imported"),
        ("drift.yaml", "a built-in suite is called 'drift'; give the file another name"),
        ("suites_of_test:balance", "a built-in suite is called 'balance'; give the function another name"),
        ("suites_of_test:absent", "module suites_of_test has no function absent"),
        ("broken_suites:x", "broken_suites:x cannot be imported: NameError: name 'undefined_name'"),
        ("suites_of_test:failing", "suites_of_test:failing failed: AttributeError: 'NoneType' object"),
        ("suites_of_test:nothing", "returned NoneType; expected Suite"),
        ("suites_of_test:elsewhere", "suite 'far': table 'rows' is none of pairs, balance"),
    ],
)
def test_an_entry_that_leads_nowhere_is_named(write_source, entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_suites(manifest_of(write_source([instruction(1)]), entry))


def test_the_manifest_finds_its_suites_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIPOLYQWEN_DATA_ROOT", "/somewhere/else")
    source = {"name": "a", "format": "owner_jsonl", "paths": "a.jsonl"}
    content = {"sources": [source], "expectations": ["suites/x.yaml", "package.module:function"]}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(content))
    loaded = load_manifest(tmp_path / "m.yaml")
    assert loaded.expectations == (str(tmp_path / "suites/x.yaml"), "package.module:function")
    for wrong, message in (
        (["x.yaml", "suites/x.yaml"], "two of them are called 'x'"),
        (["x.txt"], "'x.txt' is no YAML file and no package.module:function"),
        (3, "key 'expectations'"),
    ):
        (tmp_path / "m.yaml").write_text(yaml.safe_dump({**content, "expectations": wrong}))
        with pytest.raises(ValueError, match=message):
            load_manifest(tmp_path / "m.yaml")
