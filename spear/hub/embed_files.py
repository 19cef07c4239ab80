"""`spear embed-files`: recordings in, their features out, an array for each.

Takes files and folders, of any format, rate and length. Features are called by the path of their
recording as it was given, without its suffix: `a/x.wav` becomes `{out}/a/x.npy` and `/b/x.flac`
becomes `{out}/b/x.npy`, so that files of equal name do not meet. Bad recordings are named in
`bad_files.jsonl`; the others go on. Run again, it does only what is missing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spear import __version__
from spear.audio import SAMPLE_RATE_HZ
from spear.data.corpus.recordings import find_recordings, read_all
from spear.data.formats.manifests import BadCuts
from spear.encoders.encoder import SpearEncoder
from spear.encoders.layer_frames import LayerFrames
from spear.encoders.layers import check_layers
from spear.encoders.loading import from_pretrained, weights_file
from spear.errors import AudioError, ConfigError
from spear.hub.encode_many import Layers, encode_many
from spear.hub.feature_folder import FeatureFolder
from spear.system.device import choose_device
from spear.system.files import sha256_of
from spear.system.progress import get_logger, progress

logger = get_logger(__name__)

FORMAT_VERSION = 1
BAD_FILES = "bad_files.jsonl"


@dataclass
class EmbedFilesConfig:
    """Writes the features of recordings: `spear embed-files --model M *.wav --out DIR`."""

    model: str
    """Model folder, or hub id."""
    out: str
    """Folder for the features; what is there already is kept."""
    files: list[str] = field(default_factory=list)
    """Recordings, or folders that are searched for them; on the command line plain words."""
    layers: str = "last"
    """"last" is the encoder's output, (frames, channels); numbers such as 0,3,12 are layers, 0 the
    front end, and "all" is every one: (layers, frames, channels), narrow layers filled with 0."""
    format: Literal["npy", "safetensors"] = "npy"
    """A .npy file for each recording, or features.safetensors for all of them."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the numbers on disk; the encoder computes in float32."""
    batch_s: float = 80.0
    """Most seconds of audio, padding counted, that are encoded at once; recordings above 40 s are
    encoded alone, in windows."""
    max_bad_fraction: float = 0.01
    """Share of bad recordings (0 to 1) above which the command fails, after all others are done."""
    num_workers: int = 0
    """Threads that read recordings ahead; 0 reads each when it is its turn."""
    device: str = "auto"
    """Device of the encoder: auto, cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if not self.batch_s > 0:
            raise ConfigError(f"batch_s is {self.batch_s}: it must be above 0 seconds")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers is {self.num_workers}: it must be 0 or more")


class BadFiles(BadCuts):
    """Recordings that were left out, in `bad_files.jsonl`.

    Args:
        folder: Where the list is kept.
        max_fraction: Largest tolerated share, 0 to 1.
    """

    def __init__(self, folder: Path, max_fraction: float) -> None:
        super().__init__(folder, "files", max_fraction)
        self.path = folder / BAD_FILES


def run(config: EmbedFilesConfig) -> None:
    """Writes the features that are missing.

    Raises:
        ConfigError: No files, a layer that does not exist, or `out` cannot be written.
        CheckpointError: The model cannot be loaded.
        DataError: A file is missing, `out` holds other features, or too many recordings are bad.
    """
    recordings = find_recordings(config.files)
    model = from_pretrained(config.model, choose_device(config.device))
    layers = parse_layers(config.layers, model.num_layers)
    record = describe_features(model, layers)
    record |= {"dtype": config.dtype, "weights_sha256": sha256_of(weights_file(config.model))}
    out = Path(config.out)
    store = FeatureFolder(out, config.format, {"model": config.model, **record})
    bad = BadFiles(out, config.max_bad_fraction)
    missing = {name: recordings[name] for name in store.missing(recordings)}
    logger.info("%d of %d recordings are to be encoded", len(missing), len(recordings))
    readable = _without_bad(read_all(missing, config.num_workers), missing, model, bad)
    encoded = encode_many(model, readable, layers, config.batch_s)
    for name, features in progress(
        encoded, "embed-files", len(missing), status=lambda: f"{len(bad.entries)} bad"
    ):
        store.add(name, features.numpy().astype(config.dtype))
    store.finish()
    _report_bad(bad, len(recordings))


def parse_layers(text: str, num_layers: int) -> Layers:
    """Reads "last", "all" or numbers such as "0,3,12".

    Raises:
        ConfigError: It is nothing of these, or a layer does not exist.
    """
    if text == "last":
        return None
    if text == "all":
        return tuple(range(num_layers + 1))
    try:
        layers = tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(
            f"layers is {text!r}: give last, all, or numbers such as 0,3,{num_layers}"
        ) from None
    check_layers(layers, num_layers)
    return layers


def describe_features(model: SpearEncoder, layers: Layers) -> dict[str, Any]:
    """Returns what the features of these layers are, as JSON."""
    read = LayerFrames(model, layers[0] if layers else None)
    is_stack = layers is not None and len(layers) > 1
    return {
        "format_version": FORMAT_VERSION,
        "spear_version": __version__,
        "layers": "last" if layers is None else list(layers),
        "axes": ["layer", "frame", "channel"] if is_stack else ["frame", "channel"],
        "num_channels": model.output_dim if is_stack else read.dim,
        "frame_rate_hz": 1000 / read.hop_ms,
        "first_frame_centre_ms": read.first_ms,
    }


def _without_bad(
    read: Iterable[tuple[str, np.ndarray | AudioError]],
    paths: Mapping[str, Path],
    model: SpearEncoder,
    bad: BadFiles,
) -> Iterator[tuple[str, np.ndarray]]:
    """Passes on what can be encoded, and notes what cannot."""
    for name, waveform in read:
        if isinstance(waveform, AudioError):
            bad.add(name, str(paths[name]), str(waveform))
        elif model.num_frames(len(waveform)) == 0:
            seconds = len(waveform) / SAMPLE_RATE_HZ
            error = f"{paths[name]}: {seconds:.3f} s are too short for a frame of this model"
            bad.add(name, str(paths[name]), error)
        else:
            yield name, waveform


def _report_bad(bad: BadFiles, num_recordings: int) -> None:
    """Writes and logs what is bad, and fails where it is too much."""
    bad.write()
    for entry in bad.entries[:5]:
        logger.warning("left out: %s", entry["error"])
    bad.check(num_recordings)
