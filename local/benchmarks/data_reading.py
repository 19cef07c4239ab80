"""From shards to batches of features and tokens beside lhotse's own path, on the same files.

A corpus is written into a temporary folder; both sides read all of it in turns, in one run. The
table and the result file give medians of hours of audio per core-hour and per hour. Run by hand:

    OMP_NUM_THREADS=1 python local/benchmarks/data_reading.py --audio-dir DIR
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lhotse
import torch
from reading_corpus import CODEBOOK_SIZE, LONGEST_S, SHORTEST_S, TEACHERS, write_corpus
from reading_peer import noise_cuts, peer_batches

from spear.data.index.clip_index import SourceConfig
from spear.data.index.plan import BatchConfig
from spear.pretrain.augment import AugmentConfig
from spear.pretrain.bench import Pass, num_cores, time_pass
from spear.pretrain.config import PretrainConfig
from spear.pretrain.model import TeacherTarget
from spear.pretrain.reading import make_loader, open_index, training_data
from spear.system.markdown import code, markdown_table, write_markdown
from spear.training import TrainConfig

Side = Callable[[int], Iterable[Any]]
"""Number of workers -> the batches of one pass over the corpus."""
ROLES = {"wavlm": "speech", "dasheng": "audio"}
PLAIN, NOISY, SYNTHETIC = "none", "recorded noise", "synthetic noise"
RATIO_GOAL, MIXING_GOAL = 1.3, 2.0


def our_side(folders: dict[str, Path], max_duration_s: float, augment: AugmentConfig) -> Side:
    """Opens the corpus as pre-training does; the index is made beforehand, as in a run."""
    config = PretrainConfig(
        data=[SourceConfig(str(folder)) for folder in folders.values()],
        teachers={
            name: TeacherTarget(
                "speech" if ROLES[name] == "speech" else "audio", books, CODEBOOK_SIZE, rate_hz
            )
            for name, (rate_hz, books) in TEACHERS.items()
        },
        augment=augment,
        batch=BatchConfig(max_duration_s=max_duration_s),
        train=TrainConfig(device="cpu"),
    )
    dataset, plan = training_data(config, open_index(config, config.data))
    return lambda workers: make_loader(config, dataset, plan, workers).share(0, 1)


def make_sides(folders: dict[str, Path], max_duration_s: float) -> dict[tuple[str, str], Side]:
    """Returns what is compared, by program and augmentation."""
    noise = noise_cuts(folders["audio"])
    augments = {
        PLAIN: AugmentConfig(prob=0.0),
        NOISY: AugmentConfig(noise_source="audio"),
        SYNTHETIC: AugmentConfig(noise_source="synthetic"),
    }
    sides: dict[tuple[str, str], Side] = {
        ("lhotse", name): partial(peer_batches, folders, max_duration_s, noise=of)
        for name, of in ((PLAIN, None), (NOISY, noise))
    }
    for name, augment in augments.items():
        sides["spear", name] = our_side(folders, max_duration_s, augment)
    return sides


def measure(
    sides: dict[tuple[str, str], Side], worker_counts: list[int], repeats: int
) -> dict[tuple[str, str, int], list[Pass]]:
    """Reads the corpus once per side and number of workers, `repeats` times over, in turns."""
    found: dict[tuple[str, str, int], list[Pass]] = {}
    for repeat in range(repeats + 1):  # the first round warms up, and is not counted
        for (program, augmentation), side in sides.items():
            for num_workers in worker_counts:
                one = time_pass(partial(side, num_workers))
                if repeat:
                    found.setdefault((program, augmentation, num_workers), []).append(one)
                sys.stderr.write(
                    f"{repeat}: {program}, {augmentation}, {num_workers} workers: "
                    f"{one.per_core:.0f} h per core-hour\n"
                )
    return found


def table(found: dict[tuple[str, str, int], list[Pass]]) -> str:
    """Medians, their spread, and what they are beside lhotse and beside no augmentation."""
    rows = []
    for (program, augmentation, num_workers), passes in found.items():
        rates = [one.per_core for one in passes]
        peer = found.get(("lhotse", augmentation, num_workers))
        own = found[program, PLAIN, num_workers]
        cells = [
            program,
            augmentation,
            str(num_workers),
            f"{per_core(passes):,.0f}",
            f"{min(rates):,.0f}-{max(rates):,.0f}",
            f"{statistics.median(one.per_hour for one in passes):,.0f}",
            f"{per_core(passes) / per_core(peer):.2f}" if peer else "",
            f"{per_core(own) / per_core(passes):.2f}",
        ]
        rows.append(cells)
    header = (
        "program",
        "augmentation",
        "workers",
        "h per core-hour",
        "range",
        "h per hour",
        "beside lhotse",
        "times the cost of none",
    )
    return markdown_table(header, rows, "llrrrrrr")


def per_core(passes: list[Pass]) -> float:
    """Returns the median of hours of audio per core-hour."""
    return statistics.median(one.per_core for one in passes)


def verdict(found: dict[tuple[str, str, int], list[Pass]]) -> str:
    """Says whether the goals are reached, by the least favourable numbers of the table."""
    ratios, costs = [], []
    for (program, augmentation, num_workers), passes in found.items():
        if program != "spear":
            continue
        if peer := found.get(("lhotse", augmentation, num_workers)):
            ratios.append(per_core(passes) / per_core(peer))
        costs.append(per_core(found["spear", PLAIN, num_workers]) / per_core(passes))
    reached = {True: "reached", False: "missed"}
    return (
        f"Goal of {RATIO_GOAL} times lhotse's rate per core-hour: {min(ratios):.2f}, "
        f"{reached[min(ratios) >= RATIO_GOAL]}. Goal of at most {MIXING_GOAL:g} times the cost "
        f"with augmentation: {max(costs):.2f}, {reached[max(costs) <= MIXING_GOAL]}."
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--audio-dir", type=Path, help="recordings; without, sound is made")
    parser.add_argument("--hours", type=float, default=2.0, help="of audio in the corpus")
    parser.add_argument("--max-duration-s", type=float, default=600.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="the result file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison as a Markdown table and writes it to the result file."""
    args = parse(argv)
    torch.set_num_threads(1)  # as in data workers
    with tempfile.TemporaryDirectory() as folder:
        folders = write_corpus(Path(folder) / "corpus", args.hours, args.audio_dir)
        found = measure(make_sides(folders, args.max_duration_s), args.workers, args.repeats)
    name = args.audio_dir and code(args.audio_dir.resolve().name)
    sound = f"cut from the recordings of {name}" if name else "of synthetic sound"
    blocks = [
        "# Reading beside lhotse",
        f"{args.hours:g} h of FLAC, clips of {SHORTEST_S:g} to {LONGEST_S:g} s, {sound}, three "
        "quarters speech and a quarter general audio; 128-bin fbank, tokens "
        "of 16 x 50 Hz for all and 8 x 25 Hz for general audio; batches of "
        f"{args.max_duration_s:g} s with padding. Medians of {args.repeats} passes in turns, "
        f"{num_cores()} cores, one thread in every process, files in the system's memory. "
        f"lhotse {lhotse.__version__}: from_shar, DynamicBucketingSampler, "
        "K2SpeechRecognitionDataset with OnTheFlyFeatures, CutMix for noise. Core-hours are of all "
        "processes, from the start of the workers to their end. Load average at the end: "
        f"{os.getloadavg()[0]:.1f}; hours per hour suffer from what else runs.",
        table(found),
        verdict(found),
        "Spear draws masks too. Its augmentation is the method's: noise for 40% of the clips, a "
        "second speaker with mixed tokens for 10%, or noise where none fits; lhotse's is noise for "
        "50%.",
    ]
    write_markdown(args.output or Path(__file__).parent / "results" / "data_reading.md", blocks)
    sys.stdout.write("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
