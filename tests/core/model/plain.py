"""Items of every kind, and their vectors from transformers' plain classes over one item alone."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModel

from vipolyqwen_core.config import ModelSettings, Pooling, ProcessingSettings
from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.patches import PatchLayout
from vipolyqwen_core.processing.processor import EncodedItem, Item, ViPolyQwenProcessor

DIM = 48


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixel_values(patches: np.ndarray, layout: PatchLayout) -> np.ndarray:
    """What transformers' processor makes of the same pictures: normalised, each frame repeated."""
    channels = patches.reshape(len(patches), 3, 1, -1).astype(np.float32) / np.float32(255)
    mean, deviation = (
        np.asarray(values, dtype=np.float32).reshape(1, 3, 1, 1)
        for values in (layout.image_mean, layout.image_std)
    )
    frames = np.repeat((channels - mean) / deviation, layout.temporal_patch_size, axis=2)
    return frames.reshape(len(patches), -1)


ITEMS = (
    Item(""),  # one token
    Item("xin chào thế giới, hôm nay trời đẹp"),
    Item("<image>", (picture(56, 84, 1),)),
    Item("<image><image> so <image> sánh <image>", tuple(picture(28 * n, 56, n) for n in range(1, 5))),
    Item("What is the total?", prefix=Task.TEXT_PAIR),
    Item(
        "và <image>?", (picture(28, 28, 7),), (Turn("user", "gì?"), Turn("assistant", "ô")), Task.VQA_SINGLE
    ),
    Item("收据的总额是多少 " * 12),
    Item("x"),
)


def randomised(model: ViPolyQwenModel) -> ViPolyQwenModel:
    """Weights of the head as after some training: a new context vector is zero."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.startswith("pooling") or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def build(backbone: Path, processing: ProcessingSettings, pooling: Pooling) -> ViPolyQwenModel:
    settings = ModelSettings(pooling=pooling, pooling_heads=4, embedding_dim=DIM)
    return randomised(ViPolyQwenModel.from_backbone(backbone, settings, processing))


def vectors(
    model: ViPolyQwenModel, items: list[EncodedItem], processor: ViPolyQwenProcessor | None = None
) -> Tensor:
    """Vectors of one packed batch; patches are those of Qwen2-VL unless a processor says otherwise."""
    with torch.no_grad():
        embedded: Tensor = model(pack(items, processor.layout) if processor else pack(items))
    return embedded


def plain_vectors(
    model: ViPolyQwenModel, backbone: Path, processor: ViPolyQwenProcessor, items: list[EncodedItem]
) -> Tensor:
    """The same weights in transformers' plain class with its own masks and positions, item by item.

    The parameters are those of the model: gradients of these vectors reach them.
    """
    plain = AutoModel.from_pretrained(backbone, attn_implementation="eager")
    plain.load_state_dict(model.backbone.state_dict(keep_vars=True), assign=True)
    rows = []
    for item in items:
        ids = torch.from_numpy(item.input_ids)[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if item.patches is not None:
            inputs["pixel_values"] = torch.from_numpy(pixel_values(item.patches, processor.layout))
            inputs["image_grid_thw"] = torch.tensor(item.image_grid)
            inputs["mm_token_type_ids"] = (ids == plain.config.image_token_id).int()
        hidden = plain(**inputs).last_hidden_state[0]
        if model.config.pooling == Pooling.MEAN:
            pooled = hidden.mean(0)
        elif model.config.pooling == Pooling.LAST:
            pooled = hidden[-1]
        else:
            context = model.pooling.context
            slices = hidden.split(context.shape[1], dim=1)
            parts = [(s @ c).softmax(0) @ s for s, c in zip(slices, context, strict=True)]
            pooled = torch.cat(parts)
        rows.append(F.normalize(model.projection(pooled), dim=0))
    return torch.stack(rows)
