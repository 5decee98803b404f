"""The language of a pair: vi, en, zh or other, detected and never believed.

Writing systems decide first, since they are quick and certain: Chinese characters, letters that only
Vietnamese has, kana, Hangul, Cyrillic. Vietnamese typed without diacritics is told by its syllables, which
follow a strict pattern. What is left is Latin text, and lingua judges that. Text without words (numbers,
formulas, codes) is `other`. The same text always gives the same answer.

Whole columns are judged at once, by expressions; lingua alone takes text by text.
"""

import re
from collections.abc import Callable
from functools import cache

import polars as pl
from lingua import Language, LanguageDetector, LanguageDetectorBuilder

from quality.plain_vietnamese import ALSO_ENGLISH, PLAIN_SYLLABLE, is_plain_vietnamese
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER

VI, EN, ZH, OTHER = "vi", "en", "zh", "other"
LANGUAGES = (VI, EN, ZH, OTHER)

READ_CHARS = 400
"""So much of a text is read; more does not change the answer and costs time."""

LATIN_NEIGHBOURS = (
    Language.FRENCH,
    Language.GERMAN,
    Language.SPANISH,
    Language.PORTUGUESE,
    Language.ITALIAN,
    Language.DUTCH,
    Language.INDONESIAN,
)
"""Languages that English and Vietnamese are told apart from; all of them count as `other`."""

HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]"
KANA_OR_HANGUL = r"[\u3040-\u30ff\uac00-\ud7af\u1100-\u11ff]"
BEYOND_LATIN = r"[\u0370-\u1dff\u2e80-\uffff\U00010000-\U0010ffff]"
LATIN = r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]"
LETTER = r"[\p{L}\p{Nl}\p{No}]"
ONLY_VIETNAMESE = r"[ăđơưĂĐƠƯ\u1ea0-\u1ef9]"
MARKED_WORD = rf"[A-Za-z]*[À-ỹ]{LETTER}*"
NOT_WORDS = r"https?://\S+|\\[A-Za-z]+|\\.|[A-Za-z]*\d[A-Za-z\d]*|" + re.escape(IMAGE_PLACEHOLDER)
WORD = LETTER + "{2,}"
VIETNAMESE_SHARE = 0.3
ONLY_ENGLISH = frozenset(
    """
    and are at be by for from have his how it not that the they this to were what when where which who why
    will with would you your
    """.split()  # noqa: SIM905
)
"""Words that no neighbour shares. Two of them settle most English texts without lingua, 20 times as fast."""


def detect_languages(texts: pl.Series) -> pl.Series:
    """The language of each text: vi, en, zh or other."""
    text = pl.col("text")
    rows = pl.DataFrame({"text": texts}, schema={"text": pl.String}).with_row_index("row")
    rows = rows.with_columns(text=text.str.slice(0, READ_CHARS).str.replace_all(NOT_WORDS, " "))
    rows = rows.with_columns(
        ascii=text.str.len_bytes() == text.str.len_chars(),
        words=text.str.count_matches(WORD),
        language=pl.lit(None, dtype=pl.String),
    )
    rows = _judged(rows, ~pl.col("ascii") & text.str.contains(BEYOND_LATIN), _by_script)
    rows = _judged(rows, pl.col("words") == 0, lambda some: pl.repeat(OTHER, some.height, eager=True))
    rows = _judged(rows, ~pl.col("ascii") & text.str.contains(ONLY_VIETNAMESE), _by_marks)
    rows = _judged(rows, pl.lit(True), _by_known_words)
    return _judged(rows, pl.lit(True), _by_lingua)["language"]


def _judged(rows: pl.DataFrame, chosen: pl.Expr, judge: Callable[[pl.DataFrame], pl.Series]) -> pl.DataFrame:
    """The rows, with what the judge says of those chosen that have no language yet; null: it cannot say."""
    some = rows.filter(pl.col("language").is_null() & chosen)
    if some.is_empty():
        return rows
    return rows.with_columns(rows["language"].scatter(some["row"], judge(some)))


