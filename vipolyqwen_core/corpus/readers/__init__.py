"""Readers: from the files of a source to records, each with its pairs or with the reason why it has none.

check_source(source)    refuses what cannot work, before any work
read_source(source)     streams; a broken record is a `Rejection`, never an exception
"""

from vipolyqwen_core.corpus.readers.adapter import adapter_digest
from vipolyqwen_core.corpus.readers.files import SourceFile, files_fingerprint, list_files
from vipolyqwen_core.corpus.readers.read import check_source, read_source
from vipolyqwen_core.corpus.readers.records import (
    RawImage,
    RawPair,
    RawSide,
    Record,
    RecordError,
    Rejection,
    shorten,
)

__all__ = [
    "check_source",
    "read_source",
    "adapter_digest",
    "list_files",
    "files_fingerprint",
    "SourceFile",
    "Record",
    "RawPair",
    "RawSide",
    "RawImage",
    "Rejection",
    "RecordError",
    "shorten",
]
