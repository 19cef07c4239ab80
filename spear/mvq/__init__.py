"""Vector quantisation: frames of a teacher to tokens of one byte (or two) and back.

`Quantizer` is the multi-codebook quantiser that spear is about; beside it stand baselines with the
same interface. `load_quantizer` reads any of them.
"""

from spear.mvq.baselines import BaselineBudget, train_baseline
from spear.mvq.budget import TrainingBudget
from spear.mvq.codebooks import CodebookQuantizer
from spear.mvq.kinds import load_quantizer
from spear.mvq.kmeans import KMeansQuantizer
from spear.mvq.quantizer import Quantizer
from spear.mvq.random_projection import RandomProjectionQuantizer
from spear.mvq.report import describe
from spear.mvq.residual import ResidualQuantizer
from spear.mvq.training import train_quantizer

__all__ = [
    "BaselineBudget",
    "CodebookQuantizer",
    "KMeansQuantizer",
    "Quantizer",
    "RandomProjectionQuantizer",
    "ResidualQuantizer",
    "TrainingBudget",
    "describe",
    "load_quantizer",
    "train_baseline",
    "train_quantizer",
]
