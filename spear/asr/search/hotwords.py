"""Phrases that a beam search prefers: names and terms that a recogniser would write otherwise.

Phrases are token sequences in one automaton (Aho and Corasick, 1975). A hypothesis moves through it
token by token and earns in advance for every token of a phrase that it might be writing; what it
earned is taken back when the phrase is not completed. In the end its score has grown by

    sum over the completed phrases of  score per token x number of tokens

so every occurrence counts once, whatever was begun beside it; the beginning of a longer word is an
occurrence too. The same idea as icefall's context graph.
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from spear.asr.ctc import BLANK_ID
from spear.asr.tokenizer import Tokenizer
from spear.errors import ConfigError, DataError
from spear.system.progress import get_logger

logger = get_logger(__name__)

ROOT = 0
_SCORE = re.compile(r"\s+:(-?\d+(?:\.\d+)?)$")


@dataclass
class HotwordsConfig:
    """Phrases that beam search prefers."""

    file: str | None = None
    """Text file with a phrase per line, with its own score behind it where wanted: `SPEAR :2.5`."""
    score: float = 1.5
    """Nats that every token of a completed phrase adds; 1 to 3 is usual."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if not self.score > 0:
            raise ConfigError(f"hotwords.score is {self.score}: it must be above 0")


@dataclass
class _Node:
    """A beginning of phrases.

    Attributes:
        next: The longer beginnings, by token.
        partial: What was earned on the way here, in nats: for the best phrase through it.
        completed: What the phrases that end here add.
        fallback: The longest other beginning that ends in the same tokens.
    """

    next: dict[int, int] = field(default_factory=dict)
    partial: float = 0.0
    completed: float = 0.0
    fallback: int = ROOT


class Hotwords:
    """The automaton of some phrases.

    Args:
        phrases: Token ids of each phrase, and its nats per token.
        first: The token that stands before every recording, so to speak: with character tokenizers
            phrases begin with the separator of words, which the first word has not.

    Attributes:
        start: The state before the first token.
    """

    def __init__(
        self, phrases: Sequence[tuple[Sequence[int], float]], first: int | None = None
    ) -> None:
        self._nodes = [_Node()]
        for tokens, score in phrases:
            self._add(tokens, score)
        self._link()
        self._gains: dict[int, Tensor] = {}
        self.start = ROOT if first is None else self._follow(ROOT, first)

    def step(self, state: int, token: int) -> tuple[int, float]:
        """Returns the state after a token, and the nats that it adds or takes back."""
        new = self._follow(state, token)
        node = self._nodes[new]
        return new, node.completed + node.partial - self._nodes[state].partial

    def gains(self, state: int, vocab_size: int) -> Tensor:
        """Returns (V,) float32: the nats that each token would add; the blank writes nothing."""
        if state not in self._gains:
            gains = torch.full((vocab_size,), -self._nodes[state].partial)
            gains[BLANK_ID] = 0.0
            for token in self._continuations(state):
                gains[token] = self.step(state, token)[1]
            self._gains[state] = gains
        return self._gains[state]

    def finish(self, state: int) -> float:
        """Returns the nats to add at the end: less what was earned for phrases not completed."""
        return self._nodes[self.start].partial - self._nodes[state].partial

    def _add(self, tokens: Sequence[int], score: float) -> None:
        place = ROOT
        for depth, token in enumerate(tokens, start=1):
            if token not in self._nodes[place].next:
                self._nodes[place].next[token] = len(self._nodes)
                self._nodes.append(_Node())
            place = self._nodes[place].next[token]
            self._nodes[place].partial = max(self._nodes[place].partial, score * depth)
        self._nodes[place].completed += score * len(tokens)

    def _link(self) -> None:
        """Finds fallbacks, shorter ones first, and what is earned and completed through them."""
        queue = deque(self._nodes[ROOT].next.values())
        while queue:
            node = self._nodes[queue.popleft()]
            for token, child in node.next.items():
                self._nodes[child].fallback = self._follow(node.fallback, token)
                queue.append(child)
            shorter = self._nodes[node.fallback]
            node.completed += shorter.completed
            if not node.next:  # nothing more to come of it but what the shorter one begins
                node.partial = shorter.partial

    def _follow(self, state: int, token: int) -> int:
        while state != ROOT and token not in self._nodes[state].next:
            state = self._nodes[state].fallback
        return self._nodes[state].next.get(token, ROOT)

    def _continuations(self, state: int) -> set[int]:
        """Returns the tokens after which something of a phrase is written."""
        tokens = set(self._nodes[state].next)
        while state != ROOT:
            state = self._nodes[state].fallback
            tokens |= set(self._nodes[state].next)
        return tokens


def load_hotwords(config: HotwordsConfig, tokenizer: Tokenizer) -> Hotwords | None:
    """Reads phrases; None where there is no file.

    Args:
        config: The file and the score.
        tokenizer: Spells the phrases.

    Raises:
        DataError: There is no such file, it holds no phrase, or the tokenizer can write none.
    """
    if config.file is None:
        return None
    lines = _read_lines(Path(config.file))
    first = tokenizer.separator
    spelled: dict[
        tuple[int, ...], float
    ] = {}  # of a phrase that stands twice the last score counts
    left_out = []
    for line in lines:
        text, score = _parse(line, config)
        tokens = tokenizer.encode(text)
        if not tokens or tokenizer.unknown_id in tokens:
            left_out.append(text)
            continue
        spelled[tuple(tokens if first is None else [first, *tokens])] = score
    if not spelled:
        raise DataError(f"{config.file}: the tokenizer can write none of its {len(lines)} phrases")
    if left_out:
        logger.warning(
            "%s: %d of %d phrases have characters that the tokenizer does not know (%s, ...)",
            config.file,
            len(left_out),
            len(lines),
            left_out[0],
        )
    return Hotwords(list(spelled.items()), first)


def _read_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"hotwords {path} cannot be read: {error}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"hotwords {path}: no phrase in it")
    return lines


def _parse(line: str, config: HotwordsConfig) -> tuple[str, float]:
    """Splits a line into the phrase and its nats per token."""
    match = _SCORE.search(line)
    if match is None:
        return line, config.score
    score = float(match[1])
    if not score > 0:
        raise DataError(f"hotwords {config.file}: {line!r} has no score above 0")
    return line[: match.start()], score
