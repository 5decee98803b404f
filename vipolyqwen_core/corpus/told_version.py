"""What a storage tells of a file that changes when its content does."""

from collections.abc import Mapping
from typing import Any

CONTENT_FIELDS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "blob_id", "sha", "CRC")
"""What storages say of a content: S3, Azure and HTTP; Google; HTTP; Hugging Face; GitHub; ZIP."""
TIME_FIELDS = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modificationTime")
"""When a content was written: local files, SFTP and Google; S3; Azure; HTTP; Google; HDFS."""
VERSION_FIELDS = (*CONTENT_FIELDS, *TIME_FIELDS, "modify", "created")
"""The first that a storage tells is taken. `modify` is FTP's; `created` stands for a storage in memory."""


def told_version(info: Mapping[str, Any]) -> str | None:
    """What the storage says; None: neither a mark of the content nor a time."""
    return next((str(info[field]) for field in VERSION_FIELDS if info.get(field) is not None), None)
