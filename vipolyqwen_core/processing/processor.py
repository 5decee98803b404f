"""The processor: an item (text, pictures, dialogue, prefix) becomes ids and uint8 patches.

It normalises nothing: texts and pictures come as `vipolyqwen_core.corpus` leaves them, with as many `<image>`
placeholders as pictures. Training, evaluation, export and `encode` all pass through here.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from PIL import Image

from vipolyqwen_core.config import CurationSettings, ProcessingSettings
from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.processing.patches import PatchLayout, cut_patches, patch_grid, shrink
from vipolyqwen_core.processing.prompt import ROLES, TEMPLATE, Piece, Prompt
from vipolyqwen_core.processing.vocabulary import Vocabulary, read_object, read_vocabulary, write_object

PROCESSOR_FILE: Final = "preprocessor_config.json"
COMBINED_FILE: Final = "processor_config.json"
"""What transformers 5 writes in place of it, with the pictures' settings in one part."""
SMALL_FILES: Final = ("*.json", "merges.txt")
"""What a processor reads of a backbone on the hub."""
HUB_ARGUMENTS: Final = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""Arguments of `from_pretrained` that say where the files of a hub id come from."""

CHARS_OF_TOKEN: Final = 64
"""Texts have 2 to 5 characters a token."""
FEWEST_CHARS: Final = CurationSettings.max_chars
"""A text that may be trained on is read whole."""
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Item:
    """What one vector is made of."""

    text: str = ""
    """With one `<image>` a picture, where there are pictures."""
    images: tuple[Image.Image, ...] = ()
    """RGB pictures, in the order of the placeholders of history and text."""
    history: tuple[Turn, ...] = ()
    """Earlier turns of a dialogue; the text is then its last user turn."""
    prefix: Task | None = None
    """Task prefix; None: everyday use."""


@dataclass(frozen=True)
class EncodedItem:
    """One segment, ready to be packed."""

    input_ids: NDArray[np.int64]
    """[t] ids."""
    patches: NDArray[np.uint8] | None
    """[p, 588] one frame a patch, all pictures of the item; None without pictures."""
    image_grid: tuple[Grid, ...]
    """Frames, rows and columns of patches of each picture."""
    image_starts: tuple[int, ...]
    """Where the visual tokens of each picture begin in `input_ids`."""
    truncated_tokens: int
    """Tokens of text that were cut to keep the limit."""

    @property
    def num_tokens(self) -> int:
        """Length of the segment."""
        return len(self.input_ids)

    @property
    def num_patches(self) -> int:
        """Patches of all pictures, before the merge."""
        return 0 if self.patches is None else len(self.patches)


class ItemError(ValueError):
    """An item that cannot be encoded. `item` is its number in the call, `rule` a key to count by."""

    def __init__(self, item: int, rule: str, reason: str):
        super().__init__(f"item {item}: {reason}")
        self.item = item
        self.rule = rule
        self.reason = reason

    def __reduce__(self) -> tuple[type["ItemError"], tuple[int, str, str]]:
        return ItemError, (self.item, self.rule, self.reason)  # it must come back out of a worker process


class Measures(NamedTuple):
    """Sizes of items, as `encode` would make them."""

    tokens: NDArray[np.int32]
    """[n] length of the segment, after truncation; 0 for an item that failed."""
    patches: NDArray[np.int32]
    """[n] patches of all pictures."""
    truncated_tokens: NDArray[np.int32]
    """[n] tokens of text beyond the limit."""
    errors: dict[int, ItemError]
    """Why an item cannot be encoded, by its number."""


class _Draft(NamedTuple):
    """A segment before its texts are tokenised."""

    pieces: list[Piece]
    grid: tuple[Grid, ...]


class ViPolyQwenProcessor:
    """Turns items into segments, by the tokenizer, the prompt and the pixel budget of one model."""

    def __init__(self, vocabulary: Vocabulary, layout: PatchLayout, settings: ProcessingSettings):
        self.vocabulary = vocabulary
        self.layout = layout
        self.settings = settings
        self.tokenizer = vocabulary.text_tokenizer
        ids = vocabulary.special_ids
        self.prompt = Prompt(
            prefixes=vocabulary.prefix_ids,
            im_start=ids["<|im_start|>"],
            im_end=ids["<|im_end|>"],
            vision_start=ids["<|vision_start|>"],
            vision_end=ids["<|vision_end|>"],
            image_pad=ids["<|image_pad|>"],
            newline=tuple(self.tokenizer.encode("\n").ids),
            roles={role: tuple(self.tokenizer.encode(f"{role}\n").ids) for role in ROLES},
        )

    @classmethod
    def from_backbone(cls, backbone: str | Path, settings: ProcessingSettings) -> "ViPolyQwenProcessor":
        """The processor of a new model on a backbone: a directory or a hub id; the prefixes are added.

        Raises:
            ValueError: no such directory, or its tokenizer is not Qwen2-VL's
        """
        directory = _small_files(backbone)
        return cls(read_vocabulary(directory), PatchLayout.of(_picture_settings(directory)), settings)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **kwargs: Any) -> "ViPolyQwenProcessor":
        """The processor of a saved model, a directory or a hub id.

        An argument may say where the files come from, or repeat a setting; what else AutoProcessor passes
        means nothing here.

        Raises:
            ValueError: the directory does not hold a viPolyQwen model, or one with another prompt, or an
                argument would change a setting of the model
        """
        path = _small_files(directory, **{key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs})
        path /= kwargs.get("subfolder") or ""
        content = read_object(path / PROCESSOR_FILE)
        contract = content.get("vipolyqwen")
        if contract is None:
            raise ValueError(f"{path / PROCESSOR_FILE} is not that of a viPolyQwen model")
        if contract["prompt"] != TEMPLATE:
            raise ValueError(
                f"{path}: made for the prompt {contract['prompt']!r}; this version has {TEMPLATE!r}"
            )
        for key, value in {**content, **contract}.items():
            given = kwargs.get(key, value)
            if (list(given) if isinstance(given, tuple) else given) != value:
                raise ValueError(f"{key} {given!r}: the model was trained with {value!r}")
        settings = ProcessingSettings(**{key: contract[key] for key in asdict(ProcessingSettings())})
        return cls.from_backbone(path, settings)

    def save_pretrained(self, directory: str | Path, **_: Any) -> None:
        """Write tokenizer.json, tokenizer_config.json and preprocessor_config.json."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        self.vocabulary.save(path)
        settings = self.settings
        content = {
            "processor_class": type(self).__name__,
            "image_processor_type": "Qwen2VLImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "rescale_factor": 1 / 255,
            "resample": int(Image.Resampling.BICUBIC),
            "min_pixels": settings.min_pixels,
            "max_pixels": settings.max_pixels,
            "size": {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
            **asdict(self.layout),
            "vipolyqwen": self.contract,
        }
        write_object(path / PROCESSOR_FILE, content)

    @property
    def contract(self) -> dict[str, Any]:
        """What a model was trained with and must be used with."""
        return {
            **asdict(self.settings),
            "prompt": TEMPLATE,
            "prefix_ids": {task.value: number for task, number in self.prompt.prefixes.items()},
        }

    @property
    def max_chars(self) -> int:
        """So much of a user's text is read: what takes more is not within the limit of tokens.

        Only of what folds, as blanks, or of one sign for pages, may less be kept than the limit allows.
        """
        return max(FEWEST_CHARS, CHARS_OF_TOKEN * self.settings.max_tokens)

    def grid(self, width: int, height: int) -> Grid:
        """Frames, rows and columns of patches of a picture of this size.

        Raises:
            ValueError: empty, or one side over 200 times the other
        """
        return patch_grid(width, height, self.layout, self.settings.min_pixels, self.settings.max_pixels)

    def shrink(self, image: Image.Image) -> Image.Image:
        """The picture in less memory, where it can be: it gives the same patches.

        Raises:
            ValueError: as `grid`
        """
        return shrink(image, self.layout, self.settings.min_pixels, self.settings.max_pixels)

    def encode(self, item: Item) -> EncodedItem:
        """The segment of one item; see `encode_batch`."""
        return self.encode_batch([item])[0]

    def encode_batch(self, items: Sequence[Item], *, exceed: bool = False) -> list[EncodedItem]:
        """The segments of items, all texts tokenised at once.

        Args:
            exceed: an item whose pictures and turns alone take more tokens than the limit keeps them, and of
                its texts as many tokens as the limit; else it is refused
        Raises:
            ItemError: names the item: placeholders and pictures disagree, a picture is not RGB or too narrow,
                pictures alone exceed the limit of tokens, an unknown role, a text that is not Unicode
        """
        drafts = [
            self._draft(number, item.text, [image.size for image in item.images], item.history, item.prefix)
            for number, item in enumerate(items)
        ]
        texts = self._tokenise([draft.pieces for draft in drafts])
        return [
            self._finish(number, item, draft, ids, exceed)
            for number, (item, draft, ids) in enumerate(zip(items, drafts, texts, strict=True))
        ]

    def measure(
        self,
        texts: Sequence[str],
        sizes: Sequence[Sequence[tuple[int, int]]] | None = None,
        histories: Sequence[Sequence[Turn]] | None = None,
        prefixes: Sequence[Task | None] | None = None,
    ) -> Measures:
        """What `encode` would yield, from the sizes of the pictures alone; an item that fails is reported.

        `sizes` holds width and height of each picture of each item; `histories` and `prefixes` belong to the
        items likewise. What is left out is empty for all.
        """
        drafts: list[_Draft] = []
        errors: dict[int, ItemError] = {}
        for number, text in enumerate(texts):
            try:
                drafts.append(
                    self._draft(
                        number,
                        text,
                        sizes[number] if sizes else (),
                        histories[number] if histories else (),
                        prefixes[number] if prefixes else None,
                    )
                )
            except ItemError as error:
                errors[number] = error
                drafts.append(_Draft([], ()))
        tokens, patches, truncated = np.zeros((3, len(texts)), dtype=np.int32)
        for number, (draft, ids) in enumerate(
            zip(drafts, self._tokenise([draft.pieces for draft in drafts]), strict=True)
        ):
            if number in errors:
                continue
            try:
                kept, truncated[number] = self._truncate(number, draft.pieces, ids)
            except ItemError as error:
                errors[number] = error
                continue
            tokens[number] = sum(len(piece) for piece in kept)
            patches[number] = sum(rows * columns for _, rows, columns in draft.grid)
        return Measures(tokens, patches, truncated, errors)

    def _draft(
        self,
        number: int,
        text: str,
        sizes: Iterable[tuple[int, int]],
        history: Iterable[Turn],
        prefix: Task | None,
    ) -> _Draft:
        """The pieces of a segment before its texts are tokenised."""
        with _blame(number, "picture_size"):
            grid = tuple(self.grid(width, height) for width, height in sizes)
        merged = self.layout.merge_size**2
        with _blame(number, "placeholders"):
            pieces = self.prompt.pieces(text, [r * c // merged for _, r, c in grid], history, prefix)
        for piece in pieces:
            with _blame(number, "not_unicode"):
                piece.text.encode()  # the tokenizer's own complaint about lone surrogates names no item
        return _Draft(pieces, grid)

    def _tokenise(self, drafts: Sequence[Sequence[Piece]]) -> list[list[Sequence[int]]]:
        """Ids of every piece; all texts in one call of the tokenizer."""
        texts = [piece.text for pieces in drafts for piece in pieces if piece.text]
        encodings = iter(self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        return [[next(encodings).ids if piece.text else piece.ids for piece in pieces] for pieces in drafts]

    def _truncate(
        self, number: int, pieces: Sequence[Piece], ids: Sequence[Sequence[int]], exceed: bool = False
    ) -> tuple[list[Sequence[int]], int]:
        """Ids within the limit, and how many were cut: only texts give way, each from its end.

        The earliest turns go first; of the item's own text, the last part.
        """
        limit = self.settings.max_tokens
        frame = sum(len(piece.ids) for piece in pieces if not piece.text)
        if frame > limit:
            if not exceed:
                raise ItemError(
                    number,
                    "pictures_too_long",
                    f"pictures and turns alone take {frame} tokens; max_tokens is {limit}",
                )
            limit += frame
        excess = sum(len(piece) for piece in ids) - limit
        kept, left = list(ids), excess
        own = [place for place, piece in enumerate(pieces) if piece.text and not piece.earlier]
        earlier = [place for place, piece in enumerate(pieces) if piece.text and piece.earlier]
        for place in (*earlier, *reversed(own)):
            if left <= 0:
                break
            cut = min(left, len(kept[place]))
            kept[place] = kept[place][: len(kept[place]) - cut]
            left -= cut
        return kept, max(excess, 0)

    def _finish(
        self, number: int, item: Item, draft: _Draft, ids: Sequence[Sequence[int]], exceed: bool
    ) -> EncodedItem:
        """The segment of an item whose texts are tokenised, cut to the limit, with its patches."""
        kept, truncated_tokens = self._truncate(number, draft.pieces, ids, exceed)
        with _blame(number, "picture_mode"):
            frames = [
                cut_patches(image, grid, self.layout)
                for image, grid in zip(item.images, draft.grid, strict=True)
            ]
        ends = np.cumsum([len(piece) for piece in kept])
        return EncodedItem(
            input_ids=np.fromiter((number for piece in kept for number in piece), dtype=np.int64),
            patches=np.concatenate(frames) if frames else None,
            image_grid=draft.grid,
            image_starts=tuple(
                int(end) - len(piece.ids) + 1  # after <|vision_start|>
                for end, piece in zip(ends, draft.pieces, strict=True)
                if piece.picture
            ),
            truncated_tokens=truncated_tokens,
        )


@contextmanager
def _blame(number: int, rule: str) -> Iterator[None]:
    """Turns a mistake in the value of an item into one that names the item."""
    try:
        yield
    except ValueError as error:
        raise ItemError(number, rule, str(error)) from error


def _picture_settings(directory: Path) -> dict[str, Any]:
    """How a backbone wants its pictures.

    Raises:
        ValueError: no file says so, or it is damaged
    """
    combined = directory / COMBINED_FILE
    if (directory / PROCESSOR_FILE).is_file() or not combined.is_file():
        return read_object(directory / PROCESSOR_FILE)
    found: dict[str, Any] | None = read_object(combined).get("image_processor")
    if found is None:
        raise ValueError(f"{combined} has no image_processor, and {PROCESSOR_FILE} does not exist")
    return found


def _small_files(name: str | Path, **where: Any) -> Path:
    """A directory with tokenizer and settings: the one given, or a copy of the small files of a hub id.

    `where` holds `HUB_ARGUMENTS`.

    Raises:
        ValueError: neither
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if "/" not in str(name):  # no hub is asked for it, nor waited for: it is a folder that is not here
        raise ValueError(f"{name}: neither a directory nor a model on the hub (owner/name)")
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(SMALL_FILES), **where))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{name}: neither a directory nor a model on the hub ({error})") from error
