"""Recordings in, log-mel features out: reading, resampling and Kaldi's filter bank."""

from spear.audio.fbank import LOG_EPS, Fbank, num_fbank_frames
from spear.audio.io import SAMPLE_RATE_HZ, AudioParts, check_audio, decode_audio, read_audio
from spear.audio.resampling import resample
from spear.audio.sound_reader import AUDIO_SUFFIXES, AudioInfo

__all__ = [
    "AUDIO_SUFFIXES",
    "LOG_EPS",
    "SAMPLE_RATE_HZ",
    "AudioInfo",
    "AudioParts",
    "Fbank",
    "check_audio",
    "decode_audio",
    "num_fbank_frames",
    "read_audio",
    "resample",
]
