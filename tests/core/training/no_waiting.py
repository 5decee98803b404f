"""Forward, losses and backward on an imagined device: `python -m tests.core.training.no_waiting BACKBONE`.

Tensors are fake, with shapes and devices but without values. An operation that mixes host and device
raises, and so does each one that would have to wait for the device to know a value or a shape.
"""

import sys

import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from vipolyqwen_core.config import ModelSettings, ObjectiveSettings, Pooling, ProcessingSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.model import attention
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.objectives.cached_gradients import cached_gradients
from vipolyqwen_core.objectives.negatives import gather
from vipolyqwen_core.objectives.pairs import PairKeys, pair_keys, split_vectors
from vipolyqwen_core.objectives.routing import compute_losses
from vipolyqwen_core.processing.packing import Segments, _moved, pack
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor

DEVICE = "imagined"


def imagined(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and type on the device; to be called in fake mode."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)


def take_kernels_place(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
) -> Tensor:
    """Stands for the kernel: it wants one half type and boundaries on the device."""
    assert query.dtype == key.dtype == value.dtype == torch.bfloat16, (query.dtype, key.dtype, value.dtype)
    assert segments.cu_seqlens.device == query.device, segments.cu_seqlens.device
    group = query.shape[1] // key.shape[1]
    return query * key.repeat_interleave(group, 1) + value.repeat_interleave(group, 1)


def train_on_a_chunk(backbone: str, pooling: Pooling) -> None:
    """Forward, losses with hard negatives and Matryoshka slices, backward; and the losses of a whole step."""
    processing = ProcessingSettings()
    processor = ViPolyQwenProcessor.from_backbone(backbone, processing)
    settings = ModelSettings(embedding_dim=64, pooling=pooling)
    model = ViPolyQwenModel.from_backbone(backbone, settings, processing, dtype=torch.bfloat16)
    picture = Image.new("RGB", (100, 80))
    items = [Item("xin chào", ()), Item("<image> gì", (picture,)), Item("một", ()), Item("hai", ())]
    items += [Item("ba", ()), Item("bốn", ())]
    batch = pack(processor.encode_batch(items), processor.layout)
    assert batch.pictures is not None
    # the one host tensor that transformers reads is the length of all patches; fake ones can't be read
    num_patches, tolist = batch.num_patches, FakeTensor.tolist
    FakeTensor.tolist = lambda self: [num_patches] if self.device.type == "cpu" else tolist(self)  # type: ignore[assignment]
    keys = pair_keys(
        [Task.TEXT_PAIR, Task.OCR], [1, 2], [3, 4], scores=[0.8, None], negative_hashes=[[], [5, 6]]
    )
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(imagined(parameter)))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, imagined(buffer))
        packed = _moved(batch, imagined)
        vectors, concentration = model(packed, with_concentration=True)
        on_device = PairKeys(**{name: imagined(key) for name, key in vars(keys).items()})
        pairs = split_vectors(vectors, on_device, concentration)
        settings = ObjectiveSettings(pooling_entropy_weight=0.1)
        losses = compute_losses(pairs, gather(pairs), settings, num_step_pairs=2, matryoshka_dims=(32,))
        losses.total.backward()
        cached, gradient = cached_gradients(pairs, settings, num_step_pairs=2)
    assert cached.total.device.type == gradient.query.device.type == DEVICE
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without, without
    assert losses.terms.sums.device.type == DEVICE


def main(backbone: str) -> None:
    """A chunk's work with each kind of pooling."""
    _setup_privateuseone_for_python_backend(DEVICE)
    torch.get_device_module(DEVICE).get_amp_supported_dtype = lambda: [torch.bfloat16]
    attention.attend = take_kernels_place
    for pooling in Pooling:
        train_on_a_chunk(backbone, pooling)


if __name__ == "__main__":
    main(sys.argv[1])
