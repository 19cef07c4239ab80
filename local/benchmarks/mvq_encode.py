"""Encoding speed and error beside `multi_quantization`, with the same weights on the same frames.

The weights are those of a quantiser that the reference package trained on real recordings: its
state dict, from `mvq_training.py --save`. Both sides encode held-out frames in turns, in one run;
the table and the result file give medians. Run by hand, see `mvq_peer.py` for the package:

    OMP_NUM_THREADS=2 python local/benchmarks/mvq_encode.py --audio-dir DIR --reference STATE
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mvq_peer import (
    FASTEST_CALL,
    load_reference,
    reference_codes,
    reference_package,
    reference_quantizer,
    split_frames,
)
from torch import Tensor

from spear.mvq import Quantizer
from spear.mvq.evaluation import relative_error
from spear.mvq.quantizers.quantizer import BEAM_WIDTH, NUM_PASSES
from spear.system.markdown import code, markdown_table, write_markdown

Encoder = Callable[[Tensor], Tensor]
REFERENCE_ROUNDS = 5
"""The package's default."""
_WHOLE_CALL = 1024
_WHOLE = f"multi_quantization, {REFERENCE_ROUNDS} refinements, {_WHOLE_CALL} frames a call"


def make_encoders(quantizer: Quantizer) -> dict[str, Encoder]:
    """Returns what is compared, by the name in the table."""

    def ours(num_passes: int, beam_width: int) -> Encoder:
        return lambda x: quantizer.encode(x, num_passes=num_passes, beam_width=beam_width)

    theirs = reference_quantizer(quantizer)

    def reference(num_rounds: int, call_frames: int = FASTEST_CALL) -> Encoder:
        return lambda x: reference_codes(theirs, quantizer.normalize(x), num_rounds, call_frames)

    found: dict[str, Encoder] = {
        f"multi_quantization, {rounds} refinements": reference(rounds)
        for rounds in (0, 1, 3, REFERENCE_ROUNDS)
    }
    found[_WHOLE] = reference(REFERENCE_ROUNDS, _WHOLE_CALL)
    searches = [(0, BEAM_WIDTH), (1, 4), (2, 8), (NUM_PASSES, 8), (3, BEAM_WIDTH)]
    searches += [(NUM_PASSES, BEAM_WIDTH), (NUM_PASSES, 2 * BEAM_WIDTH)]
    for passes, width in searches:
        found[f"spear, {passes} passes, beam {width}"] = ours(passes, width)
    return found


def measure(
    encoders: dict[str, Encoder], frames: Tensor, num_reference: int, repeats: int
) -> dict[str, tuple[Tensor, float]]:
    """Returns codes and median frames/s of every encoder; the slower side gets fewer frames."""
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    codes = {}
    for repeat in range(repeats + 1):  # the first time compiles, and is not counted
        for name, encode in encoders.items():
            is_ours = name.startswith("spear")
            part = frames if is_ours else frames[:num_reference]
            started = time.perf_counter()
            codes[name] = encode(part)
            seconds = time.perf_counter() - started
            if repeat:
                rates[name].append(len(part) / seconds)
    return {name: (codes[name], statistics.median(rates[name])) for name in encoders}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--audio-dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--reference", type=Path, required=True, help="from mvq_training --save")
    parser.add_argument("--frames-timed", type=int, default=8192)
    parser.add_argument("--reference-frames", type=int, default=2048, help="it is much slower")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the result file; results/mvq_encode_dD_nN.md")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison as a Markdown table and writes it to the result file."""
    args = parse(argv)
    if reference_package() is None:
        raise SystemExit(1)
    quantizer, _ = load_reference(args.reference)
    _, held_out = split_frames(args.audio_dir, quantizer.dim, num_train=1)
    # A fixed shuffle: both parts look alike, so that errors can be compared.
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    frames = held_out[order[: args.frames_timed]]
    found = measure(make_encoders(quantizer), frames, args.reference_frames, args.repeats)
    few = frames[: args.reference_frames]
    bases = [found[f"multi_quantization, {REFERENCE_ROUNDS} refinements"][1], found[_WHOLE][1]]
    rows = [
        (
            name,
            f"{rate:,.0f}",
            *(f"{rate / base:.1f}" for base in bases),
            f"{relative_error(quantizer, few, codes[: len(few)]):.5f}",
        )
        for name, (codes, rate) in found.items()
    ]
    header = ("search", "frames/s", "ratio", "ratio to whole calls", "relative error")
    blocks = [
        "# Encoding beside multi_quantization",
        f"D {quantizer.dim}, N {quantizer.num_codebooks}, K {quantizer.codebook_size}: a quantiser "
        f"that the reference trained, the same weights on both sides. Held-out frames of "
        f"{code(args.audio_dir.resolve().name)}, {torch.get_num_threads()} threads, medians of "
        f"{args.repeats} turns; {len(frames):,} frames here, {len(few):,} there, all errors on "
        f"those {len(few):,}. Defaults are {REFERENCE_ROUNDS} refinements there and {NUM_PASSES} "
        f"passes with a beam of {BEAM_WIDTH} here. The reference is called with {FASTEST_CALL} "
        f"frames, which suit it best, and once with {_WHOLE_CALL:,}, as for a recording of 20 s; "
        f"ratios are to its default in these two ways.",
        markdown_table(header, rows, "lrrrr"),
    ]
    name = f"mvq_encode_d{quantizer.dim}_n{quantizer.num_codebooks}.md"
    write_markdown(args.output or Path(__file__).parent / "results" / name, blocks)
    sys.stdout.write("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
