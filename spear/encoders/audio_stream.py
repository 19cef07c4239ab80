"""A causal encoder on audio that comes piece by piece, as from a microphone."""

import torch
from torch import Tensor

from spear.audio.checks import check_samples
from spear.audio.fbank import Fbank
from spear.audio.fbank_stream import FbankStream
from spear.zipformer.model import Zipformer
from spear.zipformer.streaming import ZipformerStream


class AudioStream:
    """One stream: samples in, encoder frames out as soon as they are ready.

    What comes out in all is what `SpearEncoder.forward` gives for the whole recording. Made by
    `SpearEncoder.stream`.

    Args:
        fbank: The features, on the device of the model.
        model: A causal Zipformer in evaluation mode.

    Raises:
        ConfigError: The model cannot stream.
    """

    def __init__(self, fbank: Fbank, model: Zipformer) -> None:
        self._fbank = FbankStream(fbank)
        self._zipformer = ZipformerStream(model)

    def push(self, audio: Tensor) -> Tensor:
        """Encodes the next samples.

        Args:
            audio: (S,) float, 16 kHz mono in [-1, 1]; any number of samples.

        Returns:
            (T, D) float, the frames that were completed, perhaps none.

        Raises:
            AudioError: The samples have another shape or type, or are unusable.
        """
        check_samples(audio)
        return self._zipformer.push(self._fbank.push(audio))

    def finish(self) -> Tensor:
        """Ends the recording; returns the frames (T, D) that were waiting for more."""
        rest = self._zipformer.push(self._fbank.finish())
        return torch.cat((rest, self._zipformer.finish()))
