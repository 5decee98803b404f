"""Detection of languages."""

import unicodedata

import polars as pl
import pytest

from quality.language import detect_languages


def language_of(text: str) -> str:
    return str(detect_languages(pl.Series([text]))[0])


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hà Nội là thủ đô của nước Việt Nam.", "vi"),
        ("Đúng", "vi"),
        ("toi muon mua mot chiec xe may mau do", "vi"),
        ("dong vat", "vi"),
        ("xin chao", "vi"),
        ("cam on ban", "vi"),
        ("Ke ten ba loai hoa", "vi"),
        ("cut it", "en"),
        ("Two men on boat", "en"),
        ("The train sits at", "en"),
        ("Which colour is the largest bar?", "en"),
        ("The poet Nguyễn Du wrote the Tale of Kieu, which is known to every reader in the country.", "en"),
        ("hello", "en"),
        ("图中最大的柱子是什么颜色？", "zh"),
        ("请介绍一下 Python 语言", "zh"),
        ("没有", "zh"),
        ("请打开 Microsoft Word 文档并保存", "zh"),
        ("これは日本語の文章です", "other"),
        ("안녕하세요 세계", "other"),
        ("Привет, как дела?", "other"),
        ("Bonjour tout le monde, comment allez-vous aujourd'hui ?", "other"),
        ("12.50 + 3 = 15.50", "other"),
        (r"$\frac{a}{b} + \sqrt{x^2}$", "other"),
        ("x = 2y + z", "other"),
        ("<image>", "other"),
        ("", "other"),
    ],
)
def test_language_of_a_text(text: str, language: str) -> None:
    assert language_of(text) == language


def without_marks(text: str) -> str:
    parts = unicodedata.normalize("NFD", text.replace("đ", "d").replace("Đ", "D"))
    return "".join(part for part in parts if not unicodedata.combining(part))


def test_vietnamese_is_known_with_and_without_its_marks(shared_data) -> None:
    import json

    lines = (
        (shared_data / "alpaca_vi" / "vi_alpaca_reduced_11.jsonl").read_text(encoding="utf-8").splitlines()
    )
    texts = [f"{row['prompt']} {row['response']}" for row in map(json.loads, lines[:300])]
    plain = [without_marks(text) for text in texts]
    assert detect_languages(pl.Series(texts)).to_list().count("vi") >= 297
    assert detect_languages(pl.Series(plain)).to_list().count("vi") >= 285


def test_the_picture_placeholder_is_no_word() -> None:
    assert language_of("<image> 3 + 4") == "other"
    assert language_of("<image><image> Bức tranh nào có nhiều hình tròn hơn?") == "vi"


@pytest.mark.parametrize(
    ("words", "marked", "plain", "english"),
    [
        (2, 0.95, 0.90, 0.985),
        (3, 0.975, 0.90, 0.99),
        (4, 0.985, 0.95, 0.985),
        (6, 0.99, 0.96, 0.985),
        (10, 0.99, 0.97, 0.99),
    ],
)
def test_short_texts_are_known(shared_data, words: int, marked: float, plain: float, english: float) -> None:
    """The first words of real sentences; the shares are a little below what was measured."""
    import csv

    def starts(texts: list[str]) -> list[str]:
        cut = [" ".join(text.split()[:words]) for text in texts if len(text.split()) >= words]
        return [
            text
            for text in dict.fromkeys(cut)
            if any(len(word) > 1 and word.isalpha() for word in text.split())
        ][:600]

    def share(texts: list[str], language: str) -> float:
        return detect_languages(pl.Series(texts)).to_list().count(language) / len(texts)

    lines = (shared_data / "vnpara" / "vnPara" / "Sentences1.txt").read_text(
        encoding="utf-8", errors="replace"
    )
    vietnamese = starts(lines.replace("_", " ").splitlines())
    with (shared_data / "stsb_multi_mt" / "stsb-en-train.csv").open(encoding="utf-8") as file:
        sentences = starts([row[0] for row in csv.reader(file)])
    found = (
        share(vietnamese, "vi"),
        share([without_marks(text) for text in vietnamese], "vi"),
        share(sentences, "en"),
    )
    assert all(got >= least for got, least in zip(found, (marked, plain, english), strict=True)), found


def test_a_column_gives_what_each_text_gives_alone() -> None:
    texts = [
        "What is the total of this bill?",
        "",
        "Tổng cộng là bao nhiêu",
        "总金额是多少",
        "12 + 3",
        "ノート",
    ] * 3
    assert detect_languages(pl.Series(texts)).to_list() == [language_of(text) for text in texts]
    assert detect_languages(pl.Series([], dtype=pl.String)).to_list() == []
