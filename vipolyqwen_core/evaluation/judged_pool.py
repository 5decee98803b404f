"""A pool with the rankings of every system: what scores, gains and the gallery are taken from."""

from dataclasses import dataclass

from vipolyqwen_core.evaluation import results
from vipolyqwen_core.evaluation.bootstrap import Sample
from vipolyqwen_core.evaluation.metrics import PRIMARY
from vipolyqwen_core.evaluation.retrieval import Pool, Ranking


@dataclass(frozen=True, eq=False)
class JudgedPool:
    """A pool and what each system made of it."""

    pool: Pool
    rankings: dict[str, Ranking]
    has_pictures: bool
    """Whether all of its queries show pictures."""

    def gain(self, rival: str, metric: str = PRIMARY) -> Sample:
        """Paired differences of a metric to another system, by query."""
        ours, theirs = (self.rankings[system].by_query[metric] for system in (results.TRAINED, rival))
        return Sample(ours - theirs, self.pool.clusters)
