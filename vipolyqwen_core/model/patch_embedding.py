"""uint8 patches of one frame into the vision tower's embeddings: normalised, and both frames in one product.

A still picture repeats its frame, so the convolution over two equal frames is one product with the sum of the
two halves of its kernel: half the arithmetic, and nothing normalised or doubled crosses to the device.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FramePatchEmbed(nn.Module):
    """Takes the place of a backbone's `patch_embed`; the weights keep their names and shapes."""

    def __init__(self, patch_embed: Any, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.proj: nn.Conv3d = patch_embed.proj
        self.mean = tuple(mean)
        self.std = tuple(std)

    def forward(self, patches: Tensor) -> Tensor:
        """Embeddings of patches.

        Shapes:
            patches: [P, patch bytes] uint8
            returns: [P, embed_dim]
        """
        kernel = self.proj.weight.sum(2)
        return F.linear(self.normalise(patches).to(kernel.dtype), kernel.flatten(1), self.proj.bias)

    def normalise(self, patches: Tensor) -> Tensor:
        """Float32 values of one frame, as transformers' processor normalises them: [P, patch bytes]."""
        # by Python numbers: a tensor of them would make the device wait for the host at each chunk
        channels = patches.unflatten(1, (len(self.mean), -1)).float().unbind(1)
        normalised = [
            (channel - 255 * mean) / (255 * std)
            for channel, mean, std in zip(channels, self.mean, self.std, strict=True)
        ]
        return torch.cat(normalised, dim=1)
