"""Writes shard folders of seconds, with audio and tokens that a test chooses."""

import gzip
import hashlib
import io
import json

import numpy as np
import soundfile

from spear.data.formats.shards import cuts_name, recording_name
from spear.data.formats.tars import PairTarWriter
from spear.data.formats.tokens import (
    ShardTokens,
    TokenSidecar,
    TokenTarWriter,
    sidecar_name,
    token_tar_name,
)

RATES_HZ = {"wavlm": 50.0, "dasheng": 25.0}
CODEBOOKS = {"wavlm": 4, "dasheng": 2}
CODEBOOK_SIZE = 16


def num_token_frames(teacher, num_samples):
    """WavLM's and Dasheng's frame counts."""
    if teacher == "wavlm":
        return (num_samples - 400) // 320 + 1
    return (num_samples // 160 + 1) // 4


def make_clip(number, domain, duration_s=None, seed=0):
    """Tones that tell the tokens: the loudest band of a frame decides what its tokens are."""
    rng = np.random.default_rng([seed, number])
    duration_s = duration_s or rng.uniform(0.8, 1.6)
    num_samples = int(duration_s * 16000)
    segments = rng.integers(0, 8, num_samples // 1600 + 1)
    pitch = np.repeat(200.0 * 1.5**segments, 1600)[:num_samples]
    audio = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000)
    audio = (audio + 0.01 * rng.standard_normal(num_samples)).astype(np.float32)
    tokens = {}
    for teacher, rate_hz in RATES_HZ.items():
        frames = num_token_frames(teacher, num_samples)
        place = (np.arange(frames) * 16000 / rate_hz / 1600).astype(int)
        classes = segments[np.minimum(place, len(segments) - 1)]
        columns = [(classes + book) % CODEBOOK_SIZE for book in range(CODEBOOKS[teacher])]
        tokens[teacher] = np.stack(columns, axis=1).astype(np.uint8)
    name = f"{domain}-{number:03d}" + (f"-{seed}" if seed else "")
    return {"id": name, "domain": domain, "audio": audio, "tokens": tokens}


def write_shards(folder, clips, teachers=("wavlm", "dasheng"), per_shard=5, **identity):
    """Writes clips as a shard folder with the tokens of `teachers`."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {teacher: {} for teacher in teachers}
    for shard, first in enumerate(range(0, len(clips), per_shard)):
        part = clips[first : first + per_shard]
        with gzip.open(folder / cuts_name(shard), "wt") as stream:
            for clip in part:
                line = {
                    "id": clip["id"],
                    "duration": len(clip["audio"]) / 16000,
                    "custom": {"domain": clip["domain"]},
                }
                stream.write(json.dumps(line) + "\n")
        with PairTarWriter(folder / recording_name(shard)) as tar:
            for clip in part:
                data = io.BytesIO()
                soundfile.write(data, clip["audio"], 16000, format="FLAC")
                tar.add(clip["id"], "flac", data.getvalue(), {})
        for teacher in teachers:
            counts[teacher][shard] = _write_tokens(folder, shard, part, teacher)
    for teacher in teachers:
        write_sidecar(folder, teacher, counts[teacher], **identity)
    return folder


def write_sidecar(folder, teacher, shards, **changes):
    content = {
        "teacher": teacher,
        "layer": 1,
        "frame_rate_hz": RATES_HZ[teacher],
        "weights_sha256": "w" * 64,
        "quantizer_id": "q" * 16,
        "quantizer_sha256": "s" * 64,
        "num_codebooks": CODEBOOKS[teacher],
        "codebook_size": CODEBOOK_SIZE,
    }
    TokenSidecar(**{**content, **changes}, shards=shards).save(folder / sidecar_name(teacher))


def _write_tokens(folder, shard, clips, teacher):
    path = folder / token_tar_name(teacher, shard)
    with TokenTarWriter(path, RATES_HZ[teacher]) as tar:
        for clip in clips:
            tar.write(clip["id"], clip["tokens"][teacher])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ShardTokens(tar.num_cuts, tar.num_frames, digest)


def write_corpus(folder, num_speech=12, num_audio=6, seed=0):
    """Returns a speech folder (speech tokens) and an audio folder (tokens of both teachers)."""
    speech = [make_clip(i, "speech", seed=seed) for i in range(num_speech)]
    audio = [make_clip(i, "audio", seed=seed) for i in range(num_audio)]
    return (
        write_shards(folder / "speech", speech, ("wavlm",)),
        write_shards(folder / "audio", audio),
    )
