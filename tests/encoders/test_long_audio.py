"""Long recordings in windows, and streams of audio, against one pass over the whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spear.audio import Fbank
from spear.audio.fbank_stream import FbankStream
from spear.encoders.encoder import SpearEncoder
from spear.errors import AudioError, ConfigError
from spear.zipformer import ZipformerConfig

RATES = (1, 2, 4, 8, 4, 2, 1)
SMALL: dict[str, object] = {
    "downsampling_factor": RATES,
    "encoder_dim": 24,
    "encoder_unmasked_dim": 16,
    "num_encoder_layers": 1,
    "query_head_dim": 8,
    "num_heads": 2,
    "feedforward_dim": 32,
    "cnn_module_kernel": (7, 7, 5, 5, 5, 7, 7),
    "pos_dim": 8,
    "embed_channels": (2, 4, 8),
}


def encoder(**changes: object) -> SpearEncoder:
    torch.manual_seed(0)
    model = SpearEncoder(ZipformerConfig.from_dict({**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def without_attention(model: SpearEncoder) -> SpearEncoder:
    """Leaves what sees only near frames, so that windows can give the numbers of one pass."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn" in name or "nonlin_attention" in name:
                parameter.zero_()
    return model


def noise(seconds: float) -> Tensor:
    generator = torch.Generator().manual_seed(int(seconds * 100))
    return 0.1 * torch.randn(int(seconds * 16000), generator=generator)


@pytest.mark.parametrize("pieces", [[1], [159, 1, 7], [16000], [5, 24000, 1, 1, 481]])
def test_features_in_pieces_are_those_of_the_whole(pieces: list[int]) -> None:
    fbank, audio = Fbank(), noise(2.03)
    stream, outputs, at = FbankStream(fbank), [], 0
    while at < len(audio):
        size = pieces[len(outputs) % len(pieces)] if len(pieces) > 1 else pieces[0] * 37
        outputs.append(stream.push(audio[at : at + size]))
        at += size
    whole = fbank(audio.unsqueeze(0), torch.tensor([len(audio)]))[0][0]
    together = torch.cat([*outputs, stream.finish()])
    torch.testing.assert_close(together, whole, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("num_samples", [1, 79, 80, 200, 399, 400, 560, 1000])
def test_features_of_very_short_streams(num_samples: int) -> None:
    fbank, audio = Fbank(), noise(1.0)[:num_samples]
    stream = FbankStream(fbank)
    together = torch.cat([stream.push(audio), stream.finish()])
    whole = fbank(audio.unsqueeze(0), torch.tensor([num_samples]))[0][0]
    torch.testing.assert_close(together, whole, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"frontend_pad": False}, {"output_downsampling_factor": 2}],
    ids=["padded", "unpadded", "25 Hz"],
)
@pytest.mark.parametrize("seconds", [0.001, 0.05, 1.0, 2.0, 3.07, 8.0, 8.013, 13.37])
def test_windows_with_enough_context_give_the_whole(
    changes: dict[str, object], seconds: float
) -> None:
    model = without_attention(encoder(**changes))
    audio = noise(seconds)
    whole = model(audio.unsqueeze(0))
    long = model.encode_long(audio, window_s=2.0, context_s=3.0)
    assert torch.equal(long["encoder_out_lens"], whole["encoder_out_lens"])
    torch.testing.assert_close(
        long.last_hidden_state, whole.last_hidden_state[:, : int(whole["encoder_out_lens"])],
        atol=1e-4, rtol=0.0,
    )  # fmt: skip
    assert long.attention_mask.all()


def test_more_context_brings_the_seams_nearer_to_the_whole() -> None:
    model, audio = encoder(), noise(20.0)
    whole = model(audio.unsqueeze(0)).last_hidden_state
    differences = []
    for context_s in (0.2, 3.0, 20.0):
        long = model.encode_long(audio, window_s=4.0, context_s=context_s).last_hidden_state
        differences.append(float(((long - whole).norm() / whole.norm()).detach()))
    assert differences[0] > differences[1] > differences[2]
    assert differences[2] < 1e-5


def test_a_causal_model_needs_no_windows_to_give_the_whole() -> None:
    model = encoder(causal=True, chunk_size=16, left_context_frames=32)
    audio = noise(7.77)
    whole = model(audio.unsqueeze(0)).last_hidden_state
    long = model.encode_long(audio, window_s=1.0, context_s=1.0).last_hidden_state
    torch.testing.assert_close(long, whole, atol=1e-4, rtol=0.0)


def test_a_stream_of_samples_gives_the_whole() -> None:
    model = encoder(causal=True, chunk_size=8, left_context_frames=16)
    audio = noise(3.3)
    stream = model.stream()
    outputs = [stream.push(piece) for piece in audio.split(1234)]
    together = torch.cat([*outputs, stream.finish()])
    whole = model(audio.unsqueeze(0)).last_hidden_state[0]
    torch.testing.assert_close(together, whole, atol=1e-4, rtol=0.0)


