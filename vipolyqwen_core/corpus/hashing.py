"""Identities: of a pair, of a side, of the content of files. BLAKE2b over lengths and contents."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from vipolyqwen_core.contract import Task, Turn

BLOCK_BYTES = 1 << 20


def sample_id(
    task: Task,
    query: str,
    target: str,
    query_images: Sequence[str] = (),
    target_images: Sequence[str] = (),
    history: Sequence[Turn] | None = None,
    score: float | None = None,
) -> str:
    """32 hex digits: hash of task, both sides with their pictures, and the score as float32.

    Stable across runs, machines and the place of the row in its file. Texts are taken as they are: normalise
    first.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"sample")
    _add_text(digest, str(task))
    _add_side(digest, query, query_images, history)
    _add_side(digest, target, target_images, None)
    digest.update(b"-" if score is None else struct.pack("<f", score))
    return digest.hexdigest()


def side_hash(text: str, image_ids: Sequence[str] = (), history: Sequence[Turn] | None = None) -> int:
    """64 bits, never 0: identity of a side, equal for a query and a target of equal content."""
    digest = hashlib.blake2b(digest_size=8, person=b"side")
    _add_side(digest, text, image_ids, history)
    return int.from_bytes(digest.digest(), "little") or 1


def key_hash(key: str | None) -> int:
    """64 bits of a declared key; 0 where there is none."""
    if key is None:
        return 0
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=b"key").digest(), "little") or 1


def content_digest(files: Iterable[Path]) -> str:
    """32 hex digits: hash of the bytes of files, in this order, whatever their names."""
    digest = hashlib.blake2b(digest_size=16, person=b"content")
    for file in files:
        with open(file, "rb") as stream:
            inner = hashlib.blake2b(digest_size=32)
            while block := stream.read(BLOCK_BYTES):
                inner.update(block)
        digest.update(inner.digest())
    return digest.hexdigest()


def fingerprint(*parts: object) -> str:
    """32 hex digits: hash of the spellings of the parts. For settings, versions and names."""
    digest = hashlib.blake2b(digest_size=16, person=b"fingerprint")
    for part in parts:
        _add_text(digest, repr(part))
    return digest.hexdigest()


def _add_side(
    digest: "hashlib.blake2b", text: str, image_ids: Sequence[str], history: Sequence[Turn] | None
) -> None:
    turns = history or ()
    digest.update(struct.pack("<II", len(turns), len(image_ids)))
    for role, content in turns:
        _add_text(digest, role)
        _add_text(digest, content)
    _add_text(digest, text)
    for image in image_ids:
        _add_text(digest, image)


def _add_text(digest: "hashlib.blake2b", text: str) -> None:
    data = text.encode()
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)
