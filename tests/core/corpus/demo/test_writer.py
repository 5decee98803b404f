"""The built-in corpus on disk: the same bytes for the same seed, and the dirt that dirt.json states."""

import csv
import hashlib
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vipolyqwen_core.corpus.demo import write_demo_corpus
from vipolyqwen_core.corpus.demo.dirt import DIRT, KEPT, LINKED, REJECTED, REPAIRED
from vipolyqwen_core.corpus.demo.files import SOURCE_FILES
from vipolyqwen_core.corpus.demo.writer import VERSION
from vipolyqwen_core.corpus.manifest import Format, load_manifest
from vipolyqwen_core.corpus.text import normalise_text

SCALE = 0.08
TEXT_KEYS = {"input", "output", "text1", "text2", "question", "answer"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus", scale=SCALE).parent


@pytest.fixture(scope="module")
def report(corpus: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((corpus / "dirt.json").read_text(encoding="utf-8"))
    return loaded


def planted(corpus: Path, report: dict[str, Any], kind: str) -> list[Any]:
    """The records of a kind of dirt, as they stand in the files; a line that is no JSON stays a string."""
    found = []
    for entry in report["dirt"]:
        if entry["kind"] == kind:
            records = read(corpus / report["sources"][entry["source"]]["file"])
            found += [records[line] for line in entry["lines"]]
    return found


def read(path: Path) -> dict[int, Any]:
    """The records of a file by the number that the ledger gives them."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return dict(enumerate(csv.DictReader(file), start=2))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return dict(enumerate(json.loads(text), start=1))
    return {number: parsed(line) for number, line in enumerate(text.splitlines(), start=1)}


def parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line


def texts(value: Any) -> list[str]:
    """All strings in a record."""
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in values for text in texts(item)]


def test_other_texts_have_another_version(corpus: Path) -> None:
    """Where this fails, raise VERSION and put the new digest here: workspaces keep what has their version."""
    digest = hashlib.sha256()
    for source in SOURCE_FILES:
        digest.update((corpus / source.path).read_bytes())
    assert (VERSION, digest.hexdigest()[:16]) == (4, "a6644c0031036a0e")


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(corpus: Path, tmp_path: Path) -> None:
    again = write_demo_corpus(tmp_path / "again", scale=SCALE).parent
    assert files(again) == files(corpus)
    other = write_demo_corpus(tmp_path / "other", seed=1, scale=SCALE).parent
    assert files(other)["ocr/samples.jsonl"] != files(corpus)["ocr/samples.jsonl"]


def test_a_corpus_that_stands_is_left_alone_and_another_one_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    manifest = write_demo_corpus(folder, scale=SCALE)
    (folder / "mark").touch()
    assert write_demo_corpus(folder, scale=SCALE) == manifest
    assert (folder / "mark").exists()
    write_demo_corpus(folder, seed=5, scale=SCALE)
    assert not (folder / "mark").exists()


def test_a_corpus_whose_report_was_cut_short_is_written_anew(tmp_path: Path) -> None:
    report = write_demo_corpus(tmp_path / "corpus", scale=SCALE).with_name("dirt.json")
    whole = report.read_bytes()
    report.write_bytes(whole[:50])
    write_demo_corpus(tmp_path / "corpus", scale=SCALE)
    assert report.read_bytes() == whole


@pytest.mark.parametrize("scale", [0, -1.0])
def test_a_scale_that_is_not_positive_is_refused(scale: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scale must be above 0"):
        write_demo_corpus(tmp_path / "corpus", scale=scale)


def test_the_manifest_names_files_that_exist(corpus: Path) -> None:
    sources = load_manifest(corpus / "manifest.yaml").sources
    assert {source.format for source in sources} == {Format.STS_TABLE, Format.ALPACA, Format.OWNER_JSONL}
    for source in sources:
        assert all(Path(path).is_file() for path in source.paths)
        assert source.image_root is None or Path(source.image_root).is_dir()


def test_every_picture_is_there_except_where_it_is_planted_that_it_is_not(
    corpus: Path, report: dict[str, Any]
) -> None:
    absent = 0
    for source in report["sources"].values():
        for record in read(corpus / source["file"]).values():
            if isinstance(record, dict):
                paths = [path.replace("\\", "/") for path in record.get("images", [])]
                absent += any(not (corpus / "images" / path).is_file() for path in paths)
    missing, outside = planted(corpus, report, "missing_picture"), planted(corpus, report, "path_leaves_root")
    inside = [r for r in outside if not (corpus / "images" / r["images"][0]).is_file()]
    assert absent == len(missing) + len(inside)


def test_the_report_counts_every_planted_row(corpus: Path, report: dict[str, Any]) -> None:
    amounts = {(dirt.kind, source): amount for dirt in DIRT for source, amount in dirt.amounts.items()}
    stated = {(entry["kind"], entry["source"]): entry["count"] for entry in report["dirt"]}
    assert stated == amounts
    for entry in report["dirt"]:
        assert entry["count"] == len(set(entry["lines"]))
        assert (entry["rule"] is not None) == (entry["outcome"] == REJECTED)
        assert entry["outcome"] in (REJECTED, REPAIRED, KEPT, LINKED)


def test_records_are_clean_pairs_and_rejected_ones(corpus: Path, report: dict[str, Any]) -> None:
    for name, source in report["sources"].items():
        rejected = sum(e["count"] for e in report["dirt"] if e["source"] == name and e["outcome"] == REJECTED)
        assert len(read(corpus / source["file"])) == source["records"] == source["clean_pairs"] + rejected


def test_copies_name_the_earlier_rows_that_they_copy(corpus: Path, report: dict[str, Any]) -> None:
    kinds = {dirt.kind for dirt in DIRT if dirt.copies}
    for entry in report["dirt"]:
        assert len(entry["originals"]) == (entry["count"] if entry["kind"] in kinds else 0)
        records = read(corpus / report["sources"][entry["source"]]["file"])
        for line, original in zip(entry["lines"], entry["originals"], strict=bool(entry["originals"])):
            assert original < line
            if entry["kind"] == "exact_duplicate":
                assert records[original] == records[line]


def test_exact_duplicates_repeat_a_row(corpus: Path, report: dict[str, Any]) -> None:
    for name, source in report["sources"].items():
        lines = [json.dumps(record, sort_keys=True) for record in read(corpus / source["file"]).values()]
        surplus = sum(count - 1 for count in Counter(lines).values())
        expected = [
            e["count"] for e in report["dirt"] if (e["kind"], e["source"]) == ("exact_duplicate", name)
        ]
        assert surplus == sum(expected)


def test_duplicates_across_sources_repeat_a_row_in_another_format(
    corpus: Path, report: dict[str, Any]
) -> None:
    table = read(corpus / report["sources"]["demo_text_pairs"]["file"]).values()
    pairs = {(row["sentence1"], row["sentence2"]) for row in table}
    copies = planted(corpus, report, "duplicate_in_another_source")
    assert copies
    for record in copies:
        first, second = (value for key, value in record.items() if key in TEXT_KEYS)
        assert (first, second) in pairs


def test_near_duplicates_are_nearly_a_row_of_their_group(corpus: Path, report: dict[str, Any]) -> None:
    for name in ("demo_text_pairs", "demo_instructions"):
        records = read(corpus / report["sources"][name]["file"])
        (entry,) = (e for e in report["dirt"] if (e["kind"], e["source"]) == ("near_duplicate", name))
        for line in entry["lines"]:
            copy = records[line]
            rest = [r for n, r in records.items() if n < line and isinstance(r, dict)]
            likeness = [
                min(jaccard(copy[k], r[k]) for k in copy if k in ("sentence1", "sentence2", "output"))
                for r in rest
            ]
            assert max(likeness) > 0.85
            assert copy not in rest


def jaccard(a: str, b: str) -> float:
    first, second = ({text.lower()[i : i + 5] for i in range(len(text) - 4)} for text in (a, b))
    return len(first & second) / max(1, len(first | second))


def test_broken_lines_are_no_json(corpus: Path, report: dict[str, Any]) -> None:
    broken = planted(corpus, report, "broken_json")
    assert broken
    assert all(isinstance(line, str) for line in broken)


def test_empty_answers_are_empty(corpus: Path, report: dict[str, Any]) -> None:
    records = planted(corpus, report, "empty_answer")
    for record in records:
        answers = [record[key] for key in ("sentence2", "output", "answer", "text2") if key in record]
        assert any(normalise_text(answer) == "" for answer in answers)


def test_scores_out_of_range_are_out_of_range(corpus: Path, report: dict[str, Any]) -> None:
    assert all(not 0 <= float(r["score"]) <= 5 for r in planted(corpus, report, "score_out_of_range"))


@pytest.mark.parametrize(("kind", "surplus"), [("too_many_placeholders", 1), ("too_few_placeholders", -1)])
def test_placeholders_miss_the_pictures(
    kind: str, surplus: int, corpus: Path, report: dict[str, Any]
) -> None:
    for record in planted(corpus, report, kind):
        placeholders = sum(text.count("<image>") for text in texts(record))
        assert (placeholders - len(record["images"])) * surplus > 0


@pytest.mark.parametrize("kind", ["not_nfc", "mojibake", "html_entities"])
def test_texts_to_repair_are_damaged_and_can_be_repaired(
    kind: str, corpus: Path, report: dict[str, Any]
) -> None:
    damaged = planted(corpus, report, kind)
    assert damaged
    for record in damaged:
        assert any(normalise_text(text) != text for text in texts(record))
        for text in texts(record):
            repaired = normalise_text(text)
            assert unicodedata.is_normalized("NFC", repaired)
            assert not set(repaired) & set("Ã&;\u00a0") or kind != "mojibake"


def test_special_tokens_stand_in_texts(corpus: Path, report: dict[str, Any]) -> None:
    for record in planted(corpus, report, "special_tokens"):
        assert any("|>" in text or text.endswith("<ocr>") for text in texts(record))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("truncated_picture", "truncated|Truncated"), ("not_a_picture", "cannot identify")],
)
def test_broken_pictures_do_not_open(kind: str, message: str, corpus: Path, report: dict[str, Any]) -> None:
    for record in planted(corpus, report, kind):
        with pytest.raises(OSError, match=message):
            Image.open(corpus / "images" / record["images"][0]).load()


def test_mislabelled_pictures_are_sound_jpegs(corpus: Path, report: dict[str, Any]) -> None:
    for record in planted(corpus, report, "mislabelled_picture"):
        path = corpus / "images" / record["images"][0]
        with Image.open(path) as image:
            assert path.suffix == ".png"
            assert image.format == "JPEG"
            image.load()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_oversized_pictures_are_small_files(corpus: Path, report: dict[str, Any]) -> None:
    for record in planted(corpus, report, "oversized_picture"):
        path = corpus / "images" / record["images"][0]
        with Image.open(path) as image:
            assert image.width * image.height > 100_000_000
        assert path.stat().st_size < 100_000


def test_paths_out_of_the_root_lead_to_a_picture(corpus: Path, report: dict[str, Any]) -> None:
    for record in planted(corpus, report, "path_leaves_root"):
        path = record["images"][0]
        assert (
            path.startswith("/") or (corpus / "images" / path).resolve() == corpus / "outside" / "photo.png"
        )
