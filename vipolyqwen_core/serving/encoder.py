"""The embedder: texts, pictures and both to unit vectors.

    embedder = ViPolyQwenEmbedder.from_pretrained("path/to/model")
    vectors = embedder.encode(["một câu", "a sentence"])                      # [2, 1024]
    vector = embedder.encode("What is the total?", images="receipt.jpg")      # [1024]
    answers = embedder.encode(questions, images=pages, prefix="ocr", batch_size=16, dim=256)

Inputs are treated exactly as in training: the same normalisation of text and pictures, the same repair of
`<image>` placeholders. Nothing is padded, so the vector of an item does not depend on its neighbours.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from numbers import Integral
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from vipolyqwen_core.contract import Task
from vipolyqwen_core.freed_memory import keep_freed_memory
from vipolyqwen_core.grouped import grouped
from vipolyqwen_core.model import compilation
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.packing import PackedBatch, pack
from vipolyqwen_core.processing.processor import EncodedItem, Item, ItemError, ViPolyQwenProcessor
from vipolyqwen_core.serving.inputs import Picture, arrange, make_item, prefixes_of, warn_of_cut_texts
from vipolyqwen_core.usable_cores import usable_cores

Vectors: TypeAlias = NDArray[np.float32]
LaunchedWindow: TypeAlias = list[tuple[list[int], torch.Tensor]]
"""Batches that the model was given: places of their items in the window, and their vectors."""

BATCH_TOKENS: Final = {"cuda": 16_384, "cpu": 1_024}
"""Tokens of one packed batch by kind of device, unless the caller says otherwise; a longer item is a batch of
its own. More gives a CPU nothing."""
KEPT_BYTES: Final = 64 * 2**20
"""What each of glibc's arenas keeps of freed memory on a CPU, where it is worth an eighth of the time: as
much as glibc keeps by itself once it has seen a large block."""
WINDOW_TOKENS: Final = 65_536
"""Items of so many tokens, or of two batches, are sorted by cost together: this bounds what is in memory, two
windows at most."""
BLOCK_ITEMS: Final = 16
"""Items whose texts are tokenised in one call, by one thread."""
LOOKAHEAD_BLOCKS: Final = 8
"""Blocks that threads prepare while the model is at work."""


class ViPolyQwenEmbedder:
    """A model and its processor, ready to encode."""

    def __init__(
        self, model: ViPolyQwenModel, processor: ViPolyQwenProcessor, device: str | None = None
    ) -> None:
        model.config.check_processor(processor)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval()
        self.model.to(self.device)
        if self.device.type == "cpu":
            keep_freed_memory(KEPT_BYTES)
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        compile_layers: bool = False,
        revision: str = "main",
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> "ViPolyQwenEmbedder":
        """The embedder of a model directory or of a hub id, on the GPU where there is one.

        It computes in the precision that the model was saved in; `dtype`, such as "bfloat16", asks for
        another, with a warning. `compile_layers` compiles the layers of Qwen2-VL: the first batches are slow,
        and a long list is done sooner. The other arguments say where the files come from, as those of
        transformers' `from_pretrained` do.

        Raises:
            ValueError: the directory does not exist or holds no model, and it is no model on the hub; or its
                layers are to be compiled and are not those of Qwen2-VL
            OSError: the directory holds no weights
        """
        path = os.path.expanduser(path)  # a hub id stays what it is
        if Path(path).is_dir() and not Path(path, subfolder, "config.json").is_file():
            raise ValueError(f"{Path(path, subfolder)} is no model directory: it has no config.json")
        where: dict[str, Any] = {
            "revision": revision,
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        processor = ViPolyQwenProcessor.from_pretrained(path, **where)
        model = ViPolyQwenModel.from_pretrained(path, dtype=dtype, **where)
        if compile_layers:
            compilation.compile_layers(model)
        return cls(model, processor, device)

    @property
    def embedding_dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.model.config.embedding_dim)

    @property
    def batch_tokens(self) -> int:
        """Tokens of one packed batch, unless the caller says otherwise."""
        return BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"])

    def encode(
        self,
        text: str | Iterable[str | None] | None = None,
        images: Picture | Iterable[Any] | None = None,
        prefix: Task | str | Iterable[Task | str | None] | None = None,
        *,
        batch_size: int | None = None,
        dim: int | None = None,
        show_progress: bool = False,
    ) -> Vectors:
        """Unit vectors of texts, pictures or both: one row an item, or one vector for one item.

        A string is one item, and `images`, one or a list, belong to it. A list of texts takes a list of
        the same length, whose entries are None, a picture or a list of pictures. Without text one picture
        is one item, a list of pictures is that many items, a list of lists is one item a list.

        `prefix` is a task, for all items or one for each; the everyday use has none. `batch_size` bounds
        the items of a packed batch, which is filled by tokens in any case. `dim` keeps the first
        dimensions and normalises again: meant for models trained with `matryoshka_dims`.

        Shapes:
            returns: [N, dim] float32, or [dim] for one item
        Raises:
            ValueError: names the item and what is wrong with it
        """
        texts, pictures, single = arrange(text, images)
        prefixes = prefixes_of(prefix, len(texts))
        is_number = isinstance(dim, Integral) and not isinstance(dim, bool)
        if dim is not None and not (is_number and 1 <= dim <= self.embedding_dim):
            raise ValueError(f"dim must lie between 1 and {self.embedding_dim}, not {dim!r}")
        items: Iterable[Callable[[], Item]] = (
            partial(make_item, *each, shrink=self.processor.shrink, max_chars=self.processor.max_chars)
            for each in zip(texts, pictures, prefixes, strict=True)
        )
        if show_progress:
            items = track(items, description="encoding", total=len(texts))
        vectors = self._encode(items, batch_size, self.batch_tokens)
        if dim is not None and dim < self.embedding_dim:
            vectors = slice_vectors(vectors, dim)
        return vectors[0] if single else vectors

    def encode_items(self, sources: Iterable[Callable[[], Item]], batch_tokens: int) -> Vectors:
        """Unit vectors of items that are normalised already, as a training set holds them.

        A source makes an item, in the thread that prepares it: so few are in memory at a time.
        An item may have more pictures and turns than the limit of tokens has room for: it was measured with
        the settings of another model, or shows the pictures of another item.

        Shapes:
            returns: [N, D] float32
        Raises:
            ValueError: names the item by its place
        """
        return self._encode(sources, None, batch_tokens, exceed=True)

    def _encode(
        self,
        sources: Iterable[Callable[[], Item]],
        batch_size: int | None,
        batch_tokens: int,
        exceed: bool = False,
    ) -> Vectors:
        if batch_size is not None and not (isinstance(batch_size, Integral) and batch_size >= 1):
            raise ValueError(f"batch_size must be at least 1, not {batch_size!r}")
        windows: list[Vectors] = []
        launched: LaunchedWindow | None = None
        cut_items = cut_tokens = 0
        window_tokens = max(WINDOW_TOKENS, 2 * batch_tokens)
        for window in grouped(self._prepared(sources, exceed), (attrgetter("num_tokens"), window_tokens)):
            following = self._launch(window, batch_size, batch_tokens)
            if launched is not None:  # only now: a GPU has the following window to work on meanwhile
                windows.append(self._collect(launched))
            launched = following
            cut_items += sum(item.truncated_tokens > 0 for item in window)
            cut_tokens += sum(item.truncated_tokens for item in window)
        if launched is not None:
            windows.append(self._collect(launched))
        warn_of_cut_texts(cut_items, cut_tokens, self.processor.settings.max_tokens)
        return np.concatenate(windows) if windows else np.empty((0, self.embedding_dim), dtype=np.float32)

    def _prepared(self, sources: Iterable[Callable[[], Item]], exceed: bool) -> Iterator[EncodedItem]:
        """Items as tokens and patches, in order, prepared by threads ahead of their use."""
        remaining = enumerate(sources)
        waiting: deque[Future[list[EncodedItem]]] = deque()
        with ThreadPoolExecutor(max_workers=min(8, usable_cores())) as threads:
            try:
                while block := list(islice(remaining, BLOCK_ITEMS)):
                    waiting.append(threads.submit(self._prepare, block, exceed))
                    if len(waiting) >= LOOKAHEAD_BLOCKS:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _prepare(self, block: list[tuple[int, Callable[[], Item]]], exceed: bool) -> list[EncodedItem]:
        """Tokens and patches of numbered items.

        Raises:
            ItemError: names the item by its number
        """
        items = []
        for number, source in block:
            try:
                items.append(source())
            except ValueError as error:
                raise ItemError(number, "input", str(error)) from error
        try:
            return self.processor.encode_batch(items, exceed=exceed)
        except ItemError as error:
            raise ItemError(block[0][0] + error.item, error.rule, error.reason) from error

    def _launch(self, window: list[EncodedItem], batch_size: int | None, batch_tokens: int) -> LaunchedWindow:
        """Some items on their way through the model, in order of cost; a GPU need not be done with them.

        In the model's own precision, even where the caller computes other things under autocast.
        """
        tokens = [item.num_tokens for item in window]
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            return [
                (places, self.model(self._packed(window, places)))
                for places in batches_by_cost(tokens, batch_tokens, batch_size)
            ]

    def _packed(self, window: list[EncodedItem], places: list[int]) -> PackedBatch:
        return pack([window[place] for place in places], self.processor.layout).to(self.device)

    def _collect(self, launched: LaunchedWindow) -> Vectors:
        """The vectors of a window, in the order of its items."""
        vectors = np.empty((sum(len(places) for places, _ in launched), self.embedding_dim), dtype=np.float32)
        for places, embedded in launched:
            vectors[places] = embedded.cpu().numpy()
        return vectors


def slice_vectors(vectors: Vectors, dim: int) -> Vectors:
    """The first `dim` dimensions of each row, as unit rows again."""
    head = vectors[:, :dim]
    return np.asarray(head / np.maximum(np.linalg.norm(head, axis=1, keepdims=True), 1e-12))


def batches_by_cost(tokens: Sequence[int], batch_tokens: int, batch_size: int | None) -> Iterator[list[int]]:
    """Places of items, longest first, in batches within a budget of tokens and a number of items.

    The longest come first so that memory that is too small shows at once.
    """
    batch: list[int] = []
    filled = 0
    for place in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        if batch and (filled + tokens[place] > batch_tokens or len(batch) == batch_size):
            yield batch
            batch, filled = [], 0
        batch.append(place)
        filled += tokens[place]
    if batch:
        yield batch
