"""Log-mel filter bank features, computed for every utterance of a batch by itself.

Takes waveforms (B, S) with their lengths and gives (B, T, M) log energies at 100 Hz: Kaldi's
fbank as lhotse computes it (25 ms Povey window, 10 ms shift, 0.97 pre-emphasis, DC removal, power
spectrum of 512 points, 20 Hz to 7,600 Hz, no dither, `snip_edges=False`), so that models trained on
lhotse's features fit. Edges are mirrored at each utterance's own end, not at the end of the padded
batch; what an utterance is batched with changes nothing.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

LOG_EPS = math.log(1e-10)
"""Value of padding frames: the log of lhotse's energy floor."""

SAMPLE_RATE_HZ = 16000
FRAME_LENGTH = 400
"""Samples in a window (25 ms)."""
FRAME_SHIFT = 160
"""Samples between windows (10 ms)."""
FFT_LENGTH = 512
POVEY_POWER = 0.85
"""Of a Hann window, which is Kaldi's default."""
LOW_HZ, HIGH_HZ = 20.0, 7600.0
"""Where the lowest filter begins and the highest ends."""
PREEMPHASIS = 0.97
FRAMES_AT_ONCE = {"cpu": 1 << 10}
"""Frames whose spectra exist at the same time, by device: what fits a CPU's cache (4 times faster
than all at once), and elsewhere what bounds the memory to about 0.4 GB."""
_LEFT = (FRAME_LENGTH - FRAME_SHIFT) // 2
_RIGHT = FRAME_LENGTH - FRAME_SHIFT // 2 - _LEFT
"""Samples by which frames hang over the two ends of an utterance, at most."""
FILTERS_AT_ONCE = 16
"""Neighbouring mel filters see few bins: taken in groups of so many, an eighth of the products with
all bins is left."""


