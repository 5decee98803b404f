"""The text of a line of bytes, whatever the encoding."""

import re
from collections.abc import Collection

from vipolyqwen_core.corpus.text import compose

_TONE = re.compile("[\u0300\u0301\u0303\u0309\u0323]")
_TONE_ON_VOWEL = re.compile("[aeiouyăâêôơưAEIOUYĂÂÊÔƠƯ][\u0300\u0301\u0303\u0309\u0323]")
_HAN = re.compile("[\u4e00-\u9fff]")


def decode_line(data: bytes, languages: Collection[str]) -> str:
    """The text of bytes: UTF-8, or what a line that is no UTF-8 most likely was.

    Where whole UTF-8 characters outnumber the broken bytes, they stay, and U+FFFD stands for the rest.
    Otherwise it is GB18030 where Chinese is expected and Chinese comes out; Windows-1258 where that gives
    tone marks, all of them on vowels, or where Vietnamese is expected and no tone mark is astray; else
    Windows-1252.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    patched = data.decode("utf-8", "replace")
    num_broken = patched.count("\ufffd")
    if sum(ord(char) > 0x7F for char in patched) >= 2 * num_broken:
        return patched
    if "zh" in languages:
        try:
            chinese = data.decode("gb18030")
        except UnicodeDecodeError:
            chinese = ""
        if _HAN.search(chinese):
            return chinese
    vietnamese = data.decode("cp1258", "replace")
    num_tones = len(_TONE.findall(vietnamese))
    if num_tones == len(_TONE_ON_VOWEL.findall(vietnamese)) and (num_tones or "vi" in languages):
        return compose(vietnamese)
    return "".join(
        char if char != "\ufffd" else chr(byte)
        for char, byte in zip(data.decode("cp1252", "replace"), data, strict=True)
    )
