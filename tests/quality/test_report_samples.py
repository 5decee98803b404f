"""Rows of the data report: rejected ones are shown as their source has them, copies beside what they copy."""

import polars as pl

from quality.curate import curate
from quality.report_samples import beside, cut, near_copies, rejected_samples
from tests.quality.conftest import instruction, question, sentence
from vipolyqwen_core.config import CurationSettings


def test_long_texts_are_cut_by_characters_and_lines() -> None:
    assert cut("a\nb") == "a\nb"
    assert cut("x" * 700) == "x" * 600 + " …"
    assert cut("a\n" * 30).count("\n") == 11


def test_long_texts_that_differ_late_are_cut_to_where_they_do() -> None:
    same = "".join(f"line {number}\n" for number in range(100))
    left, right = beside(same + "one", same + "two")
    assert left.startswith("… ")
    assert (left[-4:], right[-4:], left[:-3] == right[:-3]) == ("\none", "\ntwo", True)
    assert beside("one" + same, "two" + same) == (cut("one" + same), cut("two" + same))


def test_rejected_rows_are_shown_with_text_and_picture(workspace, write_source) -> None:
    records = [question(0), {**question(1), "output": ""}, {**question(2), "images": ["gone.png"]}, "{", "["]
    for name in ("one", "two"):
        curate(write_source(records, name=name, pictures=range(3)), CurationSettings(), workspace)
    ledgers = [pl.scan_parquet(workspace.curated(name) / "ledger.parquet") for name in ("one", "two")]
    shown = rejected_samples(pl.concat(ledgers), workspace)
    by_rule = {(row["rule"], row["source"], row["line"]): row for row in shown}
    assert set(by_rule) == {
        ("broken_json", "one", 4), ("broken_json", "two", 4), ("broken_json", "one", 5),
        ("empty_target", "one", 2), ("empty_target", "two", 2),
        ("missing_image", "one", 3), ("missing_image", "two", 3),
    }  # fmt: skip
    assert by_rule["empty_target", "one", 2]["texts"] == {"query": question(1)["input"], "target": ""}
    assert len(by_rule["empty_target", "one", 2]["pictures"]) == 1
    assert by_rule["missing_image", "one", 3]["pictures"] == []
    assert by_rule["broken_json", "one", 4]["texts"] == {}


def test_a_picture_that_is_larger_than_the_settings_allow_is_not_opened_for_the_report(
    workspace, write_source
) -> None:
    curate(write_source([question(0)], pictures=range(1)), CurationSettings(max_image_pixels=1), workspace)
    (shown,) = rejected_samples(pl.scan_parquet(workspace.curated("corpus") / "ledger.parquet"), workspace)
    assert (shown["rule"], shown["pictures"]) == ("too_many_pixels", [])


def test_what_a_source_has_elsewhere_now_is_not_shown(workspace, write_source) -> None:
    records = [instruction(0), {**instruction(1), "output": ""}]
    curate(write_source(records), CurationSettings(), workspace)
    write_source([instruction(2), {**instruction(3), "output": ""}])
    (shown,) = rejected_samples(pl.scan_parquet(workspace.curated("corpus") / "ledger.parquet"), workspace)
    assert (shown["rule"], shown["texts"]) == ("empty_target", {})


def test_near_copies_stand_beside_the_row_that_stays(workspace, write_source) -> None:
    long = sentence(3, 30)
    records = [{**instruction(1), "input": long}, {**instruction(1), "input": long + "!"}, instruction(2)]
    curate(write_source(records), CurationSettings(), workspace)
    written = workspace.curated(".other.1-2.abc.partial")  # another source is being curated
    written.mkdir()
    (written / "pairs.parquet").write_bytes(b"PAR1")
    (copy,) = near_copies(pl.scan_parquet(workspace.curated("corpus") / "ledger.parquet"), workspace)
    assert (copy["line"], copy["source"]) == (1, "corpus")
    (_, dropped, stays), (_, same, _) = copy["texts"]
    assert dropped == [(long, False)]
    assert stays == [(long, False), ("!", True)]
    assert same == [(instruction(1)["output"], False)]
