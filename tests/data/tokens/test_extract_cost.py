"""The dry run: nothing written, bytes about as they will be, time as it is measured."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens import extract
from spear.data.tokens.cost import WAITING, Cost
from spear.data.tokens.extract import ExtractConfig
from tests.data.fake_quantizer import FakeQuantizer

Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Cost]]:
    """What dry runs found."""
    found: list[dict[str, Cost]] = []
    log_cost = extract.log_cost
    monkeypatch.setattr(extract, "log_cost", lambda *args: found.append(log_cost(*args)))
    return found


def test_bytes_are_about_those_that_are_written(
    extract_config: ExtractConfig,
    folder: ShardFolder,
    estimates: list[dict[str, Cost]],
    snapshot: Snapshot,
) -> None:
    before = snapshot(folder.path)
    dry = replace(extract_config, dry_run=True, dry_run_s=0.1)
    extract.run(dry)
    assert snapshot(folder.path) == before
    extract.run(extract_config)
    cost = estimates[0]["logmel"]
    real = sum(path.stat().st_size for path in folder.path.glob("logmel_tokens.*.tar"))
    assert cost.num_bytes == pytest.approx(real, abs=3 * 10240)  # files are padded
    assert (cost.num_shards, cost.num_cuts) == (3, 12)
    assert cost.audio_s == pytest.approx(folder.duration_s, rel=1e-4)
    (folder.path / "logmel_tokens.000002.tar").unlink()
    extract.run(dry)
    assert (estimates[1]["logmel"].num_shards, estimates[1][WAITING].audio_s) == (
        1,
        pytest.approx(sum(info.duration_s for info in folder.cuts(2))),
    )
    extract.run(extract_config)
    extract.run(dry)
    assert all(cost.hours == 0.0 for cost in estimates[2].values())


def test_the_time_is_measured_and_divided(
    extract_config: ExtractConfig,
    folder: ShardFolder,
    estimates: list[dict[str, Cost]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    encode = FakeQuantizer.encode

    def slow(self: FakeQuantizer, x: Any) -> Any:
        time.sleep(len(x) / 50 / 20)  # 20 times faster than real time
        return encode(self, x)

    monkeypatch.setattr(FakeQuantizer, "encode", slow)
    caplog.set_level(logging.INFO)
    extract.run(replace(extract_config, dry_run=True, dry_run_s=0.2, num_jobs=4))
    cost = estimates[0]["logmel"]
    assert 10 < cost.speed < 20.5
    assert cost.hours == pytest.approx(folder.duration_s / cost.speed / 3600, rel=1e-4)
    assert cost.device_s < 0.2 + 2 / 20 + 0.1  # stops after the batch in work
    hours = sum(cost.hours for cost in estimates[0].values())
    assert f"{hours:,.3f} device-hours, {hours / 4:,.3f} for each of 4 jobs" in caplog.text
