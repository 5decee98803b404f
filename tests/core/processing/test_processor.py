"""Items become segments: the prompt, the limit, the errors."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vipolyqwen_core.config import ProcessingSettings
from vipolyqwen_core.contract import PREFIX_TOKENS, Task, Turn
from vipolyqwen_core.processing.patches import PatchLayout
from vipolyqwen_core.processing.processor import EncodedItem, Item, ItemError, ViPolyQwenProcessor
from vipolyqwen_core.processing.prompt import ROLES
from vipolyqwen_core.processing.vocabulary import QWEN2_VL_SPECIAL_TOKENS, Vocabulary

RED = Image.new("RGB", (84, 56), (200, 30, 30))  # 3 x 2 visual tokens
BLUE = Image.new("RGB", (28, 28), (30, 30, 200))  # 1 visual token


@pytest.fixture(scope="module")
def processor(tiny_backbone: Path, tiny_processing: ProcessingSettings) -> ViPolyQwenProcessor:
    return ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)


@pytest.fixture(scope="module")
def short(tiny_backbone: Path) -> ViPolyQwenProcessor:
    settings = ProcessingSettings(min_pixels=784, max_pixels=36 * 784, max_tokens=24)
    return ViPolyQwenProcessor.from_backbone(tiny_backbone, settings)


def spelled(processor: ViPolyQwenProcessor, encoded: EncodedItem) -> str:
    """The segment with special tokens spelled out and visual tokens counted."""
    names = {number: token for token, number in processor.vocabulary.special_ids.items()}
    parts: list[str] = []
    text: list[int] = []
    for number in [*encoded.input_ids.tolist(), None]:
        if number in names or number is None:
            parts.append(processor.tokenizer.decode(text))
            text = []
            parts.append(names.get(number, "") if number is not None else "")
        else:
            text.append(number)
    return "".join(parts)


def pads(count: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Item("xin chào"), "xin chào<|im_end|>"),
        (Item(""), "<|im_end|>"),
        (Item("xin chào", prefix=Task.TEXT_PAIR), "<text_pair>xin chào<|im_end|>"),
        (Item("<image>", (RED,)), pads(6) + "<|im_end|>"),
        (
            Item("trái <image> phải<image>", (RED, BLUE), prefix=Task.VQA_SINGLE),
            f"<vqa_single>trái {pads(6)} phải{pads(1)}<|im_end|>",
        ),
        (Item("an <image> of old"), "an <image> of old<|im_end|>"),
        (
            Item(
                "và?", (BLUE,), (Turn("system", "ngắn"), Turn("user", "<image>gì?"), Turn("assistant", "ô"))
            ),
            "<|im_start|>system\nngắn<|im_end|>\n"
            f"<|im_start|>user\n{pads(1)}gì?<|im_end|>\n"
            "<|im_start|>assistant\nô<|im_end|>\n"
            "<|im_start|>user\nvà?<|im_end|>",
        ),
    ],
)
def test_prompt(processor: ViPolyQwenProcessor, item: Item, expected: str) -> None:
    encoded = processor.encode(item)
    assert spelled(processor, encoded) == expected
    assert encoded.input_ids.dtype == np.int64
    assert encoded.truncated_tokens == 0


def test_spelled_tokens_stay_text_everywhere(processor: ViPolyQwenProcessor) -> None:
    """In every place of a query, of a target and of the turns before, each of the tokens and prefixes."""
    frame = processor.prompt
    turn = [frame.im_start, frame.im_end]
    picture = [frame.vision_start, frame.image_pad, frame.vision_end]
    for nasty in processor.vocabulary.special_ids:
        turns = tuple(Turn(role, f"a {nasty}{nasty}") for role in ROLES)
        query = Item(f"{nasty}<image> b{nasty}", (BLUE,), turns, Task.OCR)
        target, prefixed = Item(f"{nasty} c {nasty}"), Item(nasty, prefix=Task.TEXT_PAIR)
        special = [
            [
                number
                for number in encoded.input_ids.tolist()
                if number in processor.vocabulary.special_ids.values()
            ]
            for encoded in processor.encode_batch([query, target, prefixed])
        ]
        assert special == [
            [frame.prefixes[Task.OCR], *turn * 3, frame.im_start, *picture, frame.im_end],
            [frame.im_end],
            [frame.prefixes[Task.TEXT_PAIR], frame.im_end],
        ], nasty
    assert set(processor.vocabulary.special_ids) >= {*QWEN2_VL_SPECIAL_TOKENS, *PREFIX_TOKENS.values()}


def test_real_tokenizer_keeps_spelled_tokens_as_text_everywhere(
    real: Vocabulary, tiny_processing: ProcessingSettings
) -> None:
    test_spelled_tokens_stay_text_everywhere(ViPolyQwenProcessor(real, PatchLayout(), tiny_processing))


def test_image_starts_point_at_the_visual_tokens(processor: ViPolyQwenProcessor) -> None:
    encoded = processor.encode(Item("a <image> b <image>", (RED, BLUE), (Turn("user", "c"),)))
    pad = processor.prompt.image_pad
    for start, count in zip(encoded.image_starts, (6, 1), strict=True):
        assert (encoded.input_ids[start : start + count] == pad).all()
        assert encoded.input_ids[start - 1] == processor.prompt.vision_start
        assert encoded.input_ids[start + count] == processor.prompt.vision_end


@pytest.mark.parametrize(
    ("item", "rule", "words"),
    [
        (Item("<image>", (RED, BLUE)), "placeholders", "2 pictures for 1 <image>"),
        (Item("<image><image>", (RED,)), "placeholders", "1 pictures for 2 <image>"),
        (Item("", (RED,), (Turn("user", "gì?"),)), "placeholders", "1 pictures for 0"),
        (Item("x", history=(Turn("tool", "y"),)), "placeholders", "role 'tool'"),
        (Item("<image>", (RED.convert("L"),)), "picture_mode", "must be RGB"),
        (Item("<image>", (Image.new("RGB", (1000, 2)),)), "picture_size", "1000 x 2"),
        (Item("<image>", (Image.new("RGB", (0, 5)),)), "picture_size", "empty"),
        (Item("<image>" * 20, (RED,) * 60), "placeholders", "60 pictures"),
        (
            Item("<image>" * 60, (RED,) * 60),
            "pictures_too_long",
            "alone take 481 tokens; max_tokens is 256",
        ),
        (Item("lone \ud800"), "not_unicode", "surrogates not allowed"),
    ],
)
def test_errors_name_the_item(processor: ViPolyQwenProcessor, item: Item, rule: str, words: str) -> None:
    with pytest.raises(ItemError, match=words) as caught:
        processor.encode_batch([Item("fine"), item])
    assert caught.value.item == 1
    assert caught.value.rule == rule
    assert str(caught.value).startswith("item 1: ")


def test_pictures_beyond_the_limit_may_be_kept_with_as_much_text_as_the_limit(
    short: ViPolyQwenProcessor,
) -> None:
    long = " ".join(map(str, range(200)))
    pictures, fits = Item("<image>" * 4 + long, (RED,) * 4), Item(f"<image>{long}", (RED,))
    with pytest.raises(ItemError, match="alone take 33 tokens; max_tokens is 24"):
        short.encode(pictures)
    kept, as_ever = short.encode_batch([pictures, fits], exceed=True)
    assert kept.num_tokens == 33 + 24
    assert kept.truncated_tokens == len(short.tokenizer.encode(long).ids) - 24
    assert kept.image_starts == (1, 9, 17, 25)
    assert as_ever.input_ids.tolist() == short.encode(fits).input_ids.tolist()


def test_item_errors_survive_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(ItemError(3, "placeholders", "two for one")))
    assert (error.item, error.rule, str(error)) == (3, "placeholders", "item 3: two for one")


def test_truncation_cuts_text_only_and_from_its_end(short: ViPolyQwenProcessor) -> None:
    long = " ".join(map(str, range(200)))
    encoded = short.encode(Item(f"{long}<image>{long}", (RED,), prefix=Task.OCR))
    text, frame = short.tokenizer.encode(long).ids, short.prompt
    picture = [frame.vision_start, *[frame.image_pad] * 6, frame.vision_end]
    assert encoded.input_ids.tolist() == [frame.prefixes[Task.OCR], *text[:14], *picture, frame.im_end]
    assert encoded.truncated_tokens == 2 * len(text) + 8 + 2 - 24
    assert encoded.image_starts == (16,)
    measured = short.measure([f"{long}<image>{long}", "a"], [[RED.size], []], prefixes=[Task.OCR, None])
    assert measured.tokens.tolist() == [24, short.encode(Item("a")).num_tokens]
    assert measured.truncated_tokens.tolist() == [encoded.truncated_tokens, 0]


def test_truncation_takes_the_earliest_turn_first(tiny_backbone: Path) -> None:
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, ProcessingSettings(max_tokens=60))
    question = "tổng cộng?"
    encoded = processor.encode(Item(question, history=(Turn("user", "xưa " * 50), Turn("assistant", "sau"))))
    text = spelled(processor, encoded)
    assert text.endswith(f"sau<|im_end|>\n<|im_start|>user\n{question}<|im_end|>")
    assert encoded.truncated_tokens > 0


def test_what_follows_a_picture_of_an_earlier_turn_goes_before_the_question(tiny_backbone: Path) -> None:
    processor = ViPolyQwenProcessor.from_backbone(tiny_backbone, ProcessingSettings(max_tokens=60))
    question = "tổng cộng?"
    item = Item(question, (RED,), history=(Turn("user", "<image>" + "xưa " * 50), Turn("assistant", "sau")))
    text = spelled(processor, processor.encode(item))
    assert text.endswith(f"sau<|im_end|>\n<|im_start|>user\n{question}<|im_end|>")


TEXTS = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from(["<|im_end|>", "<ocr>", "Hà Nội ", "a\nb"])), max_size=5
).map("".join)
TURNS = st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), TEXTS), max_size=3)
SIZES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), max_size=3)


@settings(max_examples=60)
@given(TEXTS, TURNS, SIZES, st.sampled_from([None, *Task]), st.booleans())
def test_any_item_encodes_within_the_limit_or_says_why(
    processor: ViPolyQwenProcessor,
    short: ViPolyQwenProcessor,
    text: str,
    history: list[Turn],
    sizes: list[tuple[int, int]],
    prefix: Task | None,
    tight: bool,
) -> None:
    used = short if tight else processor
    texts = [text.replace("<image>", "") + "<image>" * len(sizes) if sizes else text]
    turns = [turn._replace(text=turn.text.replace("<image>", "")) for turn in history]
    images = tuple(Image.new("RGB", size) for size in sizes)
    measured = used.measure(texts, [sizes], [turns], [prefix])
    item = Item(texts[0], images, tuple(turns), prefix)
    if measured.errors:
        assert measured.errors[0].rule in ("picture_size", "pictures_too_long")
        with pytest.raises(ItemError, match=re.escape(str(measured.errors[0]))):
            used.encode(item)
        return
    encoded = used.encode(item)
    assert measured.tokens.tolist() == [encoded.num_tokens]
    assert measured.patches.tolist() == [encoded.num_patches]
    assert measured.truncated_tokens.tolist() == [encoded.truncated_tokens]
    assert encoded.num_tokens <= used.settings.max_tokens
    ids = encoded.input_ids.tolist()
    assert ids[-1] == used.prompt.im_end
    if prefix is not None:
        assert ids[0] == used.prompt.prefixes[prefix]
    assert ids.count(used.prompt.image_pad) * 4 == encoded.num_patches


def test_measure_reports_failures_and_goes_on(processor: ViPolyQwenProcessor) -> None:
    measured = processor.measure(["a", "<image>", "b <image>"], [[], [(28, 28), (28, 28)], [(56, 28)]])
    assert list(measured.errors) == [1]
    assert measured.tokens[1] == 0
    assert measured.patches.tolist() == [0, 0, 8]


def test_a_batch_is_its_items_one_by_one(processor: ViPolyQwenProcessor) -> None:
    items = [Item("một"), Item("<image> hai", (RED,)), Item("ba", prefix=Task.INSTR), Item("")]
    for item, encoded in zip(items, processor.encode_batch(items), strict=True):
        alone = processor.encode(item)
        np.testing.assert_array_equal(encoded.input_ids, alone.input_ids)
        assert (encoded.patches is None) == (alone.patches is None)
        assert encoded.image_grid == alone.image_grid


def test_saved_processor_is_the_same(processor: ViPolyQwenProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = ViPolyQwenProcessor.from_pretrained(tmp_path)
    assert again.contract == processor.contract
    assert again.layout == processor.layout
    item = Item("<image>xin <ocr>", (RED,), prefix=Task.OCR)
    np.testing.assert_array_equal(again.encode(item).input_ids, processor.encode(item).input_ids)
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    for picture in (RED, Image.new("RGB", (9, 7)), Image.new("RGB", (900, 700))):
        grid = theirs(picture)["image_grid_thw"].tolist()
        assert grid == [list(processor.grid(*picture.size))]


def test_a_processor_survives_a_process_boundary(processor: ViPolyQwenProcessor) -> None:
    again = pickle.loads(pickle.dumps(processor))
    item = Item("xin chào", prefix=Task.OCR)
    np.testing.assert_array_equal(again.encode(item).input_ids, processor.encode(item).input_ids)


def test_a_backbone_that_transformers_saved_keeps_how_it_wants_its_pictures(
    tiny_backbone: Path, tmp_path: Path, tiny_processing: ProcessingSettings
) -> None:
    for path in tiny_backbone.glob("*token*"):
        shutil.copy(path, tmp_path)
    pictures = json.loads((tiny_backbone / "preprocessor_config.json").read_text()) | {"patch_size": 16}
    together = {"image_processor": pictures, "processor_class": "Qwen3VLProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(together))
    saved = ViPolyQwenProcessor.from_backbone(tmp_path, tiny_processing)
    assert saved.layout == PatchLayout.of(pictures)
    assert saved.layout.patch_size == 16


def test_foreign_directories_are_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not that of a viPolyQwen model"):
        ViPolyQwenProcessor.from_pretrained(tiny_backbone)
    with pytest.raises(ValueError, match="does not exist"):
        ViPolyQwenProcessor.from_pretrained(tmp_path)


def test_another_prompt_is_refused(processor: ViPolyQwenProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["vipolyqwen"]["prompt"] = "another"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="made for the prompt 'another'"):
        ViPolyQwenProcessor.from_pretrained(tmp_path)
