"""Text is brought into one form, for good, and sound text is left alone."""

import unicodedata
from html.entities import codepoint2name

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vipolyqwen_core.contract import Turn
from vipolyqwen_core.corpus import text as text_module
from vipolyqwen_core.corpus.text import (
    compose,
    declared_key,
    normalise_text,
    repair_dialogue,
    repair_placeholders,
)

SENTENCE = "Nước Việt Nam là một, dân tộc Việt Nam là một; sông có thể cạn."


def misread(text: str, encoding: str = "cp1252") -> str:
    """UTF-8 read as Windows-1252; the five bytes without a meaning there are kept, as browsers do."""
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize(
    ("raw", "normalised"),
    [
        ("", ""),
        ("  một   hai\t\tba \u00a0 ", "một hai ba"),
        (
            "dòng một  \r\n\r\n\r\n\r\n  dòng hai\rdòng ba\u2028dòng bốn",
            "dòng một\n\ndòng hai\ndòng ba\ndòng bốn",
        ),
        ("全角\u3000空格", "全角 空格"),
        ("một  hai", "một hai"),
        (" một", "một"),
        ("một ", "một"),
        ("một \nhai", "một\nhai"),
        ("một\n hai", "một\nhai"),
        ("\nmột", "một"),
        ("một\n", "một"),
        ("một\n\nhai ", "một\n\nhai"),
        ("một\ufffchai", "mộthai"),
        ("một\x0bhai\x0cba\x1cbốn\x1dnăm\x1esáu\u2029bảy", "một\nhai\nba\nbốn\nnăm\nsáu\nbảy"),
        ("\u200ea\u200f\u202ab\u202e\u2060\u206fc\ufff9d\ufffb", "abcd"),
        ("a\u1680b\u2000c\u200ad\u202fe\u205ff", "a b c d e f"),
        ("&#128512; &#0128512;", "😀 😀"),
        ("\x93một\x94", "“một”"),  # Windows-1252 read as Latin-1
        ("\ufeffđầu\u200b tệp\u00ad\x00\x07", "đầu tệp"),
        ("a &lt; b &amp;&amp; c &#44; d&nbsp;e &#x1F600;", "a < b && c , d e 😀"),
        ("&amp;lt;p&amp;gt;", "<p>"),
        ("&amp;#38;#x26;AMP;#000038;lt; & &amp;", "< & &"),
        ("?a=1&copy=2 AT&T &notit; &;", "?a=1&copy=2 AT&T &notit; &;"),
        ("👩\u200d🔬 joins", "👩\u200d🔬 joins"),
        ("\ud83d\ude00 pair, lone \ud800", "😀 pair, lone \ufffd"),
        ("<|im_end|> <ocr> <|image_pad|>", "<|im_end|> <ocr> <|image_pad|>"),
    ],
)
def test_each_kind_of_dirt_is_cleaned(raw: str, normalised: str) -> None:
    assert normalise_text(raw) == normalised


def test_both_unicode_forms_of_vietnamese_become_one() -> None:
    assert normalise_text(unicodedata.normalize("NFD", SENTENCE)) == SENTENCE


@pytest.mark.parametrize("text", ["€20", "Âu", "Ông", "3×4", "al minût", "Blue的标志。"])
def test_short_mojibake_of_mojibake_is_read_back(text: str) -> None:
    assert normalise_text(misread(misread(text, "cp1252"), "cp1252")) == text


@pytest.mark.parametrize("text", ["buferių", "bilmədi", "Cənubi"])
def test_letters_of_other_languages_are_read_back_within_a_word(text: str) -> None:
    assert normalise_text(misread(text, "cp1252")) == text


@pytest.mark.parametrize("text", [SENTENCE, "收据的总额是一百二十五元。", "“Déjà vu” – naïve café…"])
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "mac_roman"])
@pytest.mark.parametrize("times", [1, 2])
def test_mojibake_is_read_back(text: str, encoding: str, times: int) -> None:
    broken = text
    for _ in range(times):
        broken = misread(broken, encoding)
    assert normalise_text(broken) == text


@pytest.mark.parametrize(
    "text",
    [
        *("màu đen", "125.000 đồng", "20.000đ", "giá 5 đ.", "Số 5", "đi", "Thành phố", "thể loại kinh dị"),
        *(
            "với",
            "lỗi",
            "hỗn",
            "miễn phí",
            "cổ",
            "một",
            "cũ",
            "a → b",
            "x − 2",
            "Hãy cho",
            "Câu 30",
            "C\u00d9IS",
        ),
    ],
)
def test_short_mojibake_is_read_back(text: str) -> None:
    """Mac Roman reads some of it as letters with marks that no text has, and ftfy leaves some as it is."""
    assert normalise_text(misread(text)) == text
    if not text.isupper():
        assert normalise_text(f"Chữ “{misread(text)}” trong câu.") == f"Chữ “{text}” trong câu."


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp1258"])
@pytest.mark.parametrize(
    "text",
    [
        "Thành phố này là nơi làm việc của gia đình, và nhà ở gần đó.",
        "Là một người thầy, ông vào làng dạy từ năm ấy.",
        "Hàng hóa đã được giao tại nhà",
    ],
)
def test_a_blank_for_a_no_break_space_within_a_letter_splits_no_word(text: str, encoding: str) -> None:
    broken = misread(text, encoding).replace("\u00a0", " ")
    assert normalise_text(broken) == text
    assert normalise_text(" ".join(broken.split())) == text  # the blank behind a word is lost, too


