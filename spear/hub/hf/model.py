"""SPEAR encoders as transformers models, for `AutoModel.from_pretrained(folder)`.

`SpearModel` wraps `SpearEncoder` and adds nothing to its arithmetic. Outputs carry the names of
transformers and those that users of the published checkpoints know. `SpearForCTC` and
`SpearForAudioClassification` are an encoder, dropout and one linear layer. In a folder that was
exported this file is `modeling_spear.py` and needs no `spear`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput
from transformers.utils.generic import ModelOutput

from spear.asr.ctc import BLANK_ID, ctc_loss, greedy_decode
from spear.encoders.encoder import SpearEncoder
from spear.errors import ConfigError
from spear.hub.hf.config import SpearConfig
from spear.hub.hf.inputs import audio_of
from spear.system.weights import check_fit
from spear.zipformer.schedule import TRAINED, set_schedule

_IGNORED = -100
"""Of labels: what transformers' collators pad them with."""
_WORD = "▁"
"""Begins a word in the pieces of a vocabulary."""


@dataclass
class SpearModelOutput(ModelOutput):
    """Outputs of `SpearModel`.

    Attributes:
        last_hidden_state: (B, T, D) float.
        hidden_states: `num_hidden_layers` + 1 tensors (B, T, D_layer) at 50 Hz: what the front end
            made, then the output of every layer.
        attention_mask: (B, T) bool, True at valid frames.
        encoder_out: The same tensor as `last_hidden_state`.
        encoder_out_lens: (B,) int64, valid frames.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attention_mask: Tensor | None = None
    encoder_out: Tensor | None = None
    encoder_out_lens: Tensor | None = None


@dataclass
class SpearForCTCOutput(CausalLMOutput):
    """Outputs of `SpearForCTC`.

    Attributes:
        loss: () float32, where labels are given.
        logits: (B, T, V) float32 log-probabilities of tokens; 0 is the blank.
        hidden_states: As of `SpearModel`.
        attention_mask: (B, T) bool, True at valid frames.
        logits_lens: (B,) int64, valid frames.
    """

    attention_mask: Tensor | None = None
    logits_lens: Tensor | None = None


class SpearHead(nn.Linear):
    """A linear layer on top of the encoder, which fine-tuning begins anew."""


class SpearPreTrainedModel(PreTrainedModel):
    """What all SPEAR models of transformers share: loading, saving, lengths."""

    config_class = SpearConfig
    base_model_prefix = "spear"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 (as transformers has it)
        r"^(decoder|joiner|simple_am_proj|simple_lm_proj|layer_mix)\."
    ]
    """What a recogniser's folder holds besides, for spear."""

    auto_map: ClassVar[Mapping[str, str] | None] = None
    write_code: ClassVar[Callable[[Path], None] | None] = None
    """What says where the code of a saved folder is, and adds it; set by `spear.hub.hf`.
    For models whose code came with a folder, transformers copies it."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a model; see transformers. Every weight of the encoder must be there.

        Raises:
            CheckpointError: Weights of the encoder are missing or unexpected.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        _check_complete(model, info, str(args[0]) if args else cls.__name__)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves weights and configuration, and the code that loads them where there is no spear."""
        writer = type(self).write_code
        if writer is not None:
            self.config.auto_map = dict(type(self).auto_map or {})
        super().save_pretrained(save_directory, *args, **kwargs)
        if writer is not None and kwargs.get("is_main_process", True):
            writer(Path(save_directory))

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Computes layers again in the backward pass instead of keeping what is inside them."""
        self.encoder.model.set_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps what is inside layers for the backward pass."""
        self.encoder.model.set_checkpointing(False)

    def get_output_lengths(self, input_lengths: Tensor | int) -> Tensor | int:
        """Returns how many frames recordings of so many samples have, as (B,) or a number."""
        if isinstance(input_lengths, int):
            return self.encoder.num_frames(input_lengths)
        counts = [self.encoder.num_frames(length) for length in input_lengths.tolist()]
        return torch.tensor(counts, dtype=torch.int64, device=input_lengths.device)

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor | int) -> Tensor | int:
        """The same under the name that transformers' own audio models use."""
        return self.get_output_lengths(input_lengths)

    @property
    def encoder(self) -> SpearEncoder:
        """The encoder inside."""
        base: Any = self.base_model
        return base.model

    def _init_weights(self, module: nn.Module) -> None:
        """Begins heads anew; the encoder's own initialisation stays as it is."""
        if isinstance(module, SpearHead):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


