"""Idle time between steps, on a made-up timeline."""

import pytest
import torch

from spear.training.logs.clock import GpuIdle


class Timeline:
    """Events that are recorded at the given milliseconds, one after another."""

    def __init__(self, *times_ms):
        self.times_ms = list(times_ms)

    def __call__(self):
        return Event(self)


class Event:
    def __init__(self, timeline):
        self.timeline = timeline

    def record(self):
        self.at_ms = self.timeline.times_ms.pop(0)

    def synchronize(self):
        assert self.at_ms is not None

    def elapsed_time(self, other):
        return other.at_ms - self.at_ms


def run_steps(idle, number):
    for _ in range(number):
        idle.begin_step()
        idle.end_step()


def test_time_between_steps_is_idle():
    idle = GpuIdle(torch.device("cpu"), Timeline(0, 90, 100, 190, 240, 300, 400, 500, 501, 600))
    run_steps(idle, 3)
    assert idle.take() == {"speed/gpu_idle(%)": pytest.approx(100 * (10 + 50) / 300)}
    run_steps(idle, 2)
    assert idle.take() == {"speed/gpu_idle(%)": pytest.approx(100 * 1 / 200)}
    assert idle.take() == {}


def test_one_step_says_nothing_and_neither_does_a_cpu():
    idle = GpuIdle(torch.device("cpu"), Timeline(0, 5))
    run_steps(idle, 1)
    assert idle.take() == {}
    idle = GpuIdle(torch.device("cpu"))
    run_steps(idle, 3)
    assert idle.take() == {}
