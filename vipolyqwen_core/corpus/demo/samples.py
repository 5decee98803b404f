"""The record type of the built-in corpus, and how contents are drawn so that templates stay apart."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.demo.vocabulary import Language

Content = tuple[int, ...]
"""A filled template: the index of the chosen value in each slot."""


@dataclass(frozen=True)
class Picture:
    """A picture that is drawn when it is written: a corpus of texts alone draws none."""

    path: str
    """Below the image root; the ending names the format."""
    draw: Callable[[], Image.Image]
    """Draws it, the same at each call."""
    format: str | None = None
    """What is written, whatever the ending says; none: what the ending says."""
    spoil: Callable[[bytes], bytes] | None = None
    """What happens to the file's bytes before they are written."""


@dataclass(frozen=True)
class Sample:
    """One clean pair of the corpus, before it is put into a file's format."""

    task: Task
    """Its task."""
    language: Language
    """Language of question and answer."""
    question: str
    """The query without picture placeholders; of an alpaca record: the instruction."""
    answer: str
    """The target."""
    group: str
    """Filled template it belongs to; other languages and questions on the same content share it."""
    pictures: tuple[Picture, ...] = ()
    """In the order in which they are shown."""
    history: tuple[Turn, ...] = ()
    """Earlier turns of a dialogue."""
    score: float | None = None
    """Similarity of a scored pair."""
    details: str = ""
    """The `input` of an alpaca record."""
    negatives: tuple[str, ...] = ()
    """Answers that are wrong, and nearly right."""

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """All texts of the sample."""
        texts = (*(turn.text for turn in self.history), self.question, self.details, self.answer)
        return tuple(text for text in texts if text)


class Contents:
    """Draws filled templates, none twice; of long sentences, no two that agree in all slots but one.

    Two long sentences of the same words but one would be near-duplicates, which tie their groups together:
    by such chains most of a corpus of templates becomes one component.
    """

    def __init__(self, rng: random.Random, slots: Sequence[int], apart: bool = True) -> None:
        """`apart`: contents differ in two slots at least; else in one, which is enough for short texts."""
        self.rng = rng
        self.slots = tuple(slots)
        self.apart = apart
        self._taken: set[tuple[int, Content]] = set()

    def draw(self, valid: Callable[[Content], bool] = lambda content: True) -> Content:
        """A new content.

        Raises:
            ValueError: the template has no room for another one
        """
        for _ in range(10_000):
            content = tuple(self.rng.randrange(values) for values in self.slots)
            if valid(content) and self.is_free(content):
                self.take(content)
                return content
        raise ValueError(f"a template with {self.slots} values in its slots is full")

    def is_free(self, content: Content) -> bool:
        """Whether the content is apart from every one that was taken."""
        return self._taken.isdisjoint(self._patterns(content))

    def take(self, content: Content) -> None:
        """Let no later draw come near this content."""
        self._taken.update(self._patterns(content))

    def _patterns(self, content: Content) -> list[tuple[int, Content]]:
        """Contents that are too close have one of these in common: each leaves one slot open."""
        if not self.apart:
            return [(0, content)]
        return [(i, content[:i] + content[i + 1 :]) for i in range(len(content))]


def languages_of(index: int) -> tuple[Language, ...]:
    """Languages in which content number `index` is asked about: always Vietnamese, an eighth also English,
    a sixteenth also Chinese."""
    languages = [Language.VI]
    if index % 8 == 0:
        languages.append(Language.EN)
    if index % 16 == 5:
        languages.append(Language.ZH)
    return tuple(languages)
