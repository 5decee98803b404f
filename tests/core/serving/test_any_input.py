"""Whatever is given to be encoded gives a unit vector, or a ValueError that names the item that cannot be."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.core.small_training_set import picture
from tests.stored_pictures import file_of
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.contract import PREFIX_TOKENS, Task, Turn
from vipolyqwen_core.processing.processor import EncodedItem, Item, ItemError
from vipolyqwen_core.processing.prompt import ROLES
from vipolyqwen_core.processing.vocabulary import QWEN2_VL_SPECIAL_TOKENS
from vipolyqwen_core.serving.inputs import make_item

MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I"),
    *("F", "I;16", "I;16B"),
)


FILE = file_of(picture(1))

texts = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=()), max_size=12),  # lone surrogates too
        st.sampled_from(
            ["<image>", " ", "\n", "&amp;lt;", *QWEN2_VL_SPECIAL_TOKENS, *PREFIX_TOKENS.values()]
        ),
    ),
    max_size=6,
).map("".join)
sides = st.one_of(st.integers(0, 60), st.sampled_from([1, 400]))
images = st.one_of(
    st.builds(Image.new, st.sampled_from(MODES), st.tuples(sides, sides)),
    st.just(picture(2)),
    st.binary(max_size=20),
    st.integers(0, len(FILE)).map(lambda end: FILE[:end]),
    st.text(max_size=8),
    st.just(Path("no/such/picture.png")),
    st.just(3),
)
pictures = st.one_of(st.none(), images, st.lists(images, max_size=3))
prefixes = st.one_of(st.none(), st.sampled_from(list(Task)), st.text(max_size=4))
turns = st.lists(st.builds(Turn, st.one_of(st.sampled_from(ROLES), st.text(max_size=4)), texts), max_size=4)


@pytest.fixture(scope="module")
def embedder(tiny_model_dir: Path) -> ViPolyQwenEmbedder:
    return ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)


def outcome(call: Callable[[], Any]) -> tuple[Any, ValueError | None]:
    """What a call gives, or the mistake that it names."""
    try:
        return call(), None
    except ValueError as error:
        return None, error


def is_unit(vectors: np.ndarray) -> bool:
    return bool(np.allclose(np.linalg.norm(vectors, axis=-1), 1.0, atol=1e-5))


@settings(max_examples=60)
@given(items=st.lists(st.tuples(st.one_of(st.none(), texts), pictures, prefixes), min_size=1, max_size=4))
def test_any_list_gives_vectors_or_names_an_item_that_fails_alone(
    embedder: ViPolyQwenEmbedder, items: list[tuple[Any, Any, Any]]
) -> None:
    text, image, prefix = (list(column) for column in zip(*items, strict=True))
    vectors, error = outcome(lambda: embedder.encode(text, images=image, prefix=prefix))
    if error is None:
        assert vectors.shape == (len(items), 64)
        assert is_unit(vectors)
        return
    named = re.match(r"item (\d+): ", str(error))
    assert named, error
    number = int(named[1])
    with pytest.raises(ValueError, match="item 0: "):
        embedder.encode(text[number : number + 1], images=[image[number]], prefix=[prefix[number]])


@settings(max_examples=80)
@given(text=texts, history=turns, image=st.lists(images, max_size=3), prefix=st.sampled_from([None, *Task]))
def test_any_dialogue_gives_a_segment_or_names_the_item(
    embedder: ViPolyQwenEmbedder, text: str, history: list[Turn], image: list[Any], prefix: Task | None
) -> None:
    item, error = outcome(lambda: make_item(text, image, prefix, history))
    if error is None:  # else what calls it adds the number
        segment(embedder, item)


@settings(max_examples=80)
@given(
    text=texts,
    history=turns,
    image=st.lists(st.builds(Image.new, st.sampled_from(MODES), st.tuples(sides, sides)), max_size=3),
    prefix=st.sampled_from([None, *Task]),
)
def test_the_processor_alone_names_the_item_too(
    embedder: ViPolyQwenEmbedder,
    text: str,
    history: list[Turn],
    image: list[Image.Image],
    prefix: Task | None,
) -> None:
    segment(embedder, Item(text, tuple(image), tuple(history), prefix))


def segment(embedder: ViPolyQwenEmbedder, item: Item) -> None:
    """The item behind a good one: a segment that keeps the rules, or an error that says `item 1`."""
    processor = embedder.processor
    encoded, error = outcome(lambda: processor.encode_batch([Item("good"), item])[1])
    if error is not None:
        assert isinstance(error, ItemError)
        assert error.item == 1
        assert str(error).startswith("item 1: ")
        return
    check(encoded, item, processor.prompt.image_pad, processor.settings.max_tokens)
    if item.prefix is not None:
        assert encoded.input_ids[0] == processor.prompt.prefixes[item.prefix]
    assert encoded.input_ids[-1] == processor.prompt.im_end


def check(encoded: EncodedItem, item: Item, image_pad: int, max_tokens: int) -> None:
    assert 1 <= encoded.num_tokens <= max_tokens
    visual = sum(rows * columns // 4 for _, rows, columns in encoded.image_grid)
    assert (encoded.input_ids == image_pad).sum() == visual
    assert encoded.num_patches == 4 * visual
    assert len(encoded.image_grid) == len(item.images)
