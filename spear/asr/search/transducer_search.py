"""Searches for text in what a transducer computes: greedy, modified beam search, and in a stream.

All of them go frame by frame with the whole batch at once. The decoder is stateless, so what has
to be known of a hypothesis is its last few labels. Times are the frames at which labels are
written.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spear.asr.search.ctc import BLANK_ID, Hypothesis
from spear.asr.search.hotwords import Hotwords
from spear.asr.transducer_modules import Decoder, Joiner
from spear.errors import ConfigError
from spear.zipformer import Zipformer
from spear.zipformer.streaming import ZipformerStream

MAX_SYMBOLS = 3
"""Labels that a greedy search writes in one frame at most."""

_Extension = tuple[int, int, float]  # number of the hypothesis, token, score


class _GreedyState:
    """Where the greedy searches of a batch stand.

    Args:
        decoder: Of the transducer.
        joiner: Of the transducer.
        batch_size: B.
        max_symbols: Labels per frame at most.
    """

    def __init__(self, decoder: Decoder, joiner: Joiner, batch_size: int, max_symbols: int) -> None:
        if max_symbols < 1:
            raise ConfigError(f"max_symbols is {max_symbols}: a frame needs room for one label")
        self.decoder, self.joiner, self.max_symbols = decoder, joiner, max_symbols
        self.context = decoder.initial_context(batch_size)
        self.decoded = self._decode()
        self.scores = self.decoded.new_zeros(batch_size, dtype=torch.float32)
        self.hypotheses = [Hypothesis([], []) for _ in range(batch_size)]

    def advance(self, encoded: Tensor, is_there: Tensor, frame: int) -> None:
        """Reads frame number `frame`, encoded (B, J), of the utterances that have it (B,) bool."""
        for _ in range(self.max_symbols):
            log_probs = self.joiner(encoded, self.decoded).float().log_softmax(dim=-1)
            best, token = log_probs.max(dim=-1)
            self.scores += torch.where(is_there, best, 0.0)
            is_there = is_there & (token != BLANK_ID)
            if not is_there.any():
                return
            self._write(token, is_there, frame)

    def results(self) -> list[Hypothesis]:
        """Returns what has been found so far."""
        scores = self.scores.tolist()
        return [
            replace(one, score=score) for one, score in zip(self.hypotheses, scores, strict=True)
        ]

    def _write(self, token: Tensor, writes: Tensor, frame: int) -> None:
        """Appends tokens (B,) where `writes` (B,) says."""
        longer = torch.cat([self.context[:, 1:], token.unsqueeze(1)], dim=1)
        self.context = torch.where(writes.unsqueeze(1), longer, self.context)
        self.decoded = self._decode()
        for number, label in zip(
            writes.nonzero().flatten().tolist(), token[writes].tolist(), strict=True
        ):
            self.hypotheses[number].tokens.append(label)
            self.hypotheses[number].frames.append(frame)

    def _decode(self) -> Tensor:
        """Returns (B, J) for the present context."""
        decoded: Tensor = self.joiner.decoder_proj(self.decoder(self.context))
        return decoded[:, 0]


@torch.no_grad()
def greedy_search(
    decoder: Decoder, joiner: Joiner, frames: Tensor, lens: Tensor, max_symbols: int = MAX_SYMBOLS
) -> list[Hypothesis]:
    """Takes the best token again and again, and goes to the next frame when it is the blank.

    Args:
        decoder: Of the transducer, in evaluation mode.
        joiner: Of the transducer.
        frames: (B, T, D) float, encoded.
        lens: (B,) int64, valid frames.
        max_symbols: Labels written in one frame at most; icefall's search has 1.

    Returns:
        One hypothesis per utterance, with the log-probability of the path taken.

    Raises:
        ConfigError: `max_symbols` is below 1.
    """
    state = _GreedyState(decoder, joiner, len(frames), max_symbols)
    encoded = joiner.encoder_proj(frames)
    for frame in range(frames.shape[1]):
        state.advance(encoded[:, frame], frame < lens, frame)
    return state.results()


class TransducerStream:
    """Recognises one stream of fbank frames that come as they like.

    Args:
        encoder: A causal Zipformer in evaluation mode, e.g. the transducer's model.
        decoder: Of the transducer.
        joiner: Of the transducer.
        max_symbols: Labels written in one frame at most.

    Raises:
        ConfigError: The encoder cannot stream, or `max_symbols` is below 1.
    """

    def __init__(
        self,
        encoder: Zipformer,
        decoder: Decoder,
        joiner: Joiner,
        max_symbols: int = MAX_SYMBOLS,
    ) -> None:
        self._stream = ZipformerStream(encoder)
        self._state = _GreedyState(decoder, joiner, 1, max_symbols)
        self._num_frames = 0

    def push(self, fbank: Tensor) -> Hypothesis:
        """Takes the next frames (T, M) float; returns all that was recognised so far.

        Raises:
            DataError: The frames have another shape, or the stream has ended.
        """
        return self._read(self._stream.push(fbank))

    def finish(self) -> Hypothesis:
        """Ends the stream; returns all that was recognised.

        Raises:
            DataError: It has ended before.
        """
        return self._read(self._stream.finish())

    @torch.no_grad()
    def _read(self, frames: Tensor) -> Hypothesis:
        is_there = torch.ones(1, dtype=torch.bool, device=frames.device)
        for encoded in self._state.joiner.encoder_proj(frames):
            self._state.advance(encoded.unsqueeze(0), is_there, self._num_frames)
            self._num_frames += 1
        found = self._state.results()[0]
        return replace(found, tokens=[*found.tokens], frames=[*found.frames])


@dataclass(frozen=True)
class _Beam:
    """The hypotheses of one utterance, the best first: parallel lists of at most `size`.

    Attributes:
        tokens: Labels of each.
        frames: For each label its frame.
        scores: Log-probabilities, summed over the alignments that were kept, with what phrases add.
    """

    tokens: list[tuple[int, ...]]
    frames: list[tuple[int, ...]]
    scores: list[float]

    def extended(self, found: "list[_Extension]", frame: int) -> "_Beam":
        """Returns the beam after a frame, given what may follow, the most probable first.

        Hypotheses of the same labels become one, with the times of the more probable.
        """
        joined: dict[tuple[int, ...], tuple[tuple[int, ...], float]] = {}
        for parent, label, score in found:
            if score == -float("inf"):
                continue
            written = label != BLANK_ID
            tokens = (*self.tokens[parent], label) if written else self.tokens[parent]
            frames = (*self.frames[parent], frame) if written else self.frames[parent]
            known, other = joined.get(tokens, (frames, -float("inf")))
            joined[tokens] = (known, float(np.logaddexp(score, other)))
        ordered = sorted(joined.items(), key=lambda item: -item[1][1])
        return _Beam(
            [tokens for tokens, _ in ordered],
            [frames for _, (frames, _) in ordered],
            [score for _, (_, score) in ordered],
        )

    def best(
        self, num_best: int, normalize_by: int | None, phrases: "_Phrases | None"
    ) -> list[Hypothesis]:
        """Returns the best hypotheses, by score or by score per label and `normalize_by` more."""
        hypotheses = [
            Hypothesis(
                list(tokens), list(frames), score + (phrases.finish(tokens) if phrases else 0)
            )
            for tokens, frames, score in zip(self.tokens, self.frames, self.scores, strict=True)
        ]
        if normalize_by is not None:
            more = normalize_by
            hypotheses.sort(key=lambda one: -one.score / (len(one.tokens) + more))
        else:
            hypotheses.sort(key=lambda one: -one.score)
        return hypotheses[:num_best]


class _Phrases:
    """Where hypotheses stand in the automaton of preferred phrases; their labels tell all of it."""

    def __init__(self, hotwords: Hotwords) -> None:
        self._hotwords = hotwords
        self._states: dict[tuple[int, ...], int] = {(): hotwords.start}

    def add_gains(self, scores: Tensor, beams: list[_Beam]) -> None:
        """Adds to scores (B, size, V), in place, what each token adds to each hypothesis."""
        for own, beam in zip(scores, beams, strict=True):
            states = map(self._state, beam.tokens)
            gains = [self._hotwords.gains(state, scores.shape[2]) for state in states]
            own[: len(gains)] += torch.stack(gains).to(scores.device)

    def finish(self, tokens: tuple[int, ...]) -> float:
        """Returns what is added to a hypothesis that ends."""
        return self._hotwords.finish(self._state(tokens))

    def _state(self, tokens: tuple[int, ...]) -> int:
        if tokens not in self._states:
            state, _ = self._hotwords.step(self._state(tokens[:-1]), tokens[-1])
            self._states[tokens] = state
        return self._states[tokens]


@torch.no_grad()
def beam_search(
    decoder: Decoder,
    joiner: Joiner,
    frames: Tensor,
    lens: Tensor,
    *,
    size: int = 4,
    num_best: int = 1,
    normalize_length: bool = True,
    hotwords: Hotwords | None = None,
) -> list[list[Hypothesis]]:
    """Modified beam search: at most one label a frame (icefall, `modified_beam_search`).

    Args:
        decoder: Of the transducer, in evaluation mode.
        joiner: Of the transducer.
        frames: (B, T, D) float, encoded.
        lens: (B,) int64, valid frames.
        size: Hypotheses kept of each utterance.
        num_best: Hypotheses returned of each utterance, at most.
        normalize_length: Whether they are ordered by log-probability per label, which keeps long
            transcripts from losing to short ones; as icefall counts, the decoder's first context
            is of the length.
        hotwords: Phrases to prefer.

    Returns:
        For each utterance hypotheses of different labels, the best first; at least one. Their
        score is the log-probability, summed over the alignments that were kept, and what the
        phrases in them add.

    Raises:
        ConfigError: `size` or `num_best` is below 1.
    """
    if size < 1 or num_best < 1:
        raise ConfigError(f"beam of {size} and {num_best} best: both must be 1 or more")
    encoded = joiner.encoder_proj(frames)
    beams = [_Beam([()], [()], [0.0]) for _ in frames]
    num_frames = lens.tolist()
    phrases = None if hotwords is None else _Phrases(hotwords)
    for frame in range(frames.shape[1]):
        active = [number for number, length in enumerate(num_frames) if frame < length]
        if not active:
            break
        kept = [beams[number] for number in active]
        log_probs = _score(decoder, joiner, encoded[active, frame], kept, size)
        if phrases is not None:
            phrases.add_gains(log_probs, kept)
        best, place = log_probs.flatten(1).topk(min(size, log_probs[0].numel()))
        for number, scores, places in zip(active, best.tolist(), place.tolist(), strict=True):
            found = [
                (*divmod(one, log_probs.shape[2]), score)
                for one, score in zip(places, scores, strict=True)
            ]
            beams[number] = beams[number].extended(found, frame)
    more = decoder.context_size if normalize_length else None
    return [beam.best(num_best, more, phrases) for beam in beams]


def _score(
    decoder: Decoder, joiner: Joiner, encoded: Tensor, beams: list[_Beam], size: int
) -> Tensor:
    """Returns (B, size, V): the score of every hypothesis of (B, J) with every token appended."""
    first = decoder.initial_context(1)[0].tolist()
    contexts = [[*first, *tokens][-len(first) :] for beam in beams for tokens in beam.tokens]
    place = [
        number * size + rank
        for number, beam in enumerate(beams)
        for rank in range(len(beam.tokens))
    ]
    decoded = joiner.decoder_proj(decoder(torch.tensor(contexts, device=encoded.device)))[:, 0]
    rows = torch.tensor(place, device=encoded.device)
    own = encoded.new_tensor([score for beam in beams for score in beam.scores])
    log_probs = joiner(encoded[rows // size], decoded).float().log_softmax(dim=-1)
    scores = log_probs.new_full((len(beams) * size, log_probs.shape[1]), -float("inf"))
    scores[rows] = log_probs + own.float().unsqueeze(1)
    return scores.view(len(beams), size, -1)
