"""Names of files in the Unicode form that the disk has: a Mac decomposes them, and they look the same."""

import os
import unicodedata
from collections.abc import Iterator


def unicode_forms(path: str) -> list[str]:
    """The path as it is, composed and decomposed; each once, so an ASCII path has one form."""
    if path.isascii():
        return [path]
    return list(dict.fromkeys((path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path))))


def forms_on_disk(path: str, folder: str = "") -> Iterator[str]:
    """The spellings under which a local path may lie on the disk, itself first.

    A folder that was copied from a Mac may lie below one that was made here: at last each name is taken in
    the form that is there, and what follows the first that is there in none, as a glob, in each.

    Args:
        folder: where a relative path begins
    """
    whole = unicode_forms(path)
    yield from whole
    if len(whole) == 1:
        return
    above, there, parts = f"{folder}/" if folder else "", "", path.split("/")
    for number, part in enumerate(parts):
        places = [there + form for form in unicode_forms(part)]
        found = next((place for place in places if not part or os.path.lexists(above + place)), None)
        if found is None:
            rest = "/".join(parts[number:])
            yield from (there + form for form in unicode_forms(rest))
            return
        there = found + "/"
    yield there.removesuffix("/")
