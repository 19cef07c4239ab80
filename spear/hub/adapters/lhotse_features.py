"""A lhotse feature extractor: cuts to stored frames of a SPEAR model.

    from spear.hub.adapters.lhotse_features import SpearFeatures, SpearFeaturesConfig
    extractor = SpearFeatures(SpearFeaturesConfig(model=FOLDER, layer="last", device="cuda"))
    cuts = cuts.compute_and_store_features_batch(extractor, storage_path=DIR)

Importing this module registers it under the name `spear-encoder`. lhotse wants a recording of S
samples to have S / hop frames, rounded to the nearest: a padded front end has just as many, one
fewer (then its last frame is repeated) or, at 25 Hz, one more (then it is left out).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lhotse.features.base import FeatureExtractor, register_extractor
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spear.audio.checks import as_recording, check_rate
from spear.encoders.frame_grid import num_slots, on_grid
from spear.encoders.layer_frames import LayerFrames
from spear.encoders.loading import from_pretrained, model_name
from spear.errors import AudioError, ConfigError

Samples = NDArray[Any] | Tensor
LAST = "last"


@dataclass
class SpearFeaturesConfig:
    """Which frames to extract."""

    model: str = ""
    """Model folder or hub id; where empty, the one that the variable SPEAR_MODEL names."""
    layer: int | str = LAST
    """"last" for the encoder's output, or the number of a layer, from 0 for the front end."""
    device: str = "cpu"
    """Where the model runs, e.g. "cuda"."""

    def __post_init__(self) -> None:
        if self.layer != LAST and (isinstance(self.layer, bool) or not isinstance(self.layer, int)):
            raise ConfigError(f'layer {self.layer!r}: give "{LAST}" or the number of a layer')

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, as lhotse writes them to YAML."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "SpearFeaturesConfig":
        """Reads what `to_dict` returned.

        Raises:
            ConfigError: A field is unknown or has a wrong value.
        """
        try:
            return SpearFeaturesConfig(**data)
        except TypeError as error:
            raise ConfigError(f"spear-encoder features have no such field: {error}") from None


@register_extractor
class SpearFeatures(FeatureExtractor):
    """Extracts frames of one layer; the model is loaded when it is first asked for something.

    Args:
        config: Which model and layer.
    """

    name = "spear-encoder"
    config_type = SpearFeaturesConfig

    def __reduce__(self) -> tuple[Any, ...]:
        # A job of lhotse's loads the model by itself: weights need not go through a pipe.
        return type(self), (self.config,)

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self.config.device)

    @property
    def frame_shift(self) -> float:
        """Seconds between frames: 0.02, or 0.04 for the output of a model at 25 Hz."""
        return self._read.hop_ms / 1000

    def feature_dim(self, sampling_rate: int) -> int:
        """Returns D, the width of a frame.

        Raises:
            AudioError: The rate is not 16000.
        """
        check_rate(sampling_rate)
        return self._read.dim

    def extract(self, samples: Samples, sampling_rate: int) -> Samples:
        """Extracts the frames of one recording of any length.

        Args:
            samples: (S,) or (1, S) float in [-1, 1].
            sampling_rate: Theirs in Hz, 16000.

        Returns:
            (T, D) float32, as an array or a tensor, whichever the samples are; T is S / 320 (S /
            640 at 25 Hz), rounded to the nearest.

        Raises:
            AudioError: Another rate, stereo, unusable samples, or too few for a frame.
        """
        return self.extract_batch([samples], sampling_rate)[0]

    def extract_batch(
        self,
        samples: Samples | Sequence[Samples],
        sampling_rate: int,
        lengths: Samples | None = None,
    ) -> Any:
        """Extracts the frames of several recordings at once; each gets what it would get alone.

        Args:
            samples: Recordings of any lengths, (S,) or (1, S) each; or a batch (B, S).
            sampling_rate: Theirs in Hz, 16000.
            lengths: (B,), valid samples of a padded batch.

        Returns:
            Frames (T, D) as of `extract`, stacked to (B, T, D) where all have as many; a list of
            one stays a list, and a batch of one without lengths loses its axis, as with lhotse's
            own extractors.

        Raises:
            AudioError: Another rate, stereo, unusable samples, or too few for a frame.
        """
        check_rate(sampling_rate)
        recordings = _as_recordings(samples, lengths)
        frames: list[Any] = self._frames(recordings)
        if not _has_tensors(samples):
            frames = [x.numpy() for x in frames]
        if len(frames) == 1 and lengths is None:
            return frames if isinstance(samples, list | tuple) else frames[0]
        if any(len(x) != len(frames[0]) for x in frames):
            return frames
        return torch.stack(frames) if isinstance(frames[0], Tensor) else np.stack(frames)

    @cached_property
    def _read(self) -> LayerFrames:
        encoder = from_pretrained(model_name(self.config.model), self.config.device)
        return LayerFrames(encoder, None if self.config.layer == LAST else self.config.layer)

    def _frames(self, recordings: Sequence[Tensor]) -> list[Tensor]:
        """Extracts (T_i, D) from (S_i,) each."""
        read = self._read
        slots = [num_slots(len(recording), read.hop_ms) for recording in recordings]
        for recording, count in zip(recordings, slots, strict=True):
            if count == 0:
                raise AudioError(
                    f"a recording of {len(recording)} samples is shorter than half a frame of "
                    f"{read.hop_ms} ms: leave it out"
                )
        audio = pad_sequence(list(recordings), batch_first=True)
        lens = torch.tensor([len(recording) for recording in recordings], device=audio.device)
        frames, valid = read(audio, lens)
        grid = on_grid(frames, valid, max(slots), read.first_ms, read.hop_ms)
        return [x[:count] for x, count in zip(grid, slots, strict=True)]


def _as_recordings(
    samples: Samples | Sequence[Samples], lengths: Samples | None
) -> Sequence[Tensor]:
    """Returns recordings (S_i,) of whatever lhotse hands over.

    Raises:
        AudioError: One is not mono, or empty.
    """
    is_one = isinstance(samples, np.ndarray | Tensor) and samples.ndim == 1
    rows = [samples] if is_one else list(samples)
    ends = [None] * len(rows) if lengths is None else [int(length) for length in lengths]
    pairs = zip(rows, ends, strict=True)
    return [as_recording(torch.as_tensor(row)[..., :end]) for row, end in pairs]


def _has_tensors(samples: Samples | Sequence[Samples]) -> bool:
    """Whether samples are tensors, or one of a list is."""
    if isinstance(samples, list | tuple):
        return any(isinstance(recording, Tensor) for recording in samples)
    return isinstance(samples, Tensor)
