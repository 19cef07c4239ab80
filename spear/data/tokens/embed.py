"""`spear embed`: a random sample of a teacher's frames, to train the quantiser on.

Takes shard folders and a teacher; chooses clips, and frames of them, by the seed alone; writes
`{output}.frames.npy`, float32 (F, D), which can be memory-mapped, `{output}.frames.json`, which
says whose frames they are, and a report. Run again with the same settings, it keeps what is there.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spear.data.formats.tars import file_fingerprint
from spear.data.index.shard_folder import ShardFolder
from spear.data.stage_reports import write_frames_report
from spear.data.tokens.frames import TeacherFrames, check_sources, describe_teacher
from spear.errors import ConfigError, DataError
from spear.system import ledger
from spear.system.device import choose_device
from spear.system.files import atomic_path, remove_partials, write_json
from spear.system.progress import get_logger, progress
from spear.system.rng import generator
from spear.teachers import Teacher, TeacherConfig, Windowing, load_teacher

log = get_logger(__name__)

FORMAT_VERSION = 1
CLIPS_AT_ONCE = 256  # sorted by length among themselves: enough for full batches


@dataclass
class EmbedConfig:
    """Whose frames to sample, from where."""

    shards: list[str] = field(default_factory=list)
    """Shard folders to sample from."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The teacher."""
    output: str = ""
    """Prefix of the outputs: {output}.frames.npy, .frames.json and the report .frames.md."""
    num_frames: int = 500_000
    """Frames to sample; all there are where there are fewer."""
    clip_share: float = 0.25
    """Share of a chosen clip's frames (0 to 1) that is taken: less means more clips."""
    batch_s: float = 120.0
    """Most seconds of audio, padding counted, that the teacher gets at once."""
    window_s: float = 30.0
    """Longer clips are cut into windows that keep so many seconds each; 0 never cuts."""
    context_s: float = 5.0
    """Seconds on either side of a window that the teacher sees besides."""
    seed: int = 0
    """Decides which clips and frames are taken."""
    device: str = "auto"
    """Device of the teacher: auto, cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class Sample:
    """Frames to take: of each clip some positions, which fill consecutive rows of the output."""

    folders: Sequence[ShardFolder]
    """Where the clips are from."""
    sources: np.ndarray
    """(C,) int64: for each clip that gives at least one frame, which folder it is from."""
    numbers: np.ndarray
    """(C,) int64, its number there."""
    positions: list[np.ndarray]
    """For each clip its frames, sorted, int64."""
    rows: np.ndarray
    """(C,) int64, its first row in the output."""
    num_frames: int
    """F, all of them."""


def run(config: EmbedConfig) -> None:
    """Writes a sample of teacher frames.

    Raises:
        ConfigError: Settings that do not fit together.
        DataError: A shard folder is unusable, or the output holds another sample.
    """
    _check_config(config)
    windowing = Windowing(config.window_s, config.context_s)
    folders = [ShardFolder(path) for path in config.shards]
    teacher = load_teacher(config.teacher, choose_device(config.device))
    frames_path = Path(f"{config.output}.frames.npy")
    record_path = Path(f"{config.output}.frames.json")
    settings = _settings(config, folders, teacher)
    if _is_done(frames_path, record_path, settings):
        if not frames_path.with_suffix(".md").is_file():
            _write_report(frames_path, json.loads(record_path.read_text("utf-8")))
        log.info("%s: is there, nothing to do", frames_path)
        return
    frames_path.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(frames_path.parent)
    sample = choose_frames(config, folders, teacher)
    with atomic_path(frames_path) as partial:
        output = np.lib.format.open_memmap(
            partial, mode="w+", dtype=np.float32, shape=(sample.num_frames, teacher.dim)
        )
        _fill(output, sample, TeacherFrames(teacher, windowing), config.batch_s)
        output.flush()
        del output
    record = {
        "format_version": FORMAT_VERSION,
        "teacher": describe_teacher(teacher),
        "seed": config.seed,
        "num_clips": len(sample.numbers),
        "num_frames": sample.num_frames,
        "dim": teacher.dim,
        "settings": settings,
    }
    _write_report(frames_path, record)
    write_json(record_path, record)
    log.info(
        "%s: %d frames of %d clips, %d channels",
        frames_path,
        sample.num_frames,
        len(sample.numbers),
        teacher.dim,
    )


def _write_report(frames_path: Path, record: dict[str, Any]) -> None:
    frames = np.load(frames_path, mmap_mode="r")
    write_frames_report(frames_path.with_suffix(".md"), frames, record)


def choose_frames(config: EmbedConfig, folders: Sequence[ShardFolder], teacher: Teacher) -> Sample:
    """Chooses the frames of a sample; a function of the clips, the seed and the counts alone.

    Clips are taken in a random order until their frames number `num_frames / clip_share`; of those
    frames `num_frames` are drawn evenly, without replacement.

    Raises:
        DataError: No clip is long enough for a frame.
    """
    first = np.cumsum([0, *map(len, folders)])
    lengths = np.concatenate([folder.num_samples for folder in folders])
    order = generator(config.seed, "embed/clips").permutation(len(lengths))
    known, which = np.unique(lengths[order], return_inverse=True)
    counts = np.array([teacher.num_frames(int(one)) for one in known], np.int64)[which]
    if counts.sum() == 0:
        raise DataError(f"{config.shards}: no clip is long enough for a frame of the teacher")
    wanted = int(np.ceil(config.num_frames / config.clip_share))
    num_clips = int(np.searchsorted(np.cumsum(counts), min(wanted, counts.sum()))) + 1
    counts, order = counts[:num_clips], order[:num_clips]
    available = int(counts.sum())
    if available < config.num_frames:
        log.warning("only %d frames are there, %d were asked for", available, config.num_frames)
    drawn = generator(config.seed, "embed/frames").choice(
        available, size=min(config.num_frames, available), replace=False, shuffle=False
    )
    drawn.sort()
    ends = np.cumsum(counts)
    bounds = np.searchsorted(drawn, ends)
    positions = np.split(drawn, bounds[:-1])
    chosen = [i for i, one in enumerate(positions) if len(one)]
    rows = np.concatenate(([0], bounds[:-1]))
    clips = order[chosen]
    from_folder = np.searchsorted(first, clips, side="right") - 1
    return Sample(
        folders=folders,
        sources=from_folder,
        numbers=clips - first[from_folder],
        positions=[positions[i] - (ends[i] - counts[i]) for i in chosen],
        rows=rows[chosen],
        num_frames=len(drawn),
    )


def _fill(output: np.ndarray, sample: Sample, frames: TeacherFrames, batch_s: float) -> None:
    """Computes the chosen clips and writes their chosen frames into the output's rows."""
    groups = []
    for source, folder in enumerate(sample.folders):
        own = np.flatnonzero(sample.sources == source)
        # In the order of the files, so that a disk is read forwards.
        own = own[np.argsort(sample.numbers[own])]
        groups += [(folder, own[i : i + CLIPS_AT_ONCE]) for i in range(0, len(own), CLIPS_AT_ONCE)]
    for folder, group in progress(groups, f"embed {frames.teacher.name}"):
        clips = dict(zip(sample.numbers[group].tolist(), group.tolist(), strict=True))
        infos = [folder.cut(number) for number in clips]
        ledger.note(audio_hours=sum(info.duration_s for info in infos) / 3600)
        for batch in frames.over(folder, infos, batch_s):
            for piece, rep in batch:
                clip = clips[piece.info.index]
                positions = sample.positions[clip] - piece.first_frame
                inside = np.flatnonzero((positions >= 0) & (positions < len(rep)))
                rows = int(sample.rows[clip]) + inside
                chosen = torch.from_numpy(positions[inside]).to(rep.device)
                output[rows] = rep[chosen].cpu().numpy()


