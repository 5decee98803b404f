"""The dry run of sources: what it counts, and that it names what the factory would reject."""

import gc
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from orchestration import sources_check
from orchestration.factory import check_sources
from orchestration.sources_check import _print_reading, backbone_for_reading, print_sources, read
from vipolyqwen_core.config import CurationSettings, ProcessingSettings, Recipe
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Format, Manifest, Source
from vipolyqwen_core.workspace import Workspace


def shop(folder: Path) -> Source:
    """Pictures of the folder, and questions about them in its files."""
    return Source(
        name="shop",
        format=Format.IMAGE_QA,
        task=Task.VQA_SINGLE,
        paths=(str(folder / "data*.jsonl"),),
        image_root=str(folder),
    )


def test_records_and_pictures_that_would_be_rejected_are_counted(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        {"image": path, "question": "?", "answer": "a"} for path in ("a.png", "b.png", "../c.png", "b.png")
    ]
    lines = [*map(json.dumps, rows), "{", json.dumps({"image": "a.png", "question": "?"})]
    (tmp_path / "data [vi].jsonl").write_text("\n".join(lines), encoding="utf-8")
    reading = read(shop(tmp_path), CurationSettings())
    assert (reading.records, reading.pairs) == (6, 4)
    assert reading.rejects == {"broken_json": 1, "missing_field": 1}
    assert reading.lost == {"missing_image": 1, "path_leaves_root": 1}
    console = Console(record=True, width=200, file=io.StringIO())
    _print_reading(reading, console)
    text = console.export_text()
    assert "3 picture paths: 2 cannot be read" in text
    assert "data [vi].jsonl:5 broken_json" in text
    assert "1 x missing_image: data [vi].jsonl:2 'b.png': there is no such file below the image root" in text


