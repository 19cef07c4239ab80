"""Searches for text in what a transducer computes: greedy, and modified beam search.

Both take the whole batch at once. The decoder is stateless, so what has to be known of a hypothesis
is its last few labels, and a step costs the same after an hour as at the beginning. Times are the
frames at which labels are written.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spear.asr.ctc import BLANK_ID, Hypothesis
from spear.asr.search.hotwords import Hotwords
from spear.asr.transducer_modules import Decoder, Joiner
from spear.errors import ConfigError

MAX_SYMBOLS = 3
"""Labels that a greedy search writes in one frame at most."""
LOOKAHEAD = 8
"""Frames that a greedy search scores at once: until a label is written all see the same context."""


class TransducerGreedy:
    """Takes the best token again and again, goes to the next frame when it is the blank.

    Args:
        decoder: Of the transducer, in evaluation mode.
        joiner: Of the transducer.
        batch_size: B.
        max_symbols: Labels written in one frame at most; icefall's search has 1.

    Raises:
        ConfigError: `max_symbols` is below 1.
    """

    def __init__(
        self, decoder: Decoder, joiner: Joiner, batch_size: int, max_symbols: int = MAX_SYMBOLS
    ) -> None:
        if max_symbols < 1:
            raise ConfigError(f"max_symbols is {max_symbols}: a frame needs room for one label")
        self._decoder, self._joiner, self._max_symbols = decoder, joiner, max_symbols
        self._context = decoder.initial_context(batch_size)
        self._scores = torch.zeros(batch_size, device=self._context.device)
        self._found = [Hypothesis([], []) for _ in range(batch_size)]
        self._num_frames = 0

    @torch.no_grad()
    def read(self, frames: Tensor, lens: Tensor) -> None:
        """Reads the next frames (B, T, D), valid as `lens` (B,) int64 says."""
        encoded, lens = self._joiner.encoder_proj(frames), lens.to(frames.device)
        rows = torch.arange(len(frames), device=frames.device)
        steps = torch.arange(LOOKAHEAD, device=frames.device)
        frame = torch.zeros_like(rows)  # where each utterance stands
        written = torch.zeros_like(rows)  # labels that it has written there
        while bool((frame < lens).any()):
            ahead = frame.unsqueeze(1) + steps
            is_there = ahead < lens.unsqueeze(1)
            seen = encoded[rows.unsqueeze(1), ahead.clamp(max=frames.size(1) - 1)]
            best, token = self._score(seen)
            is_label = is_there & (token != BLANK_ID)
            writes = is_label.any(dim=1)
            place = torch.where(writes, is_label.int().argmax(dim=1), LOOKAHEAD)
            passed = is_there & (steps <= place.unsqueeze(1))
            self._scores += torch.where(passed, best, 0.0).sum(dim=1)
            self._write(token[rows, place.clamp(max=LOOKAHEAD - 1)], writes, frame + place)
            written = torch.where(place == 0, written, 0) + writes.long()
            is_full = written == self._max_symbols
            frame = frame + place + is_full.long()
            written = torch.where(is_full, 0, written)
        self._num_frames += frames.size(1)

    def results(self) -> list[Hypothesis]:
        """Returns what has been found so far, with the log-probability of the path taken."""
        return [
            Hypothesis([*one.tokens], [*one.frames], score)
            for one, score in zip(self._found, self._scores.tolist(), strict=True)
        ]

    def _score(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log-probability and id (B, n) of the best token at frames (B, n, J)."""
        decoded = self._joiner.decoder_proj(self._decoder(self._context))
        best, token = self._joiner(encoded, decoded).float().log_softmax(dim=-1).max(dim=-1)
        return best, token

    def _write(self, token: Tensor, writes: Tensor, frame: Tensor) -> None:
        """Appends tokens (B,) at frames (B,) where `writes` (B,) says."""
        longer = torch.cat([self._context[:, 1:], token.unsqueeze(1)], dim=1)
        self._context = torch.where(writes.unsqueeze(1), longer, self._context)
        rows = writes.nonzero().flatten()
        for row, label, own in zip(
            rows.tolist(), token[rows].tolist(), frame[rows].tolist(), strict=True
        ):
            self._found[row].tokens.append(label)
            self._found[row].frames.append(self._num_frames + own)


def greedy_search(
    decoder: Decoder, joiner: Joiner, frames: Tensor, lens: Tensor, max_symbols: int = MAX_SYMBOLS
) -> list[Hypothesis]:
    """Searches encoded frames (B, T, D), valid as `lens` (B,) says; see `TransducerGreedy`."""
    search = TransducerGreedy(decoder, joiner, len(frames), max_symbols)
    search.read(frames, lens)
    return search.results()


