"""The encoder by onnxruntime beside PyTorch, with the same weights and inputs, on a CPU.

All take turns in one process with as many threads; the table gives medians. Weights are random,
which does not change the times.

    OMP_NUM_THREADS=2 python local/benchmarks/onnx_speed.py
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor
from zipformer_speed import make_batch, time_turns

from spear.hub.onnx.check import measure_difference
from spear.hub.onnx.graph import INPUTS, OnnxGraph, write_int8, write_onnx
from spear.system.markdown import markdown_table, write_markdown
from spear.system.numba_functions import is_installed
from spear.zipformer import Zipformer, ZipformerConfig

SHAPES = ((1, 2.0), (1, 10.0), (4, 10.0), (1, 30.0))
"""Clips of a batch, and seconds of each."""
Run = Callable[[Tensor, Tensor], object]


def write_files(graph: OnnxGraph, folder: Path) -> dict[str, Path]:
    """Writes a graph with float32 and with 8-bit weights; returns the files by what they are."""
    files = {"float32": folder / "encoder.onnx", "int8": folder / "encoder.int8.onnx"}
    write_onnx(graph, files["float32"], ("encoder_out", "encoder_out_lens"), {})
    write_int8(files["float32"], files["int8"])
    return files


def make_sides(graph: OnnxGraph, files: Mapping[str, Path]) -> dict[str, Run]:
    """Returns PyTorch and onnxruntime with every file, as functions of features and lengths."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    sides: dict[str, Run] = {"PyTorch": graph.zipformer}
    for name, path in files.items():
        session = onnxruntime.InferenceSession(path, options)
        sides[name] = functools.partial(_run_session, session)
    return sides


def _run_session(session: Any, x: Tensor, x_lens: Tensor) -> object:
    return session.run(None, dict(zip(INPUTS, (x.numpy(), x_lens.numpy()), strict=True)))


def measure(
    sides: Mapping[str, Run], shapes: Sequence[tuple[int, float]], repeats: int
) -> list[tuple[str, ...]]:
    """Returns a row for every shape: seconds of each side, and how much faster than PyTorch."""
    rows = []
    for clips, clip_s in shapes:
        batch = make_batch(argparse.Namespace(clips=clips, clip_s=clip_s, device="cpu"))

        def run(side: Any, batch: tuple[Tensor, Tensor] = batch) -> None:
            with torch.no_grad():
                side(*batch)

        turns: dict[str, Any] = dict(sides)
        seconds = time_turns(turns, run, repeats, "cpu")
        first, *others = seconds.values()
        cells = [f"{taken:.3f}" for taken in seconds.values()]
        ratios = [f"{first / taken:.2f}" for taken in others]
        rows.append((f"{clips} x {clip_s:g} s", *cells, *ratios))
    return rows


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="base", help="which named configuration")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="the result file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison as a Markdown table and writes it to the result file."""
    args = parse(argv)
    torch.manual_seed(0)
    graph = OnnxGraph(Zipformer(ZipformerConfig.named(args.model)).eval())
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        files = write_files(graph, Path(folder))
        export_s = time.process_time() - started
        facts = [
            f"{name}: {path.stat().st_size / 2**20:,.0f} MiB, output "
            f"{measure_difference(graph, path).relative:.0e} of its size from PyTorch's"
            for name, path in files.items()
        ]
        rows = measure(make_sides(graph, files), SHAPES, args.repeats)
    header = ("batch", "PyTorch s", "float32 s", "int8 s", "float32 ratio", "int8 ratio")
    blocks = [
        f"# The {args.model} encoder by onnxruntime beside PyTorch",
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, onnxruntime "
        f"{onnxruntime.__version__}, numba {'used' if is_installed() else 'absent'}, medians of "
        f"{args.repeats} turns; ratios are PyTorch's time by theirs. Random weights. "
        f"{'; '.join(facts)}. Writing both files took {export_s:.0f} s of processor time.",
        markdown_table(header, rows, "lrrrrr"),
    ]
    write_markdown(args.output or Path(__file__).parent / "results" / "onnx_speed.md", blocks)
    sys.stdout.write("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
