"""What the student may not see: spans of frames and one band of mel bins per clip.

Spans follow wav2vec 2.0 (arXiv 2006.11477): starting frames are drawn without replacement, spans
may overlap. Everything is drawn on the data workers from a generator that the caller seeds, for a
whole batch at once, so the training step waits for nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spear.errors import ConfigError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class MaskConfig:
    """Time and channel masks of the student's input."""

    speech_prob: float = 0.5
    """Frames of a speech clip that would be masked if no spans overlapped, as a fraction:
    num_spans = prob x frames / span_frames. 0.5 masks 40.2% of the frames, 0.65 49.1%."""

    audio_prob: float = 0.5
    """The same for clips of general audio. The paper's audio-only models use 0.65."""

    span_frames: int = 10
    """Length of a span in fbank frames (10 ms each)."""

    min_spans: int = 2
    """Spans that every clip gets at least, where it has room for so many different starts."""

    channel_prob: float = 0.25
    """Mel bins that would be masked if no bands overlapped, as a fraction."""

    channel_bins: int = 15
    """Width of a masked band in mel bins."""

    channel_mask_value: float = 0.0
    """What masked mel bins are set to: 0 in the paper, although 0 is loud for log-mel features
    that are not normalised (silence is -23)."""

    def __post_init__(self) -> None:
        for name in ("speech_prob", "audio_prob", "channel_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"mask.{name} is {getattr(self, name)}: give a fraction, 0 to 1")
        if self.span_frames < 1 or self.channel_bins < 1 or self.min_spans < 0:
            raise ConfigError("mask.span_frames and mask.channel_bins must be 1 or more")


@dataclass(frozen=True)
class MaskSampler:
    """Draws the masks of a batch; small enough to be pickled into data workers.

    Attributes:
        config: Probabilities and lengths.
        num_mel_bins: M, mel bins of the features.
    """

    config: MaskConfig
    num_mel_bins: int = 128

    def __call__(
        self, lens: Ints, is_audio: Bools, rng: np.random.Generator
    ) -> tuple[Bools, Bools]:
        """Draws time and channel masks.

        Args:
            lens: (B,) fbank frames of each clip.
            is_audio: (B,) True for clips of general audio.
            rng: Generator of this batch's masks.

        Returns:
            (B, max(lens)) frames to replace and (B, M) mel bins to set, both True = masked.
            Frames beyond a clip's length are never masked.
        """
        config = self.config
        prob = np.where(is_audio, config.audio_prob, config.speech_prob)
        frames = sample_spans(lens, prob, config.span_frames, rng, config.min_spans)
        bins = np.full(len(lens), self.num_mel_bins)
        channel_prob = np.full(len(lens), config.channel_prob)
        return frames, sample_spans(bins, channel_prob, config.channel_bins, rng)


def sample_spans(
    lens: Ints,
    prob: Floats,
    span: int,
    rng: np.random.Generator,
    min_spans: int = 0,
) -> Bools:
    """Draws masks made of spans, for sequences of different lengths at once.

    Sequence b gets floor(prob_b x len_b / span + u) spans with u ~ U(0, 1), at least `min_spans`
    unless its probability is 0, with different starts in 0 .. len_b - span. A sequence that is
    shorter than a span has the one start 0 and its span ends with it.

    Args:
        lens: (B,) positions of each sequence.
        prob: (B,) fraction of positions that spans would cover without overlaps.
        span: Length of a span.
        rng: Where numbers come from.
        min_spans: Fewest spans of a sequence.

    Returns:
        (B, max(lens)) bool, True = masked; False beyond each sequence's length.
    """
    num_starts = np.maximum(lens - span + 1, np.minimum(lens, 1))
    wanted = np.floor(prob * lens / span + rng.random(len(lens))).astype(np.int64)
    wanted = np.where(prob > 0, np.maximum(wanted, min_spans), 0)
    num_spans = np.minimum(wanted, num_starts)
    width = int(num_starts.max(initial=0))
    # The places of the n smallest of independent keys are n different places drawn uniformly.
    keys = rng.random((len(lens), width), dtype=np.float32)
    keys[np.arange(width) >= num_starts[:, None]] = 2.0
    places = np.argsort(keys, axis=1)[:, : int(num_spans.max(initial=0))]
    rows, columns = np.nonzero(np.arange(places.shape[1]) < num_spans[:, None])
    # +1 where a span begins, -1 after its end: the running sum counts the spans over a position.
    longest = int(lens.max(initial=0))
    edges = np.zeros((len(lens), longest + span + 1), dtype=np.int32)
    starts = places[rows, columns]
    np.add.at(edges, (rows, starts), 1)
    np.add.at(edges, (rows, starts + span), -1)
    covered = np.cumsum(edges, axis=1)[:, :longest] > 0
    return covered & (np.arange(longest) < lens[:, None])
