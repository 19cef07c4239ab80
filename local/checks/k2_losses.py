"""Compares the transducer losses with k2's, in two steps with a Python each: see k2.sh.

`k2` runs in k2's environment. It loads the adapter by its path, for spear itself cannot be imported
there, and writes what it computes for random utterances. `compare` runs in spear's environment and
says where the two agree.
"""

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

ADAPTER = Path(__file__).resolve().parents[2] / "spear/asr/rnnt/k2.py"
RELATIVE, ABSOLUTE = 1e-6, 1e-6
"""How far losses, and gradients or shares, may be apart. In float64: with float32 k2's own sums
are off by up to 4e-3 for long recordings."""


@dataclass(frozen=True)
class Case:
    """A batch of random utterances; `even` ones all have the full length."""

    batch_size: int
    num_frames: int
    num_labels: int
    vocab_size: int
    s_range: int = 5
    am_scale: float = 0.0
    lm_scale: float = 0.25
    even: bool = False


CASES = {
    "small": Case(3, 14, 5, 11, s_range=3),
    "ragged": Case(8, 60, 20, 50),
    "as many labels as frames": Case(4, 25, 25, 17, s_range=4),
    "windows of every place": Case(4, 20, 3, 17),
    "unsmoothed": Case(4, 40, 12, 30, lm_scale=0.0),
    "both scales": Case(4, 40, 12, 30, am_scale=0.1, even=True),  # k2's average counts padding
    "long": Case(4, 400, 90, 500),
}


def draw(case: Case) -> dict[str, Tensor]:
    """Draws models' outputs and transcripts; the same for the same torch generator."""
    torch.manual_seed(case.num_frames * case.num_labels)
    size = (case.batch_size,)
    frames = torch.randint(case.num_frames // 2 + 1, case.num_frames + 1, size)
    lengths = torch.randint(1, case.num_labels + 1, size)
    frames[0], lengths[0] = case.num_frames, case.num_labels
    if case.even:
        frames[:], lengths[:] = case.num_frames, case.num_labels
    return {
        "am": 2.0 * torch.randn(*size, case.num_frames, case.vocab_size, dtype=torch.float64),
        "lm": torch.randn(*size, case.num_labels + 1, case.vocab_size, dtype=torch.float64),
        "symbols": torch.randint(1, case.vocab_size, (*size, case.num_labels)),
        "frames": frames,
        "symbol_lengths": torch.minimum(lengths, frames),
    }


def compute(losses: ModuleType, case: Case, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Runs all five functions of an implementation with the gradients of its three losses."""
    am, lm = (drawn[name].clone().requires_grad_() for name in ("am", "lm"))
    sizes = (drawn["frames"], drawn["symbol_lengths"])
    scales = {"am_scale": case.am_scale, "lm_scale": case.lm_scale}
    smoothed, (px, py) = losses.rnnt_loss_smoothed(
        am, lm, drawn["symbols"], *sizes, reduction="none", **scales
    )
    found: dict[str, Tensor] = {"smoothed": smoothed, "share px": px, "share py": py}
    found["gradient smoothed am"], found["gradient smoothed lm"] = torch.autograd.grad(
        smoothed.sum(), (am, lm)
    )
    # What follows is of k2's windows on both sides: theirs are compared by themselves.
    found["ranges"] = losses.prune_ranges(px, py, *sizes, case.s_range)
    ranges = drawn.get("ranges", found["ranges"])
    logits = sum(losses.prune(am, lm, ranges))
    assert isinstance(logits, Tensor)
    found["pruned"] = losses.rnnt_loss_pruned(
        logits, drawn["symbols"], ranges, *sizes, reduction="none"
    )
    found["gradient pruned am"], found["gradient pruned lm"] = torch.autograd.grad(
        found["pruned"].sum(), (am, lm)
    )
    full = (am.unsqueeze(2) + lm.unsqueeze(1)).tanh()
    found["full"] = losses.rnnt_loss(full, drawn["symbols"], *sizes, reduction="none")
    found["gradient full am"], found["gradient full lm"] = torch.autograd.grad(
        found["full"].sum(), (am, lm)
    )
    return {name: value.detach() for name, value in found.items()}


def load_adapter() -> ModuleType:
    """Loads the adapter from its file, without the package around it."""
    spec = importlib.util.spec_from_file_location("rnnt_k2", ADAPTER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_reference(path: Path) -> None:
    """Writes every case with what k2 computes for it."""
    adapter = load_adapter()
    cases = {}
    for name, case in CASES.items():
        drawn = draw(case)
        cases[name] = {"drawn": drawn, "found": compute(adapter, case, drawn)}
    torch.save(cases, path)


def compare(path: Path) -> int:
    """Prints a line for each case; returns how many do not agree."""
    from spear.asr.rnnt import losses as rnnt

    stored: dict[str, Any] = torch.load(path, weights_only=True)
    num_wrong = 0
    for name, case in CASES.items():
        theirs = stored[name]["found"]
        ours = compute(rnnt, case, {**stored[name]["drawn"], "ranges": theirs["ranges"]})
        losses, rest = distances(ours, theirs)
        same = (ours["ranges"] == theirs["ranges"]).all(dim=2).float().mean().item()
        agrees = losses <= RELATIVE and rest <= ABSOLUTE
        num_wrong += not agrees
        sys.stdout.write(
            f"{'agrees' if agrees else 'DIFFERS'}: {name}: losses by {losses:.1e} of their size, "
            f"gradients and shares by {rest:.1e}; {100 * same:.2f}% of the windows are the same\n"
        )
    return num_wrong


def distances(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, float]:
    """Returns the largest relative difference of a loss, and absolute one of another number."""
    losses, rest = [0.0], [0.0]
    for name, own in ours.items():
        if own.shape != theirs[name].shape:
            raise SystemExit(f"{name}: {tuple(own.shape)}, k2 has {tuple(theirs[name].shape)}")
        difference = (own - theirs[name]).abs()
        if name in {"smoothed", "pruned", "full"}:
            losses.append(float((difference / theirs[name].abs()).max()))
        elif name != "ranges":
            rest.append(float(difference.max()))
    return max(losses), max(rest)


def main(argv: list[str] | None = None) -> None:
    """Runs one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("step", choices=("k2", "compare"))
    parser.add_argument("--file", type=Path, required=True, help="what k2 computed")
    args = parser.parse_args(argv)
    if args.step == "k2":
        write_reference(args.file)
    elif compare(args.file):
        raise SystemExit("spear and k2 do not agree")


if __name__ == "__main__":
    main()
