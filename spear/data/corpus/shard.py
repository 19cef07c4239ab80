"""`spear shard`: cut manifests become a shard folder, audio decoded once and for all.

Takes a lhotse cut manifest and writes lhotse Shar shards of at most `shard_size` cuts: FLAC,
16 kHz, mono, 16 bits, with levels untouched. Untranscribed cuts longer than `max_duration_s` are
cut into equal windows. Every shard is written under temporary names and renamed; `shards.json`
says at the end what each holds, `report.md` what all hold together. Run again, the stage does only
the shards that are missing.
"""

import io
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from spear.audio.io import SAMPLE_RATE_HZ
from spear.data.corpus.cut_audio import CutReader
from spear.data.formats.manifests import BadCuts, iter_jsonl_gz, write_jsonl_gz
from spear.data.formats.part_records import PartRecords
from spear.data.formats.shards import SHARDS_RECORD, cuts_name, load_record, recording_name
from spear.data.formats.tars import PairTarWriter
from spear.data.index.shard_folder import ShardFolder
from spear.data.stage_reports import write_shard_report
from spear.errors import AudioError, ConfigError, DataError
from spear.system import ledger
from spear.system.files import atomic_path, remove_partials, sha256_of, write_json
from spear.system.parallel import in_processes
from spear.system.progress import get_logger, progress

log = get_logger(__name__)

FORMAT_VERSION = 1


@dataclass
class ShardConfig:
    """What to shard, and how."""

    cuts: str = ""
    """Cut manifest (cuts.jsonl.gz), as `spear prepare` or lhotse writes it."""
    output_dir: str = ""
    """Shard folder to make or to finish."""
    shard_size: int = 500
    """Most cuts in a shard."""
    max_duration_s: float = 30.0
    """Longest clip in seconds: longer cuts without transcript become equal windows."""
    min_duration_s: float = 0.1
    """Shortest clip in seconds: shorter cuts are left out and counted."""
    max_bad_fraction: float = 0.01
    """Share of bad clips (0 to 1) above which the stage stops, after all shards are written and
    every bad clip is named in bad_cuts.jsonl; cuts that are too short do not count."""
    num_jobs: int = 1
    """Processes that write shards."""


@dataclass(frozen=True)
class Window:
    """One clip to be written: a part of a cut."""

    cut: dict[str, Any]
    """The cut's JSON."""
    number: int
    """Which of the cut's equal windows, from 0."""
    total: int
    """How many windows the cut has; 1 is the whole cut."""

    @property
    def id(self) -> str:
        """Id of the clip."""
        suffix = f"-{self.number:04d}" if self.total > 1 else ""
        return f"{self.cut['id']}{suffix}"


def run(config: ShardConfig) -> None:
    """Writes what is missing of a shard folder.

    Raises:
        ConfigError: Settings that do not fit together.
        DataError: The manifest is unusable, the folder holds other shards, or too many
            recordings are bad.
    """
    _check_config(config)
    folder, manifest = Path(config.output_dir), Path(config.cuts)
    num_windows, too_short = survey_manifest(manifest, config)
    num_shards = math.ceil(num_windows / config.shard_size)
    if not num_shards:
        raise DataError(f"{manifest}: no cuts to shard ({len(too_short)} are too short)")
    settings = {
        "cuts_sha256": sha256_of(manifest),
        "shard_size": config.shard_size,
        "max_duration_s": config.max_duration_s,
        "min_duration_s": config.min_duration_s,
    }
    records = PartRecords(folder, "shards")
    done = _finished(folder, records, settings)
    todo = set(range(num_shards)) - set(done)
    if not todo and load_record(folder).get("complete"):
        if not (folder / "report.md").is_file():
            _write_report(config, done)
        log.info("%s: all %d shards are there, nothing to do", folder, num_shards)
        records.clear()  # a kill may have come between the final record and this
        return
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    _save_record(folder, settings, done, complete=False)
    for number, record in _write_all(config, todo):
        ledger.note(audio_hours=record["duration_s"] / 3600)
        records.save(number, record)
        done[number] = record
    _report_bad(config, done, too_short)
    _write_report(config, done)
    _save_record(folder, settings, done, complete=True)
    ShardFolder(folder, config.num_jobs)  # its index: the stages that follow find it made
    records.clear()


def survey_manifest(manifest: Path, config: ShardConfig) -> tuple[int, list[str]]:
    """Reads a manifest once, without keeping it.

    Returns:
        How many clips it gives, and the ids of cuts shorter than `min_duration_s`.

    Raises:
        DataError: It cannot be read, or a line is no cut with a domain.
    """
    num_windows = num_long = 0
    too_short = []
    for line, total, is_long in _plan_lines(manifest, config):
        num_windows, num_long = num_windows + total, num_long + is_long
        if total == 0:
            too_short.append(str(line["id"]))
    if num_long:
        log.warning(
            "%d transcribed cuts are longer than %g s and stay whole",
            num_long,
            config.max_duration_s,
        )
    return num_windows, too_short


