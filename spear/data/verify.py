"""`spear verify`: recomputes everything that shard folders promise, and fails loudly.

Takes shard folders; checks files against their recorded checksums and counts, decodes every clip
and every token array, and compares ids, order, shapes, ranges, frame counts and sidecars. Tokens
that say nothing are problems, too: arrays in which nothing changes, codebooks of which next to
nothing is used. With `recheck` the tokens of some cuts are extracted anew (`spear.data.recheck`).
It prints a table, writes `verify.md` and `verify.png` into each folder, and raises an error that
names every problem with its shard and cut.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear.audio.io import SAMPLE_RATE_HZ, decode_audio
from spear.data.manifests import read_jsonl_gz
from spear.data.shards import (
    CutInfo,
    ShardFolder,
    cut_info,
    cuts_name,
    find_shard_ids,
    load_record,
    recording_name,
)
from spear.data.tars import FileReader, TarPair, index_pairs
from spear.data.tokens import (
    ShardTokens,
    Tokens,
    TokenSidecar,
    decode_tokens,
    find_teachers,
    sidecar_name,
    token_dtype,
    token_tar_name,
)
from spear.device import choose_device
from spear.errors import ConfigError, DataError, SpearError, TokenError
from spear.files import sha256_of
from spear.progress import get_logger, progress
from spear.reports import (
    embed_picture,
    markdown_table,
    name_axes,
    new_figure,
    save_figure,
    write_markdown,
)

log = get_logger(__name__)

MAX_FRAME_DIFFERENCE = 2
"""Frames by which tokens may be fewer or more than duration x rate: edges differ by teacher."""
MIN_CONSTANT_FRAMES = 25
"""From how many frames on an array in which nothing changes is a problem."""
MIN_COUNTED_FRAMES = 1000
"""From how many frames on the entropy of a folder's tokens says something."""
SILENT_PEAK = 1e-3
"""Largest sample of a clip that may well have the same tokens throughout."""
MAX_SHOWN = 20
"""Problems in the error's message; the report has all."""


@dataclass
class VerifyConfig:
    """What to verify."""

    shards: list[str] = field(default_factory=list)
    """Shard folders."""
    teachers: list[str] = field(default_factory=list)
    """Names of the teachers whose tokens must be there; empty takes all that are."""
    quantizers: dict[str, str] = field(default_factory=dict)
    """Quantiser file by teacher: the tokens must come from exactly this file."""
    audio: bool = True
    """Whether to decode every clip, besides checking its file's checksum."""
    min_entropy: float = 0.2
    """Least entropy of a codebook's tokens in a folder, as a share (0 to 1) of the greatest that so
    many frames and codes can have; folders of fewer than 1,000 frames are not judged."""
    recheck: int = 0
    """Cuts of each folder whose tokens are extracted anew, one by one, and compared; 0 for none.
    Needs `quantizers`, and the teachers' weights."""
    teacher_paths: dict[str, str] = field(default_factory=dict)
    """Where a teacher's weights lie now, by teacher; none is where they lay at extraction."""
    device: str = "auto"
    """Device of teacher and quantiser for `recheck`: auto, cpu, cuda, cuda:1, ..."""


@dataclass
class Count:
    """What one part of a folder (the audio, or one teacher's tokens) holds."""

    name: str
    """What was counted, e.g. "audio" or "wavlm tokens"."""
    num_shards: int = 0
    """Shards."""
    num_cuts: int = 0
    """Cuts."""
    num_frames: int = 0
    """Token frames; 0 for audio."""
    num_problems: int = 0
    """Problems found."""
    differences: Counter[int] = field(default_factory=Counter)
    """Token arrays by tenths of a frame that they have more than duration x rate."""
    usage: NDArray[np.int64] | None = None
    """(N, K) how often each token occurs."""


@dataclass
class FolderReport:
    """What was found in one shard folder."""

    path: Path
    """The folder."""
    counts: list[Count] = field(default_factory=list)
    """One for the audio and one for each teacher."""
    problems: list[str] = field(default_factory=list)
    """One line each, with shard and cut."""
    tokens_are_bad: bool = False
    """Whether a problem is one of tokens."""
    duration_s: float = 0.0
    """Seconds of audio."""
    silent: set[str] = field(default_factory=set)
    """Cuts whose audio is silence, as far as it was decoded."""

    def add(self, count: Count, problem: str) -> None:
        """Notes a problem of one part."""
        count.num_problems += 1
        self.problems.append(f"{self.path}: {problem}")
        self.tokens_are_bad |= count is not self.counts[0]


