"""Partitions: one a source of the manifest. A source that is added there is a partition after a reload."""

from collections.abc import Sequence

import dagster as dg


def source_partitions(names: Sequence[str]) -> dg.StaticPartitionsDefinition:
    """A partition for each source, in the manifest's order."""
    return dg.StaticPartitionsDefinition(list(names))
