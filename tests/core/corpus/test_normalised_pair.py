"""A pair as tables hold it: every text and key in one form, every picture under its side."""

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.hashing import pair_hashes
from vipolyqwen_core.corpus.normalised_pair import normalise_pair
from vipolyqwen_core.corpus.readers import RawPair
from vipolyqwen_core.corpus.readers.records import RawSide


def test_each_text_and_key_is_normalised_and_each_side_has_its_pictures() -> None:
    raw = RawPair(
        task=Task.OCR,
        query=" a  b ",
        target="t&amp;u",
        query_images=("q.png",),
        target_images=("t.png",),
        history=(Turn("user", "x\r\ny"),),
        score=0.5,
        negatives=(RawSide("n ", ("one.png", "two.png")), RawSide("m", ())),
        group_id=" e\u0302 ",
        positive_key=" ",
    )
    ids = [["q"], ["t"], ["one", "two"], []]
    pair = normalise_pair(raw)
    assert pair.columns(ids) == {
        "task": "ocr",
        "query": "a b",
        "query_images": ["q"],
        "history": [{"role": "user", "text": "x\ny"}],
        "target": "t&u",
        "target_images": ["t"],
        "score": 0.5,
        "negatives": [{"text": "n", "images": ["one", "two"]}, {"text": "m", "images": []}],
        "group_id": "ê",
        "positive_key": None,
    }
    assert pair.hashes(ids) == pair_hashes(Task.OCR, "a b", "t&u", ["q"], ["t"], [Turn("user", "x\ny")], 0.5)


def test_what_a_pair_has_not_is_null() -> None:
    columns = normalise_pair(RawPair(Task.INSTR, "q", "t")).columns([[], []])
    assert [columns[name] for name in ("history", "negatives", "score", "group_id")] == [None] * 4