class SpearModel(SpearPreTrainedModel):
    """A SPEAR encoder in transformers' clothes; see `SpearEncoder`."""

    def __init__(self, config: SpearConfig) -> None:
        super().__init__(config)
        self.model = SpearEncoder(config.student)
        set_schedule(self.model, TRAINED)
        self.post_init()

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        audio: Tensor | None = None,
        audio_lens: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        sampling_rate: int | None = None,
        **_: Any,
    ) -> SpearModelOutput | tuple[Any, ...]:
        """Encodes a batch of recordings.

        Args:
            input_values: (B, S) float, 16 kHz mono in [-1, 1], padded at the end.
            attention_mask: (B, S), 1 at samples, 0 at padding; or lengths (B,), as users of the
                published checkpoints give them in this place.
            audio: The same as `input_values`.
            audio_lens: (B,) int64, in place of a mask.
            output_hidden_states: False leaves the hidden states out.
            return_dict: False gives a tuple of what there is.
            sampling_rate: Of the audio in Hz, to have it checked.

        Raises:
            AudioError: No audio is given, or it cannot be audio, or has another rate.
        """
        samples, lens = audio_of(input_values, attention_mask, audio, audio_lens)
        encoded = self.model(samples, lens, sampling_rate)
        layers = (encoded["embeddings"], *encoded["hidden_states"])
        output = SpearModelOutput(
            last_hidden_state=encoded["encoder_out"],
            hidden_states=None if output_hidden_states is False else layers,
            attention_mask=encoded["attention_mask"],
            encoder_out=encoded["encoder_out"],
            encoder_out_lens=encoded["encoder_out_lens"],
        )
        return output.to_tuple() if return_dict is False else output


