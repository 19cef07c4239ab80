"""`spear prepare`: a folder of recordings becomes lhotse cut manifests, one for each split.

Takes any folder that holds files that libsndfile reads, with or without Kaldi's `text` and
`utt2spk`, decodes every recording once to find the bad ones, splits by lists of ids or by a hash,
and writes `{corpus}_{split}_cuts.jsonl.gz` and a report. Bad recordings are named in
`bad_cuts.jsonl` and left out. Run again with the same settings and files, it keeps what is there.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lhotse import AudioSource, CutSet, Recording, SupervisionSegment
from lhotse.cut import Cut, MixedCut

from spear.audio import AudioInfo, check_audio
from spear.data.corpus.joining import join_cuts, parse_range
from spear.data.corpus.scan import Found, scan_recordings
from spear.data.formats import kaldi_text
from spear.data.formats.manifests import BadCuts, printable, write_jsonl_gz
from spear.data.stage_reports import write_prepare_report
from spear.errors import AudioError, ConfigError, DataError
from spear.system.files import read_record, remove_partials, sha256_of, write_json
from spear.system.parallel import in_threads
from spear.system.progress import get_logger, progress

log = get_logger(__name__)

FORMAT_VERSION = 1


@dataclass
class PrepareConfig:
    """What to make cut manifests of."""

    source_dir: str = ""
    """Folder of recordings, searched recursively."""
    corpus: str = ""
    """Name of the corpus: the manifests are called {corpus}_{split}_cuts.jsonl.gz."""
    output_dir: str = "data/manifests"
    """Folder for the manifests."""
    domain: Literal["speech", "audio"] = "speech"
    """What the recordings are; decides which teachers' tokens they get."""
    text: str | None = None
    """Transcripts in Kaldi's form, `id word word ...`; recordings without one are kept."""
    utt2spk: str | None = None
    """Speakers in Kaldi's form, `id speaker`."""
    test_ids: str | None = None
    """File of ids, one a line, that form the test split."""
    valid_ids: str | None = None
    """File of ids, one a line, that form the validation split."""
    valid_fraction: float = 0.0
    """Share of the other recordings (0 to 1) for validation, chosen by a hash of the id."""
    train_split: str = "train"
    """Name of the split of what is in no other."""
    valid_split: str = "valid"
    """Name of the validation split."""
    test_split: str = "test"
    """Name of the test split."""
    join: str | None = None
    """Range such as 3-6: join so many transcribed recordings of a speaker into one cut."""
    join_gap_s: tuple[float, float] = (0.05, 0.25)
    """Shortest and longest silence between joined recordings, in seconds."""
    join_passes: int = 1
    """How often every training recording is used in joined cuts; held-out ones are used once."""
    seed: int = 0
    """Decides which recordings are joined."""
    max_bad_fraction: float = 0.01
    """Share of bad recordings (0 to 1) above which the stage stops. Every recording is checked and
    every bad one is named in bad_cuts.jsonl before; what was written earlier stays as it was."""
    num_jobs: int = 4
    """Threads that decode recordings."""


def run(config: PrepareConfig) -> None:
    """Writes the manifests of a corpus.

    Raises:
        ConfigError: Settings that do not fit together.
        DataError: A missing or empty folder, unknown ids, or too many bad recordings.
    """
    _check_config(config)
    output = Path(config.output_dir)
    record_path = output / f".{config.corpus}_prepare.json"
    found = scan_recordings(Path(config.source_dir))
    files, num_found = found.files, len(found.files) + len(found.refused)
    settings = _settings(config, found)
    record = read_record(record_path)
    if record.get("settings") == settings and _outputs_are_whole(output, record):
        if not _report_path(config).is_file():
            _write_report(config, record["outputs"], num_found)
        log.info("%s: %s is there, nothing to do", config.corpus, ", ".join(record["outputs"]))
        return
    labels = Labels.load(config, files)
    output.mkdir(parents=True, exist_ok=True)
    remove_partials(output)
    infos = _check_recordings(config, found, output)
    splits = _make_splits(config, files, infos, labels)
    outputs = {}
    for split, cuts in splits.items():
        path = output / f"{config.corpus}_{split}_cuts.jsonl.gz"
        num_cuts, hours = _write_cuts(path, cuts)
        outputs[path.name] = sha256_of(path)
        log.info("%s: %d cuts, %.2f h", path, num_cuts, hours)
    for stale in set(record.get("outputs", {})) - set(outputs):
        log.info("%s: removed, these settings do not make it", output / stale)
        (output / stale).unlink(missing_ok=True)
    _write_report(config, outputs, num_found)
    write_json(record_path, {"settings": settings, "outputs": outputs})


