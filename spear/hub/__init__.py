"""Models as others meet them: loading, exporting, and what other tools want of them.

Importing this package registers our classes with transformers where it is installed, so that
`transformers.AutoModel.from_pretrained(folder)` works.
"""

import importlib.util

from spear.encoders.encoder import EncoderOutput, SpearEncoder
from spear.encoders.loading import from_pretrained

__all__ = ["EncoderOutput", "SpearEncoder", "from_pretrained"]

if importlib.util.find_spec("transformers") is not None:
    from spear.hub.hf.register import (
        SpearConfig,
        SpearFeatureExtractor,
        SpearForAudioClassification,
        SpearForCTC,
        SpearModel,
        register,
    )

    register()
    __all__ += [
        "SpearConfig",
        "SpearFeatureExtractor",
        "SpearForAudioClassification",
        "SpearForCTC",
        "SpearModel",
    ]
