"""What pictures take of memory at their full size, wherever items are made of them."""

import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.stored_pictures import file_of
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.corpus import pictures
from vipolyqwen_core.serving import inputs
from vipolyqwen_core.serving.inputs import read_picture
from vipolyqwen_core.serving.sentence_transformers import ViPolyQwenModule

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
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
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

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(inputs, "read_picture", watched)
    monkeypatch.setattr(embedder.processor, "shrink", shrink)
    monkeypatch.setattr(pictures, "LARGE_PIXELS", LARGE.width * LARGE.height - 1)
    embedder.encode(images=[FILE] * 64)
    assert set(most) == {1}
