"""Real recordings through `spear shard` into a student: digits and sounds, band energies as tokens.

The tokens say which of 16 levels the energy of a band of mel bins has: a teacher without weights
and a quantiser without training, so that this test needs neither.
"""

import json
from dataclasses import replace

import numpy as np
import torch
from lhotse import CutSet, Recording
from test_pretrain_command import make_config

from spear.audio import Fbank
from spear.data.corpus import shard
from spear.data.formats.tokens import ShardTokens, TokenTarWriter, token_tar_name
from spear.data.index.clip_index import SourceConfig
from spear.data.index.shard_folder import ShardFolder
from spear.pretrain.command import run
from tests.pretrain.small_shards import CODEBOOK_SIZE, CODEBOOKS, RATES_HZ, write_sidecar


def shard_files(paths, folder, domain):
    cuts = []
    for path in paths:
        cut = Recording.from_file(path, recording_id=path.stem).to_cut()
        cut.custom = {"domain": domain}
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(folder.parent / f"{folder.name}_cuts.jsonl.gz")
    shard.run(
        shard.ShardConfig(
            cuts=str(folder.parent / f"{folder.name}_cuts.jsonl.gz"),
            output_dir=str(folder),
            shard_size=20,
            min_duration_s=0.2,
        )
    )
    return ShardFolder(folder)


def band_tokens(audio, teacher):
    """(T', N) uint8: levels of the log energy in N bands, one nat each, at the teacher's rate."""
    fbank, _ = Fbank(32)(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    hop = int(100 / RATES_HZ[teacher])
    frames = fbank[0, : fbank.size(1) // hop * hop].unflatten(0, (-1, hop)).mean(1)
    bands = frames.unflatten(1, (CODEBOOKS[teacher], -1)).mean(-1)
    return ((bands + 16.0).clamp(0, 15.9) * CODEBOOK_SIZE / 16).to(torch.uint8).numpy()


def add_tokens(folder, teacher):
    counts = {}
    for position, number in enumerate(folder.shard_ids):
        path = folder.path / token_tar_name(teacher, number)
        with TokenTarWriter(path, RATES_HZ[teacher]) as tar:
            for cut in folder.cuts(position):
                tar.write(cut.id, band_tokens(folder.audio(cut), teacher))
        counts[number] = ShardTokens(tar.num_cuts, tar.num_frames, "unused")
    write_sidecar(folder.path, teacher, counts)


def test_a_student_learns_from_recordings(data_dir, tmp_path):
    digits = sorted((data_dir / "digits").glob("*_jackson_1?.wav"))
    sounds = sorted((data_dir / "sounds").glob("*.flac"))[:40]
    parts = {
        "valid": (digits[::5], sounds[::5]),
        "train": tuple([path for i, path in enumerate(all_) if i % 5] for all_ in (digits, sounds)),
    }
    sources = {}
    for part, (speech, audio) in parts.items():
        speech_folder = shard_files(speech, tmp_path / f"{part}_speech", "speech")
        audio_folder = shard_files(audio, tmp_path / f"{part}_audio", "audio")
        for folder, teachers in ((speech_folder, ["wavlm"]), (audio_folder, CODEBOOKS)):
            for teacher in teachers:
                add_tokens(folder, teacher)
        sources[part] = [
            SourceConfig(str(speech_folder.path)),
            SourceConfig(str(audio_folder.path), weight=1.5),
        ]
    config = make_config((sources["train"], sources["valid"]), tmp_path / "exp", max_steps=60)
    config = replace(
        config,
        batch=replace(config.batch, min_clip_s=0.2, max_duration_s=40.0, duration_jitter=0.1),
    )
    run(config)
    lines = [json.loads(line) for line in (tmp_path / "exp/metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.mean(losses[-2:]) < 0.75 * losses[0]
    summary = json.loads((tmp_path / "exp/summary.json").read_text())
    for teacher in ("wavlm", "dasheng"):
        assert summary[teacher]["unmasked_accuracy"] > summary[teacher]["baseline_accuracy"]
        assert summary[teacher]["loss"] < 0.5 * np.log(CODEBOOK_SIZE), "better than guessing"
    assert summary["wavlm"]["masked_accuracy"] > summary["wavlm"]["baseline_accuracy"]
