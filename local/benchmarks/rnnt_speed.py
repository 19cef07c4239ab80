"""The transducer losses beside k2's: smoothed and pruned loss with gradients, time and memory.

Each side runs in processes of its own, which take turns; k2's Python is another one (see
`local/checks/k2.sh`). What is measured is the loss of the trivial joiner, the choice of windows,
the pruned loss of logits am + lm, and the backward pass through both. Memory is what comes on top
of `am` and `lm`, at the peak of one step.

    python local/benchmarks/rnnt_speed.py --k2-python exp/k2/venv/bin/python
    python local/benchmarks/rnnt_speed.py --device cuda
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

CHECKOUT = Path(__file__).resolve().parent.parent.parent
NUM_TURNS = 3
"""Processes of each side for every row; the medians of their medians are given."""


def draw(args: argparse.Namespace) -> dict[str, Any]:
    """Draws a batch without padding."""
    torch.manual_seed(0)
    size = (args.batch_size,)
    return {
        "am": torch.randn(*size, args.frames, args.vocab, requires_grad=True, device=args.device),
        "lm": torch.randn(
            *size, args.labels + 1, args.vocab, requires_grad=True, device=args.device
        ),
        "symbols": torch.randint(1, args.vocab, (*size, args.labels), device=args.device),
        "frames": torch.full(size, args.frames, device=args.device),
        "symbol_lengths": torch.full(size, args.labels, device=args.device),
    }


def step(losses: ModuleType, drawn: dict[str, Any], s_range: int) -> Tensor:
    """Runs both losses and their backward pass; returns their sum ()."""
    am, lm, symbols = drawn["am"], drawn["lm"], drawn["symbols"]
    sizes = (drawn["frames"], drawn["symbol_lengths"])
    simple, shares = losses.rnnt_loss_smoothed(am, lm, symbols, *sizes, reduction="sum")
    ranges = losses.prune_ranges(*shares, *sizes, s_range)
    am_kept, lm_kept = losses.prune(am, lm, ranges)
    pruned = losses.rnnt_loss_pruned(am_kept + lm_kept, symbols, ranges, *sizes, reduction="sum")
    total: Tensor = simple + pruned
    total.backward()
    am.grad = lm.grad = None
    return total.detach()


def load(side: str) -> ModuleType:
    """Loads an implementation; k2's Python cannot import spear."""
    if side == "spear":
        from spear.asr.rnnt import losses as rnnt

        return rnnt
    sys.path.insert(0, str(CHECKOUT / "local" / "checks"))
    from k2_losses import load_adapter

    return load_adapter()


def peak_mib(device: str, reset: bool = False) -> float:
    """Returns the peak since the last reset; on a CPU that of the process's resident memory."""
    # zipformer_speed's function needs spear beside it, which k2's Python cannot import.
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) / 1024


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Measures one side in this process."""
    torch.set_num_threads(args.threads[0])
    losses = load(args.side)
    warm = argparse.Namespace(**{**vars(args), "frames": 20, "labels": 6})
    step(losses, draw(warm), args.s_range)
    drawn = draw(args)
    before = peak_mib(args.device, reset=True)
    step(losses, drawn, args.s_range)
    memory = peak_mib(args.device) - before
    seconds = []
    for _ in range(args.repeats):
        started = time.perf_counter()
        step(losses, drawn, args.s_range).item()
        seconds.append(time.perf_counter() - started)
    return {"mib": memory, "seconds": statistics.median(seconds)}


def in_process(args: argparse.Namespace, side: str, threads: int) -> dict[str, float]:
    """Runs `measure` with the side's own Python."""
    python = args.k2_python if side == "k2" else sys.executable
    words = [str(python), __file__, "--side", side, "--threads", str(threads)]
    for name in ("batch_size", "frames", "labels", "vocab", "s_range", "repeats", "device"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(args: argparse.Namespace) -> list[tuple[str, ...]]:
    """Measures all sides in turns; one row for each number of threads."""
    sides = ["spear"] if args.k2_python is None else ["spear", "k2"]
    table = []
    for threads in args.threads:
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for side in sides * NUM_TURNS:
            found[side].append(in_process(args, side, threads))
        seconds, mib = (
            {side: statistics.median(one[key] for one in turns) for side, turns in found.items()}
            for key in ("seconds", "mib")
        )
        row = [str(threads), *(f"{seconds[side]:.3f}" for side in sides)]
        row += [f"{mib[side]:,.0f}" for side in sides]
        if len(sides) == 2:
            row += [f"{seconds['spear'] / seconds['k2']:.2f}", f"{mib['spear'] / mib['k2']:.2f}"]
        table.append(tuple(row))
    return table


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--k2-python", type=Path, help="a Python that has k2; none: spear alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--labels", type=int, default=60)
    parser.add_argument("--vocab", type=int, default=500)
    parser.add_argument("--s-range", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="the result file")
    parser.add_argument("--side", choices=("spear", "k2"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison as a Markdown table and writes it to the result file."""
    args = parse(argv)
    if args.side is not None:
        sys.stdout.write(json.dumps(measure(args)) + "\n")
        return
    from spear.system.markdown import markdown_table, write_markdown

    header = ["threads", "spear s", "spear MiB"]
    if args.k2_python is not None:
        header = ["threads", "spear s", "k2 s", "spear MiB", "k2 MiB"]
        header += ["time ratio", "memory ratio"]
    blocks = [
        "# Transducer losses, smoothed and pruned, with gradients",
        f"B = {args.batch_size}, T = {args.frames}, S = {args.labels}, {args.vocab} symbols, range "
        f"{args.s_range}, float32 on {args.device}; torch {torch.__version__}, medians of "
        f"{NUM_TURNS} processes with {args.repeats} steps each. MiB beyond am and lm, at the peak.",
        markdown_table(header, rows(args), "r" * len(header)),
    ]
    sys.stdout.write("\n\n".join(blocks) + "\n")
    default = Path(__file__).parent / "results" / f"rnnt_{args.device}.md"
    write_markdown(args.output or default, blocks)


if __name__ == "__main__":
    main()
