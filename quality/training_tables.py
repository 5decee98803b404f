"""The tables of a training set: Arrow files to be memory-mapped, and the index that the plan reads.

Streams by record batches. Pictures are pinned: rows hold the place of each picture in a version of the store.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from quality.id_numbers import id_number, spell
from vipolyqwen_core.contract import PLAN_INDEX, TAGGED, TRAINING, Split
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.tables import arrow_schema, read_batches

BATCH_ROWS = 20_000


def write_tables(
    sources: Sequence[tuple[Path, dict[str, Any] | None]],
    decisions: pl.DataFrame,
    names: pl.Series,
    folder: Path,
) -> None:
    """Write `train.arrow`, `eval.arrow` and `index.parquet`.

    Args:
        sources: folder with `pairs.parquet`, and the pin of the image store, in order
        decisions: `split` and `component` (its number) of each row of all sources, in the same order; split
            null: left out
        names: name of each component, by number
    """
    schema = arrow_schema(TRAINING)
    options = pa.ipc.IpcWriteOptions(compression=None)
    with (
        pa.OSFile(str(folder / Split.TRAIN.file), "wb") as train_file,
        pa.OSFile(str(folder / Split.EVAL.file), "wb") as eval_file,
        pa.ipc.new_file(train_file, schema, options=options) as train,
        pa.ipc.new_file(eval_file, schema, options=options) as evaluation,
        pq.ParquetWriter(folder / "index.parquet", arrow_schema(PLAN_INDEX)) as index,
    ):
        start = 0
        for place, images in sources:
            stored = None if images is None else StoredPictures(_image_ids(images))
            for batch in _batches(place / "pairs.parquet"):
                own = decisions[start : start + batch.num_rows]
                own = own.select(pl.col("split").cast(pl.String), spell(names.gather(own["component"])))
                rows = _pinned(batch, own, stored, schema)
                start += batch.num_rows
                for split, writer in ((Split.TRAIN, train), (Split.EVAL, evaluation)):
                    chosen = rows.filter(pc.equal(rows["split"], split.value))
                    if chosen.num_rows == 0:
                        continue
                    writer.write_table(chosen.combine_chunks())
                    if split is Split.TRAIN:
                        index.write_table(_index(chosen))
    assert start == decisions.height, f"{start} rows in the tables, {decisions.height} decisions"


class StoredPictures:
    """Rows of an image store by id. Sorted once for all batches: a store may hold millions."""

    def __init__(self, ids: pa.Array) -> None:
        """Sort the ids of the rows."""
        numbers = _numbers(ids)
        self._rows = numbers.arg_sort()
        self._sorted = numbers.gather(self._rows)
        self._ended = self._sorted.extend_constant(None, 1)
        """The same, and null where one looks behind the last one."""

    def rows(self, ids: pa.Array) -> pa.Array:
        """The row of each id, int64; each has to be in the store."""
        wanted = _numbers(ids)
        places = self._sorted.search_sorted(wanted)
        missing = ids.filter(self._ended.gather(places).ne_missing(wanted).to_arrow())
        assert len(missing) == 0, f"picture {missing[0]} is not in the image store"
        return self._rows.gather(places).cast(pl.Int64).to_arrow()


def _image_ids(images: dict[str, Any]) -> pa.Array:
    return ImageStore(**images).table(["image_id"])["image_id"].combine_chunks()


def _numbers(ids: pa.Array) -> pl.Series:
    spelled = pl.DataFrame({"id": pl.from_arrow(ids)}, schema={"id": pl.String})
    return spelled.select(id_number(pl.col("id"))).to_series()


def _batches(path: Path) -> Iterator[pa.Table]:
    for batch in read_batches(path, BATCH_ROWS, [column.name for column in TAGGED]):
        yield pa.Table.from_batches([batch]).cast(arrow_schema(TAGGED))


def _pinned(
    rows: pa.Table, decisions: pl.DataFrame, stored: StoredPictures | None, schema: pa.Schema
) -> pa.Table:
    """Rows of TRAINING out of rows of TAGGED."""
    for name in ("split", "component"):
        rows = rows.append_column(name, decisions[name].to_arrow().cast(pa.large_string()))
    for side in ("query", "target"):
        images = rows[f"{side}_images"].combine_chunks()
        rows = rows.append_column(f"{side}_image_rows", _places(images, stored))
    negatives = rows["negatives"].combine_chunks()
    places = _places(pc.struct_field(negatives.flatten(), "images"), stored)
    nested = pa.LargeListArray.from_arrays(_offsets(negatives), places, mask=negatives.is_null())
    return rows.append_column("negative_image_rows", nested).select(schema.names).cast(schema)


def _places(images: pa.LargeListArray, stored: StoredPictures | None) -> pa.LargeListArray:
    """Lists of rows in the image store, out of lists of ids; null lists are empty."""
    wanted = images.flatten()
    assert stored is not None or len(wanted) == 0, f"picture {wanted[0]} is in no image store"
    places = pa.array([], type=pa.int64()) if stored is None else stored.rows(wanted)
    return pa.LargeListArray.from_arrays(_offsets(images), places)


def _offsets(lists: pa.LargeListArray) -> pa.Array:
    """Offsets into `flatten()`, which leaves out what null lists and slices hide."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).cast(pa.int64())
    return pa.concat_arrays([pa.array([0], type=pa.int64()), pc.cumulative_sum(lengths)])


def _index(rows: pa.Table) -> pa.Table:
    """Rows of PLAN_INDEX out of rows of TRAINING."""
    count = pl.from_arrow(rows.select(["query_image_rows", "target_image_rows", "negative_image_rows"]))
    assert isinstance(count, pl.DataFrame)
    nested = pl.col("negative_image_rows").list.eval(pl.element().list.len()).list.sum().fill_null(0)
    images = count.select(
        pl.col("query_image_rows").list.len() + pl.col("target_image_rows").list.len() + nested
    ).to_series()
    columns = {
        "sample_id": rows["sample_id"],
        "task": rows["task"],
        "source": rows["source"],
        "tokens": pc.add(rows["query_tokens"], rows["target_tokens"]),
        "patches": pc.add(rows["query_patches"], rows["target_patches"]),
        "images": images.cast(pl.Int32).to_arrow(),
    }
    return pa.table(columns, schema=arrow_schema(PLAN_INDEX))
