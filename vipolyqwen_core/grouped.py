"""Groups of things that come one by one: closed as soon as they are many, or large."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def grouped(things: Iterable[T], *limits: tuple[Callable[[T], int], int]) -> Iterator[list[T]]:
    """The things in their order; the one with which a sum reaches its limit is the last of its group.

    So a group exceeds a limit by less than its last thing, and no thing is looked at before its turn.

    Args:
        limits: what is summed up of a thing, and the limit of the sum
    """
    group: list[T] = []
    sums = [0] * len(limits)
    for thing in things:
        group.append(thing)
        sums = [total + measure(thing) for total, (measure, _) in zip(sums, limits, strict=True)]
        if any(total >= limit for total, (_, limit) in zip(sums, limits, strict=True)):
            yield group
            group, sums = [], [0] * len(limits)
    if group:
        yield group
