"""Encoding speed and error beside `multi_quantization`, on the same centres and frames.

Trains a quantiser on synthetic, correlated frames (or those of --frames), encodes with this library
and, where the package `multi_quantization` is importable, with that, in turns, and prints frames/s,
the relative errors and the ratio. Run by hand:

    OMP_NUM_THREADS=2 python local/benchmarks/mvq_encode.py --dim 1024 --num-codebooks 16
"""

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spear.mvq import Quantizer, TrainingBudget, train_quantizer

Encoder = Callable[[Tensor], Tensor]


def synthetic_frames(num_frames: int, dim: int, seed: int = 0) -> Tensor:
    """Frames (F, D) with falling spectrum, clusters and a non-linearity, as teachers' are."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(num_frames, 64, generator=generator)
    clusters = 2 * torch.randn(64, 64, generator=generator)
    latent = latent + clusters[torch.randint(64, (num_frames,), generator=generator)]
    hidden = torch.tanh(latent @ torch.randn(64, 256, generator=generator) / 8)
    spectrum = torch.linspace(0, -3, dim).exp()
    frames = hidden @ torch.randn(256, dim, generator=generator) / 16
    return frames * spectrum + 0.02 * torch.randn(num_frames, dim, generator=generator)


def reference_encoder(quantizer: Quantizer, num_rounds: int) -> Encoder | None:
    """Returns `multi_quantization`'s encode with the same centres; None without the package."""
    try:
        # The package imports h5py for a reader that is not used here.
        sys.modules.setdefault("h5py", types.ModuleType("h5py"))
        import multi_quantization
    except ImportError:
        return None
    reference = multi_quantization.Quantizer(
        quantizer.dim, quantizer.codebook_size, quantizer.num_codebooks
    )
    with torch.no_grad():
        reference.centers.copy_(quantizer.centers)
        reference.to_logits.weight.copy_(quantizer.classifier_weight)
        reference.to_logits.bias.copy_(quantizer.classifier_bias)

    @torch.no_grad()
    def encode(frames: Tensor) -> Tensor:
        parts = quantizer.normalize(frames).split(128)
        return torch.cat([reference.encode(part, num_rounds, as_bytes=False) for part in parts])

    return encode


def measure(encode: Encoder, frames: Tensor, repeats: int) -> tuple[Tensor, float]:
    """Returns the codes and the median rate in frames/s."""
    codes = encode(frames)
    rates = []
    for _ in range(repeats):
        started = time.perf_counter()
        encode(frames)
        rates.append(len(frames) / (time.perf_counter() - started))
    return codes, statistics.median(rates)


def relative_error(quantizer: Quantizer, frames: Tensor, codes: Tensor) -> float:
    """|x - x_hat|^2 / |x - mean|^2 in the normalised space."""
    target = quantizer.normalize(frames)
    error = quantizer.normalize(quantizer.decode(codes)) - target
    return float(error.square().sum() / (target - target.mean(dim=0)).square().sum())


def main() -> None:
    """Prints the comparison as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=Path, help="(F, D) .npy; synthetic by default")
    parser.add_argument("--dim", type=int, default=128, help="width of synthetic frames")
    parser.add_argument("--num-codebooks", type=int, default=16)
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--train-frames", type=int, default=20000)
    parser.add_argument("--frames-timed", type=int, default=4096)
    parser.add_argument("--reference-frames", type=int, default=256, help="it is much slower")
    parser.add_argument("--iterations", type=int, default=4, help="rounds of training")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.frames:
        frames = torch.from_numpy(np.load(args.frames, allow_pickle=False)).float()
    else:
        frames = synthetic_frames(args.train_frames + args.frames_timed, args.dim)
    timed, train = frames[: args.frames_timed], frames[args.frames_timed :]
    started = time.perf_counter()
    quantizer = train_quantizer(
        train,
        args.num_codebooks,
        args.codebook_size,
        normalize_channels=True,
        budget=TrainingBudget(num_iterations=args.iterations),
    )
    seconds = time.perf_counter() - started
    few = timed[: args.reference_frames]
    rows, rates = [], {}
    for rounds in (1, 3, 5):

        def ours(part: Tensor, num_passes: int = rounds) -> Tensor:
            return quantizer.encode(part, num_passes=num_passes)

        reference = reference_encoder(quantizer, rounds)
        encoders: list[tuple[str, Encoder, Tensor]] = [("spear", ours, timed)]
        if reference is not None:
            encoders.append(("multi_quantization", reference, few))
        for name, encode, part in encoders:
            codes, rate = measure(encode, part, args.repeats)
            error = relative_error(quantizer, few, codes[: len(few)])
            rates[name, rounds] = rate
            rows.append(f"| {name} | {rounds} | {rate:.0f} | {error:.4f} |")
    lines = [
        f"D {quantizer.dim}, N {quantizer.num_codebooks}, K {quantizer.codebook_size}, "
        f"{torch.get_num_threads()} threads; training took {seconds:.1f} s",
        "",
        "| encoder | rounds | frames/s | relative error |",
        "| --- | --- | --- | --- |",
        *rows,
    ]
    if ("multi_quantization", 3) in rates:
        ratio = rates["spear", 3] / rates["multi_quantization", 3]
        lines += ["", f"ratio at 3 rounds: {ratio:.1f}"]
    else:
        lines += ["", "multi_quantization is not importable: no ratio"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
