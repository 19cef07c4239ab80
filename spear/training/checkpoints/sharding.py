"""Parameters, gradients and optimiser state spread over the processes: torch's FSDP2.

With DDP every process holds a whole model; here it holds the whole of one layer at a time, and of
everything else a share. The course of a run is DDP's: the same batches, the same average of
gradients over processes. Files are DDP's too. They are gathered on rank 0's CPU before they are
written and cut up after they are read, so either kind of run goes on with the other's checkpoint.

What differs for a training loop:

    shard_model(model, ranks)            instead of wrapping it, before the optimiser is built
    finish_gradients(model, ranks)       after the last backward pass of a step
    gathered(model)                      around forward passes whose number differs by process
    gather_on_main(state, ranks)                 before saving; every process calls it
    shard_like(loaded, model.state_dict())    after loading

`ScaledAdam` and `RunningAverage` work on shards as they are; the average is then updated by every
process, not by rank 0 alone.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spear.errors import ConfigError
from spear.optim.shards import is_sharded, local, local_part, sharded_like
from spear.system.distributed import Ranks


def shard_model(model: nn.Module, ranks: Ranks, bf16: bool = False) -> None:
    """Spreads a model over all processes, in place: every unit that it names, then the rest.

    Units are the modules whose class has `is_shard_unit`: what is put together at one time.

    Rank 0's weights count. Names do not change, parameters do: they become DTensors, cut along
    dimension 0, and an optimiser is to be built after this. Parameters without dimensions (the
    scales of the norms) cannot be cut; every process keeps them.

    Args:
        model: On the device of `ranks` already.
        ranks: The processes of the run.
        bf16: Whether weights travel to where they are needed as bfloat16, for a model that runs
            under autocast; gradients travel, and weights are kept and updated, as float32.

    Raises:
        ConfigError: There is one process only, so that there is nothing to spread.
    """
    if ranks.world_size == 1:
        raise ConfigError(
            "train.sharding fsdp needs several processes: start them with torchrun, or choose none"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Layers end in a view, of which nobody changes anything in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            ranks.broadcast(value)
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast does what is needed; features must stay float32
    )
    options: dict[str, Any] = {
        "mesh": init_device_mesh(ranks.device.type, (ranks.world_size,)),
        "mp_policy": policy,
        "ignored_params": {p for p in model.parameters() if p.ndim == 0},
    }
    for module in model.modules():
        if getattr(module, "is_shard_unit", False):
            fully_shard(module, **options)
    fully_shard(model, **options)


def finish_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Averages the gradients that FSDP leaves alone over the processes, in one message.

    Those of sharded parameters are averages already, after any number of backward passes. Every
    process calls this once a step. A model that is not sharded is left alone.
    """
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return
    whole = [p.grad for p in model.parameters() if p.grad is not None and not is_sharded(p)]
    if not whole:
        return
    mean = ranks.all_reduce(torch.cat([grad.flatten() for grad in whole])) / ranks.world_size
    pieces = mean.split([grad.numel() for grad in whole])
    torch._foreach_copy_(whole, [p.view_as(g) for p, g in zip(pieces, whole, strict=True)])


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """While entered, every process holds the whole model, and forward passes send nothing.

    For validation, where processes have unequal numbers of batches. A model that is not sharded
    is left alone.
    """
    from torch.distributed.fsdp import FSDPModule

    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            # The root keeps its parameters from the forward to the backward pass.
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def gather_on_main(state: Any, ranks: Ranks) -> Any:
    """Puts shards together on rank 0's CPU, a tensor at a time.

    Args:
        state: Dicts, lists and tuples of tensors and plain values; equal in form on every process,
            every one of which calls this.
        ranks: The processes of the run.

    Returns:
        On rank 0 the same with a whole tensor in place of each DTensor; elsewhere tensors of
        shards are replaced by None.
    """
    if isinstance(state, Mapping):
        return {key: gather_on_main(value, ranks) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gather_on_main(value, ranks) for value in state)
    if not isinstance(state, Tensor) or not is_sharded(state):
        return state
    dtensor: Any = state.detach()
    whole = dtensor.full_tensor()
    return whole.cpu() if ranks.is_main else None


def shard_like(values: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cuts whole tensors up as the sharded ones of the same names are; nothing is sent.

    Args:
        values: Name -> whole tensor, the same on every process.
        own: Name -> tensor of this process. What is not sharded, missing, or of another shape is
            passed on as it is, for the one who loads it to judge.
    """
    return {
        name: sharded_like(local_part(value, own[name]), own[name])
        if name in own and value.shape == own[name].shape
        else value
        for name, value in values.items()
    }


def local_bytes(state: Any) -> int:
    """Returns how many bytes of this process's memory the tensors of a nested state take."""
    if isinstance(state, Mapping):
        return sum(local_bytes(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(local_bytes(value) for value in state)
    return local(state).nbytes if isinstance(state, Tensor) else 0
