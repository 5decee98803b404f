"""Files are found, named and read whatever their place, packing and encoding."""

import bz2
import gzip
import io
import lzma
import os
import sys
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.readers import files
from vipolyqwen_core.corpus.readers.decoded_lines import decode_line
from vipolyqwen_core.corpus.readers.files import (
    PIECE_BYTES,
    files_fingerprint,
    list_files,
    read_cut_lines,
    read_lines,
)
from vipolyqwen_core.corpus.readers.records import UNREADABLE

VIETNAMESE = "Đường đến trường của em rất đẹp"


def source(*paths: Path | str) -> Source:
    return Source(name="s", format=Format.OWNER_JSONL, paths=tuple(str(path) for path in paths))


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_files_are_named_from_the_fixed_part_of_their_paths_and_sorted(tmp_path: Path) -> None:
    write(tmp_path, "in/b/2.jsonl", "in/a/1.jsonl", "in/a/deep/3.jsonl", "in/a/1.csv")
    listed = list_files(source(tmp_path / "in/**/*.jsonl"))
    assert [file.name for file in listed] == ["a/1.jsonl", "a/deep/3.jsonl", "b/2.jsonl"]
    assert all(Path(file.location).is_file() for file in listed)
    two = list_files(source(tmp_path / "in/b/2.jsonl", tmp_path / "in/a/*.csv", tmp_path / "in/a/1.*"))
    assert [file.name for file in two] == ["a/1.csv", "a/1.jsonl", "b/2.jsonl"]