@dataclass(frozen=True, eq=False, slots=True)
class _Path:
    """Labels and their times: the last of them, and the path before it.

    Attributes:
        context: The last labels, as many as the decoder sees.
        phrase: State of the automaton of preferred phrases.
        key: Equal for equal labels, whatever their times.
        length: Number of labels.
        frame: Where the last label is written.
        before: The path without it; None at the beginning.
    """

    context: tuple[int, ...]
    phrase: int
    key: int = 0
    length: int = 0
    frame: int = -1
    before: "_Path | None" = None

    def then(self, label: int, frame: int, hotwords: Hotwords | None) -> "_Path":
        """Returns the path with one more label."""
        phrase = self.phrase if hotwords is None else hotwords.step(self.phrase, label)[0]
        context = (*self.context[1:], label)
        return _Path(context, phrase, hash((self.key, label)), self.length + 1, frame, self)

    def hypothesis(self, score: float) -> Hypothesis:
        """Returns the labels in order."""
        tokens, frames, path = [], [], self
        while path.before is not None:
            tokens.append(path.context[-1])
            frames.append(path.frame)
            path = path.before
        return Hypothesis(tokens[::-1], frames[::-1], score)


_Beam = list[tuple[_Path, float]]
"""The hypotheses of one utterance, the best first, with their log-probabilities: summed over the
alignments that were kept, with what phrases add."""
_Extension = tuple[int, int, float]  # number of the hypothesis, token, score


def _extend(beam: _Beam, found: list[_Extension], frame: int, hotwords: Hotwords | None) -> _Beam:
    """Returns a beam after a frame, given what may follow, the most probable first.

    Hypotheses of the same labels become one, with the times of the more probable.
    """
    joined: dict[int, tuple[_Path, float]] = {}
    for parent, label, score in found:
        if score == -float("inf"):
            continue
        path, _ = beam[parent]
        if label != BLANK_ID:
            path = path.then(label, frame, hotwords)
        known, other = joined.get(path.key, (path, -float("inf")))
        joined[path.key] = (known, float(np.logaddexp(score, other)))
    return sorted(joined.values(), key=lambda item: -item[1])


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
    context = tuple(decoder.initial_context(1)[0].tolist())
    start = _Path(context, 0 if hotwords is None else hotwords.start)
    beams: list[_Beam] = [[(start, 0.0)] for _ in frames]
    num_frames = lens.tolist()
    for frame in range(max(num_frames, default=0)):
        active = [number for number, length in enumerate(num_frames) if frame < length]
        kept = [beams[number] for number in active]
        log_probs = _score(decoder, joiner, encoded[active, frame], kept, size)
        if hotwords is not None:
            _add_gains(log_probs, kept, hotwords)
        best, place = log_probs.flatten(1).topk(min(size, log_probs[0].numel()))
        for number, scores, places in zip(active, best.tolist(), place.tolist(), strict=True):
            found = [
                (*divmod(one, log_probs.shape[2]), score)
                for one, score in zip(places, scores, strict=True)
            ]
            beams[number] = _extend(beams[number], found, frame, hotwords)
    more = len(context) if normalize_length else None
    return [_best(beam, num_best, more, hotwords) for beam in beams]


def _best(
    beam: _Beam, num_best: int, normalize_by: int | None, hotwords: Hotwords | None
) -> list[Hypothesis]:
    """Returns the best hypotheses, by score or by score per label and `normalize_by` more."""
    ended = [
        (path, score + (0.0 if hotwords is None else hotwords.finish(path.phrase)))
        for path, score in beam
    ]
    ended.sort(
        key=lambda item: -item[1] / (1 if normalize_by is None else item[0].length + normalize_by)
    )
    return [path.hypothesis(score) for path, score in ended[:num_best]]


def _add_gains(scores: Tensor, beams: list[_Beam], hotwords: Hotwords) -> None:
    """Adds to scores (B, size, V), in place, what each token adds to each hypothesis."""
    for own, beam in zip(scores, beams, strict=True):
        gains = [hotwords.gains(path.phrase, scores.shape[2]) for path, _ in beam]
        own[: len(gains)] += torch.stack(gains).to(scores.device)


def _score(
    decoder: Decoder, joiner: Joiner, encoded: Tensor, beams: list[_Beam], size: int
) -> Tensor:
    """Returns (B, size, V): the score of every hypothesis of (B, J) with every token appended."""
    contexts = [path.context for beam in beams for path, _ in beam]
    place = [number * size + rank for number, beam in enumerate(beams) for rank in range(len(beam))]
    decoded = joiner.decoder_proj(decoder(torch.tensor(contexts, device=encoded.device)))[:, 0]
    rows = torch.tensor(place, device=encoded.device)
    own = encoded.new_tensor([score for beam in beams for _, score in beam])
    log_probs = joiner(encoded[rows // size], decoded).float().log_softmax(dim=-1)
    scores = log_probs.new_full((len(beams) * size, log_probs.shape[1]), -float("inf"))
    scores[rows] = log_probs + own.float().unsqueeze(1)
    return scores.view(len(beams), size, -1)
