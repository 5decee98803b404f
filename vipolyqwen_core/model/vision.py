"""The vision tower over the patches of all pictures at once, and what each family of backbones does there.

    Qwen2-VL      patches attend to all of their picture
    Qwen2.5-VL    so do they in a few layers; in the others to their window of the picture, of 8 x 8 patches,
                  and the rows of a window stand together
    Qwen3-VL      patches have learned positions besides, resampled to the grid of each picture, and features
                  of some layers are added to the first layers of the language model

transformers' classes compute it. They are told here what they would compute from lengths: they get all
patches as one sequence, and `segment_attention` gets the segments.
"""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_window_index

from vipolyqwen_core.processing.packing import Pictures, Segments, to_device

BACKBONE_TYPES: Final = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""`model_type` of the backbones that are supported."""


class VisualTokens(NamedTuple):
    """What the language model gets to see of the pictures."""

    embeddings: Tensor
    """[V, H] one row a visual token."""
    deepstack: tuple[Tensor, ...]
    """[V, H] each: what is added to the visual tokens behind the first layers; empty but for Qwen3-VL."""


def mark_windowed_layers(visual: nn.Module) -> None:
    """Tell the attention of each layer whether it looks at windows; `segment_attention` asks for it."""
    everywhere = getattr(visual.config, "fullatt_block_indexes", None)
    for number, block in enumerate(visual.blocks):  # type: ignore[arg-type]
        block.attn.windowed = everywhere is not None and number not in everywhere


def look(visual: Any, pictures: Pictures) -> VisualTokens:
    """The visual tokens of all pictures, those of a dummy included."""
    num_patches = len(pictures.patches)
    everything = torch.tensor([0, num_patches], dtype=torch.int32, device="cpu")
    arguments: dict[str, Any] = {
        "position_ids": pictures.position_ids,
        "cu_seqlens": everything,
        "max_seqlen": num_patches,
        "segments": pictures.segments,
    }
    if hasattr(visual, "window_size"):
        order, bounds = get_vision_window_index(
            pictures.grid, visual.spatial_merge_size, visual.window_size, visual.patch_size
        )
        arguments |= {
            "window_index": to_device(order, pictures.patches.device),
            "cu_window_seqlens": everything,
            "windows": Segments.of(bounds.diff().tolist(), pictures.patches.device),
        }
    if hasattr(visual, "num_grid_per_side"):
        places, weights = get_vision_interpolation_indices_and_weights(
            pictures.grid.to(pictures.patches.device),
            visual.num_grid_per_side,
            visual.interpolation_mode,
            visual.interpolation_align_corners,
            visual.spatial_merge_size,
        )
        arguments |= {"interp_indices": places, "interp_weights": weights}
    seen = visual(pictures.patches, grid_thw=pictures.grid, **arguments)
    return VisualTokens(seen.pooler_output, tuple(getattr(seen, "deepstack_features", ())))


def add_visual(hidden: Tensor, places: Tensor, visual: Tensor) -> Tensor:
    """The hidden states with something added to the visual tokens.

    transformers does it by a mask, whose number of tokens the host would wait for, twice a layer.

    Shapes:
        hidden: [1, T, H]; places: [V] int64, each once; visual: [V, H]
        returns: [1, T, H]
    """
    return hidden.index_add(1, places, visual[None].to(hidden.dtype))
