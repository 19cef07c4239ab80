"""SPEAR models as classes of transformers; importing this package registers them.

`config` is what `config.json` says, `features` pads recordings, `model` holds the encoder, alone or
with a head, and takes its audio by `inputs`. `spear.hub.remote_code` writes these files into
exported folders.
"""

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
from spear.hub.remote_code import AUTO_MAP, write_code

__all__ = [
    "SpearConfig",
    "SpearFeatureExtractor",
    "SpearForAudioClassification",
    "SpearForCTC",
    "SpearModel",
    "SpearModelOutput",
]

AutoConfig.register(MODEL_TYPE, SpearConfig, exist_ok=True)
AutoFeatureExtractor.register(SpearConfig, SpearFeatureExtractor, exist_ok=True)
AutoModel.register(SpearConfig, SpearModel, exist_ok=True)
AutoModelForCTC.register(SpearConfig, SpearForCTC, exist_ok=True)
AutoModelForAudioClassification.register(SpearConfig, SpearForAudioClassification, exist_ok=True)
SpearPreTrainedModel.auto_map = AUTO_MAP
SpearPreTrainedModel.write_code = staticmethod(write_code)
