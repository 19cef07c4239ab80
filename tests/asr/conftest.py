"""What the ASR tests share: shard folders of made-up speech, and a tiny encoder."""

import io

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter

from spear.asr.train.data import AsrDataConfig
from spear.asr.train.finetune import FinetuneAsrConfig
from spear.asr.train.finetune import run as finetune
from spear.data.index.plan import BatchConfig
from spear.finetune.spec_augment import SpecAugmentConfig
from spear.hub.export import ExportConfig
from spear.hub.export import run as export
from spear.optim import OptimConfig
from spear.training import TrainConfig
from spear.zipformer import ZipformerConfig

SAMPLE_RATE_HZ = 16000
TONES_HZ = {"A": 400.0, "B": 900.0, "C": 1700.0, "D": 3000.0}


def sing(text, letter_s=0.12, seed=0):
    """Speaks a word of A, B, C, D as tones with short pauses, in a little noise; spaces pause."""
    time = np.arange(int(letter_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pause = np.zeros(SAMPLE_RATE_HZ // 20)
    parts = [pause, pause]
    for letter in text:
        tone = np.sin(2 * np.pi * TONES_HZ[letter] * time) if letter in TONES_HZ else 0.0 * time
        parts += [0.3 * tone, pause]
    audio = np.concatenate([*parts, pause])
    noise = np.random.default_rng(seed).standard_normal(len(audio))
    return (audio + 0.003 * noise).astype(np.float32)


def write_shards(folder, utterances, shard_size=4):
    """Writes a shard folder from (id, audio (S,), text or None, speaker)."""
    folder.mkdir(parents=True)
    with SharWriter(str(folder), fields={"recording": "flac"}, shard_size=shard_size) as writer:
        for name, audio, text, speaker in utterances:
            stream = io.BytesIO()
            soundfile.write(stream, audio, SAMPLE_RATE_HZ, format="FLAC")
            recording = Recording.from_bytes(stream.getvalue(), name)
            cut: MonoCut = recording.to_cut()
            cut.custom = {"domain": "speech"}
            cut.supervisions = []
            if text is not None:
                cut.supervisions.append(
                    SupervisionSegment(
                        id=name,
                        recording_id=name,
                        start=0.0,
                        duration=recording.duration,
                        text=text,
                        speaker=speaker,
                    )
                )
            writer.write(cut)
    return folder


TEXTS = ["AB CD", "DA", "B A C", "CCD", "D"]


@pytest.fixture(scope="session", name="sing")
def sing_fixture():
    return sing


@pytest.fixture(scope="session", name="write_shards")
def write_shards_fixture():
    return write_shards


@pytest.fixture(scope="session")
def tone_texts():
    return TEXTS


@pytest.fixture(scope="session")
def tone_shards(tmp_path_factory):
    """Five utterances of two speakers."""
    utterances = [
        (f"utt{i}", sing(text, seed=i), text, f"speaker{i % 2}") for i, text in enumerate(TEXTS)
    ]
    return write_shards(tmp_path_factory.mktemp("data") / "tones", utterances)


def tiny_student():
    """A Zipformer of two stacks that learns on a CPU in seconds."""
    return ZipformerConfig(
        feature_dim=40,
        downsampling_factor=(1, 2),
        encoder_dim=(48,),
        num_encoder_layers=(1, 1),
        encoder_unmasked_dim=(48,),
        query_head_dim=(8,),
        value_head_dim=(8,),
        num_heads=(2,),
        feedforward_dim=(96,),
        cnn_module_kernel=(15,),
        pos_dim=16,
        embed_channels=(4, 8, 16),
        dropout=0.0,
        warmup_batches=1.0,
    )


def make_config(shards, output_dir, max_steps, **changes):
    """A run on the tone shards, without anything random but what a test asks for."""
    train = {
        "save_every": 0,
        "valid_every": 0,
        "log_every": 20,
        "averaging_every": 1,
        "schedule_unit_s": 0.01,  # past the schedules after a few steps
        "device": "cpu",
        "tensorboard": False,
        "optim": OptimConfig(base_lr=0.08, lr_batches=40.0, warmup_batches=10),
        **changes.pop("train", {}),
    }
    data = {
        "train": [str(shards)],
        "valid": [str(shards)],
        "batch": BatchConfig(max_duration_s=20.0, min_clip_s=0.1, duration_jitter=0.1),
        "specaugment": SpecAugmentConfig(probability=0.0),
        "num_workers": 0,
        **changes.pop("data", {}),
    }
    return FinetuneAsrConfig(
        data=AsrDataConfig(**data),
        train=TrainConfig(output_dir=str(output_dir), max_steps=max_steps, **train),
        **{"student": tiny_student(), "ctc_dropout": 0.0, **changes},
    )


@pytest.fixture(scope="session", name="make_config")
def make_config_fixture():
    return make_config


@pytest.fixture(scope="session")
def trained_run(tone_shards, tmp_path_factory):
    """A recogniser that knows the five utterances by heart."""
    folder = tmp_path_factory.mktemp("exp") / "asr"
    finetune(make_config(tone_shards, folder, max_steps=200))
    return folder


@pytest.fixture(scope="session")
def export_folder(trained_run, tmp_path_factory):
    """The encoder of that recogniser, exported."""
    folder = tmp_path_factory.mktemp("export") / "encoder"
    export(ExportConfig(str(trained_run), str(folder), weights="last"))
    return folder
