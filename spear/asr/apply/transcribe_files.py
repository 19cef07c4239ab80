"""`spear transcribe`: recordings of any kind and length in, text, JSON or subtitles out.

Long recordings are encoded in windows (or, with a causal encoder and `streaming`, read from
beginning to end), so memory grows by their frames alone, a third of a gigabyte an hour at most.
Recordings that cannot be read are named; the others are transcribed before the command fails.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from spear.asr.apply.long_recordings import WindowConfig
from spear.asr.apply.recognize import recognize
from spear.asr.apply.search import Search, SearchConfig
from spear.asr.apply.streaming_recognizer import StreamingRecognizer
from spear.asr.apply.subtitles import as_json, as_srt, subtitle_lines, words_of
from spear.asr.apply.utterances import from_file
from spear.asr.loading import load_asr_model
from spear.asr.model import AsrModel, Transcript
from spear.asr.tokenizer import Tokenizer
from spear.audio import SAMPLE_RATE_HZ, check_audio
from spear.audio.io import AudioParts
from spear.data.corpus.recordings import find_recordings
from spear.errors import AudioError, ConfigError, DataError
from spear.system import ledger
from spear.system.device import choose_device
from spear.system.files import write_text
from spear.system.progress import get_logger, progress

logger = get_logger(__name__)

SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt"}
BLOCK_S = 1.0


@dataclass
class TranscribeConfig:
    """Recognises recordings: `spear transcribe --model exp/asr interview.mp3`."""

    model: str
    """Run folder of `spear finetune-asr`, one of its checkpoint folders, or a recogniser without
    its run (`spear export --layout recognizer`, `spear import-icefall --bpe_model`)."""
    files: list[str] = field(default_factory=list)
    """Recordings, or folders that are searched for them; on the command line plain words."""
    format: Literal["text", "json", "srt"] = "text"
    """"text", "json" (with the times of words), or "srt" (subtitles)."""
    out: str | None = None
    """Folder for a file per recording; none: everything goes to standard output."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Greedy, or beam search with or without an n-gram."""
    windows: WindowConfig = field(default_factory=WindowConfig)
    """How long recordings are cut."""
    streaming: bool = False
    """Read every recording from beginning to end without windows; greedy, for causal encoders."""
    weights: str = "averaged"
    """Which of the run's weights, as for `spear decode`."""
    batch_s: float = 200.0
    """Audio that is recognised at once, in seconds, counted with padding."""
    num_workers: int = 0
    """Processes that read and compute features; 0 does it in this process."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        if not self.batch_s > 0:
            raise ConfigError(f"batch_s is {self.batch_s}: it must be above 0 seconds")
        if self.search.num_best > 1:
            raise ConfigError("transcripts are the best ones: leave search.num_best at 1")
        if self.streaming and self.search.method != "greedy":
            raise ConfigError("streaming is greedy: leave search.method greedy, or streaming out")


def run(config: TranscribeConfig) -> None:
    """Transcribes.

    Raises:
        ConfigError: No files, or the model cannot do what is asked for.
        CheckpointError: The model cannot be loaded.
        DataError: A path does not exist; or, after all others are done, a recording is bad.
    """
    paths = find_recordings(config.files)
    if config.format == "srt" and config.out is None and len(paths) > 1:
        raise ConfigError("subtitles of several recordings need a folder: give --out DIR")
    model = load_asr_model(config.model, config.weights, str(choose_device(config.device)))
    num_samples, bad = check_recordings(paths)
    good = {name: paths[name] for name in num_samples}
    transcribe = _by_streaming if config.streaming else _by_windows
    for name, transcript in transcribe(model, good, num_samples, config):
        content = format_transcript(paths[name], transcript, config.format, model.tokenizer)
        if config.out is not None:
            write_text(Path(config.out) / f"{name}{SUFFIXES[config.format]}", content)
        else:
            is_one_of_many = config.format == "text" and len(paths) > 1
            sys.stdout.write(f"{paths[name]}\t{content}" if is_one_of_many else content)
    ledger.note(audio_hours=sum(num_samples.values()) / SAMPLE_RATE_HZ / 3600)
    if bad:
        raise DataError(f"{len(bad)} of {len(paths)} recordings could not be read: {bad[0]}")


def check_recordings(paths: Mapping[str, Path]) -> tuple[dict[str, int], list[str]]:
    """Decodes recordings to their ends.

    Returns:
        Samples at 16 kHz of those that can be read, by name, and what is wrong with the others.
    """
    num_samples: dict[str, int] = {}
    bad: list[str] = []
    for name, path in progress(paths.items(), "check recordings", len(paths)):
        try:
            check_audio(path)
            with AudioParts(path) as parts:
                num_samples[name] = parts.num_samples
        except AudioError as error:
            logger.warning("left out: %s", error)
            bad.append(str(error))
    return num_samples, bad


def _by_windows(
    model: AsrModel,
    paths: Mapping[str, Path],
    num_samples: Mapping[str, int],
    config: TranscribeConfig,
) -> Iterator[tuple[str, Transcript]]:
    """Yields the transcript of every recording by name; all windows share batches."""
    found = recognize(
        Search(model, config.search),
        [from_file(path, num_samples[name]) for name, path in paths.items()],
        config.batch_s,
        windows=config.windows,
        num_workers=config.num_workers,
        label="transcribe",
    )
    yield from zip(paths, (transcripts[0] for transcripts in found), strict=True)


def _by_streaming(
    model: AsrModel,
    paths: Mapping[str, Path],
    num_samples: Mapping[str, int],
    config: TranscribeConfig,
) -> Iterator[tuple[str, Transcript]]:
    """Yields the transcript of every recording by name, each read from beginning to end."""
    del config
    block = round(BLOCK_S * SAMPLE_RATE_HZ)
    device = next(model.parameters()).device
    for name, path in paths.items():
        recognizer = StreamingRecognizer(model)
        with AudioParts(path) as parts:
            # The number of samples holds to within one: a block of one might have none.
            starts = range(0, max(num_samples[name] - 1, 1), block)
            for start in progress(starts, f"transcribe {path.name}"):
                audio = torch.from_numpy(parts.read(start, start + block))
                recognizer.push(audio.to(device))
        yield name, recognizer.finish()


def format_transcript(path: Path, transcript: Transcript, form: str, tokenizer: Tokenizer) -> str:
    """Writes a transcript as text (one line), JSON (one line) or subtitles."""
    if form == "text":
        return f"{transcript.text}\n"
    words = words_of(transcript, tokenizer.join, tokenizer.has_spaces)
    if form == "srt":
        return as_srt(subtitle_lines(words, tokenizer.has_spaces))
    content = {"file": str(path), **as_json(transcript, words)}
    return f"{json.dumps(content, ensure_ascii=False)}\n"
