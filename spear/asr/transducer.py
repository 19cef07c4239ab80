"""The transducer recogniser: the CTC recogniser with a decoder and a joiner beside its head.

Trained with the pruned loss (Kuang et al., arXiv 2206.13236): a smoothed loss on linear projections
of encoder and decoder tells which pairs of frame and label matter, and the joiner is run for these.
The CTC head is a second head on the same frames; it helps the encoder align. Weights are named as
in icefall's `zipformer` recipe: `decoder.*`, `joiner.*`, `simple_am_proj.*`, `simple_lm_proj.*`.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spear.asr.batch import AsrBatch
from spear.asr.ctc import Hypothesis
from spear.asr.layer_mix import LAST
from spear.asr.model import AsrModel
from spear.asr.rnnt.losses import prune, prune_ranges, rnnt_loss_pruned, rnnt_loss_smoothed
from spear.asr.search.transducer_search import greedy_search
from spear.asr.tokenizer import Tokenizer
from spear.asr.transducer_modules import PROJECTION_SCALE, Decoder, Joiner
from spear.errors import ConfigError
from spear.training.task import LossTerm, Metric, StepOutput
from spear.zipformer import ZipformerConfig
from spear.zipformer.modules.initialization import scaled_linear

_FIRST_PRUNED_WEIGHT = 0.1


@dataclass
class TransducerConfig:
    """Sizes and losses of a transducer."""

    decoder_dim: int = 512
    """Channels of the decoder; a multiple of 4."""
    joiner_dim: int = 512
    """Channels in which encoder and decoder meet."""
    context_size: int = 2
    """Labels that the decoder sees."""
    prune_range: int = 5
    """Places between labels that the pruned loss computes for every frame; at least 2."""
    lm_scale: float = 0.25
    """Share of the decoder by itself in the smoothed loss."""
    am_scale: float = 0.0
    """Share of the encoder by itself in the smoothed loss."""
    simple_weight: float = 0.5
    """Factor of the smoothed loss after the warm-up, in which it falls from 1."""
    ctc_weight: float = 0.2
    """Factor of the CTC loss."""
    warmup_steps: int = 2000
    """Steps over which the factor of the pruned loss rises from 0.1 to 1."""
    backend: Literal["torch", "k2"] = "torch"
    """Whose implementation of the losses; k2 has to be installed."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        least = {"joiner_dim": 1, "context_size": 1, "prune_range": 2, "warmup_steps": 0}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ConfigError(f"transducer.{name} is {getattr(self, name)}, below {limit}")
        if self.decoder_dim < 4 or self.decoder_dim % 4:
            raise ConfigError(f"transducer.decoder_dim is {self.decoder_dim}: not a multiple of 4")
        for name in ("lm_scale", "am_scale", "simple_weight", "ctc_weight"):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"transducer.{name} is {getattr(self, name)}, below 0")
        if self.lm_scale + self.am_scale > 1.0:
            raise ConfigError("transducer.lm_scale and am_scale are above 1 together")


