"""How two forms of a text differ, for people: marked piece by piece, or only the places where they do."""

import re
import unicodedata
from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeVar

PIECE = re.compile(r"\s+|[\u2e80-\u9fff]|\w+|.")
"""What is compared as one: a word, a Chinese character, a sign."""
SHORT_CHARS = 160
"""Two texts that are so short together are shown whole."""
CONTEXT_PIECES = 6
MAX_PLACES = 4
MAX_COMPARED = 1500
"""So many pieces of two texts together are compared, and so many lines. At worst, as where only spaces
agree, time grows with the cube, to a few seconds here."""
MAX_PLACE_PIECES = 80
"""Of one side of one place so many are shown."""

Marked = list[tuple[str, bool]]
T = TypeVar("T", bound=Hashable)


class Difference(NamedTuple):
    """Pieces `start` to `end` of one text stand where `their_start` to `their_end` of the other do."""

    start: int
    end: int
    their_start: int
    their_end: int

    def moved(self, by: int, their_by: int) -> "Difference":
        """The same, counted from elsewhere."""
        return Difference(
            self.start + by, self.end + by, self.their_start + their_by, self.their_end + their_by
        )


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

    Long texts that differ all over are compared by lines, and what differs is compared by words as far as
    `MAX_COMPARED` goes; what is left of it counts as one place, whose beginning is shown.

    Characters that cannot be seen are spelled: two Unicode forms of a letter look the same.
    """
    if len(before) + len(after) <= SHORT_CHARS:
        return f"{visible(before)} -> {visible(after)}"
    ours, theirs = PIECE.findall(before), PIECE.findall(after)
    groups = list(_grouped(_differences(ours, theirs)))
    places = []
    for group in groups[:MAX_PLACES]:
        before_it = min(group.start, CONTEXT_PIECES)
        after_it = min(len(ours) - group.end, CONTEXT_PIECES)
        left = _shown(ours, group.start - before_it, group.end + after_it)
        places.append(
            f"{left} -> {_shown(theirs, group.their_start - before_it, group.their_end + after_it)}"
        )
    more = f"; and {len(groups) - MAX_PLACES} more places" if len(groups) > MAX_PLACES else ""
    return "; ".join(places) + more


def visible(text: str) -> str:
    """The text on one line, with escapes for what cannot be seen or joins the letter before it."""
    return "".join(
        char
        if char.isprintable() and not unicodedata.combining(char)
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _matcher(ours: Sequence[T], theirs: Sequence[T]) -> "SequenceMatcher[T]":
    return SequenceMatcher(None, ours, theirs, autojunk=False)


def _shown(pieces: list[str], start: int, end: int) -> str:
    """Some pieces of a text, with dots where it goes on."""
    last = min(end, start + MAX_PLACE_PIECES)
    return "…" * (start > 0) + visible("".join(pieces[start:last])) + "…" * (last < len(pieces))


def _grouped(differences: Sequence[Difference]) -> Iterator[Difference]:
    """Differences that are so near that their contexts meet become one."""
    group: Difference | None = None
    for one in differences:
        if group is not None and one.start - group.end <= 2 * CONTEXT_PIECES:
            group = Difference(group.start, one.end, group.their_start, one.their_end)
            continue
        if group is not None:
            yield group
        group = one
    if group is not None:
        yield group


def _differences(ours: list[str], theirs: list[str]) -> list[Difference]:
    """Where two texts in pieces differ, in order. What both begin and end with costs nothing."""
    head = _num_common(ours, theirs)
    tail = _num_common(ours[: head - 1 if head else None : -1], theirs[: head - 1 if head else None : -1])
    ours, theirs = ours[head : len(ours) - tail], theirs[head : len(theirs) - tail]
    if len(ours) + len(theirs) <= MAX_COMPARED:
        return [one.moved(head, head) for one in _compared(ours, theirs)]
    found = []
    left = MAX_COMPARED
    for block in _differing_lines(ours, theirs):
        size = block.end - block.start + block.their_end - block.their_start
        if size > left:
            found.append(block)
            continue
        left -= size
        inner = _compared(ours[block.start : block.end], theirs[block.their_start : block.their_end])
        found += [one.moved(block.start, block.their_start) for one in inner]
    return [one.moved(head, head) for one in found]


def _differing_lines(ours: list[str], theirs: list[str]) -> list[Difference]:
    """Lines that differ, as ranges of pieces; of too many lines, all."""
    lines, their_lines = _lines(ours), _lines(theirs)
    if len(lines) + len(their_lines) > MAX_COMPARED:
        return [Difference(0, len(ours), 0, len(theirs))]
    starts, their_starts = ([0, *accumulate(map(len, side))] for side in (lines, their_lines))
    return [
        Difference(
            starts[one.start], starts[one.end], their_starts[one.their_start], their_starts[one.their_end]
        )
        for one in _compared(lines, their_lines)
    ]


def _lines(pieces: list[str]) -> list[tuple[str, ...]]:
    """Pieces by lines; white space that breaks a line ends it."""
    ends = [number for number, piece in enumerate(pieces, 1) if "\n" in piece]
    bounds = [0, *ends, *([len(pieces)] if not ends or ends[-1] < len(pieces) else [])]
    return [tuple(pieces[start:end]) for start, end in pairwise(bounds)]


def _compared(ours: Sequence[T], theirs: Sequence[T]) -> list[Difference]:
    codes = _matcher(ours, theirs).get_opcodes()
    return [Difference(*places) for kind, *places in codes if kind != "equal"]


def _num_common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Pieces that both begin with."""
    pairs = zip(ours, theirs, strict=False)
    shorter = min(len(ours), len(theirs))
    return next((place for place, (our, their) in enumerate(pairs) if our != their), shorter)
