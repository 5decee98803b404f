"""Tables of picture(s), question and answer: CSV, TSV, JSON, JSON Lines or Parquet (paths or bytes)."""

from collections.abc import Mapping
from typing import Any

from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.fields import answers_of, declared, images_of, keys_of
from vipolyqwen_core.corpus.readers.records import RawPair
from vipolyqwen_core.corpus.readers.row_fields import (
    Key,
    Needs,
    lacking,
    optional,
    optional_text,
    required,
    text_of,
)


def image_qa_needs(source: Source) -> Needs:
    """The fields that every row has: pictures, answer, and the question where the manifest gives none."""
    return (
        keys_of(source, "images", "image"),
        keys_of(source, "target", "answer", "answers", "output"),
        *((_questions(source),) if source.query_text is None else ()),
    )


def image_qa_pairs(fields: Mapping[Key, Any], source: Source, dialogue_turns: str) -> list[RawPair]:
    """The pair of one row, or one for each alternative answer.

    Without a question of its own it takes the `query_text` of the manifest.

    Raises:
        RecordError: pictures, question or answer are missing
    """
    assert source.task is not None, "the manifest demands a task for image_qa"
    pictures, targets, *_ = image_qa_needs(source)
    images = images_of(optional(fields, pictures))
    if not images:
        raise lacking("no_images", "the record", fields, pictures)
    answers = required(fields, targets)
    query = _query_of(fields, source)
    return [
        RawPair(
            task=source.task,
            query=query,
            target=answer,
            query_images=images,
            **declared(fields, source),
        )
        for answer in answers_of(answers)
    ]


def _questions(source: Source) -> tuple[Key, ...]:
    return keys_of(source, "query", "question")


def _query_of(fields: Mapping[Key, Any], source: Source) -> str:
    if source.query_text is None:
        return text_of(required(fields, _questions(source)), "the question")
    question = optional_text(fields, _questions(source), "the question")
    return question if question and question.strip() else source.query_text
