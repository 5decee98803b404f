"""Trace: each step of a pair, with what changed it or why it left."""

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace

import polars as pl
import pytest

from quality.curate import curate
from quality.trace import trace
from quality.training_set import build_training_set
from quality.validate import validate
from tests.quality.conftest import instruction, question
from vipolyqwen_core.config import CurationSettings, Recipe
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Manifest, Source
from vipolyqwen_core.corpus.tagging import tag
from vipolyqwen_core.workspace import Workspace


def test_the_way_of_a_pair_from_its_line_to_its_side_of_the_split(
    workspace, write_source, tiny_backbone, tiny_processing, monkeypatch
) -> None:
    monkeypatch.setattr("quality.validate.judge", lambda suites, tables, docs: [])
    dirty = {**question(0), "input": "Trong&nbsp;ảnh  có gì?"}
    source = write_source([instruction(1), dirty, instruction(1)], pictures=[0])
    curate(source, CurationSettings(), workspace)
    ids = dict(
        pl.read_parquet(workspace.curated("corpus") / "pairs.parquet").select("line", "sample_id").rows()
    )
    assert [step.stage for step in trace(ids[2], workspace)] == ["source", "curated", "tagged"]
    assert trace(ids[2], workspace)[-1].outcome == "missing"
    tag(source, tiny_processing, tiny_backbone, workspace)
    validate(source, workspace)
    build_training_set(Manifest(sources=(source,)), Recipe(name="t", backbone="tiny"), workspace)
    read, curated, tagged, validated, last = trace(ids[2][:10], workspace)
    assert "data.jsonl, line 2" in read.sentence
    assert dict(read.details)["query"] == dirty["input"]
    assert dict(curated.details)["query changed"] == f"{dirty['input']} -> Trong ảnh có gì?"
    assert dict(tagged.details)["query changed"] == "Trong ảnh có gì? -> <image>Trong ảnh có gì?"
    assert (validated.outcome, validated.details) == ("kept", ())
    assert last.sentence in ("In train.", "In eval.")
    steps = trace(ids[1], workspace)
    assert [(step.stage, step.outcome) for step in steps[-2:]] == [
        ("source", "read"),
        ("curated", "rejected"),
    ]
    assert "exact_duplicate" in str(steps[-1])
    assert "line 1 of source corpus" in str(steps[-1])


def test_a_source_that_left_the_manifest_is_told_from_one_that_waits(
    workspace, write_source, tiny_backbone, tiny_processing, monkeypatch
) -> None:
    monkeypatch.setattr("quality.validate.judge", lambda suites, tables, docs: [])
    renamed, now = (write_source([instruction(1), instruction(2)], name) for name in ("renamed", "now"))
    for source in (renamed, now):
        curate(source, CurationSettings(), workspace)
        tag(source, tiny_processing, tiny_backbone, workspace)
        validate(source, workspace)
    place = "renamed/data.jsonl:1"
    sentence = "No training set was built since the pair was accepted."
    assert trace(place, workspace)[-1].sentence == sentence
    build_training_set(Manifest(sources=(now,)), Recipe(name="t", backbone="tiny"), workspace)
    last = trace(place, workspace)[-1]
    assert (last.stage, last.outcome) == ("training_set", "missing")
    assert "built without source renamed" in last.sentence


def test_a_line_of_parallel_files_is_found_again(workspace, tmp_path) -> None:
    files = {"a.txt": ["một", "hai\u00a0 hai"], "b.txt": ["one", "two"], "scores.txt": ["1", "0.23"]}
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    paths = tuple(str(tmp_path / name) for name in files)
    source = Source(name="bitext", format=Format.PARALLEL_LINES, task=Task.TEXT_PAIR, paths=paths)
    curate(source, CurationSettings(), workspace)
    sample = pl.read_parquet(workspace.curated("bitext") / "pairs.parquet")["sample_id"][1]
    read, curated, _ = trace(sample, workspace)
    assert dict(read.details) == {"query": "hai\u00a0 hai", "target": "two"}
    assert dict(curated.details)["query changed"] == "hai\\xa0 hai -> hai hai"
    assert dict(curated.details)["score"] == "0.23"


def test_an_unknown_sample_is_refused(workspace, write_source) -> None:
    curate(write_source([instruction(1)]), CurationSettings(), workspace)
    with pytest.raises(ValueError, match="no curated source"):
        trace("0123456789", workspace)
    with pytest.raises(ValueError, match="at least 6"):
        trace("01", workspace)


