"""CTC prefix beam search with an optional n-gram, by flashlight-text: n-best lists with times.

The search is C++ (Pratap et al., "wav2letter++", arXiv 1812.07625; its wheel brings KenLM): frame
sequences that leave the same tokens are one hypothesis, whose probabilities are added up. Without
a language model every token sequence is possible. With an n-gram of tokens as well; with an n-gram
of words only the words that it knows.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spear.asr.ctc import BLANK_ID, PART_FRAMES, Hypothesis
from spear.asr.search.hotwords import Hotwords
from spear.asr.search.ngram import dictionary_of, load_ngram, read_words
from spear.asr.tokenizer import Tokenizer
from spear.errors import ConfigError
from spear.system.optional import require
from spear.system.progress import get_logger

logger = get_logger(__name__)

NEVER = -1e9
"""Log-probability of what must not be found; finite, so that sums of it stay numbers."""
SETTLE_FRAMES = 500
"""Frames (of a recording that is read in parts) beyond which what was said is settled."""
MIN_STATES = 100_000
"""Prefixes whose place among the phrases is kept at least."""
_LN_10 = math.log(10.0)  # KenLM gives decadic logarithms


@dataclass
class BeamConfig:
    """CTC prefix beam search."""

    size: int = 16
    """Hypotheses that are kept from frame to frame."""
    num_tokens: int = 20
    """Most probable tokens of a frame that are tried."""
    threshold: float = 50.0
    """Nats below the best hypothesis at which others are dropped."""
    lm: str | None = None
    """N-gram in ARPA's text form or KenLM's binary form; none: the recogniser alone."""
    lm_unit: Literal["word", "token"] = "word"
    """What the n-gram is over: words (others are never recognised) or the tokenizer's tokens."""
    lm_words: str | None = None
    """File of the n-gram's words, one a line; needed for KenLM's binary form only."""
    lm_weight: float = 0.5
    """Factor of the n-gram's log-probability (in nats)."""
    word_score: float = 0.0
    """Added for every word, in nats, with an n-gram of words: above 0 for longer texts."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        for name in ("size", "num_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"beam.{name} is {getattr(self, name)}: at least 1 is needed")
        for name in ("threshold", "lm_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"beam.{name} is {getattr(self, name)}: it must be 0 or more")


class CtcBeamSearch:
    """A prefix beam search over a tokenizer's ids.

    Args:
        config: How wide, and with which language model.
        tokenizer: What the ids mean.
        num_best: Hypotheses to return for each utterance, at most.
        hotwords: Phrases to prefer; not together with an n-gram.

    Raises:
        ConfigError: The language model does not fit the tokenizer.
        DataError: It cannot be read.
        MissingPackageError: flashlight-text is not installed.
    """

    def __init__(
        self,
        config: BeamConfig,
        tokenizer: Tokenizer,
        num_best: int = 1,
        hotwords: Hotwords | None = None,
    ) -> None:
        self._library = require("flashlight.lib.text.decoder", "beam search", "flashlight-text")
        self.config = config
        self.num_best = num_best
        self._vocab_size, self._unknown_id = tokenizer.vocab_size, tokenizer.unknown_id
        by_words = config.lm is not None and config.lm_unit == "word"
        # Every word of the lexicon begins with a separator. Where that is a token of its own, the
        # first word has none: a frame that holds nothing else is put before the recording.
        self._first = _first_separator(tokenizer) if by_words else None
        self._decoder = (
            self._word_decoder(tokenizer) if by_words else self._token_decoder(tokenizer, hotwords)
        )

    @torch.no_grad()
    def __call__(
        self, frames: Tensor, lens: Tensor, score: Callable[[Tensor], Tensor] | None = None
    ) -> list[list[Hypothesis]]:
        """Searches.

        Args:
            frames: (B, T, D) float.
            lens: (B,) int64, valid frames.
            score: Turns frames (T, D) into (T, V) log-probabilities, e.g. a `CtcHead`; they exist
                for a part of a recording at a time. None: the frames are log-probabilities.

        Returns:
            For each utterance hypotheses of different tokens, the best first; at least one. Those
            of more than `PART_FRAMES` frames differ near the end alone, and their scores tell
            no more than which is better.
        """
        score = score or nn.Identity()
        return [
            self._search(score(part) for part in one[:length].split(PART_FRAMES))
            for one, length in zip(frames, lens.tolist(), strict=True)
        ]

    def _search(self, parts: Iterable[Tensor]) -> list[Hypothesis]:
        """Searches one utterance, of which parts (T, V) come one after another."""
        self._decoder.decode_begin()
        path: list[int] = []
        if self._first is not None:
            first = torch.full((1, self._vocab_size), NEVER)
            first[0, self._first] = 0.0
            self._decoder.decode_step(first.data_ptr(), *first.shape)
        for number, log_probs in enumerate(parts):
            if number:
                self._settle(path)
            emissions = log_probs.float().cpu().clone(memory_format=torch.contiguous_format)
            emissions[:, self._unknown_id] = NEVER
            self._decoder.decode_step(emissions.data_ptr(), *emissions.shape)
        self._decoder.decode_end()
        found = self._decoder.get_all_final_hypothesis()
        hypotheses = [self._hypothesis([*path, *one.tokens[1:-1]], one.score) for one in found]
        return _join_equal(hypotheses)[: self.num_best] or [Hypothesis([], [])]

    def _settle(self, path: list[int]) -> None:
        """Decides for the best hypothesis up to some seconds ago: `path`, tokens by frame, grows.

        Every prefix that was ever tried is kept otherwise: gigabytes after an hour.
        """
        path += self._decoder.get_best_hypothesis(SETTLE_FRAMES).tokens[1:]
        self._decoder.prune(SETTLE_FRAMES)

    def _hypothesis(self, path: list[int], score: float) -> Hypothesis:
        """Reads tokens and the frames where they begin off a path, its token by frame."""
        begins = [
            frame
            for frame, token in enumerate(path)
            if token != BLANK_ID and (frame == 0 or token != path[frame - 1])
        ]
        if self._first is not None:
            begins, path = [frame - 1 for frame in begins[1:]], path[1:]
        return Hypothesis([path[frame] for frame in begins], begins, float(score))

    def _token_decoder(self, tokenizer: Tokenizer, hotwords: Hotwords | None) -> Any:
        """Builds the search over tokens."""
        library, lm, weight = self._library, self._library.ZeroLM(), 0.0
        if self.config.lm is not None:
            lm = load_ngram(self.config.lm, dictionary_of(tokenizer.vocabulary))
            weight = self.config.lm_weight * _LN_10
        elif hotwords is not None:
            tried = self.config.size * (self.config.num_tokens + 1)
            lm, weight = phrase_lm(library, hotwords, max(MIN_STATES, 2 * tried)), 1.0
        self._lm = lm  # the library does not keep a model of Python's alive
        options = library.LexiconFreeDecoderOptions(
            beam_size=self.config.size,
            beam_size_token=min(self.config.num_tokens, self._vocab_size),
            beam_threshold=self.config.threshold,
            lm_weight=weight,
            sil_score=0.0,
            log_add=True,
            criterion_type=library.CriterionType.CTC,
        )
        return library.LexiconFreeDecoder(options, lm, self._unknown_id, BLANK_ID, [])

    def _word_decoder(self, tokenizer: Tokenizer) -> Any:
        """Builds the search over the words of an n-gram."""
        library, config = self._library, self.config
        assert config.lm is not None
        words = read_words(Path(config.lm_words or config.lm), is_list=config.lm_words is not None)
        lm = load_ngram(config.lm, dictionary_of(words))
        options = library.LexiconDecoderOptions(
            beam_size=config.size,
            beam_size_token=min(config.num_tokens, self._vocab_size),
            beam_threshold=config.threshold,
            lm_weight=config.lm_weight * _LN_10,
            word_score=config.word_score,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=True,
            criterion_type=library.CriterionType.CTC,
        )
        trie = self._trie(words, lm, tokenizer)
        # What the search does between words besides blanks it does with the "silence": a token of
        # no probability, so that nothing is counted twice.
        return library.LexiconDecoder(
            options, trie, lm, self._unknown_id, BLANK_ID, len(words), [], False
        )

    def _trie(self, words: list[str], lm: Any, tokenizer: Tokenizer) -> Any:
        """Spells all words in tokens; leaves out, and counts, those that cannot be spelled."""
        trie = self._library.Trie(self._vocab_size, self._unknown_id)
        start, num_left_out = lm.start(False), 0
        separator = [] if self._first is None else [self._first]
        for number, word in enumerate(words):
            spelling = tokenizer.encode(word)
            if not spelling or self._unknown_id in spelling:
                num_left_out += 1
                continue
            trie.insert([*separator, *spelling], number, lm.score(start, number)[1])
        if num_left_out == len(words):
            raise ConfigError(
                f"beam.lm {self.config.lm}: the tokenizer can write none of its words"
            )
        if num_left_out:
            logger.warning(
                "%s: %d of %d words have characters that the tokenizer does not know",
                self.config.lm,
                num_left_out,
                len(words),
            )
        trie.smear(self._library.SmearingMode.MAX)
        return trie


def _first_separator(tokenizer: Tokenizer) -> int | None:
    """Returns the token that words of characters begin with; None for word pieces."""
    if tokenizer.config.model_type == "char" and tokenizer.separator is None:
        raise ConfigError(
            "an n-gram of words needs a tokenizer that knows spaces: its transcripts had one word "
            "each; use beam.lm_unit token"
        )
    return tokenizer.separator


def phrase_lm(library: Any, hotwords: Hotwords, max_states: int) -> Any:
    """Returns phrases as a language model of flashlight's, which it asks about every new token.

    Args:
        library: flashlight's.
        hotwords: The phrases.
        max_states: Prefixes after which those that were not asked for are forgotten; more than two
            frames bring, as in every frame it asks for those in the beam.
    """

    class PhraseLm(library.LM):  # the library is loaded where it is used
        """Remembers where every hypothesis stands, for as long as it is asked about it."""

        def __init__(self) -> None:
            library.LM.__init__(self)
            self.recent: dict[Any, int] = {}
            self.older: dict[Any, int] = {}

        def start(self, start_with_nothing: bool) -> Any:
            root = library.LMState()
            self.recent, self.older = {root: hotwords.start}, {}
            return root

        def score(self, state: Any, token: int) -> tuple[Any, float]:
            place, gain = hotwords.step(self._place(state), token)
            child = state.child(token)
            self.recent[child] = place
            return child, gain

        def finish(self, state: Any) -> tuple[Any, float]:
            return state, hotwords.finish(self._place(state))

        def _place(self, state: Any) -> int:
            if len(self.recent) > max_states:
                self.recent, self.older = {}, self.recent
            if state not in self.recent:
                self.recent[state] = self.older[state]
            return self.recent[state]

    return PhraseLm()


def _join_equal(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    """Adds up the probabilities of paths with the same tokens, with a blank at the end or not."""
    joined: dict[tuple[int, ...], Hypothesis] = {}
    for one in hypotheses:
        other = joined.setdefault(tuple(one.tokens), one)
        if other is not one:
            low, high = sorted((one, other), key=lambda hypothesis: hypothesis.score)
            score = high.score + math.log1p(math.exp(low.score - high.score))
            joined[tuple(one.tokens)] = Hypothesis(high.tokens, high.frames, score)
    return sorted(joined.values(), key=lambda hypothesis: -hypothesis.score)
