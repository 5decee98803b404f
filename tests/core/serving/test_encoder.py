"""The embedder: what goes in, what comes out, and that neither neighbours nor batches matter."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.core.small_training_set import picture
from tests.stored_pictures import file_of
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.config import CurationSettings, ProcessingSettings
from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor
from vipolyqwen_core.serving import encoder, inputs
from vipolyqwen_core.serving.encoder import batches_by_cost, slice_vectors
from vipolyqwen_core.serving.inputs import make_item


@pytest.fixture(scope="module")
def embedder(tiny_model_dir: Path) -> ViPolyQwenEmbedder:
    return ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)


def test_one_item_gives_one_vector_and_a_list_gives_rows(embedder: ViPolyQwenEmbedder) -> None:
    assert embedder.encode("one").shape == (64,)
    assert embedder.encode(["one"]).shape == (1, 64)
    assert embedder.encode(images=picture(1)).shape == (64,)
    assert embedder.encode(images=[picture(1), picture(2)]).shape == (2, 64)
    assert embedder.encode(images=[[picture(1), picture(2)]]).shape == (1, 64)
    assert embedder.encode("both", images=[picture(1), picture(2)]).shape == (64,)
    assert embedder.encode([]).shape == (0, 64)


def test_vectors_are_float32_of_unit_length(embedder: ViPolyQwenEmbedder) -> None:
    vectors = embedder.encode(["one", None, "three"], images=[None, picture(1), [picture(2), picture(3)]])
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_neighbours_order_and_batch_size_change_nothing(
    embedder: ViPolyQwenEmbedder, batch_size: int | None
) -> None:
    texts = ["a", "một câu dài hơn một chút", "x " * 80, "", "again"]
    pictures: list[Any] = [None, picture(1), None, [picture(2), picture(3)], picture(4)]
    together = embedder.encode(texts, images=pictures, batch_size=batch_size)
    for i in (4, 2, 0, 3, 1):
        assert np.allclose(together[i], embedder.encode(texts[i], images=pictures[i]), atol=2e-6)


def test_a_long_list_that_is_encoded_in_parts_keeps_its_order(
    embedder: ViPolyQwenEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number} " * (1 + number % 7) for number in range(40)]
    whole = embedder.encode(texts)
    monkeypatch.setattr(encoder, "WINDOW_TOKENS", 1)
    monkeypatch.setitem(encoder.BATCH_TOKENS, "cpu", 24)
    assert np.allclose(embedder.encode(texts), whole, atol=2e-6)


def test_what_numpy_hands_out_of_an_array_is_one_item(embedder: ViPolyQwenEmbedder, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture(5).save(path)
    (text,), (named,) = np.array(["một câu"]), np.array([str(path)])
    assert np.array_equal(embedder.encode(text), embedder.encode("một câu"))
    assert np.array_equal(embedder.encode(images=named), embedder.encode(images=str(path)))
    assert np.array_equal(embedder.encode(text, named), embedder.encode("một câu", str(path)))


def test_pil_path_and_bytes_are_one_picture(embedder: ViPolyQwenEmbedder, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture(5).save(path)
    data = path.read_bytes()
    forms = [picture(5), path, str(path), data, bytearray(data), memoryview(data), Image.open(path)]
    vectors = embedder.encode(images=forms)
    assert np.allclose(vectors, vectors[0], atol=1e-6)
    for form in forms:
        assert np.allclose(embedder.encode("one", images=form), embedder.encode("one", picture(5)), atol=1e-6)


def test_a_picture_of_too_many_pixels_is_refused(
    embedder: ViPolyQwenEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    picture(5).save(path)
    monkeypatch.setattr(inputs, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    for form in (path, path.read_bytes()):
        with pytest.raises(ValueError, match=r"item 0: .*64 x 48 pixels, limit 3071"):
            embedder.encode(images=form)


def test_an_upright_copy_and_a_rotated_one_with_a_flag_are_one_picture(embedder: ViPolyQwenEmbedder) -> None:
    flag = Image.Exif()
    flag[0x0112] = 6
    turned = file_of(picture(5).rotate(90, expand=True), exif=flag)
    assert np.allclose(embedder.encode(images=turned), embedder.encode(images=picture(5)), atol=1e-6)


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        torch.inference_mode,
    ],
)
def test_what_the_caller_sets_for_other_models_changes_no_vector(
    embedder: ViPolyQwenEmbedder, around: Callable[[], AbstractContextManager[Any]]
) -> None:
    texts, pictures = ["one", "una frase più lunga", "three"], [None, picture(1), [picture(2), picture(3)]]
    expected = embedder.encode(texts, images=pictures)
    with around():
        assert np.array_equal(embedder.encode(texts, images=pictures), expected)


def test_a_directory_may_be_spelled_from_the_home_folder(
    embedder: ViPolyQwenEmbedder, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_model_dir.parent))
    loaded = ViPolyQwenEmbedder.from_pretrained(f"~/{tiny_model_dir.name}")
    assert np.array_equal(loaded.encode("one"), embedder.encode("one"))


def test_both_forms_of_vietnamese_are_one_text(embedder: ViPolyQwenEmbedder) -> None:
    composed, decomposed = "Tiếng Việt", "Tiê\u0301ng Viê\u0323t"
    assert np.array_equal(embedder.encode(composed), embedder.encode(decomposed))


def test_missing_placeholders_stand_in_front(embedder: ViPolyQwenEmbedder) -> None:
    implicit = embedder.encode("what is it?", images=picture(1))
    assert np.array_equal(implicit, embedder.encode("<image>what is it?", images=picture(1)))
    assert not np.allclose(implicit, embedder.encode("what is it?<image>", images=picture(1)), atol=1e-4)


def test_earlier_turns_are_normalised_and_the_first_of_a_user_shows_the_pictures() -> None:
    turns = [Turn("assistant", "Hi"), Turn("user", "Tiê\u0301ng  Viê\u0323t"), Turn("assistant", "Yes")]
    item = make_item("And now?", picture(1), history=turns)
    assert [turn.text for turn in item.history] == ["Hi", "<image>Tiếng Việt", "Yes"]
    assert item.text == "And now?"


def test_a_placeholder_without_pictures_is_text(embedder: ViPolyQwenEmbedder) -> None:
    assert not np.allclose(embedder.encode("<image>"), embedder.encode(""), atol=1e-4)


def test_a_prefix_is_not_its_spelling(embedder: ViPolyQwenEmbedder) -> None:
    plain, spelled = embedder.encode(["total?", "<ocr>total?"])
    prefixed = embedder.encode("total?", prefix="ocr")
    assert not np.allclose(prefixed, plain, atol=1e-4)
    assert not np.allclose(prefixed, spelled, atol=1e-4)


def test_prefixes_may_differ_by_item(embedder: ViPolyQwenEmbedder) -> None:
    given = (prefix for prefix in ("ocr", None))
    assert np.array_equal(
        embedder.encode(["a", "b"], prefix=given), embedder.encode(["a", "b"], prefix=["ocr", None])
    )
    both = embedder.encode(["total?", "total?"], prefix=[None, Task.OCR])
    assert np.allclose(both[0], embedder.encode("total?"), atol=1e-6)
    assert np.allclose(both[1], embedder.encode("total?", prefix="ocr"), atol=1e-6)


def test_a_slice_is_a_unit_vector_along_the_first_dimensions(embedder: ViPolyQwenEmbedder) -> None:
    full, short = embedder.encode("one"), embedder.encode("one", dim=16)
    assert short.shape == (16,)
    assert np.allclose(short, full[:16] / np.linalg.norm(full[:16]), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to encode"),
        ({"text": ["a", None]}, "item 1: neither text nor picture"),
        ({"text": ["a", 3]}, "item 1: text must be a string, not int"),
        ({"text": 3}, "text must be a string or a list"),
        ({"text": {"text": "a", "image": picture(1)}}, "text must be one item or a list, not dict"),
        ({"text": pd.DataFrame({"text": ["a"]})}, "text must be one item or a list, not DataFrame"),
        ({"text": np.array("a")}, "text must be one item or a list, not ndarray"),
        ({"text": b"a"}, "text must be a string or a list of strings, not bytes"),
        ({"images": {"a.png", "b.png"}}, "images must be one item or a list, not set"),
        ({"images": pd.DataFrame({"images": ["a.png"]})}, "images must be one item or a list, not DataFrame"),
        ({"images": [{"a.png", "b.png"}]}, "item 0: the pictures of an item must be a list, not set"),
        ({"text": ["a"], "images": [{"image": picture(1)}]}, "item 0: the pictures of .* a list, not dict"),
        ({"text": ["a", "b"], "images": [None]}, "2 texts but 1 entries in images"),
        ({"text": ["a"], "images": "picture.png"}, "1 texts take a list of 1 entries"),
        ({"text": "<image><image>", "images": picture(1)}, "item 0: 2 placeholders"),
        ({"images": [picture(1), b"no picture"]}, "item 1: 10 bytes of no known picture format"),
        ({"images": [picture(1), "absent.png"]}, "item 1: picture 'absent.png' cannot be read: No such"),
        ({"images": [[picture(1), b"none"]]}, "item 0: image 1: 4 bytes of no known picture format"),
        ({"text": "a", "images": ["absent.png", picture(1)]}, "item 0: image 0: picture 'absent.png' cannot"),
        ({"images": ["https://example.org/a.png?key=1"]}, "item 0: .* is not fetched from a URL$"),
        ({"images": ["data:image/png;base64,AAAA"]}, "item 0: .* is not fetched from a URL$"),
        ({"images": ["A" * 9999]}, "item 0: picture 'A{200}' cannot be read: File name too long$"),
        (
            {"images": [__file__]},
            "item 0: picture '.*test_encoder.py': .* no known picture format",
        ),
        ({"images": [3]}, "item 0: a picture is a PIL image, a path or bytes, not int"),
        ({"images": BytesIO(b"of\ntwo lines")}, "item 0: a picture is a PIL .* bytes, not BytesIO"),
        ({"text": "a", "images": BytesIO(b"one line")}, "item 0: a picture is a PIL .* bytes, not BytesIO"),
        ({"images": Image.new("RGB", (1000, 1))}, "item 0: a picture of 1000 x 1 pixels"),
        ({"text": "a", "prefix": "summary"}, "unknown prefix 'summary'"),
        ({"text": ["a", "b"], "prefix": ["ocr"]}, "2 items but 1 prefixes"),
        ({"text": "a", "prefix": 3}, "prefix must be a task or a list of tasks, not int"),
        ({"text": ["a"], "prefix": pd.DataFrame({"ocr": [1]})}, "prefix must be a task or a list of tasks"),
        ({"text": ["a", "b"], "prefix": [None, ["ocr"]]}, r"item 1: unknown prefix \['ocr'\]"),
        ({"text": "a", "dim": 0}, "dim must lie between 1 and 64, not 0"),
        ({"text": "a", "dim": 65}, "dim must lie between 1 and 64, not 65"),
        ({"text": "a", "dim": True}, "dim must lie between 1 and 64, not True"),
        ({"text": "a", "dim": "16"}, "dim must lie between 1 and 64, not '16'"),
        ({"text": "a", "batch_size": 0}, "batch_size must be at least 1"),
        ({"text": "a", "batch_size": 2.5}, "batch_size must be at least 1, not 2.5"),
    ],
)
def test_a_mistake_is_named_with_its_item(
    embedder: ViPolyQwenEmbedder, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        embedder.encode(**arguments)


def test_a_picture_whose_file_was_closed_unread_is_named(
    embedder: ViPolyQwenEmbedder, tmp_path: Path
) -> None:
    picture(1).save(tmp_path / "1.png")
    with Image.open(tmp_path / "1.png") as opened:
        pass
    with pytest.raises(ValueError, match=r"item 1: .*was closed before it was read: call its load\(\) first"):
        embedder.encode(images=[picture(1), opened])


def test_a_wrong_item_far_behind_is_named_by_its_number(embedder: ViPolyQwenEmbedder) -> None:
    texts: list[str | None] = ["text"] * 40
    with pytest.raises(ValueError, match="item 33: neither text nor picture"):
        embedder.encode([*texts[:33], None, *texts[33:]])
    with pytest.raises(ValueError, match="item 21: "):
        embedder.encode(texts[:22], images=[*[None] * 21, Image.new("RGB", (1000, 1))])


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no model directory"):
        ViPolyQwenEmbedder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="absent: neither a directory nor a model on the hub"):
        ViPolyQwenEmbedder.from_pretrained(tmp_path / "absent")


def test_a_processor_that_the_model_was_not_trained_with_is_refused(
    embedder: ViPolyQwenEmbedder, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    other = ViPolyQwenProcessor.from_backbone(tiny_backbone, replace(tiny_processing, max_tokens=99))
    with pytest.raises(ValueError, match="max_tokens is 99, but the model was trained with 256"):
        ViPolyQwenEmbedder(embedder.model, other)


def test_another_precision_can_be_asked_for(tiny_model_dir: Path) -> None:
    half = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir, dtype="bfloat16")
    assert half.model.backbone.dtype == torch.bfloat16
    assert half.encode("one").dtype == np.float32


def test_a_bare_name_is_a_folder_that_is_not_there_and_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> str:
        raise AssertionError("a hub was asked")

    monkeypatch.setattr("vipolyqwen_core.processing.processor.snapshot_download", ask)
    with pytest.raises(ValueError, match="modle: neither a directory nor a model on the hub"):
        ViPolyQwenEmbedder.from_pretrained("modle")


@pytest.fixture
def hub_cache(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """What a hub left here: `owner/name` with a model on `main`, and one below `inner` of a tag."""
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    for revision, commit, folder in (("main", "a" * 40, ""), ("v1", "b" * 40, "inner")):
        shutil.copytree(tiny_model_dir, repository / "snapshots" / commit / folder)
        (repository / "refs" / revision).write_text(commit, encoding="utf-8")
    return tmp_path


def test_a_hub_id_is_loaded_from_the_cache(
    embedder: ViPolyQwenEmbedder, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = ViPolyQwenEmbedder.from_pretrained("owner/name")
    assert np.array_equal(loaded.encode("một câu"), embedder.encode("một câu"))
    with pytest.raises(ValueError, match="owner/absent: neither a directory nor a model on the hub"):
        ViPolyQwenEmbedder.from_pretrained("owner/absent")


def test_a_revision_and_a_subfolder_of_a_hub_id_can_be_named(
    embedder: ViPolyQwenEmbedder, hub_cache: Path
) -> None:
    where: dict[str, Any] = {"cache_dir": hub_cache, "local_files_only": True, "token": "hf_none"}
    for revision in ("v1", "b" * 40):
        loaded = ViPolyQwenEmbedder.from_pretrained(
            "owner/name", revision=revision, subfolder="inner", **where
        )
        assert np.array_equal(loaded.encode("một câu"), embedder.encode("một câu"))
    with pytest.raises(ValueError, match="neither a directory nor a model on the hub"):
        ViPolyQwenEmbedder.from_pretrained("owner/name", revision="v2", **where)
    with pytest.raises(ValueError, match="outer"):
        ViPolyQwenEmbedder.from_pretrained("owner/name", subfolder="outer", **where)


def test_a_subfolder_of_a_directory_can_be_named(embedder: ViPolyQwenEmbedder, tiny_model_dir: Path) -> None:
    parent, name = tiny_model_dir.parent, tiny_model_dir.name
    loaded = ViPolyQwenEmbedder.from_pretrained(parent, subfolder=name)
    assert np.array_equal(loaded.encode("một câu"), embedder.encode("một câu"))
    with pytest.raises(ValueError, match=r"absent is no model directory: it has no config\.json"):
        ViPolyQwenEmbedder.from_pretrained(parent, subfolder="absent")


def test_what_is_cut_is_counted_and_logged(
    embedder: ViPolyQwenEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    limit = embedder.processor.settings.max_tokens
    words = "x " * (limit + 20)
    cut = embedder.processor.encode(Item(words.strip())).truncated_tokens
    with caplog.at_level(logging.WARNING, "vipolyqwen_core"):
        embedder.encode(["short", words, words])
        assert (
            f"2 items were longer than {limit} tokens: {2 * cut} tokens of their texts were cut"
            in caplog.text
        )
        caplog.clear()
        embedder.encode("short")
        assert not caplog.records


@pytest.mark.parametrize("words", ["một hai ", "x", "1 2", "&amp;", " \n", "a\u0323\u0301"])
def test_a_text_far_beyond_the_limit_has_the_vector_of_the_whole(
    embedder: ViPolyQwenEmbedder, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """So does one within the bound, which is read whole as a row of training is."""
    bound = embedder.processor.max_chars
    assert bound == CurationSettings().max_chars
    text, placed = f"một {words * bound} hai", f"{words * bound}<image>ba"
    vectors = embedder.encode([text[:bound], text, placed], images=[None, None, picture(1)])
    monkeypatch.setattr(ViPolyQwenProcessor, "max_chars", None)
    whole = embedder.encode([text[:bound], text, placed], images=[None, None, picture(1)])
    kept = slice(None) if words.strip() else 0  # blanks fold into one
    assert np.array_equal(vectors[kept], whole[kept])


def test_of_a_text_far_beyond_the_limit_the_beginning_is_read(
    embedder: ViPolyQwenEmbedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All of ten million characters would take minutes and gigabytes."""
    bound, read = embedder.processor.max_chars, []
    monkeypatch.setattr(inputs, "normalise_text", lambda text: read.append(text) or text)
    embedder.encode(["x" * bound, "x" * 10**7])
    assert [len(text) for text in read] == [bound, bound]
    assert f"of a text of 10000000 characters only the first {bound} were read" in caplog.text


