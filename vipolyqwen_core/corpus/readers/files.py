"""Files of a source, local or behind any fsspec URL, packed or not, and their lines whatever the encoding."""

import codecs
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import IO, Any, AnyStr, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from vipolyqwen_core.corpus.file_version import file_version
from vipolyqwen_core.corpus.hashing import fingerprint
from vipolyqwen_core.corpus.manifest import Source, unfilled
from vipolyqwen_core.corpus.names_on_disk import forms_on_disk
from vipolyqwen_core.corpus.readers.decoded_lines import decode_line
from vipolyqwen_core.corpus.readers.local_folders import LocalFolders
from vipolyqwen_core.corpus.readers.not_text import refuse_other_than_text
from vipolyqwen_core.corpus.readers.packed_files import is_packed, open_bytes
from vipolyqwen_core.corpus.readers.records import RecordError
from vipolyqwen_core.corpus.readers.remote_folders import remote_folders
from vipolyqwen_core.corpus.storage import (
    PIECE_BYTES,
    REMOTE_ERRORS,
    find_file,
    find_places,
    is_web,
    open_storage,
    told_version,
    why,
)
from vipolyqwen_core.corpus.without_secrets import unsigned, without_secrets

BYTE_ORDER_MARK = "\ufeff"
MAX_LINE_BYTES = 32 * 1024 * 1024
"""A longer line is none of a corpus, but a file without line breaks, or zeros after a power cut. Of UTF-16
these are characters."""
SHOWN_BYTES = 1000
"""So much of a longer line is kept."""
_MAGIC = re.compile(r"[*?\[]")
_WEB_MAGIC = re.compile(r"[*\[]")
"""In a web address a question mark begins what is asked of the server."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    name: str
    """Relative to the source's root, fit for UTF-8, without logins and queries: what the ledger calls it."""
    location: str
    """Path or URL."""
    size_bytes: int
    """As it lies there, packed or not."""
    version: str
    """Changes when the file does, see `file_version`; may be empty where it was not to be read for it."""

    @property
    def suffix(self) -> str:
        """The suffix of the content, lower case, without that of a packer: `.csv` of `a.CSV.gz`."""
        path = PurePosixPath(self.name)
        return (path.with_suffix("") if is_packed(self.name) else path).suffix.lower()


class Line(NamedTuple):
    """A line of a text file."""

    number: int
    """1-based."""
    text: str
    """Without its line break."""
    is_cut: bool = False
    """Whether the line is longer than MAX_LINE_BYTES, and `text` only its beginning."""


def list_files(source: Source, read_unversioned: bool = True) -> list[SourceFile]:
    """The files that the paths of a source name, sorted by name; each once.

    Args:
        read_unversioned: of a storage that tells neither a mark of the content nor a time, read whole files
            for their versions; else these are empty, for those who ask often
    Raises:
        ValueError: a path or glob names no file, a folder, a pipe, or a storage that cannot be opened
    """
    files: dict[tuple[str, str], tuple[str, str, str, dict[str, Any]]] = {}
    roots = []
    true_folder = cache(os.path.realpath)
    for pattern in source.paths:
        told = without_secrets(pattern)
        try:
            fs, path = open_storage(pattern)
            is_local = isinstance(fs, LocalFileSystem)
            if is_local:
                path = str(PurePosixPath(path))  # `a//b` and `a/./b` are the file `a/b`
            infos = _find(fs, path)
            if is_local and not infos:
                forms = forms_on_disk(path)
                path, infos = next(
                    ((form, some) for form in forms if (some := _find(fs, form))), (path, infos)
                )
            of_files = {place: info for place, info in infos.items() if info["type"] != "directory"}
            version_of = file_version if read_unversioned else _told
            versions = {place: version_of(fs, place, info) for place, info in of_files.items()}
        except REMOTE_ERRORS as error:
            raise ValueError(f"source {source.name!r}: {told} cannot be opened: {why(error)}") from error
        if infos.get(path, {}).get("type") == "directory":
            raise ValueError(f"source {source.name!r}: {told} is a folder; name files: {told}/*.jsonl")
        if not of_files:
            what = "no file matches" if _is_glob(fs, path) else "there is no file"
            raise ValueError(f"source {source.name!r}: {what} {told}{unfilled(pattern)}")
        before, after = ("", "") if is_local else _around(path, pattern, fs)
        roots.append(_fixed_folder(_full_name(before, path, after)))
        for place, info in of_files.items():
            location = before + place + after
            # folders have several names by links and `..`; a file that is a link has a name of its own
            folder, _, name = location.rpartition("/")
            key = (true_folder(folder) if is_local else folder, name)
            files.setdefault(key, (location, _full_name(before, place, after), versions[place], info))
    root = _common_folder(roots)
    names = _distinct_names([(name, location) for location, name, _, _ in files.values()])
    listed = [
        SourceFile(
            name=_spelled(name.removeprefix(root).lstrip("/")),
            location=location,
            size_bytes=int(info.get("size") or 0),
            version=version,
        )
        for name, (location, _, version, info) in zip(names, files.values(), strict=True)
    ]
    return sorted(listed, key=lambda file: file.name)


