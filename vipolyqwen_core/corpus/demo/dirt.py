"""The dirt that is planted, in known amounts, for curation to find.

A kind of dirt has one of four outcomes: `rejected` rows must end in the ledger under the stated stage and
rule; `repaired` rows must come out as the clean pair they were made from; `kept` rows look suspicious and are
sound; `linked` rows are sound, too, but say so much about another row that they must stand on its side of the
split. What is rejected or linked is planted as further rows.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from vipolyqwen_core.corpus.demo import spoiling
from vipolyqwen_core.corpus.demo.files import Entry
from vipolyqwen_core.corpus.demo.spoiling import Spoil

REJECTED, REPAIRED, KEPT, LINKED = "rejected", "repaired", "kept", "linked"


@dataclass(frozen=True)
class Dirt:
    """One kind of dirt."""

    kind: str
    outcome: str
    spoil: Spoil
    """Makes the dirty entry of a clean one."""
    amounts: Mapping[str, int]
    """How many are planted in which source."""
    stage: str | None = None
    """Stage of the ledger that rejects it."""
    rule: str | None = None
    """Rule of the ledger that rejects it."""
    copies: bool = False
    """The clean entry stays beside the dirty one, which comes after it."""
    copies_of: str | None = None
    """Another source that the copied entries stand in; they stay there."""
    fits: Callable[[Entry], bool] = lambda entry: True
    """Entries that this dirt can be made of."""


TEXT_PAIRS, INSTRUCTIONS = "demo_text_pairs", "demo_instructions"
OCR, VQA, DIALOGUES = "demo_ocr", "demo_vqa", "demo_dialogues"

DIRT = (
    Dirt(
        "exact_duplicate",
        REJECTED,
        spoiling.same,
        {TEXT_PAIRS: 12, INSTRUCTIONS: 8, OCR: 8, VQA: 6},
        "curated",
        "exact_duplicate",
        copies=True,
    ),
    Dirt(
        "same_picture_under_another_name",
        REJECTED,
        spoiling.under_another_name,
        {VQA: 4},
        "curated",
        "exact_duplicate",
        copies=True,
    ),
    Dirt(
        "near_duplicate",
        REJECTED,
        spoiling.with_typo,
        {TEXT_PAIRS: 10, INSTRUCTIONS: 6},
        "curated",
        "near_duplicate",
        copies=True,
        fits=spoiling.is_long,
    ),
    Dirt(
        "duplicate_in_another_source",
        REJECTED,
        spoiling.in_the_owners_format,
        {DIALOGUES: 6},
        "training_set",
        "exact_duplicate",
        copies_of=TEXT_PAIRS,
    ),
    Dirt(
        "empty_answer",
        REJECTED,
        spoiling.without_answer,
        {TEXT_PAIRS: 4, INSTRUCTIONS: 5, OCR: 3, DIALOGUES: 3},
        "curated",
        "empty_target",
    ),
    Dirt(
        "score_out_of_range",
        REJECTED,
        spoiling.score_out_of_range,
        {TEXT_PAIRS: 5},
        "read",
        "score_out_of_range",
    ),
    Dirt("unknown_data_type", REJECTED, spoiling.unknown_kind, {VQA: 4}, "read", "unknown_data_type"),
    Dirt("broken_json", REJECTED, spoiling.cut_line, {OCR: 4, DIALOGUES: 3}, "read", "broken_json"),
    Dirt("record_is_no_object", REJECTED, spoiling.no_object, {INSTRUCTIONS: 3}, "read", "not_an_object"),
    Dirt(
        "too_many_placeholders",
        REJECTED,
        spoiling.placeholder_too_many,
        {VQA: 5, DIALOGUES: 4},
        "tagged",
        "too_many_placeholders",
        fits=spoiling.has_pictures,
    ),
    Dirt(
        "too_few_placeholders",
        REPAIRED,
        spoiling.placeholder_too_few,
        {VQA: 20, DIALOGUES: 15},
        fits=spoiling.has_pictures,
    ),
    Dirt("truncated_picture", REJECTED, spoiling.truncated, {OCR: 6, VQA: 4}, "curated", "truncated_image"),
    Dirt("not_a_picture", REJECTED, spoiling.no_picture, {VQA: 2}, "curated", "not_an_image"),
    Dirt("oversized_picture", REJECTED, spoiling.oversized, {OCR: 1}, "curated", "too_many_pixels"),
    Dirt("missing_picture", REJECTED, spoiling.missing, {OCR: 5, VQA: 3}, "curated", "missing_image"),
    Dirt("path_leaves_root", REJECTED, spoiling.outside, {OCR: 4}, "curated", "path_leaves_root"),
    Dirt("mislabelled_picture", KEPT, spoiling.mislabelled, {OCR: 8, VQA: 6}),
    Dirt("unusual_picture_mode", KEPT, spoiling.unusual_mode, {OCR: 6}),
    Dirt("backslash_path", KEPT, spoiling.backslashes, {OCR: 4}),
    Dirt("picture_reencoded", LINKED, spoiling.reencoded, {VQA: 6}, copies=True),
    Dirt(
        "not_nfc",
        REPAIRED,
        spoiling.decomposed,
        {TEXT_PAIRS: 12, INSTRUCTIONS: 8, OCR: 10},
        fits=spoiling.is_vietnamese,
    ),
    Dirt("mojibake", REPAIRED, spoiling.mojibake, {TEXT_PAIRS: 8}, fits=spoiling.is_vietnamese),
    Dirt("html_entities", REPAIRED, spoiling.entities, {INSTRUCTIONS: 4}, fits=spoiling.is_vietnamese),
    Dirt("special_tokens", KEPT, spoiling.special_tokens, {TEXT_PAIRS: 4, INSTRUCTIONS: 6, DIALOGUES: 5}),
)


def plant(
    entries: Sequence[Entry], source: str, others: Mapping[str, Sequence[Entry]], rng: random.Random
) -> list[Entry]:
    """The entries of a source with its dirt, in a new order.

    A clean entry takes one kind of dirt at most; what is spoiled for good is clean no more.

    Args:
        others: what was planted in earlier sources
    Raises:
        ValueError: the source is too small for its dirt
    """
    free = list(entries)
    rng.shuffle(free)
    places: list[tuple[float, int, Entry]] = []
    serial = count()

    def put(entry: Entry, place: float) -> None:
        places.append((place, next(serial), entry))

    for dirt in DIRT:
        for clean in _chosen(dirt, source, free, others, rng):
            place = rng.random()
            dirty = replace(dirt.spoil(clean, rng), dirt=dirt.kind)
            if dirt.copies:
                put(clean, place)
                put(replace(dirty, original=clean), rng.uniform(place, 1.0))
            else:
                put(dirty, place)
    for entry in free:
        put(entry, rng.random())
    return [entry for _, _, entry in sorted(places, key=lambda placed: placed[:2])]


def _chosen(
    dirt: Dirt, source: str, free: list[Entry], others: Mapping[str, Sequence[Entry]], rng: random.Random
) -> list[Entry]:
    """Clean entries for a kind of dirt: taken out of the free ones, or copied from another source."""
    amount = dirt.amounts.get(source, 0)
    if amount and dirt.copies_of:
        return rng.sample([entry for entry in others[dirt.copies_of] if entry.dirt is None], amount)
    chosen = [entry for entry in free if dirt.fits(entry)][:amount]
    if len(chosen) < amount:
        raise ValueError(f"source {source} is too small for its dirt: {amount} entries for {dirt.kind}")
    for entry in chosen:
        free.remove(entry)
    return chosen