def test_stored_pictures_beyond_the_limit_of_an_older_model_have_a_vector(
    embedder: ViPolyQwenEmbedder, tiny_model_dir: Path
) -> None:
    """A champion scores and exports rows that were measured with the settings of a newer recipe."""
    older = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)
    older.processor.settings = replace(older.processor.settings, max_tokens=16)
    pages = [picture(number) for number in range(3)]
    items = [Item("a text"), Item("<image>" * 3 + "Hà Nội", tuple(pages))]
    assert embedder.processor.encode(items[1]).num_tokens > 16
    sources = [partial(replace, item) for item in items]
    assert np.allclose(older.encode_items(sources, 64), embedder.encode_items(sources, 64), atol=1e-6)
    with pytest.raises(ValueError, match=r"pictures and turns alone take \d+ tokens; max_tokens is 16"):
        older.encode("Hà Nội", images=pages)


def test_inputs_are_prepared_off_the_main_thread(
    embedder: ViPolyQwenEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    encode_batch = embedder.processor.encode_batch

    def recorded(items: Any, **how: Any) -> Any:
        threads.add(threading.current_thread())
        return encode_batch(items, **how)

    monkeypatch.setattr(embedder.processor, "encode_batch", recorded)
    embedder.encode(["text"] * 40, images=[picture(1)] * 40)
    assert threads
    assert threading.main_thread() not in threads


def test_no_two_threads_open_one_picture_at_once(
    embedder: ViPolyQwenEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow reads a picture's file when its pixels are first asked for: two at once spoil it."""
    inside, most = [], []

    def watched(image: Image.Image) -> Image.Image:
        inside.append(image)
        time.sleep(0.001)
        most.append(len(inside))
        inside.pop()
        return image

    monkeypatch.setattr(inputs, "normalise_picture", watched)
    monkeypatch.setattr(encoder, "usable_cores", lambda: 4)
    embedder.encode(images=[picture(1)] * 64)
    assert set(most) == {1}


@given(
    tokens=st.lists(st.integers(1, 50), max_size=40),
    budget=st.integers(1, 100),
    size=st.one_of(st.none(), st.integers(1, 5)),
)
def test_batches_hold_every_item_once_within_their_budget(
    tokens: list[int], budget: int, size: int | None
) -> None:
    batches = list(batches_by_cost(tokens, budget, size))
    assert sorted(place for batch in batches for place in batch) == list(range(len(tokens)))
    for batch in batches:
        assert len(batch) == 1 or sum(tokens[place] for place in batch) <= budget
        assert size is None or len(batch) <= size
    for batch, following in pairwise(batches):  # none is left with room for the next item
        assert len(batch) == size or sum(tokens[place] for place in [*batch, following[0]]) > budget


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(max_size=40),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "HSV", "YCbCr"]),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    prefix=st.sampled_from([None, *Task]),
)
def test_any_text_and_picture_gives_a_vector(
    embedder: ViPolyQwenEmbedder, text: str, mode: str, size: tuple[int, int], prefix: Task | None
) -> None:
    text = text.replace("<image>", "")
    assert np.isfinite(embedder.encode(text, images=Image.new(mode, size), prefix=prefix)).all()


def test_a_slice_of_zeros_stays_finite() -> None:
    assert np.isfinite(slice_vectors(np.array([[0.0, 0.0, 1.0]], dtype=np.float32), 2)).all()
