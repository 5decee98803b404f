"""A source is checked before any work; what is read of it accounts for every record."""

import gzip
import io
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import Rejection, check_source, files_fingerprint, read_source

STS = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR}
QA = {"format": Format.IMAGE_QA, "task": Task.OCR}
OWNER = {"format": Format.OWNER_JSONL}
PARALLEL = {"format": Format.PARALLEL_LINES, "task": Task.TEXT_PAIR}
ADAPTER = {"format": Format.ADAPTER}
TABLE = "x,y\n1,2\n"
QUESTION = '{"image": "x.png", "question": "q", "answer": "t"}'
GOOD = '{"data_type": "instruction", "input": "a", "output": "b"}\n'


def source(folder: Path, *names: str, **keys: Any) -> Source:
    return Source(name="s", paths=tuple(str(folder / name) for name in names), **keys)


def test_a_good_source_gives_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "b.jsonl").write_text("broken\n" + GOOD)
    files = check_source(source(tmp_path, "*.jsonl", **OWNER))
    assert [file.name for file in files] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("a.jsonl", "", OWNER, "a.jsonl is empty"),
        ("a.jsonl", "\n \n", OWNER, "a.jsonl holds no records"),
        ("a.csv", "query,target,score\n", STS, "a.csv holds no records"),
        ("a.xlsx", "x", STS, r"suffix '.xlsx'; expected .csv"),
        ("a.zip", "x", STS, r"suffix ''; expected .* before .zip or .gz where it is packed"),
        ("a.csv", "text1,text2,label\na,b,sport\n", STS, r"\(sport\); `columns: \{score: null\}` tells"),
        ("a.json", '{"a": [{"q": 1}], "b": [{"q": 1}]}', STS, "below their ids, need an adapter$"),
        ("a.parquet", "no parquet", STS, "a.parquet cannot be read"),
        ("a.parquet.bz2", "x", STS, "packed once more is not read: unpack it"),
        ("a.parquet.zst", "x", STS, "packed once more is not read: unpack it"),
        ("a.jsonl.gz", "no gzip", OWNER, "a.jsonl.gz cannot be read"),
        ("a.jsonl", "not\njson\n", OWNER, "none of the first 2 records .* as owner_jsonl; a.jsonl, line 1"),
        ("a.csv", TABLE, STS, "none of the first 1 records .* the record has no 'query' or 'sentence1'"),
        ("a.csv", TABLE, STS, r"\(fields: 0, 1, x, y\); `columns` maps .*; .* needs `header: false`$"),
        ("a.jsonl", '{"x": 1}', STS, r"\(fields: x\); `columns` maps fields of other names$"),
        ("a.jsonl", '{"data_type": "ocr"}', OWNER, r"a sample of ocr has no images \(None\)$"),
        ("a.csv", TABLE, {**STS, "columns": {"query": "z"}}, "columns.query: no row has 'z'; .*x, y; .*`h"),
        ("a.csv", TABLE, {**STS, "header": False, "columns": {"score": 2}}, "score: no row has 2; .* 0, 1$"),
        ("a.csv", "query,target,score\na,b,4\n", STS, r"outside 0 to 1, the `score_range` of the source \(4"),
        ("a.jsonl", "[\n  {\n", OWNER, "line 1: not JSON: .*; an array .* from a file called .json "),
        ("a.jsonl", f"[{GOOD.strip()}]", OWNER, "got list; an array of records, or records of"),
        ("a.jsonl", QUESTION, QA, "image_root is missing: below .*'x.png'"),
        ("a.jsonl", QUESTION.replace("x.png", "https://h/x"), QA, r"URL, which is never .*\('https://h/x'\)"),
        ("a.jsonl", QUESTION.replace("x.png", "/d/x.png"), QA, r"is absolute: name it .*\('/d/x\.png'\)$"),
        ("a.jsonl", QUESTION.replace("x.png", "A" * 9999), QA, "image_root is missing: below .{200,250}$"),
        ("a.jsonl", GOOD, {**OWNER, "image_root": "/nowhere/at/all"}, "/nowhere/at/all is no folder"),
        ("a.txt", "one\ntwo\n", PARALLEL, "parallel lines need 2 or 3 paths, not 1"),
        ("a.json", GOOD, {**ADAPTER, "adapter": "nowhere.at:all"}, "nowhere.at:all cannot be imported"),
        ("a.json", GOOD, {**ADAPTER, "adapter": "json:nothing"}, "module json has no function nothing"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: str, keys: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"source 's'.*{message}") as refused:
        check_source(source(tmp_path, name, **keys))
    assert "\n" not in str(refused.value)


def test_a_declared_optional_field_may_be_absent_from_the_first_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    check_source(source(tmp_path, "a.jsonl", columns={"group_id": "group_id"}, **OWNER))
    with pytest.raises(ValueError, match=r"columns\.group_id: no row has 'gruop'"):
        check_source(source(tmp_path, "a.jsonl", columns={"group_id": "gruop"}, **OWNER))