@dataclass(frozen=True)
class Labels:
    """What Kaldi's files say of the recordings."""

    text: Mapping[str, str]
    """Transcript by id."""
    speakers: Mapping[str, str]
    """Speaker by id."""
    test_ids: frozenset[str]
    """Ids of the test split."""
    valid_ids: frozenset[str]
    """Ids of the validation split."""

    @classmethod
    def load(cls, config: PrepareConfig, known: Mapping[str, Path]) -> "Labels":
        """Reads the files that a configuration names.

        Raises:
            DataError: A file is missing or broken, has ids without recordings, or an id is in
                both lists.
        """
        text = kaldi_text.read_text(config.text) if config.text else {}
        speakers = kaldi_text.read_utt2spk(config.utt2spk) if config.utt2spk else {}
        test_ids = kaldi_text.read_ids(config.test_ids) if config.test_ids else set()
        valid_ids = kaldi_text.read_ids(config.valid_ids) if config.valid_ids else set()
        named = (
            (config.text, text),
            (config.utt2spk, speakers),
            (config.test_ids, test_ids),
            (config.valid_ids, valid_ids),
        )
        for path, ids in named:
            if path:
                kaldi_text.check_known(path, ids, known)
        both = sorted(test_ids & valid_ids)
        if both:
            raise DataError(
                f"{config.valid_ids}: {len(both)} ids are in {config.test_ids} too, "
                f"e.g. {both[0]!r}; a recording belongs to one split"
            )
        return cls(text, speakers, frozenset(test_ids), frozenset(valid_ids))


def _check_config(config: PrepareConfig) -> None:
    for name in ("source_dir", "corpus", "output_dir"):
        if not getattr(config, name):
            raise ConfigError(f"{name} is not set")
    where = str(Path(config.source_dir).resolve())
    if printable(where) != where:
        raise ConfigError(f"source_dir {printable(where)}: no plain UTF-8 text, rename the folder")
    if "/" in config.corpus:
        raise ConfigError(f"corpus is part of a file name and cannot be {config.corpus!r}")
    if not 0 <= config.valid_fraction < 1:
        raise ConfigError(f"valid_fraction must lie in [0, 1), not {config.valid_fraction}")
    if config.num_jobs < 1 or config.join_passes < 1:
        raise ConfigError("num_jobs and join_passes must be at least 1")
    if len({config.train_split, config.valid_split, config.test_split}) < 3:
        raise ConfigError("train_split, valid_split and test_split must be three names")
    if config.join is None:
        return
    parse_range(config.join)
    if not 0 <= config.join_gap_s[0] <= config.join_gap_s[1]:
        raise ConfigError(f"join_gap_s must be shortest, longest; not {config.join_gap_s}")
    if not (config.text and config.utt2spk):
        raise ConfigError("join needs text and utt2spk: only transcribed recordings of one speaker")


def _settings(config: PrepareConfig, found: Found) -> dict[str, Any]:
    """Returns everything that the outputs depend on, as JSON."""
    content = asdict(config)
    for name in ("num_jobs", "output_dir"):
        del content[name]
    content["source_dir"] = str(Path(config.source_dir).resolve())
    digest = hashlib.sha256()
    for key, path in found.files.items():
        digest.update(f"{key}\0{path}\0{_state_of(path)}\n".encode())
    for _, _, error in found.refused:
        digest.update(f"{error}\n".encode())
    content["recordings_sha256"] = digest.hexdigest()
    for name in ("text", "utt2spk", "test_ids", "valid_ids"):
        path_of = Path(content[name]) if content[name] else None
        if path_of is not None and path_of.is_file():
            content[name] = sha256_of(path_of)
    content["format_version"] = FORMAT_VERSION
    return json.loads(json.dumps(content))


def _state_of(path: Path) -> str:
    """Returns what changes when a file does; what has no state is bad, and named later."""
    try:
        status = path.stat()
    except OSError as error:
        return str(error.errno)
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _outputs_are_whole(output: Path, record: Mapping[str, Any]) -> bool:
    paths = {output / name: digest for name, digest in record.get("outputs", {}).items()}
    return all(path.is_file() and sha256_of(path) == digest for path, digest in paths.items())


def _report_path(config: PrepareConfig) -> Path:
    return Path(config.output_dir) / f"{config.corpus}_report.md"


def _write_report(config: PrepareConfig, names: Iterable[str], num_recordings: int) -> None:
    """Reports on the manifests of these names."""
    folder, prefix, suffix = Path(config.output_dir), f"{config.corpus}_", "_cuts.jsonl.gz"
    splits = {
        name.removeprefix(prefix).removesuffix(suffix): CutSet.from_file(folder / name)
        for name in names
    }
    bad = BadCuts(folder, config.corpus, config.max_bad_fraction).recorded()
    write_prepare_report(_report_path(config), config.corpus, splits, num_recordings, bad)