def test_a_picture_in_the_place_of_its_path_is_not_printed(tmp_path: Path) -> None:
    rows = [{"image": start + "A" * 100_000, "question": "?", "answer": "a"} for start in ("data:", "")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = io.StringIO()
    _print_reading(read(shop(tmp_path), CurationSettings()), Console(width=400, file=file))
    assert "2 x unreadable_image: data.jsonl:1 'data:AAA" in file.getvalue()
    assert len(file.getvalue()) < 1000


def test_the_tiny_backbone_is_read_elsewhere_where_only_one_of_other_texts_is_there(tmp_path: Path) -> None:
    (tmp_path / "backbones" / "tiny-0123").mkdir(parents=True)
    with backbone_for_reading("tiny", Workspace(tmp_path)) as backbone:
        assert (Path(backbone) / "tokenizer.json").is_file()
    assert [path.name for path in (tmp_path / "backbones").iterdir()] == ["tiny-0123"]


def test_a_backbone_without_a_tokenizer_is_no_sources_fault(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    source = Source(name="fine", format=Format.ALPACA, task=Task.INSTR, paths=(str(tmp_path / "*.jsonl"),))
    recipe = Recipe(name="bare", backbone=str(tmp_path))
    with pytest.raises(ValueError, match=r"no tokenizer in"):
        print_sources(Manifest(sources=(source,)), recipe, Workspace(tmp_path), Console(file=io.StringIO()))


def test_what_a_corpus_holds_is_printed_as_text(tmp_path: Path) -> None:
    """A name in brackets is no style, and bytes for a terminal do not reach it."""
    (tmp_path / "[bold].jsonl").write_text('{"instruction": "a", "output": "b"}\n\x1b[2J [red]\n')
    source = Source(name="odd", format=Format.ALPACA, task=Task.INSTR, paths=(str(tmp_path / "*.jsonl"),))
    file = io.StringIO()
    _print_reading(read(source, CurationSettings(min_chars=10)), Console(width=200, file=file))
    assert "[bold].jsonl:2 broken_json" in file.getvalue()
    assert "query_too_short: [bold].jsonl:1" in file.getvalue()
    assert "(\ufffd[2J [red])" in file.getvalue()


def test_a_file_s_name_gives_the_terminal_no_orders(tmp_path: Path, tiny_backbone: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"image": name, "question": "Gì?", "answer": "a"} for name in ("a.png", "b.png")]
    rows += [
        {"image": "a.png", "question": "Gì?", "answer": ""},
        {"image": "a.png", "question": "<image>" * 2},
    ]
    rows[3] |= {"answer": "b"}
    (tmp_path / "data\x1b]0;x\x07[b].jsonl").write_text("\n".join([*map(json.dumps, rows), "{"]))
    processing = ProcessingSettings(min_pixels=28 * 28, max_pixels=28 * 28, max_tokens=3)
    file = io.StringIO()
    for settings in (ProcessingSettings(), processing):
        recipe = Recipe(name="t", backbone=str(tiny_backbone), processing=settings)
        console = Console(file=file, width=200)
        print_sources(Manifest(sources=(shop(tmp_path),)), recipe, Workspace(tmp_path), console)
    assert not {"\x1b", "\x07"} & set(file.getvalue())
    place = "data\ufffd]0;x\ufffd[b].jsonl:"
    for line in (
        ": {}1",
        "missing_image: {}2",
        "empty_target: {}3",
        "too_many_placeholders: {}4",
        "{}5 broken",
    ):
        assert line.removeprefix(": ").format(place) in file.getvalue()


def test_pictures_of_hard_negatives_are_looked_up(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {
        "image": "a.png",
        "question": "?",
        "answer": "a",
        "negatives": [{"text": "b", "images": ["b.png"]}],
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    keys = {"format": Format.IMAGE_QA, "task": Task.OCR, "image_root": str(tmp_path)}
    reading = read(Source(name="n", paths=(str(tmp_path / "a.jsonl"),), **keys), CurationSettings())
    assert reading.lost == {"missing_image": 1}


def test_pairs_that_the_rules_for_rows_would_reject_are_counted(tmp_path: Path) -> None:
    rows = [{"instruction": "Kể một câu chuyện", "output": output} for output in ("&nbsp; ", "Ngày xưa", "")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = Source(
        name="tales", format=Format.ALPACA, task=Task.INSTR, paths=(str(tmp_path / "data.jsonl"),)
    )
    reading = read(source, CurationSettings(min_chars=10))
    assert (reading.records, reading.pairs) == (3, 3)
    assert reading.refused == {"empty_target": 2, "target_too_short": 1}
    console = Console(record=True, width=200, file=io.StringIO())
    _print_reading(reading, console)
    assert "2 of the first 3 pairs would be rejected as empty_target: data.jsonl:1" in console.export_text()


def test_pairs_that_tagging_would_reject_are_counted(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    turns = [{"role": role, "content": "<image> gì đây?"} for role in ("user", "assistant", "user")]
    dialogue = {"messages": [*turns, {"role": "assistant", "content": "Tô phở"}], "images": ["a.png"]}
    (tmp_path / "data.json").write_text(json.dumps([dialogue]))
    asked = {"image": "a.png", "answer": "a"}
    rows = [
        asked | {"question": "<image>?"},
        asked | {"question": "<image> &lt;image&gt;?"},
        asked | {"question": "<image><image>?", "answer": ""},  # which a rule for rows rejects before
        asked | {"question": "?", "negatives": ["<image>", {"text": "<image>" * 2, "images": ["a.png"]}]},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reading = read(shop(tmp_path), CurationSettings())
    assert reading.refused == {"empty_target": 1, "too_many_placeholders": 2}
    assert reading.first_refused["too_many_placeholders"] == "data.jsonl:2"
    chats = Source(
        name="chats",
        format=Format.MESSAGES,
        task=Task.VQA_MULTI,
        paths=(str(tmp_path / "data.json"),),
        image_root=str(tmp_path),
    )
    assert read(chats, CurationSettings()).refused == {"too_many_placeholders": 1}


def test_a_pair_whose_pictures_are_too_long_is_named(
    tmp_path: Path, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    row = {"image": ["a.png"] * tiny_processing.max_tokens, "question": "?", "answer": "a"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    recipe = Recipe(name="short", backbone=str(tiny_backbone), processing=tiny_processing)
    file = io.StringIO()
    manifest = Manifest(sources=(shop(tmp_path),))
    assert print_sources(manifest, recipe, Workspace(tmp_path), Console(width=200, file=file))
    assert "data.jsonl:1 would be rejected as pictures_too_long: " in file.getvalue()


def test_a_source_that_would_give_no_pair_is_told(
    tmp_path: Path,
    tiny_backbone: Path,
    tiny_processing: ProcessingSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every path that leaves the root, as in a folder of links, is lost; so is every answer that is empty."""
    recipe = Recipe(name="short", backbone=str(tiny_backbone), processing=tiny_processing)
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")

    def check(*rows: dict[str, object]) -> tuple[bool, str]:
        lines = [json.dumps({"question": "?", "answer": "a", **row}) for row in rows]
        (tmp_path / "data.jsonl").write_text("\n".join(lines))
        console = Console(width=200, file=io.StringIO(), record=True)
        fine = print_sources(Manifest(sources=(shop(tmp_path),)), recipe, Workspace(tmp_path), console)
        return fine, console.export_text()

    lost, empty, whole = {"image": "../a.png"}, {"image": "a.png", "answer": " "}, {"image": "a.png"}
    lost_negative = {"image": "a.png", "negatives": [{"text": "b", "images": ["b.png"]}]}
    with monkeypatch.context() as patched:
        patched.setattr(sources_check, "MAX_JUDGED", 2)
        assert check(empty, empty, whole)[0]  # of those beyond, the rules for rows are not asked
    for rows in ([lost, lost], [empty, empty], [lost, empty], [lost_negative]):
        fine, text = check(*rows)
        assert not fine
        assert "No pair would stay, of 1: shop" in text
        assert "can be read" not in text.splitlines()[-1]
    assert check(lost, empty, whole)[0]


def test_a_source_that_only_the_recipes_dialogue_turns_can_read_is_checked_with_them(tmp_path: Path) -> None:
    roles = ("user", "assistant", "assistant")
    messages = [{"role": role, "content": "Trời mưa."} for role in roles]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": messages}))
    source = Source(
        name="chats", format=Format.MESSAGES, task=Task.INSTR, paths=(str(tmp_path / "data.jsonl"),)
    )
    assert read(source, CurationSettings(dialogue_turns="each")).pairs == 1
    assert check_sources(Manifest(sources=(source,)), "each") == ("chats",)
    with pytest.raises(ValueError, match="does not follow a turn of the user"):
        read(source, CurationSettings(dialogue_turns="last"))
    with pytest.raises(ValueError, match="does not follow a turn of the user"):
        check_sources(Manifest(sources=(source,)), "last")


def test_pictures_inside_rows_are_not_kept(tmp_path: Path) -> None:
    inline = {"bytes": b"inline", "path": None}
    rows = [{"image": inline, "question": "?", "answer": f"a{n}"} for n in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = Source(
        name="packed", format=Format.IMAGE_QA, task=Task.VQA_SINGLE, paths=(str(tmp_path / "a.parquet"),)
    )
    reading = read(source, CurationSettings())
    assert reading.pairs == len(reading.judged) == 9
    held: list[object] = []
    waiting: list[object] = list(vars(reading).values())
    while waiting:
        held += waiting
        waiting = [thing for thing in gc.get_referents(*waiting) if not isinstance(thing, type)]
    assert "a8" in held
    assert b"inline" not in held
