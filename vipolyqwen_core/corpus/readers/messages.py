"""Dialogues with pictures, ShareGPT-like, as LLaMA-Factory and ms-swift write them: messages and images."""

from collections.abc import Mapping
from typing import Any

from vipolyqwen_core.contract import Turn
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.dialogue import dialogue_pairs, turns_of
from vipolyqwen_core.corpus.readers.fields import images_of, keys_of, refuse_other_media
from vipolyqwen_core.corpus.readers.records import RawPair
from vipolyqwen_core.corpus.readers.row_fields import Key, Needs, optional, optional_text, required


def message_needs(source: Source) -> Needs:
    """The field that every dialogue has: its messages."""
    return (keys_of(source, "messages", "conversations"),)


def message_pairs(fields: Mapping[Key, Any], source: Source, dialogue_turns: str) -> list[RawPair]:
    """The pairs of one dialogue.

    Raises:
        RecordError: there are no messages, or they hold no answer, or no pictures where the task needs them,
            or there is a video or audio
    """
    assert source.task is not None, "the manifest demands a task for messages"
    refuse_other_media(fields)
    (messages,) = message_needs(source)
    turns, inside = turns_of(
        required(fields, messages),
        keys_of(source, "role", "from"),
        keys_of(source, "content", "value"),
    )
    if system := optional_text(fields, ("system",), "the system turn"):
        turns.insert(0, Turn("system", system))
    images = (*images_of(optional(fields, keys_of(source, "images", "image"))), *inside)
    return dialogue_pairs(source.task, turns, images, fields, source, dialogue_turns)
