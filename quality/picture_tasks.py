"""No picture shared between tasks: an option of the split, by which a picture trains for one task only.

A picture is an image id: another file with the same pixels is the same one, a near copy is another. It goes
to one of the tasks whose training rows have it, be it on a side or on a declared hard negative: to that with
the smallest hash of seed, picture and task. So a task that comes or goes moves the pictures that it takes or
leaves, and no others. Rows that evaluate neither choose nor leave.
"""

import numpy as np
import polars as pl

from quality.assignments import picture_numbers
from quality.duplicates import UNBUFFERED
from vipolyqwen_core.contract import Split
from vipolyqwen_core.corpus.hashing import key_hash
from vipolyqwen_core.hashes import splitmix

PICTURE_OF_OTHER_TASK = "picture_of_other_task"


def keep_pictures_apart(rows: pl.LazyFrame, decided: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The decisions, where training rows leave that have a picture which goes to another task.

    A row with several pictures stays if all of them go to its task.

    Args:
        rows: `row` and the columns of a pair
        decided: `row` from 0 on, `task` (an Enum), `split` and `rule`, of all rows in order
    """
    pictures = pl.concat_list(
        *(pl.col(f"{side}_images").fill_null([]) for side in ("query", "target")),
        pl.col("negatives")
        .list.eval(pl.element().struct.field("images").explode())
        .list.drop_nulls()
        .fill_null([]),
    )
    numbers = pictures.list.eval(picture_numbers(pl.element()))
    uses = rows.select(pl.col("row").cast(pl.UInt32), picture=numbers).explode("picture").drop_nulls()
    found = uses.collect(engine="streaming", optimizations=UNBUFFERED)
    found = found.filter(decided["split"].gather(found["row"]).eq_missing(Split.TRAIN.value))
    tasks = decided["task"].gather(found["row"])
    assert isinstance(tasks.dtype, pl.Enum), tasks.dtype
    keys = np.array([key_hash(f"{seed}:{task}") for task in tasks.dtype.categories], dtype=np.uint64)
    orders = splitmix(found["picture"].to_numpy() + keys[tasks.to_physical().to_numpy()])
    found = found.with_columns(order=pl.Series(orders))
    elsewhere = found.filter(pl.col("order") != pl.col("order").min().over("picture"))
    leaving = np.zeros(decided.height, dtype=bool)
    leaving[elsewhere["row"].to_numpy()] = True
    rule = pl.lit(PICTURE_OF_OTHER_TASK, dtype=decided.schema["rule"])
    return decided.with_columns(
        split=pl.when(pl.Series(leaving)).then(None).otherwise("split"),
        rule=pl.when(pl.Series(leaving)).then(rule).otherwise("rule"),
    )
