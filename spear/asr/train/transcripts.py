"""What is wrong with transcripts, counted and named before training begins.

A transcript may be empty (the model learns to say nothing), hold characters that the tokenizer does
not know (they become one unknown token), or need more encoder frames than its recording has (no
CTC alignment exists: it is left out of that loss). None of these stops a run, none goes unseen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from spear.asr.tokenizer import Tokenizer
from spear.asr.train.data import TranscribedCuts
from spear.audio import SAMPLE_RATE_HZ, num_fbank_frames
from spear.errors import DataError
from spear.system.progress import get_logger

logger = get_logger(__name__)

NUM_NAMED = 5


@dataclass(frozen=True)
class TranscriptFindings:
    """Ids of the cuts whose transcripts are out of the ordinary."""

    num_cuts: int
    """Cuts that were looked at."""
    empty: list[str]
    """Without any token."""
    unknown: list[str]
    """With characters that the tokenizer does not know."""
    crammed: list[str]
    """With more tokens than frames."""

    def log(self) -> None:
        """Warns of each kind in one line, with the first few ids."""
        for ids, what in (
            (self.empty, "are empty: the model learns to say nothing there"),
            (self.unknown, "have characters that the tokenizer does not know"),
            (self.crammed, "need more frames than there are: they are left out of the CTC loss"),
        ):
            if ids:
                named = ", ".join(ids[:NUM_NAMED]) + (", ..." if len(ids) > NUM_NAMED else "")
                logger.warning("%d of %d transcripts %s (%s)", len(ids), self.num_cuts, what, named)


def check_transcripts(
    cuts: TranscribedCuts, tokenizer: Tokenizer, num_frames: Callable[[int], int]
) -> TranscriptFindings:
    """Looks for what is out of the ordinary.

    Args:
        cuts: Cuts with transcripts.
        tokenizer: Turns these into tokens.
        num_frames: Output frames of the model for so many fbank frames.

    Raises:
        DataError: No transcript has a token and fits its frames: there is nothing to learn from.
    """
    ids = [info.id for info in cuts.infos]
    tokens = [tokenizer.encode(text) for text in cuts.texts]
    crammed = []
    for name, own, seconds in zip(ids, tokens, cuts.durations, strict=True):
        there = num_frames(num_fbank_frames(round(seconds * SAMPLE_RATE_HZ)))
        if len(own) + sum(a == b for a, b in pairwise(own)) > there:  # as num_frames_needed
            crammed.append(name)
    named = list(zip(ids, tokens, strict=True))
    findings = TranscriptFindings(
        num_cuts=len(ids),
        empty=[name for name, own in named if not own],
        unknown=[name for name, own in named if tokenizer.unknown_id in own],
        crammed=crammed,
    )
    if len({*findings.empty, *crammed}) == len(ids):
        raise DataError(
            f"none of {len(ids)} transcripts can be learnt: {len(findings.empty)} are empty, "
            f"{len(crammed)} need more frames than their recordings have; take a tokenizer with "
            "longer pieces (tokenizer.model_type bpe) or output_downsampling_factor 1"
        )
    return findings