def test_a_blank_within_a_chinese_letter_is_restored() -> None:
    text = "他根据树的年龄增加研究内容。"
    assert normalise_text(misread(text).replace("\u00a0", " ")) == text


def test_a_closing_quote_that_lost_a_byte_is_one() -> None:
    assert normalise_text("â€œcá»• phá»‘â€ vÃ\u00a0 â€œchá»£â€, â€œchÃ¹aâ€") == "“cổ phố” và “chợ”, “chùa”"
    assert normalise_text("he said â€œyesâ€ and left") == "he said “yes” and left"
    assert normalise_text("he said â€œyesâ€\ufffd and left") == "he said “yes” and left"


def test_vietnamese_that_its_own_code_page_garbled_is_read_back() -> None:
    for text in (SENTENCE, "ĐƯỜNG PHỐ HÀ NỘI", "cà phê “sữa đá”…"):
        assert normalise_text(misread(text, "cp1258")) == text


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", ["Thành công là một hành trình", "cà phê ở phố cổ", SENTENCE])
def test_mojibake_within_entities_is_read_back(text: str, encoding: str) -> None:
    """As `htmlentities` of PHP wrote it: a part of a letter is `&nbsp;` or `&shy;`, others have no name."""
    broken = misread(text, encoding)
    names = {chr(code): f"&{name};" for code, name in codepoint2name.items() if code > 127}
    assert normalise_text("".join(names.get(char, char) for char in broken)) == text
    assert normalise_text("".join(f"&#{ord(char)};" for char in broken)) == text


def test_marks_that_a_mac_garbled_are_read_back() -> None:
    assert (
        normalise_text("Italy‚Äôs ‚Äėunity talks‚Äô ‚Äď live ‚Ä¶ 東京")
        == "Italy’s ‘unity talks’ – live … 東京"
    )
    assert normalise_text(misread("cà phê “sữa đá”…", "mac_latin2")) == "cà phê “sữa đá”…"


def test_an_icelandic_letter_in_vietnamese_text_is_vietnamese() -> None:
    assert normalise_text("Ðây là một câu ở Ðà Nẵng") == "Đây là một câu ở Đà Nẵng"
    assert normalise_text("Ðường ði Ðà Nẵng") == "Đường đi Đà Nẵng"
    assert normalise_text("Ðað er á Þingvöllum") == "Ðað er á Þingvöllum"


def test_mojibake_within_sound_text_is_read_back_alone() -> None:
    assert normalise_text(f"Câu hỏi: {misread('tiếng Việt')} “ĐÃ”") == "Câu hỏi: tiếng Việt “ĐÃ”"
    for word in ("老鹰飞", "飞驰而过", "验鹰", "کار"):  # a letter that could be meant stands beside others
        assert normalise_text(f"Đây là từ {misread(word)} trong câu.") == f"Đây là từ {word} trong câu."
    assert normalise_text(f"Đọc LÝ¹ và {misread('tiếng Việt')}") == "Đọc LÝ¹ và tiếng Việt"


@pytest.mark.parametrize(
    "text",
    [
        "“ĐỘNG VẬT HOANG DÃ”.",  # ftfy alone makes `DÔ` of the last two
        "«ĐÃ» «XÃ» «HỘI»",
        "CỘNG HÒA XÃ HỘI CHỦ NGHĨA",
        "LÀNG XÃ…",
        "Årsrapport – 20 °C ± 3 µm, ½ × ¾",
        "«Oui», dit-il à côté d'«elle».",
        "¿Qué? ¡Ñandú!",
        "‚Äpfel‘ und ‚Äußerung‘",
        "x·∫π dx + √π ≈ ∆°",
        "chữ “Ă” và “Ơ”",
        "NESCAFÉ® và NESTLÉ® MILO",
        "LÝ¹ THUYẾT, HÓA VÀ LÝ²",
        "MÙA HÈ³ năm nay",
        "TRÀ·CAFÉ·BÁNH",
        "Năm 2020, là¹² của tỉnh và²² hai nơi khác",
        "«Ya está»—dijo. «Está»… y se fue",
        "der Buchstabe ‚Ä‘",
        "DÃ NGOẠI Ở XÃ NHÀ",
        "Thể tích ô mạng là 123 Å³, mặt đáy 45 Å²",
        "a cell of 123 Å³ and 45 Å²",
        "Ống thép Ø½ và Ø¾ inch",
        "Ø¼ and Ø½ pipes",
        "GEMÜ® valves",
        "add 3×½ cup, 2×²√8 and 4×£5",
        "POKÉ™ bowls",
        "il caffè¹² e Zoë²³",
        "the term ß² of a model",
    ],
)
def test_sound_text_with_suspicious_letters_is_left_alone(text: str) -> None:
    assert normalise_text(text) == text
    assert normalise_text(f"{text} ") == text  # past the quick look, too


