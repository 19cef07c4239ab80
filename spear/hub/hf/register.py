"""SPEAR models with transformers: importing this file registers them with its Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
)

from spear.encoders.config_json import MODEL_TYPE
from spear.hub.hf.config import SpearConfig
from spear.hub.hf.features import SpearFeatureExtractor
from spear.hub.hf.model import (
    SpearForAudioClassification,
    SpearForCTC,
    SpearModel,
    SpearModelOutput,
    SpearPreTrainedModel,
)
from spear.hub.hf.remote_code import AUTO_MAP, write_code

__all__ = [
    "SpearConfig",
    "SpearFeatureExtractor",
    "SpearForAudioClassification",
    "SpearForCTC",
    "SpearModel",
    "SpearModelOutput",
    "register",
]


def register() -> None:
    """Teaches transformers' Auto classes the model type `spear`."""
    AutoConfig.register(MODEL_TYPE, SpearConfig, exist_ok=True)
    AutoModel.register(SpearConfig, SpearModel, exist_ok=True)
    AutoModelForCTC.register(SpearConfig, SpearForCTC, exist_ok=True)
    AutoModelForAudioClassification.register(
        SpearConfig, SpearForAudioClassification, exist_ok=True
    )
    AutoFeatureExtractor.register(SpearConfig, SpearFeatureExtractor, exist_ok=True)
    SpearPreTrainedModel.auto_map = AUTO_MAP
    SpearPreTrainedModel.write_code = staticmethod(write_code)
