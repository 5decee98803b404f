"""Vectors of the evaluation pairs under one model, each distinct side encoded once."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from vipolyqwen_core.contract import Side, Task, prefix_of
from vipolyqwen_core.evaluation.metrics import Ints, Vectors
from vipolyqwen_core.evaluation.results import SWAPPED
from vipolyqwen_core.evaluation.retrieval import read_rows
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder
from vipolyqwen_core.serving.stored_sides import SideRequest, StoredSides, side_texts


@dataclass(frozen=True)
class RowVectors:
    """Vectors of both sides of every row."""

    query: Vectors
    """[R, D]"""
    target: Vectors
    """[R, D]"""


class EvaluationPairs:
    """The evaluation rows and what is needed to encode them under any model."""

    def __init__(self, table: pa.Table, sides: StoredSides, batch_tokens: int) -> None:
        self.table, self.sides, self.batch_tokens = table, sides, batch_tokens
        self.rows = read_rows(table)

    def encode(
        self, embedder: ViPolyQwenEmbedder, with_prefix: tuple[bool, ...], system: str
    ) -> list[RowVectors]:
        """The vectors of all rows, once for each entry: with the prefix of each side, or without any.

        A content that several rows or entries share is encoded once.

        Raises:
            ValueError: a vector is not finite; names the system, the row and its sample
        """
        wanted = [
            (self._requests(Side.QUERY, prefixed), self._requests(Side.TARGET, prefixed))
            for prefixed in with_prefix
        ]
        distinct: dict[tuple[int, Task | None], SideRequest] = {}
        for queries, targets in wanted:
            for request in (*queries, *targets):
                distinct.setdefault(self._content(request), request)
        vectors = self._vectors(embedder, distinct.values(), system)
        places = {content: place for place, content in enumerate(distinct)}

        def vectors_of(requests: list[SideRequest]) -> Vectors:
            return vectors[[places[self._content(request)] for request in requests]]

        return [RowVectors(vectors_of(queries), vectors_of(targets)) for queries, targets in wanted]

    def encode_swapped(self, embedder: ViPolyQwenEmbedder, queries: Ints, partners: Ints) -> Vectors:
        """Vectors [Q, D] of queries, with their prefixes, that show the pictures of their partners.

        Raises:
            ValueError: as `encode`
        """
        requests = [
            SideRequest(
                row, Side.QUERY, prefix_of(Task(self.rows.task[row]), Side.QUERY), pictures_of=partner
            )
            for row, partner in zip(queries.tolist(), partners.tolist(), strict=True)
        ]
        return self._vectors(embedder, requests, SWAPPED)

    def _requests(self, side: Side, prefixed: bool) -> list[SideRequest]:
        """A side of every row, with the prefix that it has in training or without any."""
        prefixes = {task: prefix_of(task, side) if prefixed else None for task in Task}
        return [SideRequest(row, side, prefixes[Task(task)]) for row, task in enumerate(self.rows.task)]

    def _content(self, request: SideRequest) -> tuple[int, Task | None]:
        """What decides the vector of a side: equal content and prefix, equal vector."""
        identity = self.rows.query if request.side is Side.QUERY else self.rows.target
        return int(identity[request.row]), request.prefix

    def _vectors(
        self, embedder: ViPolyQwenEmbedder, requests: Collection[SideRequest], system: str
    ) -> Vectors:
        """Vectors [N, D] of some sides, all finite: a score out of others would say nothing."""
        items = self.sides.late_items(requests, embedder.processor.shrink)
        vectors = embedder.encode_items(items, self.batch_tokens)
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            first = list(requests)[broken[0]]
            sample = self.table["sample_id"][first.row].as_py()
            raise ValueError(
                f"{len(broken)} of {len(vectors)} vectors of the system {system!r} are not finite, the first "
                f"that of the {first.side.value} of evaluation row {first.row} (sample {sample})"
            )
        return vectors

    def texts(self, rows: Ints, side: Side) -> list[str]:
        """The text of a side of some rows, earlier turns included."""
        return side_texts(self.table.take(pa.array(rows)), side)

    def picture_ids(self, rows: Ints) -> list[tuple[str, ...]]:
        """Ids of the pictures that the queries of some rows show."""
        return [tuple(ids or ()) for ids in self.table["query_images"].take(pa.array(rows)).to_pylist()]


def swap_partners(pictures: list[tuple[str, ...]], seed: int) -> tuple[Ints, Ints]:
    """For each query another one whose pictures it gets: as many, and other ones.

    Queries are shuffled, those with the same pictures put side by side, and all shifted by the largest such
    group; so every query meets other pictures, unless one group is more than half of all.

    Shapes:
        pictures: [Q] ids of each query's pictures
        returns: [K] places that have a partner, [K] their partners
    """
    rng = np.random.default_rng(seed)
    places, partners = [], []
    for count in sorted({len(shown) for shown in pictures if shown}):
        groups: dict[tuple[str, ...], list[int]] = {}
        for place in rng.permutation(len(pictures)):
            if len(pictures[place]) == count:
                groups.setdefault(pictures[place], []).append(int(place))
        order = [place for group in groups.values() for place in group]
        shift = max(len(group) for group in groups.values())
        for i, place in enumerate(order):
            partner = order[(i + shift) % len(order)]
            if pictures[partner] != pictures[place]:
                places.append(place)
                partners.append(partner)
    return np.array(places, dtype=np.int64), np.array(partners, dtype=np.int64)
