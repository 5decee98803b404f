"""The model: a backbone over a packed sequence, pooling by segment, a projection, unit vectors.

The backbone is transformers' Qwen2-VL, Qwen2.5-VL or Qwen3-VL; `vision.py` holds what differs.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from vipolyqwen_core.config import ModelSettings, Pooling, ProcessingSettings
from vipolyqwen_core.model.attention import SEGMENTS
from vipolyqwen_core.model.configuration import ViPolyQwenConfig, dtype_of
from vipolyqwen_core.model.patch_embedding import FramePatchEmbed
from vipolyqwen_core.model.pooling import POOLINGS, AttentionPooling, concentration, pool
from vipolyqwen_core.model.vision import (
    BACKBONE_TYPES,
    VisualTokens,
    add_visual,
    look,
    mark_windowed_layers,
)
from vipolyqwen_core.model.whole_weights import load_whole
from vipolyqwen_core.processing.packing import PackedBatch, Pictures
from vipolyqwen_core.processing.processor import HUB_ARGUMENTS, ViPolyQwenProcessor

logger = logging.getLogger(__name__)


def known_backbone(backbone: str | Path) -> PreTrainedConfig:
    """The configuration of a backbone, a directory or a hub id: one that the model is made for.

    Raises:
        ValueError: it is none of `BACKBONE_TYPES`, attends within a sliding window, or is quantised
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(backbone)
    kind = config.model_type
    if kind not in BACKBONE_TYPES:
        raise ValueError(f"backbone {backbone} is a {kind!r}; expected one of {', '.join(BACKBONE_TYPES)}")
    if "sliding_attention" in (getattr(config.get_text_config(), "layer_types", None) or ()):
        raise ValueError(f"backbone {backbone}: its sliding window is not supported; see use_sliding_window")
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method") or "some method"
        raise ValueError(
            f"backbone {backbone} is quantised ({method}), and cannot be trained: take the original"
        )
    return config


