"""How two forms of a text differ, for people: marked piece by piece, or only the places where they do."""

import re
import unicodedata
from difflib import SequenceMatcher

PIECE = re.compile(r"\s+|[\u2e80-\u9fff]|\w+|.")
"""What is compared as one: a word, a Chinese character, a sign."""
SHORT_CHARS = 160
"""Two texts that are so short together are shown whole."""
CONTEXT_PIECES = 6
MAX_PLACES = 4

Marked = list[tuple[str, bool]]


def marked(left: str, right: str) -> tuple[Marked, Marked]:
    """Both texts in pieces, each with whether it is only in this one of the two."""
    ours, theirs = PIECE.findall(left), PIECE.findall(right)
    sides: tuple[Marked, Marked] = ([], [])
    for kind, start, end, their_start, their_end in _matcher(ours, theirs).get_opcodes():
        for side, pieces in zip(sides, (ours[start:end], theirs[their_start:their_end]), strict=True):
            if pieces:
                side.append(("".join(pieces), kind != "equal"))
    return sides


def changes(before: str, after: str) -> str:
    """The places where a text was changed, `before -> after` with some words around; of short texts, all.

    Characters that cannot be seen are spelled: two Unicode forms of a letter look the same.
    """
    if len(before) + len(after) <= SHORT_CHARS:
        return f"{visible(before)} -> {visible(after)}"
    ours, theirs = PIECE.findall(before), PIECE.findall(after)
    places = []
    for group in _matcher(ours, theirs).get_grouped_opcodes(CONTEXT_PIECES):
        (_, start, _, their_start, _), (_, _, end, _, their_end) = group[0], group[-1]
        opening, closing = "…" * (start > 0), "…" * (end < len(ours))
        left, right = "".join(ours[start:end]), "".join(theirs[their_start:their_end])
        places.append(f"{opening}{visible(left)}{closing} -> {opening}{visible(right)}{closing}")
    more = f"; and {len(places) - MAX_PLACES} more places" if len(places) > MAX_PLACES else ""
    return "; ".join(places[:MAX_PLACES]) + more


def visible(text: str) -> str:
    """The text on one line, with escapes for what cannot be seen or joins the letter before it."""
    return "".join(
        char
        if char.isprintable() and not unicodedata.combining(char)
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _matcher(ours: list[str], theirs: list[str]) -> "SequenceMatcher[str]":
    return SequenceMatcher(None, ours, theirs, autojunk=False)
