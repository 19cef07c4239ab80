"""Weights load whole or not at all, under icefall's names."""

from collections.abc import Callable

import pytest
import torch

from spear.errors import CheckpointError
from spear.zipformer import Zipformer, ZipformerConfig, load_exact, set_schedule

Build = Callable[..., ZipformerConfig]

LAYER_NAMES = [
    "bypass_scale",
    "bypass.bypass_scale",
    "bypass_mid.bypass_scale",
    "norm.log_scale",
    "norm.bias",
    "self_attn_weights.in_proj.weight",
    "self_attn_weights.in_proj.bias",
    "self_attn_weights.linear_pos.weight",
    "self_attn1.in_proj.weight",
    "self_attn1.in_proj.bias",
    "self_attn1.out_proj.weight",
    "self_attn1.out_proj.bias",
    "self_attn2.in_proj.weight",
    "self_attn2.in_proj.bias",
    "self_attn2.out_proj.weight",
    "self_attn2.out_proj.bias",
    "feed_forward1.in_proj.weight",
    "feed_forward1.in_proj.bias",
    "feed_forward1.out_proj.weight",
    "feed_forward1.out_proj.bias",
    "feed_forward2.in_proj.weight",
    "feed_forward2.in_proj.bias",
    "feed_forward2.out_proj.weight",
    "feed_forward2.out_proj.bias",
    "feed_forward3.in_proj.weight",
    "feed_forward3.in_proj.bias",
    "feed_forward3.out_proj.weight",
    "feed_forward3.out_proj.bias",
    "nonlin_attention.in_proj.weight",
    "nonlin_attention.in_proj.bias",
    "nonlin_attention.out_proj.weight",
    "nonlin_attention.out_proj.bias",
    "conv_module1.in_proj.weight",
    "conv_module1.in_proj.bias",
    "conv_module1.depthwise_conv.weight",
    "conv_module1.depthwise_conv.bias",
    "conv_module1.out_proj.weight",
    "conv_module1.out_proj.bias",
    "conv_module2.in_proj.weight",
    "conv_module2.in_proj.bias",
    "conv_module2.depthwise_conv.weight",
    "conv_module2.depthwise_conv.bias",
    "conv_module2.out_proj.weight",
    "conv_module2.out_proj.bias",
]


def test_state_dict_has_icefalls_names_and_no_others(tiny_config: Build) -> None:
    model = Zipformer(tiny_config(output_downsampling_factor=2))
    names = set(model.state_dict())
    prefixes = ["encoders.0", "encoders.1.encoder", "encoders.2.encoder"]
    layers = [f"encoder.{prefix}.layers.0." for prefix in prefixes]
    layers.append("encoder.encoders.1.encoder.layers.1.")
    expected = {prefix + name for prefix in layers for name in LAYER_NAMES}
    for stack in (1, 2):
        expected.add(f"encoder.encoders.{stack}.downsample.bias")
        expected.add(f"encoder.encoders.{stack}.out_combiner.bypass_scale")
    expected.add("encoder.downsample_output.bias")
    assert {name for name in names if name.startswith("encoder.")} == expected
    embed = {name.rsplit(".", 1)[0] for name in names - expected}
    assert embed == {
        f"encoder_embed.{name}"
        for name in ("conv.0", "conv.4", "conv.7", "convnext.depthwise_conv", "out", "out_norm")
    } | {f"encoder_embed.convnext.pointwise_conv{i}" for i in (1, 2)}


def test_the_state_does_not_depend_on_the_schedule(tiny_config: Build) -> None:
    model = Zipformer(tiny_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_schedule(model, 12345.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_load_exactly(tiny_config: Build) -> None:
    source, target = Zipformer(tiny_config()), Zipformer(tiny_config())
    load_exact(target, source.state_dict(), "a file")
    assert all(
        torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items()
    )


def test_an_error_lists_names_and_shapes_and_changes_nothing(tiny_config: Build) -> None:
    model = Zipformer(tiny_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1.0 for name, value in before.items()}
    del state["encoder_embed.out.bias"]
    state["encoder.extra"] = torch.zeros(1)
    state["encoder_embed.out_norm.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        load_exact(model, state, "exp/model.safetensors")
    message = str(caught.value)
    assert message.startswith("exp/model.safetensors does not fit")
    assert "1 missing: encoder_embed.out.bias" in message
    assert "1 unexpected: encoder.extra" in message
    assert "encoder_embed.out_norm.bias (7,) instead of (24,)" in message
    assert "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_long_list_is_cut(tiny_config: Build) -> None:
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more"):
        load_exact(Zipformer(tiny_config()), {}, "empty")
