"""What pictures take of memory at their full size, wherever items are made of them."""

import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.core import small_training_set
from tests.core.small_training_set import COLOURS, SmallPair, write_training_set
from tests.stored_pictures import file_of
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.config import ProcessingSettings
from vipolyqwen_core.contract import Side, Split, Task
from vipolyqwen_core.corpus import pictures
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.serving import encoder, inputs
from vipolyqwen_core.serving.inputs import read_picture
from vipolyqwen_core.serving.sentence_transformers import ViPolyQwenModule
from vipolyqwen_core.serving.stored_sides import SideRequest, StoredSides
from vipolyqwen_core.training.identity import data_version
from vipolyqwen_core.training.loading import ChunkLoader, ChunkRequest
from vipolyqwen_core.training.rows import TrainingPictures

LARGE = Image.new("RGB", (400, 300), "red")
FILE = file_of(LARGE)


@pytest.fixture(scope="module")
def embedder(tiny_model_dir: Path) -> ViPolyQwenEmbedder:
    return ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)


class Held:
    """How many pictures of full size are in memory at once, at most, and how many there were."""

    def __init__(self) -> None:
        self.seen: list[weakref.ref[Image.Image]] = []
        self.most = 0

    def watch(self, read: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
        """The function that reads a picture, watched."""

        def watched(*given: Any) -> Image.Image:
            image = read(*given)
            assert image.size == LARGE.size
            self.seen.append(weakref.ref(image))
            self.most = max(self.most, sum(picture() is not None for picture in self.seen))
            return image

        return watched


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Pictures that users give, of which one thread reads one after the other."""
    monkeypatch.setattr(encoder, "usable_cores", lambda: 1)
    found = Held()
    monkeypatch.setattr(inputs, "read_picture", found.watch(read_picture))
    return found


def test_encode_holds_one_picture_a_thread_at_full_size(embedder: ViPolyQwenEmbedder, held: Held) -> None:
    embedder.encode(["one", "two", "three"], images=[FILE, None, [FILE, FILE, LARGE]])
    assert (len(held.seen), held.most) == (4, 1)


def test_sentence_transformers_holds_one_picture_at_full_size(
    embedder: ViPolyQwenEmbedder, held: Held
) -> None:
    told = {"role": "user", "content": [{"type": "image", "image": FILE}, {"type": "image", "image": LARGE}]}
    ViPolyQwenModule(embedder.model, embedder.processor).preprocess(
        [{"text": "one", "image": [FILE, LARGE]}, [told]]
    )
    assert (len(held.seen), held.most) == (4, 1)


@pytest.fixture
def large_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training set of four pairs; the first two show one picture."""
    monkeypatch.setattr(
        small_training_set, "picture", lambda number: Image.new("RGB", LARGE.size, COLOURS[number])
    )
    pairs = [
        SmallPair(f"<image>{place}?", "yes", Task.OCR, query_pictures=(number,), split=Split.TRAIN)
        for place, number in enumerate((0, 0, 1, 2))
    ]
    return write_training_set(tmp_path / "set", pairs)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Stored pictures, by one thread."""
    monkeypatch.setattr(encoder, "usable_cores", lambda: 1)
    found = Held()
    monkeypatch.setattr(TrainingPictures, "_decode", found.watch(TrainingPictures._decode))
    return found


def test_stored_sides_are_encoded_with_one_picture_a_thread_at_full_size(
    embedder: ViPolyQwenEmbedder, large_set: Path, decoded: Held
) -> None:
    sides = StoredSides(large_set, Split.TRAIN, data_version(large_set))
    requests = [SideRequest(row, Side.QUERY) for row in range(4)]
    vectors = embedder.encode_items(sides.late_items(requests, embedder.processor.shrink), 1024)
    assert (len(decoded.seen), decoded.most) == (3, 1)
    assert np.array_equal(vectors, embedder.encode_items(sides.late_items(requests), 1024))


def test_a_chunk_is_loaded_with_one_picture_at_full_size(
    tiny_backbone: Path, tiny_processing: ProcessingSettings, large_set: Path, decoded: Held
) -> None:
    loader = ChunkLoader(large_set, tiny_backbone, tiny_processing, prefix_dropout=0.0, seed=0)
    assert loader[ChunkRequest(0, 0, np.arange(4), needs_picture=False)].packed.pictures is not None
    assert (len(decoded.seen), decoded.most) == (3, 1)


def test_a_picture_that_cannot_be_decoded_is_named_with_its_item(
    embedder: ViPolyQwenEmbedder, large_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ImageStore.read
    monkeypatch.setattr(ImageStore, "read", lambda store, rows: [data[:60] for data in read(store, rows)])
    sides = StoredSides(large_set, Split.TRAIN, data_version(large_set))
    requests = [SideRequest(0, Side.TARGET), SideRequest(2, Side.QUERY)]
    with pytest.raises(ValueError, match=r"item 1: picture 'pictures/1.png' of .* cannot be decoded"):
        embedder.encode_items(sides.late_items(requests), 1024)


def test_very_large_pictures_take_turns_over_the_threads(
    embedder: ViPolyQwenEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most = [], []

    def watched(picture: bytes, before_loading: Callable[[int], None]) -> Image.Image:
        before_loading(LARGE.width * LARGE.height)
        inside.append(picture)
        time.sleep(0.01)
        return LARGE

    def shrink(image: Image.Image) -> Image.Image:
        most.append(len(inside))
        inside.pop()
        return image

    monkeypatch.setattr(encoder, "usable_cores", lambda: 4)
    monkeypatch.setattr(inputs, "read_picture", watched)
    monkeypatch.setattr(embedder.processor, "shrink", shrink)
    monkeypatch.setattr(pictures, "LARGE_PIXELS", LARGE.width * LARGE.height - 1)
    embedder.encode(images=[FILE] * 64)
    assert set(most) == {1}
