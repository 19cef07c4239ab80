"""A small corpus of tones, and shard folders made from it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from spear.data.corpus import prepare, shard
from spear.data.corpus.prepare import PrepareConfig
from spear.data.corpus.shard import ShardConfig
from spear.data.index.shard_folder import ShardFolder
from spear.teachers import TeacherConfig
from tests.data.fake_quantizer import FakeQuantizer, write_quantizer

if TYPE_CHECKING:
    from spear.data.tokens.extract import ExtractConfig

WORDS = ("one", "two", "three")


def write_tones(folder: Path, num_files: int, rate_hz: int = 16000) -> list[str]:
    """Writes recordings of 0.3 to 0.9 s by two speakers; returns their ids."""
    ids = []
    for number in range(num_files):
        speaker = ("ann", "bob")[number % 2]
        random = np.random.default_rng(number)
        num_samples = int(rate_hz * random.uniform(0.3, 0.9))
        pitch = 2 * np.pi * random.uniform(100, 900) * np.arange(num_samples) / rate_hz
        samples = 0.3 * np.sin(pitch) + 0.01 * random.normal(size=num_samples)
        path = folder / speaker / f"{WORDS[number % 3]}_{number:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate_hz)
        ids.append(f"{speaker}-{path.stem}")
    return sorted(ids)


@pytest.fixture
def corpus(tmp_path: Path) -> PrepareConfig:
    """Twelve transcribed recordings of two speakers, and the settings to prepare them."""
    ids = write_tones(tmp_path / "wav", 12)
    text = "".join(f"{key} {key.split('-')[1].split('_')[0]}\n" for key in ids)
    (tmp_path / "text").write_text(text)
    (tmp_path / "utt2spk").write_text("".join(f"{key} {key.split('-')[0]}\n" for key in ids))
    return PrepareConfig(
        source_dir=str(tmp_path / "wav"),
        corpus="tones",
        output_dir=str(tmp_path / "manifests"),
        text=str(tmp_path / "text"),
        utt2spk=str(tmp_path / "utt2spk"),
        num_jobs=1,
    )


@pytest.fixture
def shard_config(corpus: PrepareConfig, tmp_path: Path) -> ShardConfig:
    """The settings to shard the corpus into three shards of at most five cuts."""
    prepare.run(corpus)
    manifest = Path(corpus.output_dir) / "tones_train_cuts.jsonl.gz"
    return ShardConfig(cuts=str(manifest), output_dir=str(tmp_path / "shards"), shard_size=5)


@pytest.fixture
def folder(shard_config: ShardConfig) -> ShardFolder:
    """The corpus as a shard folder."""
    shard.run(shard_config)
    return ShardFolder(shard_config.output_dir)


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, tuple[int, bytes]]]:
    """Returns a function that notes every file of a folder with its time and content."""

    def take(path: Path) -> dict[str, tuple[int, bytes]]:
        files = (file for file in path.rglob("*") if file.is_file())
        return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    return take


@pytest.fixture
def extract_config(
    folder: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> "ExtractConfig":
    """The settings to extract log-mel tokens into the shard folder."""
    from spear.data.tokens.extract import ExtractConfig

    monkeypatch.setattr("spear.data.tokens.extract.load_quantizer", FakeQuantizer.load)
    return ExtractConfig(
        shards=[str(folder.path)],
        teacher=TeacherConfig(name="logmel"),
        quantizer=write_quantizer(tmp_path / "quantizer.json"),
        batch_s=2.0,
        device="cpu",
    )
