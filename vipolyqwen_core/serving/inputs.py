"""What users give to be encoded: texts and pictures in any mix, ordered and normalised as in training."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import IOBase
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeAlias

from PIL import Image

from vipolyqwen_core.config import MAX_IMAGE_PIXELS
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, Task, Turn
from vipolyqwen_core.corpus.pictures import (
    DECODING_ERRORS,
    PictureError,
    Shrink,
    as_it_is,
    decode_picture,
    normalise_picture,
    taking_turns,
)
from vipolyqwen_core.corpus.text import normalise_text, repair_dialogue
from vipolyqwen_core.processing.processor import Item, ItemError

logger = logging.getLogger(__name__)

Picture: TypeAlias = Image.Image | str | os.PathLike[str] | bytes
"""A picture: PIL, a path, or the bytes of a file."""
Pictures: TypeAlias = Picture | Iterable[Picture] | None
"""The pictures of one item."""

_URL: Final = re.compile("data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)

_PICTURE_LOCKS: Final = tuple(Lock() for _ in range(61))
"""Pillow reads the file of an opened picture when its pixels are first asked for. Where several items show
one such picture, only one thread at a time may ask: each picture has one of these locks."""


def make_item(
    text: str | None,
    pictures: Pictures = None,
    prefix: Task | None = None,
    history: Sequence[Turn] = (),
    shrink: Shrink = as_it_is,
    max_chars: int | None = None,
) -> Item:
    """An item out of what a user gave, normalised as in training; missing placeholders stand in front.

    Each picture is shrunk before the next one is read. Of a text that is longer than `max_chars` the
    beginning is read, and the placeholders of the rest.

    Raises:
        ValueError: neither text nor picture, a picture that is unreadable or cannot be shrunk, more
            placeholders than pictures
    """
    if text is not None and not isinstance(text, str):
        raise ValueError(f"text must be a string, not {type(text).__name__}")
    images = _read_pictures(listed(pictures), shrink)
    if text is None and not images:
        raise ValueError("neither text nor picture")

    def normalised(given: str) -> str:
        return normalise_text(_beginning(given, max_chars, bool(images)))

    turns = [Turn(turn.role, normalised(turn.text)) for turn in history]
    repaired, earlier = repair_dialogue(normalised(text or ""), len(images), turns)
    return Item(text=repaired, images=images, history=earlier or (), prefix=prefix)


def _beginning(text: str, max_chars: int | None, has_pictures: bool) -> str:
    """The text without what would only cost time, since it lies far behind the limit of tokens."""
    if max_chars is None or len(text) <= max_chars:
        return text
    logger.warning("of a text of %d characters only the first %d were read", len(text), max_chars)
    beginning = text[:max_chars]
    left = text.count(IMAGE_PLACEHOLDER) - beginning.count(IMAGE_PLACEHOLDER) if has_pictures else 0
    return beginning + IMAGE_PLACEHOLDER * left


def _read_pictures(pictures: Sequence[Picture], shrink: Shrink) -> tuple[Image.Image, ...]:
    """The pictures of one item.

    Raises:
        ValueError: one cannot be read or shrunk; says which of several
    """
    images = []
    for place, picture in enumerate(pictures):
        try:
            with taking_turns() as wait_for_turn:
                images.append(shrink(read_picture(picture, wait_for_turn)))
        except ValueError as error:
            raise ValueError(f"image {place}: {error}" if len(pictures) > 1 else str(error)) from error
    return tuple(images)


def read_picture(picture: Picture, before_loading: Callable[[int], None] | None = None) -> Image.Image:
    """The picture, upright RGB, as training sees it; `before_loading` as in `decode_picture`.

    Raises:
        ValueError: it cannot be read, or it is none
    """
    if isinstance(picture, Image.Image):
        if before_loading is not None:
            before_loading(picture.width * picture.height)
        try:
            with _PICTURE_LOCKS[id(picture) % len(_PICTURE_LOCKS)]:
                return normalise_picture(picture)
        except AssertionError as error:  # Pillow's own, without a word
            raise ValueError(
                "the picture's file was closed before it was read: call its load() first"
            ) from error
        except DECODING_ERRORS as error:  # Pillow decodes late: a broken file shows only here
            raise ValueError(f"the picture cannot be decoded: {error}") from error
    if isinstance(picture, (str, os.PathLike)):
        if isinstance(picture, str) and _URL.match(picture):
            raise ValueError("a picture is a path or bytes, and is not fetched from a URL")
        named = f"picture {str(picture)[:200]!r}"
        try:
            data = Path(picture).read_bytes()
        except (OSError, ValueError) as error:  # an OSError names the whole of what is no path
            raise ValueError(f"{named} cannot be read: {getattr(error, 'strerror', error)}") from error
        try:
            return decode_picture(data, MAX_IMAGE_PIXELS, before_loading).image
        except PictureError as error:
            raise PictureError(error.rule, f"{named}: {error}") from error
    if not isinstance(picture, (bytes, bytearray, memoryview)):
        raise ValueError(f"a picture is a PIL image, a path or bytes, not {type(picture).__name__}")
    return decode_picture(bytes(picture), MAX_IMAGE_PIXELS, before_loading).image


def _is_picture(value: object) -> bool:
    """Whether it stands for one picture, as an open file does: it would give its bytes cut at newlines."""
    return isinstance(value, (Image.Image, str, os.PathLike, bytes, bytearray, memoryview, IOBase))


def _is_no_list(given: object) -> bool:
    """Whether it iterates over keys or the names of columns, in any order, or not at all (0 dimensions)."""
    if isinstance(given, (str, bytes)):  # NumPy's scalars of these have 0 dimensions
        return False
    return (
        isinstance(given, (Mapping, set, frozenset))
        or hasattr(given, "columns")
        or getattr(given, "ndim", 1) == 0
    )


def listed(pictures: Pictures) -> list[Picture]:
    """The pictures of one item as a list.

    Raises:
        ValueError: something else, or pictures without an order
    """
    if pictures is None:
        return []
    if _is_picture(pictures):
        return [pictures]  # type: ignore[list-item]
    if _is_no_list(pictures):
        raise ValueError(f"the pictures of an item must be a list, not {type(pictures).__name__}")
    if not isinstance(pictures, Iterable):
        raise ValueError(f"a picture is a PIL image, a path or bytes, not {type(pictures).__name__}")
    return list(pictures)  # type: ignore[arg-type]


def arrange(
    text: str | Iterable[str | None] | None, images: Picture | Iterable[Any] | None
) -> tuple[list[str | None], list[Pictures], bool]:
    """Text and pictures of each item, and whether one item was given as itself.

    Raises:
        ValueError: there is nothing to encode, or texts and pictures do not fit together
    """
    if text is None and images is None:
        raise ValueError("nothing to encode: give text, images or both")
    for name, given in (("text", text), ("images", images)):
        if _is_no_list(given):
            raise ValueError(f"{name} must be one item or a list, not {type(given).__name__}")
    if text is None:
        if _is_picture(images):
            return [None], [images], True
        entries = list(images) if isinstance(images, Iterable) else [images]
        return [None] * len(entries), entries, False
    if isinstance(text, str):
        return [text], [images], True
    if not isinstance(text, Iterable) or isinstance(text, (bytes, bytearray)):
        raise ValueError(f"text must be a string or a list of strings, not {type(text).__name__}")
    texts = list(text)
    if images is None:
        return texts, [None] * len(texts), False
    if _is_picture(images) or not isinstance(images, Iterable):
        raise ValueError(f"{len(texts)} texts take a list of {len(texts)} entries as images, not one picture")
    entries = list(images)
    if len(entries) != len(texts):
        raise ValueError(
            f"{len(texts)} texts but {len(entries)} entries in images: one is needed for each text"
        )
    return texts, entries, False


def prefixes_of(prefix: Task | str | Iterable[Task | str | None] | None, count: int) -> list[Task | None]:
    """The prefix of each of `count` items.

    Raises:
        ValueError: there are more or fewer prefixes than items, or one names no task
    """
    if prefix is None or isinstance(prefix, str):
        return [_task(prefix)] * count
    if not isinstance(prefix, Iterable) or _is_no_list(prefix):
        raise ValueError(f"prefix must be a task or a list of tasks, not {type(prefix).__name__}")
    prefixes = list(prefix)
    if len(prefixes) != count:
        raise ValueError(f"{count} items but {len(prefixes)} prefixes: give one for all, or one for each")
    tasks = []
    for number, each in enumerate(prefixes):
        try:
            tasks.append(_task(each))
        except ValueError as error:
            raise ItemError(number, "prefix", str(error)) from error
    return tasks


def _task(prefix: Task | str | None) -> Task | None:
    if prefix is None:
        return None
    if prefix not in list(Task):
        raise ValueError(f"unknown prefix {prefix!r}: it is None or one of {', '.join(Task)}")
    return Task(prefix)


def warn_of_cut_texts(num_items: int, num_tokens: int, max_tokens: int) -> None:
    """Say how much of the texts was left out, if anything was."""
    if num_items:
        logger.warning(
            "%d items were longer than %d tokens: %d tokens of their texts were cut",
            *(num_items, max_tokens, num_tokens),
        )
