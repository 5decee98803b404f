"""What an evaluation found: the file `evaluation.json`, and the verdict whether the model has learned."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from vipolyqwen_core.config import explain
from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation import EVALUATION_FILE
from vipolyqwen_core.evaluation.bootstrap import Interval
from vipolyqwen_core.evaluation.metrics import PRIMARY, judging_metric
from vipolyqwen_core.portable_paths import meant, spelled
from vipolyqwen_core.written_aside import written_aside

VERSION: Final = 9
"""Raised when the same model and pairs would be judged otherwise, or the report changed: what was stored
before is made anew."""

TRAINED: Final = "trained"
PLAIN: Final = "plain"
UNTRAINED: Final = "untrained"
CHAMPION: Final = "champion"
CHAMPION_PLAIN: Final = "champion_plain"
BM25: Final = "bm25"
SWAPPED: Final = "swapped"
CHANCE: Final = "chance"

SYSTEMS: Final[dict[str, str]] = {
    TRAINED: "this model, each side with the prefix it has in training",
    PLAIN: "this model without any prefix: the everyday use",
    UNTRAINED: "the same architecture before training, with prefixes",
    CHAMPION: "the champion at that time, with prefixes",
    CHAMPION_PLAIN: "the champion without any prefix",
    BM25: "words alone: BM25 over the texts, pictures ignored",
    SWAPPED: "this model, each query with another query's pictures",
    CHANCE: "expectation of a random order",
}
"""Columns of every table of the evaluation."""

LABELS: Final[dict[str, str]] = {
    TRAINED: "this model",
    PLAIN: "no prefix",
    UNTRAINED: "untrained",
    CHAMPION: "champion",
    CHAMPION_PLAIN: "champion, no prefix",
    BM25: "BM25",
    SWAPPED: "swapped",
    CHANCE: "chance",
}
"""Their names in tables and plots."""

NEEDED_TIMES_CHANCE: Final = 5.0
SWAP_FALL: Final = 0.5


@dataclass(frozen=True)
class PoolResult:
    """One task in one language."""

    task: Task
    language: str
    num_pairs: int
    num_queries: int
    num_targets: int
    """Distinct targets: what is searched."""
    num_components: int
    """Linked groups of its queries."""
    is_choice: bool
    """Two answers: judged by `ACCURACY`, and the pool stays out of the mean."""
    has_pictures: bool
    """Whether all of its queries show pictures."""
    is_large: bool
    """Whether it has the pairs, and a retrieval pool the distinct targets, that the settings ask for."""
    counts: bool
    """Whether it belongs to the mean primary metric."""
    scores: dict[str, dict[str, float]]
    """System -> metric -> mean over queries."""
    gain_over_untrained: Interval
    """Paired difference of the primary metric, of a choice of the accuracy."""
    gain_over_champion: Interval | None
    """Likewise; None: there was no champion."""

    @property
    def name(self) -> str:
        """`ocr/vi`"""
        return f"{self.task.value}/{self.language}"


@dataclass(frozen=True)
class SimilarityResult:
    """Scored pairs: does the cosine follow the given score?"""

    language: str
    num_pairs: int
    is_large: bool
    """Whether it has the pairs that the settings ask of a pool that counts."""
    scores: dict[str, dict[str, float]]
    """System -> `spearman`, `pearson`; empty where one side is constant."""


@dataclass(frozen=True)
class Verdict:
    """Whether the model has visibly learned, and what speaks for or against it."""

    learned: bool
    failures: tuple[str, ...]
    """One sentence for each condition that does not hold."""
    facts: tuple[str, ...]
    """One sentence for each condition that holds."""


@dataclass(frozen=True)
class Evaluation:
    """Everything `evaluate` found out about one model."""

    run_name: str
    model: str
    """The model directory."""
    champion: str | None
    """The champion's model directory; None: there was none."""
    data_version: str
    """Of the training set."""
    num_rows: int
    """Evaluation pairs."""
    rows_by_task: dict[Task, int]
    """Those of each task, whether or not they make a pool."""
    primary_metric: str
    primary: dict[str, float]
    """System -> mean of the primary metric over the pools that count."""
    enough: bool
    """False: no pool is large enough to count, so all of them do, and nothing is certain."""
    gain_over_untrained: Interval
    gain_over_champion: Interval | None
    pools: tuple[PoolResult, ...]
    cross_lingual: tuple[PoolResult, ...]
    similarities: tuple[SimilarityResult, ...]
    matryoshka: dict[int, float]
    """Dimension -> mean primary metric of that slice of this model."""
    verdict: Verdict
    seconds: float
    champion_is_apart: bool = False
    """Whether the champion was trained under another split: perhaps on these pairs."""
    rival: str = CHAMPION
    """What the champion is called: `champion (version 3)`."""

    @property
    def labels(self) -> dict[str, str]:
        """Names of the systems in tables and plots, the champion's by what it is called."""
        return {name: label.replace(CHAMPION, self.rival) for name, label in LABELS.items()}

    def counted(self) -> tuple[PoolResult, ...]:
        """Pools that make the primary metric."""
        return tuple(pool for pool in self.pools if pool.counts)

    def note_on_mean(self) -> str:
        """What is in the mean, for a person; a star stands beside a pool that is not."""
        if all(pool.counts for pool in self.pools) and self.enough:
            return "The mean is over all pools"
        if self.enough:
            return "* outside the mean: too small to count, or a choice between two answers"
        if all(pool.is_choice for pool in self.pools):
            return "The mean is over choices between two answers, as there are no other pools"
        which = "all of them" if len(self.counted()) == len(self.pools) else "those without *"
        return f"No pool is large enough to count: the mean is over {which}"

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a tracker: `mrr@10/ocr/vi`, `untrained/mrr@10`, `spearman/vi` ..."""
        flat = {f"{system}/{PRIMARY}": value for system, value in self.primary.items() if system != TRAINED}
        flat[PRIMARY] = self.primary[TRAINED]
        for pool in (*self.pools, *self.cross_lingual):
            for metric, value in pool.scores[TRAINED].items():
                flat[f"{metric}/{pool.name}"] = value
            flat[f"{PLAIN}/{PRIMARY}/{pool.name}"] = pool.scores[PLAIN][PRIMARY]
        for result in self.similarities:
            for metric, value in result.scores[TRAINED].items():
                flat[f"{metric}/{result.language}"] = value
        for dim, value in self.matryoshka.items():
            flat[f"{PRIMARY}/dim_{dim}"] = value
        flat["learned"] = float(self.verdict.learned)
        flat["num_evaluation_pairs"] = float(self.num_rows)
        flat["num_pools_in_mean"] = float(len(self.counted()))
        return flat

    def write(self, folder: Path) -> Path:
        """Write `evaluation.json` into a folder; models of its workspace are named relative to it."""
        path = folder / EVALUATION_FILE
        written = replace(
            self,
            model=spelled(Path(self.model), folder),
            champion=None if self.champion is None else spelled(Path(self.champion), folder),
        )
        with written_aside(path) as aside:
            text = json.dumps(asdict(written), ensure_ascii=False, indent=2, allow_nan=False)
            aside.write_text(text, encoding="utf-8")
        return path


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation of an `evaluation.json`, or of the folder that holds one.

    Raises:
        ValueError: there is none, or it is of another version
    """
    file = path / EVALUATION_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no evaluation at {file}")
    try:
        found = TypeAdapter(Evaluation).validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{file}: {explain(error)}") from error
    champion = None if found.champion is None else str(meant(found.champion, file.parent))
    return replace(found, model=str(meant(found.model, file.parent)), champion=champion)


