"""Curation: nothing vanishes, nothing is kept twice, and what is unchanged is not done again."""

import base64
import dataclasses
import json
import os
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import quality.curate as curate_module
from quality.curate import curate
from quality.ledger import LEDGER_SCHEMA, missing_pairs, missing_records
from quality.polars_tables import polars_schema
from quality.row_duplicates import find_duplicates
from quality.rules import RULES
from tests.quality.conftest import instruction, question, scene, sentence
from tests.stored_pictures import file_of
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import PAIR, Task
from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import Record, read_source
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.workspace import Workspace

SETTINGS = CurationSettings()


def pairs(workspace: Workspace, name: str = "corpus") -> pl.DataFrame:
    return pl.read_parquet(workspace.curated(name) / "pairs.parquet")


def ledger(workspace: Workspace, name: str = "corpus") -> pl.DataFrame:
    return pl.read_parquet(workspace.curated(name) / "ledger.parquet")


def rules_of(workspace: Workspace) -> dict[tuple[int, str], int]:
    return Counter(ledger(workspace).select("line", "rule").iter_rows())


def test_tables_have_the_columns_of_the_contract(workspace, write_source) -> None:
    source = write_source([instruction(1), "{", question(2), question(9)], pictures=[2])
    summary = curate(source, SETTINGS, workspace)
    assert pairs(workspace).schema == polars_schema(PAIR)
    assert ledger(workspace).schema == LEDGER_SCHEMA
    assert (summary.records, summary.records_with_pairs, summary.pairs_in, summary.pairs_out) == (4, 3, 3, 2)
    assert summary.records_rejected == {"broken_json": 1}
    assert summary.rejected == {"missing_image": 1}
    assert summary.details["languages"] == {"vi": 2}
    assert set(ledger(workspace)["rule"]) <= set(RULES)


def test_a_record_that_a_reader_loses_is_missed(workspace, write_source, monkeypatch) -> None:
    def read(*arguments: Any) -> Iterator[Record]:
        for record in read_source(*arguments):
            yield replace(record, pairs=()) if record.line == 2 else record

    monkeypatch.setattr("quality.curate.read_source", read)
    with pytest.raises(AssertionError, match="records=3, records_with_pairs=2"):
        curate(write_source([instruction(1), instruction(2), instruction(3)]), SETTINGS, workspace)
    assert not workspace.curated("corpus").exists()


def test_pictures_in_base64_need_no_folder(workspace, tmp_path) -> None:
    """As OpenAI-like messages hold them; what is cut within is rejected as a picture, not repeated."""
    whole = base64.b64encode(file_of(scene(1))).decode()
    rows = []
    for encoded in (whole, whole[:-101]):
        url = {"url": f"data:image/png;base64,{encoded}"}
        asked = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "Trong hình có gì?"}]
        answer = {"role": "assistant", "content": f"Có {len(encoded)} thứ trong hình này."}
        rows.append({"messages": [{"role": "user", "content": asked}, answer]})
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    place = (str(tmp_path / "chats.jsonl"),)
    source = Source(name="corpus", format=Format.MESSAGES, task=Task.VQA_SINGLE, paths=place)
    summary = curate(source, SETTINGS, workspace)
    assert summary.rejected == {"truncated_image": 1}
    assert pairs(workspace)["query_images"].to_list() == [[image_id(scene(1))]]
    assert all(len(text) <= 200 for text in ledger(workspace).select("reason", "value").row(0))


def test_a_declared_key_is_one_in_either_unicode_form(workspace, write_source) -> None:
    """Else its group would cross the split, and a right answer would train as a negative."""
    forms = [unicodedata.normalize(form, "hoá_đơn_quận_ba") for form in ("NFC", "NFD")]
    rows = [instruction(n, group_id=form, positive_key=form) for n, form in enumerate(forms)]
    curate(write_source(rows), SETTINGS, workspace)
    assert pairs(workspace).select("group_id", "positive_key").rows() == [(forms[0],) * 2] * 2


