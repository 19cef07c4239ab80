"""How near windows come to one pass over a long recording, by how much context they see.

The recording is made of short ones, one after the other; one pass over it is the reference.

    python local/benchmarks/long_audio.py --model MODEL_FOLDER --audio-dir DIR
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from mvq_peer import find_recordings, read_recordings
from torch import Tensor

import spear
from spear.audio import SAMPLE_RATE_HZ
from spear.system.markdown import code, markdown_table, write_markdown

CONTEXTS_S = (1.0, 2.0, 4.0, 8.0, 16.0)


def frame_errors(output: Tensor, reference: Tensor) -> Tensor:
    """Returns the distance of every frame (T,) from the reference, relative to its norm."""
    return (output - reference).norm(dim=-1) / reference.norm(dim=-1)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="a trained model's folder")
    parser.add_argument("--audio-dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--audio-s", type=float, default=180.0)
    parser.add_argument("--window-s", type=float, default=40.0)
    parser.add_argument("--output", type=Path, help="the result file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the errors as a Markdown table and writes it to the result file."""
    args = parse(argv)
    model = spear.from_pretrained(args.model)
    audio = read_recordings(find_recordings(args.audio_dir), args.audio_s)
    with torch.no_grad():
        whole = model(audio.unsqueeze(0)).last_hidden_state[0]
    rows = []
    for context_s in CONTEXTS_S:
        started = time.perf_counter()
        long = model.encode_long(audio, window_s=args.window_s, context_s=context_s)
        seconds = time.perf_counter() - started
        errors = frame_errors(long.last_hidden_state[0], whole)
        rows.append(
            (
                f"{context_s:g}",
                f"{errors.median():.1e}",
                f"{errors.mean():.1e}",
                f"{errors.max():.1e}",
                f"{len(audio) / SAMPLE_RATE_HZ / seconds:.0f}",
            )
        )
    header = ("context s", "median", "mean", "largest", "audio s per s")
    blocks = [
        "# Windows beside one pass",
        f"Model {code(args.model.resolve().name)}, {len(audio) / SAMPLE_RATE_HZ:.0f} s of "
        f"{code(args.audio_dir.resolve().name)} joined, windows of {args.window_s:g} s, "
        f"{torch.get_num_threads()} threads. Distance of a frame from that of one pass over the "
        "whole, relative to its norm.",
        markdown_table(header, rows, "rrrrr"),
    ]
    write_markdown(args.output or Path(__file__).parent / "results" / "long_audio.md", blocks)
    sys.stdout.write("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
