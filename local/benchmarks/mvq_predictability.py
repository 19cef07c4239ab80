"""How well a student can predict the tokens of different quantisers.

A quantiser with a low error is of no use if its tokens cannot be predicted from masked audio. This
trains several quantisers on the same frames of a teacher without weights (pairs of log-mel frames,
128 bins, D = 256), then for each the same small student (convolutions and a bidirectional GRU over
masked log-mel), with the same clips, masks, steps and first weights, and measures on recordings
that neither has heard. It prints a Markdown table and writes it beside this script, in results/.
Run by hand, on any folder of recordings:

    OMP_NUM_THREADS=2 python local/benchmarks/mvq_predictability.py --audio-dir DIR

Methods are those of `spear train-quantizer --method`, and `reference`: the training of the package
`multi_quantization` where it is installed, encoded by this library. A number after a colon is the
number of codes of one codebook (`kmeans:4096`); without it a method gets --num-codebooks codebooks
of --codebook-size codes.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mvq_peer import (
    FRAME_RATE_HZ,
    NUM_MEL_BINS,
    load_reference,
    read_recordings,
    reference_package,
    split_recordings,
    train_reference,
)
from torch import Tensor, nn

from spear.audio import SAMPLE_RATE_HZ, Fbank
from spear.mvq import CodebookQuantizer, Quantizer, TrainingBudget, train_quantizer
from spear.mvq.evaluation import evaluate, spread_out
from spear.mvq.report import bits_per_frame
from spear.mvq.training.baselines import BaselineBudget, train_baseline
from spear.mvq.usage import count_codes
from spear.pretrain.masking import sample_spans
from spear.system.markdown import code, markdown_table, write_markdown
from spear.teachers import load_teacher

_STACK = 2
_TEACHER = {"name": "logmel", "num_mel_bins": NUM_MEL_BINS, "frame_rate_hz": FRAME_RATE_HZ}
_MAX_MEASURED = 10_000
_WARM_UP_STEPS = 50


@dataclass
class Clips:
    """Clips of one length: C of them.

    Attributes:
        fbank: (C, T, 128) float32 log-mel, 100 Hz.
        frames: (C, T / 2, 256) float32 of the teacher, 50 Hz.
    """

    fbank: Tensor
    frames: Tensor


@dataclass
class Score:
    """How well a student predicts tokens, on masked frames of held-out clips."""

    accuracy: float
    """Share of tokens whose most probable code is right."""
    bits_explained: float
    """Bits a frame: see `score`."""
    bits_to_explain: float
    """Bits a frame that the frequencies of codes leave open."""


class Student(nn.Module):
    """Masked log-mel (B, T, 128) to logits (B, T / 2, N, K).

    Args:
        num_codebooks: N.
        codebook_size: K.
        width: Channels.
        mean: (128,) of log-mel, subtracted.
        scale: (128,) that log-mel is divided by.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, num_codebooks: int, codebook_size: int, width: int, mean: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        self.sizes = (num_codebooks, codebook_size)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.mask_vector = nn.Parameter(torch.zeros(len(mean)))
        self.stack = nn.Linear(_STACK * len(mean), width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
            for dilation in (1, 2, 4)
        )
        self.recurrent = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codebooks * codebook_size)

    def forward(self, fbank: Tensor, mask: Tensor) -> Tensor:
        """Predicts tokens of log-mel (B, T, 128) whose frames are hidden where mask (B, T)."""
        x = (fbank - self.mean) / self.scale
        x = torch.where(mask.unsqueeze(2), self.mask_vector, x)
        x = self.stack(x.unflatten(1, (-1, _STACK)).flatten(2))
        for convolution in self.convolutions:
            x = x + F.gelu(convolution(x.transpose(1, 2)).transpose(1, 2))
        x = x + self.recurrent(x)[0]
        logits: Tensor = self.head(self.norm(x))
        return logits.unflatten(2, self.sizes)


