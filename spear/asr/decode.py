"""`spear decode`: a recogniser and recordings in, text and word error rates out.

Reads shard folders (scored where their cuts have transcripts) or plain audio files and folders of
them. Writes Kaldi's three text files for every split, a report over all of them and `summary.json`.
`transcribe` does the same for arrays, in one call.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spear import ledger
from spear.asr.model import AsrModel, Transcript, load_asr_model
from spear.asr.report import SplitResult, write_report
from spear.asr.scoring import (
    ErrorCounts,
    Recognition,
    Scores,
    total_errors,
    write_recognitions,
    write_score_files,
)
from spear.asr.tokenizer import normalize
from spear.audio import SAMPLE_RATE_HZ, Fbank, check_audio, read_audio
from spear.data.packing import pack
from spear.data.shards import ShardFolder
from spear.device import choose_device
from spear.errors import ConfigError, DataError, SpearError
from spear.files import write_json
from spear.progress import get_logger, progress

logger = get_logger(__name__)

AUDIO_SPLIT = "audio"
AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".opus"}


@dataclass
class DecodeConfig:
    """Recognises speech greedily and scores it where there are transcripts."""

    run_dir: str
    """Run folder of `spear finetune-asr`, or one of its checkpoint folders."""
    shards: list[str] = field(default_factory=list)
    """Shard folders; the last part of each path is the name of its split."""
    audio: list[str] = field(default_factory=list)
    """Audio files, or folders that are searched for them; recognised, not scored."""
    output_dir: str | None = None
    """Folder for the results; none: `decode` in the run folder."""
    weights: str = "averaged"
    """Which of the run's weights: "averaged" (over the later half of the run), "averaged:SHARE"
    (over its last share, e.g. averaged:0.25), "last", "average_last:K" (mean of K checkpoints)."""
    batch_s: float = 200.0
    """Audio that is recognised at once, in seconds, counted with padding."""
    max_recording_s: float = 120.0
    """Longer recordings, in seconds, are an error: memory grows with the square of the length."""
    num_workers: int = 0
    """Processes that read and compute features; 0 does it in this process."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        for name in ("batch_s", "max_recording_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be above 0 seconds")


@dataclass(frozen=True)
class Recording:
    """Something to recognise."""

    id: str
    """Cut id, or path."""
    duration_s: float
    """Seconds."""
    read: Callable[[], np.ndarray]
    """Gives (S,) float32 at 16 kHz."""
    text: str | None = None
    """What was said, where it is known."""
    speaker: str = ""
    """Who said it, where it is known."""


def run(config: DecodeConfig) -> None:
    """Recognises all splits.

    Raises:
        CheckpointError: The run folder cannot be used.
        DataError: Recordings are missing, too long, or there are none.
        ConfigError: Nothing to do, or two splits have the same name.
    """
    splits = find_splits(config)
    device = choose_device(config.device)
    model = load_asr_model(config.run_dir, config.weights, str(device))
    output = Path(config.run_dir) / "decode" if config.output_dir is None else config.output_dir
    results: dict[str, SplitResult] = {}
    for split, recordings in splits.items():
        transcripts = recognize(
            model, recordings, config.batch_s, num_workers=config.num_workers, label=split
        )
        ledger.note(audio_hours=sum(one.duration_s for one in recordings) / 3600)
        results[split] = _write_split(Path(output), split, recordings, transcripts, model)
    write_report(Path(output), results, config.weights)
    scored = {split: one.scores for split, one in results.items() if one.scores is not None}
    write_json(Path(output) / "summary.json", summarize(scored, config))
    logger.info("results in %s", output)


def transcribe(
    model: AsrModel,
    audio: Sequence[np.ndarray | Tensor],
    batch_s: float = 200.0,
) -> list[Transcript]:
    """Recognises arrays.

    Args:
        model: A recogniser in evaluation mode, as `load_asr_model` gives it.
        audio: Recordings, each (S,) float in [-1, 1], 16 kHz mono, of any lengths.
        batch_s: Audio recognised at once, in seconds, counted with padding.

    Returns:
        One transcript per recording, in the same order; `.text` is what was said.

    Raises:
        DataError: A recording is not one-dimensional or not of floats.
    """
    return recognize(model, [_as_recording(i, item) for i, item in enumerate(audio)], batch_s)


