"""Settings of a run, as frozen dataclasses that validate themselves; one section per component.

A recipe (`vipolyqwen_core.recipes`) is a function that returns one complete `Recipe`. Its JSON is stored with
every checkpoint and in the MLflow run: `Recipe` -> `to_json` -> `from_json` gives an equal object. An unknown
key or a value out of range is refused with its place.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from vipolyqwen_core.contract import EMBEDDING_DIM, Task

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

STRICT = ConfigDict(extra="forbid")
T = TypeVar("T")

MAX_IMAGE_PIXELS: Final = 178_956_970
"""Pillow opens no larger picture, whatever the settings say."""


class Pooling(StrEnum):
    """How the hidden states of a segment become one vector."""

    ATTENTION = "attention"
    MULTI_HEAD_ATTENTION = "multi_head_attention"
    MEAN = "mean"
    LAST = "last"


LEARNED_POOLINGS: Final = (Pooling.ATTENTION, Pooling.MULTI_HEAD_ATTENTION)
"""Those in which training decides how much a token weighs."""


class Negatives(StrEnum):
    """Where the candidates of an anchor come from."""

    CHUNK = "chunk"  # one chunk, over all ranks
    STEP = "step"  # the whole optimizer step, by cached gradients


class TaskBatching(StrEnum):
    """Which tasks share a step."""

    MIXED = "mixed"
    HOMOGENEOUS = "homogeneous"
    SUB_BATCHES = "sub_batches"


class Term(StrEnum):
    """The terms of a task's loss; `vipolyqwen_core.objectives.losses` has their formulas."""

    INFO_NCE = "info_nce"
    SCORE_MSE = "score_mse"
    COSINE = "cosine"
    TRIPLET_MARGIN = "triplet_margin"


