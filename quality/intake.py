"""From raw pairs to normalised pairs in tables: texts, pictures, language, identities, row rules.

Pictures are read where a batch first names them and are stored once, so memory grows only by their known
names: about 250 bytes for each distinct picture. Processes verify and hash them; threads fetch those that lie
elsewhere. A broken picture rejects the pairs that use it, under the rule that the picture broke.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl

from quality.language import detect_languages
from quality.picture_files import UNREADABLE, picture_version
from quality.picture_pool import BYTES_AHEAD, CRASHED, MemoryShortageError, PicturePool, UnreadPicture
from quality.polars_tables import polars_schema
from quality.rules import first_failure, row_rules
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import PAIR
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.normalised_pair import normalise_pair
from vipolyqwen_core.corpus.pictures import PictureError
from vipolyqwen_core.corpus.readers.records import RawImage, RawPair, Record, shorten
from vipolyqwen_core.corpus.storage import ChangedMeanwhile, StorageError, may_pass, patiently
from vipolyqwen_core.corpus.without_secrets import without_secrets

INTAKE_SCHEMA = pl.Schema(
    [
        *polars_schema(PAIR).items(),
        ("query_hash", pl.UInt64),
        ("target_hash", pl.UInt64),
        ("rule", pl.String),
        ("reason", pl.String),
        ("value", pl.String),
    ]
)
"""A pair with the hashes of its sides and, where a rule rejected it, the rule."""
FETCHING_THREADS = 32
"""Threads that fetch files, and files that are asked for before the processes get them."""
T = TypeVar("T")


class Elsewhere(NamedTuple):
    """A picture that lies elsewhere, while its storage is asked for its size."""

    path: str
    num_bytes: "Future[int | PictureError]"


class PictureIntake:
    """The pictures of one source: each path is read once, each picture stored once."""

    def __init__(self, root: ImageRoot, max_image_pixels: int, scratch: Path | None = None) -> None:
        self.root = root
        self.paths: list[tuple[str, str]] = []
        """Paths that were asked for since the last `take_paths`, with the versions of their files."""
        self._versions: dict[str, str] = {}
        self._known: dict[bytes, bytes | PictureError] = {}
        self._stored: set[bytes] = set()
        self._pool = PicturePool(max_image_pixels, scratch)
        self._readers = ThreadPoolExecutor(FETCHING_THREADS)

    def load(self, references: Iterable[tuple[RawImage, str]]) -> Iterator[dict[str, Any]]:
        """Read the pictures that are new; yield a row of IMAGE_STORE for each that is not stored yet.

        Args:
            references: a path or bytes, and where it stands, for pictures without a path
        Raises:
            MemoryShortageError: memory is short for a picture, which is named
        """
        new = {}
        for reference, place in references:
            key = _key(reference)
            if key not in self._known and key not in new:
                new[key] = (reference, place)
        files = self._read([reference for reference, _ in new.values()])
        loaded = self._pool.load(files)
        for key, (reference, place) in new.items():
            try:
                picture = next(loaded)
            except MemoryShortageError as error:
                named = f"in {place}"
                if isinstance(reference, str):
                    named = f"{without_secrets(str(self.root.root))}: {reference}"
                raise MemoryShortageError(f"picture {named}: {error}") from error
            origin: str | None = place
            if isinstance(reference, str):
                version, origin = self._versions.pop(reference), self._located(reference)
                if origin is not None:
                    self.paths.append((reference, version))
            if picture.image is None:
                assert picture.error is not None
                self._known[key] = picture.error
                continue
            self._known[key] = identity = bytes.fromhex(picture.image["image_id"])
            if identity not in self._stored:
                self._stored.add(identity)
                yield {**picture.image, "origin": origin}

    def _located(self, path: str) -> str | None:
        """The path below the root; None: it is refused, whatever files there are or will be."""
        try:
            return self.root.locate(path)
        except PictureError:
            return None

    def _read(self, references: Iterable[RawImage]) -> Iterator[UnreadPicture]:
        """The pictures in order, while the threads are at those that follow: BYTES_AHEAD at most, or one."""
        remaining = iter(references)
        found: deque[UnreadPicture | Elsewhere] = deque()
        ahead: deque[tuple[UnreadPicture | Future[bytes | PictureError], int]] = deque()
        num_bytes = 0
        while True:
            found.extend(map(self._find, islice(remaining, FETCHING_THREADS - len(found) - len(ahead))))
            while found and (begun := self._begun(found[0], BYTES_AHEAD - num_bytes if ahead else None)):
                found.popleft()
                ahead.append(begun)
                num_bytes += begun[1]
            if not ahead:
                return
            picture, size = ahead.popleft()
            num_bytes -= size
            yield picture.result() if isinstance(picture, Future) else picture

    def _begun(
        self, picture: UnreadPicture | Elsewhere, room: int | None
    ) -> tuple[UnreadPicture | Future[bytes | PictureError], int] | None:
        """The picture, or its reading, and its bytes; None: it has to wait for its size, or for room.

        Args:
            room: bytes; None: it is the one that is waited for
        """
        if not isinstance(picture, Elsewhere):
            return picture, 0
        if room is not None and not picture.num_bytes.done():
            return None
        num_bytes = picture.num_bytes.result()
        if isinstance(num_bytes, PictureError):
            return num_bytes, 0
        if room is not None and num_bytes > room:
            return None
        return self._readers.submit(self._ask, self.root.read, picture.path), num_bytes

    def _find(self, reference: RawImage) -> UnreadPicture | Elsewhere:
        if not isinstance(reference, str):
            return bytes(reference)
        if self.root.is_local:
            self._note_version(reference)
        try:
            place = self.root.local_file(reference)
            return place or Elsewhere(reference, self._readers.submit(self._measure, reference))
        except PictureError as error:
            return PictureError(error.rule, str(error))  # without the frames it keeps alive

    def _note_version(self, path: str) -> None:
        """Asked before the file is read: where it changes meanwhile, the next curation reads it again."""
        self._versions[path] = picture_version(self.root, path)

    def _measure(self, path: str) -> int | PictureError:
        self._note_version(path)
        return self._ask(self.root.check, path)

    def _ask(self, question: Callable[[str], T], path: str) -> T | PictureError:
        """What the root answers of a picture that lies elsewhere, or why it does not."""
        try:
            return _ask_patiently(question, path)
        except PictureError as error:
            # What a storage told of a file that it then did not give is the version of no reading. One that
            # refuses is not asked again: its source would be read anew each time.
            cause = error.__cause__
            failure = cause.__cause__ if isinstance(cause, StorageError) else error
            if may_pass(failure) or isinstance(cause, ChangedMeanwhile):
                self._versions[path] = UNREADABLE
            return PictureError(error.rule, str(error))

    def identity(self, reference: RawImage) -> str:
        """Id of a picture that was loaded.

        Raises:
            PictureError: it could not be
        """
        found = self._known[_key(reference)]
        if isinstance(found, PictureError):
            raise found
        return found.hex()

    def take_paths(self) -> list[tuple[str, str]]:
        """Paths read since the last call, with the versions of their files."""
        taken, self.paths = self.paths, []
        return taken

    def close(self) -> None:
        """End the threads and processes."""
        try:
            self._readers.shutdown(cancel_futures=True)
        finally:
            self._pool.close()


@patiently  # a moment's failure would reject its rows until something else of the source changes
def _ask_patiently(question: Callable[[str], T], path: str) -> T:
    return question(path)


def _key(reference: RawImage) -> bytes:
    data = reference.encode("utf-8", "surrogatepass") if isinstance(reference, str) else reference
    return blake2b(data, digest_size=12, person=b"path" if isinstance(reference, str) else b"bytes").digest()


def references_of(record: Record) -> Iterator[tuple[RawImage, str]]:
    """All pictures that the pairs of a record name, and where the record stands."""
    place = f"{record.file}:{record.line}"
    for pair in record.pairs:
        for images in pair.images:
            for reference in images:
                yield reference, place


def normalised_rows(
    records: Sequence[Record], source: str, pictures: PictureIntake, settings: CurationSettings
) -> pl.DataFrame:
    """The pairs of records, normalised and judged: INTAKE_SCHEMA, `rule` null where a pair is kept."""
    rows = [
        _row(pair, pictures, source, record.file, record.line, item)
        for record in records
        for item, pair in enumerate(record.pairs)
    ]
    frame = pl.DataFrame(rows, schema=INTAKE_SCHEMA, orient="row")
    texts = frame.select(pl.format("{}\n{}", "query", "target")).to_series()
    frame = frame.with_columns(language=detect_languages(texts))
    return first_failure(frame, row_rules(settings))


def _row(
    pair: RawPair, pictures: PictureIntake, source: str, file: str, line: int, item: int
) -> dict[str, Any]:
    normalised = normalise_pair(pair)
    rejected: tuple[str, str, str] | None = None
    identities: list[list[str]] = []
    for images in pair.images:
        identities.append([])
        for reference in images:
            try:
                identities[-1].append(pictures.identity(reference))
            except PictureError as error:
                if rejected is None or error.rule == CRASHED:  # which a report has to know
                    rejected = (error.rule, str(error), shorten(reference))
    rule, reason, value = rejected or (None, None, None)
    identity, query_hash, target_hash = normalised.hashes(identities)
    return {
        "sample_id": identity,
        "source": source,
        **normalised.columns(identities),
        "file": file,
        "line": line,
        "item": item,
        "query_hash": query_hash,
        "target_hash": target_hash,
        "rule": rule,
        "reason": reason,
        "value": value,
    }
