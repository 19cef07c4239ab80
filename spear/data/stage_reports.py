"""The reports of `prepare`, `shard`, `embed` and `extract-tokens`: what they made.

Every function looks at what lies on disk or is about to, and writes a Markdown file and a picture
beside it. A stage calls it just before the record that marks it as finished, so that a finished
stage has its report; all are functions of the data alone, so that any run or job writes the same.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from spear.data.formats.manifests import read_jsonl_gz
from spear.data.formats.shards import cuts_name
from spear.data.formats.tokens import TokenSidecar, read_token_tar
from spear.data.index.shard_folder import ShardFolder
from spear.errors import TokenError
from spear.mvq.usage import count_codes, normalized_entropies
from spear.system.markdown import (
    code,
    draw_histograms,
    embed_picture,
    markdown_table,
    new_figure,
    save_figure,
    whole_ticks,
    write_markdown,
)

MAX_COUNTED_SHARDS = 100
"""Shards, spread evenly over the folder, whose tokens are read back to count codes."""
_MAX_NAMED = 5
_ROWS_AT_ONCE = 8192
_DURATION_AXES = ("duration of a cut (s)", "cuts")
_LENGTHS = ("shortest (s)", "median (s)", "longest (s)")


def write_prepare_report(
    path: Path,
    corpus: str,
    splits: Mapping[str, Iterable[Cut]],
    num_recordings: int,
    bad: Sequence[Mapping[str, str]],
) -> None:
    """Writes what the manifests of a corpus hold.

    Args:
        path: The Markdown file; the picture has its name with `.png`.
        corpus: Name of the corpus.
        splits: Cuts by split; each is gone through once.
        num_recordings: Recordings found, the bad ones included.
        bad: Entries (`id`, `error`) of the recordings left out.
    """
    durations, rows = {}, []
    for split, cuts in splits.items():
        durations[split], counts = _describe_cuts(cuts)
        rows.append((split, *counts, *_lengths(durations[split])))
    header = ("split", "cuts", "hours", "speakers", "transcribed", *_LENGTHS)
    blocks = [
        f"# Cuts of {corpus}",
        markdown_table(header, rows, "lrrrrrrr"),
        *_describe_bad(bad, f"of {num_recordings:,} recordings"),
    ]
    _write(path, blocks, "durations by split", draw_histograms, durations, *_DURATION_AXES)


def write_shard_report(
    folder: Path,
    source: str,
    shards: Mapping[int, Mapping[str, Any]],
    bad: Sequence[Mapping[str, str]],
) -> None:
    """Writes what a shard folder holds into its `report.md` and `report.png`.

    Args:
        folder: The folder; its cuts are read once more, its audio is not.
        source: Name of the manifest that the shards were made from.
        shards: The record of every shard, as in `shards.json`.
        bad: Entries (`id`, `error`) of what was left out.
    """
    lines = (line for shard in sorted(shards) for line in read_jsonl_gz(folder / cuts_name(shard)))
    durations = np.array([float(line["duration"]) for line in lines])
    names = [name for record in shards.values() for name in record["sha256"]]
    num_bytes = sum((folder / name).stat().st_size for name in names)
    hours = durations.sum() / 3600
    facts = [
        ("shards", f"{len(shards):,}"),
        ("cuts", f"{len(durations):,}"),
        ("hours", _hours(durations.sum())),
        ("bytes", f"{num_bytes:,}"),
        ("bytes per hour", f"{num_bytes / hours:,.0f}" if hours else ""),
        *zip(_LENGTHS, _lengths(durations), strict=True),
        ("scaled down to avoid clipping", f"{sum(one['num_scaled'] for one in shards.values()):,}"),
    ]
    blocks = [
        f"# Shards of {source}",
        markdown_table(("", ""), facts, "lr"),
        *_describe_bad(bad, "clips and cuts"),
    ]
    path, groups = folder / "report.md", {source: durations}
    _write(path, blocks, "durations", draw_histograms, groups, *_DURATION_AXES)


def write_frames_report(path: Path, frames: np.ndarray, record: Mapping[str, Any]) -> None:
    """Writes whose frames a sample holds and how their channels are spread.

    Args:
        path: The Markdown file; the picture has its name with `.png`.
        frames: (F, D) float32, usually a memory map; it is read once, block by block.
        record: The sample's record, as in `{name}.frames.json`.
    """
    means, stds = channel_statistics(frames)
    facts = [(key, f"{record[name]:,}") for key, name in _FRAME_FACTS.items()]
    facts += [(f"teacher {key}", _shown(value)) for key, value in record["teacher"].items()]
    spread = [
        (name, *(f"{value:.4g}" for value in (one.min(), np.median(one), one.max())))
        for name, one in (("mean", means), ("standard deviation", stds))
    ]
    blocks = [
        f"# Frames of {record['teacher']['name']}",
        markdown_table(("", ""), facts),
        markdown_table(("over channels", "least", "median", "most"), spread, "lrrr"),
    ]
    caption = "mean and standard deviation of every channel"
    _write(path, blocks, caption, _draw_channels, means, stds)


_FRAME_FACTS = {"clips": "num_clips", "frames": "num_frames", "channels": "dim", "seed": "seed"}


def channel_statistics(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation (D,) float64 of every channel of frames (F, D)."""
    # Sums around a first guess of the mean: squares of large means would drown the variance.
    shift = frames[:_ROWS_AT_ONCE].mean(axis=0, dtype=np.float64)
    total, squares = np.zeros_like(shift), np.zeros_like(shift)
    for start in range(0, len(frames), _ROWS_AT_ONCE):
        block = frames[start : start + _ROWS_AT_ONCE] - shift
        total += block.sum(axis=0)
        squares += np.square(block).sum(axis=0)
    offset = total / len(frames)
    variance = np.maximum(squares / len(frames) - offset**2, 0.0)
    return shift + offset, np.sqrt(variance)


