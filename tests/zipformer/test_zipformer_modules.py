"""The modules of a layer, each against a naive reference."""

import math

import pytest
import torch
from torch import Tensor

from spear.zipformer.frames import Frames
from spear.zipformer.layer import LayerShape, ZipformerLayer
from spear.zipformer.modules.activations import (
    SWOOSH_L,
    SWOOSH_R,
    Swoosh,
    SwooshDropoutLinear,
    SwooshShape,
    shared_dropout_mask,
    swoosh,
)
from spear.zipformer.modules.attention import AttentionWeights, NonlinAttention, SelfAttention
from spear.zipformer.modules.bypass import Bypass, add_branch, draw_kept
from spear.zipformer.modules.causal_convolution import ChunkCausalDepthwiseConv1d
from spear.zipformer.modules.convolution import DepthwiseConv1d
from spear.zipformer.modules.initialization import scaled_linear
from spear.zipformer.modules.norm import BiasNorm
from spear.zipformer.modules.positions import (
    RelativePositions,
    encode_offsets,
    relative_to_absolute,
)
from spear.zipformer.modules.resampling import Downsample, match_channels, upsample, widest


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


SHAPES = {"L": (SWOOSH_L, 4.0, 0.035), "R": (SWOOSH_R, 1.0, 0.313261687)}


@pytest.mark.parametrize(("shape", "offset", "constant"), SHAPES.values(), ids=SHAPES.keys())
def test_swoosh_values_and_derivative(shape: SwooshShape, offset: float, constant: float) -> None:
    x = torch.tensor([-100.0, -9.0, -1.0, 0.0, 1.0, 4.0, 7.5, 90.0, 500.0], requires_grad=True)
    y = Swoosh(shape)(x)
    y.sum().backward()
    for value, out, slope in zip(x.tolist(), y.tolist(), x.grad.tolist(), strict=True):
        z = value - offset
        softplus = z + math.log1p(math.exp(-z)) if z > 0 else math.log1p(math.exp(z))
        assert out == pytest.approx(softplus - 0.08 * value - constant, abs=1e-5, rel=1e-6)
        sigmoid = 1.0 / (1.0 + math.exp(-z)) if z > 0 else math.exp(z) / (1.0 + math.exp(z))
        assert slope == pytest.approx(sigmoid - 0.08, abs=1e-6)


def test_swoosh_r_is_zero_at_zero() -> None:
    assert float(swoosh(torch.zeros(1), SWOOSH_R)) == pytest.approx(0.0, abs=1e-6)


def test_memory_saving_linear_has_the_gradients_of_plain_operations() -> None:
    module = SwooshDropoutLinear(6, 5, SWOOSH_L, initial_scale=1.0, dropout=0.4).train()
    x = (torch.randn(3, 7, 6) * 4.0).requires_grad_()
    grad = torch.randn(3, 7, 5)
    torch.manual_seed(5)
    module(x).backward(grad)
    ours = [x.grad, module.weight.grad, module.bias.grad]
    torch.manual_seed(5)
    mask = shared_dropout_mask(x, 0.4)
    plain = torch.nn.functional.linear(swoosh(x, SWOOSH_L) * mask, module.weight, module.bias)
    theirs = torch.autograd.grad(plain, [x, module.weight, module.bias], grad)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-5)


def test_memory_saving_linear_under_autocast_stays_close_and_typed() -> None:
    module = SwooshDropoutLinear(16, 8, SWOOSH_R, initial_scale=1.0)
    x = torch.randn(2, 9, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    half.float().sum().backward()
    assert x.grad.dtype == module.weight.grad.dtype == torch.float32
    expected = torch.autograd.grad(module(x).sum(), [x, module.weight])
    torch.testing.assert_close(x.grad, expected[0], atol=0.05, rtol=0.05)
    torch.testing.assert_close(module.weight.grad, expected[1], atol=0.2, rtol=0.05)


def test_shared_dropout_drops_whole_channels_and_keeps_the_mean() -> None:
    mask = shared_dropout_mask(torch.zeros(50, 3, 200), 0.3)
    assert mask.shape == (50, 1, 200)
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.03)
    assert shared_dropout_mask(torch.zeros(2, 3, 4), 0.0) is None