class _WithHead(SpearPreTrainedModel):
    """An encoder, dropout and one linear layer."""

    def __init__(self, config: SpearConfig, num_outputs: int) -> None:
        super().__init__(config)
        self.spear = SpearModel(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = SpearHead(config.hidden_size, num_outputs)
        self.post_init()

    def freeze_base_model(self) -> None:
        """Trains the head alone."""
        self.spear.requires_grad_(False)

    def _encode(
        self,
        input_values: Tensor | None,
        attention_mask: Tensor | None,
        output_hidden_states: bool | None,
        inputs: dict[str, Any],
    ) -> Any:
        """Runs the encoder, without hidden states where they are not asked for."""
        wanted = bool(output_hidden_states)
        return self.spear(input_values, attention_mask, output_hidden_states=wanted, **inputs)


class SpearForCTC(_WithHead):
    """Recognises speech: one distribution over tokens per frame.

    Args:
        config: With a `vocabulary`, or `vocab_size` tokens where their text is kept elsewhere.

    Raises:
        ConfigError: The configuration tells no number of tokens.
    """

    def __init__(self, config: SpearConfig) -> None:
        given = getattr(config, "vocab_size", None)
        size = len(config.vocabulary) if config.vocabulary else given
        if not size:
            raise ConfigError("SpearForCTC needs config.vocabulary, the text of every token")
        super().__init__(config, size)

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> SpearForCTCOutput | tuple[Any, ...]:
        """Scores tokens at every frame.

        Args:
            input_values: As of `SpearModel`.
            attention_mask: As of `SpearModel`.
            labels: (B, L) int64 in 1 .. V - 1, padded with -100. Utterances that have more labels
                than frames are left out of the loss.
            output_hidden_states: True returns them, too.
            return_dict: False gives a tuple of what there is.
            **inputs: `audio`, `audio_lens`, `sampling_rate` as of `SpearModel`.

        Raises:
            AudioError: See `SpearModel`.
            ConfigError: A label is no token.
        """
        encoded = self._encode(input_values, attention_mask, output_hidden_states, inputs)
        frames = self.head(self.dropout(encoded.encoder_out))
        log_probs = F.log_softmax(frames.float(), dim=-1)
        output = SpearForCTCOutput(
            loss=self._loss(log_probs, encoded.encoder_out_lens, labels),
            logits=log_probs,
            hidden_states=encoded.hidden_states,
            attention_mask=encoded.attention_mask,
            logits_lens=encoded.encoder_out_lens,
        )
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def transcribe(self, *args: Any, **kwargs: Any) -> list[str]:
        """Recognises recordings greedily; arguments as of `forward`.

        Raises:
            ConfigError: The configuration has no vocabulary.
        """
        if not self.config.vocabulary:
            raise ConfigError("config.vocabulary is not there, so tokens have no text")
        output = self(*args, **kwargs)
        hypotheses = greedy_decode(output.logits, output.logits_lens)
        return [self._text(hypothesis.tokens) for hypothesis in hypotheses]

    def _text(self, tokens: list[int]) -> str:
        pieces = "".join(self.config.vocabulary[token] for token in tokens)
        return " ".join(pieces.replace(_WORD, " ").split())

    def _loss(self, log_probs: Tensor, lens: Tensor, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        valid = labels != _IGNORED
        if bool(((labels <= BLANK_ID) | (labels >= log_probs.shape[2])).logical_and(valid).any()):
            raise ConfigError(
                f"labels must be 1 to {log_probs.shape[2] - 1} (0 is the blank), or -100 as padding"
            )
        loss = ctc_loss(log_probs, lens, labels.masked_fill(~valid, 1), valid.sum(dim=1))
        if self.config.ctc_loss_reduction == "sum":
            return loss.total
        return loss.total / loss.feasible.sum().clamp_min(1)


class SpearForAudioClassification(_WithHead):
    """Classifies recordings: the mean of the valid frames, then one linear layer.

    Args:
        config: With `num_labels`; `problem_type` "multi_label_classification" for tagging.
    """

    def __init__(self, config: SpearConfig) -> None:
        super().__init__(config, config.num_labels or 0)

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Scores classes.

        Args:
            input_values: As of `SpearModel`.
            attention_mask: As of `SpearModel`.
            labels: (B,) int64 of one class each, or (B, C) of 0 and 1 for several.
            output_hidden_states: True returns them, too.
            return_dict: False gives a tuple of what there is.
            **inputs: `audio`, `audio_lens`, `sampling_rate` as of `SpearModel`.

        Raises:
            AudioError: See `SpearModel`.
        """
        encoded = self._encode(input_values, attention_mask, output_hidden_states, inputs)
        mean = mean_of_frames(encoded.encoder_out, encoded.attention_mask)
        logits = self.head(self.dropout(mean)).float()
        output = SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
        )
        return output.to_tuple() if return_dict is False else output

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind == "multi_label_classification" or (kind is None and labels.ndim == 2):
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)


def mean_of_frames(frames: Tensor, valid: Tensor) -> Tensor:
    """Averages valid frames.

    Args:
        frames: (B, T, D) float.
        valid: (B, T) bool.

    Returns:
        (B, D) float; zero where a recording has no valid frame.
    """
    mask = valid.unsqueeze(-1)
    return frames.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def _check_complete(model: SpearPreTrainedModel, info: dict[str, Any], source: str) -> None:
    """Refuses a folder that has not just the weights of the encoder; heads may be new."""
    own = set(model.encoder.state_dict())
    kinds = (info.get(f"{kind}_keys", ()) for kind in ("missing", "unexpected", "mismatched"))
    # Of another shape are names, or names with both shapes: that changes from version to version.
    names = ([key if isinstance(key, str) else key[0] for key in keys] for keys in kinds)
    check_fit(source, *([name for name in some if _is_encoder(name, own)] for some in names))


def _is_encoder(name: str, own: set[str]) -> bool:
    """Whether a weight is the encoder's, or calls itself so."""
    inner = name.removeprefix("spear.").removeprefix("model.")
    return inner in own or inner.startswith(("model.encoder", "model.mask_emb"))
