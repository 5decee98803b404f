"""The tables of a training set pin their pictures to rows of the image store."""

import numpy as np
import pyarrow as pa
import pytest

from quality.training_tables import StoredPictures


def ids(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [random.bytes(16).hex() for _ in range(count)]


def test_a_picture_has_the_row_of_its_id() -> None:
    stored = ids(1000)
    wanted = [5, 999, 0, 5, 17]
    rows = StoredPictures(pa.array(stored, pa.large_string())).rows(
        pa.array([stored[row] for row in wanted], pa.large_string())
    )
    assert rows.type == pa.int64()
    assert rows.to_pylist() == wanted


@pytest.mark.parametrize("num_stored", [0, 1, 99])
@pytest.mark.parametrize("other", ["0" * 32, "f" * 32, "a" * 32])
def test_a_picture_that_is_not_stored_is_named(num_stored: int, other: str) -> None:
    stored = StoredPictures(pa.array(ids(num_stored), pa.large_string()))
    assert stored.rows(pa.array([], pa.large_string())).to_pylist() == []
    with pytest.raises(AssertionError, match=f"picture {other} is not in the image store"):
        stored.rows(pa.array([other], pa.large_string()))
