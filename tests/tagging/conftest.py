"""What the tagging tests share: shard folders of made-up sounds, their labels, a tiny encoder."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import Recording
from lhotse.shar import SharWriter

from spear.data.index.plan import BatchConfig
from spear.finetune.spec_augment import SpecAugmentConfig
from spear.optim import OptimConfig
from spear.tagging.data import TaggingDataConfig
from spear.tagging.finetune import FinetuneTaggingConfig, run
from spear.tagging.mixup import MixupConfig
from spear.training import TrainConfig
from spear.zipformer import ZipformerConfig

RATE_HZ = 16000
PITCHES_HZ = {"low": 300.0, "middle": 1200.0, "high": 4000.0}


def play(labels, duration_s, seed=0):
    """Sounds the tones of some labels together, in a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    audio = 0.01 * rng.standard_normal(len(time))
    for label in labels:
        audio += 0.2 * np.sin(2 * np.pi * PITCHES_HZ[label] * time + rng.uniform(0, 6))
    return audio.astype(np.float32)


def write_shards(folder, sounds, shard_size=5):
    """Writes a shard folder from (id, audio (S,))."""
    folder.mkdir(parents=True)
    with SharWriter(str(folder), fields={"recording": "flac"}, shard_size=shard_size) as writer:
        for name, audio in sounds:
            stream = io.BytesIO()
            soundfile.write(stream, audio, RATE_HZ, format="FLAC")
            cut = Recording.from_bytes(stream.getvalue(), name).to_cut()
            cut.custom = {"domain": "audio"}
            writer.write(cut)
    return folder


SOUNDS = {
    "a": ("low",), "b": ("high",), "c": ("low", "high"), "d": ("middle",), "e": ("low",),
    "f": ("middle", "high"), "g": ("low",), "h": (), "i": ("low", "middle"), "j": ("high",),
}  # fmt: skip


@pytest.fixture(scope="session", name="play")
def play_fixture():
    return play


@pytest.fixture(scope="session", name="write_shards")
def write_shards_fixture():
    return write_shards


@pytest.fixture(scope="session")
def sounds():
    return SOUNDS


@pytest.fixture(scope="session")
def sound_dir(tmp_path_factory):
    """A folder with `shards`, `utt2labels` and `classes`: ten sounds of 0.3 to 0.75 s."""
    folder = tmp_path_factory.mktemp("sounds")
    audio = [
        (name, play(labels, 0.3 + 0.05 * number, seed=number))
        for number, (name, labels) in enumerate(SOUNDS.items())
    ]
    write_shards(folder / "shards", audio)
    lines = [f"{name} {','.join(labels)}" for name, labels in SOUNDS.items()]
    (folder / "utt2labels").write_text("\n".join(lines))
    (folder / "classes").write_text("low a low tone\nmiddle\nhigh a high tone\n")
    return folder


@pytest.fixture(scope="session", name="data_config")
def data_config_fixture():
    def make(folder: Path, **changes):
        """Reads the sounds for training and validation, without augmentation."""
        quiet = {
            "mixup": MixupConfig(probability=0.0),
            "specaugment": SpecAugmentConfig(probability=0.0),
            "batch": BatchConfig(max_duration_s=2.0, min_clip_s=0.0, duration_jitter=0.1),
            "num_workers": 0,
        }
        shards = [str(folder / "shards")]
        return TaggingDataConfig(
            **{
                "train": shards,
                "valid": shards,
                "labels": [str(folder / "utt2labels")],
                "classes": str(folder / "classes"),
                **quiet,
                **changes,
            }
        )

    return make


def tiny_student():
    """A Zipformer of two stacks that learns on a CPU in seconds."""
    return ZipformerConfig(
        feature_dim=40,
        downsampling_factor=(1, 2),
        encoder_dim=(32,),
        num_encoder_layers=(1, 1),
        encoder_unmasked_dim=(32,),
        query_head_dim=(8,),
        value_head_dim=(8,),
        num_heads=(2,),
        feedforward_dim=(48,),
        cnn_module_kernel=(7,),
        pos_dim=16,
        embed_channels=(4, 8, 8),
        dropout=0.0,
        warmup_batches=1.0,
    )


@pytest.fixture(scope="session", name="make_config")
def make_config_fixture(data_config):
    def make(folder, output_dir, max_steps, **changes):
        """A run on the sounds, without anything random but what a test asks for."""
        train = {
            "save_every": 0,
            "valid_every": 0,
            "log_every": 20,
            "averaging_every": 1,
            "schedule_unit_s": 0.01,  # past the schedules after a few steps
            "device": "cpu",
            "tensorboard": False,
            "try_longest": False,
            "optim": OptimConfig(base_lr=0.08, lr_batches=40.0, warmup_batches=5),
            **changes.pop("train", {}),
        }
        return FinetuneTaggingConfig(
            data=data_config(folder, **changes.pop("data", {})),
            train=TrainConfig(output_dir=str(output_dir), max_steps=max_steps, **train),
            **{"student": tiny_student(), "dropout": 0.0, **changes},
        )

    return make


@pytest.fixture(scope="session")
def trained_run(sound_dir, make_config, tmp_path_factory):
    """A tagger that knows the ten sounds by heart."""
    folder = tmp_path_factory.mktemp("exp") / "tagging"
    config = make_config(sound_dir, folder, max_steps=40)
    config.data.valid = []  # scikit-learn may be missing
    run(config)
    return folder
