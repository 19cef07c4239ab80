"""Vector quantisation: frames of a teacher to tokens of one byte (or two) and back.

`Quantizer` is the multi-codebook quantiser that spear is about; beside it stand baselines with the
same interface. `load_quantizer` reads any of them.

Read `quantizers` (what they are), `search` (how codes are found), `training`; then `evaluation`
and `report` (how good one is; `interpretation` says it in words, `pictures` shows it) and
`command`, which puts all together. `usage` counts codes, for other packages too;
`multi_quantization` translates from and to the authors' own package.
"""

from spear.mvq.quantizers.codebooks import CodebookQuantizer
from spear.mvq.quantizers.kmeans import KMeansQuantizer
from spear.mvq.quantizers.loading import load_quantizer
from spear.mvq.quantizers.quantizer import Quantizer
from spear.mvq.quantizers.random_projection import RandomProjectionQuantizer
from spear.mvq.quantizers.residual import ResidualQuantizer
from spear.mvq.report import describe
from spear.mvq.training.baselines import BaselineBudget, train_baseline
from spear.mvq.training.budget import TrainingBudget
from spear.mvq.training.mvq import train_quantizer

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
