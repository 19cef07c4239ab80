"""How text is searched for in what a recogniser computes: greedily or with a beam, by either head.

A `Search` is the one thing that decoding and transcribing need of a recogniser: features or
encoded frames in, for each recording its best transcripts out.
"""

import itertools
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from spear.asr.ctc import PART_FRAMES, CtcGreedy, Hypothesis
from spear.asr.model import AsrModel, Transcript
from spear.asr.search.ctc_beam import BeamConfig, CtcBeamSearch
from spear.asr.search.hotwords import HotwordsConfig, load_hotwords
from spear.asr.search.transducer_search import TransducerGreedy, beam_search
from spear.asr.transducer import TransducerModel
from spear.errors import ConfigError


@dataclass
class SearchConfig:
    """How text is searched for."""

    method: Literal["greedy", "beam"] = "greedy"
    """"greedy": the best token of every frame; "beam": for CTC prefix beam search, with an n-gram
    if `beam.lm` names one, for a transducer modified beam search."""
    head: Literal["auto", "ctc"] = "auto"
    """"auto": the transducer where there is one; "ctc": the CTC head, which both kinds have."""
    num_best: int = 1
    """Transcripts kept of each recording, the best first; above 1 the method must be "beam"."""
    beam: BeamConfig = field(default_factory=BeamConfig)
    """Width of the beam, and its language model."""
    hotwords: HotwordsConfig = field(default_factory=HotwordsConfig)
    """Phrases that the beam prefers."""

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        if self.num_best < 1:
            raise ConfigError(f"search.num_best is {self.num_best}: at least 1 is needed")
        if self.method == "greedy" and self.num_best > 1:
            raise ConfigError("search.num_best above 1 needs search.method beam")
        for name, value in (("beam.lm", self.beam.lm), ("hotwords.file", self.hotwords.file)):
            if self.method == "greedy" and value is not None:
                raise ConfigError(f"search.{name} needs search.method beam")
        if self.beam.lm is not None and self.hotwords.file is not None:
            raise ConfigError("search.hotwords.file goes without an n-gram: leave out beam.lm")


class Search:
    """A recogniser with a way to search.

    Args:
        model: In evaluation mode.
        config: How to search; None searches greedily.

    Raises:
        SpearError: The beam search cannot be built; it says why.
    """

    def __init__(self, model: AsrModel, config: SearchConfig | None = None) -> None:
        self.model = model
        self._config = config or SearchConfig()
        by_transducer = isinstance(model, TransducerModel) and self._config.head == "auto"
        if not by_transducer and not model.has_ctc:
            raise ConfigError(
                "search.head ctc: the CTC head of this transducer was never trained "
                "(transducer.ctc_weight 0)"
            )
        self._ctc_beam: CtcBeamSearch | None = None
        self._hotwords = load_hotwords(self._config.hotwords, model.tokenizer)
        if self._config.method == "greedy":
            return
        if not by_transducer:
            self._ctc_beam = CtcBeamSearch(
                self._config.beam, model.tokenizer, self._config.num_best, self._hotwords
            )
        elif self._config.beam.lm is not None:
            raise ConfigError("search.beam.lm goes with CTC: add search.head ctc")

    @torch.no_grad()
    def __call__(self, fbank: Tensor, lens: Tensor) -> list[list[Transcript]]:
        """Recognises a batch.

        Args:
            fbank: (B, T, M) float32 log-mel.
            lens: (B,) int64, valid frames.

        Returns:
            For each recording its transcripts, the best first; at least one.
        """
        return self.find(*self.model.encode(fbank, lens))

    @torch.no_grad()
    def find(self, frames: Tensor, lens: Tensor) -> list[list[Transcript]]:
        """Searches what `AsrModel.encode` gave: frames (B, T', D) of which `lens` (B,) are valid.

        However many there are, the scores of all tokens exist for a part of them at a time.
        """
        found = self._find(frames, lens)
        return [[self.model.transcript(one) for one in hypotheses] for hypotheses in found]

    def _find(self, frames: Tensor, lens: Tensor) -> list[list[Hypothesis]]:
        if self._ctc_beam is not None:
            return self._ctc_beam(frames, lens, self.model.ctc_head)
        if self._config.method == "beam":
            assert isinstance(self.model, TransducerModel)
            return beam_search(
                self.model.decoder,
                self.model.joiner,
                frames,
                lens,
                size=self._config.beam.size,
                num_best=self._config.num_best,
                hotwords=self._hotwords,
            )
        search = begin_greedy(self.model, len(frames), self._config.head)
        for start, part in zip(
            itertools.count(0, PART_FRAMES), frames.split(PART_FRAMES, dim=1), strict=False
        ):
            search.read(part, (lens - start).clamp(0, part.size(1)))
        return [[one] for one in search.results()]


def begin_greedy(
    model: AsrModel, batch_size: int, head: Literal["auto", "ctc"] = "auto"
) -> CtcGreedy | TransducerGreedy:
    """Begins a greedy search that reads the frames of `batch_size` utterances part by part."""
    if isinstance(model, TransducerModel) and head == "auto":
        return TransducerGreedy(model.decoder, model.joiner, batch_size)
    return CtcGreedy(model.ctc_head, batch_size)
