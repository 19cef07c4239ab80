"""Models as others meet them: loading, exporting, and what other tools want of them.

`export` writes a model folder, with `model_card`, `token_heads` and `remote_code`; `info` says what
one holds. `embed_files`, on `encode_many` and `feature_folder`, writes features. Formats of others
have a folder each: `hf` (transformers), `onnx`, `icefall`; `adapters` are for tools that evaluate.

With this package imported, `transformers.AutoModel.from_pretrained(folder)` knows our models.
"""

import importlib
from typing import TYPE_CHECKING, Any

from spear.encoders.encoder import EncoderOutput, SpearEncoder
from spear.encoders.loading import from_pretrained
from spear.hub.transformers_hook import register_with_transformers
from spear.system.optional import require

if TYPE_CHECKING:
    from spear.hub.hf import (  # noqa: F401 (see `__getattr__`)
        SpearConfig,
        SpearFeatureExtractor,
        SpearForAudioClassification,
        SpearForCTC,
        SpearModel,
    )

__all__ = ["EncoderOutput", "SpearEncoder", "from_pretrained"]

_OF_TRANSFORMERS = (
    "SpearConfig",
    "SpearFeatureExtractor",
    "SpearForAudioClassification",
    "SpearForCTC",
    "SpearModel",
)

register_with_transformers()


def __getattr__(name: str) -> Any:
    """Returns one of the classes of transformers, which is imported for it."""
    if name not in _OF_TRANSFORMERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("transformers", f"spear.hub.{name}")
    return getattr(importlib.import_module("spear.hub.hf"), name)
