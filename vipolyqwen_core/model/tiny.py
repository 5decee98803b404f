"""The tiny backbone: Qwen2-VL's architecture and files at a size that learns on a CPU within minutes.

Its tokenizer is a byte-level BPE of Qwen2's kind, trained on texts that are given; its weights are random.
transformers loads the directory like any Qwen2-VL checkpoint, and so does everything here.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, pre_tokenizers, trainers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from vipolyqwen_core.contract import BACKBONE_FILES
from vipolyqwen_core.processing.vocabulary import (
    QWEN2_VL_SPECIAL_TOKENS,
    byte_level_tokenizer,
    decoder_entry,
    special,
    write_object,
)

VOCABULARY_SIZE: Final = 6000
"""Tokens that are learned from the texts at most, bytes included."""
SPARE_ROWS: Final = 32
"""Unused rows of the embedding table at least; the prefixes move in there."""
VERSION: Final = 1
"""Raise it when the same texts and seed give another backbone."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_backbone(directory: Path, texts: Iterable[str], seed: int = 0) -> Path:
    """Write a tiny backbone with all `BACKBONE_FILES`; the same texts and seed give the same files.

    Raises:
        ValueError: no texts
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(texts)
    _write_tokenizer(directory, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(_configuration(tokenizer))
    model.generation_config.pad_token_id = tokenizer.token_to_id("<|endoftext|>")
    shows_progress = is_progress_bar_enabled()
    disable_progress_bar()  # one for a file that is written in a moment
    model.save_pretrained(directory)
    if shows_progress:
        enable_progress_bar()
    # safetensors 0.8 makes files that nobody but their owner may read
    shutil.copymode(directory / "config.json", directory / "model.safetensors")
    write_object(directory / "preprocessor_config.json", _picture_settings())
    missing = [name for name in BACKBONE_FILES if not (directory / name).is_file()]
    assert not missing, missing
    return directory


def _train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    tokenizer = byte_level_tokenizer({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if not json.loads(tokenizer.to_str())["model"]["merges"]:
        raise ValueError("texts: there are none to learn a vocabulary from")
    tokenizer.add_special_tokens([special(token) for token in QWEN2_VL_SPECIAL_TOKENS])
    return tokenizer


def _write_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and chat_template.json."""
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer.model.save(str(directory))
    decoder = {
        str(tokenizer.token_to_id(token)): decoder_entry(special(token)) for token in QWEN2_VL_SPECIAL_TOKENS
    }
    write_object(
        directory / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
            "additional_special_tokens": list(QWEN2_VL_SPECIAL_TOKENS[1:]),
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    write_object(directory / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def _configuration(tokenizer: Tokenizer) -> Qwen2VLConfig:
    """Heads of 32 dimensions in both towers; a deviation that lets so narrow a network learn from scratch."""
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    number = {token: tokenizer.token_to_id(token) or 0 for token in QWEN2_VL_SPECIAL_TOKENS}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": -(-(size + SPARE_ROWS) // 64) * 64,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.06,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": number["<|endoftext|>"],
            "eos_token_id": number["<|im_end|>"],
        },
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "num_heads": 3,
            "mlp_ratio": 4,
            "in_channels": 3,
            "hidden_size": 128,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.06,
        },
        image_token_id=number["<|image_pad|>"],
        video_token_id=number["<|video_pad|>"],
        vision_start_token_id=number["<|vision_start|>"],
        vision_end_token_id=number["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def _picture_settings() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "min_pixels": 28 * 28,
        "max_pixels": 1024 * 28 * 28,
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 28 * 28, "longest_edge": 1024 * 28 * 28},
    }
