"""The GPUs that this process computes on, and the energy that they take, where NVML tells.

NVML is NVIDIA's monitoring library, by the package nvidia-ml-py. Most GPUs count the joules that
they have taken; of others the power is sampled and summed up. Both are of the whole GPU: what
another process does on it meanwhile is in the number, too.
"""

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from spear.errors import MissingPackageError
from spear.system.optional import require


@dataclass(frozen=True)
class Gpu:
    """A GPU in use: its name, and its UUID without the prefix "GPU-"."""

    name: str
    uuid: str


def gpus_in_use() -> list[Gpu]:
    """Returns the GPUs on this machine that the processes of this run compute on.

    Of this process those count on which it reserved memory: unlike the current device, that is the
    same for all its threads. Others that torchrun started on this machine use one GPU each.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    numbers = range(torch.cuda.device_count())
    own = [number for number in numbers if torch.cuda.max_memory_reserved(number) > 0]
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    shared = numbers[:num_local] if own and num_local > 1 else own
    found = [torch.cuda.get_device_properties(number) for number in shared]
    return [Gpu(one.name, _bare(str(getattr(one, "uuid", "")))) for one in found]


class EnergyMeter:
    """Counts the energy that every GPU of this machine takes from now on."""

    def __init__(self) -> None:
        self._gauges = _gauges()

    def sample(self) -> None:
        """Reads the power of GPUs that have no counter; the more often, the better the sum."""
        for gauge in self._gauges.values():
            gauge.sample()

    def watt_hours(self, gpus: list[Gpu]) -> tuple[float, int]:
        """Returns the energy that these GPUs took, and how many of them could be measured."""
        self.sample()
        found = [self._gauges[gpu.uuid].joules for gpu in gpus if gpu.uuid in self._gauges]
        return sum(found) / 3600.0, len(found)


class _Gauge:
    """The energy of one GPU since the gauge was made.

    Args:
        nvml: The module pynvml.
        handle: NVML's handle of the GPU.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._sampled = time.monotonic()
        self._summed_j = 0.0
        self._first_mj: int | None = None
        with suppress(nvml.NVMLError):  # GPUs before Volta have no counter
            self._first_mj = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        if self._first_mj is None:
            nvml.nvmlDeviceGetPowerUsage(handle)  # raises where there is no power either

    def sample(self) -> None:
        now = time.monotonic()
        with suppress(self._nvml.NVMLError):
            if self._first_mj is None:
                milliwatts = self._nvml.nvmlDeviceGetPowerUsage(self._handle)
                self._summed_j += milliwatts / 1000.0 * (now - self._sampled)
            else:
                last_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
                self._summed_j = (last_mj - self._first_mj) / 1000.0
        self._sampled = now

    @property
    def joules(self) -> float:
        return self._summed_j


def _gauges() -> dict[str, _Gauge]:
    """Returns a gauge by UUID for every GPU that can be measured; none without NVML."""
    try:
        nvml = require("pynvml", "energy in the ledger", "nvidia-ml-py")
        nvml.nvmlInit()
        handles = [
            nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())
        ]
    except MissingPackageError:
        return {}
    except nvml.NVMLError:  # no driver, as on machines without a GPU
        return {}
    gauges = {}
    for handle in handles:
        with suppress(nvml.NVMLError):
            gauges[_uuid(nvml, handle)] = _Gauge(nvml, handle)
    return gauges


def _uuid(nvml: Any, handle: Any) -> str:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    return _bare(uuid.decode() if isinstance(uuid, bytes) else uuid)


def _bare(uuid: str) -> str:
    return uuid.removeprefix("GPU-").lower()
