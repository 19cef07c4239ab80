"""Greedy recognition of audio that comes piece by piece: text while people speak.

For causal encoders, with CTC or a transducer. What comes out in all is what greedy search gives for
the whole recording; memory does not grow with it, apart from the text.
"""

import torch
from torch import Tensor

from spear.asr.model import AsrModel, Transcript
from spear.asr.search.ctc import BLANK_ID, CtcHead, Hypothesis
from spear.asr.search.transducer_search import TransducerStream
from spear.asr.transducer import TransducerModel
from spear.audio import Fbank
from spear.audio.fbank_stream import FbankStream
from spear.errors import ConfigError
from spear.zipformer import Zipformer
from spear.zipformer.streaming import ZipformerStream


class CtcStream:
    """One stream of fbank frames, read by CTC.

    Args:
        encoder: A causal Zipformer in evaluation mode.
        head: What reads its frames.

    Raises:
        ConfigError: The encoder cannot stream.
    """

    def __init__(self, encoder: Zipformer, head: CtcHead) -> None:
        self._stream = ZipformerStream(encoder)
        self._head = head
        self._found = Hypothesis([], [])
        self._num_frames = 0
        self._previous = BLANK_ID

    def push(self, fbank: Tensor) -> Hypothesis:
        """Takes the next frames (T, M) float; returns all that was recognised so far."""
        return self._read(self._stream.push(fbank))

    def finish(self) -> Hypothesis:
        """Ends the stream; returns all that was recognised."""
        return self._read(self._stream.finish())

    @torch.no_grad()
    def _read(self, frames: Tensor) -> Hypothesis:
        """Takes encoder frames (T, D): a token begins where the best one changes."""
        best: list[int] = []
        if len(frames):
            best = self._head(frames.unsqueeze(0))[0].argmax(dim=-1).tolist()
        for frame, token in enumerate(best, start=self._num_frames):
            if token not in (BLANK_ID, self._previous):
                self._found.tokens.append(token)
                self._found.frames.append(frame)
            self._previous = token
        self._num_frames += len(best)
        return self._found


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
        self._stream: CtcStream | TransducerStream
        if isinstance(model, TransducerModel):
            self._stream = TransducerStream(model, model.decoder, model.joiner)
        else:
            self._stream = CtcStream(model, model.ctc_head)
        fbank = Fbank(num_mel_bins=model.config.feature_dim)
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
        from spear.audio.checks import check_samples  # the hub needs this package

        check_samples(audio)
        return self._take(self._stream.push(self._fbank.push(audio)))

    def finish(self) -> Transcript:
        """Ends the recording; returns all of its text."""
        self._stream.push(self._fbank.finish())
        self._take(self._stream.finish())
        return self.transcript

    def _take(self, found: Hypothesis) -> list[str]:
        num_before = len(self.transcript.tokens)
        if len(found.tokens) > num_before:
            self.transcript = self._model.transcript(found)
        return self.transcript.tokens[num_before:]
