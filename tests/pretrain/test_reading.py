"""What a run reads: clips at any rate become 16 kHz, and batches go to page-locked memory."""

import gzip
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from test_pretrain_model import TEACHERS, small_student

from spear.audio.resampling import resample
from spear.data.formats.shards import cuts_name, recording_name
from spear.data.formats.tars import PairTarWriter
from spear.data.index.clip_index import SourceConfig
from spear.data.index.plan import BatchConfig
from spear.pretrain.config import PretrainConfig
from spear.pretrain.reading import make_loader, open_index, training_data
from spear.training import TrainConfig
from tests.pretrain.small_shards import make_clip, write_shards


def make_config(folder):
    return PretrainConfig(
        data=[SourceConfig(str(folder))],
        teachers={"wavlm": TEACHERS["wavlm"]},
        student=small_student(),
        batch=BatchConfig(max_duration_s=12.0),
        num_workers=0,
        train=TrainConfig(device="cpu"),
    )


def write_foreign(folder, rate_hz, num_channels=1):
    """A shard folder as another program may have written it: another rate, WAV, stereo."""
    clips = [make_clip(number, "speech") for number in range(4)]
    write_shards(folder, clips, ("wavlm",))
    with (
        gzip.open(folder / cuts_name(0), "wt") as stream,
        PairTarWriter(folder / recording_name(0)) as tar,
    ):
        for clip in clips:
            samples = resample(clip["audio"], 16000, rate_hz)
            data, length = io.BytesIO(), len(samples)
            channels = np.repeat(samples[:, None], num_channels, axis=1)
            soundfile.write(data, channels, rate_hz, format="WAV", subtype="FLOAT")
            recording = {"id": clip["id"], "sampling_rate": rate_hz, "num_samples": length}
            tar.add(clip["id"], "wav", data.getvalue(), recording)
            cut = {"id": clip["id"], "duration": length / rate_hz, "recording": recording}
            stream.write(json.dumps(cut | {"custom": {"domain": "speech"}}) + "\n")
    return clips


@pytest.mark.parametrize(("rate_hz", "num_channels"), [(8000, 1), (44100, 1), (48000, 2)])
def test_shards_of_another_rate_are_resampled_as_they_are_read(tmp_path, rate_hz, num_channels):
    clips = write_foreign(tmp_path / "shards", rate_hz, num_channels)
    config = make_config(tmp_path / "shards")
    config = replace(config, augment=replace(config.augment, prob=0.0))
    index = open_index(config, config.data)
    for number, clip in enumerate(clips):
        read, expected = index.clip(number)[1], clip["audio"]
        assert abs(len(read) - len(expected)) <= 1 and read.dtype == np.float32
        length = min(len(read), len(expected))
        error = np.square(read[:length] - expected[:length]).mean() / np.square(expected).mean()
        # At 8 kHz the noise above 4 kHz is gone; the tones stay.
        assert error < (5e-3 if rate_hz == 8000 else 1e-3)
    dataset, plan = training_data(config, index)
    for batch in make_loader(config, dataset, plan, 0).share(0, 1):
        seconds = index.duration_s([[c["id"] for c in clips].index(one) for one in batch.ids])
        assert batch.audio_s == pytest.approx(seconds)
        assert int(batch.fbank_lens.sum()) == pytest.approx(100 * seconds, abs=len(batch.ids))
        assert batch.token_valid["wavlm"].any(dim=1).all()


@pytest.mark.parametrize(
    ("device", "has_cuda", "pinned"),
    [("auto", True, True), ("auto", False, False), ("cpu", True, False)],
)
def test_batches_are_pinned_where_a_gpu_wants_them(tmp_path, monkeypatch, device, has_cuda, pinned):
    write_shards(tmp_path / "s", [make_clip(0, "speech"), make_clip(1, "speech")], ("wavlm",))
    config = make_config(tmp_path / "s")
    config = replace(config, train=TrainConfig(device=device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    dataset, plan = training_data(config, open_index(config, config.data))
    loader = make_loader(config, dataset, plan, 0)
    assert loader._loader.pin_memory is pinned
