"""Teachers without weights: stacked Kaldi log-mel or MFCC frames.

The targets of HuBERT's first iteration (Hsu et al., arXiv 2106.07447, section IV-B) were clusters
of 39-dimensional MFCCs: 13 coefficients with first and second differences. With these teachers
the whole pipeline runs with nothing downloaded. 100 Hz frames are stacked in pairs or quadruples
to 50 or 25 Hz.
"""

import hashlib
import json
from typing import Any

import torch
from lhotse.features.kaldi.layers import Wav2MFCC
from torch import Tensor

from spear.audio import Fbank, num_fbank_frames
from spear.teachers.base import Teacher, TeacherIdentity, full_precision
from spear.teachers.config import TeacherConfig
from spear.teachers.windows import Excerpts

FBANK_RATE_HZ = 100
NUM_CEPS = 13
CEPSTRAL_LIFTER = 22  # Kaldi's default
DELTA_RADIUS = 2  # frames on either side that a difference looks at
_DEFAULTS: dict[str, tuple[int, bool]] = {"logmel": (80, False), "mfcc": (23, True)}


class FeatureTeacher(Teacher):
    """Stacked log-mel or MFCC frames.

    Args:
        identity: What it is; `dim` follows from the other arguments.
        num_mel_bins: Mel bins M.
        stack: How many 100 Hz frames make one frame.
        deltas: Whether first and second differences are appended.

    Buffers:
        cepstra: (M, 13) float32, from log-mel to cepstral coefficients; empty for log-mel frames.
    """

    cepstra: Tensor

    def __init__(
        self, identity: TeacherIdentity, *, num_mel_bins: int, stack: int, deltas: bool
    ) -> None:
        super().__init__(identity, normalize_channels=True)
        self.fbank = Fbank(num_mel_bins)
        self.stack = stack
        self.deltas = deltas
        is_mfcc = identity.family == "mfcc"
        transform = cepstral_transform(num_mel_bins) if is_mfcc else torch.empty(0)
        self.register_buffer("cepstra", transform, persistent=False)

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of stacked frames; an incomplete last stack is left out."""
        return num_fbank_frames(num_samples) // self.stack

    def represent(
        self, audio: Tensor, audio_lens: Tensor, lens: Tensor, excerpts: Excerpts | None = None
    ) -> Tensor:
        """Computes 100 Hz frames, appends their differences, and stacks."""
        features, feature_lens = self.fbank(audio, audio_lens)
        if self.cepstra.numel() > 0:
            with full_precision(self.device):
                features = features @ self.cepstra
        if self.deltas:
            first = delta(features, feature_lens)
            features = torch.cat((features, first, delta(first, feature_lens)), dim=2)
        num_frames = int(lens.max())
        return features[:, : num_frames * self.stack].unflatten(1, (num_frames, -1)).flatten(2)


def cepstral_transform(num_mel_bins: int) -> Tensor:
    """Returns (M, 13): the discrete cosine transform of log-mel frames, then Kaldi's lifter."""
    cosines = Wav2MFCC.make_dct_matrix(NUM_CEPS, num_mel_bins)
    return cosines * Wav2MFCC.make_lifter(NUM_CEPS, CEPSTRAL_LIFTER)


def delta(features: Tensor, lens: Tensor, radius: int = DELTA_RADIUS) -> Tensor:
    """Differences over time, the slope of a line fitted to 2 * radius + 1 frames.

    d_t = sum_n n (x_{t+n} - x_{t-n}) / (2 sum_n n^2), n = 1..radius, a recording's first and last
    frame repeated at its ends (Young et al., The HTK Book, section 5.9).

    Args:
        features: (B, T, C) float.
        lens: (B,) int64, valid frames, at least 1.
        radius: Frames on either side.

    Returns:
        (B, T, C) float; anything may stand behind the valid frames.
    """
    frame = torch.arange(features.shape[1], device=features.device)
    last = lens[:, None] - 1
    slope = torch.zeros_like(features)
    for n in range(1, radius + 1):
        after = torch.minimum(frame + n, last)
        before = torch.minimum((frame - n).clamp(min=0), last)
        slope += n * (_frames_at(features, after) - _frames_at(features, before))
    return slope / (2 * sum(n * n for n in range(1, radius + 1)))


def _frames_at(features: Tensor, index: Tensor) -> Tensor:
    """Picks frames (B, T, C) of `features` (B, T, C) at positions `index` (B, T)."""
    return features.gather(1, index[..., None].expand_as(features))


def load_feature_teacher(config: TeacherConfig) -> FeatureTeacher:
    """Builds a log-mel or MFCC teacher from its settings."""
    family = config.resolved_family()
    default_bins, default_deltas = _DEFAULTS[family]
    num_mel_bins = default_bins if config.num_mel_bins is None else config.num_mel_bins
    deltas = default_deltas if config.deltas is None else config.deltas
    frame_rate_hz = config.frame_rate_hz or 50.0
    stack = round(FBANK_RATE_HZ / frame_rate_hz)
    width = NUM_CEPS if family == "mfcc" else num_mel_bins
    settings = {
        "family": family,
        "num_mel_bins": num_mel_bins,
        "num_ceps": NUM_CEPS if family == "mfcc" else None,
        "delta_radius": DELTA_RADIUS if deltas else None,
        "stack": stack,
    }
    identity = TeacherIdentity(
        name=config.name,
        family=family,
        path=None,
        layer=None,
        frame_rate_hz=float(frame_rate_hz),
        dim=width * (3 if deltas else 1) * stack,
        weights_sha256=settings_digest(settings),
    )
    return FeatureTeacher(identity, num_mel_bins=num_mel_bins, stack=stack, deltas=deltas)


def settings_digest(settings: dict[str, Any]) -> str:
    """Returns the SHA-256 of settings written as JSON with sorted keys and no spaces."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