def run(config: VerifyConfig) -> None:
    """Verifies shard folders and writes a report into each.

    Raises:
        ConfigError: No folder is given, or a quantiser file does not exist.
        TokenError: Tokens are wrong; the message lists the problems.
        DataError: Something else is wrong.
    """
    if not config.shards:
        raise ConfigError("shards is not set: name at least one shard folder")
    for teacher, path in config.quantizers.items():
        if not Path(path).is_file():
            raise ConfigError(f"quantizers: {teacher}: {path}: no such file")
    if config.recheck > 0 and not config.quantizers:
        raise ConfigError("recheck makes tokens anew: name the quantiser files in quantizers")
    reports = [verify_folder(Path(path), config) for path in config.shards]
    for report in reports:
        table = make_table(report)
        log.info("%s\n%s", report.path, table)
        _write_report(report, table)
    problems = [problem for report in reports for problem in report.problems]
    if not problems:
        return
    kind = TokenError if any(report.tokens_are_bad for report in reports) else DataError
    shown = "; ".join(problems[:MAX_SHOWN])
    more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
    raise kind(f"{len(problems)} problems (all in verify.md of the folder): {shown}{more}")


def verify_folder(path: Path, config: VerifyConfig) -> FolderReport:
    """Verifies one folder.

    Raises:
        DataError: There is no such folder, or no shard in it.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such shard folder")
    report = FolderReport(path, [Count("audio")])
    shard_ids = find_shard_ids(path)
    if not shard_ids:
        raise DataError(f"{path}: no shards (cuts.000000.jsonl.gz) in this folder")
    cuts = {}
    for shard in progress(shard_ids, f"verify audio {path.name}"):
        cuts[shard] = _verify_audio(report, shard, config.audio)
    _verify_record(report, shard_ids, cuts)
    _verify_unique(report, cuts)
    for teacher in sorted({*config.teachers, *config.quantizers} or find_teachers(path)):
        _verify_teacher(report, teacher, cuts, config)
    return report


def make_table(report: FolderReport) -> str:
    """Returns what a folder holds as a Markdown table."""
    rows = [
        (
            count.name,
            str(count.num_shards),
            f"{count.num_cuts:,}",
            f"{report.duration_s / 3600:.3f}" if count is report.counts[0] else "",
            f"{count.num_frames:,}" if count.num_frames else "",
            str(count.num_problems),
        )
        for count in report.counts
    ]
    header = ("part", "shards", "cuts", "hours", "frames", "problems")
    return markdown_table(header, rows, "lrrrrr")


def _write_report(report: FolderReport, table: str) -> None:
    found = "\n".join(f"- {problem}" for problem in report.problems) or "No problems."
    blocks = [f"# Verification of {report.path}", table, found]
    picture = report.path / "verify.png"
    if _draw_differences(picture, report.counts):
        blocks.append(embed_picture(picture, "frames of each token array against its duration"))
    write_markdown(report.path / "verify.md", blocks)


def _draw_differences(path: Path, counts: Sequence[Count]) -> bool:
    """Draws, for every teacher, how far the frames of token arrays are from duration x rate.

    Half a frame to either side is rounding; a teacher that pads or drops edges stands beside that,
    and arrays of another rate or other cuts lie outside the dotted lines, which are problems.
    """
    counts = [count for count in counts if count.differences]
    figure = new_figure(7.0, 0.8 + 1.9 * len(counts)) if counts else None
    if figure is None:
        return False
    edge = 2 * MAX_FRAME_DIFFERENCE
    for number, count in enumerate(counts, start=1):
        axes = figure.add_subplot(len(counts), 1, number)
        frames = np.clip(np.array(list(count.differences)) / 10, -edge, edge)
        bins = np.arange(-edge - 0.05, edge + 0.1, 0.1)
        axes.hist(frames, bins=bins.tolist(), weights=list(count.differences.values()))
        for limit in (-MAX_FRAME_DIFFERENCE, MAX_FRAME_DIFFERENCE):
            axes.axvline(limit, color="black", linestyle=":")
        axes.set(xlim=(bins[0], bins[-1]), yscale="log", ylim=(0.5, None))
        axes.set(ylabel="token arrays")
        name_axes(axes, count.name)
        axes.tick_params(labelbottom=number == len(counts))
    axes.set_xlabel(f"frames minus duration x rate (beyond {edge}: drawn there)")
    save_figure(figure, path)
    return True


def _verify_audio(report: FolderReport, shard: int, decode: bool) -> list[CutInfo]:
    """Checks the cuts and recordings of a shard; returns its cuts, as far as they are readable."""
    count = report.counts[0]
    count.num_shards += 1
    cuts_path, audio_path = report.path / cuts_name(shard), report.path / recording_name(shard)
    try:
        lines = read_jsonl_gz(cuts_path)
        cuts = [cut_info(line, cuts_path, 0, shard, row) for row, line in enumerate(lines)]
    except DataError as error:
        report.add(count, f"shard {shard:06d}: {error}")
        return []
    count.num_cuts += len(cuts)
    report.duration_s += sum(cut.duration_s for cut in cuts)
    for cut, data in _matching_members(report, count, audio_path, shard, cuts):
        if not decode:
            continue
        where = f"shard {shard:06d}: cut {cut.id!r}"
        try:
            audio = decode_audio(data, where)
        except SpearError as error:
            report.add(count, str(error))
            continue
        if np.abs(audio).max(initial=0.0) < SILENT_PEAK:
            report.silent.add(cut.id)
        expected = round(cut.duration_s * SAMPLE_RATE_HZ)
        if abs(len(audio) - expected) > 1:
            report.add(count, f"{where}: {len(audio)} samples where its duration says {expected}")
    return cuts


def _matching_members(
    report: FolderReport, count: Count, path: Path, shard: int, cuts: Sequence[CutInfo]
) -> Iterator[tuple[CutInfo, bytes]]:
    """Yields each cut with its data in a tar file; reports ids that do not match the cuts."""
    try:
        pairs = index_pairs(path)
    except DataError as error:
        report.add(count, f"shard {shard:06d}: {error}")
        return
    for problem in compare_ids([pair.id for pair in pairs], [cut.id for cut in cuts]):
        report.add(count, f"shard {shard:06d}: {path.name}: {problem}")
    by_id: dict[str, TarPair] = {}
    for pair in pairs:
        by_id.setdefault(pair.id, pair)
    reader = FileReader(max_open=1)
    for cut in cuts:
        if cut.id in by_id:
            pair = by_id[cut.id]
            try:
                data = reader.read(path, pair.offset, pair.size)
            except DataError as error:
                report.add(count, f"shard {shard:06d}: cut {cut.id!r}: {error}")
                continue
            yield cut, data


def compare_ids(found: Sequence[str], expected: Sequence[str]) -> list[str]:
    """Returns what is wrong with the ids of a tar file: missing, doubled, unknown, out of order."""
    problems = []
    seen: set[str] = set()
    known = set(expected)
    for cut_id in found:
        if cut_id in seen:
            problems.append(f"cut {cut_id!r} is there twice")
        elif cut_id not in known:
            problems.append(f"cut {cut_id!r} is not in the manifest")
        seen.add(cut_id)
    problems += [f"cut {cut_id!r} is missing" for cut_id in expected if cut_id not in seen]
    if not problems and list(found) != list(expected):
        first = next(cut for cut, other in zip(found, expected, strict=True) if cut != other)
        problems.append(f"the cuts are in another order, from cut {first!r} on")
    return problems


def _verify_record(
    report: FolderReport, shard_ids: Sequence[int], cuts: dict[int, list[CutInfo]]
) -> None:
    """Checks `shards.json`: completeness, counts and checksums."""
    count = report.counts[0]
    try:
        record = load_record(report.path)
    except DataError as error:
        report.add(count, str(error))
        return
    if not record:
        log.warning("%s: no shards.json: checksums of the audio cannot be checked", report.path)
        return
    if not record["complete"]:
        report.add(count, "not all shards are written; run `spear shard` again")
    recorded: dict[int, dict[str, Any]] = {int(k): v for k, v in record["shards"].items()}
    for shard in sorted({*recorded, *shard_ids}):
        if shard not in recorded or shard not in cuts:
            where = "on disk but not in shards.json" if shard in cuts else "missing"
            report.add(count, f"shard {shard:06d}: {where}")
            continue
        entry = recorded[shard]
        if entry["num_cuts"] != len(cuts[shard]):
            problem = f"{len(cuts[shard])} cuts where shards.json says {entry['num_cuts']}"
            report.add(count, f"shard {shard:06d}: {problem}")
        for name, expected in entry["sha256"].items():
            _verify_checksum(report, count, shard, name, expected)


def _verify_checksum(
    report: FolderReport, count: Count, shard: int, name: str, expected: str
) -> None:
    path = report.path / name
    if not path.is_file():
        report.add(count, f"shard {shard:06d}: {name} is missing")
    elif sha256_of(path) != expected:
        report.add(count, f"shard {shard:06d}: {name} has changed: its SHA-256 is another")


def _verify_unique(report: FolderReport, cuts: dict[int, list[CutInfo]]) -> None:
    first: dict[str, int] = {}
    for shard, own in cuts.items():
        for cut in own:
            if cut.id in first:
                problem = f"cut {cut.id!r} is in shard {first[cut.id]:06d} too"
                report.add(report.counts[0], f"shard {shard:06d}: {problem}")
            first.setdefault(cut.id, shard)


def _verify_teacher(
    report: FolderReport, teacher: str, cuts: dict[int, list[CutInfo]], config: VerifyConfig
) -> None:
    """Checks one teacher's sidecar and every token array."""
    quantizer = config.quantizers.get(teacher)
    count = Count(f"{teacher} tokens")
    report.counts.append(count)
    try:
        sidecar = TokenSidecar.load(report.path / sidecar_name(teacher))
    except TokenError as error:
        report.add(count, str(error))
        return
    if quantizer is not None and sha256_of(Path(quantizer)) != sidecar.quantizer_sha256:
        report.add(
            count,
            f"{teacher} tokens come from quantiser {sidecar.quantizer_id} "
            f"(SHA-256 {sidecar.quantizer_sha256[:16]}), not from {quantizer}",
        )
    for shard in progress(sorted({*cuts, *sidecar.shards}), f"verify {teacher} {report.path.name}"):
        name = token_tar_name(teacher, shard)
        if shard not in cuts or shard not in sidecar.shards:
            where = "the sidecar" if shard in cuts else "the folder's shards"
            report.add(count, f"shard {shard:06d}: {teacher} tokens: not in {where}")
            continue
        count.num_shards += 1
        _verify_checksum(report, count, shard, name, sidecar.shards[shard].sha256)
        if (report.path / name).is_file():
            _verify_tokens(report, count, shard, cuts[shard], sidecar)
    for problem in check_usage(count.usage, config.min_entropy):
        report.add(count, f"{teacher} tokens: {problem}")
    if config.recheck > 0 and quantizer is not None and count.num_problems == 0:
        _recheck(report, count, sidecar, config)


