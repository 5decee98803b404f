"""The pictures of a source: a Lance dataset whose versions are written whole and stay readable.

Lance is not fork-safe: use spawned processes. An `ImageStore` pickles as its pin.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import lance
import numpy as np
import pyarrow as pa

from vipolyqwen_core.contract import IMAGE_STORE
from vipolyqwen_core.corpus.tables import arrow_schema, read_json
from vipolyqwen_core.grouped import grouped
from vipolyqwen_core.written_aside import to_disk

ROWS_PER_BATCH = 64
BYTES_PER_BATCH = 32 * 1024 * 1024
"""Pictures held in memory at once while writing, and by Lance once more: fewer where they are large."""
UUID = b"vipolyqwen.uuid"
"""Key in a version's schema: its numbers begin again at 1 where a store was deleted, this does not."""
UNCOMPRESSED = {"lance-encoding:compression": "none"}
"""Of the column of bytes: pictures are compressed already, and Lance would try it again on every one."""


def write_images(path: Path, rows: Iterable[dict[str, Any]]) -> "ImageStore":
    """Write rows of `IMAGE_STORE` as a new version of the dataset and open it.

    The new version appears when the last row is written; a reader of an older version is not disturbed. What
    the rows raise is raised again as it was: Lance makes an `OSError` of it, whose message is the traceback.
    """
    uuid = uuid4().hex
    fields = [
        field.with_metadata(UNCOMPRESSED) if field.name == "bytes" else field
        for field in arrow_schema(IMAGE_STORE)
    ]
    schema = pa.schema(fields, metadata={UUID: uuid})

    raised: list[BaseException] = []

    def kept() -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except GeneratorExit:
            raise
        except BaseException as error:
            raised.append(error)
            raise

    def batches() -> Iterator[pa.RecordBatch]:
        for group in _groups(kept()):
            columns = [pa.array([row[field.name] for row in group], type=field.type) for field in schema]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    path.parent.mkdir(parents=True, exist_ok=True)
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    mode = "overwrite" if path.exists() else "create"
    try:
        written = lance.write_dataset(reader, str(path), schema=schema, mode=mode)
    except OSError:
        if not raised:
            raise
    if raised:  # out of the handler, so that Lance's error does not become its context
        raise raised[0]
    to_disk(path)  # before any table names the version: Lance leaves that to the system
    return ImageStore(path, int(written.version), uuid)


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    return grouped(rows, (lambda _: 1, ROWS_PER_BATCH), (lambda row: len(row["bytes"]), BYTES_PER_BATCH))


def replaced_versions(path: Path) -> list[int]:
    """The versions before the newest; empty where there is no dataset, or a first writer was killed."""
    try:
        dataset = lance.dataset(str(path))
    except ValueError:
        return []
    versions = (int(entry["version"]) for entry in dataset.versions())
    return sorted(version for version in versions if version != dataset.version)


def is_stored(images: Mapping[str, Any] | None) -> bool:
    """Whether the pictures that a stage points into (`ImageStore.pin`, None: it has none) are there."""
    if images is None:
        return True
    try:
        ImageStore(**images)
    except ValueError:
        return False
    return True


def are_same_pictures(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two versions of a store (their pins, None: no pictures) tell the same of their pictures.

    A curation that was killed and repeated leaves two such versions. Their bytes are not compared.
    """
    if one == other:
        return True
    if one is None or other is None or not (is_stored(one) and is_stored(other)):
        return False
    columns = [column.name for column in IMAGE_STORE if column.name != "bytes"]
    first, second = (ImageStore(**images).table(columns) for images in (one, other))
    return bool(first.equals(second))


def read_pins(training_set: Path) -> dict[str, dict[str, Any]]:
    """What `images.json` of a training set pins of each source, as arguments of `ImageStore`.

    Raises:
        ValueError: there is no such file, or it is damaged
    """
    path = training_set / "images.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: build the training set first")
    return {source: {**pin, "path": training_set / pin["path"]} for source, pin in read_json(path).items()}


def remove_versions(path: Path, versions: Collection[int]) -> None:
    """Remove replaced versions and the files that no other version needs."""
    lance.dataset(str(path)).cleanup_old_versions(versions=list(versions))


class ImageStore:
    """One version of a source's pictures, read only."""

    def __init__(self, path: str | Path, version: int | None = None, uuid: str | None = None) -> None:
        """Open a version, the newest where none is named.

        Args:
            uuid: of the version; None: not known, as with pins that were written before it existed
        Raises:
            ValueError: there is no such dataset, no such version, or another one under its number
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"image store {self.path} does not exist")
        try:
            self._dataset = lance.dataset(str(self.path), version=version)
        except (ValueError, OSError) as error:
            raise ValueError(f"image store {self.path} has no version {version}") from error
        self.version = int(self._dataset.version)
        found = (self._dataset.schema.metadata or {}).get(UUID)
        self.uuid = None if found is None else found.decode()
        if uuid not in (None, self.uuid):
            raise ValueError(
                f"image store {self.path} was deleted or replaced: version {self.version} is another one "
                "now; curate and validate its source, and build the training set anew"
            )

    def __reduce__(self) -> tuple[type["ImageStore"], tuple[Path, int, str | None]]:
        return type(self), (self.path, self.version, self.uuid)

    @property
    def pin(self) -> dict[str, Any]:
        """What names this very version: the arguments that open it."""
        return {"path": str(self.path), "version": self.version, "uuid": self.uuid}

    def __len__(self) -> int:
        """Number of pictures."""
        return int(self._dataset.count_rows())

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """Bytes of the pictures at these rows, in this order; rows may repeat."""
        if len(rows) == 0:
            return []
        distinct, places = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        column = self._dataset.take(distinct.tolist(), columns=["bytes"])["bytes"].to_pylist()
        return [column[place] for place in places]

    def origin(self, row: int) -> str:
        """Path below the image root of the picture at a row."""
        return str(self._dataset.take([row], columns=["origin"])["origin"][0])

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns of all pictures, in the order of the rows."""
        return self._dataset.to_table(columns=list(columns), scan_in_order=True)