def test_a_pair_that_lost_its_picture_is_the_one_of_its_line(workspace, write_source) -> None:
    """Which pair it is, its pictures alone could tell."""
    curate(write_source([question(0)]), CurationSettings(), workspace)
    assert [step.outcome for step in trace("data.jsonl:1", workspace)] == ["read", "rejected"]
    with pytest.raises(ValueError, match=r"line 2; there are records of corpus/data\.jsonl$"):
        trace("data.jsonl:2", workspace)


def test_a_line_is_followed_even_where_it_could_not_be_read(workspace, write_source) -> None:
    dialogue = [
        {"role": role, "content": f"{role} {turn}"} for turn in "ab" for role in ("user", "assistant")
    ]
    records = ["{broken", {"data_type": "instruction", "input": dialogue}, {**instruction(2), "output": ""}]
    curate(write_source(records), CurationSettings(dialogue_turns="each"), workspace)
    read, rejected = trace("data.jsonl:1", workspace)
    assert (read.stage, rejected.stage, rejected.outcome) == ("source", "read", "rejected")
    assert "broken_json" in rejected.sentence
    assert dict(rejected.details)["value"] == "{broken"
    steps = trace("corpus/data.jsonl:2", workspace)
    assert [step.stage for step in steps] == ["source", "curated", "tagged"] * 2
    assert [dict(step.details)["target"] for step in steps[::3]] == ["assistant a", "assistant b"]
    assert "empty_target" in trace("data.jsonl:3", workspace)[-1].sentence
    with pytest.raises(ValueError, match=r"no curated source .* has a record in data\.jsonl, line 4"):
        trace("data.jsonl:4", workspace)
    with pytest.raises(ValueError, match=r"line 1; there are records of corpus/data\.jsonl$"):
        trace("/home/ann/corpora/data.jsonl:1", workspace)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_line_is_found_whichever_unicode_form_its_file_has(workspace, write_source, tmp_path, form) -> None:
    source = write_source([instruction(1), "{"])
    (tmp_path / "corpus/data.jsonl").rename(tmp_path / unicodedata.normalize(form, "hội thoại.jsonl"))
    curate(replace(source, paths=(str(tmp_path / "*.jsonl"),)), CurationSettings(), workspace)
    for asked in ("NFC", "NFD"):
        name = unicodedata.normalize(asked, "hội thoại.jsonl")
        assert [step.stage for step in trace(f"{name}:1", workspace)] == ["source", "curated", "tagged"]
        assert [step.stage for step in trace(f"corpus/{name}:2", workspace)] == ["source", "read"]


def test_a_file_is_found_by_its_path_in_the_source_that_has_it_alone(
    workspace, write_source, monkeypatch, tmp_path
) -> None:
    one, other = (write_source([instruction(number)], f"of_{number}") for number in (1, 2))
    for source in (one, other):
        curate(source, CurationSettings(), workspace)
    (path,) = other.paths
    link = tmp_path / "link"
    link.symlink_to(os.path.dirname(path))
    monkeypatch.chdir(tmp_path)
    for place in (path, os.path.relpath(path), "link/data.jsonl"):
        read, *_ = trace(f"{place}:1", workspace)
        assert read.sentence == "of_2: data.jsonl, line 1."
        assert len([step for step in trace(f"{place}:1", workspace) if step.stage == "source"]) == 1
    with pytest.raises(ValueError, match=r"there are records of of_1/data\.jsonl, of_2/data\.jsonl$"):
        trace("elsewhere/data.jsonl:1", workspace)


def test_a_source_that_is_gone_is_said_to_be(workspace, write_source, tmp_path) -> None:
    curate(write_source([instruction(1)]), CurationSettings(), workspace)
    sample = pl.read_parquet(workspace.curated("corpus") / "pairs.parquet")["sample_id"][0]
    (tmp_path / "corpus" / "data.jsonl").write_text(json.dumps(instruction(1)) + "\n" * 3)
    shutil.copytree(workspace.curated("corpus"), workspace.curated(".corpus.1-2.abc.partial"))
    assert [step.stage for step in trace(sample, workspace)] == ["source", "curated", "tagged"]
    assert trace(sample, workspace)[0].outcome == "read"
    (tmp_path / "corpus" / "data.jsonl").write_text(json.dumps(instruction(2)))
    changed, curated, _ = trace(sample, workspace)
    assert (changed.outcome, changed.details) == ("missing", ())
    assert "has another pair there now" in changed.sentence
    assert "query changed" not in dict(curated.details)
    (tmp_path / "corpus" / "data.jsonl").unlink()
    assert trace(sample, workspace)[0].outcome == "missing"


