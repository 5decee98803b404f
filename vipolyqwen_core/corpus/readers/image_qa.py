"""Tables of picture(s), question and answer: CSV, TSV, JSON, JSON Lines or Parquet (paths or bytes)."""

from collections.abc import Mapping
from typing import Any

from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.fields import answers_of, declared, images_of, keys_of
from vipolyqwen_core.corpus.readers.records import RawPair, RecordError
from vipolyqwen_core.corpus.readers.rows import Key, optional, required, text_of


def image_qa_pairs(fields: Mapping[Key, Any], source: Source, dialogue_turns: str) -> list[RawPair]:
    """The pair of one row, or one for each alternative answer.

    Without a question of its own it takes the `query_text` of the manifest.

    Raises:
        RecordError: pictures, question or answer are missing
    """
    assert source.task is not None, "the manifest demands a task for image_qa"
    images = images_of(optional(fields, keys_of(source, "images", "image")))
    if not images:
        raise RecordError("no_images", "the row has no picture", sorted(str(key) for key in fields))
    keys = keys_of(source, "query", "question")
    answers = required(fields, keys_of(source, "target", "answer", "answers", "output"))
    fixed = source.query_text is not None and "query" not in source.columns
    return [
        RawPair(
            task=source.task,
            query=str(source.query_text) if fixed else text_of(required(fields, keys), "the question"),
            target=answer,
            query_images=images,
            **declared(fields, source),
        )
        for answer in answers_of(answers, "the answer")
    ]
