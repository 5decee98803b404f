"""Identities: of a pair, of a side, of the content of files. BLAKE2b over lengths and contents."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from vipolyqwen_core.contract import Task, Turn


def side_hash(text: str, image_ids: Sequence[str] = (), history: Sequence[Turn] | None = None) -> int:
    """64 bits, never 0: identity of a side, equal for a query and a target of equal content."""
    return _number(_side_bytes(text, image_ids, history), b"side")


def pair_hashes(
    task: Task,
    query: str,
    target: str,
    query_images: Sequence[str] = (),
    target_images: Sequence[str] = (),
    history: Sequence[Turn] | None = None,
    score: float | None = None,
) -> tuple[str, int, int]:
    """`sample_id` of a pair and `side_hash` of its query and of its target.

    `sample_id`, 32 hex digits: hash of task, both sides with their pictures, and the score as float32. Stable
    across runs, machines and the place of the row in its file. Texts are taken as they are: normalise first.
    """
    sides = _side_bytes(query, query_images, history), _side_bytes(target, target_images, None)
    end = b"-" if score is None else struct.pack("<f", score)
    data = b"".join((_text_bytes(str(task)), *sides, end))
    sample = hashlib.blake2b(data, digest_size=16, person=b"sample").hexdigest()
    return sample, _number(sides[0], b"side"), _number(sides[1], b"side")


def key_hash(key: str | None) -> int:
    """64 bits of a declared key; 0 where there is none."""
    return 0 if key is None else _number(key.encode(), b"key")


def content_digest(files: Iterable[Path]) -> str:
    """32 hex digits: hash of the bytes of files, in this order, whatever their names."""
    digest = hashlib.blake2b(digest_size=16, person=b"content")
    for file in files:
        with open(file, "rb") as stream:
            inner = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32))
        digest.update(inner.digest())
    return digest.hexdigest()


def fingerprint(*parts: object) -> str:
    """32 hex digits: hash of the spellings of the parts. For settings, versions and names."""
    digest = hashlib.blake2b(digest_size=16, person=b"fingerprint")
    for part in parts:
        digest.update(_text_bytes(repr(part)))
    return digest.hexdigest()


def _number(data: bytes, person: bytes) -> int:
    """64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=person).digest(), "little") or 1


def _side_bytes(text: str, image_ids: Sequence[str], history: Sequence[Turn] | None) -> bytes:
    """All that identifies a side, in an unambiguous order."""
    turns = history or ()
    parts = [struct.pack("<II", len(turns), len(image_ids))]
    parts += [_text_bytes(part) for turn in turns for part in turn]
    parts.append(_text_bytes(text))
    parts += map(_text_bytes, image_ids)
    return b"".join(parts)


def _text_bytes(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(8, "little") + data
