"""The peer of the benchmarks: sentence-transformers on the weights of a Qwen2-VL backbone.

Everything is sentence-transformers' and transformers' own (`Transformer`, `Pooling`, `Dense`, `Normalize`,
padding to the longest of a batch), with two exceptions. Their processor of Qwen2-VL wants torchvision for
videos, even for a text; `PillowProcessor` is the same class without the part for videos, over transformers'
Pillow-based image processor. And its chat template writes the prompt of this project, so that both sides see
the same ids.

    peer = build_peer(backbone, processing, projection=model.projection)
    vectors = peer.encode(["một câu", {"text": "what is it?", "image": picture}, picture])

It trains with `SentenceTransformerTrainer` and `CachedMultipleNegativesRankingLoss`, which need `datasets`; a
column of texts with pictures has the features {"text": Value("string"), "image": Image()}.
"""

from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import transformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from torch import nn
from transformers import AutoTokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vipolyqwen_core.config import ProcessingSettings

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}"
)
"""Pictures in front of the text, then the end of the item: the prompt of a single text, without a prefix."""


class PillowProcessor(Qwen2VLProcessor):
    """Qwen2-VL's processor of texts and pictures, without torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


def pillow_processor(backbone: Path, processing: ProcessingSettings) -> PillowProcessor:
    """The processor of a backbone directory within a pixel budget and a limit of tokens."""
    return PillowProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(
            backbone, min_pixels=processing.min_pixels, max_pixels=processing.max_pixels
        ),
        AutoTokenizer.from_pretrained(backbone, model_max_length=processing.max_tokens),
        CHAT_TEMPLATE,
    )


def build_peer(
    backbone: Path,
    processing: ProcessingSettings,
    projection: nn.Linear | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SentenceTransformer:
    """A `SentenceTransformer` with mean pooling on the weights of a backbone directory.

    `projection` is copied into a `Dense` behind the pooling; without one the vectors have the hidden size.
    """
    processor = pillow_processor(backbone, processing)
    with patch.object(transformer.AutoProcessor, "from_pretrained", return_value=processor):
        encoder = transformer.Transformer(str(backbone), model_kwargs={"dtype": dtype})
    modules: list[nn.Module] = [encoder, Pooling(encoder.get_embedding_dimension(), pooling_mode="mean")]
    if projection is not None:
        dense = Dense(projection.in_features, projection.out_features, activation_function=nn.Identity())
        dense.linear.load_state_dict(projection.state_dict())
        modules.append(dense.to(dtype))
    return SentenceTransformer(modules=[*modules, Normalize()], device=device)
