"""Parameters of which each process holds a part, as torch's FSDP2 (`fully_shard`) makes them.

Such a parameter is a DTensor. An update of its elements needs this process's part alone; sums over
all elements are added up over the processes, those of all parameters in one message.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Tells whether a tensor is a DTensor, without importing what makes these."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """Returns this process's part of a DTensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def sharded_like(part: Tensor, parameter: Any) -> Tensor:
    """Makes a DTensor laid out as `parameter` from this process's part; or returns the part."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def local_part(whole: Tensor, parameter: Any) -> Tensor:
    """Returns the part of `whole` that this process holds of `parameter`; nothing is sent.

    Args:
        whole: All of a tensor, the same on every process; or a DTensor laid out as `parameter`.
        parameter: Names the layout.
    """
    if is_sharded(whole) or not is_sharded(parameter):
        return local(whole)
    from torch.distributed.tensor import distribute_tensor

    whole = whole.to(local(parameter).device)
    placed = distribute_tensor(
        whole, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    return local(placed)


def shard_groups(parameters: Sequence[Any]) -> list[tuple[dist.ProcessGroup, Tensor]]:
    """Returns the groups of processes over which parameters are spread, mostly one or none.

    Args:
        parameters: The same, in the same order, on every process.

    Returns:
        Each group with the places, (n,) int64, of its parameters.
    """
    places: dict[dist.ProcessGroup, list[int]] = {}
    for place, parameter in enumerate(parameters):
        for dim, placement in enumerate(getattr(parameter, "placements", ())):
            if placement.is_shard():
                places.setdefault(parameter.device_mesh.get_group(dim), []).append(place)
    device = local(parameters[0]).device
    return [(group, torch.tensor(own, device=device)) for group, own in places.items()]


def add_up(table: Tensor, groups: Sequence[tuple[dist.ProcessGroup, Tensor]]) -> None:
    """Adds up a table (n, ...) over processes, in place: a row for each parameter.

    Rows of parameters that every process holds whole stay as they are; the others take one message
    for each of the `shard_groups`.
    """
    for group, places in groups:
        part = table.index_select(0, places)
        dist.all_reduce(part, group=group)
        table.index_copy_(0, places, part)
