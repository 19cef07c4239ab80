"""`spear decode`: a recogniser and shard folders in, text and word error rates out.

Splits are scored where their cuts have transcripts. Writes Kaldi's three text files for every
split, n-best lists where they are asked for, a report over all splits and `summary.json`.
Recordings that are not in shards are for `spear transcribe`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spear.asr.apply.error_report import SplitResult, write_report
from spear.asr.apply.recognize import recognize
from spear.asr.apply.search import Search, SearchConfig
from spear.asr.apply.utterances import Recording, from_shards
from spear.asr.loading import is_model_folder, load_asr_model
from spear.asr.model import AsrModel, Transcript
from spear.asr.scoring import (
    ErrorCounts,
    Recognition,
    total_errors,
    write_recognitions,
    write_score_files,
)
from spear.asr.tokenizer import normalize
from spear.data.index.shard_folder import ShardFolder
from spear.errors import ConfigError, DataError
from spear.system import ledger
from spear.system.device import choose_device
from spear.system.files import write_json, write_text
from spear.system.progress import get_logger

logger = get_logger(__name__)


@dataclass
class DecodeConfig:
    """Recognises speech and scores it where there are transcripts."""

    RETIRED = (("audio", "`spear transcribe --model RUN_DIR FILES` recognises recordings"),)

    run_dir: str
    """Run folder of `spear finetune-asr`, one of its checkpoint folders, or a recogniser without
    its run (`spear export --layout recognizer`, `spear import-icefall --bpe_model`)."""
    shards: list[str] = field(default_factory=list)
    """Shard folders; the last part of each path is the name of its split."""
    output_dir: str | None = None
    """Folder for the results; none: `decode` in the run folder."""
    weights: str = "averaged"
    """Which of the run's weights: "averaged" (over the later half of the run), "averaged:SHARE"
    (over its last share, e.g. averaged:0.25), "last", "average_last:K" (mean of K checkpoints)."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Greedy, or beam search with or without an n-gram."""
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
    weights = "its own" if is_model_folder(Path(config.run_dir)) else config.weights
    search = Search(model, config.search)
    output = Path(config.output_dir or Path(config.run_dir) / "decode")
    results: dict[str, SplitResult] = {}
    for split, recordings in splits.items():
        started = time.perf_counter()
        found = recognize(
            search,
            recordings,
            config.batch_s,
            num_workers=config.num_workers,
            label=f"decode {split}",
        )
        decoding_s = time.perf_counter() - started
        if config.search.num_best > 1:
            write_n_best(output / f"nbest-{split}.jsonl", recordings, found)
        best = [one[0] for one in found]
        results[split] = _write_split(output, split, recordings, best, model, decoding_s=decoding_s)
        ledger.note(audio_hours=results[split].audio_s / 3600)
    write_report(output, results, weights)
    write_json(output / "summary.json", summarize(results, weights, config.search.method))
    logger.info("results in %s", output)


def find_splits(config: DecodeConfig) -> dict[str, list[Recording]]:
    """Lists what there is to recognise, by split.

    Raises:
        ConfigError: Nothing is asked for, or two splits have the same name.
        DataError: A path is missing, has no recording, or has one that is too long.
    """
    if not config.shards:
        raise ConfigError(
            "nothing to decode: give shards (shard folders); `spear transcribe` takes recordings"
        )
    splits: dict[str, list[Recording]] = {}
    for path in config.shards:
        split = Path(path).resolve().name
        if split in splits:
            raise ConfigError(f"two shard folders are called {split!r}: decode them one by one")
        splits[split] = from_shards(ShardFolder(path))
    for recording in (recording for split in splits.values() for recording in split):
        if recording.duration_s > config.max_recording_s:
            raise DataError(
                f"{recording.id} lasts {recording.duration_s:.1f} s, more than max_recording_s "
                f"{config.max_recording_s:g} s: cut it into pieces, or raise the limit"
            )
    return splits


def summarize(results: Mapping[str, SplitResult], weights: str, method: str) -> dict[str, Any]:
    """Collects the numbers: those of all splits together at the top, then split by split.

    Args:
        results: What decoding each split gave.
        weights: Which weights were used.
        method: How text was searched for.
    """
    scored = {split: one.scores for split, one in results.items() if one.scores is not None}
    totals: ErrorCounts = total_errors(scores.words for scores in scored.values())
    together = {
        "wer": round(totals.percent, 4) if totals.num_ref else None,
        "ins": totals.num_ins,
        "del": totals.num_del,
        "sub": totals.num_sub,
        "num_words": totals.num_ref,
    }
    splits = {split: scores.summary() for split, scores in scored.items()}
    speed = {split: one.real_time_factor for split, one in results.items()}
    return {
        **together,
        "weights": weights,
        "method": method,
        "real_time_factor": speed,
        "splits": splits,
    }


def write_n_best(
    path: Path, recordings: Sequence[Recording], found: Sequence[Sequence[Transcript]]
) -> None:
    """Writes a line of JSON per recording: its id, and texts with their scores, the best first."""
    lines = [
        {"id": recording.id, "n_best": [{"text": t.text, "score": t.score} for t in transcripts]}
        for recording, transcripts in zip(recordings, found, strict=True)
    ]
    write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))


def _write_split(
    output: Path,
    split: str,
    recordings: Sequence[Recording],
    transcripts: Sequence[Transcript],
    model: AsrModel,
    *,
    decoding_s: float,
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
    audio_s = sum(recording.duration_s for recording in recordings)
    known = [
        r for r, recording in zip(results, recordings, strict=True) if recording.text is not None
    ]
    if not known:
        write_recognitions(output, split, results, with_refs=False)
        logger.info("%s: %d recordings without transcripts, not scored", split, len(results))
        return SplitResult(len(results), audio_s=audio_s, decoding_s=decoding_s)
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
    return SplitResult(len(results), known, scores, audio_s, decoding_s)
