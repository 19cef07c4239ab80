"""A Zipformer small enough to train within a test."""

from collections.abc import Callable
from typing import Any

import pytest

from spear.zipformer import ZipformerConfig


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ZipformerConfig]:
    def build(**changes: Any) -> ZipformerConfig:
        values: dict[str, Any] = {
            "feature_dim": 20,
            "downsampling_factor": (1, 2, 4),
            "encoder_dim": (24, 40, 32),
            "num_encoder_layers": (1, 2, 1),
            "encoder_unmasked_dim": (16, 24, 24),
            "query_head_dim": 8,
            "num_heads": 2,
            "feedforward_dim": 32,
            "cnn_module_kernel": (7, 7, 5),
            "pos_dim": 8,
            "embed_channels": (4, 8, 16),
        }
        return ZipformerConfig.from_dict({**values, **changes})

    return build