def recognize(
    model: AsrModel,
    recordings: Sequence[Recording],
    batch_s: float,
    *,
    num_workers: int = 0,
    label: str | None = None,
) -> list[Transcript]:
    """Recognises recordings in batches of like length.

    Args:
        model: A recogniser in evaluation mode.
        recordings: What to recognise.
        batch_s: Seconds of a batch, padding included.
        num_workers: Processes that read.
        label: Name for the progress lines; none for silence.

    Returns:
        One transcript per recording, in the same order.
    """
    groups = group_by_duration([recording.duration_s for recording in recordings], batch_s)
    dataset = FeatureBatches(recordings, groups, model.config.feature_dim)
    loader = DataLoader(
        dataset,
        batch_size=None,
        shuffle=False,
        num_workers=min(num_workers, len(groups)),
        generator=torch.Generator(),
    )
    device = next(model.parameters()).device
    found: dict[int, Transcript] = {}
    batches: Iterable[Any] = loader
    if label is not None:
        batches = progress(batches, f"decode {label}", total=len(groups))
    for batch in batches:
        if isinstance(batch, SpearError):
            raise batch
        numbers, fbank, lens = batch
        transcripts = model.recognize(fbank.to(device), lens.to(device))
        found.update(zip(numbers, transcripts, strict=True))
    return [found[number] for number in range(len(recordings))]


def group_by_duration(durations: Sequence[float], max_duration_s: float) -> list[list[int]]:
    """Groups all clips into batches of like duration, longest first.

    Args:
        durations: Seconds of each clip.
        max_duration_s: Most seconds of a batch, padding included; a longer clip comes alone.
    """
    seconds = np.asarray(durations, dtype=np.float64)
    order = np.argsort(seconds, kind="stable")
    bounds = pack(seconds[order], max_duration_s)
    groups = [order[begin:end].tolist() for begin, end in itertools.pairwise(bounds)]
    return groups[::-1]


class FeatureBatches(Dataset[Any]):
    """Features of groups of recordings, computed in a worker.

    Args:
        recordings: What can be read.
        groups: Their numbers, batch by batch.
        num_mel_bins: M, size of an fbank frame.
    """

    def __init__(
        self, recordings: Sequence[Recording], groups: list[list[int]], num_mel_bins: int
    ) -> None:
        self.recordings = recordings
        self.groups = groups
        self.fbank = Fbank(num_mel_bins=num_mel_bins)

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self.groups)

    def __getitem__(self, batch: int) -> Any:
        """Returns (numbers, fbank (B, T, M), lens (B,)), or the user's error in reading."""
        try:
            audio = [torch.from_numpy(self.recordings[i].read()) for i in self.groups[batch]]
        except SpearError as error:
            return error
        lens = torch.tensor([len(samples) for samples in audio])
        padded = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True)
        return self.groups[batch], *self.fbank(padded, lens)


def find_splits(config: DecodeConfig) -> dict[str, list[Recording]]:
    """Lists what there is to recognise, by split.

    Raises:
        ConfigError: Nothing is asked for, or two splits have the same name.
        DataError: A path is missing, has no recording, or has one that is too long.
    """
    if not config.shards and not config.audio:
        raise ConfigError("nothing to decode: give shards (shard folders) or audio (files)")
    splits: dict[str, list[Recording]] = {}
    for path in config.shards:
        split = Path(path).resolve().name
        if split in splits:
            raise ConfigError(f"two shard folders are called {split!r}: decode them one by one")
        splits[split] = _from_shards(ShardFolder(path))
    if config.audio:
        if AUDIO_SPLIT in splits:
            raise ConfigError(f"a shard folder is called {AUDIO_SPLIT!r}: decode audio separately")
        splits[AUDIO_SPLIT] = [_from_file(path) for path in find_audio(config.audio)]
    for recording in (recording for split in splits.values() for recording in split):
        if recording.duration_s > config.max_recording_s:
            raise DataError(
                f"{recording.id} lasts {recording.duration_s:.1f} s, more than max_recording_s "
                f"{config.max_recording_s:g} s: cut it into pieces, or raise the limit"
            )
    return splits


