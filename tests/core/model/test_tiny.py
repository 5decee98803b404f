"""The tiny backbone is a Qwen2-VL checkpoint like any other."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vipolyqwen_core.contract import BACKBONE_FILES, Task
from vipolyqwen_core.model.tiny import build_tiny_backbone
from vipolyqwen_core.processing.vocabulary import QWEN2_VL_SPECIAL_TOKENS, read_vocabulary


def test_all_files_are_there(tiny_backbone: Path) -> None:
    assert {path.name for path in tiny_backbone.iterdir()} == set(BACKBONE_FILES)


def test_weights_are_as_readable_as_their_configuration(tiny_backbone: Path) -> None:
    modes = {path.name: oct(path.stat().st_mode) for path in tiny_backbone.iterdir()}
    assert set(modes.values()) == {modes["config.json"]}, modes


def test_transformers_loads_and_runs_it(tiny_backbone: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    model, info = Qwen2VLForConditionalGeneration.from_pretrained(tiny_backbone, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "xin chào"}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images = Qwen2VLImageProcessorPil.from_pretrained(tiny_backbone)(
        Image.new("RGB", (56, 28)), return_tensors="pt"
    )
    ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * 2), return_tensors="pt")["input_ids"]
    kinds = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=kinds, **images).logits
    assert logits.shape == (1, ids.shape[1], model.config.text_config.vocab_size)
    assert logits.isfinite().all()
    assert text.endswith("xin chào<|im_end|>\n<|im_start|>assistant\n")


def test_special_tokens_and_prefixes_have_rows(tiny_backbone: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_backbone)
    vocabulary = read_vocabulary(tiny_backbone)
    size = vocabulary.text_tokenizer.get_vocab_size()
    expected = [size + number for number in range(len(QWEN2_VL_SPECIAL_TOKENS))]
    assert [vocabulary.special_ids[token] for token in QWEN2_VL_SPECIAL_TOKENS] == expected
    assert config.image_token_id == vocabulary.special_ids["<|image_pad|>"]
    assert set(vocabulary.prefix_ids) == set(Task)
    assert max(vocabulary.prefix_ids.values()) < config.text_config.vocab_size


def test_the_same_texts_and_seed_give_the_same_files(tmp_path: Path) -> None:
    texts = ["một hai ba bốn năm", "one two three"]
    folders = [build_tiny_backbone(tmp_path / name, texts, seed=3) for name in ("a", "b")]
    for name in BACKBONE_FILES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    other = build_tiny_backbone(tmp_path / "c", texts, seed=4)
    assert (other / "model.safetensors").read_bytes() != (folders[0] / "model.safetensors").read_bytes()


def test_no_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="texts"):
        build_tiny_backbone(tmp_path, [])
