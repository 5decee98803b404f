"""AdamW and its schedule. The learning rate is a function of the step, so there is no scheduler to save."""

import math

import torch
from torch import nn

from vipolyqwen_core.config import OptimizerSettings


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the parameters that learn; norms, biases and the pooling context do not decay."""
    decaying: list[nn.Parameter] = []
    constant: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decaying if decays(name, parameter) else constant).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decaying, "weight_decay": settings.weight_decay},
            {"params": constant, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter decays: a matrix that is not the pooling context."""
    return parameter.ndim >= 2 and not name.endswith("pooling.context")


def learning_rate(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Rate of a step from 0: linear warm-up to the peak, then half a cosine towards zero."""
    warmup = math.ceil(settings.warmup_share * num_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(num_steps - warmup, 1)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use this rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