def test_each_rule_finds_its_row(workspace, write_source) -> None:
    long = sentence(77, 40)
    records = [
        instruction(0),
        {**instruction(1), "output": "  \u200b "},
        {**instruction(2), "input": ""},
        {**instruction(3), "output": "rất hay " * 60},
        {**instruction(4), "output": "哈" * 120},
        {**instruction(5), "input": f"Câu hỏi: gì?\n{long}", "output": long},
        {**instruction(6), "input": "Lặp lại", "output": "Lặp lại"},
        {**instruction(7), "output": "x" * 500 + sentence(3, 300)},
        {"data_type": "contrastive_with_score", "input": "a b", "output": "a b", "similarity_score": 1.0},
        {"data_type": "contrastive_with_score", "input": "a", "output": "b", "similarity_score": 2.0},
        {**instruction(8), "output": "true or false", "input": "Is it true or false?"},
        instruction(0),
        {**instruction(9), "input": sentence(9) + " Xin hãy trả lời câu hỏi này cho thật đầy đủ nhé."},
        {**instruction(9), "input": sentence(9) + " Xin hãy trả lời câu hỏi này cho thật đầy đủ nhé!!"},
    ]
    curate(write_source(records), CurationSettings(max_chars=1000), workspace)
    assert rules_of(workspace) == {
        (2, "empty_target"): 1,
        (3, "empty_query"): 1,
        (4, "repetitive_target"): 1,
        (5, "repetitive_target"): 1,
        (6, "answer_in_query"): 1,
        (7, "answer_in_query"): 1,
        (8, "target_too_long"): 1,
        (10, "score_out_of_range"): 1,
        (12, "exact_duplicate"): 1,
        (13, "near_duplicate"): 1,  # of the two, the longer stays
    }


def test_the_better_labelled_copy_stays_and_the_ledger_says_which(workspace, write_source) -> None:
    plain = instruction(1)
    source = write_source(
        [plain, {**plain, "group_id": "g"}, {**plain, "group_id": "g", "positive_key": "k"}]
    )
    curate(source, SETTINGS, workspace)
    kept = pairs(workspace).row(0, named=True)
    assert kept["line"] == 3
    lines = ledger(workspace)
    assert lines["line"].to_list() == [1, 2]
    assert set(lines["value"]) == {kept["sample_id"]}
    assert all("data.jsonl, line 3 of source corpus" in reason for reason in lines["reason"])


def test_texts_that_differ_in_a_number_or_a_picture_are_no_copies(workspace, write_source) -> None:
    long = sentence(4, 30)
    records = [
        {**instruction(1), "input": f"{long} 12 + 15?", "output": "27"},
        {**instruction(1), "input": f"{long} 12 + 16?", "output": "27"},
        question(1, long),
        {**question(1, long), "images": ["2.png"]},
        {**question(1, long), "output": "Vật khác"},
    ]
    curate(write_source(records, pictures=[1, 2]), SETTINGS, workspace)
    assert pairs(workspace).height == 5


def test_dialogues_are_copies_only_where_their_last_question_is(workspace, write_source) -> None:
    def dialogue(beginning: str, question: str) -> dict[str, Any]:
        turns = [("user", beginning), ("assistant", sentence(6, 60)), ("user", question)]
        messages = [{"role": role, "content": text} for role, text in turns]
        return {"data_type": "instruction", "input": messages, "output": sentence(7)}

    records = [
        dialogue(sentence(5, 60), "Ai cao hơn?"),
        dialogue(sentence(5, 60), "Ai mặc áo đỏ?"),  # the long beginning is the same, the question is not
        dialogue(sentence(5, 60).upper() + "!", "Ai cao hơn?"),
    ]
    curate(write_source(records), SETTINGS, workspace)
    assert rules_of(workspace) == {(3, "near_duplicate"): 1}


def test_scores_that_differ_are_named(workspace, write_source) -> None:
    pair = {"data_type": "contrastive_with_score", "input": "một con mèo", "output": "một con chó"}
    curate(write_source([{**pair, "similarity_score": s} for s in (0.5, 0.25)]), SETTINGS, workspace)
    assert pairs(workspace)["score"].to_list() == [0.5]
    assert "scores differ: 0.25 here, 0.5 there" in ledger(workspace)["reason"][0]


def test_pictures_are_stored_once_whatever_their_name_and_format(workspace, write_source) -> None:
    source = write_source([question(1), question(2), question(3), question(4)], pictures=[1, 2, 3])
    folder = Path(str(source.image_root))
    scene(1).convert("RGBA").save(folder / "2.png")
    scene(4).save(folder / "4.png", format="BMP")
    summary = curate(source, SETTINGS, workspace)
    store = ImageStore(**summary.details["images"])
    table = pl.from_arrow(store.table(["image_id", "origin", "format"]))
    assert table["origin"].to_list() == ["1.png", "3.png", "4.png"]
    assert [ids[0] for ids in pairs(workspace)["query_images"]][:2] == [table["image_id"][0]] * 2


def test_a_picture_that_changes_or_arrives_is_noticed(workspace, write_source) -> None:
    source = write_source([question(1), question(2)], pictures=[1])
    first = curate(source, SETTINGS, workspace)
    assert curate(source, SETTINGS, workspace).reused
    scene(2).save(Path(str(source.image_root)) / "2.png")
    second = curate(source, SETTINGS, workspace)
    assert not second.reused
    assert (first.pairs_out, second.pairs_out) == (1, 2)
    assert curate(source, CurationSettings(max_chars=999), workspace).reused is False


def test_a_picture_that_arrives_while_others_are_read_is_noticed(
    workspace, write_source, monkeypatch
) -> None:
    source = write_source([question(1), question(2)], pictures=[1])

    def arrives(*arguments: Any) -> pl.DataFrame:
        if not (picture := Path(str(source.image_root)) / "2.png").exists():
            scene(2).save(picture)
        return find_duplicates(*arguments)

    monkeypatch.setattr("quality.curate.find_duplicates", arrives)
    assert curate(source, SETTINGS, workspace).pairs_out == 1
    assert curate(source, SETTINGS, workspace).pairs_out == 2
    assert curate(source, SETTINGS, workspace).reused


def test_a_table_of_pictures_that_was_cut_is_made_anew(workspace, write_source) -> None:
    source = write_source([question(1)], pictures=[1])
    curate(source, SETTINGS, workspace)
    table = workspace.curated("corpus") / "pictures.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    assert not curate(source, SETTINGS, workspace).reused
    assert table.read_bytes() == whole


CURATE_TABLE = """
import sys
from pathlib import Path
from quality.curate import curate
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.workspace import Workspace

if __name__ == "__main__":
    columns = {"query": "sentence1", "target": "sentence2", "score": "similarity"}
    kind = {"format": Format.STS_TABLE, "task": "text_pair", "columns": columns}
    source = Source(name="a", paths=(sys.argv[2],), **kind)
    print(curate(source, CurationSettings(), Workspace(Path(sys.argv[1]))).fingerprint)
"""


def test_a_source_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Python orders a set of strings anew in each."""
    script, table = tmp_path / "curate_table.py", tmp_path / "a.csv"
    script.write_text(CURATE_TABLE)
    table.write_text("sentence1,sentence2,similarity\n" + f"{sentence(1)},{sentence(2)},0.5\n")
    command = [sys.executable, str(script), str(tmp_path / "workspace"), str(table)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    marks = {
        subprocess.check_output(command, text=True, env={**environment, "PYTHONHASHSEED": seed})
        for seed in ("1", "2", "3")
    }
    assert len(marks) == 1


def test_an_adapter_that_changes_reads_its_source_again(
    workspace, write_source, tmp_path, monkeypatch
) -> None:
    code = """
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.readers import RawPair