def iter_windows(manifest: Path, config: ShardConfig) -> Iterator[Window]:
    """Yields the clips of a manifest, in order.

    A transcript belongs to the whole of a cut, so transcribed cuts are never windowed. Windows of
    a cut are equally long, which leaves no remainder to drop.
    """
    for line, total, _ in _plan_lines(manifest, config):
        yield from (Window(line, number, total) for number in range(total))


def _plan_lines(manifest: Path, config: ShardConfig) -> Iterator[tuple[dict[str, Any], int, bool]]:
    """Yields every cut with its number of windows, and whether it is long and stays whole."""
    for number, line in enumerate(iter_jsonl_gz(manifest), start=1):
        duration_s, transcribed = _facts(line, f"{manifest}: line {number}")
        if duration_s < config.min_duration_s:
            yield line, 0, False
            continue
        total = max(1, math.ceil(duration_s / config.max_duration_s - 1e-6))
        yield line, 1 if transcribed else total, transcribed and total > 1


def write_shard(job: tuple[Path, int, Sequence[Window]]) -> tuple[int, dict[str, Any]]:
    """Writes one shard: audio and cuts, each renamed when whole, the cuts last.

    Args:
        job: Shard folder, number of the shard, its clips.

    Returns:
        The number, and the shard's record: cuts, seconds, checksums, bad recordings.
    """
    folder, number, windows = job
    reader, cuts, bad, num_scaled = CutReader(), [], [], 0
    audio_path, cuts_path = folder / recording_name(number), folder / cuts_name(number)
    cuts_path.unlink(missing_ok=True)
    with atomic_path(audio_path) as partial, PairTarWriter(partial) as tar:
        for window in windows:
            cut = deserialize_item(deepcopy(window.cut))  # lhotse takes the mapping apart
            try:
                audio = reader.load(cut, window.number, window.total)
            except AudioError as error:
                bad.append({"id": window.id, "path": _path_of(cut), "error": str(error)})
                continue
            samples, scaled = to_int16(audio)
            num_scaled += scaled
            recording = _recording(window.id, len(samples))
            tar.add(window.id, "flac", encode_flac(samples), recording)
            cuts.append(_shar_cut(cut, window, recording))
    reader.close()
    write_jsonl_gz(cuts_path, cuts)
    return number, {
        "num_cuts": len(cuts),
        "duration_s": round(sum(cut["duration"] for cut in cuts), 4),
        "num_scaled": num_scaled,
        "bad": bad,
        "sha256": {path.name: sha256_of(path) for path in (cuts_path, audio_path)},
    }


def to_int16(audio: np.ndarray) -> tuple[np.ndarray, bool]:
    """Rounds samples to 16 bits; a clip that would clip is scaled down by its peak, others never.

    Args:
        audio: (S,) float32.

    Returns:
        (S,) int16, and whether the clip was scaled. Resampling and lossy formats overshoot
        [-1, 1] a little; clipping that would add harmonics which the recording does not have.
    """
    peak = float(np.abs(audio).max(initial=0.0))
    scaled = peak > 1.0
    if scaled:
        audio = audio / peak
    return np.clip(np.rint(audio * 32768.0), -32768, 32767).astype(np.int16), scaled


def encode_flac(samples: np.ndarray) -> bytes:
    """(S,) int16 at 16 kHz -> the bytes of a FLAC file."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _check_config(config: ShardConfig) -> None:
    for name in ("cuts", "output_dir"):
        if not getattr(config, name):
            raise ConfigError(f"{name} is not set")
    if config.shard_size < 1 or config.num_jobs < 1:
        raise ConfigError("shard_size and num_jobs must be at least 1")
    if not 0 < 2 * config.min_duration_s <= config.max_duration_s:
        raise ConfigError("min_duration_s must be positive and at most half of max_duration_s")


def _facts(line: dict[str, Any], where: str) -> tuple[float, bool]:
    """Returns a cut's duration in seconds, and whether it has a transcript."""
    try:
        cut: Any = deserialize_item(deepcopy(line))
        domain = (cut.custom or {}).get("domain")
        segments = cut.supervisions
        duration_s = float(cut.duration)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not a cut ({error})") from error
    if domain not in ("speech", "audio"):
        raise DataError(
            f"{where}: cut {cut.id!r} has the domain {domain!r}; custom['domain'] must be "
            "'speech' or 'audio'"
        )
    return duration_s, any(segment.text is not None for segment in segments)


def _path_of(cut: Any) -> str:
    recordings = [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]
    return ", ".join(
        str(one.recording.sources[0].source) for one in recordings if one.has_recording
    )