class Precision(StrEnum):
    """Precision in which the backbone computes. Losses are at least float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Distribution(StrEnum):
    """How processes share the model."""

    NONE = "none"
    DATA_PARALLEL = "data_parallel"
    FSDP2 = "fsdp2"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSettings:
    """The head on the backbone."""

    pooling: Pooling = Pooling.ATTENTION
    """How hidden states become one vector."""
    pooling_heads: Positive = 8
    """Context vectors of `multi_head_attention`."""
    embedding_dim: Positive = EMBEDDING_DIM
    """Dimension of the embedding."""
    matryoshka_dims: tuple[Positive, ...] = ()
    """Shorter slices that are trained as embeddings too."""

    @model_validator(mode="after")
    def _shorter(self) -> "ModelSettings":
        for dim in self.matryoshka_dims:
            if dim >= self.embedding_dim:
                raise ValueError(
                    f"matryoshka_dims has {dim}, which is not below embedding_dim {self.embedding_dim}: the "
                    "whole vector is always trained"
                )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProcessingSettings:
    """From text and pictures to tokens and patches. Part of the model's contract."""

    min_pixels: Positive = 56 * 56
    """Smaller pictures are enlarged to this area."""
    max_pixels: Positive = 1024 * 28 * 28
    """Larger pictures are reduced to this area: at most 1,024 visual tokens."""
    max_tokens: Positive = 8192
    """Longest side of a pair; text beyond it is cut, a picture never."""

    @model_validator(mode="after")
    def _ordered(self) -> "ProcessingSettings":
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextLimits:
    """Limits for the texts of one task; None: the limit for all tasks."""

    min_chars: Positive | None = None
    """Shortest text of a side without pictures."""
    max_chars: Positive | None = None
    """Longest text of a side."""
    max_repetition: Share | None = None
    """Largest share of a side that one repeated line or word may fill."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CurationSettings:
    """Which rows are kept."""

    min_chars: Positive = 1
    """Shortest text of a side without pictures."""
    max_chars: Positive = 100_000
    """Longest text of a side."""
    max_repetition: Share = 0.9
    """Largest share of a side of 100 characters or more that one repeated line, phrase, word or character may
    fill."""
    by_task: dict[Task, TextLimits] = Field(default_factory=dict)
    """Limits that differ for the rows of a task."""
    max_image_pixels: Annotated[int, Field(gt=0, le=MAX_IMAGE_PIXELS)] = 100_000_000
    """Larger pictures are rejected before they are decoded."""
    near_duplicate_threshold: Share = 0.85
    """Jaccard similarity of character 5-grams from which a side counts as a near duplicate. A lower value
    finds more copies, but also drops rows that differ in a word that matters: USAGE.md has figures."""
    min_linking_chars: Positive = 32
    """Text-only sides that are shorter do not link rows."""
    dialogue_turns: Annotated[str, Field(pattern="^(last|each)$")] = "last"
    """Which assistant turns of a dialogue become pairs."""
    seed: Seed = 0
    """Seed of the MinHash signatures."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SplitSettings:
    """Which rows train and which evaluate."""

    eval_share: Share = 0.05
    """Expected share of the rows of new components that evaluate, in each source, task and language."""
    max_eval_pairs: Positive = 5000
    """At most this many evaluation rows; further new components train. Rows that evaluated before stay, and
    new rows that are linked to them and find no room leave."""
    max_component_share: Share = 0.05
    """A component of more than 100 rows with a larger share of them is a blocking error: its links must be
    wrong."""
    one_task_per_picture: bool = False
    """Whether a picture trains for one task only: rows of other tasks with it do not train."""
    seed: Seed = 0
    """Seed of the hashes that assign new components, and pictures to tasks."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ObjectiveSettings:
    """Losses. Terms by task are fixed in `vipolyqwen_core.objectives.routing`."""

    temperature: PositiveFloat = 0.07
    """Divides the similarities in `info_nce`."""
    margin: NonNegativeFloat = 0.2
    """Margin of `triplet_margin`, in cosine units."""
    positive_score: Share = 0.5
    """From this score on a scored pair is a positive of `info_nce`; below it, it has `score_mse` only."""
    term_weights: dict[Term, NonNegativeFloat] = Field(default_factory=dict)
    """Weight of a term; 1.0 where absent."""
    task_weights: dict[Task, NonNegativeFloat] = Field(default_factory=dict)
    """Weight of a task; 1.0 where absent."""
    cross_task_negatives: bool = False
    """Whether pairs of other tasks are candidates too."""
    uniformity_weight: NonNegativeFloat = 0.0
    """Weight of the uniformity term (Wang and Isola 2020)."""
    pooling_entropy_weight: NonNegativeFloat = 0.0
    """Weight of how far the weights of attention pooling are from even: 1 - entropy / log(tokens)."""
    dynamic_task_weights: bool = False
    """Weigh each task by the inverse of its running loss."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BatchSettings:
    """How pairs are batched."""

    pairs_per_step: Positive = 768
    """Pairs per optimizer step, over all ranks."""
    chunk_tokens: Positive = 16_384
    """Tokens of one forward and backward on one rank."""
    chunk_patches: Positive = 65_536
    """Picture patches of one forward and backward on one rank."""
    chunk_pairs: Positive | None = None
    """At most this many pairs per chunk; None: only the budgets limit it."""
    negatives: Negatives = Negatives.CHUNK
    """Where candidates come from."""
    task_batching: TaskBatching = TaskBatching.MIXED
    """Which tasks share a step."""
    sub_batch_pairs: Positive = 64
    """Size of a sub-batch of one task; divides `pairs_per_step`."""
    text_first: bool = False
    """Whether pairs without pictures come before those with pictures in the first epoch."""
    prefix_dropout: Share = 0.1
    """Share of a row's uses that go without prefix, chosen by hash(seed, epoch, sample_id)."""

    @model_validator(mode="after")
    def _fit(self) -> "BatchSettings":
        if self.task_batching is TaskBatching.SUB_BATCHES and self.pairs_per_step % self.sub_batch_pairs:
            raise ValueError(
                f"sub_batch_pairs {self.sub_batch_pairs} does not divide pairs_per_step "
                f"{self.pairs_per_step}: steps would be smaller"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MiningSettings:
    """Hard negatives that are mined with the model of the last export."""

    negatives_per_pair: NonNegative = 0
    """Mined targets of other pairs that are negatives of a query, besides those of its batch; 0: none."""
    max_similarity_share: Share = 0.95
    """A target whose similarity to the query exceeds this share of the similarity of the query's own target
    may be a right answer that nobody declared, and is skipped."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerSettings:
    """AdamW and its schedule. Norms, biases and the pooling context have no weight decay."""

    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate."""
    warmup_share: Share = 0.05
    """Share of the steps that warm up linearly; the rest decays as a cosine to zero."""
    weight_decay: NonNegativeFloat = 0.001
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingSettings:
    """The training process."""

    epochs: Positive = 2
    """Passes over the training set."""
    max_steps: Positive | None = None
    """Stop after this many steps; None: after the epochs."""
    seed: Seed = 0
    """Seed of the plan, the prefix dropout and everything random; a step's random numbers derive from
    (seed, step)."""
    precision: Precision = Precision.BFLOAT16
    """Type of the backbone's arithmetic."""
    distribution: Distribution = Distribution.FSDP2
    """How processes share the model."""
    processes: Positive = 4
    """Processes on this machine, one per GPU."""
    loader_workers: NonNegative = 8
    """Processes per rank that decode and tokenise; 0: the main process does."""
    activation_checkpointing: bool = True
    """Recompute activations for the backward pass instead of keeping them: slower, far less memory."""
    compile_layers: bool = False
    """Compile the layers of Qwen2-VL (torch.compile): 1.5 to 1.7 times as fast after a slow start."""
    log_steps: Positive = 10
    """Steps between two lines of metrics."""
    save_steps: Positive = 200
    """Steps between two checkpoints: what a killed machine costs."""
    eval_steps: Positive | None = None
    """Steps between two quick evaluations, which choose the best checkpoint; None: the last one is used. A
    run that has finished stays as it is."""
    keep_checkpoints: Positive = 3
    """Newest checkpoints that are kept, besides the best."""

    @model_validator(mode="after")
    def _shared(self) -> "TrainingSettings":
        if self.distribution is Distribution.NONE and self.processes > 1:
            raise ValueError(
                f"{self.processes} processes share the model: distribution 'none' is for one, expected "
                "'fsdp2' or 'data_parallel'"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationSettings:
    """How a model is evaluated."""

    batch_tokens: Positive = 16_384
    """Tokens encoded at once; no score depends on it."""
    bootstrap_samples: Positive = 1000
    """Resamples of the paired bootstrap."""
    confidence: Share = 0.95
    """Confidence level of its interval."""
    min_distinct_targets: Positive = 50
    """Distinct targets from which on a pool counts in the primary metric."""
    min_pairs: Positive = 150
    """Pairs from which on it counts; it needs ten components of linked rows, too, for an interval."""
    gallery_queries: NonNegative = 4
    """Queries of each task shown with their hits in the report."""
    seed: Seed = 0
    """Seed of the resamples and the gallery."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RegistrySettings:
    """When a version becomes champion."""

    min_gain: NonNegativeFloat = 0.0
    """The lower bound of the gain in the mean primary metric must exceed this."""
    max_task_loss: NonNegativeFloat = 0.05
    """No task's primary metric may fall by more."""
    max_similarity_loss: NonNegativeFloat = 0.1
    """No language's Spearman of scored pairs may fall by more: chance moves 150 pairs by a third of it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportSettings:
    """How the vectors of the corpus are exported."""

    batch_tokens: Positive = 16_384
    """Tokens encoded at once."""
    compile_layers: bool = False
    """Compile the layers of Qwen2-VL (torch.compile): 1.3 to 1.4 times as fast after a slow start."""
    index_min_rows: Positive = 10_000
    """From this many rows on the LanceDB table gets a vector index; below, a scan is exact and fast."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """All settings of a run."""

    name: Annotated[str, Field(pattern=r"^\w[\w.+-]{0,63}$")]
    """Name of the recipe: the folders of its runs begin with it."""
    backbone: str
    """A hub id, a directory of that shape, or `tiny`: the built-in one."""
    model: ModelSettings = ModelSettings()
    processing: ProcessingSettings = ProcessingSettings()
    curation: CurationSettings = CurationSettings()
    split: SplitSettings = SplitSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    batches: BatchSettings = BatchSettings()
    mining: MiningSettings = MiningSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    registry: RegistrySettings = RegistrySettings()
    export: ExportSettings = ExportSettings()

    @model_validator(mode="after")
    def _learned(self) -> "Recipe":
        if self.objective.pooling_entropy_weight and self.model.pooling not in LEARNED_POOLINGS:
            raise ValueError(
                f"objective.pooling_entropy_weight is {self.objective.pooling_entropy_weight:g}, but the "
                f"weights of model.pooling {self.model.pooling.value!r} are not learned: expected "
                f"{' or '.join(repr(pooling.value) for pooling in LEARNED_POOLINGS)}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingRun:
    """What `python -m vipolyqwen_core.training --config run.json` is told."""

    recipe: Recipe
    """All settings."""
    backbone: Path
    """Directory of the backbone, or a hub id."""
    training_set: Path
    """Directory of the training set."""
    output: Path
    """Directory of this run: checkpoints, final model, tracebacks."""
    hard_negatives: Path | None = None
    """Directory of mined hard negatives; None: only those that rows declare."""
    source_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Expected uses of a row per epoch, by source; 1.0 where absent."""
    run_name: str = "training"
    """Name of the MLflow run."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of the MLflow run: data digest, Dagster run id, git commit."""


def to_json(settings: Any) -> str:
    """The settings as indented JSON."""
    return TypeAdapter(type(settings)).dump_json(settings, indent=2).decode()


def from_json(kind: type[T], text: str | bytes, origin: str = "settings") -> T:
    """Settings of the given kind out of JSON.

    Raises:
        ValueError: names `origin`, the key and what was expected
    """
    try:
        settings = TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{origin}: {explain(error)}") from error
    try:
        json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return settings


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> None:
    """Pydantic silently takes the last of two equal keys, whole sections included."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} stands twice in one object")


def explain(error: ValidationError) -> str:
    """One sentence for each mistake: where it is, what is wrong, what was given."""
    sentences = []
    for mistake in error.errors():
        place = ".".join(str(part) for part in mistake["loc"]) or "the whole"
        told = mistake["type"] not in ("missing", "json_invalid")
        given = f" (given: {str(mistake['input'])[:80]!r})" if told else ""
        sentences.append(f"{place}: {mistake['msg']}{given}")
    return "; ".join(sentences)
