"""The `config.json` of a SPEAR model folder, in both dialects.

The published SPEAR checkpoints write their per-stack numbers as text ("1,2,4,8,4,2,1"), call the
feature dimension `num_mel_bins`, and leave out what never varied. Our exports write lists and every
field. Both are read here; exports keep the published names, so one reader serves.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from spear.errors import CheckpointError
from spear.zipformer.config import ZipformerConfig

MODEL_TYPE = "spear"

# The published front end does not pad; the field did not exist when those files were written.
_RELEASED_DEFAULTS: dict[str, Any] = {"frontend_pad": False}
_RENAMED = {"num_mel_bins": "feature_dim"}
_NAMES = {field.name for field in fields(ZipformerConfig)}


def student_config(content: Mapping[str, Any], source: str) -> ZipformerConfig:
    """Reads the student's configuration out of a `config.json`.

    Args:
        content: The parsed file; keys that do not describe the student are ignored, since
            transformers adds many of its own.
        source: Where it comes from, for messages.

    Raises:
        CheckpointError: The folder holds another kind of model, or a value cannot be read.
    """
    kind = content.get("model_type")
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{source} describes a {kind!r} model, not a {MODEL_TYPE!r} one")
    named = {_RENAMED.get(key, key): value for key, value in content.items()}
    try:
        values = {key: parse_field(value) for key, value in named.items() if key in _NAMES}
        return ZipformerConfig.from_dict({**_RELEASED_DEFAULTS, **values})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def released_fields(config: ZipformerConfig) -> dict[str, Any]:
    """Writes the student's configuration under the published names."""
    back = {ours: theirs for theirs, ours in _RENAMED.items()}
    return {back.get(key, key): value for key, value in config.to_dict().items()}


def parse_field(value: Any) -> Any:
    """Reads a field as files write it: text with commas and lists are tuples of numbers."""
    if isinstance(value, str):
        return tuple(int(number) for number in value.split(","))
    return tuple(value) if isinstance(value, list) else value
