"""Logins and tokens of addresses stay out of names and messages; what names a file stays in."""

import pytest

from vipolyqwen_core.corpus.without_secrets import text_without_secrets, unsigned, without_secrets


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("http://ann:p@ss@host:80/a.jsonl?token=T&x=a/b", "http://host:80/a.jsonl"),
        ("https://token@host/a@2024/b.jsonl", "https://host/a@2024/b.jsonl"),
        ("zip://d@e/*.jsonl::https://ann:pass@host/a.zip?token=T", "zip://d@e/*.jsonl::https://host/a.zip"),
        ("zip://a.jsonl::sftp://ann:pass@host/a.zip", "zip://a.jsonl::sftp://host/a.zip"),
        ("blockcache::https://host/a?se=10:00::x", "blockcache::https://host/a::x"),
        ("own://ann:pass@host/a", "own://host/a"),
        ("http://host/my data.jsonl?token=T", "http://host/my data.jsonl"),
    ],
)
def test_logins_and_queries_are_left_out(place: str, shown: str) -> None:
    assert without_secrets(place) == shown
    told = text_without_secrets(f"in {place} is none, nor 'in {place}")
    assert told == f"in {shown} is none, nor 'in {shown}"


def test_a_place_may_have_blanks_and_capitals() -> None:
    assert without_secrets("HTTPS://ann:pass@host/a.jsonl?name=my data&token=T") == "HTTPS://host/a.jsonl"


@pytest.mark.parametrize(
    "place",
    [
        "/data/a?/ann:pass@b.jsonl",
        "C:\\data\\a.jsonl",
        "s3://bucket/a?.jsonl",
        "abfs://container@account.dfs.core.windows.net/a.jsonl",
        "github://owner:repository@main/a.jsonl",
        "hf://datasets/owner/name@main/a.jsonl",
        "zip://a.jsonl::hf://datasets/owner/name@main/a.zip",
        "zip://a@b.jsonl::/data/a.zip",
        "zip://12:30@home.jsonl::/data/a.zip",
        "memory://x:y@z.jsonl",
    ],
)
def test_places_without_secrets_are_themselves(place: str) -> None:
    assert without_secrets(place) == unsigned(place) == place


@pytest.mark.parametrize(
    ("signed", "rest"),
    [
        ("X-Amz-Date=1&versionId=7&X-Amz-Signature=abc", "?versionId=7"),
        ("AWSAccessKeyId=A&Signature=b%3D&Expires=17", ""),
        ("sp=r&st=2026-01-01T00:00:00Z&se=2026-01-02&spr=https&sv=2024&sr=b&sig=x%3D", ""),
        ("download=true&token=T", "?download=true&token=T"),
        ("st=train&se=2&Signature=b", "?st=train&se=2"),
    ],
)
def test_what_signs_a_link_does_not_name_its_file(signed: str, rest: str) -> None:
    assert unsigned(f"https://ann:pass@host/a.jsonl?{signed}") == f"https://host/a.jsonl{rest}"
