"""The chunked token loss beside a linear layer and torch's cross-entropy: memory, time, agreement.

Forward and backward, on random frames. For time both sides take turns in one process, and medians
are given; for memory each runs in a process of its own, where only what comes on top of frames and
weights is counted.

    python local/benchmarks/token_loss.py
    python local/benchmarks/token_loss.py --device cuda
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zipformer_speed import memory_mib, time_turns

from spear.pretrain.losses import TokenHead
from spear.system.markdown import markdown_table, write_markdown

HEADS = {
    "Base, speech": (512, 16),
    "Base, audio": (512, 8),
    "Large, speech": (1024, 16),
    "Large, audio": (1024, 8),
}
"""Channels of the student and codebooks of 256 classes."""


@dataclass
class Inputs:
    """What both sides get.

    Attributes:
        head: The layer.
        hidden: (F, D) float32.
        tokens: (F, N) uint8.
        weights: (F,) float32.
    """

    head: TokenHead
    hidden: Tensor
    tokens: Tensor
    weights: Tensor

    @classmethod
    def make(cls, name: str, num_frames: int, device: str) -> "Inputs":
        """Draws inputs for one of `HEADS`."""
        torch.manual_seed(0)
        dim, num_codebooks = HEADS[name]
        head = TokenHead(dim, num_codebooks, 256).to(device)
        hidden = torch.randn(num_frames, dim, device=device, requires_grad=True)
        tokens = torch.randint(0, 256, (num_frames, num_codebooks), dtype=torch.uint8)
        is_masked = torch.rand(num_frames, device=device) < 0.5
        return cls(head, hidden, tokens.to(device), torch.where(is_masked, 0.8, 0.2))

    def clear(self) -> None:
        """Forgets gradients."""
        self.hidden.grad = None
        self.head.zero_grad()

    def grads(self) -> list[Tensor]:
        """Returns the gradients of frames, weight and bias."""
        tensors = (self.hidden, self.head.weight, self.head.bias)
        return [tensor.grad for tensor in tensors if tensor.grad is not None]


def plain(inputs: Inputs) -> Tensor:
    """Returns the loss () by torch's own operations, all logits at once."""
    logits = F.linear(inputs.hidden, inputs.head.weight, inputs.head.bias)
    losses = F.cross_entropy(logits.view(-1, 256), inputs.tokens.long().flatten(), reduction="none")
    return inputs.weights @ losses.view(inputs.tokens.shape).sum(dim=1)


def chunked(inputs: Inputs) -> Tensor:
    """Returns the loss () of `TokenHead`."""
    return inputs.head.loss(inputs.hidden, inputs.tokens, inputs.weights).total


SIDES: dict[str, Callable[[Inputs], Tensor]] = {"plain": plain, "spear": chunked}


class Step(nn.Module):
    """One side, forward and backward."""

    def __init__(self, side: str, inputs: Inputs, use_bf16: bool) -> None:
        super().__init__()
        self.loss, self.inputs, self.use_bf16 = SIDES[side], inputs, use_bf16

    def forward(self) -> Tensor:
        """Returns the loss (); gradients are added to those of the inputs."""
        device = self.inputs.hidden.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.use_bf16):
            loss = self.loss(self.inputs)
        (loss / len(self.inputs.hidden)).backward()
        return loss.detach()


def compare(inputs: Inputs) -> tuple[float, float]:
    """Returns relative differences in float32: of the loss, and the largest of a gradient."""
    losses, grads = {}, {}
    for side in SIDES:
        inputs.clear()
        losses[side] = Step(side, inputs, use_bf16=False)()
        grads[side] = inputs.grads()
    inputs.clear()
    distances = [
        float((mine - theirs).norm() / theirs.norm())
        for mine, theirs in zip(grads["spear"], grads["plain"], strict=True)
    ]
    return abs(float(losses["spear"] / losses["plain"]) - 1.0), max(distances)


def print_memory(args: argparse.Namespace) -> None:
    """Prints the MiB that one step of one side takes beyond frames, weights and their gradients."""
    short = Inputs.make(args.head, 64, args.device)
    Step(args.memory_of, short, args.bf16)()  # libraries are loaded before anything is counted
    inputs = Inputs.make(args.head, args.frames, args.device)
    for parameter in inputs.head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = memory_mib(args.device, reset=True)
    Step(args.memory_of, inputs, args.bf16)()
    sys.stdout.write(f"{memory_mib(args.device) - before}\n")


def measure_memory(args: argparse.Namespace, head: str, use_bf16: bool, side: str) -> float:
    """Returns what `print_memory` says in a new process."""
    words = [sys.executable, __file__, "--memory-of", side, "--head", head]
    words += ["--frames", str(args.frames), "--device", args.device]
    words += ["--bf16"] if use_bf16 else []
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, head: str, use_bf16: bool) -> list[tuple[str, ...]]:
    """Returns a row of the table for each number of threads."""
    memory = {side: measure_memory(args, head, use_bf16, side) for side in SIDES}
    inputs = Inputs.make(head, args.time_frames, args.device)
    sides: dict[str, nn.Module] = {side: Step(side, inputs, use_bf16) for side in SIDES}

    def run(step: nn.Module) -> None:
        inputs.clear()
        step()

    rows = []
    for num_threads in args.threads:
        torch.set_num_threads(num_threads)
        seconds = time_turns(sides, run, args.repeats, args.device)
        rows.append(
            (
                head,
                "bfloat16" if use_bf16 else "float32",
                str(num_threads),
                *(f"{seconds[side]:.3f}" for side in SIDES),
                f"{seconds['spear'] / seconds['plain']:.2f}",
                *(f"{memory[side]:,.0f}" for side in SIDES),
                f"{memory['spear'] / memory['plain']:.3f}",
            )
        )
    return rows


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--frames", type=int, default=30_000, help="student frames, 50 a second")
    parser.add_argument("--time-frames", type=int, default=8_000, help="frames of a timed step")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="the result file")
    parser.add_argument("--memory-of", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--head", choices=tuple(HEADS), nargs="+", default=list(HEADS))
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison as a Markdown table and writes it to the result file."""
    args = parse(argv)
    if args.memory_of:
        (args.head,) = args.head
        print_memory(args)
        return
    rows = [
        row
        for head, use_bf16 in itertools.product(args.head, (False, True))
        for row in measure(args, head, use_bf16)
    ]
    loss_error, gradient_error = compare(Inputs.make(args.head[0], 2000, args.device))
    header = ("head", "type", "threads", "plain s", "spear s", "ratio", "plain MiB", "spear MiB")
    blocks = [
        "# Token loss, forward and backward",
        f"K = 256, on {args.device}, memory of {args.frames:,} frames ({args.frames / 50:g} s of "
        f"audio), time of {args.time_frames:,}; torch {torch.__version__}, medians of "
        f"{args.repeats} turns. plain: linear layer and "
        "`torch.nn.functional.cross_entropy`, with bfloat16 under autocast; spear: `TokenHead`, "
        "which also gives every token's cross-entropy and prediction. MiB beyond frames, weights "
        "and their gradients, at the peak. In float32 losses differ by "
        f"{loss_error:.1e}, a gradient by at most {gradient_error:.1e} of its norm.",
        markdown_table((*header, "ratio"), rows, "llrrrrrrr"),
    ]
    default = Path(__file__).parent / "results" / f"token_loss_{args.device}.md"
    write_markdown(args.output or default, blocks)
    sys.stdout.write("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
