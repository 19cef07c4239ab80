"""Greedy recognition of audio that comes piece by piece: text while people speak.

For causal encoders, with CTC or a transducer. What comes out in all is what greedy search gives for
the whole recording; memory does not grow with it, apart from the text.
"""

import torch
from torch import Tensor

from spear.asr.apply.search import begin_greedy
from spear.asr.model import AsrModel, Transcript
from spear.audio import Fbank
from spear.audio.checks import check_samples
from spear.audio.fbank_stream import FbankStream
from spear.errors import ConfigError
from spear.zipformer.streaming import ZipformerStream


class StreamingRecognizer:
    """One stream of audio.

    Args:
        model: A recogniser in evaluation mode, on a causal encoder.

    Attributes:
        transcript: What was recognised so far.

    Raises:
        ConfigError: The encoder cannot stream, or the recogniser reads other layers than the last.
    """

    def __init__(self, model: AsrModel) -> None:
        if model.layer_mix is not None:
            raise ConfigError(
                f"a recogniser of layers {model.layers!r} cannot stream: train it with layers last"
            )
        self._model = model
        self._stream = ZipformerStream(model.encoder)
        self._search = begin_greedy(model, batch_size=1)
        fbank = Fbank(num_mel_bins=model.encoder.config.feature_dim)
        self._fbank = FbankStream(fbank.to(next(model.parameters()).device))
        self.transcript = Transcript("", [], [])

    def push(self, audio: Tensor) -> list[str]:
        """Takes the next samples.

        Args:
            audio: (S,) float, 16 kHz mono in [-1, 1]; any number.

        Returns:
            The tokens that were completed, perhaps none.

        Raises:
            AudioError: The samples have another shape or type, or are unusable.
        """
        check_samples(audio)
        return self._read(self._stream.push(self._fbank.push(audio)))

    def finish(self) -> Transcript:
        """Ends the recording; returns all of its text."""
        self._read(self._stream.push(self._fbank.finish()))
        self._read(self._stream.finish())
        return self.transcript

    def _read(self, frames: Tensor) -> list[str]:
        """Searches the next encoder frames (T, D); returns the tokens that are new."""
        num_before = len(self.transcript.tokens)
        self._search.read(frames.unsqueeze(0), torch.tensor([len(frames)]))
        (found,) = self._search.results()
        if len(found.tokens) > num_before:
            self.transcript = self._model.transcript(found)
        return self.transcript.tokens[num_before:]
