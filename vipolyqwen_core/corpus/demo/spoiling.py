"""Ways to spoil an entry of the built-in corpus: each makes the dirty entry of a clean one."""

import json
import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any

import ftfy.bad_codecs  # noqa: F401  registers sloppy-windows-1252
from PIL import Image

from vipolyqwen_core.contract import IMAGE_PLACEHOLDER
from vipolyqwen_core.corpus.demo.files import Entry, Record, owner_record
from vipolyqwen_core.corpus.demo.samples import Picture
from vipolyqwen_core.corpus.demo.vocabulary import Language

Spoil = Callable[[Entry, random.Random], Entry]

# Texts -----------------------------------------------------------------------------------------------------


def _texts_mapped(entry: Entry, change: Callable[[str], str]) -> Entry:
    """The entry with all its texts changed; names, kinds, groups and paths stay."""
    plain = {
        "data_type",
        "images",
        "group_id",
        "positive_key",
        "group",
        "key",
        "score",
        "similarity_score",
        "role",
    }

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [changed(item) for item in value]
        if isinstance(value, dict):
            return {key: item if key in plain else changed(item) for key, item in value.items()}
        return value

    return replace(entry, record=changed(entry.record))


def decomposed(entry: Entry, rng: random.Random) -> Entry:
    """Letters and their marks apart: how some systems save Vietnamese."""
    return _texts_mapped(entry, partial(unicodedata.normalize, "NFD"))


def is_vietnamese(entry: Entry) -> bool:
    """Whether the texts have letters that can be damaged."""
    return entry.sample is not None and entry.sample.language is Language.VI


def mojibake(entry: Entry, rng: random.Random) -> Entry:
    """UTF-8 that was read as Windows-1252 once, as browsers do: they know a meaning for each byte."""
    return _texts_mapped(entry, lambda text: text.encode().decode("sloppy-windows-1252"))


def entities(entry: Entry, rng: random.Random) -> Entry:
    """HTML entities and doubled spaces, as copied from a web page."""
    return _texts_mapped(entry, lambda text: text.replace(",", "&#44;").replace(" ", "&nbsp; ", 1))


def special_tokens(entry: Entry, rng: random.Random) -> Entry:
    """Special tokens of the tokenizer, spelled out in a text."""
    token = rng.choice(("<|im_end|>", "<ocr>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>"))
    return _texts_mapped(entry, lambda text: f"{text} {token}")


# Rows ------------------------------------------------------------------------------------------------------


def same(entry: Entry, rng: random.Random) -> Entry:
    """The row once more."""
    return entry


