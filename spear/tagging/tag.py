"""`spear tag`: a tagger and recordings in, their most probable classes out, as text or JSON.

Takes files and folders of any format, rate and length. A recording that cannot be read is named and
the others go on; the status is 2 then.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spear.audio import SAMPLE_RATE_HZ
from spear.data.corpus.recordings import find_recordings, read_all
from spear.errors import AudioError, ConfigError
from spear.system.device import choose_device
from spear.system.progress import get_logger
from spear.tagging.apply import Tagger
from spear.tagging.model import load_tagging_model

logger = get_logger(__name__)

Floats = NDArray[np.float32]


@dataclass
class TagConfig:
    """Prints the classes of recordings: `spear tag --run_dir exp/tagging *.wav`."""

    run_dir: str
    """Run folder of `spear finetune-tagging`, or one of its checkpoint folders."""
    files: list[str] = field(default_factory=list)
    """Recordings, or folders that are searched for them; on the command line plain words."""
    top: int = 5
    """Most classes that are printed for a recording, the most probable first."""
    threshold: float = 0.0
    """Probability (0 to 1) below which a class is not printed."""
    format: Literal["text", "json"] = "text"
    """"text" is for people; "json" is an object a line, with all numbers."""
    by_window: bool = False
    """Whether every window is tagged by itself, too, with its begin and end in seconds."""
    window_s: float = 10.0
    """Recordings are encoded in windows of so many seconds."""
    weights: str = "averaged"
    """Which of the run's weights: "averaged", "averaged:SHARE", "last" or "average_last:K"."""
    num_workers: int = 0
    """Threads that read recordings ahead; 0 reads each when it is its turn."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if self.top < 1:
            raise ConfigError(f"top is {self.top}: 1 or more, please")
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold {self.threshold} is not in 0 .. 1")
        if not self.window_s > 0:
            raise ConfigError(f"window_s is {self.window_s}: it must be above 0 seconds")


def run(config: TagConfig) -> None:
    """Tags recordings and prints the result.

    Raises:
        ConfigError: No files.
        DataError: A file is missing.
        AudioError: A recording cannot be read; it is raised after the others are done.
        CheckpointError: The run folder cannot be used.
    """
    recordings = find_recordings(config.files)
    model = load_tagging_model(config.run_dir, config.weights, choose_device(config.device))
    names = model.classes.names
    write = _print_json if config.format == "json" else _print_text
    bad = 0
    for result in tag_files(Tagger(model, window_s=config.window_s), recordings, config):
        if isinstance(result, AudioError):
            logger.error("%s", result)
            bad += 1
        else:
            write(_named(result, names, config))
    if bad:
        raise AudioError(f"{bad} of {len(recordings)} recordings could not be read; see above")


def tag_files(
    tagger: Tagger, recordings: Mapping[str, Path], config: TagConfig
) -> Iterator[dict[str, Any] | AudioError]:
    """Yields path, seconds and (C,) probabilities of every recording, or what is wrong with it."""
    for name, audio in read_all(recordings, config.num_workers):
        if isinstance(audio, AudioError):
            yield audio
            continue
        windows = tagger.windows(audio) if config.by_window else []
        yield {
            "file": str(recordings[name]),
            "duration_s": round(len(audio) / SAMPLE_RATE_HZ, 3),
            "classes": next(tagger.probabilities([audio])),
            "windows": [
                {"begin_s": round(begin, 3), "end_s": round(end, 3), "classes": found}
                for begin, end, found in windows
            ],
        }


def top_classes(
    probabilities: Floats, names: tuple[str, ...], top: int, threshold: float
) -> dict[str, float]:
    """Returns the most probable classes, the most probable first, with their probabilities."""
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return {
        names[number]: round(float(probabilities[number]), 4)
        for number in order
        if probabilities[number] >= threshold
    }


def _named(result: dict[str, Any], names: tuple[str, ...], config: TagConfig) -> dict[str, Any]:
    """Returns a result with names and probabilities of its top classes, as JSON."""

    def named(part: dict[str, Any]) -> dict[str, Any]:
        classes = top_classes(part["classes"], names, config.top, config.threshold)
        return {**part, "classes": classes}

    whole = {**named(result), "windows": [named(window) for window in result["windows"]]}
    if not config.by_window:
        del whole["windows"]
    return whole


def _print_json(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def _print_text(result: dict[str, Any]) -> None:
    sys.stdout.write(f"{result['file']} ({result['duration_s']:.1f} s)\n")
    _print_classes(result["classes"], "  ")
    for window in result.get("windows", ()):
        sys.stdout.write(f"  {window['begin_s']:.1f} to {window['end_s']:.1f} s\n")
        _print_classes(window["classes"], "    ")


def _print_classes(classes: dict[str, float], indent: str) -> None:
    for name, probability in classes.items():
        sys.stdout.write(f"{indent}{probability:6.1%}  {name}\n")