def test_a_batch_of_one_is_a_recording() -> None:
    model, audio = encoder(), noise(1.0)
    both = model.encode_long(audio), model.encode_long(audio.unsqueeze(0))
    assert torch.equal(both[0]["encoder_out"], both[1]["encoder_out"])


def test_memory_does_not_grow_with_the_recording() -> None:
    """In a process of its own: twenty minutes take no more than two, but for input and output."""
    script = """
import resource, sys, torch
from tests.encoders.test_long_audio import encoder
model = encoder()
audio = torch.zeros(16000 * 60 * int(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = model.encode_long(audio, window_s=10.0, context_s=2.0)["encoder_out"]
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(used * 1024 - out.numel() * 4)
"""
    root = Path(__file__).parents[2]
    used = [
        int(
            subprocess.run(
                [sys.executable, "-c", script, minutes],
                cwd=root, check=True, capture_output=True, text=True,
            ).stdout
        )
        for minutes in ("2", "20")
    ]  # fmt: skip
    assert used[1] < used[0] + 64 * 2**20  # the features alone would take 61 MB


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(0), "empty"),
        (torch.zeros(2, 16000), "stereo"),
        (torch.zeros(16000, dtype=torch.int16), "divide by 32768"),
        (torch.full((16000,), 12000.0), "16-bit"),
        (torch.cat((torch.zeros(600_000), torch.tensor([float("nan")]))), "finite"),
    ],
    ids=["empty", "stereo", "int16", "int16 as float", "NaN late"],
)
def test_what_is_no_recording_is_refused(audio: Tensor, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        encoder().encode_long(audio)


def test_wrong_rates_and_windows_are_refused() -> None:
    model = encoder()
    for call in (model.encode_long, lambda x, **k: model(x.unsqueeze(0), **k)):
        with pytest.raises(AudioError, match="8000 Hz"):
            call(noise(1.0), sampling_rate=8000)
    assert model.encode_long(noise(1.0), sampling_rate=16000)
    with pytest.raises(ConfigError, match=r"at least 0\.16 s"):
        model.encode_long(noise(1.0), window_s=0.01)
    with pytest.raises(ConfigError, match="cannot stream"):
        model.stream()


@torch.no_grad()
def test_batches_of_any_lengths_give_what_each_gives_alone() -> None:
    """From 0.05 s to 60 s."""
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    model = encoder(encoder_dim=16, encoder_unmasked_dim=16, num_heads=1, feedforward_dim=16)
    span = torch.log(torch.tensor(60.0 / 0.05))
    for _ in range(2):
        seconds = 0.05 * (span * torch.rand(5, generator=generator)).exp()
        seconds[0] = 0.05
        lens = (seconds * 16000).long()
        lens[1] = 960000 if lens.max() < 480000 else lens[1]
        audio = 0.1 * torch.randn(5, int(lens.max()), generator=generator)
        together = model(audio, lens)
        for row, length in enumerate(lens.tolist()):
            alone = model(audio[row : row + 1, :length])
            num_frames = alone.last_hidden_state.shape[1]
            assert num_frames == int(together["encoder_out_lens"][row]) > 0
            for ours, theirs in zip(
                (together.last_hidden_state, *together["hidden_states"]),
                (alone.last_hidden_state, *alone["hidden_states"]),
                strict=True,
            ):
                difference = float((ours[row, :num_frames] - theirs[0]).abs().max())
                assert difference < 1e-4, (lens.tolist(), row, difference)


@pytest.mark.parametrize("changes", [{}, {"output_downsampling_factor": 2}], ids=["50 Hz", "25 Hz"])
def test_layers_of_windows_are_those_of_one_pass(changes: dict[str, object]) -> None:
    model = without_attention(encoder(**changes))
    audio = noise(8.013)
    whole = model(audio.unsqueeze(0))
    layers = (7, 0, 3)
    long = model.encode_long(audio, window_s=2.0, context_s=3.0, layers=layers)
    every = (whole["embeddings"], *whole["hidden_states"])
    for ours, layer in zip(long["hidden_states"], layers, strict=True):
        torch.testing.assert_close(ours, every[layer], atol=1e-4, rtol=0.0)
    torch.testing.assert_close(long["encoder_out"], whole["encoder_out"], atol=1e-4, rtol=0.0)


def test_layers_of_a_causal_model_come_from_windows() -> None:
    model = encoder(causal=True, chunk_size=16, left_context_frames=32)
    audio = noise(3.0)
    whole = model(audio.unsqueeze(0))
    long = model.encode_long(audio, layers=[2])
    torch.testing.assert_close(long["hidden_states"][0], whole["hidden_states"][1])


@pytest.mark.parametrize("layer", [-1, 8])
def test_layers_that_do_not_exist_are_refused(layer: int) -> None:
    with pytest.raises(ConfigError, match=r"0 \(the front end\) to 7"):
        encoder().encode_long(noise(1.0), layers=[0, layer])
