"""`spear extract-tokens`: teachers' tokens for every clip of shard folders, in one pass over audio.

Takes shard folders, teachers and their quantisers; runs the teachers over every clip and writes the
codes as one more Shar field each, `{teacher}_tokens.000000.tar`, beside the audio. When the tokens
of all shards are there, a report and the sidecar `{teacher}_tokens.json` are written. Run again, it
does only the shards that are missing; several jobs (torchrun, or --job i --num-jobs n) share the
shards and write the same bytes as one, on the same kind of machine with as many threads each (on a
CPU another OMP_NUM_THREADS rounds a few tokens in ten thousand to another code). Clips too long for
one pass are cut into windows with context; Dasheng has 10.08 s blocks of its own, and gets whole
ones. `--dry_run true` says what the work costs. The pipeline is in
`spear.data.tokens.pipeline`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens.cost import log_cost
from spear.data.tokens.finished import TokenState
from spear.data.tokens.frames import check_sources
from spear.data.tokens.maker import TokenMaker
from spear.data.tokens.pipeline import extract
from spear.errors import ConfigError
from spear.mvq import load_quantizer
from spear.system.device import choose_device, choose_precision
from spear.system.files import remove_partials
from spear.teachers import TeacherConfig, Windowing, load_teacher


@dataclass
class TeacherTokens:
    """One teacher of several, and the folders that get its tokens."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The teacher; its name is the key under which it stands."""
    quantizer: str = ""
    """Quantiser file that was trained on this teacher's frames."""
    shards: list[str] = field(default_factory=list)
    """Shard folders that get its tokens; all where empty."""


@dataclass
class ExtractConfig:
    """Which tokens to extract."""

    shards: list[str] = field(default_factory=list)
    """Shard folders; the tokens are written into them."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The teacher, where there is one."""
    quantizer: str = ""
    """Quantiser file (quantizer.safetensors) that was trained on this teacher's frames."""
    teachers: dict[str, TeacherTokens] = field(default_factory=dict)
    """Several teachers by name, instead of `teacher` and `quantizer`: audio is decoded once."""
    batch_s: float = 120.0
    """Most seconds of audio, padding counted, that the teacher gets at once."""
    window_s: float = 30.0
    """Clips longer than this and `context_s` on both sides are cut into windows that keep so many
    seconds each (Dasheng: whole blocks of 10.08 s); 0 never cuts."""
    context_s: float = 5.0
    """Seconds on either side of a window that the teacher sees besides."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What teachers compute in; auto is bfloat16 on GPUs that have it, else float32. Spectrograms
    and the search for codes are float32 always. Tokens of two precisions do not share a folder."""
    num_workers: int = 1
    """Threads that read and decode audio ahead; 0 reads between batches. The tokens are the same.
    """
    job: int = 1
    """Which of the jobs this is, from 1; under torchrun the ranks divide its share further."""
    num_jobs: int = 1
    """Jobs that share the shards."""
    device: str = "auto"
    """Device of teachers and quantisers: auto, cpu, cuda, cuda:1, ..."""
    dry_run: bool = False
    """Write nothing; say how many hours are missing, how many bytes and device-hours they cost."""
    dry_run_s: float = 60.0
    """Seconds for which a dry run measures the speed on a sample of the missing clips."""


def run(config: ExtractConfig) -> None:
    """Writes the tokens that are missing.

    Raises:
        ConfigError: Settings that do not fit together.
        DataError: A shard folder is unusable.
        TokenError: Teacher and quantiser do not fit, or the folder holds other tokens.
    """
    entries = _entries(config)
    makers = {name: _load(config, entry) for name, entry in entries.items()}
    folders = [
        [TokenState(folder, makers[name]) for name in names]
        for folder, names in _teachers_of_folders(entries)
    ]
    for state in (state for states in folders for state in states):
        state.finished()  # a folder with other tokens stops the stage before any work
    share, num_shares = _share(config)
    if config.dry_run:
        log_cost(folders, num_shares, config.batch_s, config.num_workers, config.dry_run_s)
        return
    for states in folders:
        folder = states[0].folder
        remove_partials(folder.path)
        positions = range(share, folder.num_shards, num_shares)
        extract(states, positions, config.batch_s, config.num_workers)
        for state in states:
            state.finalise()


def _load(config: ExtractConfig, entry: TeacherTokens) -> TokenMaker:
    device = choose_device(config.device)
    quantizer = load_quantizer(entry.quantizer).to(device).eval()
    precision = choose_precision(config.precision, device)
    teacher = load_teacher(entry.teacher, device, precision)
    windowing = Windowing(config.window_s, config.context_s)
    return TokenMaker(teacher, quantizer, entry.quantizer, windowing)


def _entries(config: ExtractConfig) -> dict[str, TeacherTokens]:
    """Returns the teachers by name, each with its folders.

    Raises:
        ConfigError: Settings that do not fit together.
    """
    if not 1 <= config.job <= config.num_jobs:
        raise ConfigError(f"job must lie between 1 and num_jobs {config.num_jobs}: {config.job}")
    if config.num_workers < 0:
        raise ConfigError(f"num_workers must be 0 or more, not {config.num_workers}")
    if config.teachers and (config.quantizer or config.teacher != TeacherConfig()):
        raise ConfigError("give teachers, or teacher and quantizer, not both")
    entries = {
        name: replace(
            entry, teacher=_named(entry.teacher, name), shards=entry.shards or config.shards
        )
        for name, entry in config.teachers.items()
    } or {config.teacher.name: TeacherTokens(config.teacher, config.quantizer, config.shards)}
    for name, entry in entries.items():
        check_sources(entry.shards, config.batch_s)
        if not entry.quantizer:
            where = f"teachers.{name}." if config.teachers else ""
            raise ConfigError(f"{where}quantizer is not set")
    return entries


def _named(teacher: TeacherConfig, name: str) -> TeacherConfig:
    """Returns a teacher under the name that it stands under."""
    if teacher.name not in (name, TeacherConfig().name):
        raise ConfigError(f"teachers.{name}.teacher.name is {teacher.name!r}: leave it out")
    return replace(teacher, name=name)


def _teachers_of_folders(
    entries: dict[str, TeacherTokens],
) -> list[tuple[ShardFolder, Sequence[str]]]:
    """Returns every folder with the names of its teachers."""
    paths = dict.fromkeys(path for entry in entries.values() for path in entry.shards)
    return [
        (ShardFolder(path), [name for name, entry in entries.items() if path in entry.shards])
        for path in paths
    ]


def _share(config: ExtractConfig) -> tuple[int, int]:
    """Returns which share of the shards is this process's, and how many shares there are."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return (config.job - 1) * world_size + rank, config.num_jobs * world_size