def with_typo(entry: Entry, rng: random.Random) -> Entry:
    """The row once more as others copied it: a doubled letter, capitals, another full stop; no group."""
    record = {key: value for key, value in _record(entry).items() if key not in ("group", "key")}
    side = rng.choice([key for key in ("sentence1", "sentence2", "output") if key in record])
    text = record[side]
    place = next(i for i in range(len(text) // 2, len(text)) if text[i].isalpha())
    changes = (text[:place] + text[place] + text[place:], text.upper(), text.rstrip(".") + " !")
    return replace(entry, record={**record, side: rng.choice(changes)})


def is_long(entry: Entry) -> bool:
    """Long enough for a typo to leave the sides near-duplicates, and no longer than its script allows."""
    record = _record(entry)
    return all(len(record[key]) >= 72 for key in ("sentence1", "sentence2", "output") if key in record)


def in_the_owners_format(entry: Entry, rng: random.Random) -> Entry:
    """The row once more in another source, in its format."""
    assert entry.sample is not None
    return replace(entry, record=owner_record(entry.sample, rng.randrange(3)))


def under_another_name(entry: Entry, rng: random.Random) -> Entry:
    """The row once more, its picture as another file with the same pixels."""
    copies = tuple(
        replace(picture, path=f"copies/{picture.path.replace('/', '_')}") for picture in entry.pictures
    )
    return _with_pictures(entry, copies)


def reencoded(entry: Entry, rng: random.Random) -> Entry:
    """The row once more as somebody crawled it: its picture as a JPEG of other pixels, and no labels."""
    copy = _renamed(entry, "crawled", ".jpg")
    record = {key: value for key, value in _record(copy).items() if key not in ("group_id", "positive_key")}
    return replace(copy, record=record)


def without_answer(entry: Entry, rng: random.Random) -> Entry:
    """An answer of nothing but spaces."""
    record = dict(_record(entry))
    key = next(key for key in ("sentence2", "output", "answer", "text2") if key in record)
    return replace(entry, record={**record, key: rng.choice(("", "  ", "\u200b"))})


def score_out_of_range(entry: Entry, rng: random.Random) -> Entry:
    """A score that the scale does not have."""
    record = dict(_record(entry))
    key = "score" if "score" in record else "similarity_score"
    return replace(entry, record={**record, key: rng.choice((-1, 7.5, 55))})


def unknown_kind(entry: Entry, rng: random.Random) -> Entry:
    """A `data_type` that nobody has defined."""
    return replace(entry, record={**_record(entry), "data_type": rng.choice(("video_qa", "vqa", "OCR-v2"))})


def cut_line(entry: Entry, rng: random.Random) -> Entry:
    """A line that ends in the middle, as after a full disk."""
    line = json.dumps(entry.record, ensure_ascii=False)
    return replace(entry, record=line[: len(line) * 2 // 3], pictures=())


def no_object(entry: Entry, rng: random.Random) -> Entry:
    """A lone string where a record belongs."""
    return replace(entry, record=str(_record(entry)["output"]))


def has_pictures(entry: Entry) -> bool:
    """Whether there is a placeholder to get wrong."""
    return bool(entry.pictures)


def placeholder_too_many(entry: Entry, rng: random.Random) -> Entry:
    """One more `<image>` than there are pictures."""
    return _questions_mapped(entry, lambda text: f"{IMAGE_PLACEHOLDER}{text}")


def placeholder_too_few(entry: Entry, rng: random.Random) -> Entry:
    """No `<image>` at all."""
    return _questions_mapped(entry, lambda text: text.replace(IMAGE_PLACEHOLDER, ""))


def _questions_mapped(entry: Entry, change: Callable[[str], str]) -> Entry:
    """The entry with its first question changed."""
    record = dict(_record(entry))
    key = "question" if "question" in record else "input"
    if isinstance(asked := record[key], str):
        record[key] = change(asked)
    else:
        first, *rest = asked
        record[key] = [{**first, "content": change(first["content"])}, *rest]
    return replace(entry, record=record)


# Pictures --------------------------------------------------------------------------------------------------


def _with_pictures(entry: Entry, pictures: Sequence[Picture]) -> Entry:
    paths = [picture.path for picture in pictures]
    return replace(entry, pictures=tuple(pictures), record={**_record(entry), "images": paths})


def _renamed(entry: Entry, folder: str, ending: str, **changes: object) -> Entry:
    """The entry with its pictures in another folder under another ending, and changed."""
    pictures = []
    for picture in entry.pictures:
        stem = picture.path.replace("/", "_").rsplit(".", 1)[0]
        pictures.append(replace(picture, path=f"{folder}/{stem}{ending}", **changes))  # type: ignore[arg-type]
    return _with_pictures(entry, pictures)


def truncated(entry: Entry, rng: random.Random) -> Entry:
    """Picture files that end in the middle."""
    return _renamed(entry, "broken", ".png", spoil=lambda data: data[: len(data) // 2])


def no_picture(entry: Entry, rng: random.Random) -> Entry:
    """A web page saved under the name of a picture."""
    return _renamed(entry, "broken", ".png", spoil=lambda data: b"<html><body>404 Not Found</body></html>")


def oversized(entry: Entry, rng: random.Random) -> Entry:
    """A few kilobytes that unpack to more than a hundred million pixels."""
    return _renamed(entry, "broken", ".png", draw=partial(Image.new, "1", (12_000, 9_000)))


def mislabelled(entry: Entry, rng: random.Random) -> Entry:
    """JPEG files named `.png`: every decoder looks at the bytes."""
    return _renamed(entry, "mislabelled", ".png", format="JPEG")


def unusual_mode(entry: Entry, rng: random.Random) -> Entry:
    """CMYK, a palette, transparency, or a camera that was held upside down."""
    change, ending = rng.choice(
        ((_cmyk, ".jpg"), (_palette, ".png"), (_transparent, ".png"), (_turned, ".jpg"))
    )
    pictures = [
        replace(
            p, path=f"modes/{p.path.replace('/', '_').rsplit('.', 1)[0]}{ending}", draw=partial(change, p)
        )
        for p in entry.pictures
    ]
    return _with_pictures(entry, pictures)


def _cmyk(picture: Picture) -> Image.Image:
    return picture.draw().convert("CMYK")


def _palette(picture: Picture) -> Image.Image:
    return picture.draw().convert("P", palette=Image.Palette.ADAPTIVE)


def _transparent(picture: Picture) -> Image.Image:
    return picture.draw().convert("RGBA")


def _turned(picture: Picture) -> Image.Image:
    """Stored upside down, with the EXIF note that says so."""
    image = picture.draw().transpose(Image.Transpose.ROTATE_180)
    image.getexif()[0x0112] = 3
    return image


def missing(entry: Entry, rng: random.Random) -> Entry:
    """Pictures that are not there."""
    return replace(_renamed(entry, "missing", ".png"), pictures=())


def outside(entry: Entry, rng: random.Random) -> Entry:
    """A path out of the image root, to a picture that exists."""
    path = rng.choice(("../outside/photo.png", "scenes/../../outside/photo.png", "/outside/photo.png"))
    return replace(entry, pictures=(), record={**_record(entry), "images": [path]})


def backslashes(entry: Entry, rng: random.Random) -> Entry:
    """Paths as Windows writes them."""
    paths = [picture.path.replace("/", "\\") for picture in entry.pictures]
    return replace(entry, record={**_record(entry), "images": paths})


def photo_outside() -> bytes:
    """The picture that `outside` points at."""
    data = BytesIO()
    Image.new("RGB", (56, 56), (200, 30, 30)).save(data, "PNG")
    return data.getvalue()


def _record(entry: Entry) -> Record:
    if not isinstance(entry.record, dict):
        raise TypeError(f"a raw line takes no more dirt: {entry.record!r:.80}")
    return entry.record
