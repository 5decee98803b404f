"""Normalisation of text, the same for training and for `encode`, and the repair of picture placeholders.

Special tokens of the tokenizer that stand in a text stay as they are: they are text, and the processor never
turns text into special tokens.
"""

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from html.entities import html5
from itertools import groupby

import ftfy
from ftfy.fixes import fix_c1_controls, fix_surrogates

from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, Turn

# What a byte 0x80-0xBF of UTF-8 looks like after it was read as Latin-1 or Windows-1252. The strict set
# leaves out what stands behind a capital in sound text too: closing quotes, an ellipsis, a dash, a space.
_CONTINUATION = "\x80-¿€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_STRICT = "\x80-\x9f¡-ª¬-º¼-¿€ƒ†‡ˆ‰ŠŒŽ˜™šœžŸ"
# Read as Mac Roman: Vietnamese letters begin with `·∫` and `·ª` there. What stands in formulas is left out.
_MAC_CONTINUATION = "ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™´¨ÆØ¥ªºæø"
_RUN = (
    f"(?:â[€†ˆ‰œ][{_CONTINUATION}]"
    f"|·[∫ª][{_MAC_CONTINUATION}]"
    f"|[à-ï][{_STRICT}»][{_STRICT}«»]"
    f"|[ð-ô][{_STRICT}][{_CONTINUATION}][{_CONTINUATION}]"
    f"|[Â-ß][{_STRICT}])"
)
# What sound text writes right behind a word: footnotes, exponents, `NESCAFÉ®`, a dot between two words.
# Behind one of these capitals, and twice behind one of these letters, it does not make mojibake by itself.
# `Å°`, `Ä©`, `Æ°` and `Å©` are left out: Hungarian and Vietnamese letters look so.
_PRINTED = "[¹²³®©°·]"
_MEANT = (
    f"[ÈÉÊÌÍÒÓÔÕÙÚÝ]{_PRINTED}|(?<=[A-Z][A-Z])É™|(?<=[A-Z])[ÄÇÑÖÜ]®"
    rf"|ß[²³]|(?<![^\W\d_])Å[²³]|Ø[¹²³¼½¾]|×[¹²³¼½¾£¥]"
    f"|[àáâãéêìí]{_PRINTED}{{2}}|[èë][¹²³]{{2}}"
)
_SUSPECT = re.compile(f"(?!{_MEANT}){_RUN}")
# Vietnamese letters that ftfy does not take for mojibake where they stand alone. à, đ, ỗ and ễ look like what
# stands in sound text, so their neighbours decide.
_RHYME = r"(?:n[gh]?|[imouy])(?![\w'’])"  # what follows an à within a syllable
_VIETNAMESE_LETTER = re.compile(
    f"Ã\u00a0(?:(?<=[a-z]Ã.)|(?={_RHYME}))"
    r"|Ä‘(?:(?=[a-zß-ÿÃÆ\u0103-\u1ef9])|(?<=\dÄ‘)|(?<=\d Ä‘))"
    r"|á»(?:[‘“•‹›]|—(?=[in]\b)|…(?=[nu]\b))"
    f"|á[º»][{_STRICT}]|Æ[°¡]|[ÄÅ]©"
)
# Quotes, dashes and the like, read as Mac Roman or as its Central European sister, which ftfy does not know.
_MAC_MARKS = {
    "‚Ä" + bytes([end]).decode(codec): bytes([0xE2, 0x80, end]).decode()
    for codec in ("mac_latin2", "mac_roman")
    for end in (0x93, 0x94, 0x98, 0x99, 0x9C, 0x9D, 0xA2, 0xA6)
}
_MAC_MARK = re.compile("|".join(_MAC_MARKS))
_MOJIBAKE = re.compile(
    f"(?=[Â-ôĂ‚·])(?:{_SUSPECT.pattern}|{_VIETNAMESE_LETTER.pattern}|Ă[{_STRICT}]|{_MAC_MARK.pattern})"
)
_HINT = re.compile(f"[{_STRICT}»‚∫]")  # a quick scan: without one of these there is no _MOJIBAKE
_MOJIBAKE_RUN = re.compile(_RUN + f"(?:{_RUN}|[Â-ß][{_CONTINUATION}])*")
# Letters that no text has which was read as Windows-1252 by mistake: they show that most of it is sound.
_SOUND = re.compile("[ăĂđĐĩĨũŨơƠưƯ\u0370-\u1fff\u2460-\uffff]")
_C1 = re.compile("[\x80-\x9f]")
# Code pages that UTF-8 was read as: character -> byte. Undefined bytes became controls. What can be both
# Windows and Mac is Windows: `HÃ£y` would have letters with marks that no text has.
_CODE_PAGES = [
    {bytes([byte]).decode(name, "ignore") or chr(byte): byte for byte in range(256)}
    for name in ("cp1252", "cp1258", "mac_roman", "mac_latin2")
]
_WINDOWS = _CODE_PAGES[0]
_WINDOWS |= {chr(byte): byte for byte in range(0x80, 0xA0)}  # Latin-1, too
# A no-break space that is part of a letter may have become a blank, and one with the blank behind it.
# ftfy takes each for the end of a word.
_VIETNAMESE_MOJIBAKE = re.compile("á[º»].|Æ[°¡]|Ä[‘ƒ\x91\x83]|Ã (?:n[gh]?|[mu])(?![\\w'’])")
_TWO_BLANKS = re.compile("[ÃĂ]  ")
_END_OF_WORD = re.compile(f"([ÃĂ]) (?!{_RHYME}|[\\s.,;:!?)\\]…]|$)")
_BLANK_IN_LETTER = re.compile("([ÃĂ])(?: |(?=\n)|\\Z)")
# Chinese is restored only where the whole text can be read then.
_IDEOGRAPH_WITH_BLANK = re.compile(f"[ä-é](?:[{_CONTINUATION}]{{2}}|[{_CONTINUATION}] | [{_CONTINUATION}])")
# A closing quote, the last byte of which Windows-1252 does not have.
_LOST_BYTE = re.compile("â€(?:\ufffd|(?=[ \n.,;:!?)\\]]|\\Z))")
# Old Vietnamese texts have the Icelandic letter that looks like Đ in its place.
_ETHS = str.maketrans("Ðð", "Đđ")
_VIETNAMESE = re.compile("[ăđơưĂĐƠƯ\u1ea0-\u1ef9]")

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# An ampersand that was escaped again and again; entity by entity each level would cost a pass over the text.
_AMPERSANDS = re.compile(r"&(?:(?:amp|AMP|#0{0,5}38|#[xX]0{0,4}26);)+")
_LINE_BREAK = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Control and invisible format characters; U+200C and U+200D join emoji and letters, so they stay.
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACES = re.compile("[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_SPACE_AT_BREAK = re.compile(" ?\n ?")
_BREAKS = re.compile("\n{3,}")
# Combining marks, among others: no writing has so many on one letter.
_MARKS = re.compile(r"[^\x00-\u02ff\w\s]{31,}")

_MAX_ROUNDS = 16
"""How often text is unwrapped; what is wrapped deeper was made to take long."""


def normalise_text(text: str) -> str:
    """The text in the form that is trained on and encoded; `normalise_text` of it is itself.

    Mojibake is repaired where it is suspected (ftfy), HTML entities are resolved, Unicode is composed (NFC),
    control and invisible characters go, spaces fold into one, line breaks are kept (`\\n`, at most one empty
    line in a row), and nothing but text stands at either end. Clean text costs about a microsecond.

    Raises:
        TypeError: not a string
    """
    if _is_clean(text):
        return text
    rounds = 0
    while (normalised := _normalise_once(text)) != text:  # entities and mojibake may be wrapped twice
        text = normalised
        rounds += 1
        if rounds == _MAX_ROUNDS:  # from here on no `&` begins an entity
            text = text.replace("&", "& ")
    return text


def compose(text: str) -> str:
    """Unicode NFC of the text.

    Python's own sorts the marks on a letter by insertion: 100 KB of them on one took half a minute.
    """
    return unicodedata.normalize("NFC", _MARKS.sub(_in_order, text))


def _in_order(run: re.Match[str]) -> str:
    """The canonically equal run whose combining marks are decomposed and stand in canonical order."""
    decomposed = (part for char in run[0] for part in unicodedata.normalize("NFD", char))
    marks = groupby(decomposed, key=lambda char: unicodedata.combining(char) > 0)
    return "".join(
        "".join(sorted(group, key=unicodedata.combining) if combining else group)
        for combining, group in marks
    )


def _is_clean(text: str) -> bool:
    """Whether nothing has to be done, by scans that run in C; False where a closer look is needed."""
    if "\n" in text:
        if "\n\n\n" in text or " \n" in text or "\n " in text or text[0] == "\n" or text[-1] == "\n":
            return False
        printable = text.replace("\n", "").isprintable()
    else:
        printable = text.isprintable()
    if not printable or "&" in text or "  " in text:
        return False
    if text.startswith(" ") or text.endswith(" "):
        return False
    return text.isascii() or (
        ((_HINT.search(text) is None and "Ä‘" not in text) or _MOJIBAKE.search(text) is None)
        and "Ð" not in text
        and unicodedata.is_normalized("NFC", text)
        and "\ufffc" not in text  # the one character of _CONTROL that counts as printable
    )


def _normalise_once(text: str) -> str:
    if _SURROGATE.search(text):
        text = fix_surrogates(text)  # lone ones become U+FFFD: they cannot be written as UTF-8
    if "&" in text:  # before the repair: entities may hold parts of a letter
        text = _ENTITY.sub(_resolve, _AMPERSANDS.sub("&", text))
    if _MOJIBAKE.search(text):
        text = _repair_mojibake(text)
    if _C1.search(text):
        text = fix_c1_controls(text)
    text = _LINE_BREAK.sub("\n", text)
    text = _CONTROL.sub("", text)
    text = compose(text)
    if "Ð" in text and _VIETNAMESE.search(text):
        text = text.translate(_ETHS)
    text = _SPACES.sub(" ", text)
    text = _SPACE_AT_BREAK.sub("\n", text)
    return _BREAKS.sub("\n\n", text).strip(" \n")


def _repair_mojibake(text: str) -> str:
    """The text read back whole, where it can be; else ftfy's repair, within sound text only of some runs.

    Left alone, ftfy reads the sound Vietnamese capitals of `ĐÃ”` as mojibake of `ĐÔ`.
    """
    for candidate in (text, text := _restore_bytes(text)):
        for code_page in _CODE_PAGES:
            if (read_back := _utf8_read_as(code_page, candidate)) is not None:
                again = read_back if _SOUND.search(read_back) else ftfy.fix_encoding(read_back)
                return _repair_mojibake(again) if _MOJIBAKE.search(again) else again
    text = _MAC_MARK.sub(lambda mark: _MAC_MARKS[mark[0]], text)
    text = _MOJIBAKE_RUN.sub(_read_back, text) if _SOUND.search(text) else ftfy.fix_encoding(text)
    return _VIETNAMESE_LETTER.sub(_read_letter_back, text)


def _restore_bytes(text: str) -> str:
    """The mojibake with no-break spaces that became blanks, and with the byte of a closing quote."""
    if _VIETNAMESE_MOJIBAKE.search(text):
        if not _TWO_BLANKS.search(text):
            text = _END_OF_WORD.sub("\\1\u00a0 ", text)
        text = _BLANK_IN_LETTER.sub("\\1\u00a0", text)
    text = _LOST_BYTE.sub("â€\x9d", text)
    restored = _IDEOGRAPH_WITH_BLANK.sub(lambda letter: letter[0].replace(" ", "\u00a0"), text)
    return text if restored == text or _utf8_read_as(_WINDOWS, restored) is None else restored


def _read_letter_back(letter: re.Match[str]) -> str:
    """A Vietnamese letter as it was meant."""
    return bytes(_WINDOWS[char] for char in letter[0]).decode()


def _read_back(run: re.Match[str]) -> str:
    """A run of letters within sound text as it was meant."""
    return ftfy.fix_encoding(run[0]) if _SUSPECT.search(run[0]) else run[0]


def _utf8_read_as(code_page: Mapping[str, int], text: str) -> str | None:
    """The text that was UTF-8 and was read as of a code page; None: it was not, as a whole."""
    try:
        return bytes(code_page[char] for char in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None


def _resolve(entity: re.Match[str]) -> str:
    """The characters of one whole entity. `html.unescape` would take `&notit;` for `&not` and `it;`."""
    if entity[0][1] == "#":
        return html.unescape(entity[0])
    return html5.get(entity[0][1:], entity[0])


def writable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


class PlaceholderError(ValueError):
    """A side with more placeholders than pictures."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(reason)
        self.text = text
        """Those of its texts that have placeholders, one a line."""


def declared_key(key: str | None) -> str | None:
    """A declared key as it is compared; None where there is none, or it is blank.

    Rows that a Mac wrote, and others, spell the same one in two Unicode forms.
    """
    return None if key is None else compose(writable(key)).strip() or None


def repair_placeholders(texts: Sequence[str], num_images: int, first_user: int = 0) -> list[str]:
    """The texts with as many `<image>` as there are pictures; missing ones go in front of one of them.

    Without pictures `<image>` is plain text and nothing changes.

    Args:
        texts: the turns of one side, in order
        num_images: pictures of the side
        first_user: which of the texts is the first of the user
    Raises:
        PlaceholderError: more placeholders than pictures
        ValueError: pictures without a text
    """
    if num_images == 0:
        return list(texts)
    num_placeholders = sum(text.count(IMAGE_PLACEHOLDER) for text in texts)
    if num_placeholders > num_images:
        reason = f"{num_placeholders} placeholders {IMAGE_PLACEHOLDER} for {num_images} pictures"
        raise PlaceholderError(reason, "\n".join(text for text in texts if IMAGE_PLACEHOLDER in text))
    if not 0 <= first_user < len(texts):
        raise ValueError(f"no text number {first_user} to put {IMAGE_PLACEHOLDER} in front of")
    repaired = list(texts)
    repaired[first_user] = IMAGE_PLACEHOLDER * (num_images - num_placeholders) + repaired[first_user]
    return repaired


def repair_dialogue(
    text: str, num_images: int, history: Sequence[Turn] | None = None
) -> tuple[str, tuple[Turn, ...] | None]:
    """A side's text and history with as many `<image>` as pictures, in front of the first user text.

    Raises:
        PlaceholderError: more placeholders than pictures
    """
    if not history:
        return repair_placeholders([text], num_images)[0], None
    users = [place for place, turn in enumerate(history) if turn.role == "user"]
    first_user = users[0] if users else len(history)
    *earlier, last = repair_placeholders([*(turn.text for turn in history), text], num_images, first_user)
    return last, tuple(Turn(turn.role, new) for turn, new in zip(history, earlier, strict=True))
