"""The model card: README.md of a model directory, written from what the run and the evaluation know."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.tables import read_json, read_stage
from vipolyqwen_core.written_aside import written_aside

if TYPE_CHECKING:  # scipy comes along with it, and writing a card needs none of it
    from vipolyqwen_core.evaluation.results import Evaluation

PURPOSE: dict[Task, str] = {
    Task.TEXT_PAIR: "texts that mean the same, with graded similarity",
    Task.INSTR: "instructions and their answers",
    Task.OCR: "questions on what a picture says",
    Task.VQA_SINGLE: "questions on one picture",
    Task.VQA_MULTI: "questions on several pictures",
}


@dataclass(frozen=True)
class ModelFacts:
    """What a training run knows about its model."""

    run_name: str
    recipe: str
    """Name of the recipe."""
    backbone: str
    """As the recipe names it."""
    data_version: str
    """Of the training set."""
    pairs: Mapping[str, int] = field(default_factory=dict)
    """Training pairs by task."""
    sources: Mapping[str, int] = field(default_factory=dict)
    """Training pairs by source."""
    licenses: Mapping[str, str] = field(default_factory=dict)
    """License of each source, where it is known."""

    @classmethod
    def of(cls, run: TrainingRun, licenses: Mapping[str, str] | None = None) -> "ModelFacts":
        """The facts of a run, counted in the index of its training set."""
        tasks: Counter[str] = Counter()
        sources: Counter[str] = Counter()
        index = run.training_set / "index.parquet"
        if index.is_file():
            table = pq.read_table(index, columns=["task", "source"])
            for counter, column in ((tasks, "task"), (sources, "source")):
                counts = table[column].value_counts().to_pylist()
                counter.update({entry["values"]: entry["counts"] for entry in counts})
        stage = read_stage(run.training_set)
        backbone = run.recipe.backbone
        return cls(
            run_name=run.run_name,
            recipe=run.recipe.name,
            backbone=Path(backbone).name if run.backbone.is_dir() else backbone,
            data_version=stage.data_version if stage is not None else "unknown",
            pairs=tasks,
            sources=sources,
            licenses=licenses or {},
        )


def write_model_card(path: Path, facts: ModelFacts, evaluation: "Evaluation | None" = None) -> None:
    """Write README.md into a model directory; with its scores, where it has been evaluated."""
    config = read_json(path / "config.json")
    processing = read_json(path / "preprocessor_config.json")["vipolyqwen"]
    parts = [
        _front_matter(facts),
        _introduction(facts, config),
        _usage(config),
        _inputs(processing),
        _training(facts),
    ]
    if evaluation is not None:
        parts.append(_scores(evaluation))
    parts.append(_limits(evaluation))
    with written_aside(path / "README.md") as aside:
        aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front_matter(facts: ModelFacts) -> str:
    base = f"base_model: {facts.backbone}\n" if "/" in facts.backbone else ""
    return (
        "---\n"
        "library_name: sentence-transformers\n"
        "pipeline_tag: sentence-similarity\n"
        "language: [vi, en, zh]\n"
        f"{base}"
        "tags: [sentence-transformers, feature-extraction, multimodal, image-text, retrieval, vipolyqwen]\n"
        "---"
    )


def _introduction(facts: ModelFacts, config: Mapping[str, Any]) -> str:
    dims = config.get("matryoshka_dims") or []
    slices = (
        f" Slices of {', '.join(map(str, dims))} dimensions were trained as embeddings too." if dims else ""
    )
    return (
        f"# viPolyQwen, run {facts.run_name}\n\n"
        f"One vector of {config['embedding_dim']} dimensions for a text, for pictures, or for both. The "
        f"backbone is `{facts.backbone}`; its final hidden states are pooled by `{config['pooling']}`, "
        f"projected, and normalised to unit length, so the cosine is a dot product. It is "
        f"saved, and computes, in {config.get('precision', 'float32')}.{slices}"
    )


def _usage(config: Mapping[str, Any]) -> str:
    return f"""## Use

```python
from vipolyqwen_core import ViPolyQwenEmbedder

embedder = ViPolyQwenEmbedder.from_pretrained("path/to/this/folder")
texts = embedder.encode(["Một câu tiếng Việt.", "An English sentence."])      # [2, {config["embedding_dim"]}]
picture = embedder.encode(images="receipt.jpg")                               # [{config["embedding_dim"]}]
both = embedder.encode("Tổng tiền là bao nhiêu?", images=["page1.png", "page2.png"], prefix="ocr")
```