@pytest.mark.parametrize("table", ["ledger.parquet", "pairs.parquet"])
def test_a_table_that_was_cut_is_said_to_be(table, workspace, write_source) -> None:
    curate(write_source([instruction(1), "{"]), CurationSettings(), workspace)
    cut = workspace.curated("corpus") / table
    cut.write_bytes(cut.read_bytes()[:-20])
    for wanted in ("data.jsonl:1", "0" * 32):
        with pytest.raises(ValueError, match=r"is damaged \(.*\): the next run of .* if it does not, delete"):
            trace(wanted, workspace)


@pytest.fixture
def build(workspace, tiny_backbone, tiny_processing, monkeypatch) -> Callable[[Source], None]:
    """Takes a source to a training set; what is expected of it is that no line failed."""

    def run(source: Source, failed: bool = False) -> None:
        line = {"suite": "s", "expectation": "e", "column": None, "severity": "critical", "observed": ""}
        monkeypatch.setattr(
            "quality.validate.judge", lambda suites, tables, docs: [{**line, "success": not failed}]
        )
        curate(source, CurationSettings(), workspace)
        tag(source, tiny_processing, tiny_backbone, workspace)
        validate(source, workspace)
        build_training_set(Manifest(sources=(source,)), Recipe(name="t", backbone="tiny"), workspace)

    return run


def told(sample: str, workspace: Workspace) -> list[tuple[str, str]]:
    return [(step.stage, step.outcome) for step in trace(sample, workspace)]


def test_a_pair_that_trains_is_followed_after_its_source_has_moved_on(workspace, write_source, build) -> None:
    build(write_source([instruction(i) for i in range(3)]))
    ids = dict(
        pl.read_parquet(workspace.tagged("corpus") / "pairs.parquet").select("line", "sample_id").rows()
    )
    # Line 1 is gone, line 2 is line 1, and line 3 is dropped for a longer copy.
    longer = {**instruction(2), "input": f"{instruction(2)['input']} Vâng ạ"}
    curate(write_source([instruction(1), longer, instruction(2)]), CurationSettings(), workspace)
    gone, moved, copy = (trace(ids[line], workspace) for line in (1, 2, 3))
    assert [(step.stage, step.outcome) for step in gone] == [
        ("source", "missing"), ("curated", "missing"),
        ("tagged", "kept"), ("validated", "kept"), ("training_set", "kept"),
    ]  # fmt: skip
    assert "another pair there now" in gone[0].sentence
    assert "of an earlier version" in gone[1].sentence
    assert "data.jsonl, line 1." in moved[0].sentence
    assert [step.outcome for step in moved] == ["read"] + ["kept"] * 4
    assert all("where it was data.jsonl, line 2" in step.sentence for step in moved[2:])
    assert [step.outcome for step in copy] == ["read", "rejected"] + ["kept"] * 3
    assert copy[1].sentence.endswith("of an earlier version of the source.")
    with pytest.raises(ValueError, match="no curated source"):
        trace("0" * 32, workspace)


def test_a_pair_of_a_version_that_was_not_accepted_is_said_to_be(workspace, write_source, build) -> None:
    source = write_source([instruction(0)])
    with pytest.raises(ValueError, match="no accepted version"):
        build(source, failed=True)
    first = pl.read_parquet(workspace.tagged("corpus") / "pairs.parquet")["sample_id"][0]
    assert "was not accepted" in trace(first, workspace)[-1].sentence
    build(write_source([instruction(0), instruction(2)]))
    build(write_source([instruction(0), instruction(1)]), failed=True)
    pairs = pl.read_parquet(workspace.tagged("corpus") / "pairs.parquet")
    assert told(pairs["sample_id"][0], workspace)[-1] == ("training_set", "kept")
    last = trace(pairs["sample_id"][1], workspace)[-1]
    assert (last.stage, last.outcome) == ("validated", "missing")
    assert "was not accepted" in last.sentence
