"""Models as others meet them: loading, exporting, Hugging Face classes.

Importing this package registers `SpearConfig` and `SpearModel` with transformers where it is
installed, so that `transformers.AutoModel.from_pretrained(folder)` works.
"""

import importlib.util

from spear.hub.encoder import EncoderOutput, SpearEncoder
from spear.hub.loading import from_pretrained

__all__ = ["EncoderOutput", "SpearEncoder", "from_pretrained"]

if importlib.util.find_spec("transformers") is not None:
    from spear.hub.hf import SpearConfig, SpearModel, register

    register()
    __all__ += ["SpearConfig", "SpearModel"]
