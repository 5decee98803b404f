"""The source files of the built-in corpus: which samples they hold, and how a sample is written in each."""

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, Task
from vipolyqwen_core.corpus.demo.charts import charts
from vipolyqwen_core.corpus.demo.dialogues import comparisons, dialogues
from vipolyqwen_core.corpus.demo.documents import pages
from vipolyqwen_core.corpus.demo.instructions import instruction_dialogues, instructions
from vipolyqwen_core.corpus.demo.samples import Picture, Sample
from vipolyqwen_core.corpus.demo.scenes import scenes
from vipolyqwen_core.corpus.demo.text_pairs import text_pairs

Record = dict[str, Any]

IMAGE_ROOT = "images"
STS_SCALE = 5
"""Scores in the table run from 0 to 5, as in STS benchmarks."""


@dataclass(frozen=True)
class Entry:
    """One record of a source file, clean or not."""

    record: Record | str
    """What is written; a string is written as it is."""
    pictures: tuple[Picture, ...] = ()
    """Files that it brings along."""
    sample: Sample | None = None
    """The clean pair behind it, if there is one."""
    dirt: str | None = None
    """Kind of dirt that was planted here."""
    original: "Entry | None" = None
    """The clean entry that this one copies, where that stays in the file."""


@dataclass(frozen=True)
class SourceFile:
    """A source of the manifest with one file."""

    name: str
    path: str
    """Below the corpus' folder."""
    samples: Callable[[int, float], list[Sample]]
    """The clean samples, for a seed and a scale."""
    write: Callable[[Sample, int], Record]
    """A sample as a record; the number varies the spelling where the format has several."""
    render: Callable[[Sequence[Record | str]], str]
    """The text of the file."""
    first_line: int
    """Line or record number of the first entry, as ledgers count it."""
    manifest: Record = field(default_factory=dict)
    """Further keys in the manifest."""


def owner_record(sample: Sample, number: int) -> Record:
    """A sample of `owner_jsonl`, in each of the spellings it allows."""
    common: Record = {"group_id": sample.group}
    if sample.task is Task.TEXT_PAIR:
        first, second = (("input", "output"), ("text1", "text2"), ("question", "answer"))[number % 3]
        return {
            "data_type": "contrastive_with_score",
            first: sample.question,
            second: sample.answer,
            "similarity_score": sample.score,
            **common,
        }
    if sample.task is Task.INSTR:
        return {"data_type": "instruction", "input": _messages(sample, ""), "output": sample.answer, **common}
    common["positive_key"] = sample.group
    if sample.negatives:
        common["negatives"] = list(sample.negatives)
    images = [picture.path for picture in sample.pictures]
    placeholders = IMAGE_PLACEHOLDER * len(images)
    if sample.task is Task.OCR:
        kind = "ocq" if number % 4 == 0 else "ocr"
        behind = number % 6 == 1  # a few pictures stand behind the question
        question = f"{sample.question}\n{placeholders}" if behind else placeholders + sample.question
        return {"data_type": kind, "images": images, "question": question, "answer": sample.answer, **common}
    plain = not sample.history and number % 3 > 0
    asked = placeholders + sample.question if plain else _messages(sample, placeholders)
    answer = "answer" if number % 2 else "output"
    return {"data_type": sample.task.value, "images": images, "input": asked, answer: sample.answer, **common}


def _messages(sample: Sample, placeholders: str) -> list[Record]:
    turns = [{"role": turn.role, "content": turn.text} for turn in sample.history]
    turns.append({"role": "user", "content": sample.question})
    turns[0] = {**turns[0], "content": placeholders + turns[0]["content"]}
    return turns


def sts_record(sample: Sample, number: int) -> Record:
    """A sample as a row of the table."""
    return {
        "sentence1": sample.question,
        "sentence2": sample.answer,
        "score": round((sample.score or 0.0) * STS_SCALE, 2),
        "group": sample.group,
    }


def alpaca_record(sample: Sample, number: int) -> Record:
    """A sample as an alpaca record."""
    return {
        "instruction": sample.question,
        "input": sample.details,
        "output": sample.answer,
        "group": sample.group,
        "key": sample.group,
    }


def json_lines(records: Sequence[Record | str]) -> str:
    """One record a line."""
    lines = (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records)
    return "".join(f"{line}\n" for line in lines)


def json_array(records: Sequence[Record | str]) -> str:
    """One array, a record a line."""
    return "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"


def csv_table(records: Sequence[Record | str]) -> str:
    """A table with a line of names."""
    table = io.StringIO()
    writer = csv.DictWriter(table, ["sentence1", "sentence2", "score", "group"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(record for record in records if isinstance(record, dict))
    return table.getvalue()


def _count(num_contents: int, scale: float) -> int:
    return max(40, round(num_contents * scale))


def _text_pair_samples(seed: int, scale: float) -> list[Sample]:
    return list(text_pairs(random.Random(f"{seed} text pairs"), _count(1150, scale)))


def _instruction_samples(seed: int, scale: float) -> list[Sample]:
    return list(instructions(random.Random(f"{seed} instructions"), _count(760, scale)))


def _ocr_samples(seed: int, scale: float) -> list[Sample]:
    return list(pages(random.Random(f"{seed} pages"), _count(900, scale)))


def _vqa_samples(seed: int, scale: float) -> list[Sample]:
    drawn = scenes(random.Random(f"{seed} scenes"), _count(420, scale))
    plotted = charts(random.Random(f"{seed} charts"), _count(360, scale))
    return list(chain(drawn, plotted))


def _dialogue_samples(seed: int, scale: float) -> list[Sample]:
    rng = random.Random(f"{seed} dialogues")
    compared = comparisons(rng, _count(330, scale))
    talked = dialogues(rng, _count(450, scale))
    letters = instruction_dialogues(rng, _count(60, scale))
    spoken = text_pairs(rng, _count(60, scale), kind="spoken")
    return list(chain(compared, talked, letters, spoken))


OWNER_COLUMNS = {"group_id": "group_id", "positive_key": "positive_key"}
OWNER_MANIFEST = {"format": "owner_jsonl", "image_root": IMAGE_ROOT, "columns": OWNER_COLUMNS}

SOURCE_FILES = (
    SourceFile(
        "demo_text_pairs",
        "text_pairs/pairs.csv",
        _text_pair_samples,
        sts_record,
        csv_table,
        2,
        {
            "task": Task.TEXT_PAIR.value,
            "format": "sts_table",
            "score_range": [0, STS_SCALE],
            "columns": {"query": "sentence1", "target": "sentence2", "score": "score", "group_id": "group"},
        },
    ),
    SourceFile(
        "demo_instructions",
        "instructions/alpaca.json",
        _instruction_samples,
        alpaca_record,
        json_array,
        1,
        {
            "task": Task.INSTR.value,
            "format": "alpaca",
            "columns": {
                "instruction": "instruction",
                "input": "input",
                "target": "output",
                "group_id": "group",
                "positive_key": "key",
            },
        },
    ),
    SourceFile("demo_ocr", "ocr/samples.jsonl", _ocr_samples, owner_record, json_lines, 1, OWNER_MANIFEST),
    SourceFile("demo_vqa", "vqa/samples.jsonl", _vqa_samples, owner_record, json_lines, 1, OWNER_MANIFEST),
    SourceFile(
        "demo_dialogues",
        "dialogues/samples.jsonl",
        _dialogue_samples,
        owner_record,
        json_lines,
        1,
        OWNER_MANIFEST,
    ),
)