def write_token_report(path: Path, folder: ShardFolder, sidecar: TokenSidecar) -> None:
    """Writes how many tokens a folder holds and how evenly their codes are used.

    Cuts and frames are those of the sidecar. Codes are counted by reading tokens back, from at most
    `MAX_COUNTED_SHARDS` shards: for shards of 500 ten-second cuts with 16 codebooks at 50 Hz that
    is 5 MB and a tenth of a second each, however large the folder is. Counts kept by the jobs
    would need no reading, but would have to survive kills and be merged between jobs.

    Args:
        path: The Markdown file; the picture has its name with `.png`.
        folder: The shard folder, with tokens for every shard.
        sidecar: Its sidecar, with every shard.

    Raises:
        TokenError: A token file is broken or does not fit the sidecar.
    """
    usage, num_counted = count_usage(folder, sidecar)
    entropies = normalized_entropies(usage).numpy()
    unused = (usage == 0).sum(dim=1).numpy()
    rows = [
        (str(number), f"{entropy:.3f}", str(count))
        for number, (entropy, count) in enumerate(zip(entropies, unused, strict=True))
    ]
    codebooks = f"{sidecar.num_codebooks} of {sidecar.codebook_size} codes"
    facts = [
        ("layer", _shown(sidecar.layer)),
        ("frames per second", f"{sidecar.frame_rate_hz:g}"),
        ("quantiser", f"{sidecar.quantizer_id}: {codebooks}"),
        ("shards", f"{folder.num_shards:,}"),
        ("cuts", f"{sum(one.num_cuts for one in sidecar.shards.values()):,}"),
        ("frames", f"{sum(one.num_frames for one in sidecar.shards.values()):,}"),
        ("hours", _hours(folder.duration_s)),
    ]
    blocks = [
        f"# Tokens of {sidecar.teacher}",
        markdown_table(("", ""), facts),
        f"Codes counted in {num_counted:,} of {folder.num_shards:,} shards. Entropy 1: all "
        f"{sidecar.codebook_size} codes of a codebook are used equally often.",
        markdown_table(("codebook", "normalised entropy", "unused codes"), rows, "rrr"),
    ]
    caption = "entropy and unused codes of every codebook"
    _write(path, blocks, caption, _draw_usage, sidecar, entropies, unused)


