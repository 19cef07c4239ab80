"""The student beside icefall's Zipformer2: agreement, speed and memory, with the same weights.

Both sides take turns in one process; the table gives medians. Peak memory is measured with each
side in a process of its own. On a GPU both run under bfloat16 autocast. See `zipformer_peer.py`
for what is needed of icefall:

    OMP_NUM_THREADS=2 python local/benchmarks/zipformer_speed.py --icefall CHECKOUT
    python local/benchmarks/zipformer_speed.py --icefall CHECKOUT --device cuda --model large
"""

import argparse
import functools
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zipformer_peer import import_icefall, plain_gradients, twin_of

from spear.system.markdown import markdown_table, write_markdown
from spear.system.numba_functions import is_installed
from spear.zipformer import Zipformer, ZipformerConfig, set_schedule

COUNTS = (0.0, 8000.0, 100000.0)
"""Positions in training: its beginning, icefall's default balancers' end, and most of a run."""
_LATE = COUNTS[-1]
_FBANK_HZ = 100


def make_batch(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Returns features (B, T, 128) of noise at the level of speech, and their lengths."""
    num_frames = round(args.clip_s * _FBANK_HZ)
    generator = torch.Generator().manual_seed(0)
    fbank = torch.randn(args.clips, num_frames, 128, generator=generator) * 3.0 - 8.0
    lens = torch.full((args.clips,), num_frames)
    return fbank.to(args.device), lens.to(args.device)


def make_sides(args: argparse.Namespace) -> dict[str, nn.Module]:
    """Returns both encoders with the same weights."""
    torch.manual_seed(0)
    # icefall's front end does not pad, and its output is always downsampled.
    changes: dict[str, Any] = {"frontend_pad": False, "output_downsampling_factor": 2}
    if args.causal:
        changes.update(causal=True, chunk_size=(16,), left_context_frames=(64,))
    ours = Zipformer(ZipformerConfig.named(args.model, **changes))
    theirs = twin_of(ours)
    return {"spear": ours.to(args.device), "icefall": theirs.to(args.device)}


def encode(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the output (B, T', D) of either side."""
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=batch[0].is_cuda):
        encoded = model(*batch)
    output: Tensor = encoded.output if hasattr(encoded, "output") else encoded[0]
    return output