class TransducerModel(AsrModel):
    """Recogniser with a transducer, whose greedy search is what it recognises with.

    Args:
        config: The encoder.
        tokenizer: What the ids mean.
        transducer: Sizes and losses.
        dropout: Probability of dropout before the CTC head's last layer.
        layers: What the heads read, as `AsrModel` takes it.
        consistency_weight: As `AsrModel` takes it; times `ctc_weight`.
    """

    def __init__(
        self,
        config: ZipformerConfig,
        tokenizer: Tokenizer,
        transducer: TransducerConfig,
        *,
        dropout: float = 0.1,
        layers: str = LAST,
        consistency_weight: float = 0.0,
    ) -> None:
        super().__init__(config, tokenizer, dropout, layers, consistency_weight)
        self.transducer = transducer
        vocab_size, decoder_dim = tokenizer.vocab_size, transducer.decoder_dim
        output_dim = self.encoder.output_dim
        self.decoder = Decoder(vocab_size, decoder_dim, transducer.context_size)
        self.joiner = Joiner(output_dim, decoder_dim, transducer.joiner_dim, vocab_size)
        self.simple_am_proj = scaled_linear(output_dim, vocab_size, PROJECTION_SCALE)
        self.simple_lm_proj = scaled_linear(decoder_dim, vocab_size, PROJECTION_SCALE)
        self._warmth = 1.0

    @property
    def has_ctc(self) -> bool:
        """Whether the CTC head is trained, so that what it says counts."""
        return self.transducer.ctc_weight > 0

    def set_step(self, step: int) -> None:
        """Moves the losses' weights to where they are at a step of training, counted from 0."""
        num_steps = self.transducer.warmup_steps
        self._warmth = 1.0 if step >= num_steps else step / num_steps

    def loss_weights(self) -> dict[str, float]:
        """Returns the factor of each loss now; before any `set_step`, those after the warm-up."""
        simple = self.transducer.simple_weight
        return {
            "simple": 1.0 - self._warmth * (1.0 - simple),
            "pruned": _FIRST_PRUNED_WEIGHT + self._warmth * (1.0 - _FIRST_PRUNED_WEIGHT),
            "ctc": self.transducer.ctc_weight,
        }

    def losses(self, frames: Tensor, lens: Tensor, batch: AsrBatch) -> StepOutput:
        """Computes the losses of encoded frames (B, T', D), valid as `lens` (B,) says."""
        output = super().losses(frames, lens, batch)
        weights = self.loss_weights()
        for term in output.terms.values():
            term.weight *= weights["ctc"]
        takes_part = self.fits(lens, batch.token_lens)
        num_frames = torch.where(takes_part, lens, 0).sum()
        for name, losses in self._transducer_losses(frames, lens, batch).items():
            total = torch.where(takes_part, losses, 0.0).sum()
            output.terms[name] = LossTerm(total, num_frames, weights[name])
        num_left_out = (~takes_part).sum()
        output.metrics["transducer_left_out"] = Metric(
            num_left_out, torch.tensor(takes_part.numel())
        )
        return output

    def fits(self, lens: Tensor, token_lens: Tensor) -> Tensor:
        """Tells which utterances (B,) have enough frames for their labels within the windows.

        A window goes forward by `prune_range` - 1 labels a frame at most. The others are left out
        of both losses.
        """
        most = (self.transducer.prune_range - 1) * lens
        return (lens > 0) & (token_lens <= most)

    def greedy(self, frames: Tensor, lens: Tensor) -> list[Hypothesis]:
        """Decodes encoded frames (B, T', D) greedily with the transducer."""
        return greedy_search(self.decoder, self.joiner, frames, lens)

    def model_config(self) -> dict[str, Any]:
        """Returns what rebuilds the model beside its tokenizer, as JSON."""
        return {**super().model_config(), "transducer": asdict(self.transducer)}

    def _transducer_losses(
        self, frames: Tensor, lens: Tensor, batch: AsrBatch
    ) -> dict[str, Tensor]:
        """Returns the smoothed and the pruned loss (B,) float32 of every utterance."""
        config = self.transducer
        sizes = (lens, batch.token_lens)
        decoded = self.decoder.read(batch.tokens)
        simple, shares = rnnt_loss_smoothed(
            self.simple_am_proj(frames),
            self.simple_lm_proj(decoded),
            batch.tokens,
            *sizes,
            am_scale=config.am_scale,
            lm_scale=config.lm_scale,
            reduction="none",
            backend=config.backend,
        )
        ranges = prune_ranges(*shares, *sizes, config.prune_range, backend=config.backend)
        encoded, decoded = prune(
            self.joiner.encoder_proj(frames),
            self.joiner.decoder_proj(decoded),
            ranges,
            backend=config.backend,
        )
        pruned = rnnt_loss_pruned(
            self.joiner(encoded, decoded),
            batch.tokens,
            ranges,
            *sizes,
            reduction="none",
            backend=config.backend,
        )
        return {"simple": simple, "pruned": pruned}
