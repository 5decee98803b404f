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
        kind="exact_duplicate",
        outcome=REJECTED,
        spoil=spoiling.same,
        amounts={TEXT_PAIRS: 12, INSTRUCTIONS: 8, OCR: 8, VQA: 6},
        stage="curated",
        rule="exact_duplicate",
        copies=True,
    ),
    Dirt(
        kind="same_picture_under_another_name",
        outcome=REJECTED,
        spoil=spoiling.under_another_name,
        amounts={VQA: 4},
        stage="curated",
        rule="exact_duplicate",
        copies=True,
    ),
    Dirt(
        kind="near_duplicate",
        outcome=REJECTED,
        spoil=spoiling.with_typo,
        amounts={TEXT_PAIRS: 10, INSTRUCTIONS: 6},
        stage="curated",
        rule="near_duplicate",
        copies=True,
        fits=spoiling.is_long,
    ),
    Dirt(
        kind="duplicate_in_another_source",
        outcome=REJECTED,
        spoil=spoiling.in_the_owners_format,
        amounts={DIALOGUES: 6},
        stage="training_set",
        rule="exact_duplicate",
        copies_of=TEXT_PAIRS,
    ),
    Dirt(
        kind="empty_answer",
        outcome=REJECTED,
        spoil=spoiling.without_answer,
        amounts={TEXT_PAIRS: 4, INSTRUCTIONS: 5, OCR: 3, DIALOGUES: 3},
        stage="curated",
        rule="empty_target",
    ),
    Dirt(
        kind="score_out_of_range",
        outcome=REJECTED,
        spoil=spoiling.score_out_of_range,
        amounts={TEXT_PAIRS: 5},
        stage="read",
        rule="score_out_of_range",
    ),
    Dirt(
        kind="unknown_data_type",
        outcome=REJECTED,
        spoil=spoiling.unknown_kind,
        amounts={VQA: 4},
        stage="read",
        rule="unknown_data_type",
    ),
    Dirt(
        kind="broken_json",
        outcome=REJECTED,
        spoil=spoiling.cut_line,
        amounts={OCR: 4, DIALOGUES: 3},
        stage="read",
        rule="broken_json",
    ),
    Dirt(
        kind="record_is_no_object",
        outcome=REJECTED,
        spoil=spoiling.no_object,
        amounts={INSTRUCTIONS: 3},
        stage="read",
        rule="not_an_object",
    ),
    Dirt(
        kind="too_many_placeholders",
        outcome=REJECTED,
        spoil=spoiling.placeholder_too_many,
        amounts={VQA: 5, DIALOGUES: 4},
        stage="tagged",
        rule="too_many_placeholders",
        fits=spoiling.has_pictures,
    ),
    Dirt(
        kind="too_few_placeholders",
        outcome=REPAIRED,
        spoil=spoiling.placeholder_too_few,
        amounts={VQA: 20, DIALOGUES: 15},
        fits=spoiling.has_pictures,
    ),
    Dirt(
        kind="truncated_picture",
        outcome=REJECTED,
        spoil=spoiling.truncated,
        amounts={OCR: 6, VQA: 4},
        stage="curated",
        rule="truncated_image",
    ),
    Dirt(
        kind="not_a_picture",
        outcome=REJECTED,
        spoil=spoiling.no_picture,
        amounts={VQA: 2},
        stage="curated",
        rule="not_an_image",
    ),
    Dirt(
        kind="oversized_picture",
        outcome=REJECTED,
        spoil=spoiling.oversized,
        amounts={OCR: 1},
        stage="curated",
        rule="too_many_pixels",
    ),
    Dirt(
        kind="missing_picture",
        outcome=REJECTED,
        spoil=spoiling.missing,
        amounts={OCR: 5, VQA: 3},
        stage="curated",
        rule="missing_image",
    ),
    Dirt(
        kind="path_leaves_root",
        outcome=REJECTED,
        spoil=spoiling.outside,
        amounts={OCR: 4},
        stage="curated",
        rule="path_leaves_root",
    ),
    Dirt(
        kind="mislabelled_picture",
        outcome=KEPT,
        spoil=spoiling.mislabelled,
        amounts={OCR: 8, VQA: 6},
    ),
    Dirt(
        kind="unusual_picture_mode",
        outcome=KEPT,
        spoil=spoiling.unusual_mode,
        amounts={OCR: 6},
    ),
    Dirt(
        kind="backslash_path",
        outcome=KEPT,
        spoil=spoiling.backslashes,
        amounts={OCR: 4},
    ),
    Dirt(
        kind="picture_reencoded",
        outcome=LINKED,
        spoil=spoiling.reencoded,
        amounts={VQA: 6},
        copies=True,
    ),
    Dirt(
        kind="not_nfc",
        outcome=REPAIRED,
        spoil=spoiling.decomposed,
        amounts={TEXT_PAIRS: 12, INSTRUCTIONS: 8, OCR: 10},
        fits=spoiling.is_vietnamese,
    ),
    Dirt(
        kind="mojibake",
        outcome=REPAIRED,
        spoil=spoiling.mojibake,
        amounts={TEXT_PAIRS: 8},
        fits=spoiling.is_vietnamese,
    ),
    Dirt(
        kind="html_entities",
        outcome=REPAIRED,
        spoil=spoiling.entities,
        amounts={INSTRUCTIONS: 4},
        fits=spoiling.is_vietnamese,
    ),
    Dirt(
        kind="special_tokens",
        outcome=KEPT,
        spoil=spoiling.special_tokens,
        amounts={TEXT_PAIRS: 4, INSTRUCTIONS: 6, DIALOGUES: 5},
    ),
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