def _check_config(config: EmbedConfig) -> None:
    check_sources(config.shards, config.batch_s)
    if not config.output:
        raise ConfigError("output is not set")
    if config.num_frames < 1 or not 0 < config.clip_share <= 1:
        raise ConfigError("num_frames must be at least 1 and clip_share in (0, 1]")


def _settings(
    config: EmbedConfig, folders: Sequence[ShardFolder], teacher: Teacher
) -> dict[str, Any]:
    """Returns what the sample depends on, as JSON; not where it lies."""
    identity = {key: value for key, value in teacher.identity().items() if key != "path"}
    windowing = Windowing(config.window_s, config.context_s)
    has_windows = any(windowing.may_cut(folder.longest_s) for folder in folders)
    return {
        **({"windows": asdict(windowing)} if has_windows else {}),
        "seed": config.seed,
        "num_frames": config.num_frames,
        "clip_share": config.clip_share,
        "teacher": identity,
        "shards": [file_fingerprint(folder.cut_files()) for folder in folders],
    }


def _is_done(frames_path: Path, record_path: Path, settings: dict[str, Any]) -> bool:
    """Whether this very sample is there.

    Raises:
        DataError: Another one is.
    """
    if not (record_path.is_file() and frames_path.is_file()):
        return False
    try:
        found = json.loads(record_path.read_text("utf-8"))["settings"]
        different = [key for key, value in settings.items() if found.get(key) != value]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{record_path}: not readable ({error}); remove it") from error
    if different:
        raise DataError(
            f"{frames_path}: was made with other settings ({', '.join(different)}); remove it and "
            f"{record_path.name}, or choose another output"
        )
    return True
