"""Audio tagging with a pre-trained encoder: labels, balance, pooling, fine-tuning, scoring.

from spear.tagging import Tagger, load_tagging_model

model = load_tagging_model("exp/tagging")
probabilities = next(Tagger(model).probabilities([audio]))  # (C,), of model.classes.names
"""

from spear.tagging.apply import Tagger
from spear.tagging.labels import Classes
from spear.tagging.model import TaggingModel, load_tagging_model

__all__ = ["Classes", "Tagger", "TaggingModel", "load_tagging_model"]
