"""Every submodule that looks sideways: what an utterance gets does not depend on its padding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spear.zipformer.config import ZipformerConfig
from spear.zipformer.frames import Frames
from spear.zipformer.layer import LayerShape, ZipformerLayer
from spear.zipformer.modules.attention import AttentionWeights, SelfAttention
from spear.zipformer.modules.convolution import ConvolutionModule
from spear.zipformer.modules.positions import RelativePositions
from spear.zipformer.modules.resampling import Downsample
from spear.zipformer.subsampling import Conv2dSubsampling

DIM = 12
Run = Callable[[Tensor, Frames], Tensor]
CHUNKS = {"chunk_size": 8, "left_context_chunks": 1}


def convolution(causal: bool) -> Run:
    return ConvolutionModule(DIM, 7, causal).eval()


def attention(_: bool) -> Run:
    weights = AttentionWeights(DIM, 8, num_heads=2, query_head_dim=4, pos_head_dim=2).eval()
    values, positions = SelfAttention(DIM, 2, 4).eval(), RelativePositions(8).eval()
    return lambda x, frames: values(x, weights(x, positions(x), frames).first)


def layer(causal: bool) -> Run:
    shape = LayerShape(
        dim=DIM, pos_dim=8, num_heads=2, query_head_dim=4, pos_head_dim=2, value_head_dim=4,
        feedforward_dim=16, kernel_size=7, causal=causal,
    )  # fmt: skip
    module, positions = ZipformerLayer(shape, 0.0, 0.0).eval(), RelativePositions(8).eval()
    return lambda x, frames: module(x, positions(x), frames)


def pooling(_: bool) -> Run:
    return Downsample(4).eval()


@torch.no_grad()
@pytest.mark.parametrize("build", [convolution, attention, layer, pooling])
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
def test_random_lengths_and_wild_padding(build: Callable[[bool], Run], causal: bool) -> None:
    torch.manual_seed(5)
    run = build(causal)
    for _ in range(5):
        lens = torch.randint(1, 70, (4,))
        x = torch.randn(4, int(lens.max()), DIM)
        for row, length in enumerate(lens.tolist()):
            x[row, length:] = 1e6
        chunks = CHUNKS if causal else {}
        together = run(x, Frames(lens, x.shape[1], **chunks))
        for row, length in enumerate(lens.tolist()):
            one = torch.tensor([length])
            alone = run(x[row : row + 1, :length], Frames(one, length, **chunks))
            ours = together[row, : alone.shape[1]]
            difference = float((ours - alone[0]).abs().max())
            assert difference < 1e-4, (lens.tolist(), row, difference)


@torch.no_grad()
@pytest.mark.parametrize("frontend_pad", [True, False])
def test_the_front_end_is_blind_to_padding(frontend_pad: bool) -> None:
    torch.manual_seed(5)
    config = ZipformerConfig(feature_dim=20, encoder_dim=(DIM,), encoder_unmasked_dim=(DIM,),
                             embed_channels=(2, 4, 8), frontend_pad=frontend_pad)  # fmt: skip
    module = Conv2dSubsampling(config, 0.0).eval()
    for _ in range(5):
        lens = torch.randint(9, 90, (4,))
        fbank = torch.randn(4, int(lens.max()), 20) * 3.0 - 8.0
        for row, length in enumerate(lens.tolist()):
            fbank[row, length:] = float("nan")
        together, out_lens = module(fbank, lens)
        for row, length in enumerate(lens.tolist()):
            alone = module(fbank[row : row + 1, :length], torch.tensor([length]))[0][0]
            assert len(alone) == int(out_lens[row])
            difference = float((together[row, : len(alone)] - alone).abs().max())
            assert difference < 1e-4, (lens.tolist(), row, difference)
