"""What a run does by the second: pairs, tokens, operations, and how long it waits for data."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from vipolyqwen_core.training.engine import PlannedStep
from vipolyqwen_core.training.flops import FlopCounter
from vipolyqwen_core.training.loading import LoadedChunk
from vipolyqwen_core.training.ranks import largest, sums


@dataclass
class Throughput:
    """What was done since the last line of metrics."""

    started: float = field(default_factory=time.perf_counter)
    pairs: int = 0
    tokens: int = 0
    filler_tokens: int = 0
    truncated_tokens: int = 0
    flops: float = 0.0
    waiting_seconds: float = 0.0
    loading_seconds: float = 0.0

    def of_all_ranks(self, device: torch.device) -> "Throughput":
        """The tokens and operations of all ranks, the longest times of any; all ranks call it together.

        Tokens differ in a system: rank 0 takes the texts of each step, and is never without pairs. The rank
        that waits longest for data holds up the others in their next collective. Pairs count for all ranks
        already.
        """
        counts = (self.tokens, self.filler_tokens, self.truncated_tokens, self.flops)
        tokens, filler, truncated, flops = sums(counts, device)
        waiting, loading = largest((self.waiting_seconds, self.loading_seconds), device)
        return replace(
            self,
            tokens=round(tokens),
            filler_tokens=round(filler),
            truncated_tokens=round(truncated),
            flops=flops,
            waiting_seconds=waiting,
            loading_seconds=loading,
        )

    def metrics(self, num_ranks: int, peak_flops: float | None) -> dict[str, float]:
        """Rates, from the counts of all ranks; `peak_flops` is the rate of one device."""
        seconds = time.perf_counter() - self.started
        metrics = {
            "pairs_per_second": self.pairs / seconds,
            "tokens_per_second": self.tokens / seconds,
            "useful_token_share": 1.0 - self.filler_tokens / max(self.tokens, 1),
            "truncated_token_share": self.truncated_tokens / max(self.tokens + self.truncated_tokens, 1),
            "waiting_share": self.waiting_seconds / seconds,
            "loading_share": self.loading_seconds / seconds,
        }
        if peak_flops is not None:
            metrics["mfu"] = self.flops / seconds / (peak_flops * num_ranks)
        return metrics


class Meter:
    """Counts what goes by between two lines of metrics."""

    def __init__(self, counter: FlopCounter) -> None:
        self.counter = counter
        self.throughput = Throughput()
        self._chunks_to_count = 0

    def begin(self, planned: PlannedStep) -> None:
        """A step begins: its chunks count once, even where they are loaded twice."""
        self._chunks_to_count = planned.num_chunks
        self.throughput.pairs += planned.num_pairs

    def restart(self) -> None:
        """A line of metrics has been written."""
        self.throughput = Throughput()

    def watch(self, stream: Iterator[LoadedChunk]) -> Iterator[LoadedChunk]:
        """The chunks as they are, counted."""
        while True:
            asked = time.perf_counter()
            chunk = next(stream, None)
            if chunk is None:
                return
            seen = self.throughput
            seen.waiting_seconds += time.perf_counter() - asked
            seen.loading_seconds += chunk.seconds
            if self._chunks_to_count:
                self._chunks_to_count -= 1
                seen.tokens += chunk.packed.num_tokens
                seen.filler_tokens += chunk.filler_tokens
                seen.truncated_tokens += chunk.packed.truncated_tokens
                seen.flops += self.counter.count(chunk.packed)
            yield chunk
