"""Recordings that a user names: where they are, what their features are called, their samples."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from spear.audio import AUDIO_SUFFIXES, read_audio
from spear.audio.checks import check_samples
from spear.data.corpus.scan import scan_recordings
from spear.errors import AudioError, ConfigError, DataError
from spear.system.parallel import in_threads
from spear.system.progress import get_logger

log = get_logger(__name__)


def find_recordings(files: Sequence[str]) -> dict[str, Path]:
    """Finds recordings and names their features.

    Args:
        files: Recordings of any suffix, and folders in which recordings are looked for.

    Returns:
        Path by name, in the order given.

    Raises:
        ConfigError: There are no files.
        DataError: A path does not exist, a folder has no recordings, or two have one name.
    """
    if not files:
        raise ConfigError("no files: name recordings, or folders of them")
    found: dict[str, Path] = {}
    for given in map(Path, files):
        if not given.exists():
            raise DataError(f"{given}: no such file or folder of recordings")
        for path in _in_folder(given) if given.is_dir() else [given]:
            name = feature_name(path)
            other = found.setdefault(name, path)
            if other != path and not other.samefile(path):
                raise DataError(f"{path}: its features are called {name}, as are those of {other}")
    return found


def _in_folder(folder: Path) -> Iterable[Path]:
    found = scan_recordings(folder)
    for _, _, error in found.refused:
        log.warning("left out: %s", error)
    return found.files.values()


def feature_name(path: Path) -> str:
    """Returns what the features of a recording are called, with slashes.

    It is the path as it was given, without the suffix and without the slash at its beginning; a
    path that begins with `..` is made absolute first.
    """
    path = Path(os.path.normpath(path))
    if path.parts[0] == os.pardir:
        path = Path(os.path.abspath(path))
    if path.suffix.lower() in AUDIO_SUFFIXES:
        path = path.with_suffix("")
    return path.relative_to(path.anchor).as_posix()


def read_recording(path: Path) -> np.ndarray:
    """Reads a whole recording as an encoder takes it.

    Returns:
        (S,) float32 at 16 kHz, channels averaged.

    Raises:
        AudioError: It cannot be read, or its samples are unusable.
    """
    waveform = read_audio(path)
    try:
        check_samples(torch.from_numpy(waveform))
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from None
    return waveform


def read_all(
    recordings: Mapping[str, Path], num_workers: int = 0
) -> Iterator[tuple[str, np.ndarray | AudioError]]:
    """Yields every recording by name, (S,) float32 at 16 kHz, or what is wrong with it.

    `num_workers` threads read ahead, two recordings each; 0 reads when asked.
    """
    read = in_threads(_read_or_say, recordings.values(), num_workers, 2 * num_workers)
    return zip(recordings, read, strict=True)


def _read_or_say(path: Path) -> np.ndarray | AudioError:
    try:
        return read_recording(path)
    except AudioError as error:
        return error
