"""A manifest is read as it stands, or refused with the file, the source, the key and what was expected."""

from pathlib import Path

import pytest

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, anchor_path, load_manifest

GOOD = """
sources:
  - name: receipts
    task: ocr
    format: image_qa
    paths: receipts/*.jsonl
    image_root: receipts/images
    columns: {images: picture, target: answer}
    query_text: What does it say?
  - {name: sts, task: text_pair, format: sts_table, paths: [/data/a.csv, "s3://b/b.csv"], score_range: [0, 5]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_relative_paths_start_at_the_manifest(tmp_path: Path) -> None:
    manifest = load_manifest(write(tmp_path, GOOD))
    receipts, sts = manifest.sources
    assert receipts.paths == (str(tmp_path / "receipts/*.jsonl"),)
    assert receipts.image_root == str(tmp_path / "receipts/images")
    assert (receipts.task, receipts.format) == (Task.OCR, Format.IMAGE_QA)
    assert sts.paths == ("/data/a.csv", "s3://b/b.csv")
    assert manifest.names == ("receipts", "sts")


def test_relative_paths_start_at_the_data_root_where_one_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIPOLYQWEN_DATA_ROOT", "/corpora")
    path = write(tmp_path, GOOD)
    assert load_manifest(path).source("receipts").paths == ("/corpora/receipts/*.jsonl",)
    assert load_manifest(path, root=Path("/else")).source("receipts").image_root == "/else/receipts/images"


def test_the_data_root_may_be_an_object_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIPOLYQWEN_DATA_ROOT", "s3://bucket/corpora/")
    manifest = load_manifest(write(tmp_path, GOOD.replace("paths: receipts", "paths: ./receipts")))
    receipts, sts = manifest.sources
    assert receipts.paths == ("s3://bucket/corpora/receipts/*.jsonl",)
    assert receipts.image_root == "s3://bucket/corpora/receipts/images"
    for written, meant in ((".", "corpora"), ("../pictures", "pictures")):
        here = write(tmp_path, GOOD.replace("image_root: receipts/images", f"image_root: {written}"))
        assert load_manifest(here).source("receipts").image_root == f"s3://bucket/{meant}"
    archive = load_manifest(here, root="zip://data::s3://bucket/all.zip").source("receipts")
    assert archive.paths == ("zip://data/receipts/*.jsonl::s3://bucket/all.zip",)
    assert anchor_path("zip://*.jsonl::a.zip", "/d") == "zip://*.jsonl::/d/a.zip"
    assert anchor_path("zip://*.jsonl::s3://bucket/a.zip", "/d") == "zip://*.jsonl::s3://bucket/a.zip"
    assert sts.paths == ("/data/a.csv", "s3://b/b.csv")


def test_a_path_may_start_at_a_home_and_a_user_who_is_not_here_is_left_to_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/own")
    text = GOOD.replace("[/data/a.csv", "[~/a.csv, ~no_such_user/a.csv")
    assert load_manifest(write(tmp_path, text)).source("sts").paths == (
        "/home/own/a.csv", str(tmp_path / "~no_such_user/a.csv"), "s3://b/b.csv",
    )  # fmt: skip


SOURCE = "sources:\n  - {name: a, task: text_pair, format: sts_table, paths: [x.csv]"


@pytest.mark.parametrize("key", ["name", "task", "paths"])
def test_a_manifest_that_aliases_make_endless_is_refused(tmp_path: Path, key: str) -> None:
    """A kilobyte would be billions of values, which a message about one would write out."""
    values = [f"a0: &a0 [{', '.join('x' * 9)}]"]
    values += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    entry = {"name": "a", "task": "ocr", "format": "image_qa", "paths": "a.csv"} | {key: "*a9"}
    fields = ", ".join(f"{name}: {value}" for name, value in entry.items())
    text = "\n".join([*values, f"sources: [{{{fields}}}]"])
    for endless in (text, "sources: &a [*a]"):
        with pytest.raises(ValueError, match=r"aliases repeat it has more than 1000000 values"):
            load_manifest(write(tmp_path, endless))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sources: [", ["is not YAML"]),
        (SOURCE + ",\n license: 2024-13-45}", ["is not YAML: month must be in 1..12", "line 3, column 11"]),
        pytest.param(
            SOURCE + f", max_rows: {'9' * 5000}}}", ["Exceeds the limit", "line 2, column"], id="digits"
        ),
        pytest.param("[" * 5000, ["is not YAML: maximum recursion depth exceeded"], id="nested"),
        ("souces: []", ["expected a mapping with a list `sources`"]),
        ("sources: []", ["at least 1 item"]),
        (SOURCE + ", colums: {}}", ["source 'a'", "'colums'", "no such key", "weight, columns, header"]),
        ("expectation: []\n" + SOURCE + "}", ["manifest, key 'expectation'", "one of sources, expectations"]),
        (SOURCE + ", languages: vi}", ["'languages'", "expected a list in brackets, given 'vi'"]),
        (SOURCE + ", weight: 0}", ["source 'a'", "'weight'", "greater than 0"]),
        (SOURCE + ", weight: yes}", ["source 'a'", "'weight'", "a number, given true; YAML reads yes"]),
        (SOURCE + ", max_rows: on}", ["source 'a'", "'max_rows'", "a number, given true"]),
        (SOURCE + ", score_range: [no, 5]}", ["source 'a'", "'score_range'", "a number, given false"]),
        (SOURCE.replace("name: a", "name: Training_Set") + "}", ["'name'", "of its own training_set (pages"]),
        (SOURCE.replace("name: a", "name: hard_negatives") + "}", ["'name'", "choose another name"]),
        (SOURCE.replace("name: a", "name: All") + "}", ["'name'", "of its own all (row in reports"]),
        (SOURCE + ", columns: {foo: 1}}", ["source 'a'", "columns.foo", "sts_table maps"]),
        (SOURCE + ", columns: {query: No}}", ["source 'a'", "'columns'", "query", "given false", "quotes"]),
        (
            SOURCE + ", header: false, columns: {query: 1}}",
            ["source 'a'", "query and target are both column 1"],
        ),
        (
            SOURCE + ", header: false, columns: {query: 2, score: 2}}",
            ["query and score are both column 2"],
        ),
        (SOURCE + ", columns: {query: null}}", ["columns.query", "only group_id, history", "may be null"]),
        (SOURCE + ", query_text: Which}", ["source 'a'", "query_text", "sts_table has questions of its own"]),
        (SOURCE + ", languages: [VI]}", ["source 'a'", "languages: 'VI' is no code as vi"]),
        (SOURCE + ", languages: [zh-CN]}", ["source 'a'", "languages: 'zh-CN' is no code"]),
        (SOURCE + ", score_range: [5, 0]}", ["source 'a'", "score_range"]),
        (SOURCE + "}\n  - {name: a, task: instr, format: alpaca, paths: [y]}", ["'a' is used twice"]),
        (SOURCE + "}\n  - {name: A, task: instr, format: alpaca, paths: [y]}", ["'a' and 'A' differ"]),
        ("sources:\n  - {task: ocr, format: alpaca, paths: [x]}", ["source number 1", "'name'", "required"]),
        (
            "sources:\n  - {name: b, task: text_pair, format: alpaca, paths: [x]}",
            ["source 'b'", "holds instr, ocr, vqa_multi, vqa_single, not text_pair"],
        ),
        ("sources:\n  - {name: b, format: alpaca, paths: [x]}", ["source 'b'", "task is missing"]),
        (
            "sources:\n  - {name: b, task: ocr, format: csv, paths: [x]}",
            ["source 'b'", "'image_qa'", "'csv'"],
        ),
        ("sources:\n  - {name: b, format: adapter, paths: [x]}", ["source 'b'", "adapter: package.module"]),
        ("sources:\n  - nonsense", ["source number 1"]),
        (SOURCE + ", weight: .inf}", ["source 'a'", "'weight'", "finite"]),
        (SOURCE + ", score_range: [0, .inf]}", ["source 'a'", "'score_range.1'", "finite"]),
        (SOURCE.replace("[x.csv]", "[]") + "}", ["source 'a'", "'paths'", "at least 1 item"]),
        (SOURCE + ", paths: [y.csv]}", ["key 'paths' stands twice", "line 2"]),
        (SOURCE + "}\n" + SOURCE + "}", ["key 'sources' stands twice", "line 3"]),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_place(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is looked at below
        load_manifest(path)
    for part in [str(path), *expected]:
        assert part in str(refused.value)


def test_a_source_may_take_over_keys_and_change_them(tmp_path: Path) -> None:
    first = "- &first {name: a, task: text_pair, format: sts_table, paths: [x.csv], weight: 2.0}"
    second = "- &second {<<: *first, name: b, weight: 3.0}"
    text = f"sources:\n  {first}\n  {second}\n  - {{<<: *second, name: c}}"
    manifest = load_manifest(write(tmp_path, text))
    assert [(source.name, source.weight) for source in manifest.sources] == [
        ("a", 2.0), ("b", 3.0), ("c", 3.0),
    ]  # fmt: skip


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml does not exist"):
        load_manifest(tmp_path / "nowhere.yaml")