def _check_recordings(config: PrepareConfig, found: Found, output: Path) -> dict[str, AudioInfo]:
    """Decodes everything and returns the facts of the good recordings."""
    bad = BadCuts(output, config.corpus, config.max_bad_fraction)
    for entry in found.refused:
        bad.add(*entry)
    infos, total = {}, len(found.files) + len(found.refused)
    results = progress(
        in_threads(_probe, found.files.values(), config.num_jobs),
        f"prepare {config.corpus}",
        total=len(found.files),
    )
    for (key, path), result in zip(found.files.items(), results, strict=True):
        if isinstance(result, AudioInfo):
            infos[key] = result
        else:
            bad.add(key, str(path), str(result))
    bad.write()
    bad.log_summary(total)
    bad.check(total)
    return infos


def _probe(path: Path) -> AudioInfo | AudioError:
    try:
        return check_audio(path)
    except AudioError as error:
        return error


def _make_splits(
    config: PrepareConfig,
    files: Mapping[str, Path],
    infos: Mapping[str, AudioInfo],
    labels: Labels,
) -> dict[str, Iterable[Cut]]:
    """Returns the cuts of every split that has any, made when they are asked for."""
    if labels.text:
        num_missing = sum(key not in labels.text for key in infos)
        log.info("%d of %d recordings have no transcript", num_missing, len(infos))
    keys: dict[str, list[str]] = {}
    for key in infos:
        keys.setdefault(_split_of(config, key, labels), []).append(key)

    def cuts(own: Iterable[str]) -> Iterator[Cut]:
        return (_make_cut(config, key, files[key], infos[key], labels) for key in own)

    if config.join is None:
        return {split: cuts(own) for split, own in keys.items()}
    return {split: _join_split(config, split, cuts(own)) for split, own in keys.items()}


def _write_cuts(path: Path, cuts: Iterable[Cut]) -> tuple[int, float]:
    """Writes a manifest; returns its cuts and their hours."""
    durations_s = array("d")

    def lines() -> Iterator[dict[str, Any]]:
        for cut in cuts:
            durations_s.append(cut.duration)
            yield cut.to_dict()

    write_jsonl_gz(path, lines())
    return len(durations_s), sum(durations_s) / 3600


def _make_cut(config: PrepareConfig, key: str, path: Path, info: AudioInfo, labels: Labels) -> Cut:
    channels = list(range(info.num_channels))
    recording = Recording(
        id=key,
        sources=[AudioSource(type="file", channels=channels, source=str(path.resolve()))],
        sampling_rate=info.rate_hz,
        num_samples=info.num_samples,
        duration=info.duration_s,
        channel_ids=channels,
    )
    cut = recording.to_cut()
    cut.custom = {"domain": config.domain}
    text, speaker = labels.text.get(key), labels.speakers.get(key)
    if text is not None or speaker is not None:
        segment = SupervisionSegment(
            id=key,
            recording_id=key,
            start=0.0,
            duration=cut.duration,
            channel=cut.channel,
            text=text,
            speaker=speaker,
        )
        cut.supervisions = [segment]
    return cut


def _split_of(config: PrepareConfig, key: str, labels: Labels) -> str:
    """Returns the split of a recording; a function of its id and the lists alone."""
    if key in labels.test_ids:
        return config.test_split
    if key in labels.valid_ids:
        return config.valid_split
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return config.valid_split if drawn < config.valid_fraction else config.train_split


def _join_split(config: PrepareConfig, split: str, cuts: Iterable[Cut]) -> list[Cut]:
    """Joins what has a transcript and a speaker; keeps the rest as it is and says how much."""
    assert config.join is not None
    sizes = parse_range(config.join)
    speakers: dict[str, list[Cut]] = {}
    result: list[Cut] = []
    for cut in cuts:
        segment = cut.supervisions[0] if cut.supervisions else None
        if segment is None or segment.text is None or segment.speaker is None:
            result.append(cut)
        else:
            speakers.setdefault(segment.speaker, []).append(cut)
    if result:
        log.info("%s: %d recordings lack text or speaker and stay single", split, len(result))
    passes = config.join_passes if split == config.train_split else 1
    for speaker, own in sorted(speakers.items()):
        prefix = f"{split}-{speaker.replace('/', '-')}"
        joined: list[MixedCut] = join_cuts(
            own,
            prefix,
            sizes=sizes,
            gap_s=config.join_gap_s,
            seed=config.seed,
            num_passes=passes,
        )
        result.extend(joined)
    return result