def test_a_look_at_many_files_holds_the_pictures_of_few(tmp_path: Path) -> None:
    """Tables of pictures hold them as bytes, and there are many tables."""
    rows = {"image": [bytes(20_000)] * 50, "question": ["q"] * 50, "answer": ["a"] * 50}
    for number in range(12):
        pq.write_table(pa.table(rows), tmp_path / f"{number}.parquet")
    tracemalloc.start()
    check_source(source(tmp_path, "*.parquet", **QA))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 50 * 20_000


def test_records_come_by_file_and_line_and_no_more_than_asked_for(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(GOOD + "\nbroken\n" + GOOD * 3)
    every = [(r.file, r.line, len(r.pairs)) for r in read_source(source(tmp_path, "*.jsonl", **OWNER))]
    one = [(1, 1), (3, 0), (4, 1), (5, 1), (6, 1)]
    assert every == [(name, *rest) for name in ("a.jsonl", "b.jsonl") for rest in one]
    few = list(read_source(source(tmp_path, "*.jsonl", max_rows=2, **OWNER)))
    assert [(record.file, record.line) for record in few] == [
        ("a.jsonl", 1), ("a.jsonl", 3), ("b.jsonl", 1), ("b.jsonl", 3),
    ]  # fmt: skip


def test_a_file_that_breaks_off_keeps_what_was_read_and_the_next_file_is_read(tmp_path: Path) -> None:
    lines = "".join(GOOD.replace('"a"', f'"{number}"') for number in range(5000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-5000])
    (tmp_path / "b.jsonl").write_text(GOOD)
    records = list(read_source(source(tmp_path, "*", **OWNER)))
    broken = [record for record in records if record.rejection is not None]
    assert records[-1].file == "b.jsonl"
    assert records[-2] is broken[-1]
    assert broken[-1].rejection is not None
    assert broken[-1].rejection.rule == "unreadable_file"
    assert 100 < len(records) < 5000
    assert len(broken) <= 2


def test_a_file_that_gives_nothing_stands_in_the_ledger_where_others_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text("\n \n")
    (tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "d.jsonl").write_text(GOOD)
    found = source(tmp_path, "*", **OWNER)
    assert len(check_source(found)) == 4
    assert [(r.file, r.rejection and r.rejection.rule) for r in read_source(found)] == [
        ("a.jsonl", "empty_file"),
        ("b.jsonl", "empty_file"),
        ("c.jsonl.gz", "unreadable_file"),
        ("d.jsonl", None),
    ]
    (tmp_path / "d.jsonl").unlink()
    with pytest.raises(ValueError, match=r"a\.jsonl is empty"):
        check_source(found)


def test_a_link_that_leads_nowhere_costs_itself_among_files_that_a_glob_finds(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("gone.jsonl")
    (tmp_path / "b.jsonl").write_text(GOOD)
    (tmp_path / "c.jsonl").symlink_to("c.jsonl")
    found = source(tmp_path, "*.jsonl", **OWNER)
    first = files_fingerprint(check_source(found))
    assert [(r.file, r.rejection and r.rejection.rule) for r in read_source(found)] == [
        ("a.jsonl", "unreadable_file"),
        ("b.jsonl", None),
        ("c.jsonl", "unreadable_file"),
    ]
    (tmp_path / "gone.jsonl").write_text("")
    assert files_fingerprint(check_source(found)) != first


def test_reading_streams(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD * 3)
    records = read_source(source(tmp_path, "a.jsonl", **OWNER))
    assert next(records).line == 1
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(GOOD * 4_000)
    assert sum(1 for _ in records) > 3_000


@pytest.mark.parametrize(("fmt", "names"), [("alpaca", ["a.jsonl"]), ("parallel_lines", ["a.txt", "b.txt"])])
def test_reading_opens_each_file_once_where_a_storage_tells_no_version(
    monkeypatch: pytest.MonkeyPatch, fmt: str, names: list[str]
) -> None:
    memory = fsspec.filesystem("memory")
    opened = []

    def info(self: object, path: str, **keys: object) -> dict[str, object]:
        return {"name": path, "type": "file", "size": len(memory.store[path].getvalue())}

    def opens(self: object, path: str, *arguments: object, **keys: object) -> io.BytesIO:
        opened.append(path)
        return io.BytesIO(memory.store[path].getvalue())

    for name in names:
        memory.pipe_file(f"/unversioned/{name}", b'{"instruction": "q", "output": "t"}\n')
    monkeypatch.setattr(type(memory), "info", info)
    monkeypatch.setattr(type(memory), "open", opens)
    paths = tuple(f"memory://unversioned/{name}" for name in names)
    task = Task.INSTR if fmt == "alpaca" else Task.TEXT_PAIR
    (record,) = read_source(Source(name="s", format=Format(fmt), paths=paths, task=task))
    assert record.pairs
    assert sorted(opened) == [f"/unversioned/{name}" for name in names]


ADAPTERS = """
from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.readers import RawPair, RawSide, Rejection


def good(source, file):
    yield RawPair(Task.INSTR, file.name, "t")
    yield Rejection("odd", "an odd record \\ud800", "\\udfff" * 999)
    yield [RawPair(Task.INSTR, "q", "t"), RawPair(Task.INSTR, "r", "t")]
    yield []


def careless(source, file):
    yield RawPair(Task.INSTR, "q", "t", query_images=["a.png", b"b"], score=1, group_id="g")
    for field in (
        {"target": None}, {"query": 5}, {"task": "instr"}, {"score": "0.5"}, {"query_images": (None,)},
        {"score": float("nan")}, {"score": 1.5}, {"score": -1}, {"score": 10**400},
        {"history": (("user", "x"),)}, {"negatives": ("x",)}, {"positive_key": 5},
        {"query_images": None}, {"target_images": "a.png"}, {"history": 5}, {"negatives": None},
        {"history": (Turn("user", None),)}, {"negatives": (RawSide("x", None),)},
    ):
        wrong = {"task": Task.INSTR, "query": "q", "target": "t", **field}
        yield [RawPair(Task.INSTR, "q", "t"), RawPair(**wrong)]


def strict(source, file):
    yield [RawPair(Task.INSTR, "q", "t"), RawPair(Task.TEXT_PAIR, "q", "t")]
    yield RawPair(Task.INSTR, "q", "t", history=(Turn("user", "x"), Turn("gpt", "y")))
    yield RawPair(Task.INSTR, "q", "t", history=[Turn(role, "x") for role in ("system", "user", "assistant")])


def nonsense(source, file):
    yield RawPair(Task.INSTR, "q", "t")
    yield {"query": "q"}


def nothing(source, file):
    yield RawPair(Task.INSTR, "q", "t")
    yield None


def failing(source, file):
    yield RawPair(Task.INSTR, "q", "t")
    yield {}["colour"]


def none_at_all(source, file):
    pass
"""


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "adapters_of_test_read.py").write_text(ADAPTERS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("adapters")
def test_an_adapter_makes_records_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("anything")
    keys = {"format": Format.ADAPTER, "adapter": "adapters_of_test_read:good"}
    records = list(read_source(source(tmp_path, "*.xyz", **keys)))
    assert [(r.line, len(r.pairs), r.rejection and r.rejection.rule) for r in records] == [
        (1, 1, None), (2, 0, "odd"), (3, 2, None), (4, 0, "no_pairs"),
    ]  # fmt: skip
    assert records[0].pairs[0].query == "a.xyz"
    assert records[1].rejection == Rejection("odd", "an odd record ?", "?" * 200)
    check_source(source(tmp_path, "*.xyz", **keys))


@pytest.mark.usefixtures("adapters")
def test_a_pair_of_an_adapter_with_a_field_of_another_type_rejects_its_record(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("anything")
    keys = {"format": Format.ADAPTER, "adapter": "adapters_of_test_read:careless"}
    first, *others = read_source(source(tmp_path, "*.xyz", **keys))
    assert first.pairs
    named = [record.rejection.reason.split()[-1] for record in others if record.rejection is not None]
    assert named == [
        "target", "query", "task", "score", "query_images", "score", "score", "score", "score",
        "history", "negatives", "positive_key",
        "query_images", "target_images", "history", "negatives", "history", "negatives",
    ]  # fmt: skip


@pytest.mark.usefixtures("adapters")
def test_a_pair_of_an_adapter_has_the_task_of_the_manifest_and_roles_that_the_prompt_knows(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.xyz").write_text("anything")
    keys = {"format": Format.ADAPTER, "adapter": "adapters_of_test_read:strict"}
    found = [record.rejection for record in read_source(source(tmp_path, "*.xyz", task=Task.INSTR, **keys))]
    assert found == [
        Rejection("other_task", "the source holds instr only", "text_pair"),
        Rejection("unknown_role", "the role of an earlier turn is none of system, user, assistant", "gpt"),
        None,
    ]
    mixed = read_source(source(tmp_path, "*.xyz", **keys))
    assert [record.rejection and record.rejection.rule for record in mixed] == [None, "unknown_role", None]


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize(
    ("adapter", "what"),
    [
        ("nonsense", r"yielded dict for record 2 of a\.xyz"),
        ("nothing", r"yielded NoneType for record 2 of a\.xyz"),
        ("failing", r"failed behind record 1 of a\.xyz: KeyError: 'colour'"),
        ("none_at_all", r"failed behind record 0 of a\.xyz: TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_an_adapter_that_fails_or_yields_something_else_is_named(
    tmp_path: Path, adapter: str, what: str
) -> None:
    (tmp_path / "a.xyz").write_text("anything")
    keys = {"format": Format.ADAPTER, "adapter": f"adapters_of_test_read:{adapter}"}
    with pytest.raises(ValueError, match=f"source 's': adapter adapters_of_test_read:{adapter} {what}"):
        list(read_source(source(tmp_path, "a.xyz", **keys)))


def test_an_adapter_whose_module_is_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_adapter_of_test_read.py").write_text("def x(:")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.xyz").write_text("anything")
    keys = {"format": Format.ADAPTER, "adapter": "broken_adapter_of_test_read:x"}
    with pytest.raises(ValueError, match="broken_adapter_of_test_read:x cannot be imported: SyntaxError"):
        check_source(source(tmp_path, "a.xyz", **keys))
