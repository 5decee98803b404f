"""Fields that several formats share: lists of pictures, hard negatives, declared keys."""

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.records import RawImage, RawSide, RecordError
from vipolyqwen_core.corpus.readers.row_fields import Key, lacking, optional, text_of

PICTURE_KEYS = ("bytes", "path", "url")
"""Where an object holds its picture, the first that is not empty."""
OTHER_MEDIA = ("videos", "video", "audios", "audio")
"""Where LLaMA-Factory and ms-swift name what is no picture."""
BASE64 = re.compile(
    r"\s*(?:data:image/[^,]{1,100};base64,|(?=/9j/|iVBORw0KGgo|R0lGOD|UklGR))([A-Za-z0-9+/\s]{32,}+=*\s*)"
)
"""A picture in a text: a data URI, or bare where it begins as JPEG, PNG, GIF and WebP do."""


def keys_of(source: Source, name: str, *aliases: str) -> tuple[Key, ...]:
    """Where to look for our field `name`: where the manifest says, else under its usual names.

    One that the manifest gives to another part of the pair is none of these.
    """
    if name in source.columns:
        key = source.columns[name]
        return () if key is None else (key,)
    return tuple(usual for usual in (name, *aliases) if usual not in source.taken)


def images_of(value: Any) -> tuple[RawImage, ...]:
    """Pictures as files name them: a path, bytes, base64, `{bytes, path}`, a list of these, or one in JSON.

    A list of nulls has none.

    Raises:
        RecordError: anything else
    """
    if value is None or value == "":
        return ()
    entries = entries_of(value)
    return () if all(map(is_nothing, entries)) else tuple(map(_image_of, entries))


def entries_of(value: Any) -> list[Any]:
    """A list as it is, or as a cell of a table spells it in JSON; else a list of the one value."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # a text or the name of a file may begin with a bracket
            value = json.loads(value)
    return value if isinstance(value, list) else [value]


def _image_of(entry: Any) -> RawImage:
    if isinstance(entry, Mapping):
        key = next((key for key in PICTURE_KEYS if entry.get(key)), None)
        if key is None:
            raise lacking("wrong_type", "the object of a picture", entry, PICTURE_KEYS)
        entry = entry[key]
    if isinstance(entry, str) and (found := BASE64.fullmatch(entry)):
        return _decoded(found[1])
    if isinstance(entry, (str, bytes)):
        return entry
    raise RecordError("wrong_type", f"a picture is no path and no bytes but {type(entry).__name__}", entry)


def is_nothing(entry: Any) -> bool:
    """Whether it stands where there is no picture, video or audio: some tables write it for each row."""
    return not (any(entry.values()) if isinstance(entry, Mapping) else entry)


def refuse_other_media(fields: Mapping[Key, Any]) -> None:
    """Refuse a row with a video or audio, which are not read: without them it would say something else.

    Raises:
        RecordError: names the field that holds one
    """
    for key in OTHER_MEDIA:
        if not all(map(is_nothing, entries_of(optional(fields, (key,))))):
            raise RecordError("video_or_audio", f"the record has {key!r}, which is not read", fields[key])


def _decoded(encoded: str) -> bytes:
    """The bytes of base64, with its padding or without; of what was cut, those that are whole."""
    digits = "".join(encoded.split()).rstrip("=")
    digits = digits[:-1] if len(digits) % 4 == 1 else digits
    return base64.b64decode(digits + "=" * (-len(digits) % 4))


def answers_of(value: Any, what: str = "the answer") -> tuple[str, ...]:
    """The answers to one question: a text, or a list of alternatives, the most frequent first and each once.

    An alternative is a text or an object with `answer` or `text`, as VQA corpora have them; SQuAD's
    `{text: [...]}` is understood, too. Blank ones count only where there is no other, nulls never.

    Raises:
        RecordError: anything else, a list that holds none too
    """
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    if not isinstance(value, list):
        return (text_of(value, what),)
    alternatives = [found for entry in value if (found := _alternative(entry)) is not None]
    texts = Counter(text_of(alternative, what) for alternative in alternatives)
    if not texts:
        raise RecordError("missing_field", f"{what} is a list that holds none", value)
    ordered = [text for text, _ in texts.most_common()]
    return tuple(text for text in ordered if text.strip()) or (ordered[0],)


def _alternative(entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    return next((entry[key] for key in ("answer", "text") if key in entry), entry)


def negatives_of(value: Any) -> tuple[RawSide, ...]:
    """Hard negatives: a text, `{text, images}`, a list of these, or one in JSON. `[1]` is a text.

    A blank one without pictures is none: some corpora fill up with these.

    Raises:
        RecordError: anything else
    """
    if value is None or value == "":
        return ()
    entries = entries_of(value)
    if isinstance(value, str) and not all(isinstance(entry, (str, Mapping)) for entry in entries):
        entries = [value]
    found = map(_negative_of, entries)
    return tuple(side for side in found if side.images or side.text.strip())


def _negative_of(entry: Any) -> RawSide:
    if isinstance(entry, str):
        return RawSide(entry)
    if isinstance(entry, Mapping) and (set(entry) & {"text", "images"}):
        text = entry.get("text")
        return RawSide("" if text is None else text_of(text, "a negative"), images_of(entry.get("images")))
    raise RecordError("wrong_type", "a negative is no text and no object with `text` or `images`", entry)


def _key(fields: Mapping[Key, Any], names: Sequence[Key], what: str) -> str | None:
    """A declared key as text. A table makes floats of whole numbers where a row has none: `7.0` is 7."""
    value = optional(fields, names)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else text_of(value, what)


def declared(fields: Mapping[Key, Any], source: Source) -> dict[str, Any]:
    """Arguments of `RawPair` that any format may declare: `group_id`, `positive_key`, `negatives`."""
    found: dict[str, Any] = {}
    for name in ("group_id", "positive_key"):
        if text := _key(fields, keys_of(source, name), name):
            found[name] = text
    if negatives := optional(fields, keys_of(source, "negatives")):
        found["negatives"] = negatives_of(negatives)
    return found
