"""A file's version moves with its content, whatever a storage tells of it."""

from typing import Any

import fsspec
import pytest

from vipolyqwen_core.corpus.file_version import file_version

SIZE = {"type": "file", "size": 4}
STORAGES = {
    "local": ({"mtime": 1.5, "ino": 7, "created": 1.0}, {"mtime": 2.5}),
    "s3": ({"ETag": '"a"', "LastModified": "2026-01-01", "StorageClass": "STANDARD"}, {"ETag": '"b"'}),
    "gcs": ({"etag": "CJ=", "md5Hash": "a==", "mtime": 1, "updated": "2026-01-01"}, {"etag": "CK="}),
    "gcs without etag": ({"md5Hash": "a==", "updated": "2026-01-01"}, {"md5Hash": "b=="}),
    "azure": ({"etag": "0x1", "last_modified": "2026-01-01"}, {"etag": "0x2"}),
    "http": ({"ETag": '"a"', "url": "https://host/x.png"}, {"ETag": '"b"'}),
    "http without ETag": (
        {"Last-Modified": "Mon, 05 Jan", "url": "https://host/x.png"},
        {"Last-Modified": "Tue, 06 Jan"},
    ),
    "hdfs": ({"modificationTime": 1}, {"modificationTime": 2}),
    "ftp": ({"modify": "20260101"}, {"modify": "20260102"}),
    "memory": ({"created": "2026-01-01"}, {"created": "2026-01-02"}),
}


@pytest.mark.parametrize("name", STORAGES)
def test_a_change_of_equal_size_is_seen_without_reading(name: str) -> None:
    told, change = STORAGES[name]
    before: dict[str, Any] = {**SIZE, **told}
    nothing = fsspec.filesystem("memory")  # reading "absent" would raise
    assert file_version(nothing, "absent", before) == file_version(nothing, "absent", dict(before))
    assert file_version(nothing, "absent", before) != file_version(nothing, "absent", {**before, **change})


def test_s3_tells_the_same_of_a_file_that_is_listed_and_one_that_is_asked_for() -> None:
    listed = {"ETag": '"a"', "LastModified": "2026-01-01", "Key": "b/x.png", "Size": 4, **SIZE}
    asked = {
        "ETag": '"a"',
        "LastModified": "2026-01-01",
        "ContentType": "image/png",
        "VersionId": None,
        **SIZE,
    }
    nothing = fsspec.filesystem("memory")
    assert file_version(nothing, "absent", listed) == file_version(nothing, "absent", asked)


def test_a_storage_that_tells_nothing_has_its_bytes_read() -> None:
    memory = fsspec.filesystem("memory")
    versions = []
    for content in (b"mot.", b"hai.", b"mot."):
        memory.pipe_file("/versions/x.txt", content)
        versions.append(file_version(memory, "/versions/x.txt", SIZE))
    assert versions[0] == versions[2] != versions[1]