With sentence-transformers, and `vipolyqwen` installed:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder", trust_remote_code=True)
asked = model.encode({{"text": "What is the total?", "image": "receipt.jpg"}}, prompt_name="ocr")
```

With transformers, where texts and pictures are taken as they are:

```python
import vipolyqwen_core.model  # registers the classes
from transformers import AutoModel, AutoProcessor
from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.processor import Item

model = AutoModel.from_pretrained("path/to/this/folder").eval()
processor = AutoProcessor.from_pretrained("path/to/this/folder")
items = [Item("Một câu tiếng Việt."), Item("An English sentence.")]
vectors = model(pack(processor.encode_batch(items))).detach()
```"""


def _inputs(processing: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| `{task.value}` | {PURPOSE[task]} |" for task in Task)
    return f"""## Inputs

Store and search without a prefix. A question may carry the prefix of its task, and then finds best what was
stored for that task:

| prefix | made for |
| --- | --- |
{rows}

Pictures are resized to at most {processing["max_pixels"]} pixels, items are cut at
{processing["max_tokens"]} tokens (text only, never a picture). `<image>` in a text marks where a
picture belongs; missing marks stand in front. Prompt: `{processing["prompt"]}`."""


def _training(facts: ModelFacts) -> str:
    def table(head: str, rows: Iterable[tuple[str, ...]]) -> str:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        columns = head.count("|") + 1
        return "\n".join([f"| {head} |", "|" + " --- |" * columns, *lines])

    by_task = table("task | training pairs", ((task, f"{n:,}") for task, n in sorted(facts.pairs.items())))
    if facts.licenses:
        rows = [
            (name, f"{n:,}", facts.licenses.get(name, "not stated"))
            for name, n in sorted(facts.sources.items())
        ]
        by_source = table("source | training pairs | license", rows)
    else:
        by_source = table(
            "source | training pairs", ((name, f"{n:,}") for name, n in sorted(facts.sources.items()))
        )
    return (
        f"## Training\n\nRecipe `{facts.recipe}`, training set version `{facts.data_version}`.\n\n"
        f"{by_task}\n\n{by_source}"
    )


def _scores(evaluation: "Evaluation") -> str:
    from vipolyqwen_core.evaluation.results import BM25, CHANCE, LABELS, PLAIN, TRAINED, UNTRAINED

    metric, others = evaluation.primary_metric, (PLAIN, UNTRAINED, BM25, CHANCE)
    names = " | ".join(LABELS[system] for system in others)
    head = f"| pool | pairs | {metric} | {names} | recall@1 | recall@10 |"
    rows = [
        f"| {pool.name}{'' if pool.counts else ' *'} | {pool.num_pairs:,} | "
        + " | ".join(f"{pool.scores[system][metric]:.3f}" for system in (TRAINED, *others))
        + f" | {pool.scores[TRAINED]['recall@1']:.3f} | {pool.scores[TRAINED]['recall@10']:.3f} |"
        for pool in evaluation.pools
    ]
    means = " | ".join(f"{evaluation.primary[system]:.3f}" for system in (TRAINED, *others))
    return "\n".join(
        [
            "## Evaluation\n",
            f"{evaluation.num_rows:,} pairs that share no picture, group or near duplicate with training. A "
            "pool is one task in one language; its candidates are its distinct targets.\n",
            head,
            "|" + " --- |" * (head.count("|") - 1),
            *rows,
            f"| **mean** | | {means} | | |",
            "",
            evaluation.note_on_mean().replace("*", "\\*") + ".",
        ]
    )


def _limits(evaluation: "Evaluation | None") -> str:
    lines = [
        "A vector says what a text or a picture is about, not whether it is true. Small print in pictures "
        "is read only as far as the pixel budget shows them.",
    ]
    if evaluation is None:
        lines.append("This model has not been evaluated yet.")
    elif evaluation.verdict.failures:
        lines.append("What the evaluation holds against it:\n")
        lines += [f"- {failure}" for failure in evaluation.verdict.failures]
    return "## Limits\n\n" + "\n".join(lines)