def _by_script(rows: pl.DataFrame) -> pl.Series:
    """The language where the writing system says it; null: Latin letters prevail, or no letters at all."""
    patterns = {"han": HAN, "kana_or_hangul": KANA_OR_HANGUL, "latin": LATIN, "letters": LETTER}
    counts = rows.select(
        pl.col("text").str.count_matches(pattern).cast(pl.Int64).alias(name)
        for name, pattern in patterns.items()
    )
    han, kana_or_hangul, latin, letters = (pl.col(name) for name in patterns)
    foreign = letters - han - latin  # kana and Hangul among them
    asian = (kana_or_hangul > 0) & (kana_or_hangul >= 0.1 * han) & (2 * (han + kana_or_hangul) >= latin)
    chinese = (han > 0) & (3 * han >= latin)  # a Chinese character says about as much as three letters
    return counts.select(
        pl.when(asian)
        .then(pl.lit(OTHER))
        .when(chinese)
        .then(pl.lit(ZH))
        .when(foreign > latin)
        .then(pl.lit(OTHER))
    ).to_series()


def _by_marks(rows: pl.DataFrame) -> pl.Series:
    """Vietnamese where enough words bear marks."""
    marked = pl.col("text").str.count_matches(MARKED_WORD)
    return rows.select(pl.when(marked >= VIETNAMESE_SHARE * pl.col("words")).then(pl.lit(VI))).to_series()


def _by_known_words(rows: pl.DataFrame) -> pl.Series:
    """Vietnamese by ASCII words that are its syllables without marks; English by words of its own.

    English fails as Vietnamese at `is`, `of`, `what`.
    """
    words = rows.select("row", "ascii", word=pl.col("text").str.extract_all(WORD)).explode("word")
    words = words.with_columns(pl.col("word").str.to_lowercase())
    known = words.select(pl.col("word").unique()).with_columns(
        syllable=pl.col("word").str.contains(PLAIN_SYLLABLE),
        also_english=pl.col("word").is_in(sorted(ALSO_ENGLISH)),
        english=pl.col("word").is_in(sorted(ONLY_ENGLISH)),
    )
    counts = (
        words.join(known, on="word", how="left", maintain_order="left")
        .group_by("row", maintain_order=True)
        .agg(
            pl.col("ascii").first(),
            pl.col("syllable", "english").sum(),
            also_english=(pl.col("syllable") & pl.col("also_english")).sum(),
            words=pl.len(),
        )
        # counts are unsigned, and are subtracted
        .with_columns(pl.col("syllable", "also_english", "english", "words").cast(pl.Int64))
    )
    count = pl.col("words")
    plain = pl.col("ascii") & is_plain_vietnamese(count, pl.col("syllable"), pl.col("also_english"))
    english = pl.col("english") >= pl.max_horizontal(pl.lit(2.0), ENGLISH_SHARE * count)
    return counts.select(pl.when(plain).then(pl.lit(VI)).when(english).then(pl.lit(EN))).to_series()


def _by_lingua(rows: pl.DataFrame) -> pl.Series:
    """What lingua says. So few ASCII words could be any language's: there, only vi and en are weighed."""
    words = rows.select(pl.col("text").str.extract_all(WORD).list.join(" ")).to_series()
    short = rows.select(pl.col("ascii") & (pl.col("words") <= SHORT_WORDS)).to_series()
    detected = [
        (_short_detector() if few else _detector()).detect_language_of(text)
        for text, few in zip(words, short, strict=True)
    ]
    return pl.Series([LANGUAGE_OF.get(language, OTHER) for language in detected], dtype=pl.String)


LANGUAGE_OF: dict[Language | None, str] = {Language.VIETNAMESE: VI, Language.ENGLISH: EN}
ENGLISH_SHARE = 0.08
SHORT_WORDS = 5


@cache
def _detector() -> LanguageDetector:
    return LanguageDetectorBuilder.from_languages(
        Language.ENGLISH, Language.VIETNAMESE, *LATIN_NEIGHBOURS
    ).build()


@cache
def _short_detector() -> LanguageDetector:
    return LanguageDetectorBuilder.from_languages(Language.ENGLISH, Language.VIETNAMESE).build()
