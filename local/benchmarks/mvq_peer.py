"""What the quantiser's benchmarks share: frames of real recordings, and the reference package.

The reference is `multi_quantization` 0.1.1, from the package index, the package of the method's
authors. No environment of this project installs it; the benchmarks import it where it is there:

    pip download multi_quantization==0.1.1 --no-deps --dest /tmp/peer
    pip install --no-deps --target /tmp/peer/site /tmp/peer/multi_quantization-*.whl
    PYTHONPATH=/tmp/peer/site python local/benchmarks/mvq_training.py --audio-dir DIR
"""

import random
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spear.audio import SAMPLE_RATE_HZ, read_audio
from spear.errors import AudioError
from spear.mvq import Quantizer
from spear.teachers import load_teacher

NUM_MEL_BINS = 128
FRAME_RATE_HZ = 50.0
REFERENCE_BATCH = 600
"""Frames of a step: what the package's numbers of steps were tuned with."""
_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff")
_CHUNK_S = 30
FASTEST_CALL = 128
"""Frames of a call that suit the reference's encoder best: its temporaries stay small."""


def find_recordings(folder: Path) -> list[Path]:
    """Returns the recordings anywhere below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)


def read_recordings(paths: list[Path], max_audio_s: float = float("inf")) -> Tensor:
    """Joins recordings, (S,) float32 at 16 kHz; broken ones are named and left out."""
    pieces, num_samples = [torch.empty(0)], 0
    for path in paths:
        if num_samples >= max_audio_s * SAMPLE_RATE_HZ:
            break
        try:
            pieces.append(torch.from_numpy(read_audio(path)))
        except AudioError as error:
            sys.stderr.write(f"left out: {error}\n")
            continue
        num_samples += len(pieces[-1])
    audio = torch.cat(pieces)
    return audio[: int(min(max_audio_s * SAMPLE_RATE_HZ, len(audio)))]


@torch.no_grad()
def stacked_log_mel(audio: Tensor, width: int) -> Tensor:
    """Returns (F, width) float32: neighbouring log-mel frames side by side, at 50 Hz.

    Args:
        audio: (S,) at 16 kHz.
        width: A multiple of 2 x 128. The teacher gives pairs; wider frames join as many pairs as
            fit, overlapping from frame to frame.
    """
    teacher = load_teacher(
        {"name": "logmel", "num_mel_bins": NUM_MEL_BINS, "frame_rate_hz": FRAME_RATE_HZ}
    )
    pairs = []
    for chunk in audio.split(_CHUNK_S * SAMPLE_RATE_HZ):
        frames, lens = teacher(chunk.unsqueeze(0), torch.tensor([len(chunk)]))
        pairs.append(frames[0, : int(lens[0])])
    joined = torch.cat(pairs)
    return joined.unfold(0, width // (2 * NUM_MEL_BINS), 1).transpose(1, 2).flatten(1)


def split_recordings(
    folder: Path, held_out_share: float = 0.1, seed: int = 0
) -> tuple[list[Path], list[Path]]:
    """Deals the recordings of a folder to training and measuring.

    Raises:
        SystemExit: There are fewer than two.
    """
    paths = find_recordings(folder)
    num_held_out = max(1, round(len(paths) * held_out_share))
    if len(paths) <= num_held_out:
        raise SystemExit(f"{len(paths)} recordings below {folder}: at least 2 are needed")
    np.random.Generator(np.random.Philox(seed)).shuffle(paths)
    return paths[num_held_out:], paths[:num_held_out]


def split_frames(folder: Path, width: int, num_train: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames of different recordings to train and to measure on.

    Args:
        folder: Recordings; a tenth of the files is kept for measuring.
        width: D.
        num_train: At most so many to train on, evenly spread.
        seed: Deals the recordings.

    Returns:
        (F, D) and (F', D) float32.

    Raises:
        SystemExit: There are fewer than two recordings.
    """
    parts = split_recordings(folder, seed=seed)
    train, held_out = (stacked_log_mel(read_recordings(paths), width) for paths in parts)
    if len(train) > num_train:
        train = train[torch.arange(num_train) * len(train) // num_train]
    return train, held_out


def reference_package() -> Any:
    """Returns the module `multi_quantization`, or None where it is not installed."""
    try:
        # The package imports h5py for a reader that is not used here.
        sys.modules.setdefault("h5py", types.ModuleType("h5py"))
        import multi_quantization
    except ImportError:
        sys.stderr.write("multi_quantization is not importable: nothing to compare with\n")
        return None
    return multi_quantization


def train_reference(
    frames: Tensor,
    num_codebooks: int,
    steps_per_phase: int,
    seed: int = 0,
    watch: Callable[[int, float, Any], None] | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Trains with the reference package, as its documentation shows.

    Args:
        frames: (F, D), normalised.
        num_codebooks: N.
        steps_per_phase: Of each of its two phases.
        seed: Fixes all that can be fixed.
        watch: Called after every step with the step, the seconds of training so far (its own time
            does not count) and the trainer.

    Returns:
        The state dict and the seconds it took.
    """
    torch.manual_seed(seed)
    random.seed(seed)  # the package draws from here how often to search
    trainer = reference_package().QuantizerTrainer(
        frames.shape[1], num_codebooks, frames.device, steps_per_phase, steps_per_phase
    )
    seconds, step = 0.0, 0
    while not trainer.done():
        started = time.perf_counter()
        chosen = torch.randint(len(frames), (REFERENCE_BATCH,), device=frames.device)
        trainer.step(frames[chosen])
        seconds += time.perf_counter() - started
        step += 1
        if watch is not None:
            watch(step, seconds, trainer)
    state = trainer.get_quantizer().state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items()}, seconds


def save_reference(
    path: Path, state: dict[str, Tensor], mean: Tensor, scale: Tensor, seconds: float
) -> None:
    """Keeps what `train_reference` gave, with the channel statistics and the time it took."""
    content = {"state": state, "mean": mean, "scale": scale, "seconds": torch.tensor(seconds)}
    torch.save(content, path)


def load_reference(path: Path) -> tuple[Quantizer, float]:
    """Imports what `save_reference` wrote; returns the seconds of training, too."""
    content = torch.load(path, weights_only=True)
    quantizer = Quantizer.from_multi_quantization(
        content["state"], channel_mean=content["mean"], channel_scale=content["scale"]
    )
    return quantizer, float(content["seconds"])


def reference_quantizer(quantizer: Quantizer) -> Any:
    """Returns the reference's module with the weights of ours; it takes normalised frames."""
    theirs = reference_package().Quantizer(
        quantizer.dim, quantizer.codebook_size, quantizer.num_codebooks
    )
    theirs.load_state_dict(quantizer.to_multi_quantization(of_normalized_frames=True))
    return theirs.to(quantizer.centers.device)


@torch.no_grad()
def reference_codes(
    theirs: Any, normalized: Tensor, num_rounds: int = 5, call_frames: int = FASTEST_CALL
) -> Tensor:
    """Encodes normalised frames (F, D) with the reference's module: (F, N) int64."""
    parts = normalized.split(call_frames)
    return torch.cat([theirs.encode(part, num_rounds, as_bytes=False) for part in parts])