def load_clips(paths: list[Path], clip_s: float, max_audio_s: float) -> Clips:
    """Cuts recordings into clips, and computes what student and teacher make of them.

    Recordings are joined, so that short ones serve, too.

    Args:
        paths: Read in this order until there is enough; broken ones are left out.
        clip_s: Seconds of a clip.
        max_audio_s: Seconds of all.

    Raises:
        SystemExit: There is not enough audio for one clip.
    """
    size = 2 * _STACK * round(clip_s * SAMPLE_RATE_HZ / (2 * _STACK * 160)) * 160
    audio = read_recordings(paths, max_audio_s)
    if size == 0 or len(audio) < size:
        raise SystemExit(f"{len(audio) / SAMPLE_RATE_HZ:.1f} s of audio make no clip of {clip_s} s")
    audio = audio[: len(audio) // size * size].view(-1, size)
    teacher, fbank = load_teacher(_TEACHER), Fbank(NUM_MEL_BINS)
    found = []
    with torch.no_grad():
        for block in audio.split(32):
            lens = torch.full((len(block),), size)
            found.append((fbank(block, lens)[0], teacher(block, lens)[0]))
    return Clips(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def make_quantizer(
    method: str, frames: Tensor, args: argparse.Namespace
) -> CodebookQuantizer | None:
    """Trains a quantiser on frames (F, 256); None where the package it needs is missing."""
    name, _, size = method.partition(":")
    num_codebooks = 1 if size else args.num_codebooks
    codebook_size = int(size) if size else args.codebook_size
    if name == "reference":
        return _obtain_reference(frames, num_codebooks, args)
    settings = {"seed": args.seed, "normalize_channels": True}
    sizes = (num_codebooks, codebook_size)
    if name == Quantizer.kind:
        budget = TrainingBudget(num_iterations=args.iterations)
        return train_quantizer(frames, *sizes, budget=budget, **settings)
    baseline = BaselineBudget(num_iterations=args.iterations)
    return train_baseline(name, frames, *sizes, budget=baseline, **settings)


def _obtain_reference(
    frames: Tensor, num_codebooks: int, args: argparse.Namespace
) -> Quantizer | None:
    """Trains with `multi_quantization`, on frames normalised as the others are, or loads that."""
    if args.reference:
        return load_reference(args.reference)[0]
    if reference_package() is None:
        return None
    mean, scale = frames.mean(dim=0), frames.std(dim=0).clamp(min=1e-3)
    steps = args.reference_steps // 2
    state, _ = train_reference((frames - mean) / scale, num_codebooks, steps, args.seed)
    return Quantizer.from_multi_quantization(state, channel_mean=mean, channel_scale=scale)


def draw_masks(num_clips: int, num_frames: int, rng: np.random.Generator) -> Tensor:
    """Returns (B, T) bool: SPEAR's masks, spans of 100 ms, 40% of the frames."""
    lens, prob = np.full(num_clips, num_frames), np.full(num_clips, 0.5)
    return torch.from_numpy(sample_spans(lens, prob, 10, rng, min_spans=2))


def hidden_frames(mask: Tensor) -> Tensor:
    """Returns (B, T / 2): token frames of whose log-mel frames, masked by (B, T), none is seen."""
    return mask.unflatten(1, (-1, _STACK)).all(dim=2)


def train_student(clips: Clips, codes: Tensor, args: argparse.Namespace, size: int) -> Student:
    """Trains a student to predict codes (C, T / 2, N) of `size` values each.

    The loss is the mean over codebooks of the cross-entropy, masked and unmasked frames weighted
    equally, as in SPEAR.
    """
    torch.manual_seed(args.seed)
    rng = np.random.Generator(np.random.Philox(args.seed))
    flat = clips.fbank.flatten(0, 1)
    scale = flat.std(dim=0).clamp(min=1e-3)
    student = Student(codes.shape[2], size, args.width, flat.mean(dim=0), scale)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP_STEPS) * (1 - step / args.steps)
    )
    for _ in range(args.steps):
        chosen = torch.from_numpy(rng.integers(len(codes), size=args.batch_clips))
        mask = draw_masks(len(chosen), clips.fbank.shape[1], rng)
        losses = _losses(student, clips.fbank[chosen], codes[chosen], mask).mean(dim=2)
        hidden = hidden_frames(mask)
        loss = (losses[hidden].mean() + losses[~hidden].mean()) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return student.eval()