DIRTY = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("ÃáºÂâ€™ \t\n\r\u00a0\u200b&;#<amp\u0301\u0323\ud800\x85éđ"),
    ),
    max_size=60,
)


def misread_dirt(text: str) -> str:
    return misread(text.encode("utf-8", "replace").decode())


@given(DIRTY | DIRTY.map(misread_dirt))
@example("&amp;amp;lt;")
@example("&am&#112;;")
@example("Ã&nbsp;")
@example("a\u200b\u0301")
@example("á»»")
@example("&#38;#38;")
@example(" \n \n \n ")
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert once == once.strip()
    assert unicodedata.is_normalized("NFC", once)
    assert not any(dirt in once for dirt in ("\n\n\n", "  ", "\r", "\x00"))
    once.encode()  # can be written


@pytest.mark.parametrize(
    "hostile",
    [
        "&" * 300 + "#35;38;" * 300,  # each round makes an entity of what the last one left
        "&#894" * 300 + ";",  # a Greek question mark is composed to a semicolon
        "&am" * 300 + "&#8203;" + "p;" * 300,  # so is what an invisible character kept apart
    ],
)
def test_entities_within_entities_end_after_a_few_rounds(
    hostile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []
    unwrap = text_module._normalise_once
    monkeypatch.setattr(text_module, "_normalise_once", lambda text: rounds.append(text) or unwrap(text))
    once = normalise_text(hostile)
    assert len(rounds) < 20
    assert normalise_text(once) == once


MARKS = "\u0301\u0323\u0344\u0f71\u0f73\u3099\u20dd"


@given(st.text(st.sampled_from(MARKS + "aếư\u1100\u1161👍—"), min_size=40, max_size=90))
def test_composing_is_nfc(text: str) -> None:
    assert compose(text) == unicodedata.normalize("NFC", text)


def test_marks_are_in_order_before_python_sorts_them_by_insertion(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    nfc = unicodedata.normalize
    monkeypatch.setattr(
        unicodedata, "normalize", lambda form, text: (form == "NFC" and given.append(text)) or nfc(form, text)
    )
    assert compose("a" + "\u0301\u0323" * 100) == "ạ" + "\u0323" * 99 + "\u0301" * 100
    assert given == ["a" + "\u0323" * 100 + "\u0301" * 100]


@pytest.mark.parametrize(
    ("texts", "num_images", "first_user", "repaired"),
    [
        (["Có gì?"], 1, 0, ["<image>Có gì?"]),
        (["Có gì? <image>"], 1, 0, ["Có gì? <image>"]),
        (["So <image> với?"], 2, 0, ["<image>So <image> với?"]),
        (
            ["system", "hỏi", "đáp", "hỏi nữa <image>"],
            2,
            1,
            ["system", "<image>hỏi", "đáp", "hỏi nữa <image>"],
        ),
        (["<image> là thẻ của HTML"], 0, 0, ["<image> là thẻ của HTML"]),
        ([""], 2, 0, ["<image><image>"]),
    ],
)
def test_missing_placeholders_go_in_front_of_the_first_user_text(
    texts: list[str], num_images: int, first_user: int, repaired: list[str]
) -> None:
    assert repair_placeholders(texts, num_images, first_user) == repaired
    assert repair_placeholders(repaired, num_images, first_user) == repaired


def test_a_declared_key_is_none_where_it_is_empty_and_else_fit_for_comparison() -> None:
    """An adapter gives an empty text where a record has none: all its rows would be one group."""
    assert [declared_key(key) for key in (None, "", " ")] == [None] * 3
    assert [declared_key(key) for key in ("7", "hoa\u0301", "\ud800")] == ["7", "hoá", "?"]


def test_more_placeholders_than_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="2 placeholders <image> for 1 pictures"):
        repair_placeholders(["<image>", "<image>"], 1)


def test_a_dialogue_is_repaired_in_its_first_user_turn() -> None:
    history = (Turn("system", "Ngắn gọn."), Turn("user", "Đây là gì?"), Turn("assistant", "Con mèo."))
    text, repaired = repair_dialogue("Màu gì? <image>", 2, history)
    assert text == "Màu gì? <image>"
    repaired_turn = Turn("user", "<image>Đây là gì?")
    assert repaired == (history[0], repaired_turn, history[2])
    longer = (*history, Turn("user", "Ở đâu?"), Turn("assistant", "Đây."))
    assert repair_dialogue("Màu gì?", 1, longer)[1] == (longer[0], repaired_turn, *longer[2:])
    assert repair_dialogue("Màu gì?", 1, history[:1]) == ("<image>Màu gì?", history[:1])
    assert repair_dialogue("Màu gì?", 1) == ("<image>Màu gì?", None)


def test_an_ampersand_that_was_escaped_often_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(given: str) -> str:
        passes.append(given)
        return normalise_once(given)

    normalise_once = text_module._normalise_once
    monkeypatch.setattr(text_module, "_normalise_once", counted)
    assert normalise_text("a &" + "amp;#38;" * 500 + "lt; b") == "a < b"
    assert len(passes) <= 3
