"""How good a quantiser is: errors, use of its codes, and what each codebook contributes.

The numbers go into a Markdown report and, where matplotlib is installed, a picture of code usage.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from spear.files import write_json
from spear.mvq.quantizer import Quantizer
from spear.mvq.statistics import count_codes, normalized_entropies
from spear.reports import (
    embed_picture,
    markdown_table,
    new_figure,
    save_figure,
    write_markdown,
)


@dataclass
class Evaluation:
    """What a set of frames says about a quantiser.

    Errors are relative: |x - x_hat|^2 / |x - mean|^2 summed over all frames, in the normalised
    space. 1 is what a single mean vector would reach.
    """

    num_frames: int
    """Frames looked at (count)."""
    relative_error: float
    """Error of the decoded tokens."""
    first_guess_error: float
    """Error before the full search: the guess of the classifiers."""
    errors_without: list[float] = field(default_factory=list)
    """For every codebook the error when its mean contribution stands for it."""
    entropies: list[float] = field(default_factory=list)
    """For every codebook the entropy of its usage, divided by log K."""
    usage: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """(N, K) int64, how often each code was chosen."""

    @property
    def num_unused(self) -> list[int]:
        """For every codebook, how many codes no frame chose."""
        return [int(count) for count in (self.usage == 0).sum(dim=1)]


@torch.no_grad()
def evaluate(quantizer: Quantizer, frames: Tensor) -> Evaluation:
    """Encodes frames (F, D) of the teacher's own space and measures what is lost.

    Raises:
        ConfigError: Frames of the wrong width.
        DataError: NaN or infinite values.
    """
    frames = frames.float()
    codes = quantizer.encode(frames)
    target = quantizer.normalize(frames.to(quantizer.centers.device))
    spread = (target - target.mean(dim=0)).double().square().sum().clamp(min=1e-20)

    def relative(approximation: Tensor) -> float:
        return float((target - approximation).double().square().sum() / spread)

    decoded = quantizer.normalize(quantizer.decode(codes))
    guess = quantizer.normalize(quantizer.decode(quantizer.encode(frames, num_passes=0)))
    errors_without = []
    for codebook, centers in enumerate(quantizer.centers):
        part = centers[codes[:, codebook].long()]
        errors_without.append(relative(decoded - part + part.mean(dim=0)))
    usage = count_codes(codes, quantizer.codebook_size).cpu()
    return Evaluation(
        num_frames=len(frames),
        relative_error=relative(decoded),
        first_guess_error=relative(guess),
        errors_without=errors_without,
        entropies=normalized_entropies(usage).tolist(),
        usage=usage,
    )


def bits_per_frame(quantizer: Quantizer) -> float:
    """Returns N * log2 K: what the tokens of one frame can say at most."""
    size = torch.tensor(float(quantizer.codebook_size), dtype=torch.float64)
    return quantizer.num_codebooks * float(size.log2())


def describe(quantizer: Quantizer) -> str:
    """Returns a table of what a quantiser is, as `spear info` prints it."""
    rate = quantizer.teacher().get("frame_rate_hz")
    bits = f"{bits_per_frame(quantizer):g}"
    if isinstance(rate, (int, float)):
        bits += f" ({bits_per_frame(quantizer) * rate:g} bits/s)"
    normalized = bool((quantizer.channel_scale != 1).any() or (quantizer.channel_mean != 0).any())
    rows = {
        "id": quantizer.id,
        "codebooks": str(quantizer.num_codebooks),
        "codebook size": str(quantizer.codebook_size),
        "frame width": str(quantizer.dim),
        "bits per frame": bits,
        "channels normalised": "yes" if normalized else "no",
        "first guess": "linear classifiers" if quantizer.has_classifiers else "undecided",
    }
    rows |= {f"teacher {key}": str(value) for key, value in quantizer.teacher().items()}
    rows |= {key: value for key, value in sorted(quantizer.metadata.items()) if key != "teacher"}
    width = max(len(key) for key in rows)
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in rows.items())


def write_report(
    folder: Path, quantizer: Quantizer, train: Evaluation, held_out: Evaluation
) -> None:
    """Writes `report.md`, with matplotlib `usage.png`, and at last `summary.json` into a folder."""
    folder = Path(folder)
    picture = folder / "usage.png"
    blocks = _blocks(quantizer, train, held_out)
    if _draw_usage(picture, train):
        blocks.append(embed_picture(picture, "Usage of codes, most frequent first"))
    write_markdown(folder / "report.md", blocks)
    write_json(folder / "summary.json", _summary(quantizer, train, held_out))


def _summary(quantizer: Quantizer, train: Evaluation, held_out: Evaluation) -> dict[str, object]:
    """The few numbers that a recipe's table shows; the error is that of held-out frames."""
    return {
        "id": quantizer.id,
        "num_codebooks": quantizer.num_codebooks,
        "codebook_size": quantizer.codebook_size,
        "bits_per_frame": bits_per_frame(quantizer),
        "relative_error": held_out.relative_error,
        "train_relative_error": train.relative_error,
        "usage_entropy": min(train.entropies),
        "unused_codes": sum(train.num_unused),
    }


def _blocks(quantizer: Quantizer, train: Evaluation, held_out: Evaluation) -> list[str]:
    errors = [
        (name, str(part.num_frames), f"{part.relative_error:.4f}", f"{part.first_guess_error:.4f}")
        for name, part in (("train", train), ("held out", held_out))
    ]
    codebooks = [
        (
            str(index),
            f"{entropy:.3f}",
            str(train.num_unused[index]),
            f"{train.errors_without[index]:.4f}",
            f"{held_out.errors_without[index]:.4f}",
        )
        for index, entropy in enumerate(train.entropies)
    ]
    unused = ("codebook", "normalised entropy", "unused codes", "error without it", "held out")
    return [
        "# Quantiser",
        f"```\n{describe(quantizer)}\n```",
        "Relative error is |x - x_hat|^2 / |x - mean|^2, after the channel normalisation.",
        markdown_table(("frames", "count", "relative error", "error of the first guess"), errors),
        "Entropy 1 means that all codes are used equally often. Every codebook should cost about\n"
        "the same when it is removed: there is no order among them. Figures are of the train "
        "frames;\nwith few frames, codes that none of the held-out ones chose say little.",
        markdown_table(unused, codebooks),
    ]


def _draw_usage(path: Path, evaluation: Evaluation) -> bool:
    """Draws each codebook's usage, sorted; returns whether it could."""
    figure = new_figure(7.0, 4.0)
    if figure is None:
        return False
    axes = figure.add_subplot()
    shares = evaluation.usage.double() / max(evaluation.num_frames, 1)
    for codebook, share in enumerate(shares.sort(dim=1, descending=True).values):
        axes.plot(share.numpy(), label=str(codebook), linewidth=0.8)
    axes.axhline(1 / shares.shape[1], color="black", linestyle=":", label="uniform")
    axes.set(xlabel="code, most frequent first", ylabel="share of frames", yscale="log")
    axes.legend(ncols=3, fontsize="x-small", title="codebook")
    save_figure(figure, path)
    return True
