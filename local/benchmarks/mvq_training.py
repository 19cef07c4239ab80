"""Training beside `multi_quantization`: time, error, and how evenly codes are used.

Both sides train on the same frames of real recordings (stacked log-mel, every channel brought to
zero mean and unit variance) in one run, and are measured on the frames they trained on and on
recordings that neither has heard, by the same search. Run by hand, see `mvq_peer.py` for the
package:

    OMP_NUM_THREADS=2 python local/benchmarks/mvq_training.py --audio-dir DIR --save STATE

The reference takes half an hour and more. Its state dict goes to `--save`, for `mvq_encode.py`;
`--reference STATE` takes it from there, with the seconds that it took, instead of training again.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from mvq_peer import (
    REFERENCE_BATCH,
    load_reference,
    reference_codes,
    reference_package,
    reference_quantizer,
    save_reference,
    split_frames,
    train_reference,
)
from torch import Tensor

from spear.mvq import Quantizer, TrainingBudget, train_quantizer
from spear.mvq.evaluation import evaluate, relative_error, spread_out
from spear.mvq.usage import count_codes
from spear.system.markdown import code, markdown_table, write_markdown

_MAX_MEASURED = 12_000
_MAX_BY_REFERENCE = 2_000
_PROGRESS_STEPS = 200


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--audio-dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--dim", type=int, default=256, help="width, a multiple of 256")
    parser.add_argument("--num-codebooks", type=int, default=8)
    parser.add_argument("--train-frames", type=int, default=100_000)
    parser.add_argument("--reference-steps", type=int, default=2_000, help="of each of two phases")
    parser.add_argument("--reference", type=Path, help="a state from --save, not trained again")
    parser.add_argument("--save", type=Path, help="where the reference's state goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="the file; results/mvq_training_dD_nN.md")
    return parser.parse_args(argv)


def obtain_reference(frames: Tensor, args: argparse.Namespace) -> tuple[Quantizer, float]:
    """Returns what the reference makes of frames (F, D), with the seconds it took."""
    if args.reference:
        return load_reference(args.reference)
    mean, scale = frames.mean(dim=0), frames.std(dim=0).clamp(min=1e-3)

    def watch(step: int, seconds: float, trainer: object) -> None:
        if step % _PROGRESS_STEPS == 0:
            sys.stderr.write(f"multi_quantization: step {step}, {seconds:.0f} s\n")

    state, seconds = train_reference(
        (frames - mean) / scale, args.num_codebooks, args.reference_steps, args.seed, watch
    )
    if args.save:
        save_reference(args.save, state, mean, scale, seconds)
    quantizer = Quantizer.from_multi_quantization(state, channel_mean=mean, channel_scale=scale)
    return quantizer, seconds


def budgets(num_frames: int) -> dict[str, TrainingBudget]:
    """Returns what is trained here, by its name in the table."""
    return {
        "spear, short": TrainingBudget(num_iterations=8),
        "spear, default": TrainingBudget(),
        "spear, long": TrainingBudget(
            num_iterations=24, frames_per_iteration=num_frames, memory=0.2
        ),
    }


def describe_row(
    name: str, quantizer: Quantizer, times_s: tuple[float, float], frames: tuple[Tensor, Tensor]
) -> tuple[str, ...]:
    """Returns a row of the table: a trainer, what it took beside the reference, what it gave."""
    train, held_out = (evaluate(quantizer, spread_out(part, _MAX_MEASURED)) for part in frames)
    usage = count_codes(quantizer.encode(frames[0]), quantizer.codebook_size)
    seconds, base_s = times_s
    return (
        name,
        f"{seconds:.0f}",
        f"1/{base_s / seconds:.0f}",
        f"{train.relative_error:.4f}",
        f"{held_out.relative_error:.4f}",
        f"{min(train.entropies):.3f}",
        str(int((usage == 0).sum())),
        f"{min(train.errors_without):.2f} to {max(train.errors_without):.2f}",
    )


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison as a Markdown table and writes it to the result file."""
    args = parse(argv)
    if reference_package() is None:
        raise SystemExit(1)
    train, held_out = split_frames(args.audio_dir, args.dim, args.train_frames)
    measured = (train, held_out)
    theirs, base_s = obtain_reference(train, args)
    rows = [describe_row("multi_quantization", theirs, (base_s, base_s), measured)]
    few = spread_out(held_out, _MAX_BY_REFERENCE)
    codes = reference_codes(reference_quantizer(theirs), theirs.normalize(few))
    own_search = relative_error(theirs, few, codes)
    our_search = relative_error(theirs, few, theirs.encode(few))
    for name, budget in budgets(len(train)).items():
        started = time.perf_counter()
        quantizer = train_quantizer(
            train, args.num_codebooks, seed=args.seed, normalize_channels=True, budget=budget
        )
        seconds = time.perf_counter() - started
        rows.append(describe_row(name, quantizer, (seconds, base_s), measured))
        sys.stderr.write(" | ".join(rows[-1]) + "\n")
    header = (
        "trainer",
        "seconds",
        "of the reference's",
        "error, trained on",
        "error, held out",
        "least entropy",
        "unused codes",
        "error without one codebook",
    )
    blocks = [
        "# Training beside multi_quantization",
        f"{len(train):,} frames of {code(args.audio_dir.resolve().name)} (stacked log-mel, D "
        f"{args.dim}), N {args.num_codebooks}, K 256, {torch.get_num_threads()} threads, seed "
        f"{args.seed}. The reference took {args.reference_steps} + {args.reference_steps} steps of "
        f"{REFERENCE_BATCH} frames. All rows are encoded by the search of this library; the "
        f"reference's own search, 5 refinements, gives its quantiser {own_search:.4f} on "
        f"{len(few):,} of the held-out frames, where ours gives {our_search:.4f}.",
        markdown_table(header, rows, "lrrrrrrr"),
        "Errors are relative, entropies over log K in the codebook where they are least, on at "
        f"most {_MAX_MEASURED:,} frames; unused codes of {256 * args.num_codebooks:,}, on all "
        "frames of the training. The error without one codebook, from the least to the most "
        "important one, shows whether codebooks share the work.",
    ]
    name = f"mvq_training_d{args.dim}_n{args.num_codebooks}.md"
    write_markdown(args.output or Path(__file__).parent / "results" / name, blocks)
    sys.stdout.write("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
