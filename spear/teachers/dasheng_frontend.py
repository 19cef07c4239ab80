"""Dasheng's log-mel spectrogram in plain torch, equal to torchaudio's.

The original (github.com/XiaoMi/dasheng) uses torchaudio's `MelSpectrogram` and `AmplitudeToDB`,
which have no CPU build beside recent torch. The module and buffer names here are those of the
released state dicts, so `front_end.0.spectrogram.window` and `front_end.0.mel_scale.fb` load.
"""

import torch
from torch import Tensor, nn

MIN_POWER = 1e-10  # below this, power is clamped before the logarithm: -100 dB


class MelSpectrogram(nn.Module):
    """Power spectrogram, centred with reflected ends, periodic Hann window; then mel filters.

    Args:
        n_fft: FFT length, in samples.
        win_size: Window length, in samples.
        hop_size: Shift between frames, in samples.
        n_mels: Filters, triangular on the HTK scale, not normalised; see `mel_filters`.
        f_min: Lowest frequency, in Hz.
        f_max: Highest frequency, in Hz.
        rate_hz: Sampling rate.
    """

    def __init__(
        self,
        *,
        n_fft: int,
        win_size: int,
        hop_size: int,
        n_mels: int,
        f_min: float,
        f_max: float,
        rate_hz: int = 16000,
    ) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.win_size = win_size
        self.hop_size = hop_size
        filters = mel_filters(n_fft // 2 + 1, n_mels, f_min, f_max, rate_hz)
        self.spectrogram = _Holder(window=torch.hann_window(win_size))
        self.mel_scale = _Holder(fb=filters)

    def forward(self, audio: Tensor) -> Tensor:
        """Maps (S,) float32 audio to (n_mels, S // hop_size + 1) float32 power."""
        spectrum = torch.stft(
            audio,
            self.n_fft,
            hop_length=self.hop_size,
            win_length=self.win_size,
            window=self.spectrogram.get_buffer("window"),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        return self.mel_scale.get_buffer("fb").T @ spectrum.abs().square()


class _Holder(nn.Module):
    """Holds buffers where the released state dicts have them."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value)


class PowerToDecibel(nn.Module):
    """10 log10 of power, cut `top_db` below the recording's own maximum.

    torchaudio takes the maximum over everything that is passed together, so that a loud batch mate
    changes a quiet recording; here one recording is passed at a time.
    """

    def __init__(self, top_db: float) -> None:
        super().__init__()
        self.top_db = top_db

    def forward(self, power: Tensor, peak: Tensor | None = None) -> Tensor:
        """Maps power of one recording to decibels.

        Args:
            power: Any shape.
            peak: () maximum of the recording, in decibels, where `power` is a part of it.

        Returns:
            Of the same shape.
        """
        decibels = decibels_of(power)
        return torch.maximum(decibels, (decibels.max() if peak is None else peak) - self.top_db)


def decibels_of(power: Tensor) -> Tensor:
    """Returns 10 log10 of power of any shape."""
    return 10.0 * power.clamp(min=MIN_POWER).log10()


def mel_filters(num_bins: int, n_mels: int, f_min: float, f_max: float, rate_hz: int) -> Tensor:
    """Returns (num_bins, n_mels) float32 weights of triangular mel filters.

    Centres are equally spaced in mel = 2595 log10(1 + f / 700) (HTK); each triangle rises from its
    left neighbour's centre to 1 at its own and falls to 0 at the right neighbour's. As in
    torchaudio.functional.melscale_fbanks with norm=None and mel_scale="htk".

    Args:
        num_bins: FFT bins from 0 to `rate_hz` / 2 inclusive.
        n_mels: Filters.
        f_min: Left edge of the first filter, in Hz.
        f_max: Right edge of the last filter, in Hz.
        rate_hz: Sampling rate.
    """
    bins_hz = torch.linspace(0, rate_hz // 2, num_bins)
    edges_mel = torch.linspace(_hz_to_mel(f_min), _hz_to_mel(f_max), n_mels + 2)
    edges_hz = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    widths = edges_hz.diff()
    distance = edges_hz - bins_hz[:, None]  # (num_bins, n_mels + 2)
    rising = -distance[:, :-2] / widths[:-1]
    falling = distance[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp(min=0.0)


def _hz_to_mel(frequency_hz: float) -> float:
    return float(2595.0 * torch.log10(torch.tensor(1.0 + frequency_hz / 700.0, dtype=torch.double)))
