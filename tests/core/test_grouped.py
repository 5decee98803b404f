"""Groups end where a limit is reached, and hold everything in order."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from vipolyqwen_core.grouped import grouped


def one(_: int) -> int:
    return 1


def itself(number: int) -> int:
    return number


@given(st.lists(st.integers(0, 9)), st.integers(1, 5), st.integers(1, 20))
def test_groups_end_where_the_first_limit_is_reached(numbers: list[int], most: int, total: int) -> None:
    groups = list(grouped(numbers, (one, most), (itself, total)))
    assert [number for group in groups for number in group] == numbers
    assert all(len(group) == most or sum(group) >= total for group in groups[:-1])
    assert all(0 < len(group) <= most and sum(group[:-1]) < total for group in groups)


def test_a_group_comes_before_the_next_thing_is_asked_for() -> None:
    asked: list[int] = []

    def things() -> Iterator[int]:
        for number in range(4):
            asked.append(number)
            yield number

    assert next(grouped(things(), (one, 2))) == [0, 1]
    assert asked == [0, 1]
