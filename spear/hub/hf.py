"""SPEAR encoders as transformers classes, for `AutoModel.from_pretrained(folder)`.

`SpearModel` wraps `SpearEncoder` and adds nothing to its arithmetic. Outputs carry the names of
transformers and those that users of the published checkpoints know.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from spear.errors import AudioError
from spear.hub.encoder import SpearEncoder
from spear.hub.released_config import MODEL_TYPE, released_fields, student_config
from spear.zipformer import ZipformerConfig


class SpearConfig(PretrainedConfig):
    """Configuration of a SPEAR encoder.

    Args:
        student: Fields of `ZipformerConfig` under the published names (`num_mel_bins`,
            `encoder_dim`, ...), as numbers, lists or comma-separated text. What is left out takes
            the Base model's value.
    """

    model_type = MODEL_TYPE

    def __init__(self, **fields: Any) -> None:
        known = set(released_fields(ZipformerConfig()))
        given = {name: fields.pop(name) for name in list(fields) if name in known}
        # transformers makes a default instance to find out what differs from it, so no fields
        # must mean a valid model: then our own default front end is meant, not the published one.
        padded = {} if given else {"frontend_pad": True}
        self.student = student_config({"model_type": MODEL_TYPE, **padded, **given}, "SpearConfig")
        for name, value in released_fields(self.student).items():
            setattr(self, name, value)
        self.hidden_size = max(self.student.encoder_dim)
        self.num_hidden_layers = sum(self.student.num_encoder_layers)
        self.frame_rate_hz = 50 // self.student.output_downsampling_factor
        derived = ("student", "hidden_size", "num_hidden_layers", "frame_rate_hz")
        super().__init__(**{key: value for key, value in fields.items() if key not in derived})

    def to_dict(self) -> dict[str, Any]:
        """Returns what `config.json` holds; the typed configuration is rebuilt from it."""
        content: dict[str, Any] = super().to_dict()
        content.pop("student", None)
        return content


@dataclass
class SpearModelOutput(ModelOutput):
    """Outputs of `SpearModel`.

    Attributes:
        last_hidden_state: (B, T, D) float.
        hidden_states: `num_hidden_layers` tensors (B, T, D_layer), one per layer.
        attention_mask: (B, T) bool, True at valid frames.
        encoder_out: The same tensor as `last_hidden_state`.
        encoder_out_lens: (B,) int64, valid frames.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attention_mask: Tensor | None = None
    encoder_out: Tensor | None = None
    encoder_out_lens: Tensor | None = None


class SpearModel(PreTrainedModel):
    """A SPEAR encoder in transformers' clothes; see `SpearEncoder`."""

    config_class = SpearConfig
    base_model_prefix = ""
    main_input_name = "input_values"

    def __init__(self, config: SpearConfig) -> None:
        super().__init__(config)
        self.model = SpearEncoder(config.student)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leaves the Zipformer's own initialisation as it is."""

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio: Tensor | None = None,
        audio_lens: Tensor | None = None,
        return_dict: bool | None = None,
        *,
        sampling_rate: int | None = None,
        **_: Any,
    ) -> SpearModelOutput | tuple[Any, ...]:
        """Encodes (B, S) audio at 16 kHz, with a (B, S) sample mask or (B,) lengths.

        Raises:
            AudioError: No audio is given, or it cannot be audio, or has another rate.
        """
        samples = input_values if input_values is not None else audio
        if samples is None:
            raise AudioError("give the audio as input_values=(batch, samples) or audio=")
        if audio_lens is None and attention_mask is not None:
            audio_lens = attention_mask.to(torch.int64).sum(dim=1)
        encoded = self.model(samples, audio_lens, sampling_rate)
        output = SpearModelOutput(
            last_hidden_state=encoded["encoder_out"],
            hidden_states=tuple(encoded["hidden_states"]),
            attention_mask=encoded["attention_mask"],
            encoder_out=encoded["encoder_out"],
            encoder_out_lens=encoded["encoder_out_lens"],
        )
        return output.to_tuple() if return_dict is False else output


def register() -> None:
    """Teaches transformers' Auto classes the model type `spear`."""
    AutoConfig.register(MODEL_TYPE, SpearConfig, exist_ok=True)
    AutoModel.register(SpearConfig, SpearModel, exist_ok=True)
