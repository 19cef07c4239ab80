"""The corpus of the reading benchmark: shard folders of speech and of general audio, with tokens.

Clips of 2 to 20 s, FLAC, in lhotse's Shar layout, so that every reader of Shar sees the same files.
The sound is cut from recordings, or made: coloured noise with tones whose level moves, so that FLAC
has as much to do as on speech. Tokens are random: reading does not look at them.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from mvq_peer import find_recordings, read_recordings
from numpy.typing import NDArray

from spear.audio import SAMPLE_RATE_HZ
from spear.audio.noise import SyntheticNoise
from spear.data.corpus.shard import encode_flac, to_int16
from spear.data.formats.manifests import write_jsonl_gz
from spear.data.formats.shards import cuts_name, recording_name
from spear.data.formats.tars import PairTarWriter
from spear.data.formats.tokens import (
    ShardTokens,
    TokenSidecar,
    TokenTarWriter,
    sidecar_name,
    token_tar_name,
)
from spear.system.rng import generator

Floats = NDArray[np.float32]
TEACHERS = {"wavlm": (50.0, 16), "dasheng": (25.0, 8)}
"""Tokens per second and codebooks, by teacher: the method's numbers."""
NEEDED = {"speech": ("wavlm",), "audio": ("wavlm", "dasheng")}
"""Teachers whose tokens a clip has, by domain: the asymmetric loss."""
CODEBOOK_SIZE = 256
SHORTEST_S, LONGEST_S = 2.0, 20.0
CUTS_PER_SHARD = 40


def write_corpus(
    folder: Path, hours: float, audio_dir: Path | None = None, audio_share: float = 0.25
) -> dict[str, Path]:
    """Writes a speech folder and an audio folder.

    Args:
        folder: Where they are made.
        hours: Length of both together.
        audio_dir: Recordings to cut clips from, again and again from other places; without any the
            sound is made.
        audio_share: Share of general audio, 0 to 1.

    Returns:
        The folders by domain.
    """
    recordings = read_recordings(find_recordings(audio_dir)).numpy() if audio_dir else None
    shares = {"speech": 1.0 - audio_share, "audio": audio_share}
    for domain, share in shares.items():
        clips = make_clips(domain, 3600.0 * hours * share, recordings)
        write_folder(folder / domain, clips, domain)
    return {domain: folder / domain for domain in shares}


def make_clips(name: str, total_s: float, recordings: Floats | None) -> list[tuple[str, Floats]]:
    """Returns clips of `total_s` seconds together: ids and (S,) float32 samples."""
    rng = generator(0, f"reading-corpus/{name}")
    clips: list[tuple[str, Floats]] = []
    while total_s > 0:
        num_samples = int(SAMPLE_RATE_HZ * rng.uniform(SHORTEST_S, LONGEST_S))
        make = _synthetic if recordings is None else _piece_of(recordings)
        clips.append((f"{name}-{len(clips):05d}", make(num_samples, rng)))
        total_s -= num_samples / SAMPLE_RATE_HZ
    return clips


def _piece_of(recordings: Floats) -> Any:
    def take(num_samples: int, rng: np.random.Generator) -> Floats:
        start = int(rng.integers(len(recordings) - num_samples))
        return recordings[start : start + num_samples]

    return take


def _synthetic(num_samples: int, rng: np.random.Generator) -> Floats:
    time_s = np.arange(num_samples) / SAMPLE_RATE_HZ
    noise = SyntheticNoise()(num_samples, "", rng)
    level = np.abs(np.sin(np.pi * rng.uniform(1.0, 4.0) * time_s))  # syllables a second
    tones = sum(np.sin(2 * np.pi * rng.uniform(100, 4000) * time_s) / k for k in range(1, 6))
    mixture = level * (0.1 * tones + 0.05 * noise / noise.std()) + 0.001 * noise / noise.std()
    return mixture.astype(np.float32)


def write_folder(folder: Path, clips: list[tuple[str, Floats]], domain: str) -> None:
    """Writes one shard folder with the tokens that its domain needs."""
    folder.mkdir(parents=True)
    counts: dict[str, dict[int, ShardTokens]] = {teacher: {} for teacher in NEEDED[domain]}
    for shard, first in enumerate(range(0, len(clips), CUTS_PER_SHARD)):
        part = clips[first : first + CUTS_PER_SHARD]
        write_jsonl_gz(folder / cuts_name(shard), (_cut(*clip, domain) for clip in part))
        with PairTarWriter(folder / recording_name(shard)) as tar:
            for cut_id, audio in part:
                recording = _recording(cut_id, len(audio))
                tar.add(cut_id, "flac", encode_flac(to_int16(audio)[0]), recording)
        for teacher, shards in counts.items():
            shards[shard] = _write_tokens(folder / token_tar_name(teacher, shard), part, teacher)
    for teacher, shards in counts.items():
        rate_hz, num_codebooks = TEACHERS[teacher]
        TokenSidecar(
            teacher, None, rate_hz, "w", "q", "s", num_codebooks, CODEBOOK_SIZE, shards=shards
        ).save(folder / sidecar_name(teacher))


def _write_tokens(path: Path, clips: list[tuple[str, Floats]], teacher: str) -> ShardTokens:
    rate_hz, num_codebooks = TEACHERS[teacher]
    rng = generator(0, path.name)
    with TokenTarWriter(path, rate_hz) as tar:
        for cut_id, audio in clips:
            frames = int(len(audio) * rate_hz / SAMPLE_RATE_HZ)
            tar.write(cut_id, rng.integers(0, CODEBOOK_SIZE, (frames, num_codebooks), np.uint8))
    return ShardTokens(tar.num_cuts, tar.num_frames, hashlib.sha256(path.read_bytes()).hexdigest())


def _cut(cut_id: str, audio: Floats, domain: str) -> dict[str, Any]:
    """A lhotse MonoCut as JSON, with the one supervision that lhotse's dataset asks for."""
    duration_s = len(audio) / SAMPLE_RATE_HZ
    span = {"id": cut_id, "start": 0.0, "duration": duration_s, "channel": 0}
    return {
        **span,
        "supervisions": [{**span, "recording_id": cut_id, "text": ""}],
        "recording": _recording(cut_id, len(audio)),
        "custom": {"domain": domain},
        "type": "MonoCut",
    }


def _recording(cut_id: str, num_samples: int) -> dict[str, Any]:
    return {
        "id": cut_id,
        "sources": [{"type": "shar", "channels": [0], "source": ""}],
        "sampling_rate": SAMPLE_RATE_HZ,
        "num_samples": num_samples,
        "duration": num_samples / SAMPLE_RATE_HZ,
        "channel_ids": [0],
    }
