"""The configuration of a viPolyQwen model: its backbone, its head, and the contract of its inputs."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from vipolyqwen_core.config import ModelSettings, Pooling
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor

FIXED: Final = (
    "pooling",
    "pooling_heads",
    "embedding_dim",
    "matryoshka_dims",
    "image_mean",
    "image_std",
    "contract",
)
"""Settings that decide what a vector means: a saved model has them, and who loads it cannot choose others."""


class ViPolyQwenConfig(PreTrainedConfig):
    """What config.json of a model directory says."""

    model_type = "vipolyqwen"
    sub_configs_defaults = {"backbone": SubConfigSpec(config_class=AutoConfig, model_type="qwen2_vl")}  # noqa: RUF012

    backbone: dict[str, Any] | PreTrainedConfig | None = None
    """Configuration of the model inside: Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""
    pooling: str = Pooling.ATTENTION.value
    """A value of `Pooling`."""
    pooling_heads: int = 8
    """Context vectors of `multi_head_attention`."""
    embedding_dim: int = 1024
    """Dimension of the embedding."""
    matryoshka_dims: list[int] | tuple[int, ...] = ()
    """Shorter slices that were trained as embeddings too."""
    image_mean: list[float] | tuple[float, ...] = ()
    """Mean of each channel, by which the model normalises."""
    image_std: list[float] | tuple[float, ...] = ()
    """Deviation of each channel."""
    contract: dict[str, Any] | None = None
    """What the processor must do for vectors to mean what they meant in training: prompt, prefix ids, pixel
    budget, limit of tokens."""
    precision: str = "float32"
    """Type of the backbone's arithmetic, in which it was saved: float32, bfloat16 or float16."""

    @classmethod
    def of(
        cls, backbone: PreTrainedConfig, settings: ModelSettings, processor: ViPolyQwenProcessor
    ) -> "ViPolyQwenConfig":
        """The configuration of a new model."""
        return cls(
            backbone=backbone,
            pooling=settings.pooling.value,
            pooling_heads=settings.pooling_heads,
            embedding_dim=settings.embedding_dim,
            matryoshka_dims=list(settings.matryoshka_dims),
            image_mean=list(processor.layout.image_mean),
            image_std=list(processor.layout.image_std),
            contract=processor.contract,
        )

    @property
    def saved_dtype(self) -> torch.dtype:
        """`precision` as torch names it.

        Raises:
            ValueError: torch knows no such precision
        """
        return dtype_of(self.precision, "precision of config.json")

    def check_unchanged(self, given: Mapping[str, Any]) -> None:
        """Refuse settings that differ from those of this saved model.

        Raises:
            ValueError: names the setting and both values
        """
        for key in FIXED:
            saved = getattr(self, key)
            if key in given and _comparable(given[key]) != _comparable(saved):
                raise ValueError(f"{key} {given[key]!r}: the model was trained with {saved!r}")

    def check_processor(self, processor: ViPolyQwenProcessor) -> None:
        """Refuse a processor that the model was not trained with.

        Raises:
            ValueError: names the setting and both values
        """
        for key, expected in (self.contract or {}).items():
            if (given := processor.contract.get(key)) != expected:
                raise ValueError(
                    f"the processor's {key} is {given!r}, but the model was trained with {expected!r}"
                )


def dtype_of(value: torch.dtype | str, setting: str) -> torch.dtype:
    """A type that torch knows, by itself or by its name.

    Raises:
        ValueError: no such type of floating point numbers; names the setting
    """
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise ValueError(f"{setting} {value!r}: expected float32, bfloat16 or float16")
    return dtype


def _comparable(value: Any) -> Any:
    """A list is as good as a tuple."""
    return list(value) if isinstance(value, tuple) else value
