"""The prompt: what stands around and between the texts and pictures of an item, as pieces of ids.

    one text        [prefix] content <|im_end|>
    a dialogue      [prefix] <|im_start|>role NEWLINE content <|im_end|> NEWLINE ... <|im_start|>user NEWLINE content <|im_end|>
    a picture       <|vision_start|> <|image_pad|> x visual tokens <|vision_end|>

There is no system prompt. A segment always ends in <|im_end|>. Texts are tokenised piece by piece and put
between ids, so that nothing spelled in a text can become part of the frame.
"""  # noqa: E501

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, Task, Turn

TEMPLATE: Final = (
    "[prefix] content <|im_end|>; turns as <|im_start|>role\\n content <|im_end|>\\n; no system prompt"
)
"""Name of this prompt in a model's contract. Another prompt gets another name."""

ROLES: Final = ("system", "user", "assistant")


class Piece(NamedTuple):
    """Part of a segment: fixed ids, or a text still to be tokenised."""

    ids: tuple[int, ...] = ()
    text: str = ""
    earlier: bool = False
    """The text of an earlier turn: the first to go where a segment is too long."""
    picture: bool = False
    """The ids are a picture: its start, its visual tokens, its end."""


@dataclass(frozen=True)
class Prompt:
    """Ids of the frame."""

    prefixes: Mapping[Task, int]
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    newline: tuple[int, ...]
    roles: Mapping[str, tuple[int, ...]]
    """Ids of each role with its newline."""

    def pieces(
        self, text: str, visual_tokens: Sequence[int], history: Iterable[Turn], prefix: Task | None
    ) -> list[Piece]:
        """The segment of an item, in order.

        `visual_tokens` holds the number of visual tokens of each picture, in the order of the placeholders of
        history and text. Without pictures `<image>` is text like any other.

        Raises:
            ValueError: as many placeholders as pictures do not stand in the texts; a role that does not exist
        """
        turns = list(history)
        pictures = [self._picture(count) for count in visual_tokens]
        self._check(text, turns, len(pictures))
        pieces = [] if prefix is None else [Piece((self.prefixes[prefix],))]
        for turn in turns:
            pieces.append(Piece((self.im_start, *self.roles[turn.role])))
            pieces += _content(turn.text, pictures, earlier=True)
            pieces.append(Piece((self.im_end, *self.newline)))
        if turns:
            pieces.append(Piece((self.im_start, *self.roles["user"])))
        return [*pieces, *_content(text, pictures), Piece((self.im_end,))]

    def _picture(self, visual_tokens: int) -> Piece:
        ids = (self.vision_start, *(self.image_pad,) * visual_tokens, self.vision_end)
        return Piece(ids, picture=True)

    @staticmethod
    def _check(text: str, turns: Sequence[Turn], num_pictures: int) -> None:
        for turn in turns:
            if turn.role not in ROLES:
                raise ValueError(f"role {turn.role!r} of an earlier turn: expected {', '.join(ROLES)}")
        if num_pictures:
            placeholders = text.count(IMAGE_PLACEHOLDER) + sum(
                turn.text.count(IMAGE_PLACEHOLDER) for turn in turns
            )
            if placeholders != num_pictures:
                raise ValueError(
                    f"{num_pictures} pictures for {placeholders} {IMAGE_PLACEHOLDER} placeholders"
                )


def _content(text: str, pictures: list[Piece], earlier: bool = False) -> list[Piece]:
    """A text with its placeholders replaced. Takes the pictures it uses off the front of the list."""
    first, *rest = text.split(IMAGE_PLACEHOLDER) if pictures else [text]
    pieces = [Piece(text=first, earlier=earlier)]
    for part in rest:
        pieces += [pictures.pop(0), Piece(text=part, earlier=earlier)]
    return pieces
