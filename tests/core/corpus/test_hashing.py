"""Identities: equal for equal content, different for what only looks alike when it is joined."""

from pathlib import Path

import numpy as np
import pytest

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.hashing import content_digest, fingerprint, key_hash, pair_hashes, side_hash

A, B = "a" * 32, "b" * 32


def test_identities_do_not_change_between_versions() -> None:
    turns = [Turn("user", "hỏi"), Turn("assistant", "đáp")]
    hashes = pair_hashes(Task.VQA_MULTI, "câu hỏi", "trả lời", [A], [], turns, 0.25)
    assert hashes[:2] == ("fcb605ed35eef1decc23b2145cebd55f", 15042838060192236955)
    assert side_hash("câu hỏi", [A], turns) == hashes[1]


def test_every_part_of_a_pair_counts() -> None:
    variants = [
        (Task.OCR, "q", "t"),
        (Task.VQA_SINGLE, "q", "t"),
        (Task.OCR, "t", "q"),
        (Task.OCR, "qt", ""),
        (Task.OCR, "q", "t", [A]),
        (Task.OCR, "q", "t", [], [A]),
        (Task.OCR, "q", "t", [A, B]),
        (Task.OCR, "q", "t", [B, A]),
        (Task.OCR, "q", "t", [], [], [Turn("user", "x")]),
        (Task.OCR, "q", "t", [], [], [Turn("userx", "")]),
        (Task.OCR, "q", "t", [], [], None, 0.0),
        (Task.OCR, "q", "t", [], [], None, 0.5),
    ]
    identities = {pair_hashes(*variant)[0] for variant in variants}
    assert len(identities) == len(variants)
    assert all(len(identity) == 32 for identity in identities)


def test_a_score_is_the_float32_that_the_table_holds() -> None:
    assert pair_hashes(Task.TEXT_PAIR, "q", "t", score=0.1) == pair_hashes(
        Task.TEXT_PAIR, "q", "t", score=float(np.float32(0.1))
    )


def test_a_side_is_the_same_as_query_and_as_target() -> None:
    assert side_hash("x", [A]) == side_hash("x", (A,), ())
    assert side_hash("x", [A]) != side_hash("x", [B])
    assert side_hash("x") != side_hash("", (), [Turn("", "x")])
    assert 0 < side_hash("x") < 2**64


def test_no_key_is_zero() -> None:
    assert key_hash(None) == 0
    assert key_hash("") != 0
    assert key_hash("a") != key_hash("b")


def test_files_count_by_content_and_by_where_each_ends(tmp_path: Path) -> None:
    def digest(*contents: bytes) -> str:
        paths = []
        for number, content in enumerate(contents):
            paths.append(tmp_path / f"{len(contents)}_{number}_{len(content)}")
            paths[-1].write_bytes(content)
        return content_digest(paths)

    assert digest(b"ab", b"c") == digest(b"ab", b"c")
    assert digest(b"abcde") != digest(b"abcdf")
    assert digest(b"ab", b"c") != digest(b"a", b"bc") != digest(b"abc")


@pytest.mark.parametrize(
    ("one", "other"), [(("a", "b"), ("ab",)), ((1,), ("1",)), ((1, 23), (12, 3)), ((None,), ())]
)
def test_fingerprints_tell_parts_apart(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert fingerprint(*one) != fingerprint(*other)
    assert fingerprint(*one) == fingerprint(*one)
