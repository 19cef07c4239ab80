"""CTC prefix beam search with an optional n-gram, by flashlight-text: n-best lists with times.

The search is C++ (Pratap et al., "wav2letter++", arXiv 1812.07625; its wheel brings KenLM): frame
sequences that leave the same tokens are one hypothesis, whose probabilities are added up. Without
a language model every token sequence is possible. With an n-gram of tokens as well; with an n-gram
of words only the words that it knows.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from spear.asr.search.ctc import BLANK_ID, Hypothesis
from spear.asr.search.hotwords import Hotwords
from spear.asr.search.ngram import dictionary_of, load_ngram, read_words
from spear.asr.tokenizer import Tokenizer
from spear.errors import ConfigError
from spear.system.optional import require
from spear.system.progress import get_logger

logger = get_logger(__name__)

NEVER = -1e9
"""Log-probability of what must not be found; finite, so that sums of it stay numbers."""
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
    def __call__(self, log_probs: Tensor, lens: Tensor) -> list[list[Hypothesis]]:
        """Searches.

        Args:
            log_probs: (B, T, V) float log-probabilities.
            lens: (B,) int64, valid frames.

        Returns:
            For each utterance hypotheses of different tokens, the best first; at least one.
        """
        scores = log_probs.float().cpu()
        return [self._search(one[:length]) for one, length in zip(scores, lens, strict=True)]

    def _search(self, log_probs: Tensor) -> list[Hypothesis]:
        """Searches one utterance (T, V)."""
        if len(log_probs) == 0:
            return [Hypothesis([], [])]
        emissions = log_probs.clone()
        emissions[:, self._unknown_id] = NEVER
        if self._first is not None:
            first = emissions.new_full((1, self._vocab_size), NEVER)
            first[0, self._first] = 0.0
            emissions = torch.cat((first, emissions))
        found = self._decoder.decode(emissions.data_ptr(), *emissions.shape)
        hypotheses = [self._hypothesis(one) for one in found]
        return _join_equal(hypotheses)[: self.num_best] or [Hypothesis([], [])]

    def _hypothesis(self, found: Any) -> Hypothesis:
        """Reads tokens and the frames where they begin off a path; it has a frame at either end."""
        path = list(found.tokens)[1:-1]
        begins = [
            frame
            for frame, token in enumerate(path)
            if token != BLANK_ID and (frame == 0 or token != path[frame - 1])
        ]
        if self._first is not None:
            begins, path = [frame - 1 for frame in begins[1:]], path[1:]
        return Hypothesis([path[frame] for frame in begins], begins, float(found.score))

    def _token_decoder(self, tokenizer: Tokenizer, hotwords: Hotwords | None) -> Any:
        """Builds the search over tokens."""
        library, lm, weight = self._library, self._library.ZeroLM(), 0.0
        if self.config.lm is not None:
            lm = load_ngram(self.config.lm, dictionary_of(tokenizer.vocabulary))
            weight = self.config.lm_weight * _LN_10
        elif hotwords is not None:
            lm, weight = phrase_lm(library, hotwords), 1.0
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


def phrase_lm(library: Any, hotwords: Hotwords) -> Any:
    """Returns phrases as a language model of flashlight's, which it asks about every new token."""

    class PhraseLm(library.LM):  # the library is loaded where it is used
        def __init__(self) -> None:
            library.LM.__init__(self)
            self.states: dict[Any, int] = {}

        def start(self, start_with_nothing: bool) -> Any:
            root = library.LMState()
            self.states = {root: hotwords.start}  # a new utterance: the old states are let go
            return root

        def score(self, state: Any, token: int) -> tuple[Any, float]:
            place, gain = hotwords.step(self.states[state], token)
            child = state.child(token)
            self.states[child] = place
            return child, gain

        def finish(self, state: Any) -> tuple[Any, float]:
            return state, hotwords.finish(self.states[state])

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
