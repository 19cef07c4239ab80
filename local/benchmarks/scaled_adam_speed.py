"""A step of ScaledAdam beside icefall's, on the parameters of a whole model.

    python local/benchmarks/scaled_adam_speed.py --icefall DIR [--model base] [--threads 1 2]

The sides take turns in one process on equal weights and gradients: icefall's class, ours, and
ours without numba. The result names the medians, their ratio, and how far the parameters of the
two lie apart at the end. Nothing but `optim.py` of icefall's LibriSpeech recipe is imported.
"""

import argparse
import contextlib
import importlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from spear.optim import ScaledAdam
from spear.pretrain.losses import LossConfig
from spear.pretrain.model import PretrainModel, TeacherTarget
from spear.system.markdown import markdown_table, write_markdown
from spear.system.numba_functions import is_installed
from spear.zipformer import ZipformerConfig

_RECIPE = Path("egs/librispeech/ASR/zipformer")
_LR, _CLIPPING_SCALE = 0.045, 2.0


class Side:
    """One optimiser with parameters of its own.

    Args:
        name: Of the side.
        optimizer: A class that is called as icefall's ScaledAdam is.
        initial: Name -> value, copied.
        has_numba: Whether compiled loops may be used.
    """

    def __init__(
        self, name: str, optimizer: Any, initial: dict[str, Tensor], has_numba: bool
    ) -> None:
        self.name, self.has_numba = name, has_numba
        self.parameters = {n: nn.Parameter(value.clone()) for n, value in initial.items()}
        named = list(self.parameters.items())
        self.optimizer = optimizer(named, lr=_LR, clipping_scale=_CLIPPING_SCALE)
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def step(self, grads: list[Tensor]) -> None:
        """Does one step and notes how long it took."""
        for parameter, grad in zip(self.parameters.values(), grads, strict=True):
            parameter.grad = grad
        with contextlib.ExitStack() as stack:
            if not self.has_numba:
                stack.enter_context(mock.patch("spear.optim.group.is_installed", lambda: False))
            started, cpu_started = time.perf_counter(), time.process_time()
            self.optimizer.step()
            self.seconds.append(time.perf_counter() - started)
            self.cpu_seconds.append(time.process_time() - cpu_started)


def import_icefall(checkout: Path) -> Any:
    """Returns icefall's class."""
    if not (checkout / _RECIPE / "optim.py").is_file():
        raise SystemExit(f"{checkout} holds no {_RECIPE}/optim.py: give a checkout of icefall")
    sys.path.insert(0, str(checkout / _RECIPE))
    return importlib.import_module("optim").ScaledAdam


def make_weights(model: str) -> dict[str, Tensor]:
    """Returns the initial weights of a student with the heads of both teachers."""
    torch.manual_seed(0)
    teachers = {
        "wavlm": TeacherTarget("speech", num_codebooks=16),
        "dasheng": TeacherTarget("audio", num_codebooks=8, frame_rate_hz=25.0),
    }
    whole = PretrainModel(ZipformerConfig.named(model), teachers, LossConfig())
    return {name: parameter.detach() for name, parameter in whole.named_parameters()}


def make_gradients(weights: dict[str, Tensor], count: int) -> list[list[Tensor]]:
    """Draws gradients whose scale differs by tensor, as those of a loss do."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.randn(len(weights), generator=generator).exp() * 1e-3
    return [
        [
            torch.randn(value.shape, generator=generator) * scale
            for value, scale in zip(weights.values(), scales, strict=True)
        ]
        for _ in range(count)
    ]


def distance(one: Side, other: Side) -> float:
    """Returns the largest difference of a parameter relative to its largest element."""
    pairs = zip(one.parameters.values(), other.parameters.values(), strict=True)
    with torch.no_grad():
        return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) for a, b in pairs)


def compare(icefall: Any, args: argparse.Namespace, num_threads: int) -> list[tuple[str, ...]]:
    """Returns rows of the table for one number of threads."""
    torch.set_num_threads(num_threads)
    weights = make_weights(args.model)
    sides = [Side("icefall", icefall, weights, True), Side("torch", ScaledAdam, weights, False)]
    if is_installed():
        sides.append(Side("numba", ScaledAdam, weights, True))
    gradients = make_gradients(weights, 2)
    del weights
    for step in range(args.warmup + args.steps):
        for side in sides:
            side.step(gradients[step % 2])
    counted = slice(args.warmup, None)
    theirs = statistics.median(sides[0].seconds[counted])
    rows: list[tuple[str, ...]] = []
    for side in sides:
        taken = statistics.median(side.seconds[counted])
        cpu = statistics.median(side.cpu_seconds[counted])
        apart = "" if side is sides[0] else f"{distance(side, sides[0]):.1e}"
        cells = (f"{taken:.3f}", f"{theirs / taken:.2f}", f"{cpu:.3f}", apart)
        rows.append((f"{num_threads}", side.name, *cells))
    return rows


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--icefall", type=Path, required=True, help="a checkout of icefall")
    parser.add_argument("--model", default="base", help="which named configuration")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--warmup", type=int, default=4, help="steps that are not counted")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--output", type=Path, help="the result file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison as a Markdown table and writes it to the result file."""
    args = parse(argv)
    icefall = import_icefall(args.icefall)
    rows = [row for number in args.threads for row in compare(icefall, args, number)]
    weights = make_weights(args.model)
    count = sum(value.numel() for value in weights.values())
    blocks = [
        f"# A step of ScaledAdam on the {args.model} model beside icefall's",
        f"{len(weights)} parameters with {count / 1e6:.1f} M elements on a CPU, torch "
        f"{torch.__version__}; medians of {args.steps} steps, the sides taking turns. CPU "
        "seconds are of all threads: where others use the machine they say more. `apart` is "
        f"the largest difference from icefall's parameters after {args.warmup + args.steps} steps, "
        "relative to the largest element of each.",
        markdown_table(("threads", "side", "seconds", "ratio", "CPU s", "apart"), rows, "rlrrrr"),
    ]
    name = f"scaled_adam_{args.model}.md"
    write_markdown(args.output or Path(__file__).parent / "results" / name, blocks)
    sys.stdout.write("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