def lines(source, file):
    yield RawPair(Task.INSTR, "What is a lake made of?", "ANSWER")
"""
    (tmp_path / "adapter_of_test_curate.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = replace(write_source([]), format=Format.ADAPTER, adapter="adapter_of_test_curate:lines")
    curate(source, SETTINGS, workspace)
    assert curate(source, SETTINGS, workspace).reused
    (tmp_path / "adapter_of_test_curate.py").write_text(code.replace("ANSWER", "Mostly water."))
    assert not curate(source, SETTINGS, workspace).reused
    (target,) = pl.read_parquet(workspace.curated("corpus") / "pairs.parquet")["target"]
    assert target == "Mostly water."  # in the process that had imported the other


def test_the_same_files_give_the_same_tables(workspace, write_source, tmp_path) -> None:
    records = [instruction(i % 40) for i in range(60)] + [question(i) for i in range(8)]
    source = write_source(records, pictures=range(8))
    one = curate(source, SETTINGS, workspace)
    two = curate(source, SETTINGS, Workspace(tmp_path / "other"))
    assert one.data_version == two.data_version
    assert one.fingerprint == two.fingerprint


def test_a_broken_source_is_refused_before_any_work(workspace, write_source) -> None:
    source = write_source(["no json at all"])
    with pytest.raises(ValueError, match="corpus"):
        curate(source, SETTINGS, workspace)
    assert not workspace.curated("corpus").exists()


@pytest.mark.parametrize(("limit", "value"), [("BATCH_PAIRS", 7), ("BATCH_BYTES", 400)])
def test_batches_do_not_change_the_result(
    workspace, write_source, tmp_path, monkeypatch, limit, value
) -> None:
    records = [instruction(i % 30) if i % 3 else question(i % 7) for i in range(90)]
    source = write_source(records, pictures=range(7))
    whole = curate(source, SETTINGS, workspace)
    assert len(list(curate_module._batches(source, SETTINGS))) == 1
    monkeypatch.setattr(curate_module, limit, value)
    assert len(list(curate_module._batches(source, SETTINGS))) > 10
    other = Workspace(tmp_path / "other")
    curate(source, SETTINGS, other)
    assert pairs(workspace).equals(pairs(other))
    assert ledger(workspace).equals(ledger(other))
    assert whole.rejected["exact_duplicate"] > 0


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are Unicode there")
def test_names_that_are_no_unicode_cost_their_rows(workspace, write_source) -> None:
    """Python spells bytes of a file name that are no UTF-8 as lone surrogates."""
    named, negative = question(1), question(2)
    named["images"] = ["caf\udce9.png"]
    negative["negatives"] = [{"text": "x", "images": ["\ud800.png"]}]
    source = write_source([question(0), named, negative], pictures=range(3))
    scene(1).save(Path(str(source.image_root)) / "caf\udce9.png", format="PNG")
    (file,) = source.paths
    strange = Path(file).with_name("r\udce9.jsonl")
    Path(file).rename(strange)
    strange.write_text(strange.read_text() + "no JSON\n")
    everything = (str(strange.with_name("*.jsonl")),)
    summary = curate(dataclasses.replace(source, paths=everything), SETTINGS, workspace)
    assert summary.rejected == {"unreadable_image": 2}
    assert summary.records_rejected == {"broken_json": 1}
    assert set(ledger(workspace)["file"]) == {r"r\udce9.jsonl"}


broken = st.sampled_from(
    [
        "{",
        "[]",
        '"text"',
        json.dumps({"data_type": "video"}),
        json.dumps({"data_type": "ocr", "images": [], "question": "q", "answer": "a"}),
        json.dumps({"data_type": "instruction", "input": 5, "output": {}}),
        json.dumps({"data_type": "vqa_single", "images": ["../up.png"], "input": "q", "output": "a"}),
        json.dumps({"data_type": "instruction", "input": "\ud800", "output": "\udfff x"}),
        json.dumps({"data_type": "ocr", "images": ["\ud800.png"], "question": "q", "answer": "a"}),
        json.dumps({"data_type": "ocr", "images": ["cut.png"], "question": "q", "answer": "\u0000 "}),
    ]
)
any_record = st.one_of(
    broken,
    st.builds(instruction, st.integers(0, 6)),
    st.builds(question, st.integers(0, 5)),
    st.builds(
        lambda text, answer, group: {
            "data_type": "instruction", "input": text, "output": answer, "group_id": group
        },
        st.text(max_size=60), st.text(max_size=60), st.text(max_size=3),
    ),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_record, min_size=1, max_size=25))
def test_kept_and_rejected_together_are_what_was_read(tmp_path, write_source, records) -> None:
    name = f"corpus{abs(hash(str(records)))}"[:40]
    source = write_source([instruction(99), *records], name=name, pictures=range(4))
    (Path(str(source.image_root)) / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    workspace = Workspace(tmp_path / "home")
    summary = curate(source, SETTINGS, workspace)
    assert missing_records(summary) == 0
    assert missing_pairs(summary) == 0
    lines, kept = ledger(workspace, name), pairs(workspace, name)
    assert summary.records == len(records) + 1
    assert lines.filter(pl.col("stage") == "read").height == sum(summary.records_rejected.values())
    assert kept.height + lines.filter(pl.col("stage") == "curated").height == summary.pairs_in
    places = set(kept.select("line").to_series()) | set(lines["line"])
    assert places == set(range(1, len(records) + 2))
    assert kept["sample_id"].n_unique() == kept.height
    assert set(lines["rule"]) <= set(RULES)
    assert lines["reason"].null_count() == 0


def test_a_picture_of_another_orientation_is_turned(workspace, write_source) -> None:
    source = write_source([question(1)], pictures=[1])
    turned = scene(1).transpose(Image.Transpose.ROTATE_180)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned.save(Path(str(source.image_root)) / "1.png", exif=exif)
    summary = curate(source, SETTINGS, workspace)
    store = ImageStore(**summary.details["images"])
    assert store.table(["reencoded"])["reencoded"].to_pylist() == [True]


def test_a_left_over_of_a_killed_run_is_removed(workspace, write_source) -> None:
    left = workspace.curated("corpus").parent / ".corpus.12345678.partial"
    (left / "shards").mkdir(parents=True)
    curate(write_source([instruction(1)]), SETTINGS, workspace)
    assert os.listdir(workspace.curated("corpus").parent) == ["corpus"]


def test_a_workspace_that_was_moved_finds_its_pictures(workspace, write_source, monkeypatch) -> None:
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(workspace.home))
    source = write_source([question(1), question(2)], pictures=[1, 2])
    summary = curate(source, SETTINGS, workspace)
    assert read_stage(workspace.curated("corpus")) == summary
    assert str(workspace.home) not in (workspace.curated("corpus") / "stage.json").read_text()
    moved = Workspace(workspace.home.with_name("elsewhere"))
    workspace.home.rename(moved.home)
    again = curate(source, SETTINGS, moved)
    assert again.reused
    assert again.details["images"]["path"] == str(moved.images("corpus"))
    assert len(ImageStore(**again.details["images"])) == 2


def test_a_source_is_read_again_where_what_is_read_of_it_changes(workspace, write_source) -> None:
    source = write_source([instruction(number) for number in range(3)])
    curate(source, SETTINGS, workspace)
    unread = replace(source, license="mit", weight=2.0, off_limits=True)
    assert curate(unread, SETTINGS, workspace).reused
    fewer = curate(replace(source, max_rows=2), SETTINGS, workspace)
    assert (fewer.reused, fewer.pairs_out) == (False, 2)
    assert not curate(replace(source, score_range=(0.0, 5.0)), SETTINGS, workspace).reused
