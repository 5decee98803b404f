"""Scored text pairs: two sentences and the share of their meaning that agrees.

A sentence has five slots: who, does what, where, when, under which circumstances. The second sentence of a
pair keeps some slots and changes others; the score is the weight of the slots that were kept (SLOT_WEIGHTS).
Wording and order of the parts change freely, and never count: a paraphrase that shares hardly a word scores
1.0, a sentence in the same words about somebody else scores 0.7. So a score has one reason, and the scores
fill [0, 1].
"""

import random
from collections.abc import Iterator

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.demo.samples import Content, Contents, Sample
from vipolyqwen_core.corpus.demo.vocabulary import (
    ACTIONS,
    CIRCUMSTANCES,
    PEOPLE,
    PLACES,
    TIMES,
    Language,
)

SLOTS = (PEOPLE, ACTIONS, PLACES, TIMES, CIRCUMSTANCES)
SIZES = tuple(len(slot) for slot in SLOTS)
SLOT_WEIGHTS = (0.30, 0.30, 0.16, 0.14, 0.10)

ORDERS = {
    Language.VI: ("{4}, {0} {1} {2} {3}.", "{3}, {0} {1} {2} {4}.", "{0} {1} {2} {3}, {4}."),
    Language.EN: ("{4}, {0} {1} {2} {3}.", "{3}, {0} {1} {2}, {4}.", "{0} {1} {2} {3}, {4}."),
    Language.ZH: ("{4}，{0}{3}{2}{1}。", "{3}，{0}{2}{1}，{4}。", "{0}{3}{2}{1}，{4}。"),
}

CHANGES = (
    *[()] * 5,  # paraphrases
    *[(4,), (3,), (2,), (3, 4), (2, 4)] * 2,
    *[(1,), (0,), (2, 3)],
    *[(2, 3, 4), (0, 4), (1, 3), (1, 2, 4), (0, 2, 3)],
    *[(0, 1), (0, 1, 4), (0, 1, 3), (0, 1, 2, 4)],
    *[(0, 1, 2, 3, 4)] * 2,
)
"""Slots that the second sentence changes; pairs go through this list over and over. About two thirds of the
scores are 0.5 or more, where a pair is a positive."""

LANGUAGES = (*[Language.VI] * 16, *[Language.EN] * 2, Language.ZH)
"""Pairs go through this list, too. No common divisor with CHANGES: each language sees all of them."""


def sentence(content: Content, language: Language, order: int, wording: int) -> str:
    """The sentence of a content. `wording` picks in each slot one of its wordings."""
    parts = [
        slot[value].to(language, wording >> i)
        for i, (slot, value) in enumerate(zip(SLOTS, content, strict=True))
    ]
    orders = ORDERS[language]
    text = orders[order % len(orders)].format(*parts)
    return text[0].upper() + text[1:]


def similarity(first: Content, second: Content) -> float:
    """Weight of the slots that agree, in [0, 1]."""
    kept = sum(weight for weight, a, b in zip(SLOT_WEIGHTS, first, second, strict=True) if a == b)
    return round(kept, 2)


def text_pairs(rng: random.Random, num_contents: int, kind: str = "sentence") -> Iterator[Sample]:
    """One scored pair a content; each twentieth is followed by a translation of its first sentence.

    `kind` names the groups. Two pairs share no more than three of five slots, whichever sides are compared.
    """
    contents = Contents(rng, SIZES)
    for i in range(num_contents):
        language = LANGUAGES[i % len(LANGUAGES)]
        changed = CHANGES[i % len(CHANGES)]
        first, second = _draw_both(contents, changed)
        order, wording = rng.randrange(3), rng.randrange(32)
        yield Sample(
            task=Task.TEXT_PAIR,
            language=language,
            question=sentence(first, language, order, wording),
            answer=sentence(second, language, order + 1 + rng.randrange(2), rng.randrange(32)),
            group=f"{kind}-{i:05d}",
            score=similarity(first, second),
        )
        if i % 20 == 7:
            other = Language.EN if language is not Language.EN else Language.VI
            yield Sample(
                task=Task.TEXT_PAIR,
                language=language,
                question=sentence(first, language, order + 1, wording),
                answer=sentence(first, other, order, wording),
                group=f"{kind}-{i:05d}",
                score=1.0,
            )


def _draw_both(contents: Contents, changed: tuple[int, ...]) -> tuple[Content, Content]:
    """Two contents that differ in the given slots, both apart from all earlier ones."""
    while True:
        first = contents.draw()
        second = list(first)
        for slot in changed:
            step = 1 + contents.rng.randrange(SIZES[slot] - 1)
            second[slot] = (second[slot] + step) % SIZES[slot]
        if len(changed) < 2 or contents.is_free(tuple(second)):
            contents.take(tuple(second))
            return first, tuple(second)
