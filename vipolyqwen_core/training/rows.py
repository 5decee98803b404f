"""Random access to the rows of a training set and to their pictures, by row, without loading either."""

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from vipolyqwen_core.contract import TRAINING
from vipolyqwen_core.corpus.image_store import ImageStore, read_pins
from vipolyqwen_core.corpus.pictures import DECODING_ERRORS, Shrink, as_it_is, taking_turns

COLUMNS = (
    "sample_id",
    "source",
    "task",
    "prefix",
    "query",
    "history",
    "target",
    "negatives",
    "score",
    "query_hash",
    "target_hash",
    "positive_hash",
    "query_image_rows",
    "target_image_rows",
    "negative_image_rows",
)
"""What training reads of a row."""
assert set(COLUMNS) <= {column.name for column in TRAINING}

PictureKey = tuple[str, int]
"""Source and row in its image store."""


class TrainingRows:
    """Rows of `train.arrow`, or of another table beside it, memory-mapped. Travels to other processes as its
    path."""

    def __init__(self, path: Path, columns: tuple[str, ...] = COLUMNS) -> None:
        self.path, self.columns = path, columns

    def __reduce__(self) -> tuple[type["TrainingRows"], tuple[Path, tuple[str, ...]]]:
        return TrainingRows, (self.path, self.columns)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        """The rows, in the order asked for, as Python values.

        Raises:
            ValueError: the file is missing or is not such a table, or a row is beyond its end
        """
        found: list[dict[str, Any]] = [{}] * len(rows)
        for places, batch, taken in self._located(rows):
            for place, row in zip(places, batch.take(taken).to_pylist(), strict=True):
                found[place] = row
        return found

    def lengths(self, column: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many entries each row has in a column of lists; 0 where there is no list.

        Raises:
            ValueError: as `take`
        """
        found = np.zeros(len(rows), dtype=np.int64)
        for places, batch, taken in self._located(rows):
            found[places] = pc.fill_null(pc.list_value_length(batch[column].take(taken)), 0).to_numpy()
        return found

    def largest(self, column: str) -> int:
        """The first row with the largest number in a column of a table that has rows.

        Raises:
            ValueError: as `take`
        """
        return int(np.concatenate([batch[column].to_numpy() for batch in self._batches]).argmax())

    def _located(
        self, rows: Sequence[int] | npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.intp], pa.RecordBatch, pa.Array]]:
        """Batches that hold rows: the places of these among those asked for, the batch, and its rows."""
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise ValueError(f"{self.path} has {len(self)} rows, row {int(wanted.max())} was asked for")
        of_batch = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(of_batch):
            places = np.nonzero(of_batch == number)[0]
            batch = self._batches[number]
            yield places, batch, pa.array(wanted[places] - (int(self._ends[number]) - batch.num_rows))

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        if not self.path.is_file():
            raise ValueError(f"{self.path} does not exist: build the training set first")
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            return [
                reader.get_batch(number).select(self.columns) for number in range(reader.num_record_batches)
            ]
        except (pa.ArrowInvalid, KeyError) as error:
            raise ValueError(f"{self.path} is not the table of a training set: {error}") from error

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)


class LatePicture:
    """A picture that is decoded when it is first asked for, and once, whichever threads ask."""

    def __init__(self, decode: Callable[[], Image.Image]) -> None:
        self._decode: Callable[[], Image.Image] | None = decode
        self._image: Image.Image | None = None
        self._lock = Lock()

    def __call__(self) -> Image.Image:
        """The picture.

        Raises:
            ValueError: it cannot be decoded
        """
        with self._lock:
            if self._decode is not None:
                self._image = self._decode()
                self._decode = None  # the bytes of the file go
            assert self._image is not None
            return self._image


class TrainingPictures:
    """The pinned image stores of a training set. Travels to other processes as its path."""

    def __init__(self, training_set: Path) -> None:
        self.training_set = training_set
        self._stores: dict[str, ImageStore] = {}

    def __reduce__(self) -> tuple[type["TrainingPictures"], tuple[Path]]:
        return TrainingPictures, (self.training_set,)

    def read(self, keys: Sequence[PictureKey], shrink: Shrink = as_it_is) -> dict[PictureKey, Image.Image]:
        """The pictures as RGB, each read once, and shrunk before the next one is decoded.

        Raises:
            ValueError: a store or a picture is gone, or a picture cannot be decoded or shrunk; never an empty
                sample
        """
        return {key: picture() for key, picture in self.late(keys, shrink).items()}

    def late(self, keys: Sequence[PictureKey], shrink: Shrink = as_it_is) -> dict[PictureKey, LatePicture]:
        """The pictures of `read`, their files read and not yet decoded.

        Raises:
            ValueError: a store or a picture is gone
        """
        by_source: dict[str, list[int]] = defaultdict(list)
        for source, row in dict.fromkeys(keys):
            by_source[source].append(row)
        return {
            (source, row): LatePicture(partial(self._shrunk, data, source, row, shrink))
            for source, rows in by_source.items()
            for row, data in zip(rows, self._read_bytes(source, rows), strict=True)
        }

    def check(self) -> None:
        """Open every store.

        Raises:
            ValueError: one is missing, or not in the version that the training set pins
        """
        for source in self.pinned:
            self._store(source)

    def _read_bytes(self, source: str, rows: list[int]) -> list[bytes]:
        store = self._store(source)
        try:
            return store.read(rows)
        except (OSError, ValueError, IndexError) as error:
            raise ValueError(
                f"pictures {rows} of source {source!r} cannot be read from {store.path}, version "
                f"{store.version}: {error}"
            ) from error

    def _shrunk(self, data: bytes, source: str, row: int, shrink: Shrink) -> Image.Image:
        with taking_turns() as wait_for_turn:
            return shrink(self._decode(data, source, row, wait_for_turn))

    def _decode(
        self, data: bytes, source: str, row: int, before_loading: Callable[[int], None]
    ) -> Image.Image:
        try:
            with Image.open(io.BytesIO(data)) as image:
                before_loading(image.width * image.height)
                return image.convert("RGB")  # the store holds pictures that this makes upright RGB
        except DECODING_ERRORS as error:
            store = self._store(source)
            raise ValueError(
                f"picture {store.origin(row)!r} of source {source!r}, row {row} of {store.path}, cannot be "
                f"decoded: {error}"
            ) from error

    @cached_property
    def pinned(self) -> dict[str, dict[str, Any]]:
        """What the training set pins of each source; once read it stays."""
        return read_pins(self.training_set)

    def _store(self, source: str) -> ImageStore:
        if source not in self._stores:
            if source not in self.pinned:
                raise ValueError(f"{self.training_set / 'images.json'} pins no image store for {source!r}")
            self._stores[source] = ImageStore(**self.pinned[source])
        return self._stores[source]
