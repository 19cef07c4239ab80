"""The configuration of SPEAR models in transformers: what `config.json` of a model folder holds.

In a folder that was exported this file is `configuration_spear.py` and needs no `spear`.
"""

from typing import Any

from transformers import PretrainedConfig

from spear.audio.checks import FRAME_HOP, SAMPLE_RATE_HZ
from spear.encoders.config_json import MODEL_TYPE, released_fields, student_config
from spear.zipformer.config import ZipformerConfig

_DERIVED = (
    "student",
    "hidden_size",
    "num_hidden_layers",
    "frame_rate_hz",
    "sampling_rate",
    "inputs_to_logits_ratio",
)


class SpearConfig(PretrainedConfig):
    """Configuration of a SPEAR encoder, alone or with a head.

    Args:
        vocabulary: Of `SpearForCTC`: the text of every token, "▁" beginning a word, the blank
            first.
        ctc_loss_reduction: Of `SpearForCTC`: "mean" over the utterances of a batch, or "sum".
        head_dropout: Probability that a value is zeroed before a head in training.
        **fields: Fields of `ZipformerConfig` under the published names (`num_mel_bins`,
            `encoder_dim`, ...), as numbers, lists or comma-separated text, and those of
            transformers. What is left out takes the Base model's value.

    Attributes:
        student: The encoder's own configuration.
        hidden_size: Channels of the last hidden state.
        num_hidden_layers: Layers; there is one more hidden state, the front end's.
        frame_rate_hz: Frames of the last hidden state in a second.
        sampling_rate: Of the audio, in Hz.
        inputs_to_logits_ratio: Samples to a frame.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocabulary: list[str] | None = None,
        ctc_loss_reduction: str = "mean",
        head_dropout: float = 0.1,
        **fields: Any,
    ) -> None:
        known = set(released_fields(ZipformerConfig()))
        given = {name: fields.pop(name) for name in list(fields) if name in known}
        # transformers makes a default instance to find out what differs from it, so no fields
        # must mean a valid model: then our own default front end is meant, not the published one.
        padded = {} if given else {"frontend_pad": True}
        self.student = student_config({"model_type": MODEL_TYPE, **padded, **given}, "SpearConfig")
        for name, value in released_fields(self.student).items():
            setattr(self, name, value)
        factor = self.student.output_downsampling_factor
        self.hidden_size = self.student.output_dim
        self.num_hidden_layers = sum(self.student.num_encoder_layers)
        self.inputs_to_logits_ratio = FRAME_HOP * factor
        self.frame_rate_hz = SAMPLE_RATE_HZ // self.inputs_to_logits_ratio
        self.sampling_rate = SAMPLE_RATE_HZ
        self.vocabulary = vocabulary
        self.ctc_loss_reduction = ctc_loss_reduction
        self.head_dropout = head_dropout
        super().__init__(**{key: value for key, value in fields.items() if key not in _DERIVED})

    def to_dict(self) -> dict[str, Any]:
        """Returns what `config.json` holds; the typed configuration is rebuilt from it."""
        content: dict[str, Any] = super().to_dict()
        content.pop("student", None)
        return content
