"""The persisted split in memory: numbers instead of spelled ids, since all of it is needed at once.

sample_id    ID_NUMBER
component    ID_NUMBER, the name of the component at that time
split        SIDE
content      ID_NUMBER, what the pair says (`content`); UNKNOWN where it was assigned before this was kept
links        numbers of the pictures of both sides and of the declared group (`links_of_row`)

The file also names its split among all that were ever begun (`split_id`): models of two splits cannot be
compared, since one may have been trained on what evaluates the other.
"""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from quality.id_numbers import ID_NUMBER, id_number, spell
from vipolyqwen_core.contract import ASSIGNMENTS, Split
from vipolyqwen_core.corpus.hashing import key_hash
from vipolyqwen_core.corpus.tables import arrow_schema

SIDE = pl.Enum([side.value for side in Split])
LINKS = pl.List(pl.UInt64)
SCHEMA = {
    "sample_id": ID_NUMBER,
    "component": ID_NUMBER,
    "split": SIDE,
    "content": ID_NUMBER,
    "links": LINKS,
}
UNKNOWN = 0
ROW_GROUP = 500_000
SPLIT_ID = b"vipolyqwen.split"
"""In the metadata of the file."""


def content() -> pl.Expr:
    """What a pair says, whatever its score: the hashes of its two sides, which cover texts and pictures."""
    return pl.col("query_hash").cast(ID_NUMBER) * 2**64 + pl.col("target_hash").cast(ID_NUMBER)


def side_hashes() -> tuple[pl.Expr, pl.Expr]:
    """The hashes of query and target out of `content`."""
    both = pl.col("content")
    return (both // 2**64).cast(pl.UInt64), (both % 2**64).cast(pl.UInt64)


def picture_numbers(images: pl.Expr) -> pl.Expr:
    """Image ids as numbers: the upper half of what their 32 hex digits spell."""
    return (id_number(images) // 2**64).cast(pl.UInt64)


def group_number() -> pl.Expr:
    """The declared group of a pair, one of its source, as a number; null where it has none."""
    spelled = pl.format("{}:{}", "source", "group_id")
    return spelled.map_batches(_key_hashes, return_dtype=pl.UInt64, is_elementwise=True)


def _key_hashes(keys: pl.Series) -> pl.Series:
    distinct = keys.drop_nulls().unique()
    return keys.replace_strict(distinct, list(map(key_hash, distinct)), default=None, return_dtype=pl.UInt64)


def links_of_row() -> pl.Expr:
    """What links a pair to others whatever its texts say, as numbers: its pictures and its declared group."""
    both = pl.concat_list(pl.col(f"{side}_images").fill_null([]) for side in ("query", "target"))
    return pl.concat_list(both.list.eval(picture_numbers(pl.element())), group_number()).list.drop_nulls()


def read_assignments(path: Path) -> pl.DataFrame:
    """The persisted split; empty where no training set was built yet.

    Raises:
        ValueError: it is damaged, or of a newer version of the code
    """
    if not path.is_file():
        return pl.DataFrame(schema=SCHEMA)
    try:
        assignments = _read(path)
    except pl.exceptions.PolarsError as error:
        raise _damage(path, str(error).partition("\n")[0]) from error
    if assignments.null_count().sum_horizontal().item():
        raise _damage(path, "it holds ids that are none")
    return assignments


def _read(path: Path) -> pl.DataFrame:
    spelled = pl.scan_parquet(path)
    kept = spelled.collect_schema()
    if unknown := set(kept) - {*SCHEMA, "pictures"}:
        raise ValueError(
            f"{path} was written by a newer version of the factory (column {min(unknown)!r}): take that one, "
            "or bring split/ back from a backup of before it"
        )
    said = id_number(pl.col("content")) if "content" in kept else pl.lit(UNKNOWN)
    # Before groups were kept, the links were pictures.
    earlier = next((pl.col(name) for name in ("links", "pictures") if name in kept), pl.lit([]))
    numbers = spelled.select(
        id_number(pl.col("sample_id")),
        id_number(pl.col("component")),
        pl.col("split").cast(SIDE),
        said.cast(ID_NUMBER).alias("content"),
        earlier.cast(LINKS).alias("links"),
    )
    return numbers.collect(engine="streaming")


def split_id(path: Path) -> str | None:
    """The name of the persisted split; None: there is none yet, or it was begun before it had a name.

    Raises:
        ValueError: it is damaged
    """
    if not path.is_file():
        return None
    try:
        metadata = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid as error:
        raise _damage(path, str(error)) from error
    name: bytes | None = metadata.get(SPLIT_ID)
    return None if name is None else name.decode()


def _damage(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} is damaged ({what}): bring it back from a backup. It tells which pairs trained. Where there "
        "is no backup, delete it: all pairs are split anew, and no new version takes the champion's place by "
        "itself, since that was trained on pairs which judge it then"
    )


def write_assignments(assignments: pl.DataFrame, path: Path, name: str) -> None:
    """Write the table ASSIGNMENTS of the split of that name, spelled piece by piece."""
    schema = arrow_schema(ASSIGNMENTS).with_metadata({SPLIT_ID: name})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for piece in assignments.iter_slices(ROW_GROUP):
            spelled = piece.select(
                spell(piece["sample_id"]),
                spell(piece["component"]),
                pl.col("split").cast(pl.String),
                spell(piece["content"]),
                "links",
            )
            writer.write_table(spelled.to_arrow().cast(schema))


def earlier_places(sample_ids: pl.Series, assignments: pl.DataFrame) -> pl.Series:
    """The row of each sample in the assignments, null where it has none.

    Shapes:
        returns: uint32 [len(sample_ids)]
    """
    known = assignments.select("sample_id").with_row_index("earlier")
    return sample_ids.to_frame("sample_id").join(known, on="sample_id", how="left", maintain_order="left")[
        "earlier"
    ]