class ViPolyQwenModel(PreTrainedModel):
    """Items in, unit vectors out; an item's vector does not depend on what else is in the batch.

    The backbone may be in bfloat16; pooling, projection and norm are float32.
    """

    config: ViPolyQwenConfig
    config_class = ViPolyQwenConfig
    base_model_prefix = "vipolyqwen"
    main_input_name = "batch"
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = ["pooling", "projection"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: ViPolyQwenConfig, backbone: PreTrainedModel | None = None):
        config._attn_implementation = SEGMENTS  # packed sequences have no other; set before any layer asks
        super().__init__(config)
        shape: Any = config.backbone
        hidden_size = shape.get_text_config().hidden_size
        self.backbone: Any = backbone or AutoModel.from_config(shape, dtype=torch.get_default_dtype())
        visual: Any = self.backbone.visual
        visual.patch_embed = FramePatchEmbed(visual.patch_embed, config.image_mean, config.image_std)
        mark_windowed_layers(visual)
        if hasattr(self.backbone.language_model, "_deepstack_process"):
            self.backbone.language_model._deepstack_process = add_visual
        self.pooling: Any = POOLINGS[Pooling(config.pooling)](hidden_size, config.pooling_heads)
        self.projection = nn.Linear(hidden_size, config.embedding_dim)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path,
        settings: ModelSettings,
        processing: ProcessingSettings,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> "ViPolyQwenModel":
        """A new model on a backbone, a directory or a hub id: Qwen2-VL, Qwen2.5-VL or Qwen3-VL.

        The prefixes get spare rows of the embedding table, or new ones, with the mean of the tokens in use.
        The seed decides the projection, the one random part.

        Raises:
            ValueError: it is none of `BACKBONE_TYPES`, has a sliding window, lacks weights, or
                `pooling_heads` does not divide the hidden size
        """
        processor = ViPolyQwenProcessor.from_backbone(backbone, processing)
        known_backbone(backbone)  # or refused, before its weights are read
        pretrained = load_whole(
            AutoModel.from_pretrained,
            backbone,
            surplus_allowed=True,
            dtype=dtype,
            attn_implementation=SEGMENTS,
        )
        _add_prefix_rows(pretrained, sorted(processor.prompt.prefixes.values()))
        pretrained.config.name_or_path = Path(backbone).name  # no path of this machine in a model directory
        config = ViPolyQwenConfig.of(pretrained.config, settings, processor)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, pretrained)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what is not named here passes through
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Any:
        """A saved model, a directory or a hub id, in the precision that it was saved in.

        `dtype` asks for another precision: that is done, and logged as a warning. The other arguments are
        those of transformers.

        Raises:
            ValueError: a setting differs from that of the saved model, such as `pooling`, or a weight is
                missing, damaged, of another shape, or one that config.json has no place for
            OSError: there is no such model
        """
        where = {key: kwargs[key] for key in (*HUB_ARGUMENTS, "subfolder") if key in kwargs}
        saved = ViPolyQwenConfig.from_pretrained(pretrained_model_name_or_path, **where)
        config = kwargs.get("config")
        if isinstance(config, (str, os.PathLike)):  # a place, as transformers takes it too
            config = ViPolyQwenConfig.from_pretrained(config, **where)
        saved.check_unchanged({**(config.to_dict() if config is not None else {}), **kwargs})
        asked = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None)
        dtype = saved.saved_dtype if asked in (None, "auto") else dtype_of(asked, "dtype")
        if dtype != saved.saved_dtype:
            logger.warning(
                "%s is loaded in %s but was saved in %s: its vectors differ a little from those of training",
                *(pretrained_model_name_or_path, str(dtype).removeprefix("torch."), saved.precision),
            )
        return load_whole(
            super().from_pretrained, pretrained_model_name_or_path, *args, **{**kwargs, "dtype": dtype}
        )

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write configuration and weights, safetensors; the configuration names the backbone's precision.

        Of a model with adapters (PEFT) transformers writes those alone: what they adapt stays where it is.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
            return
        weights = self.state_dict() if state_dict is None else state_dict
        types = {
            tensor.dtype
            for name, tensor in weights.items()
            if name.startswith("backbone.") and tensor.is_floating_point()
        }
        assert len(types) == 1, types
        self.config.precision = str(types.pop()).removeprefix("torch.")
        directory = Path(save_directory)
        if is_main_process:  # transformers would leave it beside new shards, and load it in their place
            variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
            (directory / f"model{variant}.safetensors").unlink(missing_ok=True)
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if is_main_process:  # safetensors 0.8 makes files that nobody but their owner may read
            for weights_file in directory.glob("*.safetensors"):
                shutil.copymode(directory / "config.json", weights_file)

    def _init_weights(self, module: nn.Module) -> None:
        """The head. transformers asks the backbone about its own modules."""
        if isinstance(module, AttentionPooling):
            init.zeros_(module.context)
        elif module is self.projection:
            init.normal_(module.weight, std=module.in_features**-0.5)
            init.zeros_(module.bias)

    def forward(self, batch: PackedBatch, with_concentration: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The embedding of each item; on request, how far its pooling is from even (`concentration`), too.

        Shapes:
            batch: S items in T tokens
            returns: [S, D] unit rows, float32; with_concentration: these, and [S] float32
        """
        hidden = self.hidden_states(batch)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            weights = self.pooling.weights(hidden, batch.segment_ids, batch.num_items)
            pooled = pool(hidden, weights, batch.segment_ids, batch.num_items)
            projected = self.projection(pooled.to(self.projection.weight.dtype))
            vectors = F.normalize(projected.float(), dim=1)
            if not with_concentration:
                return vectors
            return vectors, concentration(weights, batch.segment_ids, batch.num_items)

    @torch.no_grad()
    def pooling_weights(self, batch: PackedBatch) -> Tensor:
        """How much each token weighs in the vector of its item, as the mean of the heads: for heat maps.

        Shapes:
            returns: [T] float32; each item's weights sum to one
        """
        hidden = self.hidden_states(batch).float()
        weights: Tensor = self.pooling.weights(hidden, batch.segment_ids, batch.num_items)
        return weights.mean(1)

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings; accelerate asks for it when it shards the model."""
        table: nn.Module = self.backbone.get_input_embeddings()
        return table

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """Final hidden states of all tokens: [T, H]."""
        embeddings = self.backbone.get_input_embeddings()(batch.input_ids)
        device = embeddings.device.type
        if torch.is_autocast_enabled(device):  # else the float32 table makes all that is added to it float32
            embeddings = embeddings.to(torch.get_autocast_dtype(device))
        deepstack = {}
        if batch.pictures is not None:
            seen = look(self.backbone.visual, batch.pictures)
            embeddings = _insert_pictures(embeddings, batch.pictures, seen)
            if seen.deepstack:
                deepstack = _behind_layers(batch.pictures, seen)
        outputs = self.backbone.language_model(
            inputs_embeds=embeddings[None],
            position_ids=batch.position_ids,
            use_cache=False,  # nothing is generated: no layer need keep its keys and values
            segments=batch.segments,
            **deepstack,
        )
        hidden: Tensor = outputs.last_hidden_state[0]
        return hidden


def _insert_pictures(embeddings: Tensor, pictures: Pictures, seen: VisualTokens) -> Tensor:
    """The embeddings with visual tokens in their places: [T, H].

    Of a dummy picture no token is taken, yet the vision tower gets gradients: zeros.
    """
    visual = seen.embeddings[: len(pictures.tokens)].to(embeddings.dtype)
    return embeddings.index_copy(0, pictures.tokens, visual)


def _behind_layers(pictures: Pictures, seen: VisualTokens) -> dict[str, Any]:
    """What Qwen3-VL's language model adds to the visual tokens behind its first layers."""
    num_tokens = len(pictures.tokens)
    return {
        "visual_pos_masks": pictures.tokens,  # for `add_visual`: no mask
        "deepstack_visual_embeds": [rows[:num_tokens] for rows in seen.deepstack],
    }


def _add_prefix_rows(backbone: Any, prefix_ids: list[int]) -> None:
    """Rows of the embedding table for the prefixes, with the mean of the rows before them."""
    table = backbone.get_input_embeddings()
    if prefix_ids[-1] >= table.num_embeddings:
        table = backbone.resize_token_embeddings(prefix_ids[-1] + 1, mean_resizing=False)
    with torch.no_grad():
        table.weight[prefix_ids] = table.weight[: prefix_ids[0]].float().mean(0).to(table.weight.dtype)
