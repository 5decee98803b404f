"""The language of a pair: vi, en, zh or other, detected and never believed.

Writing systems decide first, since they are quick and certain: Chinese characters, letters that only
Vietnamese has, kana, Hangul, Cyrillic. Vietnamese typed without diacritics is told by its syllables, which
follow a strict pattern. What is left is Latin text, and lingua judges that. Text without words (numbers,
formulas, codes) is `other`. The same text always gives the same answer.
"""

import re
from collections.abc import Iterable
from functools import cache

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

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]")
KANA_OR_HANGUL = re.compile(r"[\u3040-\u30ff\uac00-\ud7af\u1100-\u11ff]")
BEYOND_LATIN = re.compile(r"[\u0370-\u1dff\u2e80-\uffff\U00010000-\U0010ffff]")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
LETTER = re.compile(r"[^\W\d_]")
ONLY_VIETNAMESE = re.compile(r"[ăđơưĂĐƠƯ\u1ea0-\u1ef9]")
MARKED_WORD = re.compile(r"[A-Za-z]*[À-ỹ][^\W\d_]*")
NOT_WORDS = re.compile(r"https?://\S+|\\[A-Za-z]+|\\.|[A-Za-z]*\d[A-Za-z\d]*|" + re.escape(IMAGE_PLACEHOLDER))
WORD = re.compile(r"[^\W\d_]{2,}")
SYLLABLE = re.compile(PLAIN_SYLLABLE)
VIETNAMESE_SHARE = 0.3
ONLY_ENGLISH = frozenset(
    {
        "and",
        "are",
        "at",
        "be",
        "by",
        "for",
        "from",
        "have",
        "his",
        "how",
        "it",
        "not",
        "that",
        "the",
        "they",
        "this",
    }
    | {"to", "were", "what", "when", "where", "which", "who", "why", "will", "with", "would", "you", "your"}
)
"""Words that no neighbour shares. Two of them settle most English texts without lingua, 20 times as fast."""


def detect_languages(texts: Iterable[str]) -> list[str]:
    """The language of each text."""
    return [detect_language(text) for text in texts]


def detect_language(text: str) -> str:
    """The language of one text: vi, en, zh or other."""
    text = NOT_WORDS.sub(" ", text[:READ_CHARS])
    if not text.isascii() and (language := _by_script(text)) is not None:
        return language
    words = WORD.findall(text)
    if not words:
        return OTHER
    only_vietnamese = not text.isascii() and ONLY_VIETNAMESE.search(text) is not None
    if only_vietnamese and len(MARKED_WORD.findall(text)) >= VIETNAMESE_SHARE * len(words):
        return VI
    if text.isascii() and _is_plain(words):
        return VI
    if sum(word.lower() in ONLY_ENGLISH for word in words) >= max(2, ENGLISH_SHARE * len(words)):
        return EN
    return _by_lingua(" ".join(words), ascii_only=text.isascii())


def _by_script(text: str) -> str | None:
    """The language where the writing system says it; None: Latin letters prevail, or no letters at all."""
    if BEYOND_LATIN.search(text) is None:
        return None
    han = len(HAN.findall(text))
    kana_or_hangul = len(KANA_OR_HANGUL.findall(text))
    latin = len(LATIN.findall(text))
    foreign = len(LETTER.findall(text)) - han - latin  # kana and Hangul among them
    if kana_or_hangul and kana_or_hangul >= 0.1 * han and 2 * (han + kana_or_hangul) >= latin:
        return OTHER
    if han and 3 * han >= latin:  # a Chinese character says about as much as three letters
        return ZH
    if foreign > latin:
        return OTHER
    return None


def _is_plain(words: list[str]) -> bool:
    """Whether the words are Vietnamese syllables without diacritics."""
    syllables = [word for word in map(str.lower, words) if SYLLABLE.fullmatch(word)]
    return is_plain_vietnamese(len(words), len(syllables), sum(word in ALSO_ENGLISH for word in syllables))


@cache
def _detector() -> LanguageDetector:
    return LanguageDetectorBuilder.from_languages(
        Language.ENGLISH, Language.VIETNAMESE, *LATIN_NEIGHBOURS
    ).build()


@cache
def _short_detector() -> LanguageDetector:
    return LanguageDetectorBuilder.from_languages(Language.ENGLISH, Language.VIETNAMESE).build()


ENGLISH_SHARE = 0.08
SHORT_WORDS = 5


def _by_lingua(text: str, ascii_only: bool) -> str:
    """What lingua says. So few ASCII words could be any language's: there, only vi and en are weighed."""
    short = ascii_only and text.count(" ") + 1 <= SHORT_WORDS
    detected = (_short_detector() if short else _detector()).detect_language_of(text)
    if detected == Language.VIETNAMESE:
        return VI
    if detected == Language.ENGLISH:
        return EN
    return OTHER