def count_usage(folder: ShardFolder, sidecar: TokenSidecar) -> tuple[Tensor, int]:
    """Counts how often each code occurs in a folder, or in shards spread evenly over a large one.

    Returns:
        Counts (N, K) int64, and the number of shards looked at.

    Raises:
        TokenError: A token file is broken or does not fit the sidecar.
    """
    num_counted = min(folder.num_shards, MAX_COUNTED_SHARDS)
    usage = torch.zeros(sidecar.num_codebooks, sidecar.codebook_size, dtype=torch.int64)
    for number in range(num_counted):
        shard = folder.shard_ids[number * folder.num_shards // num_counted]
        # In the order of the tar: there is no sidecar yet that an index of it could name.
        for cut_id, tokens in read_token_tar(folder.path, sidecar.teacher, shard):
            if tokens.shape[1] != len(usage) or tokens.max(initial=0) >= sidecar.codebook_size:
                raise TokenError(
                    f"{folder.path}: cut {cut_id!r}: {sidecar.teacher} tokens do not fit their "
                    "sidecar; see what `spear verify` says"
                )
            usage += count_codes(torch.from_numpy(tokens), sidecar.codebook_size)
    return usage, num_counted


def _write(
    path: Path, blocks: list[str], caption: str, draw: Callable[..., bool], *what: Any
) -> None:
    """Draws a picture of something, where it can be drawn, and writes the report that shows it."""
    picture = path.with_suffix(".png")
    shown = [embed_picture(picture, caption)] if draw(picture, *what) else []
    write_markdown(path, blocks + shown)


def _describe_cuts(cuts: Iterable[Cut]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns durations (n,) in seconds, and as text: cuts, hours, speakers, transcribed cuts."""
    durations = array("d")
    speakers: set[str] = set()
    num_transcribed = 0
    for cut in cuts:
        durations.append(float(cut.duration))
        speakers.update(one.speaker for one in cut.supervisions if one.speaker is not None)
        num_transcribed += any(one.text is not None for one in cut.supervisions)
    hours = _hours(sum(durations))
    return np.array(durations), (
        f"{len(durations):,}",
        hours,
        f"{len(speakers):,}",
        f"{num_transcribed:,}",
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.3f}"


def _lengths(durations: np.ndarray) -> tuple[str, ...]:
    """Returns the shortest, median and longest of durations in seconds, as text."""
    if not len(durations):
        return ("", "", "")
    found = (durations.min(), np.median(durations), durations.max())
    return tuple(f"{one:,.2f}" for one in found)


def _describe_bad(bad: Sequence[Mapping[str, str]], of: str) -> list[str]:
    if not bad:
        return ["Nothing was left out."]
    named = [f"- {code(entry['id'])}: {entry['error']}" for entry in bad[:_MAX_NAMED]]
    if len(bad) > _MAX_NAMED:
        named.append(f"- and {len(bad) - _MAX_NAMED:,} more")
    return [f"Left out: {len(bad):,} {of}, listed in `bad_cuts.jsonl`.", "\n".join(named)]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _draw_channels(path: Path, means: np.ndarray, stds: np.ndarray) -> bool:
    """Draws means and standard deviations (D,), each sorted; returns whether it could."""
    figure = new_figure(8.0, 3.2)
    if figure is None:
        return False
    left, right = figure.subplots(1, 2)
    left.plot(np.sort(means))
    left.set(xlabel="channel, sorted by mean", ylabel="mean over frames")
    right.plot(np.sort(stds))
    right.set(xlabel="channel, sorted by deviation", ylabel="standard deviation over frames")
    right.set(ylim=(0.0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_figure(figure, path)
    return True


def _draw_usage(
    path: Path, sidecar: TokenSidecar, entropies: np.ndarray, unused: np.ndarray
) -> bool:
    """Draws entropy (N,) and unused codes (N,) of every codebook; returns whether it could."""
    figure = new_figure(8.0, 3.2)
    if figure is None:
        return False
    left, right = figure.subplots(1, 2)
    left.bar(range(len(entropies)), entropies)
    left.set(ylabel="normalised entropy", ylim=(0.0, 1.05))
    left.axhline(1.0, color="black", linestyle=":")
    right.bar(range(len(unused)), unused, color="tab:orange")
    right.set(ylabel=f"unused codes of {sidecar.codebook_size}", ylim=(0.0, max(unused) + 1.0))
    whole_ticks(right, "y")
    for axes in (left, right):
        axes.set(xlabel="codebook", xlim=(-0.6, len(entropies) - 0.4))
        whole_ticks(axes, "x")
    save_figure(figure, path)
    return True
