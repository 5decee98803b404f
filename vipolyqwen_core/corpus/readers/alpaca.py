"""Instructions as Alpaca and LLaMA-Factory write them: instruction, input and output, history, pictures."""

from collections.abc import Mapping
from typing import Any

from vipolyqwen_core.contract import Turn
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers.dialogue import dialogue_pairs
from vipolyqwen_core.corpus.readers.fields import (
    entries_of,
    images_of,
    is_nothing,
    keys_of,
    refuse_other_media,
)
from vipolyqwen_core.corpus.readers.records import RawPair, RecordError
from vipolyqwen_core.corpus.readers.row_fields import Key, Needs, optional, optional_text, required, text_of


def alpaca_needs(source: Source) -> Needs:
    """The fields that every row has: instruction and output."""
    return keys_of(source, "instruction"), keys_of(source, "target", "output")


def alpaca_pairs(fields: Mapping[Key, Any], source: Source, dialogue_turns: str) -> list[RawPair]:
    """The pairs of one instruction. Instruction and input are one query, the input on a line of its own.

    Raises:
        RecordError: instruction or output is missing, or the history is no list of question and answer, or
            there are no pictures where the task needs them, or a video or audio
    """
    assert source.task is not None, "the manifest demands a task for alpaca"
    refuse_other_media(fields)
    instructions, outputs = alpaca_needs(source)
    instruction = text_of(required(fields, instructions), "the instruction")
    added = optional_text(fields, keys_of(source, "input"), "the input")
    target = text_of(required(fields, outputs), "the output")
    query = f"{instruction}\n{added}" if added and added.strip() else instruction
    turns = [*_earlier(fields, source), Turn("user", query), Turn("assistant", target)]
    given = entries_of(optional(fields, keys_of(source, "images", "image")))
    images = images_of([entry for entry in given if not is_nothing(entry)])
    return dialogue_pairs(source.task, turns, images, fields, source, dialogue_turns)


def _earlier(fields: Mapping[Key, Any], source: Source) -> list[Turn]:
    turns = []
    if system := optional_text(fields, ("system",), "the system turn"):
        turns.append(Turn("system", system))
    history = optional(fields, keys_of(source, "history"))
    if history is None or history == "":
        return turns
    for exchange in entries_of(history):
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise RecordError("broken_dialogue", "the history is no list of [question, answer]", exchange)
        turns.append(Turn("user", text_of(exchange[0], "an earlier question")))
        turns.append(Turn("assistant", text_of(exchange[1], "an earlier answer")))
    return turns
