"""How processes share the model: accelerate, set up as the settings say, and held to it."""

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.parallel import DistributedDataParallel

from vipolyqwen_core.config import Distribution, Precision, TrainingSettings
from vipolyqwen_core.model.modeling import ViPolyQwenModel


def meet() -> None:
    """Wait for the other ranks that were launched. The mode that they train in is not looked at yet."""
    PartialState(cpu=not torch.cuda.is_available())


def start_accelerator(settings: TrainingSettings) -> Accelerator:
    """accelerate in the mode that the settings ask for.

    Raises:
        ValueError: the processes that were launched are not those of the settings
    """
    plugin = None
    if settings.distribution is Distribution.FSDP2:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=True,
            auto_wrap_policy="transformer_based_wrap",
            mixed_precision_policy=_precision_policy(settings.precision),
            state_dict_type="SHARDED_STATE_DICT",
            cpu_ram_efficient_loading=False,
        )
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), fsdp_plugin=plugin)
    num_processes, mode = accelerator.num_processes, _mode(accelerator)
    expected_mode = settings.distribution
    if settings.distribution is Distribution.DATA_PARALLEL and num_processes == 1:
        expected_mode = Distribution.NONE
    if expected_mode is Distribution.FSDP2 and num_processes == settings.processes == 1:
        raise ValueError("one process shares the model with no other: set training.distribution to 'none'")
    if mode is not expected_mode or num_processes % settings.processes:
        advice = "launch by `vipolyqwen train`, or as USAGE.md says"
        if expected_mode is Distribution.FSDP2 and not torch.cuda.is_available():
            advice = "fsdp2 needs GPUs, and torch sees none here; data_parallel needs none"
        raise ValueError(
            f"the settings ask for {settings.processes} processes with {settings.distribution.value}, but "
            f"{num_processes} run with {mode.value if mode else accelerator.distributed_type}: {advice}"
        )
    return accelerator


def shard_ends(model: ViPolyQwenModel, settings: TrainingSettings) -> None:
    """Under FSDP2, make units of what accelerate would put where it does not belong.

    Pooling and projection compute in float32: accelerate has one precision for all units, and vectors rounded
    to bfloat16 would blur their cosines. The norm behind the last layer would share a unit with the ends of
    the vision tower, which leaves out chunks of texts alone: then some gradients of the unit are sums in
    float32 and others new ones in bfloat16, which FSDP2 refuses. Call it before the optimizer is built:
    parameters are replaced.
    """
    if settings.distribution is Distribution.FSDP2:
        head = [part for part in (model.pooling, model.projection) if list(part.parameters())]
        fully_shard(head, mp_policy=MixedPrecisionPolicy(), reshard_after_forward=False)
        register_fsdp_forward_method(model.pooling, "weights")
        norm, policy = model.backbone.language_model.norm, _precision_policy(settings.precision)
        fully_shard(norm, mp_policy=policy, reshard_after_forward=False)


def check_wrapped(model: nn.Module, settings: TrainingSettings, num_processes: int) -> None:
    """Assert that the model was wrapped as asked: FSDP that is really something else must not go on."""
    if settings.distribution is Distribution.FSDP2:
        assert isinstance(model, FSDPModule), type(model)
    elif settings.distribution is Distribution.DATA_PARALLEL and num_processes > 1:
        assert isinstance(model, DistributedDataParallel), type(model)
    else:
        assert not isinstance(model, FSDPModule | DistributedDataParallel), type(model)


def autocast_type(settings: TrainingSettings) -> torch.dtype | None:
    """Type that the engine casts to; None where FSDP2 casts by itself, or where all is float32."""
    casts = settings.precision is Precision.BFLOAT16 and settings.distribution is not Distribution.FSDP2
    return torch.bfloat16 if casts else None


def _mode(accelerator: Accelerator) -> Distribution | None:
    if accelerator.distributed_type == DistributedType.NO:
        return Distribution.NONE
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.is_fsdp2:
        return Distribution.FSDP2
    if accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        return Distribution.DATA_PARALLEL
    return None


def _precision_policy(precision: Precision) -> MixedPrecisionPolicy:
    """Gathered weights and activations in bfloat16; shards, gradients' sums and the optimizer in float32.

    Inputs stay as they are: the rotary tables of the vision tower are float32, as in one process.
    """
    if precision is Precision.BFLOAT16:
        return MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return MixedPrecisionPolicy()
