"""Which layers are read: the right ones, with the right parameters idle, at either rate."""

import pytest
import torch

from spear.asr.layer_mix import LayerMix, idle_parameters, parse_layers, read_frames
from spear.errors import ConfigError
from spear.zipformer import Zipformer, ZipformerConfig


def make_encoder(**changes):
    torch.manual_seed(0)
    config = ZipformerConfig(
        feature_dim=40,
        downsampling_factor=(1, 2),
        encoder_dim=(24, 32),
        num_encoder_layers=(1, 2),
        encoder_unmasked_dim=(24,),
        query_head_dim=(8,),
        value_head_dim=(4,),
        num_heads=(2,),
        feedforward_dim=(32,),
        cnn_module_kernel=(7,),
        embed_channels=(2, 4, 8),
        **changes,
    )
    return Zipformer(config).eval()


FBANK, LENS = torch.randn(2, 60, 40, generator=torch.manual_seed(1)), torch.tensor([60, 41])


def test_words_for_layers():
    assert parse_layers("last", 3) is None
    assert parse_layers("weighted", 3) == [0, 1, 2, 3]
    assert parse_layers("2", 3) == [2]
    for text in ("4", "first", "-1", "1.5"):
        with pytest.raises(ConfigError):
            parse_layers(text, 3)


@torch.no_grad()
def test_one_layer_is_that_layer_filled_up():
    encoder = make_encoder()
    encoded = encoder(FBANK, LENS)
    assert read_frames(encoder, encoded, LENS, None) is encoded.output
    frames = read_frames(encoder, encoded, LENS, LayerMix([1], 32))
    assert frames.shape == encoded.output.shape
    torch.testing.assert_close(frames[..., :24], encoded.layer(1))
    assert not frames[..., 24:].any()


@torch.no_grad()
def test_a_mixture_is_a_weighted_mean():
    encoder = make_encoder()
    encoded = encoder(FBANK, LENS)
    mix = LayerMix([2, 3], 32)
    mean = (encoded.layer(2) + encoded.layer(3)) / 2
    torch.testing.assert_close(read_frames(encoder, encoded, LENS, mix), mean)
    mix.weights.copy_(torch.tensor([0.0, 30.0]))
    torch.testing.assert_close(read_frames(encoder, encoded, LENS, mix), encoded.layer(3))


@torch.no_grad()
@pytest.mark.parametrize("frontend_pad", [True, False])
def test_at_25_hz_batch_mates_change_nothing(frontend_pad):
    encoder = make_encoder(output_downsampling_factor=2, frontend_pad=frontend_pad)
    mix = LayerMix([0, 1, 2, 3], 32)
    encoded = encoder(FBANK, LENS)
    frames = read_frames(encoder, encoded, LENS, mix)
    assert frames.shape == encoded.output.shape
    alone = encoder(FBANK[1:, :41], LENS[1:])
    num_frames = int(alone.lens)
    expected = read_frames(encoder, alone, LENS[1:], mix)
    torch.testing.assert_close(frames[1:, :num_frames], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_nothing_comes_of_nothing():
    encoder = make_encoder(output_downsampling_factor=2)
    short, lens = torch.zeros(1, 1, 40), torch.tensor([1])
    frames = read_frames(encoder, encoder(short, lens), lens, LayerMix([1], 32))
    assert frames.shape == (1, 0, 32)


@pytest.mark.parametrize(("layers", "some_idle"), [([0], True), ([1], True), ([3], True)])
def test_idle_parameters_change_nothing(layers, some_idle):
    encoder = make_encoder()
    mix = LayerMix(layers, 32)
    idle = idle_parameters(encoder, mix)
    assert bool(idle) == some_idle
    encoded = encoder(FBANK, LENS)
    before = read_frames(encoder, encoded, LENS, mix)
    named = dict(encoder.named_parameters())
    gradients = torch.autograd.grad(before.square().sum(), named.values(), allow_unused=True)
    assert {n for n, g in zip(named, gradients, strict=True) if g is None} == idle
    with torch.no_grad():
        for name in idle:
            named[name].add_(1.0)
    torch.testing.assert_close(read_frames(encoder, encoder(FBANK, LENS), LENS, mix), before)
    assert not encoder.training