def test_a_member_of_an_archive_packed_by_bzip2_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zipfile unpacks all that a piece holds: half a kilobyte took a gigabyte."""
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.txt.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.txt", b"first\n" + b"x" * 50_000_000 + b"\nlast\n")
    tracemalloc.start()
    try:
        lines = list(read_cut_lines(str(tmp_path / "a.txt.zip")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(line.is_cut, line.text[:4]) for line in lines] == [
        (False, "firs"),
        (True, "xxxx"),
        (False, "last"),
    ]
    assert peak < 20_000_000


def test_a_question_mark_in_the_name_of_a_member_of_an_archive_elsewhere_is_one() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("what?.jsonl", "{}\n")
    fsspec.filesystem("memory").pipe("/asked/a.zip", packed.getvalue())
    (file,) = list_files(source("zip://*.jsonl::memory://asked/a.zip"))
    assert (file.name, file.suffix) == ("what?.jsonl", ".jsonl")


def test_a_name_with_brackets_is_a_name_where_such_a_file_stands(tmp_path: Path) -> None:
    write(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert [file.name for file in list_files(source(tmp_path / "a[1].jsonl"))] == ["a[1].jsonl"]


def test_a_file_that_is_spelled_in_several_ways_is_listed_once(tmp_path: Path) -> None:
    write(tmp_path, "in/a.jsonl")
    paths = ("a.jsonl", "/a.jsonl", "./a.jsonl", "../in/a.jsonl", "//*.jsonl")
    spelled = [f"{tmp_path}/in/{path}" for path in paths]
    listed = list_files(source(*spelled, f"file://{tmp_path}/in/a.jsonl"))
    assert [(file.name, file.location) for file in listed] == [("a.jsonl", f"{tmp_path}/in/a.jsonl")]


@pytest.mark.skipif(sys.platform == "darwin", reason="names are found in either form there")
@pytest.mark.parametrize(("written", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("name", ["tệp.csv", "*.csv"])
def test_names_are_found_in_either_form_of_unicode(
    tmp_path: Path, written: Literal["NFC", "NFD"], asked: Literal["NFC", "NFD"], name: str
) -> None:
    write(tmp_path, unicodedata.normalize(written, "dữ liệu/tệp.csv"))
    (file,) = list_files(source(tmp_path / unicodedata.normalize(asked, f"dữ liệu/{name}")))
    assert file.name == unicodedata.normalize(written, "tệp.csv")
    assert Path(file.location).is_file()


@pytest.mark.skipif(sys.platform == "darwin", reason="names are found in either form there")
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["dữ liệu/tệp.csv", "dữ liệu/*.csv", "*/tệp.csv"])
def test_names_are_found_where_each_is_in_a_form_of_its_own(
    tmp_path: Path, asked: Literal["NFC", "NFD"], name: str
) -> None:
    """A folder from a Mac below one that was made here, and back."""
    folder = f"{unicodedata.normalize('NFC', 'của tôi')}/{unicodedata.normalize('NFD', 'dữ liệu')}"
    write(tmp_path, f"{folder}/{unicodedata.normalize('NFC', 'tệp.csv')}")
    (file,) = list_files(source(tmp_path / unicodedata.normalize(asked, f"của tôi/{name}")))
    assert Path(file.location).is_file()


@pytest.mark.parametrize("pattern", ["in/*/*.jsonl", "in/**/*.jsonl"])
def test_a_folder_behind_a_link_belongs_to_a_glob_and_one_of_two_names_counts(
    tmp_path: Path, pattern: str
) -> None:
    write(tmp_path, "in/b/1.jsonl", "disk/2.jsonl")
    (tmp_path / "in/a").symlink_to(tmp_path / "disk")
    (tmp_path / "in/c").symlink_to("b")
    (tmp_path / "in/b/loop").symlink_to(tmp_path / "in")
    assert [file.name for file in list_files(source(tmp_path / pattern))] == ["a/2.jsonl", "b/1.jsonl"]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "in/a/1.jsonl", "in/b/2.jsonl")
    listed = os.scandir

    def scandir(path: str) -> object:
        if path == f"{tmp_path}/in/b":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"in/b cannot be listed: .*Permission denied"):
        list_files(source(tmp_path / "in/**/*.jsonl"))


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are Unicode there")
def test_names_that_are_no_utf_8_stay_apart(tmp_path: Path) -> None:
    for name in ("a\udcfe.jsonl", "a\udcff.jsonl"):
        (tmp_path / name).touch()
    listed = list_files(source(tmp_path / "*.jsonl"))
    assert [file.name for file in listed] == [r"a\udcfe.jsonl", r"a\udcff.jsonl"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x.jsonl", "there is no file .*x.jsonl"),
        ("*.csv", "no file matches .*csv"),
        ("$DATA/x.jsonl", "there is no file .*x.jsonl; `.` is a plain character"),
        ("folder", "folder is a folder"),
        ("nonsense://a", "cannot be opened"),
    ],
)
def test_a_path_without_files_is_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"source 's': .*{message}"):
        list_files(source(path if "://" in path else tmp_path / path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("path", ["pipe.jsonl", "*.jsonl"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, path: str) -> None:
    write(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"cannot be opened: .*pipe\.jsonl is no regular file"):
        list_files(source(tmp_path / path))


@pytest.mark.parametrize("cache", ["", "simplecache::", "filecache::"])
def test_files_behind_a_url_are_listed_and_read(cache: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/corpus_a/x/1.txt", b"mot\nhai")
    memory.pipe_file("/corpus_a/y/2.txt", b"ba")
    listed = list_files(source(f"{cache}memory://corpus_a/*/*.txt"))
    assert [file.name for file in listed] == ["x/1.txt", "y/2.txt"]
    assert [line.text for line in read_lines(listed[0].location)] == ["mot", "hai"]


def test_files_within_archives_are_listed_and_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("in/1.csv", name)
    one = list_files(source(f"zip://in/*.csv::file://{tmp_path}/a.zip"))
    assert [(file.name, file.suffix) for file in one] == [("1.csv", ".csv")]
    two = list_files(source(f"zip://in/*.csv::{tmp_path}/a.zip", f"zip://in/1.csv::{tmp_path}/b.zip"))
    assert [line.text for file in two for line in read_lines(file.location)] == ["a", "b"]
    assert [file.name for file in two] == ["a.zip/in/1.csv", "b.zip/in/1.csv"]


def test_the_fingerprint_moves_with_any_file(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "b.jsonl")
    first = files_fingerprint(list_files(source(tmp_path / "*.jsonl")))
    assert files_fingerprint(list_files(source(tmp_path / "*.jsonl"))) == first
    (tmp_path / "a.jsonl").write_text("A.jsonl")  # as long as before
    second = files_fingerprint(list_files(source(tmp_path / "*.jsonl")))
    write(tmp_path, "c.jsonl")
    assert len({first, second, files_fingerprint(list_files(source(tmp_path / "*.jsonl")))}) == 3


def test_the_fingerprint_moves_with_an_object_of_equal_size() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/corpus_b/a.jsonl", b"one")
    first = files_fingerprint(list_files(source("memory://corpus_b/*.jsonl")))
    assert files_fingerprint(list_files(source("memory://corpus_b/*.jsonl"))) == first
    memory.pipe_file("/corpus_b/a.jsonl", b"two")
    assert files_fingerprint(list_files(source("memory://corpus_b/*.jsonl"))) != first


def zipped(*contents: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"folder/{number}.csv", content)
    return buffer.getvalue()


def in_two(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Two streams, as parallel packers write them."""
    return lambda data: pack(data[:5]) + pack(data[5:])


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": ["mot"]}), buffer)
    return buffer.getvalue()


PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lzma": lzma.compress,
    ".ZST": zstd,
}


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        *((suffix, in_two(pack)) for suffix, pack in PACKERS.items()),
        (".zip", zipped),
        ("", bytes),
    ],
)
def test_packed_files_are_unpacked(tmp_path: Path, suffix: str, packed: object) -> None:
    path = tmp_path / f"a.CSV{suffix}"
    path.write_bytes(packed(b"\xef\xbb\xbfmot\r\nhai"))  # type: ignore[operator]
    assert [line[:2] for line in read_lines(str(path))] == [(1, "mot"), (2, "hai")]
    assert list_files(source(path))[0].suffix == ".csv"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"{}\n"), "packed by gzip, but"),
        (bz2.compress(b"{}\n"), "packed by bzip2, but"),
        (lzma.compress(b"{}\n"), "packed by xz, but"),
        (zstd(b"{}\n"), "packed by zstd, but"),
        (zipped(b"xl/workbook.xml"), "a ZIP archive, as workbooks of Excel are"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "an old workbook of Excel"),
        (parquet(), "Parquet, but its name does not end with .parquet"),
    ],
    ids=["gzip", "bzip2", "xz", "zstd", "zip", "workbook", "parquet"],  # packed bytes hold the time
)
def test_what_was_given_a_texts_name_is_told_for_what_it_is(
    tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UNREADABLE, match=f"no text: it is {what}"):
        next(read_lines(str(tmp_path / "a.jsonl")))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UNREADABLE, match=f"no text: it is {what}"):
        next(read_lines(str(tmp_path / "a.jsonl.gz")))


