"""Multi-codebook vector quantisation: frames of a teacher to one-byte tokens and back."""

from spear.mvq.quantizer import Quantizer
from spear.mvq.report import describe
from spear.mvq.training import TrainingBudget, train_quantizer

__all__ = ["Quantizer", "TrainingBudget", "describe", "train_quantizer"]