def _recheck(
    report: FolderReport, count: Count, sidecar: TokenSidecar, config: VerifyConfig
) -> None:
    """Extracts the tokens of some cuts anew; only of folders in which nothing else is wrong."""
    from spear.data.recheck import Rechecker  # loads teachers, which the rest does without

    teacher = sidecar.teacher
    paths = (config.quantizers[teacher], config.teacher_paths.get(teacher))
    try:
        rechecker = Rechecker.load(sidecar, paths[0], choose_device(config.device), paths[1])
        folder = ShardFolder(report.path)
        num_cuts = min(config.recheck, len(folder))
        for cut, problem in rechecker.check(folder, config.recheck):
            shard = folder.shard_ids[cut.shard]
            report.add(count, f"shard {shard:06d}: cut {cut.id!r}: {teacher} tokens: {problem}")
    except SpearError as error:
        report.add(count, str(error))
        return
    log.info("%s: %s tokens of %d cuts extracted anew", report.path, teacher, num_cuts)


def _verify_tokens(
    report: FolderReport, count: Count, shard: int, cuts: Sequence[CutInfo], sidecar: TokenSidecar
) -> None:
    """Checks the arrays of one token tar and what the sidecar says of it."""
    path = report.path / token_tar_name(sidecar.teacher, shard)
    num_cuts = num_frames = 0
    for cut, data in _matching_members(report, count, path, shard, cuts):
        where = f"shard {shard:06d}: cut {cut.id!r}: {sidecar.teacher} tokens"
        try:
            tokens = decode_tokens(data, where)
        except TokenError as error:
            report.add(count, str(error))
            continue
        num_cuts, num_frames = num_cuts + 1, num_frames + len(tokens)
        expected_frames = cut.duration_s * sidecar.frame_rate_hz
        count.differences[round(10 * (len(tokens) - expected_frames))] += 1
        problems = check_tokens(tokens, cut.duration_s, sidecar)
        if not problems:
            _add_usage(count, tokens, sidecar.codebook_size)
        if _is_constant(tokens) and cut.id not in report.silent:
            problems.append(f"all {len(tokens)} frames have the same tokens, and it is not silent")
        for problem in problems:
            report.add(count, f"{where}: {problem}")
    count.num_cuts += num_cuts
    count.num_frames += num_frames
    found, expected = ShardTokens(num_cuts, num_frames, ""), sidecar.shards[shard]
    if (found.num_cuts, found.num_frames) != (expected.num_cuts, expected.num_frames):
        report.add(
            count,
            f"shard {shard:06d}: {path.name}: {num_cuts} cuts and {num_frames} frames where the "
            f"sidecar says {expected.num_cuts} and {expected.num_frames}",
        )