def _recording(cut_id: str, num_samples: int) -> dict[str, Any]:
    return {
        "id": cut_id,
        "sources": [{"type": "shar", "channels": [0], "source": ""}],
        "sampling_rate": SAMPLE_RATE_HZ,
        "num_samples": num_samples,
        "duration": num_samples / SAMPLE_RATE_HZ,
        "channel_ids": [0],
    }


def _shar_cut(cut: Cut, window: Window, recording: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON of a clip: a MonoCut from 0 with at most one supervision."""
    segments = sorted(cut.supervisions, key=lambda one: one.start)
    content: dict[str, Any] = {
        "id": window.id,
        "start": 0,
        "duration": recording["duration"],
        "channel": 0,
        "supervisions": [],
        "recording": recording,
        "custom": dict(cut.custom or {}),
        "type": "MonoCut",
    }
    if segments:
        texts = [one.text for one in segments if one.text is not None]
        supervision = {
            "id": window.id,
            "recording_id": window.id,
            "start": 0.0,
            "duration": recording["duration"],
            "channel": 0,
            "text": " ".join(texts) if texts else None,
            "speaker": segments[0].speaker,
            "language": segments[0].language,
        }
        content["supervisions"] = [{k: v for k, v in supervision.items() if v is not None}]
    return content


def _finished(
    folder: Path, records: PartRecords, settings: dict[str, Any]
) -> dict[int, dict[str, Any]]:
    """Returns the records of the shards that are in place, by number.

    Raises:
        DataError: The folder was made from another manifest or with other settings.
    """
    if not folder.is_dir():
        return {}
    record = load_record(folder)
    if not record:
        if any(folder.glob("cuts.*.jsonl.gz")):
            raise DataError(f"{folder}: holds shards of another program; choose another folder")
        return {}
    different = [name for name, value in settings.items() if record["settings"].get(name) != value]
    if different:
        raise DataError(
            f"{folder}: was made with other settings ({', '.join(different)}); remove the folder "
            "or choose another"
        )
    done = {int(key): entry for key, entry in record["shards"].items()} | records.load()
    # What was bad in an unfinished run may have been repaired since: those shards are tried again.
    return {
        number: entry
        for number, entry in done.items()
        if (record["complete"] or not entry["bad"])
        and all((folder / name).is_file() for name in entry["sha256"])
    }


def _write_all(config: ShardConfig, todo: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Writes shards in this process or several; yields each in its turn.

    The manifest is read along with them: no more of it is in memory than the shards in work.
    """
    folder, windows = Path(config.output_dir), iter_windows(Path(config.cuts), config)
    shards = iter(lambda: list(islice(windows, config.shard_size)), [])
    jobs = ((folder, number, own) for number, own in enumerate(shards) if number in todo)
    results = in_processes(write_shard, jobs, config.num_jobs)
    return progress(results, f"shard {folder.name}", total=len(todo))


def _bad_cuts(config: ShardConfig) -> BadCuts:
    return BadCuts(Path(config.output_dir), Path(config.cuts).name, config.max_bad_fraction)


def _write_report(config: ShardConfig, done: dict[int, dict[str, Any]]) -> None:
    bad = _bad_cuts(config)
    write_shard_report(Path(config.output_dir), bad.source, done, bad.recorded())


def _report_bad(config: ShardConfig, done: dict[int, dict[str, Any]], too_short: list[str]) -> None:
    """Writes `bad_cuts.jsonl`; raises `DataError` where too many recordings are bad."""
    bad = _bad_cuts(config)
    for number in sorted(done):
        for entry in done[number]["bad"]:
            bad.add(entry["id"], entry["path"], entry["error"])
    total = sum(entry["num_cuts"] for entry in done.values()) + len(bad.entries)
    try:
        bad.check(total)
    finally:
        for cut_id in too_short:
            bad.add(cut_id, "", f"shorter than min_duration_s {config.min_duration_s:g}")
        bad.write()
        bad.log_summary(total + len(too_short))


def _save_record(
    folder: Path, settings: dict[str, Any], done: dict[int, dict[str, Any]], complete: bool
) -> None:
    record = {
        "format_version": FORMAT_VERSION,
        "complete": complete,
        "settings": settings,
        "num_cuts": sum(entry["num_cuts"] for entry in done.values()),
        "duration_s": round(sum(entry["duration_s"] for entry in done.values()), 4),
        "num_scaled": sum(entry["num_scaled"] for entry in done.values()),
        "shards": {f"{number:06d}": done[number] for number in sorted(done)},
    }
    write_json(folder / SHARDS_RECORD, record)
    if complete:
        log.info(
            "%s: %d shards, %d cuts, %.2f h; %d clips were scaled down to avoid clipping",
            folder,
            len(done),
            record["num_cuts"],
            float(record["duration_s"]) / 3600,
            record["num_scaled"],
        )