@pytest.mark.parametrize("text", ["BZh9 là một mã số", "PK 12 đường số 3", "PAR1 and PAR2", "(/ và )"])
def test_a_text_that_begins_like_another_kind_of_file_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert next(read_lines(str(tmp_path / "a.txt"))).text == text


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_zeros_that_fill_up_a_stream_are_no_damage(tmp_path: Path, suffix: str) -> None:
    pack, path = PACKERS[suffix], tmp_path / f"a.txt{suffix}"
    path.write_bytes(pack(b"one\n") + bytes(8) + pack(b"two\n") + bytes(3 * PIECE_BYTES))
    assert [line.text for line in read_lines(str(path))] == ["one", "two"]


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "broken"])
def test_a_packed_file_of_which_a_later_stream_is_damaged_is_not_taken_for_whole(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    first, second = PACKERS[suffix](b"one\n"), PACKERS[suffix](b"two\n" * 100)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(first + (second[:-1] if damage == "cut" else b"rubbish" + second))
    with pytest.raises(UNREADABLE):
        list(read_lines(str(path)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_marks_at_the_start_decide_the_encoding(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "a.txt").write_bytes(f"{mark}{VIETNAMESE}\r\nhai\n".encode(encoding))
    assert [line.text for line in read_lines(str(tmp_path / "a.txt"))] == [VIETNAMESE, "hai"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_shows_by_its_zeros(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(f"{VIETNAMESE}\r\nhai\n".encode(encoding))
    assert [line.text for line in read_lines(str(tmp_path / "a.txt"))] == [VIETNAMESE, "hai"]


@pytest.mark.parametrize("zeros", [b"\0", bytes(2), bytes(4096)])
def test_zeros_in_a_text_of_bytes_do_not_make_it_utf_16(tmp_path: Path, zeros: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(b"one" + zeros + b"\ntwo\n")
    assert [line.text for line in read_lines(str(tmp_path / "a.txt"))] == [f"one{zeros.decode()}", "two"]


def test_a_line_break_that_is_cut_is_no_carriage_return_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * (io.DEFAULT_BUFFER_SIZE - 1) + b"\r\nb\r\n")
    assert [line.text[-1:] for line in read_lines(str(tmp_path / "a.txt"))] == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines_may_end_with_a_carriage_return_alone(
    tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / ("a.txt" if pack is bytes else "a.txt.gz")
    path.write_bytes(pack("mêt\r\rhai\rba".encode(encoding)))
    assert [line[:2] for line in read_lines(str(path))] == [(1, "mêt"), (2, ""), (3, "hai"), (4, "ba")]


def test_a_carriage_return_in_a_line_is_a_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\nthree")
    assert [line.text for line in read_lines(str(tmp_path / "a.txt"))] == ["one\rtwo", "three"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_marks_within_a_file_are_no_text(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff\ufeffmột\n\ufeffhai\n".encode(encoding))
    assert [line.text for line in read_lines(str(tmp_path / "a.txt"))] == ["một", "hai"]


def test_old_encodings_are_told_apart_line_by_line(tmp_path: Path) -> None:
    old = unicodedata.normalize("NFD", VIETNAMESE)
    for letter in "ăâđêôơưĂÂĐÊÔƠƯ":  # Windows-1258 has these letters whole and the five tones apart
        old = old.replace(unicodedata.normalize("NFD", letter), letter)
    lines = [VIETNAMESE.encode(), old.encode("cp1258"), "déjà vu – naïve".encode("cp1252"), b"plain"]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    read = [line.text for line in read_lines(str(tmp_path / "a.txt"))]
    assert read == [VIETNAMESE, VIETNAMESE, "déjà vu – naïve", "plain"]


@pytest.mark.parametrize(
    ("data", "languages", "text"),
    [
        ("però lunedì canción São".encode("cp1252"), (), "però lunedì canción São"),
        ("đi chơi".encode("cp1258"), ("vi",), "đi chơi"),
        ("收据的总额".encode("gb18030"), ("zh",), "收据的总额"),
        ("tiếng Việ".encode()[:-1], (), "tiếng Vi\ufffd"),
        (b"\x81\x8d \xe9", (), "\x81\x8d é"),
        (b"", (), ""),
    ],
)
def test_each_line_is_decoded_as_what_it_most_likely_is(
    data: bytes, languages: tuple[str, ...], text: str
) -> None:
    assert decode_line(data, languages) == text


def test_an_archive_of_several_files_is_refused_and_not_read_in_part(tmp_path: Path) -> None:
    (tmp_path / "a.csv.zip").write_bytes(zipped(b"a", b"b"))
    with pytest.raises(OSError, match="holds 2 files"):
        next(read_lines(str(tmp_path / "a.csv.zip")))


def test_what_a_mac_adds_to_an_archive_is_no_file_of_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        archive.writestr("a.csv", "a")
        archive.writestr("__MACOSX/._a.csv", "b")
    assert [line.text for line in read_lines(str(tmp_path / "a.csv.zip"))] == ["a"]


def old_vietnamese(text: str) -> bytes | None:
    """The text in Windows-1258: letters whole, the five tones apart; None where it has other characters."""
    tones = "\u0300\u0301\u0303\u0309\u0323"
    spelled = []
    for char in unicodedata.normalize("NFC", text):
        parts = unicodedata.normalize("NFD", char)
        letter = unicodedata.normalize("NFC", "".join(part for part in parts if part not in tones))
        spelled.append(letter + "".join(part for part in parts if part in tones))
    try:
        return "".join(spelled).encode("cp1258")
    except UnicodeEncodeError:
        return None


@pytest.mark.parametrize(("languages", "share"), [((), 0.99), (("vi",), 0.999)])
def test_real_vietnamese_in_the_old_encoding_is_read_as_it_was_written(
    shared_data: Path, languages: tuple[str, ...], share: float
) -> None:
    """Measured on 2,100 texts of 60 characters: 99.7 % without a hint, all with `languages: [vi]`."""
    import json

    file = shared_data / "alpaca_vi" / "vi_alpaca_reduced_11.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [unicodedata.normalize("NFC", row[key][:60]) for row in rows for key in ("prompt", "response")]
    old = {text: data for text in texts if not text.isascii() and (data := old_vietnamese(text))}
    assert len(old) > 1000
    assert sum(decode_line(data, languages) == text for text, data in old.items()) >= share * len(old)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> fsspec.AbstractFileSystem:
    """A storage that tells sizes alone, with one file, whose content cannot be had."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/silent/a.jsonl", b"four")

    def info(self: object, path: str, **keys: object) -> dict[str, object]:
        return {"name": path, "type": "file", "size": len(memory.store[path].getvalue())}

    def fail(*arguments: object, **keys: object) -> None:
        raise RuntimeError("500, Internal Server Error")

    monkeypatch.setattr(type(memory), "info", info)
    monkeypatch.setattr(type(memory), "open", fail)
    return memory


def test_a_file_whose_version_cannot_be_read_is_refused_in_a_sentence(
    silent: fsspec.AbstractFileSystem,
) -> None:
    with pytest.raises(ValueError, match=r"source 's': memory://silent/a.jsonl cannot be opened: .*: 500"):
        list_files(source("memory://silent/a.jsonl"))


def test_those_who_ask_often_read_no_file_for_its_version(silent: fsspec.AbstractFileSystem) -> None:
    def asked() -> str:
        return files_fingerprint(list_files(source("memory://silent/a.jsonl"), read_unversioned=False))

    before = asked()
    assert asked() == before
    silent.store["/silent/a.jsonl"].write(b"longer than before")
    assert asked() != before