def naive_bias_norm(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    return x / ((x - bias) ** 2).mean(dim=-1, keepdim=True).sqrt() * log_scale.exp()


@pytest.mark.parametrize("training", [True, False])
def test_bias_norm_and_its_gradients(training: bool) -> None:
    norm = BiasNorm(12).train(training)
    with torch.no_grad():
        norm.bias += torch.randn(12)
    x = (torch.randn(3, 5, 12) * 2.0 + 1.0).requires_grad_()
    grad = torch.randn(3, 5, 12)
    y = norm(x)
    expected = naive_bias_norm(x, norm.bias, norm.log_scale)
    torch.testing.assert_close(y, expected)
    inputs = [x, norm.bias, norm.log_scale]
    theirs = torch.autograd.grad(expected, inputs, grad)
    for ours, their in zip(torch.autograd.grad(y, inputs, grad), theirs, strict=True):
        torch.testing.assert_close(ours, their, atol=1e-5, rtol=1e-4)


def test_bias_norm_returns_float32_and_survives_a_frame_equal_to_its_bias() -> None:
    norm = BiasNorm(4)
    assert norm(norm.bias.detach().expand(1, 2, 4)).isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(torch.randn(1, 2, 4).to(torch.bfloat16)).dtype == torch.float32


def test_downsample_fills_groups_with_each_utterances_last_frame() -> None:
    module = Downsample(4)
    with torch.no_grad():
        module.bias += torch.randn(4)
    x, lens = torch.randn(4, 10, 3), [10, 5, 4, 1]
    y = module(x, Frames(torch.tensor(lens), 10))
    weights = module.bias.softmax(0)
    assert y.shape == (4, 3, 3)
    for row, length in enumerate(lens):
        for group in range(math.ceil(length / 4)):
            frames = [x[row, min(4 * group + k, length - 1)] for k in range(4)]
            expected = sum(w * frame for w, frame in zip(weights, frames, strict=True))
            torch.testing.assert_close(y[row, group], expected)


def test_upsample_repeats_and_cuts() -> None:
    x = torch.arange(6.0).view(1, 3, 2)
    expected = torch.tensor([[[0.0, 1.0]] * 3 + [[2.0, 3.0]] * 3 + [[4.0, 5.0]]])
    assert torch.equal(upsample(x, 3, 7), expected)
    assert upsample(x, 1, 3) is x


def test_channels_are_matched_and_joined_from_the_last_stack_that_has_them() -> None:
    x = torch.ones(1, 1, 3)
    assert match_channels(x, 2).shape == (1, 1, 2)
    assert match_channels(x, 5)[0, 0].tolist() == [1, 1, 1, 0, 0]
    outputs = [torch.full((1, 1, dim), float(i)) for i, dim in enumerate((2, 5, 4, 3))]
    assert widest(outputs)[0, 0].tolist() == [3, 3, 3, 2, 1]


@pytest.mark.parametrize(("num_targets", "num_sources"), [(1, 1), (2, 2), (7, 7), (3, 8), (1, 4)])
def test_relative_scores_become_absolute(num_targets: int, num_sources: int) -> None:
    num_offsets = num_targets + num_sources - 1
    scores = torch.randn(2, 3, num_targets, num_offsets, requires_grad=True)
    absolute = relative_to_absolute(scores, num_sources)
    assert absolute.shape == (2, 3, num_targets, num_sources)
    for i in range(num_targets):
        for j in range(num_sources):
            expected = scores[:, :, i, num_targets - 1 + j - i]
            assert torch.equal(absolute[:, :, i, j], expected)
    absolute.sum().backward()
    assert float(scores.grad.sum()) == 6 * num_targets * num_sources


def test_position_encoding_is_the_formula() -> None:
    encoding = encode_offsets(50, 8, torch.device("cpu"))
    assert encoding.shape == (99, 8)
    for row, offset in ((0, -49), (49, 0), (50, 1), (98, 49)):
        knee = math.sqrt(8)
        sign = (offset > 0) - (offset < 0)
        compressed = knee * sign * (math.log(abs(offset) + knee) - math.log(knee))
        angle = math.atan(compressed / (8 / (2 * math.pi)))
        expected = [f(angle * k) for k in range(1, 5) for f in (math.cos, math.sin)]
        expected[-1] = 1.0
        assert encoding[row].tolist() == pytest.approx(expected, abs=1e-5)


def test_positions_of_long_inputs_extend_the_table() -> None:
    positions = RelativePositions(8).eval()
    short = positions(torch.zeros(1, 5, 8))
    long = positions(torch.zeros(1, 3000, 8))
    assert long.shape == (5999, 8)
    torch.testing.assert_close(long[2999 - 4 : 2999 + 5], short)


def test_positions_reach_back_to_remembered_frames() -> None:
    positions = RelativePositions(8).eval()
    encoding = positions(torch.zeros(1, 3, 8), num_remembered=4)  # offsets -6 ... 2
    torch.testing.assert_close(encoding, positions(torch.zeros(1, 7, 8))[:9])


def naive_attention(module: AttentionWeights, x: Tensor, positions: Tensor, length: int) -> Tensor:
    """Scores frame by frame and head by head, for one utterance (T, dim)."""
    num_heads, num_frames = module.num_heads, x.shape[0]
    query, key, pos_query = module.in_proj(x).split(
        (module.query_dim, module.query_dim, module.pos_dim), dim=1
    )
    relative = module.linear_pos(positions)
    weights = torch.zeros(num_heads, num_frames, num_frames)
    for head in range(num_heads):
        q, k, p, r = (t.chunk(num_heads, dim=1)[head] for t in (query, key, pos_query, relative))
        for i in range(num_frames):
            scores = [q[i] @ k[j] + p[i] @ r[num_frames - 1 + j - i] for j in range(length)]
            weights[head, i, :length] = torch.stack(scores).softmax(0)
    return weights


def test_attention_weights_are_the_formula_and_blind_to_padding() -> None:
    module = AttentionWeights(10, 8, num_heads=2, query_head_dim=6, pos_head_dim=3).eval()
    x, lens = torch.randn(2, 7, 10), [7, 4]
    positions = RelativePositions(8).eval()(x)
    weights, again, one_head = module(x, positions, Frames(torch.tensor(lens), 7))
    assert torch.equal(again, weights) and torch.equal(one_head, weights[:, 0])
    for row, length in enumerate(lens):
        expected = naive_attention(module, x[row], positions, length)
        torch.testing.assert_close(weights[row], expected, atol=1e-6, rtol=1e-5)


def test_the_users_of_attention_weights_are_their_formulae() -> None:
    weights = torch.rand(2, 3, 5, 5).softmax(-1)
    x = torch.randn(2, 5, 8)
    attention, gated = SelfAttention(8, 3, 4).eval(), NonlinAttention(8, 6).eval()
    values = attention.in_proj(x).view(2, 5, 3, 4)
    mixed = torch.einsum("bhts,bshd->bthd", weights, values).reshape(2, 5, 12)
    torch.testing.assert_close(attention(x, weights), attention.out_proj(mixed))
    s, v, y = gated.in_proj(x).split(6, dim=-1)
    expected = gated.out_proj((weights[:, 0] @ (v * torch.tanh(s))) * y)
    torch.testing.assert_close(gated(x, weights[:, 0]), expected)


def test_chunk_masks_show_own_chunk_and_some_before() -> None:
    frames = Frames(torch.tensor([7, 5]), 7, chunk_size=2, left_context_chunks=1)
    for row, length in enumerate((7, 5)):
        for i in range(7):
            for j in range(7):
                visible = j < length and 0 <= i // 2 - j // 2 <= 1
                assert bool(frames.hidden[row, 0, i, j]) is not visible


def test_frames_at_a_lower_rate_round_up() -> None:
    low = Frames(torch.tensor([9, 8, 1, 0]), 9, chunk_size=8).downsampled(4)
    assert low.lens.tolist() == [3, 2, 1, 0]
    assert (low.num_frames, low.chunk_size) == (3, 2)


def test_depthwise_convolution_is_the_one_dimensional_one() -> None:
    conv = DepthwiseConv1d(6, 5)
    x = torch.randn(2, 9, 6)
    plain = torch.nn.functional.conv1d(
        x.transpose(1, 2), conv.weight, conv.bias, padding=2, groups=6
    )
    torch.testing.assert_close(conv(x, Frames(torch.tensor([9, 9]), 9)), plain.transpose(1, 2))


@pytest.mark.parametrize("chunk_size", [-1, 2, 3, 20])
def test_chunk_causal_convolution_is_its_definition(chunk_size: int) -> None:
    kernel, num_frames = 5, 8
    conv = ChunkCausalDepthwiseConv1d(1, kernel)
    with torch.no_grad():
        conv.chunkwise_conv_scale.normal_()
    x = torch.randn(1, num_frames, 1)
    ours = conv(x, Frames(torch.tensor([num_frames]), num_frames, chunk_size=chunk_size))[0, :, 0]
    size = num_frames if chunk_size < 0 or chunk_size > num_frames else chunk_size
    left, right = conv.chunkwise_conv_scale[:, 0]
    for t in range(num_frames):
        begin = t // size * size
        causal, chunk = conv.causal_conv.bias[0].clone(), conv.chunkwise_conv.bias[0].clone()
        for k in range(3):
            if t - 2 + k >= 0:
                causal += conv.causal_conv.weight[0, 0, k] * x[0, t - 2 + k, 0]
        for k in range(kernel):
            source = t - 2 + k
            if begin <= source < min(begin + size, num_frames):
                chunk += conv.chunkwise_conv.weight[0, 0, k] * x[0, source, 0]
        scale = 1.0
        if t - begin < kernel:
            scale = scale + left[t - begin]
        if t - begin - size + kernel >= 0:
            scale = scale + right[t - begin - size + kernel]
        torch.testing.assert_close(ours[t], causal + scale * chunk, atol=1e-5, rtol=1e-5)


def test_bypass_mixes_by_channel() -> None:
    bypass = Bypass(3)
    with torch.no_grad():
        bypass.bypass_scale.copy_(torch.tensor([0.0, 0.5, 1.0]))
    before, after = torch.zeros(4, 2, 3), torch.ones(4, 2, 3)
    for training in (False, True):
        mixed = bypass.train(training)(before, after)
        assert torch.equal(mixed[0, 0], torch.tensor([0.0, 0.5, 1.0]))


LAYER = LayerShape(
    dim=12, pos_dim=8, num_heads=2, query_head_dim=4, pos_head_dim=2, value_head_dim=4,
    feedforward_dim=16, kernel_size=5, causal=False,
)  # fmt: skip


def run_layer(layer: ZipformerLayer, x: Tensor) -> Tensor:
    positions = RelativePositions(8).eval()(x)
    output: Tensor = layer(x, positions, Frames(torch.full((len(x),), x.shape[1]), x.shape[1]))
    return output


def test_a_skipped_layer_is_left_out_for_whole_utterances() -> None:
    layer, x = ZipformerLayer(LAYER, dropout=0.0, skip_rate=0.5), torch.randn(300, 4, 12)
    output = run_layer(layer.train(), x)
    skipped = (output == x).all(dim=(1, 2))
    assert float(skipped.float().mean()) == pytest.approx(0.5, abs=0.12)
    # Without schedules nothing else is random in the values: the others went through the layer.
    expected = run_layer(layer.eval(), x)
    torch.testing.assert_close(output[~skipped], expected[~skipped], atol=1e-5, rtol=1e-5)
    assert (expected != x).any(dim=2).all()


def test_a_layer_that_all_skip_still_gives_every_parameter_a_gradient() -> None:
    layer = ZipformerLayer(LAYER, dropout=0.0, skip_rate=1.0).train()
    x = torch.randn(2, 4, 12)
    output = run_layer(layer, x)
    assert torch.equal(output, x)
    output.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_branches_are_dropped_for_whole_utterances_and_without_rescaling() -> None:
    x, branch = torch.zeros(500, 2, 2), torch.ones(500, 2, 2)
    sums = add_branch(x, branch, draw_kept(x, 0.2, training=True)).sum(dim=(1, 2))
    assert set(sums.tolist()) == {0.0, 4.0}
    assert float((sums == 0).float().mean()) == pytest.approx(0.2, abs=0.07)
    assert draw_kept(x, 0.2, training=False) is None
    assert torch.equal(add_branch(x, branch, None), branch)


def test_scaled_layers_begin_small() -> None:
    layer = scaled_linear(100, 50, initial_scale=0.05).requires_grad_(False)
    assert float(layer.weight.abs().max()) <= 0.05 * 0.1 + 1e-9  # 1 / sqrt(100)
    assert float(layer.bias.abs().max()) <= 0.005