def num_fbank_frames(num_samples: int) -> int:
    """Returns the frames that a waveform of `num_samples` at 16 kHz gives: (S + 80) // 160."""
    return (num_samples + FRAME_SHIFT // 2) // FRAME_SHIFT


class Fbank(nn.Module):
    """Batched log-mel features, equal to `lhotse.Fbank` for each utterance.

    Buffers (not in the state dict, since they follow from the arguments):
        window: (400,) Povey window.
        mel_weights: (257, M) triangular filters.
    """

    window: Tensor
    mel_weights: Tensor

    def __init__(self, num_mel_bins: int = 128) -> None:
        """Builds the filters.

        Args:
            num_mel_bins: M, size of a frame; at least 4.
        """
        super().__init__()
        self.num_mel_bins = num_mel_bins
        filters = mel_filters(num_mel_bins)
        self._bands = filter_bands(filters)
        self.register_buffer("mel_weights", filters, persistent=False)
        window = torch.hann_window(FRAME_LENGTH, periodic=False).pow(POVEY_POWER)
        self.register_buffer("window", window, persistent=False)

    @torch.no_grad()
    def forward(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Computes features.

        Args:
            audio: (B, S) float, 16 kHz; what lies beyond an utterance's length is never read.
            audio_lens: (B,) integer, samples of each utterance, at most S.

        Returns:
            (B, T, M) float32, T = (S + 80) // 160, with `LOG_EPS` beyond each utterance's frames;
            and (B,) int64 frames T_i = (S_i + 80) // 160.
        """
        audio_lens = audio_lens.to(audio.device)
        lens = (audio_lens.to(torch.int64) + FRAME_SHIFT // 2) // FRAME_SHIFT
        num_frames = num_fbank_frames(audio.size(1))
        fbank = audio.new_full(
            (audio.size(0), num_frames, self.num_mel_bins), LOG_EPS, dtype=torch.float32
        )
        at_once = FRAMES_AT_ONCE.get(audio.device.type, 1 << 16)
        rows = max(1, at_once // max(1, num_frames))
        with torch.autocast(audio.device.type, enabled=False):
            for start in range(0, audio.size(0) if num_frames > 0 else 0, rows):
                part = slice(start, start + rows)
                self._fill(fbank[part], audio[part], audio_lens[part], lens[part], at_once)
        return fbank, lens

    def _fill(
        self, fbank: Tensor, audio: Tensor, audio_lens: Tensor, lens: Tensor, at_once: int
    ) -> None:
        """Writes the features of a few utterances into `fbank` (R, T, M)."""
        # Frames that are padding in all of them need no work, where asking costs no wait.
        num_frames = int(lens.max()) if lens.device.type == "cpu" else fbank.size(1)
        if num_frames == 0:
            return
        waveform = mirror_edges(audio.float(), audio_lens, num_frames)
        frames = waveform.unfold(1, FRAME_LENGTH, FRAME_SHIFT)
        for start in range(0, num_frames, at_once):
            part = slice(start, min(start + at_once, num_frames))
            log_mel = self._log_mel(frames[:, part])
            padding = torch.arange(part.start, part.stop, device=lens.device) >= lens.unsqueeze(1)
            fbank[:, part] = log_mel.masked_fill_(padding.unsqueeze(2), LOG_EPS)

    def _log_mel(self, frames: Tensor) -> Tensor:
        """(R, T, 400) windows of samples -> (R, T, M) natural log of mel energies."""
        frames = frames - frames.mean(dim=-1, keepdim=True)
        windowed = frames[..., 1:] - PREEMPHASIS * frames[..., :-1]
        windowed *= self.window[1:]
        # The window is 0 at its first sample.
        spectrum = torch.fft.rfft(nn.functional.pad(windowed, (1, FFT_LENGTH - FRAME_LENGTH)))
        # abs() would take a root to be squared again, at five times the cost.
        power = spectrum.real.square() + spectrum.imag.square()
        energies = torch.cat(
            [
                power[..., low:high] @ self.mel_weights[low:high, filters]
                for low, high, filters in self._bands
            ],
            dim=-1,
        )
        return energies.clamp_(min=torch.finfo(torch.float32).eps).log_()


def filter_bands(weights: Tensor, width: int = FILTERS_AT_ONCE) -> list[tuple[int, int, slice]]:
    """Finds the bins of the spectrum that neighbouring filters look at.

    Args:
        weights: (257, M) filters.
        width: Filters that are taken together.

    Returns:
        First bin, end of the bins, and the filters, for every `width` filters.
    """
    bands = []
    for first in range(0, weights.size(1), width):
        filters = slice(first, first + width)
        bins = weights[:, filters].any(dim=1).nonzero().flatten().tolist()
        low, high = (bins[0], bins[-1] + 1) if bins else (0, 0)
        bands.append((low, high, filters))
    return bands


def mel_filters(num_mel_bins: int) -> Tensor:
    """Returns Kaldi's triangular filters: equal steps on its mel scale, 1127 ln(1 + f / 700).

    Args:
        num_mel_bins: M.

    Returns:
        (257, M) float32, the weight of every bin of the spectrum in every filter.
    """
    low, high = (1127.0 * math.log(1 + hz / 700.0) for hz in (LOW_HZ, HIGH_HZ))
    step = (high - low) / (num_mel_bins + 1)
    # In single precision and with numpy's logarithm, for lhotse's numbers to the last bit.
    edges = torch.stack([low + (torch.arange(num_mel_bins) + i) * step for i in (0.0, 1.0, 2.0)])
    left, center, right = edges.unsqueeze(2)
    bins_hz = SAMPLE_RATE_HZ / FFT_LENGTH * np.arange(FFT_LENGTH // 2, dtype=np.float32)
    mel = torch.from_numpy(1127.0 * np.log(1 + bins_hz / 700.0))
    slopes = torch.minimum((mel - left) / (center - left), (right - mel) / (right - center))
    # The Nyquist bin has no weight in any filter.
    return nn.functional.pad(slopes.clamp_min(0.0), (0, 1)).T.contiguous()


def mirror_edges(audio: Tensor, audio_lens: Tensor, num_frames: int) -> Tensor:
    """Extends each waveform by its own mirror image, so that frames can hang over its edges.

    Frame t covers samples 160 t - 120 up to 160 t + 280. Sample j outside 0 <= j < S is sample
    -1 - j on the left and 2 S - 1 - j on the right (the edge sample is repeated, as in Kaldi); an
    utterance shorter than the overhang is mirrored again and again.

    Args:
        audio: (B, S) waveforms.
        audio_lens: (B,) integer, samples of each.
        num_frames: T, frames to make room for.

    Returns:
        (B, (T - 1) * 160 + 400) samples that begin 120 before each waveform; what is further
        than 200 behind its end is in none of its frames, and anything.
    """
    total = (num_frames - 1) * FRAME_SHIFT + FRAME_LENGTH
    num_samples = min(audio.size(1), num_frames * FRAME_SHIFT + FRAME_SHIFT)
    extended = audio.new_zeros(audio.size(0), max(total, _LEFT + num_samples + _RIGHT))
    extended[:, _LEFT : _LEFT + num_samples] = audio[:, :num_samples]
    length = audio_lens.to(torch.int64).clamp(min=1).unsqueeze(1)
    before = torch.arange(-_LEFT, 0, device=audio.device).expand(len(audio), -1)
    after = length + torch.arange(_RIGHT, device=audio.device)
    edges = torch.cat((before, after), dim=1)
    source = edges.remainder(2 * length)
    source = torch.minimum(source, 2 * length - 1 - source)
    extended.scatter_(1, edges + _LEFT, audio.gather(1, source))
    return extended[:, :total]
