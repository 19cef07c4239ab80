"""Energy from a stand-in for NVML: by its counter, by power where there is none, or not at all."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from spear.system import energy
from spear.system.energy import EnergyMeter, Gpu, gpus_in_use


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """Two GPUs: GPU-A counts its energy, GPU-B only tells its power."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.NVMLError = NVMLError
        self.counter_mj = 5_000_000
        self.power_mw = 300_000

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:  # noqa: N802
        return "AB"[number]

    def nvmlDeviceGetUUID(self, handle: str) -> bytes | str:  # noqa: N802
        return b"GPU-A" if handle == "A" else "GPU-B"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if handle == "B":
            raise NVMLError("not supported")
        return self.counter_mj

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return self.power_mw


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(energy.time, "monotonic", lambda: now[0])
    return now


def test_the_counter_is_read_at_both_ends(nvml: FakeNvml) -> None:
    meter = EnergyMeter()
    nvml.counter_mj += 7_200_000
    assert meter.watt_hours([Gpu("x", "a")]) == (2.0, 1)


def test_power_is_summed_over_time(nvml: FakeNvml, seconds: list[float]) -> None:
    meter = EnergyMeter()
    seconds[0] += 60
    meter.sample()
    nvml.power_mw = 600_000
    seconds[0] += 60
    watt_hours, num_measured = meter.watt_hours([Gpu("x", "b")])
    assert num_measured == 1
    assert watt_hours == pytest.approx((300 * 60 + 600 * 60) / 3600)


def test_only_gpus_in_use_count(nvml: FakeNvml) -> None:
    meter = EnergyMeter()
    nvml.counter_mj += 3_600_000
    assert meter.watt_hours([]) == (0, 0)
    assert meter.watt_hours([Gpu("x", "a"), Gpu("x", "elsewhere")]) == (1.0, 1)


def test_without_a_driver_nothing_is_measured(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise NVMLError("driver not loaded")

    monkeypatch.setattr(nvml, "nvmlInit", fail)
    assert EnergyMeter().watt_hours([Gpu("x", "a")]) == (0, 0)


def test_without_the_package_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter().watt_hours([Gpu("x", "a")]) == (0, 0)


def test_a_gpu_that_fails_later_keeps_what_it_told(nvml: FakeNvml) -> None:
    meter = EnergyMeter()
    nvml.counter_mj += 3_600_000
    meter.sample()

    def fail(handle: str) -> int:
        raise NVMLError("GPU is lost")

    nvml.nvmlDeviceGetTotalEnergyConsumption = fail  # type: ignore[method-assign]
    assert meter.watt_hours([Gpu("x", "a")]) == (1.0, 1)


def _fake_cuda(monkeypatch: pytest.MonkeyPatch, reserved: list[int]) -> None:
    def properties(number: int) -> Any:
        return SimpleNamespace(name="NVIDIA H200", uuid=f"GPU-{number}")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(reserved))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", reserved.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


def test_the_gpu_with_memory_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus_in_use() == []
    _fake_cuda(monkeypatch, [0, 4096, 0])
    assert gpus_in_use() == [Gpu("NVIDIA H200", "1")]


def test_each_process_of_torchrun_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    _fake_cuda(monkeypatch, [4096, 0, 0])
    assert [gpu.uuid for gpu in gpus_in_use()] == ["0", "1"]
    _fake_cuda(monkeypatch, [0, 0, 0])  # they compute on the CPU
    assert gpus_in_use() == []