def judge_pools(pools: tuple[PoolResult, ...], enough: bool) -> Verdict:
    """Whether the model has learned, over the pools that count.

    In each of them the primary metric lies above the untrained model's with the lower bound of the paired
    bootstrap above 0, and swapping the pictures between queries at least halves it; the mean of recall@1
    over them is at least five times chance. Pools too small to count cannot prove it.
    """
    failures: list[str] = []
    facts: list[str] = []
    if not enough:
        failures.append("no pool is large enough to tell: more evaluation pairs are needed")
    counted = [pool for pool in pools if pool.counts]
    for pool in counted:
        gain, metric = pool.gain_over_untrained, judging_metric(pool.is_choice)
        sentence = (
            f"{pool.name}: {metric} {pool.scores[TRAINED][metric]:.3f}, untrained "
            f"{pool.scores[UNTRAINED][metric]:.3f}, gain {gain}"
        )
        (facts if gain.low > 0 else failures).append(sentence)
        if pool.has_pictures:
            swapped = pool.scores[SWAPPED][PRIMARY]
            sentence = f"{pool.name}: {PRIMARY} is {swapped:.3f} when pictures are swapped"
            halved = swapped <= SWAP_FALL * pool.scores[TRAINED][PRIMARY]
            (facts if halved else failures).append(sentence)
    if counted:
        recall = sum(pool.scores[TRAINED]["recall@1"] for pool in counted) / len(counted)
        chance = sum(pool.scores[CHANCE]["recall@1"] for pool in counted) / len(counted)
        sentence = f"mean recall@1 {recall:.3f} is {recall / chance:.1f} times chance ({chance:.4f})"
        (facts if recall >= NEEDED_TIMES_CHANCE * chance else failures).append(sentence)
    return Verdict(learned=not failures, failures=tuple(failures), facts=tuple(facts))
