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


class RowSums:
    """Adds up a table over processes; a row belongs to a parameter.

    Rows of parameters that every process holds whole stay as they are. Parameters that are spread
    over the same processes, as all of a model are, take one message.

    Args:
        parameters: One per row; the same, in the same order, on every process.
    """

    def __init__(self, parameters: Sequence[Any]) -> None:
        rows: dict[dist.ProcessGroup, list[int]] = {}
        for row, parameter in enumerate(parameters):
            for group in _shard_groups(parameter):
                rows.setdefault(group, []).append(row)
        device = local(parameters[0]).device
        self._parts = [(g, torch.tensor(r, device=device)) for g, r in rows.items()]

    def __call__(self, table: Tensor) -> Tensor:
        """Returns the sums of the tables (n, ...) of all processes; `table` is overwritten."""
        for group, rows in self._parts:
            part = table.index_select(0, rows)
            dist.all_reduce(part, group=group)
            table.index_copy_(0, rows, part)
        return table


def _shard_groups(parameter: Any) -> list[Any]:
    """Returns the groups of processes over which a parameter is spread."""
    if not is_sharded(parameter):
        return []
    mesh = parameter.device_mesh
    placements = enumerate(parameter.placements)
    return [mesh.get_group(dim) for dim, placement in placements if placement.is_shard()]