def _losses(student: Student, fbank: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
    """Returns the cross-entropy (B, T / 2, N) in nats."""
    logits = student(fbank, mask)
    return F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view_as(codes)


@torch.no_grad()
def score(student: Student, clips: Clips, codes: Tensor, train: Tensor, seed: int) -> Score:
    """Measures a student on masked frames.

    The bits that it explains are the sum over codebooks of the entropy of the code less the
    cross-entropy of the prediction, a bound on the information that the unmasked audio gives
    about the tokens, each for itself: what two codebooks both say counts twice, so look at their
    correlations, too. The entropy is the cross-entropy under the codes' frequencies in training,
    one count added to each: on few frames the plain entropy would come out too low, and more so
    for larger codebooks.

    Args:
        student: Trained.
        clips: Held-out ones.
        codes: (C, T / 2, N) int64 of them.
        train: (F, N) int64, the codes of training.
        seed: Of the masks: the same for every quantiser.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    num_codebooks, size = student.sizes
    counts = count_codes(train, size)
    frequencies = (counts + 1.0) / (counts + 1.0).sum(dim=1, keepdim=True)
    right, entropy, cross_entropy, count = 0.0, 0.0, 0.0, 0
    for fbank, part in zip(clips.fbank.split(16), codes.split(16), strict=True):
        mask = draw_masks(len(part), fbank.shape[1], rng)
        hidden = hidden_frames(mask)
        logits, target = student(fbank, mask)[hidden], part[hidden]
        nats = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
        cross_entropy += float(nats)
        entropy -= float(frequencies[torch.arange(num_codebooks), target].log().sum())
        right += float((logits.argmax(dim=2) == target).float().mean(dim=1).sum())
        count += len(target)
    bits = 1 / (math.log(2) * max(count, 1))
    explained = (entropy - cross_entropy) * bits
    return Score(right / max(count, 1), explained, entropy * bits)


def measure(
    method: str, train: Clips, held_out: Clips, args: argparse.Namespace
) -> tuple[str, ...] | None:
    """Trains quantiser and student; returns a row of the table."""
    started = time.perf_counter()
    frames = train.frames.flatten(0, 1)
    quantizer = make_quantizer(method, frames, args)
    if quantizer is None:
        return None
    quantizer_s = time.perf_counter() - started
    unheard = held_out.frames.flatten(0, 1)
    error = evaluate(quantizer, spread_out(unheard, _MAX_MEASURED)).relative_error
    entropy = min(evaluate(quantizer, spread_out(frames, _MAX_MEASURED)).entropies)
    codes = quantizer.encode(train.frames).long()
    student = train_student(train, codes, args, quantizer.codebook_size)
    found = score(
        student, held_out, quantizer.encode(held_out.frames).long(), codes.flatten(0, 1), args.seed
    )
    return (
        method,
        f"{quantizer.num_codebooks} x {quantizer.codebook_size}",
        f"{bits_per_frame(quantizer):.0f}",
        f"{error:.4f}",
        f"{entropy:.3f}",
        f"{found.accuracy:.2%}",
        f"{found.bits_explained:.2f}",
        f"{found.bits_explained / found.bits_to_explain:.1%}",
        f"{quantizer_s:.1f}",
    )


def report(rows: list[tuple[str, ...]], train: Clips, held_out: Clips, args: Any) -> list[str]:
    """Returns the blocks of the result file."""
    header = (
        "quantiser",
        "codebooks",
        "bits a frame",
        "relative error",
        "least entropy",
        "masked accuracy",
        "bits explained a frame",
        "of the bits used",
        "training (s)",
    )
    seconds = [len(part.fbank) * part.fbank.shape[1] / 100 for part in (train, held_out)]
    settings = {
        key: value for key, value in vars(args).items() if key not in ("audio_dir", "output")
    }
    return [
        "# Predictability of tokens",
        f"Recordings of {code(args.audio_dir.resolve().name)}: {seconds[0]:.0f} s to train on, "
        f"{seconds[1]:.0f} s to measure on; "
        f"{torch.get_num_threads()} threads. Settings: "
        + ", ".join(f"{key} {value}" for key, value in settings.items())
        + ".",
        markdown_table(header, rows, "llrrrrrrr"),
        "Relative error on held-out frames; least entropy of a codebook's usage in training, over "
        "log K.\nAccuracy and bits are those of tokens all of whose audio is masked, in held-out "
        "clips. Accuracy\ncannot be compared between codebooks of different sizes; bits can, as "
        "long as codebooks do not say\nthe same: what two of them say counts twice.",
    ]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--audio-dir", type=Path, required=True, help="folder of recordings")
    default = Path(__file__).parent / "results" / "mvq_predictability.md"
    parser.add_argument("--output", type=Path, default=default, help="the result file")
    methods = "mvq,residual,reference,kmeans:256,kmeans:4096"
    parser.add_argument("--methods", default=methods, help="comma-separated")
    parser.add_argument("--num-codebooks", type=int, default=8)
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument(
        "--iterations", type=int, default=16, help="rounds of a quantiser's training"
    )
    parser.add_argument("--reference", type=Path, help="from mvq_training --save, not trained here")
    parser.add_argument("--reference-steps", type=int, default=4000, help="both phases; 0.4 s each")
    parser.add_argument("--clip-s", type=float, default=4.0)
    parser.add_argument("--max-audio-s", type=float, default=3600.0)
    parser.add_argument("--held-out-share", type=float, default=0.1, help="of the recordings")
    parser.add_argument("--steps", type=int, default=1500, help="updates of each student")
    parser.add_argument("--batch-clips", type=int, default=16)
    parser.add_argument("--width", type=int, default=192, help="channels of the student")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison as a Markdown table and writes it to the result file."""
    args = parse(argv)
    for_training, for_measuring = split_recordings(args.audio_dir, args.held_out_share, args.seed)
    held_out_s = args.held_out_share * args.max_audio_s
    held_out = load_clips(for_measuring, args.clip_s, held_out_s)
    train = load_clips(for_training, args.clip_s, args.max_audio_s - held_out_s)
    rows = []
    for method in args.methods.split(","):
        row = measure(method.strip(), train, held_out, args)
        if row is not None:
            rows.append(row)
            sys.stderr.write(" | ".join(row) + "\n")
    blocks = report(rows, train, held_out, args)
    write_markdown(args.output, blocks)
    sys.stdout.write("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
