"""The configuration: per-stack numbers, plain values, and errors that say what is wrong."""

import json
from typing import Any

import pytest

from spear.errors import ConfigError
from spear.zipformer import ZipformerConfig


def test_one_number_is_meant_for_every_stack() -> None:
    config = ZipformerConfig.from_dict(
        {
            "downsampling_factor": [1, 2],
            "cnn_module_kernel": 31,
            "encoder_dim": [300],
            "num_encoder_layers": (1, 2),
        }
    )
    assert config.encoder_dim == (300, 300)
    assert config.cnn_module_kernel == (31, 31)
    assert config.num_encoder_layers == (1, 2)
    assert config.num_stacks == 2


def test_another_number_of_stacks_can_be_laid_over_expanded_defaults() -> None:
    changes = {"downsampling_factor": [1, 2], "num_encoder_layers": [1], "cnn_module_kernel": [15]}
    config = ZipformerConfig.from_dict({**ZipformerConfig().to_dict(), **changes})
    assert config.encoder_dim == (512, 512)
    assert config == ZipformerConfig.from_dict(changes)


def test_a_configuration_survives_json() -> None:
    config = ZipformerConfig.named("large", causal=True, chunk_size=(16, -1), dropout=0.2)
    text = json.dumps(config.to_dict())
    assert ZipformerConfig.from_dict(json.loads(text)) == config


def test_defaults_are_the_base_model_of_the_paper() -> None:
    config = ZipformerConfig()
    assert config == ZipformerConfig.named("base")
    assert config.encoder_dim == (512,) * 7
    assert config.feedforward_dim == (1536,) * 7
    assert config.num_encoder_layers == (1, 2, 3, 3, 1, 1, 1)
    assert config.downsampling_factor == (1, 2, 4, 8, 4, 2, 1)
    assert config.cnn_module_kernel == (31, 31, 15, 15, 15, 31, 31)
    assert (config.query_head_dim[0], config.value_head_dim[0], config.pos_head_dim[0]) == (
        32,
        12,
        4,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder_dims": (512,)}, "no field 'encoder_dims'.*'encoder_dim'"),
        ({"encoder_dim": (512, 512)}, "encoder_dim has 2 numbers for 7 stacks"),
        ({"encoder_unmasked_dim": (513,)}, "none may be above"),
        ({"cnn_module_kernel": (30,)}, "must be odd"),
        ({"num_heads": (0,)}, "must be positive"),
        ({"num_heads": 2.5}, "whole number"),
        ({"num_heads": "8"}, "whole number"),
        ({"downsampling_factor": ()}, "whole number"),
        ({"pos_dim": 47}, "must be even"),
        ({"feature_dim": 6}, "at least 7"),
        ({"output_downsampling_factor": 3}, "must be 1 or 2"),
        ({"embed_channels": (8, 32)}, "three convolutions"),
        ({"dropout": 1.0}, "below 1"),
        ({"warmup_batches": 0.0}, "must be positive"),
        ({"causal": True, "chunk_size": (12,)}, "multiple of every downsampling factor"),
        ({"causal": True, "left_context_frames": (0,)}, "must be -1 or positive"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ZipformerConfig.from_dict(values)


def test_chunks_are_not_looked_at_without_causal() -> None:
    assert ZipformerConfig.from_dict({"chunk_size": 12}).chunk_size == (12,)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="base, large, xlarge"):
        ZipformerConfig.named("huge")