def _find(fs: AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """What a storage tells of each place that a path or glob names.

    Raises:
        OSError: one is a pipe or the like, which would be waited for without end
    """
    fs.invalidate_cache()  # a process that lives long, as a sensor's, would see old listings
    if not _is_glob(fs, path) or fs.exists(path):
        info = find_file(fs, path)
        infos = {} if info is None else {path: info}
    elif isinstance(fs, LocalFileSystem):
        infos = LocalFolders().glob(path, detail=True)
    else:
        folders = remote_folders(fs)
        places = find_places(folders, path)
        infos = {place: find_file(folders, place) or {"type": "file"} for place in places}
    strange = next((place for place, info in infos.items() if info["type"] == "other"), None)
    if strange is not None:
        raise OSError(f"{strange} is no regular file")
    return infos


def _is_glob(fs: AbstractFileSystem, path: str) -> bool:
    return bool((_WEB_MAGIC if is_web(fs) else _MAGIC).search(path))


def _spelled(name: str) -> str:
    """A name that is fit for UTF-8, and no other file's: the bytes of it that are none are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _full_name(before: str, place: str, after: str) -> str:
    """What a location is called, without logins and queries; parts as `_around` gives them."""
    if after:  # an archive is a folder, and a question mark in the name of its member is one
        return f"{without_secrets(after.removeprefix('::'))}/{place}"
    return without_secrets(before + place)


def _distinct_names(named: Sequence[tuple[str, str]]) -> list[str]:
    """Names for files of these names and locations: their own, or where several have it one by its address.

    That is `folder/1f2e3d4c/a.csv`, by a hash of what does not sign the address, if that tells it apart.
    """

    def apart(name: str, address: str) -> str:
        folder, slash, last = name.rpartition("/")
        return f"{folder}{slash}{fingerprint(address)[:8]}/{last}"

    possible = [(name, apart(name, unsigned(place)), apart(name, place)) for name, place in named]
    times = Counter(name for names in possible for name in set(names))
    return [next((name for name in names if times[name] == 1), names[-1]) for names in possible]


def _told(fs: Any, place: str, info: dict[str, Any]) -> str:
    return told_version(info) or ""


def files_fingerprint(files: Collection[SourceFile]) -> str:
    """Hash of names, sizes and versions: equal while no file was added, removed or changed."""
    return fingerprint(*((file.name, file.size_bytes, file.version) for file in files))


@contextmanager
def _open_text(location: str) -> Iterator[tuple[io.TextIOWrapper | IO[bytes], str]]:
    """UTF-16 as text; else bytes, without the mark of UTF-8. And what ends the lines.

    Raises:
        OSError: it is no text
    """
    with open_bytes(location) as stream:
        buffered = stream if hasattr(stream, "peek") else io.BufferedReader(stream)  # type: ignore[type-var]
        start = buffered.peek(16)
        refuse_other_than_text(start)
        wide = _utf_16(start)
        line_break = _line_break(start.decode(wide or "latin-1", "ignore"))
        if wide:
            text = io.TextIOWrapper(buffered, encoding=wide, errors="replace", newline=line_break)
            yield text, line_break
            return
        if start.startswith(codecs.BOM_UTF8):
            buffered.read(len(codecs.BOM_UTF8))
        yield buffered, line_break


def _utf_16(start: bytes) -> str | None:
    """The kind of UTF-16 that a file begins with: by its mark, or by zeros in every other byte."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    first, second = start[::2].count(0), start[1::2].count(0)
    if max(first, second) * 4 <= len(start) or min(first, second) * 10 > max(first, second):
        return None
    return "utf-16-le" if second > first else "utf-16-be"


def _line_break(start: str) -> str:
    """What ends the lines of a text that begins so: a carriage return alone where no line feed is near.

    Excel for the Mac writes such files.
    """
    return "\r" if "\r" in start[:-1] and "\n" not in start else "\n"


def read_lines(location: str, languages: Collection[str] = ()) -> Iterator[Line]:
    """Lines of a text file, streaming: UTF-16 by its mark or its zeros, else each line by `decode_line`.

    Files that were put together keep their marks within: none is a part of its line. Lines may end with a
    line feed, with a carriage return before it, or in the whole file with that alone.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: the file, or its packing, breaks off, it is no text, or
            a line is longer than MAX_LINE_BYTES
    """
    for line in read_cut_lines(location, languages):
        if line.is_cut:
            raise OSError(f"line {line.number} is longer than {MAX_LINE_BYTES} bytes")
        yield line


def read_cut_lines(location: str, languages: Collection[str] = ()) -> Iterator[Line]:
    """Lines as `read_lines` gives them; of one that is too long the beginning, and the lines behind it.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: the file, or its packing, breaks off, or it is no text
    """
    with _open_text(location) as (stream, line_break):
        if isinstance(stream, io.TextIOWrapper):
            for number, (text, is_cut) in enumerate(_cut_lines(stream, line_break), 1):
                yield Line(number, text.rstrip("\r\n").lstrip(BYTE_ORDER_MARK), is_cut)
            return
        lines: Iterable[tuple[bytes, bool]]
        if line_break == "\r":
            characters = io.TextIOWrapper(stream, encoding="latin-1", newline="\r")  # one of each byte
            lines = ((text.encode("latin-1"), is_cut) for text, is_cut in _cut_lines(characters, "\r"))
        else:
            lines = _cut_lines(stream, b"\n")
        for number, (data, is_cut) in enumerate(lines, 1):
            text = decode_line(data.rstrip(b"\r\n"), languages).lstrip(BYTE_ORDER_MARK)
            yield Line(number, text, is_cut)


def _cut_lines(stream: IO[AnyStr], line_break: AnyStr) -> Iterator[tuple[AnyStr, bool]]:
    """Lines with their line breaks, and whether one was too long: then it is its beginning."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        is_cut = len(line) > MAX_LINE_BYTES and not line.endswith(line_break)
        if is_cut:
            line = line[:SHOWN_BYTES]
            while (rest := stream.readline(PIECE_BYTES)) and not rest.endswith(line_break):
                pass
        yield line, is_cut


def too_long(line: Line, helps: str = "") -> RecordError:
    """Why a line that is cut gives no record, and what helps."""
    return RecordError("line_too_long", f"the line is longer than {MAX_LINE_BYTES} bytes{helps}", line.text)


def read_pieces(location: str, languages: Collection[str]) -> Iterator[str]:
    """The text of a file as `read_lines` decodes it, in pieces that end with a line where lines are short.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: the file, or its packing, breaks off, or it is no text
    """
    with _open_text(location) as (stream, _):
        if isinstance(stream, io.TextIOWrapper):
            while text := stream.read(PIECE_BYTES):
                yield text
            return
        while data := stream.readline(PIECE_BYTES):
            while not data.endswith(b"\n") and _cut_character(data) and (more := stream.read(1)):
                data += more
            yield decode_line(data, languages)


def _cut_character(data: bytes) -> bool:
    """Whether bytes end within a character of UTF-8."""
    for back, byte in enumerate(reversed(data[-3:]), 1):
        if byte & 0xC0 != 0x80:
            return byte >= 0xC0 and back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
    return False


def read_text(location: str, languages: Collection[str] = ()) -> str:
    """The whole text of a file, decoded as `read_lines` does, with `\\n` as line break.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: as `read_lines` does
    """
    return "\n".join(line.text for line in read_lines(location, languages))


def _around(path: str, pattern: str, fs: Any) -> tuple[str, str]:
    """What stands before and after the path in its URL: `zip://` and `::s3://bucket/a.zip`."""
    if pattern.endswith(path):
        return pattern.removesuffix(path), ""
    before, found, after = pattern.partition(f"{path}::")
    if found:
        return before, f"::{after}"
    return f"{fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]}://", ""


def _fixed_folder(location: str) -> str:
    """The folder above the first part of a pattern that has a wildcard, or above the file."""
    parts = location.split("/")[:-1]
    fixed = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    return "/".join(parts[:fixed]) + "/"


def _common_folder(folders: list[str]) -> str:
    split = [folder.split("/")[:-1] for folder in folders]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) != 1:
            break
        common.append(parts[0])
    return "/".join(common) + "/" if common else ""
