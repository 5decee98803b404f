"""The model directory at the end of a run: gathered from all ranks, written aside by the first."""

from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from vipolyqwen_core.config import Precision, TrainingRun
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.serving.model_card import ModelFacts
from vipolyqwen_core.serving.model_directory import complete_model_directory
from vipolyqwen_core.training.ranks import is_first, together
from vipolyqwen_core.training.result import MODEL_FOLDER
from vipolyqwen_core.written_aside import written_aside

BACKBONE = "backbone."


def export_model(accelerator: Accelerator, model: nn.Module, run: TrainingRun, facts: ModelFacts) -> None:
    """Write weights, configuration, processor and card to `model/` of the run. All ranks take part.

    Args:
        facts: for the card
    Raises:
        OSError: it cannot be written, for example because the disk is full; on all ranks, in the same words
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    place = run.output / MODEL_FOLDER
    try:
        with together(OSError):
            if is_first():
                bare = accelerator.unwrap_model(model)
                processor = ViPolyQwenProcessor.from_backbone(str(run.backbone), run.recipe.processing)
                with written_aside(place) as folder:
                    bare.save_pretrained(folder, state_dict=_as_used(weights, run.recipe.training.precision))
                    processor.save_pretrained(folder)
                    complete_model_directory(folder, facts)
    except OSError as error:
        raise OSError(f"{place} could not be written: {error}; the same command tries again") from error


def _as_used(weights: dict[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """The backbone in the type of its arithmetic; the head stays float32."""
    if precision is Precision.FLOAT32:
        return weights
    return {
        name: tensor.to(torch.bfloat16)
        if name.startswith(BACKBONE) and tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }
