"""HEAR's common API, its validator's rules, and when frames are."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from spear.encoders import layer_frames
from spear.encoders.encoder import SpearEncoder
from spear.encoders.frame_grid import on_grid
from spear.encoders.layer_frames import LayerFrames, lengthen_short
from spear.errors import AudioError, CheckpointError, ConfigError
from spear.hub.adapters import hear
from spear.hub.adapters.hear import HearModel
from tests.encoders.test_long_audio import encoder as small_encoder
from tests.encoders.test_long_audio import without_attention
from tests.hub.models import tiny_config, write_folder

KINDS: dict[str, dict[str, object]] = {
    "padded": {},
    "unpadded": {"frontend_pad": False},
    "25 Hz": {"output_downsampling_factor": 2},
    "25 Hz unpadded": {"output_downsampling_factor": 2, "frontend_pad": False},
}
FIRST_MS = {"padded": 15.0, "unpadded": 45.0, "25 Hz": 25.0, "25 Hz unpadded": 55.0}


def tiny_encoder(kind: str = "padded") -> SpearEncoder:
    torch.manual_seed(0)
    return SpearEncoder(tiny_config(**KINDS[kind])).eval()


def noise(*shape: int) -> Tensor:
    return 0.2 * torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))) - 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [1.07, 1.98, 2.74, 4.0])
def test_time_stamps_keep_the_rules_of_the_validator(kind: str, seconds: float) -> None:
    model = HearModel(tiny_encoder(kind))
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(3, int(seconds * 16000)), model)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (*timestamps.shape, model.timestamp_embedding_size)
    assert len(embeddings) == 3
    hop = 40.0 if "25" in kind else 20.0
    assert (timestamps.diff() - hop).abs().max() < 1e-3
    assert (timestamps[:, 0] == FIRST_MS[kind]).all()
    end = 1000 * seconds
    assert (timestamps[:, -1] > end - 2 * hop).all()
    assert (timestamps[:, -1] < end + hop / 2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_stamp_is_the_middle_of_what_its_frame_sees(kind: str) -> None:
    encoder = tiny_encoder(kind)
    factor = encoder.config.output_downsampling_factor
    fbank = torch.randn(1, 200, 128, requires_grad=True)
    frames = encoder.encode_fbank(fbank, torch.tensor([200]))["embeddings"][0]
    at = 20
    frames[factor * at : factor * (at + 1)].square().sum().backward()
    assert fbank.grad is not None
    seen = fbank.grad[0].abs().amax(dim=1).nonzero().flatten()
    middle_ms = 10.0 * (seen[0] + seen[-1]).item() / 2 + 5.0  # a fbank frame's own is 10 t + 5 ms
    _, timestamps = HearModel(encoder)(noise(1, 32000))
    assert timestamps[0, at] == middle_ms


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_do_not_depend_on_each_other(kind: str) -> None:
    model, audio = HearModel(tiny_encoder(kind)), noise(4, 20000)
    together, _ = hear.get_timestamp_embeddings(audio, model)
    for row in range(4):
        alone, _ = hear.get_timestamp_embeddings(audio[row : row + 1], model)
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=0.0)


def test_a_scene_is_the_mean_of_its_moments() -> None:
    model, audio = HearModel(tiny_encoder()), noise(2, 30000)
    scenes = hear.get_scene_embeddings(audio, model)
    moments, _ = hear.get_timestamp_embeddings(audio, model)
    assert scenes.shape == (2, model.scene_embedding_size)
    torch.testing.assert_close(scenes, moments.mean(dim=1))
    assert not scenes.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_samples", [1, 200, 800, 1359])
def test_the_shortest_sounds_have_an_embedding(kind: str, num_samples: int) -> None:
    model = HearModel(tiny_encoder(kind))
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(2, num_samples), model)
    assert embeddings.shape[1] == timestamps.shape[1] >= 1
    assert embeddings.isfinite().all()


def test_models_load_from_a_path_or_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_encoder()
    folder = write_folder(tmp_path / "model", encoder)
    monkeypatch.delenv("SPEAR_MODEL", raising=False)
    with pytest.raises(ConfigError, match="set SPEAR_MODEL"):
        hear.load_model()
    with pytest.raises(CheckpointError, match="neither a model folder"):
        hear.load_model(str(tmp_path / "nothing"))
    given = hear.load_model(str(folder))
    monkeypatch.setenv("SPEAR_MODEL", str(folder))
    audio = noise(1, 16000)
    expected = encoder(audio)["encoder_out"]
    for model in (given, hear.load_model()):
        assert (model.sample_rate, model.scene_embedding_size) == (16000, 48)
        assert not model.training
        torch.testing.assert_close(hear.get_timestamp_embeddings(audio, model)[0], expected)


def test_a_model_in_training_mode_is_not_random() -> None:
    model, audio = HearModel(tiny_encoder()), noise(2, 16000)
    expected = hear.get_scene_embeddings(audio, model)
    assert torch.equal(hear.get_scene_embeddings(audio, model.train()), expected)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(16000), "batch axis"),
        (torch.zeros(1, 2, 16000), "stereo"),
        (torch.zeros(1, 16000, dtype=torch.int16), "divide by 32768"),
        (torch.zeros(1, 0), "empty"),
        (torch.full((1, 16000), float("nan")), "finite"),
    ],
)
def test_what_are_no_sounds_is_refused(audio: Tensor, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        hear.get_scene_embeddings(audio, HearModel(tiny_encoder()))


@pytest.mark.parametrize("layer", [None, 0, 3, 7])
def test_long_recordings_are_read_in_windows(
    layer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = without_attention(small_encoder())
    audio, lens = noise(2, 16000 * 14), torch.tensor([16000 * 14, 16000])
    read = LayerFrames(encoder, layer)
    whole, whole_lens = read(audio, lens)
    monkeypatch.setattr(layer_frames, "ONE_PASS_S", 2)
    parts, part_lens = read(audio, lens)
    assert torch.equal(whole_lens, part_lens)
    assert whole_lens.tolist() == [700, 50]
    for row, end in enumerate(whole_lens.tolist()):
        torch.testing.assert_close(parts[row, :end], whole[row, :end], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("layer", [None, 0, 1, 2])
def test_layers_are_those_of_the_encoder(layer: int | None) -> None:
    encoder, audio = tiny_encoder("25 Hz"), noise(2, 9000)
    read = LayerFrames(encoder, layer)
    frames, lens = read(audio)
    output = encoder(audio)
    expected = output["encoder_out"]
    if layer is not None:
        expected = (output["embeddings"], *output["hidden_states"])[layer]
    assert torch.equal(frames, expected)
    assert lens.tolist() == [frames.shape[1]] * 2
    assert read.dim == frames.shape[2]
    assert (read.hop_ms, read.first_ms) == ((40, 25.0) if layer is None else (20, 15.0))


def test_layers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"0 \(the front end\) to 2"):
        LayerFrames(tiny_encoder(), 3)


@pytest.mark.parametrize(("kind", "least"), [("padded", 240), ("25 Hz unpadded", 1360)])
def test_only_too_short_recordings_are_lengthened(kind: str, least: int) -> None:
    encoder = tiny_encoder(kind)
    assert (encoder.num_frames(least - 1), encoder.num_frames(least)) == (0, 1)
    audio, lens = torch.ones(2, 2000), torch.tensor([2000, least])
    assert lengthen_short(encoder, audio, lens)[0] is audio
    longer, longer_lens = lengthen_short(encoder, audio, torch.tensor([2000, 100]))
    assert longer_lens.tolist() == [2000, least]
    assert longer.sum(dim=1).tolist() == [2000.0, 100.0]
    longer, longer_lens = lengthen_short(encoder, audio[:, :7], torch.tensor([7, 7]))
    assert longer.shape == (2, least)


@pytest.mark.parametrize(("first_ms", "hop_ms"), [(15, 20), (45, 20), (25, 40), (55, 40)])
def test_every_slot_of_a_grid_has_the_nearest_frame(first_ms: int, hop_ms: int) -> None:
    lens = torch.tensor([30, 1, 17])
    frames = torch.arange(30.0).expand(3, -1).unsqueeze(2)
    picked = on_grid(frames, lens, 33, first_ms, hop_ms)[..., 0]
    for row, end in enumerate(lens.tolist()):
        centers = first_ms + hop_ms * torch.arange(end)
        middles = hop_ms * (torch.arange(33) + 0.5)
        nearest = (middles[:, None] - centers).abs().argmin(dim=1)
        assert torch.equal(picked[row].long(), nearest)


def test_the_validator_of_hear_is_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, which asks whether a model is tensorflow's and needs it for nothing else."""
    if "tensorflow" not in sys.modules:
        tensorflow = ModuleType("tensorflow")
        tensorflow.Module = type("Module", (), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    validate = pytest.importorskip("hearvalidator.validate")
    for kind in KINDS:
        folder = write_folder(tmp_path / kind, tiny_encoder(kind))
        validate.ValidateModel("spear.hub.adapters.hear", str(folder), device="cpu")()