def infer(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Runs a forward pass in evaluation."""
    with torch.no_grad():
        encode(model.eval(), batch)


def train_step(model: nn.Module, batch: tuple[Tensor, Tensor], count: float) -> None:
    """Runs a forward and a backward pass at a position in training."""
    if isinstance(model, Zipformer):
        set_schedule(model, count)
    else:
        set_count: Any = model.set_count  # icefall's
        set_count(count)
    output = encode(model.train(), batch)
    output.backward(torch.randn_like(output))
    model.zero_grad()


def time_turns(
    sides: dict[str, nn.Module], run: Callable[[nn.Module], None], repeats: int, device: str
) -> dict[str, float]:
    """Returns the median seconds of each side, which take turns; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, model in sides.items():
            _wait(device)
            started = time.perf_counter()
            run(model)
            _wait(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def disagreement(sides: dict[str, nn.Module], batch: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Returns the largest difference of outputs, and of parameters' gradients relative to each."""
    ours, theirs = sides["spear"].eval(), sides["icefall"].eval()
    with plain_gradients():
        one, two = encode(ours, batch), encode(theirs, batch)
        grad = torch.randn_like(one)
        one.backward(grad)
        two.backward(grad)
    others = dict(theirs.named_parameters())
    relative = 0.0
    for name, parameter in ours.named_parameters():
        expected = others[name].grad
        assert parameter.grad is not None and expected is not None
        distance = (parameter.grad - expected).norm() / expected.norm().clamp_min(1e-6)
        relative = max(relative, float(distance))
    for model in sides.values():
        model.zero_grad()
    return float((one - two).abs().max()), relative


def measure_memory(args: argparse.Namespace, side: str, checkpointing: bool = False) -> float:
    """Returns MiB that a training step takes beyond weights and gradients, in a new process."""
    words = [sys.executable, __file__, *sys.argv[1:], "--memory-of", side]
    words += ["--checkpointing"] if checkpointing else []
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def print_memory(args: argparse.Namespace) -> None:
    """Prints what a step of one side takes at its peak; the other side is not there."""
    model = make_sides(args).pop(args.memory_of)
    if args.checkpointing and isinstance(model, Zipformer):
        model.set_checkpointing(True)
    fbank, lens = make_batch(args)
    short = (fbank[:1, :60], lens[:1].clamp(max=60))
    for _ in range(2):  # libraries are loaded and gradients made, before anything is counted
        train_step(model, short, _LATE)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = memory_mib(args.device, reset=True)
    # Not train_step, which gives the gradients back.
    output = encode(model.train(), (fbank, lens))
    output.backward(torch.randn_like(output))
    sys.stdout.write(f"{memory_mib(args.device) - before}\n")


def memory_mib(device: str, reset: bool = False) -> float:
    """Returns the peak since the last reset; on a CPU that of the process's resident memory."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) / 1024


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--icefall", type=Path, required=True, help="a checkout of icefall")
    parser.add_argument("--model", default="base", help="which named configuration")
    parser.add_argument("--causal", action="store_true", help="chunks of 16 frames, context of 64")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--clip-s", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="the result file")
    parser.add_argument("--memory-of", choices=("spear", "icefall"), help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison as a Markdown table and writes it to the result file."""
    args = parse(argv)
    warnings.simplefilter("ignore")
    import_icefall(args.icefall)
    if args.memory_of:
        print_memory(args)
        return
    sides, batch = make_sides(args), make_batch(args)
    output_error, gradient_error = disagreement(sides, batch)
    audio_s = args.clips * args.clip_s
    rows = []

    def add(name: str, run: Callable[[nn.Module], None]) -> None:
        taken = time_turns(sides, run, args.repeats, args.device)
        ours, theirs = taken["spear"], taken["icefall"]
        rates = (f"{audio_s / ours:,.1f}", f"{audio_s / theirs:,.1f}")
        rows.append((name, f"{ours:.3f}", f"{theirs:.3f}", *rates, f"{theirs / ours:.2f}"))

    add("inference", lambda model: infer(model, batch))
    for count in COUNTS:
        step = functools.partial(train_step, batch=batch, count=count)
        add(f"training step, count {count:,.0f}", step)
    memory = {side: measure_memory(args, side) for side in sides}
    checkpointed = measure_memory(args, "spear", checkpointing=True)
    header = ("", "here s", "icefall s", "here audio s/s", "icefall audio s/s", "ratio")
    threads = f"{torch.get_num_threads()} threads" if args.device == "cpu" else "bfloat16 autocast"
    blocks = [
        f"# The {args.model} encoder{', causal,' if args.causal else ''} beside icefall's",
        f"{args.clips} clips of {args.clip_s:g} s on {args.device}, {threads}, torch "
        f"{torch.__version__}, numba {'used' if is_installed() else 'absent'}, medians of "
        f"{args.repeats} turns. A step is forward and backward of the encoder, without optimiser. "
        f"Same weights: outputs differ by at most {output_error:.1e}, the gradient of a parameter "
        f"by at most {gradient_error:.1e} of its norm (without what shapes gradients at random).",
        markdown_table(header, rows, "lrrrrr"),
        f"Memory of a training step beyond weights and gradients: {memory['spear']:,.0f} MiB "
        f"here, {memory['icefall']:,.0f} MiB in icefall, a ratio of "
        f"{memory['spear'] / memory['icefall']:.2f}; "
        f"{checkpointed:,.0f} MiB here with activation checkpointing.",
    ]
    name = f"zipformer_{args.model}{'_causal' if args.causal else ''}_{args.device}.md"
    write_markdown(args.output or Path(__file__).parent / "results" / name, blocks)
    sys.stdout.write("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