def find_audio(paths: Sequence[str]) -> list[Path]:
    """Lists audio files: those given, and those anywhere below the folders given.

    Raises:
        DataError: A path does not exist, or a folder holds no audio.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
            if not below:
                raise DataError(f"{path}: no audio file in this folder")
            files.extend(below)
        else:
            raise DataError(f"{path}: no such audio file or folder")
    return list(dict.fromkeys(files))


def summarize(scored: dict[str, Scores], config: DecodeConfig) -> dict[str, Any]:
    """Collects the numbers: those of all splits together at the top, then split by split."""
    totals: ErrorCounts = total_errors(scores.words for scores in scored.values())
    together = {
        "wer": round(totals.percent, 4) if totals.num_ref else None,
        "ins": totals.num_ins,
        "del": totals.num_del,
        "sub": totals.num_sub,
        "num_words": totals.num_ref,
    }
    splits = {split: scores.summary() for split, scores in scored.items()}
    return {**together, "weights": config.weights, "splits": splits}


def _write_split(
    output: Path,
    split: str,
    recordings: Sequence[Recording],
    transcripts: Sequence[Transcript],
    model: AsrModel,
) -> SplitResult:
    """Writes a split's files; scores it where it has transcripts."""
    results = [
        Recognition(
            recording.id,
            normalize(recording.text or "", model.tokenizer.config),
            transcript.text,
            recording.speaker,
        )
        for recording, transcript in zip(recordings, transcripts, strict=True)
    ]
    known = [
        r for r, recording in zip(results, recordings, strict=True) if recording.text is not None
    ]
    if not known:
        write_recognitions(output, split, results, with_refs=False)
        logger.info("%s: %d recordings without transcripts, not scored", split, len(results))
        return SplitResult(len(results))
    if len(known) < len(results):
        write_recognitions(output, f"{split}-all", results, with_refs=False)
        logger.warning(
            "%s: %d of %d cuts have no transcript; they are in recogs-%s-all.txt, not in the score",
            split,
            len(results) - len(known),
            len(results),
            split,
        )
    scores = write_score_files(output, split, known)
    logger.info("%s: %s", split, scores.words.line())
    return SplitResult(len(results), known, scores)


def _from_shards(folder: ShardFolder) -> list[Recording]:
    return [
        Recording(i.id, i.duration_s, _Cut(folder, i.index), i.text, i.speaker or "")
        for i in folder.infos
    ]


def _from_file(path: Path) -> Recording:
    return Recording(str(path), check_audio(path).duration_s, _File(path))


def _as_recording(number: int, audio: np.ndarray | Tensor) -> Recording:
    samples = audio.detach().cpu().numpy() if isinstance(audio, Tensor) else np.asarray(audio)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise DataError(
            f"recording {number} has shape {samples.shape} and type {samples.dtype}, expected "
            "one channel (S,) of floats in [-1, 1]: divide int16 by 32768, average channels"
        )
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    return Recording(str(number), len(samples) / SAMPLE_RATE_HZ, _Array(samples))


# Classes, not closures: a worker that is spawned gets its recordings pickled.


@dataclass(frozen=True)
class _Cut:
    folder: ShardFolder
    index: int

    def __call__(self) -> np.ndarray:
        return self.folder.audio(self.index)


@dataclass(frozen=True)
class _File:
    path: Path

    def __call__(self) -> np.ndarray:
        return read_audio(self.path)


@dataclass(frozen=True)
class _Array:
    samples: np.ndarray

    def __call__(self) -> np.ndarray:
        return self.samples
