"""Chunk by chunk against the masked pass over the whole."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spear.errors import ConfigError, DataError
from spear.zipformer import (
    StreamingZipformer,
    StreamState,
    Zipformer,
    ZipformerConfig,
    ZipformerStream,
)

Build = Callable[..., ZipformerConfig]
STREAMING = {"causal": True, "chunk_size": 8, "left_context_frames": 16}
VARIANTS = {
    "padded": {},
    "unpadded": {"frontend_pad": False},
    "25 Hz": {"output_downsampling_factor": 2},
    "one chunk of context": {"left_context_frames": 8},
    "long context": {"left_context_frames": 64},
    "long chunks": {"chunk_size": 32},
    "several trained": {"chunk_size": (16, -1, 8), "left_context_frames": (-1, 32, 16)},
}


def random_model(config: ZipformerConfig) -> Zipformer:
    torch.manual_seed(0)
    model = Zipformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def whole(model: Zipformer, fbank: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(fbank.unsqueeze(0), torch.tensor([len(fbank)])).output[0]
    return output


def streamed(model: Zipformer, fbank: Tensor, pieces: list[int]) -> Tensor:
    stream = ZipformerStream(model)
    outputs = [stream.push(piece) for piece in fbank.split(pieces)]
    return torch.cat([*outputs, stream.finish()])


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("num_frames", [0, 1, 2, 8, 9, 15, 16, 17, 31, 50, 64, 163, 300])
def test_a_stream_gives_what_the_masked_pass_gives(
    tiny_config: Build, changes: dict[str, object], num_frames: int
) -> None:
    model = random_model(tiny_config(**{**STREAMING, **changes}))
    fbank = torch.randn(num_frames, 20) * 3.0 - 8.0
    expected = whole(model, fbank)
    pieces = [num_frames // 3, num_frames // 7]
    output = streamed(model, fbank, [*pieces, num_frames - sum(pieces)])
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=0.0)


def test_frames_come_out_as_soon_as_they_can(tiny_config: Build) -> None:
    stream = ZipformerStream(random_model(tiny_config(**STREAMING)))
    fbank = torch.randn(100, 20)
    given = [len(stream.push(fbank[i : i + 1])) for i in range(100)]
    # 29 frames make a step, 3 of them are padding before the first; 16 more make the next.
    assert [i + 1 for i, n in enumerate(given) if n] == [26, 42, 58, 74, 90]
    assert set(given) == {0, 8}
    assert len(stream.finish()) == 100 // 2 - 5 * 8


def test_streams_that_began_apart_share_a_batch(tiny_config: Build) -> None:
    model = random_model(tiny_config(**STREAMING, frontend_pad=False))
    streaming = StreamingZipformer(model)
    fbanks = [torch.randn(64 + 29, 20), torch.randn(32 + 29, 20)]

    def window(stream: int, k: int) -> Tensor:
        return fbanks[stream][None, 16 * k : 16 * k + streaming.num_input_frames]

    ahead = torch.tensor([100])
    outputs: list[list[Tensor]] = [[], []]
    state = streaming.initial_state()
    for k in range(2):  # the first stream is two chunks ahead
        output, _, state = streaming.step(window(0, k), ahead, state)
        outputs[0].append(output[0])
    state = StreamState.join([state, streaming.initial_state()])
    for k in range(2):
        both = torch.cat((window(0, k + 2), window(1, k)))
        output, lens, state = streaming.step(both, ahead.expand(2), state)
        assert lens.tolist() == [8, 8]
        for stream in range(2):
            outputs[stream].append(output[stream])
    first, _ = state.split()
    outputs[0].append(streaming.step(window(0, 4), ahead, first)[0][0])
    for fbank, pieces in zip(fbanks, outputs, strict=True):
        own = torch.cat(pieces)
        torch.testing.assert_close(own, whole(model, fbank)[: len(own)], atol=1e-4, rtol=0.0)


def test_a_step_does_not_change_the_state_it_is_given(tiny_config: Build) -> None:
    streaming = StreamingZipformer(random_model(tiny_config(**STREAMING)))
    fbank, ahead = torch.randn(1, streaming.num_input_frames, 20), torch.tensor([11])
    _, _, state = streaming.step(fbank, ahead, streaming.initial_state())
    once = streaming.step(fbank, ahead, state)[0]
    assert torch.equal(once, streaming.step(fbank, ahead, state)[0])


def test_memory_does_not_grow_with_the_stream(tiny_config: Build) -> None:
    streaming = StreamingZipformer(random_model(tiny_config(**STREAMING)))
    state = streaming.initial_state()
    sizes = []
    for _ in range(6):
        fbank = torch.randn(1, streaming.num_input_frames, 20)
        _, _, state = streaming.step(fbank, torch.tensor([11]), state)
        sizes.append(sum(x.numel() for layer in state.layers for x in layer.values()))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(
    "changes", [{"causal": False}, {"chunk_size": -1}, {"left_context_frames": -1}]
)
def test_what_cannot_stream_says_why(tiny_config: Build, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="cannot stream"):
        ZipformerStream(Zipformer(tiny_config(**{**STREAMING, **changes})))


def test_inputs_of_another_shape_are_refused(tiny_config: Build) -> None:
    model = Zipformer(tiny_config(**STREAMING)).eval()
    stream = ZipformerStream(model)
    with pytest.raises(DataError, match="expected"):
        stream.push(torch.zeros(10, 21))
    stream.finish()
    for call in (stream.finish, lambda: stream.push(torch.zeros(1, 20))):
        with pytest.raises(DataError, match="has ended"):
            call()
    streaming = StreamingZipformer(model)
    with pytest.raises(DataError, match="a step takes"):
        streaming.step(torch.zeros(1, 5, 20), torch.tensor([9]), streaming.initial_state())
