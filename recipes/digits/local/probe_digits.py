"""Probes encoders: how well single digits are told apart in each layer, by a linear classifier.

It sees of each digit the means of four equal stretches of its frames, and learns from 210 of them,
about as many as two minutes of strings hold. An error rate of every layer, for the test set and for
the speaker whom neither encoder nor classifier has heard, beside that of log-mel features, in a
minute: enough to compare teachers and settings of pre-training before anything is fine-tuned.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from digit_lists import Digit, find_digits
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import spear
from spear.audio import Fbank
from spear.audio.io import read_audio
from spear.errors import SpearError
from spear.system.markdown import markdown_table
from spear.system.optional import require
from spear.system.rng import generator

Vectors = NDArray[np.float32]
Layers = dict[str, Tensor]
Encode = Callable[[Tensor, Tensor], tuple[Layers, Tensor]]
"""Audio (B, S) and its lengths to each layer's frames (B, T, D) and their lengths (B,)."""

TEST, VALID = range(5), range(5, 7)
NUM_STRETCHES = 4
NUM_TRAINING = 210
MARGIN_SAMPLES = 1600  # of silence on either side, as strings have between digits
NUM_MEL_BINS = 80
BATCH = 50
SHRINKAGE = 0.01  # scikit-learn's C


@dataclass(frozen=True)
class Sets:
    """Digits to learn from, and the two sets to test on."""

    train: list[Digit]
    test: list[Digit]
    speaker: list[Digit]


def split(digits: Sequence[Digit], held_out: str, seed: int) -> Sets:
    """Draws the training digits among those of the recipe's training set."""
    heard = [digit for digit in digits if digit.speaker != held_out]
    pool = [digit for digit in heard if digit.index not in (*TEST, *VALID)]
    chosen = generator(seed, "probe").permutation(len(pool))[:NUM_TRAINING]
    return Sets(
        train=[pool[number] for number in chosen],
        test=[digit for digit in heard if digit.index in TEST],
        speaker=[digit for digit in digits if digit.speaker == held_out],
    )


def encoder_of(path: str) -> Encode:
    """Returns an encoder's layers, from the front end on, as far as all have one frame rate."""
    model = spear.from_pretrained(path)

    def encode(audio: Tensor, lens: Tensor) -> tuple[Layers, Tensor]:
        out = model(audio, lens)
        layers = {str(number): one for number, one in enumerate(out["hidden_states"], start=1)}
        return {"0": out["embeddings"], **layers}, out["encoder_out_lens"]

    return encode


def log_mel(audio: Tensor, lens: Tensor) -> tuple[Layers, Tensor]:
    """Returns log-mel features as if they were the only layer of an encoder."""
    features, feature_lens = Fbank(NUM_MEL_BINS)(audio, lens)
    return {"log-mel": features}, feature_lens


@torch.no_grad()
def vectors_of(encode: Encode, digits: Sequence[Digit]) -> dict[str, Vectors]:
    """Returns (N, 4 D) float32 by layer."""
    found: dict[str, list[Vectors]] = {}
    for begin in range(0, len(digits), BATCH):
        audio = [read_digit(digit) for digit in digits[begin : begin + BATCH]]
        lens = torch.tensor([len(samples) for samples in audio])
        layers, frame_lens = encode(pad_sequence(audio, batch_first=True), lens)
        for name, frames in layers.items():
            rows = zip(frames, frame_lens.tolist(), strict=True)
            found.setdefault(name, []).extend(stretch_means(own[:num]) for own, num in rows)
    return {name: np.stack(rows) for name, rows in found.items()}


def read_digit(digit: Digit) -> Tensor:
    """Reads a recording, (S,) float32 at 16 kHz with margins."""
    samples = torch.from_numpy(read_audio(digit.path))
    return torch.nn.functional.pad(samples, (MARGIN_SAMPLES, MARGIN_SAMPLES))


def stretch_means(frames: Tensor) -> Vectors:
    """Returns the means of equal stretches of (T, D) frames, one after the other."""
    ends = [round(len(frames) * part / NUM_STRETCHES) for part in range(NUM_STRETCHES + 1)]
    means = [frames[begin : max(end, begin + 1)].mean(dim=0) for begin, end in pairwise(ends)]
    return np.asarray(torch.cat(means).numpy())


def error_rates(encode: Encode, sets: Sets) -> Iterable[tuple[str, float, float]]:
    """Yields each layer with its error rates in percent."""
    linear = require("sklearn.linear_model", "the probe", "scikit-learn")
    pipeline = require("sklearn.pipeline", "the probe", "scikit-learn")
    scaling = require("sklearn.preprocessing", "the probe", "scikit-learn")
    parts = (sets.train, sets.test, sets.speaker)
    train, *tests = (vectors_of(encode, part) for part in parts)
    words, *truths = ([digit.word for digit in part] for part in parts)
    for name, rows in train.items():
        probe = pipeline.make_pipeline(
            scaling.StandardScaler(), linear.LogisticRegression(C=SHRINKAGE, max_iter=500)
        ).fit(rows, words)
        scores = [probe.score(own[name], truth) for own, truth in zip(tests, truths, strict=True)]
        test, speaker = (100.0 * (1.0 - float(score)) for score in scores)
        yield name, test, speaker


def main(argv: list[str] | None = None) -> int:
    """Prints a table; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--digits-dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--held-out-speaker", default="yweweler", help="speaker of the second test")
    parser.add_argument("--seed", type=int, default=0, help="draws the training digits")
    parser.add_argument("models", nargs="*", help="export folders or hub ids")
    args = parser.parse_args(argv)
    rows = []
    try:
        sets = split(find_digits(args.digits_dir), args.held_out_speaker, args.seed)
        encoders = {"": log_mel, **{path: encoder_of(path) for path in args.models}}
        for path, encode in encoders.items():
            for layer, *errors in error_rates(encode, sets):
                rows.append((path, layer, *(f"{error:.1f}" for error in errors)))
    except SpearError as error:
        sys.stderr.write(f"probe_digits.py: error: {error}\n")
        return 2
    header = ("model", "layer", "error % on test", "on the held-out speaker")
    sys.stdout.write(markdown_table(header, rows, "llrr") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
