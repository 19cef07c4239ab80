"""The interface that all teachers share, and what is the same in all of them.

`Teacher.forward` takes a padded batch of 16 kHz audio and gives padded frame-level vectors. The
promise of every subclass: the frames of a recording do not depend on what it is batched with, to
1e-4 in float32. This base class checks the batch, leaves out recordings too short for a frame,
zeroes what lies behind the valid frames, and refuses results that are not finite.

In bfloat16 (`Teacher.precision`) the networks' matrix products and convolutions take rounded
inputs. What comes before the network stays in float32 (normalised waveforms, spectrograms), so do
the sums along its residual stream; teachers without weights are float32 throughout. Batch mates are
masked as in float32, but which kernel works, and so how it rounds, may depend on the batch's shape:
the promise is 3% of the frames' root mean square there. Many codes describe a frame almost equally
well, so tokens differ more often than they are worse: of small random networks on a CPU 92% of
Dasheng's tokens and 22% of WavLM's were those of float32 (in batches of other shapes 89% of WavLM's
were the same), and described the float32 frames with a relative error of 0.0750 instead of 0.0751,
and of 0.0180 instead of 0.0127.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spear.audio import SAMPLE_RATE_HZ
from spear.errors import AudioError, CheckpointError
from spear.teachers.windows import Excerpts, Window, Windowing, cut_windows

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TeacherIdentity:
    """Everything that decides a teacher's output, as stored beside its frames and tokens.

    Attributes:
        name: The label.
        family: Kind of model.
        path: Where the weights came from, as the user wrote it; None without weights.
        layer: Block whose output is taken; None is the model's final output.
        frame_rate_hz: Frames per second.
        dim: Width of a frame.
        weights_sha256: Of the weights file (see `weights_digest`), or of the settings of a
            teacher without weights.
    """

    name: str
    family: str
    path: str | None
    layer: int | None
    frame_rate_hz: float
    dim: int
    weights_sha256: str


class Teacher(nn.Module, ABC):
    """A frozen model from audio to frame-level vectors.

    Args:
        identity: What it is.
        normalize_channels: Whether its quantiser should, by default, bring every channel to zero
            mean and unit variance.

    Attributes:
        precision: What the network computes in; see the head of this file.
        window_step: Frames that a window's start must be a multiple of.
    """

    precision: Precision = "float32"
    window_step: int = 1

    def __init__(self, identity: TeacherIdentity, normalize_channels: bool) -> None:
        super().__init__()
        self.name = identity.name
        self.layer = identity.layer
        self.dim = identity.dim
        self.frame_rate_hz = identity.frame_rate_hz
        self.weights_sha256 = identity.weights_sha256
        self.normalize_channels = normalize_channels
        self._identity = identity
        # Follows `.to(device)`, also in a subclass without weights.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    def family(self) -> str:
        """Kind of model, e.g. "wavlm"."""
        return self._identity.family

    @property
    def device(self) -> torch.device:
        """Where the weights are and the work is done."""
        anchor: Tensor = self._buffers["_anchor"]  # type: ignore[assignment]
        return anchor.device

    def identity(self) -> dict[str, Any]:
        """Returns the identity as a dictionary of JSON values."""
        return asdict(self._identity)

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames of a recording of `num_samples` samples; 0 if too short."""

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return round(SAMPLE_RATE_HZ / self.frame_rate_hz)

    def windows(self, num_samples: int, windowing: Windowing) -> list[Window]:
        """Returns how a recording of `num_samples` samples is cut; empty where it is one pass."""
        num_frames = self.num_frames(num_samples)
        step_s = self.window_step / self.frame_rate_hz
        core = max(1, round(windowing.window_s / step_s)) * self.window_step
        context = math.ceil(windowing.context_s / step_s) * self.window_step
        if windowing.window_s == 0 or num_frames <= core + 2 * context:
            return []
        return cut_windows(num_frames, core, context, self.hop)

    def statistics(self, audio: Tensor) -> Tensor:
        """Returns (k,) float32, what windows need to know of their whole recording (S,).

        Nothing by default; `represent` gets it back in `Excerpts`.
        """
        return audio.new_empty(0)

    @abstractmethod
    def represent(
        self, audio: Tensor, audio_lens: Tensor, lens: Tensor, excerpts: Excerpts | None = None
    ) -> Tensor:
        """Computes the frames of recordings that all have at least one.

        Args:
            audio: (B, S) float32, zeros behind the valid samples.
            audio_lens: (B,) int64, valid samples.
            lens: (B,) int64, valid frames, all at least 1.
            excerpts: Where the rows are windows: of what. Frames of their context are thrown away.

        Returns:
            (B, max(lens), dim) float32; anything may stand behind the valid frames.
        """

    @torch.no_grad()
    def forward(
        self, audio: Tensor, audio_lens: Tensor, excerpts: Excerpts | None = None
    ) -> tuple[Tensor, Tensor]:
        """Computes the frames of a batch of recordings.

        Args:
            audio: (B, S) float, 16 kHz mono in [-1, 1], padded at the end with anything.
            audio_lens: (B,) integer, valid samples of each.
            excerpts: Given where the rows are windows of recordings, all long enough for a frame.

        Returns:
            Frames (B, T, dim) float32, zero behind the valid ones, and their number (B,) int64.

        Raises:
            AudioError: The batch has another shape, lengths beyond its end, or samples that are
                not finite.
        """
        check_batch(audio, audio_lens)
        audio = audio.to(self.device, torch.float32)
        audio_lens = audio_lens.to(self.device, torch.int64)
        audio = audio.masked_fill(~valid_positions(audio_lens, audio.shape[1]), 0.0)
        frame_counts = [self.num_frames(int(samples)) for samples in audio_lens.tolist()]
        lens = torch.tensor(frame_counts, dtype=torch.int64, device=self.device)
        num_frames = max(frame_counts, default=0)
        frames = audio.new_zeros(audio.shape[0], num_frames, self.dim)
        if num_frames > 0:
            chosen = (lens > 0).nonzero().squeeze(1)
            assert excerpts is None or len(chosen) == len(lens)
            with computing_in(self.precision, self.device):
                computed = self.represent(audio[chosen], audio_lens[chosen], lens[chosen], excerpts)
            valid = valid_positions(lens[chosen], num_frames)
            frames[chosen] = computed.float().masked_fill(~valid[..., None], 0.0)
        self._check_finite(audio, frames)
        return frames, lens

    def _check_finite(self, audio: Tensor, frames: Tensor) -> None:
        if bool(frames.isfinite().all()) and bool(audio.isfinite().all()):
            return
        broken = [i for i, row in enumerate(audio) if not bool(row.isfinite().all())]
        if broken:
            raise AudioError(f"recordings {broken} of the batch have NaN or infinite samples")
        raise CheckpointError(
            f"teacher {self.name!r} gives NaN or infinite frames for finite audio: "
            f"its weights ({self._identity.path}) are unusable"
        )


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Keeps float32 work in float32, whatever the caller's autocast."""
    return computing_in("float32", device)


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Sets the precision of products and convolutions, whatever the caller's autocast.

    On a GPU torch lets convolutions round to TF32 by default; how they round depends on the shape
    of the batch, so that tokens would depend on batch mates.
    """
    cudnn = torch.backends.cudnn
    with (
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"),
        cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ),
    ):
        yield


def check_batch(audio: Tensor, audio_lens: Tensor) -> None:
    """Refuses what cannot be a padded batch of audio.

    Raises:
        AudioError: Wrong shape or type, or lengths outside 0 to S.
    """
    if audio.ndim != 2 or not audio.is_floating_point():
        raise AudioError(
            f"audio is {audio.dtype} of shape {tuple(audio.shape)}, expected floats in [-1, 1] of "
            "shape (batch, samples)"
        )
    if audio_lens.shape != audio.shape[:1] or audio_lens.is_floating_point():
        raise AudioError(
            f"audio_lens is {audio_lens.dtype} of shape {tuple(audio_lens.shape)}, expected "
            f"{audio.shape[0]} integers"
        )
    if not bool(((audio_lens >= 0) & (audio_lens <= audio.shape[1])).all()):
        raise AudioError(
            f"audio_lens {audio_lens.tolist()} must lie between 0 and the {audio.shape[1]} samples"
        )


def valid_positions(lens: Tensor, length: int) -> Tensor:
    """Returns (B, length) bool, True at positions below each of `lens` (B,)."""
    return torch.arange(length, device=lens.device) < lens[:, None]


def check_layer(layer: int | None, num_layers: int, name: str, first: int = 0) -> None:
    """Refuses a layer that the model does not have; None is always there.

    Raises:
        CheckpointError: It is below `first` or above `num_layers`.
    """
    if layer is not None and not first <= layer <= num_layers:
        raise CheckpointError(
            f"teacher {name!r}: layer {layer} is out of range: the model has layers {first} to "
            f"{num_layers}"
        )
