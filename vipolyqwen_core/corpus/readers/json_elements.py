"""Elements of a JSON document, one after the other: a document of any size takes the memory of one element.

A parser that stops at the first mistake would lose the rest of a file; here a broken element costs itself.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from vipolyqwen_core.corpus.readers.row_fields import WrittenFloat

MAX_ELEMENT_CHARS = 32 * 1024 * 1024
"""A value that has not ended after so many characters is broken."""
MIN_CHARS = 64 * 1024
"""So much is read at once at least."""
SHOWN_CHARS = 1000
"""So much of what is broken is shown."""
_SPACE = re.compile(r"[\s,\ufeff]*")
_COLON = re.compile(r"\s*:\s*")
_LIST_OF_OBJECTS = re.compile(r"\[\s*\{")
_NEXT_OBJECT = re.compile(r"\n[^\S\n]*(?=\{)|\}\s*,\s*(?=\{)")
"""What stands before the next object after a broken one: the beginning of a line, or the end of an object."""
_NEXT_OBJECT_OR_LIST = re.compile(rf"\[\s*(?=\{{)|{_NEXT_OBJECT.pattern}")
_LOOK_BACK = 100
"""A mark of the next object may stand across the end of what is in memory."""
_LONGEST_LITERAL = len("-Infinity") + 1
_CUT_OF_NUMBER = len("e-")
"""What may stand behind a sound number at the end of what is in memory, and yet be a part of it."""


class Element(NamedTuple):
    """One value of a document."""

    value: Any
    broken: str | None = None
    """Why there is no value; then `value` is the text at that place."""


class JsonWindow:
    """A document that is read from front to back, of which only the part in use is in memory."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        """What is in memory."""
        self._place = 0
        """Where in it the next value begins."""
        self._decoder = json.JSONDecoder(parse_float=WrittenFloat)

    @property
    def is_full(self) -> bool:
        """Whether a value has not ended within MAX_ELEMENT_CHARS."""
        return len(self._text) - self._place >= MAX_ELEMENT_CHARS

    def peek(self) -> str:
        """The next character that is neither space nor comma; empty at the end."""
        while True:
            self._pass(_SPACE)
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read_on():
                return ""

    def rest(self) -> str:
        """What is left of the document, cut short; empty at the end."""
        return self._text[self._place : self._place + SHOWN_CHARS] if self.peek() else ""

    def skip(self) -> None:
        """Pass the next character."""
        self._place += 1

    def value(self) -> Any:
        """The value that begins here; the place moves behind it.

        Raises:
            ValueError, RecursionError: there is none, or a number of too many digits; the place stays
        """
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._read_on():
                    continue
                raise
            num_left, num_chars = len(self._text) - end, end - self._place
            may_go_on = num_left <= _CUT_OF_NUMBER and self._text[end - 1] not in '}]"'
            if may_go_on and self._read_on():
                continue
            self._place = num_chars if may_go_on else end
            return value

    def begins_list_of_objects(self) -> bool:
        """Whether a list whose first element is an object begins here."""
        while len(self._text) - self._place < _LOOK_BACK and self._read_on():
            pass
        return _LIST_OF_OBJECTS.match(self._text, self._place) is not None

    def colon(self) -> bool:
        """Pass a colon; False where there is none."""
        self.peek()
        return self._pass(_COLON)

    def seek_object(self, or_list: bool = False) -> bool:
        """Go to the next object, or to the next list of objects; False at the end of the document."""
        mark = _NEXT_OBJECT_OR_LIST if or_list else _NEXT_OBJECT
        while True:
            if found := mark.search(self._text, self._place):
                self._place = found.end()
                return True
            self._place = max(self._place, len(self._text) - _LOOK_BACK)
            if not self._read_on():
                self._place = len(self._text)
                return False

    def _pass(self, pattern: re.Pattern[str]) -> bool:
        """Move behind what the pattern finds here; False where it finds nothing."""
        if found := pattern.match(self._text, self._place):
            self._place = found.end()
        return found is not None

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether there may be no mistake, only no more text in memory."""
        if self.is_full:
            return False
        return error.msg.startswith("Unterminated string") or len(self._text) - error.pos < _LONGEST_LITERAL

    def _read_on(self) -> bool:
        """Twice as much of the document in memory, from the place on; False at the end of the document."""
        parts = [self._text[self._place :]]
        num_chars = len(parts[0])
        wanted = max(2 * num_chars, MIN_CHARS)
        while num_chars < wanted and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            num_chars += len(piece)
        self._text, self._place = "".join(parts), 0
        return len(parts) > 1


def elements_of_array(window: JsonWindow) -> Iterator[Element]:
    """Elements of the array that begins here, to its end; after a broken one the next object.

    That may be an object within the broken one, whose lists end before this one does: after a broken
    element a bracket is the end only where the document or another array follows.
    """
    window.skip()
    was_broken = False
    while mark := window.peek():
        if mark == "]":
            window.skip()
            is_end = not was_broken or window.peek() in ("", "[")
            if is_end or not window.seek_object(or_list=True):
                return
            continue
        try:
            value = window.value()
        except (ValueError, RecursionError) as error:
            yield Element(window.rest(), str(error))
            was_broken = True
            if not window.seek_object():
                return
        else:
            yield Element(value)


def elements_of_arrays(window: JsonWindow) -> Iterator[Element]:
    """Elements of the array that begins here, and of those after it: files are put together as they are."""
    while window.peek() == "[":
        yield from elements_of_array(window)
    if rest := window.rest():
        yield Element(rest, "something else follows the array")


def values_one_behind_the_other(window: JsonWindow) -> Iterator[Element]:
    """The values from here to the end of the document; after a broken one the next object."""
    while window.peek():
        try:
            value = window.value()
        except (ValueError, RecursionError) as error:
            yield Element(window.rest(), str(error))
            if not window.seek_object():
                return
        else:
            yield Element(value)


def elements_in_object(window: JsonWindow) -> Iterator[Element]:
    """Elements of each list of objects in the object that begins here; other values are passed over."""
    window.skip()
    while window.peek() not in ("}", ""):
        try:
            window.value()  # the key
            if window.colon() and window.begins_list_of_objects():
                yield from elements_of_array(window)
            else:
                window.value()
        except (ValueError, RecursionError) as error:
            yield Element(window.peek(), str(error))
            return