def _add_usage(count: Count, tokens: Tokens, codebook_size: int) -> None:
    num_codebooks = tokens.shape[1]
    if count.usage is None:
        count.usage = np.zeros((num_codebooks, codebook_size), dtype=np.int64)
    flat = tokens.astype(np.int64) + codebook_size * np.arange(num_codebooks)
    counts = np.bincount(flat.ravel(), minlength=count.usage.size)
    count.usage += counts.reshape(count.usage.shape)


def _is_constant(tokens: Tokens) -> bool:
    return len(tokens) >= MIN_CONSTANT_FRAMES and bool((tokens == tokens[0]).all())


def check_usage(usage: NDArray[np.int64] | None, min_entropy: float) -> list[str]:
    """Returns which codebooks say next to nothing.

    Args:
        usage: (N, K) how often each token occurs, or None where there are none.
        min_entropy: Least entropy, as a share of that of as many frames on as many codes as can be.
    """
    if usage is None or (num_frames := int(usage[0].sum())) < MIN_COUNTED_FRAMES:
        return []
    shares = usage / num_frames
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    entropies = np.abs((shares * logs).sum(axis=1)) / np.log(min(usage.shape[1], num_frames))
    low = [
        f"{number} ({value:.2f})"
        for number, value in enumerate(entropies.tolist())
        if value < min_entropy
    ]
    return [f"entropy below {min_entropy:g} in codebook {', '.join(low)}"] if low else []


def check_tokens(tokens: Any, duration_s: float, sidecar: TokenSidecar) -> list[str]:
    """Returns what is wrong with the tokens of one cut.

    Args:
        tokens: (T', N) uint8 or uint16.
        duration_s: Seconds of audio in the cut.
        sidecar: Says N, K and the frame rate.
    """
    problems = []
    num_frames, num_codebooks = tokens.shape
    if num_codebooks != sidecar.num_codebooks:
        problems.append(f"{num_codebooks} codebooks where the sidecar says {sidecar.num_codebooks}")
    expected_dtype = token_dtype(sidecar.codebook_size)
    if tokens.dtype != expected_dtype:
        problems.append(
            f"{tokens.dtype} where a codebook of {sidecar.codebook_size} has {expected_dtype}"
        )
    if tokens.size and int(tokens.max()) >= sidecar.codebook_size:
        problems.append(f"value {int(tokens.max())} in a codebook of {sidecar.codebook_size}")
    expected = duration_s * sidecar.frame_rate_hz
    if abs(num_frames - expected) > MAX_FRAME_DIFFERENCE:
        problems.append(f"{num_frames} frames where {duration_s:.3f} s should have {expected:.1f}")
    return problems
