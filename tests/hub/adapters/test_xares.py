"""The encoder for X-ARES against what the suite expects, and against the suite where it is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from spear.encoders.encoder import SpearEncoder
from spear.encoders.layer_frames import LayerFrames
from spear.errors import AudioError, ConfigError
from spear.hub.adapters import xares
from tests.hub.adapters.test_hear import KINDS, noise, tiny_encoder
from tests.hub.models import tiny_config, write_folder


def adapter_of(kind: str, parent: Path) -> xares.SpearXaresEncoder:
    return xares.SpearXaresEncoder(str(write_folder(parent / kind, tiny_encoder(kind))))


def test_the_module_has_one_name_that_xares_can_mean() -> None:
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["SpearXaresEncoder"]


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_have_the_promised_shape_and_pace(kind: str, tmp_path: Path) -> None:
    adapter = adapter_of(kind, tmp_path)
    hop_ms = 40 if "25" in kind else 20
    assert (adapter.sampling_rate, adapter.output_dim) == (16000, 48)
    assert adapter.hop_size_in_ms == hop_ms
    for num_samples in (160, 800, 1500, 50000, 160000):
        embeddings = adapter(noise(2, num_samples))
        expected = max((num_samples + 8 * hop_ms) // (16 * hop_ms), 1)
        assert embeddings.shape == (2, expected, 48)
        assert embeddings.dtype == torch.float32
        assert not embeddings.requires_grad


def test_embeddings_are_the_encoders_output(tmp_path: Path) -> None:
    adapter, audio = adapter_of("padded", tmp_path), noise(2, 16000)
    expected = adapter.encoder(audio)["encoder_out"]
    torch.testing.assert_close(adapter(audio), expected)
    torch.testing.assert_close(adapter(audio[0]), expected[:1])


def test_published_models_are_moved_to_their_true_times(tmp_path: Path) -> None:
    adapter, audio = adapter_of("unpadded", tmp_path), noise(1, 16000)
    own = adapter.encoder(audio)["encoder_out"]
    embeddings = adapter(audio)
    assert (own.shape[1], embeddings.shape[1]) == (46, 50)
    torch.testing.assert_close(embeddings[:, 2:48], own)  # 45 ms is in the third slot of 20 ms


def test_long_audio_is_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_of("padded", tmp_path)
    longest: list[int] = []
    forward = adapter.encoder.model.forward

    def watched(fbank: Tensor, lens: Tensor) -> object:
        longest.append(fbank.shape[1])
        return forward(fbank, lens)

    monkeypatch.setattr(adapter.encoder.model, "forward", watched)
    assert adapter(torch.zeros(1, 90 * 16000)).shape == (1, 4500, 48)
    assert max(longest) <= 5600  # 40 s and twice the context of 8 s


def test_the_variable_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPEAR_MODEL", raising=False)
    with pytest.raises(ConfigError, match="set SPEAR_MODEL"):
        xares.SpearXaresEncoder()
    folder = write_folder(tmp_path / "model", tiny_encoder())
    monkeypatch.setenv("SPEAR_MODEL", str(folder))
    assert isinstance(xares.SpearXaresEncoder(), xares.SpearXaresEncoder)


def test_results_of_two_models_go_to_two_folders(tmp_path: Path) -> None:
    first = adapter_of("padded", tmp_path)
    same = xares.SpearXaresEncoder(str(tmp_path / "padded"))
    torch.manual_seed(99)
    folder = write_folder(tmp_path / "other", SpearEncoder(tiny_config()))
    other = xares.SpearXaresEncoder(str(folder))
    names = [type(adapter).__name__ for adapter in (first, same, other)]
    assert all(name.endswith("Encoder") for name in names)
    assert names[0] == names[1] != names[2]


def test_it_moves_as_a_module(tmp_path: Path) -> None:
    adapter = adapter_of("padded", tmp_path).to("meta")
    assert {parameter.device.type for parameter in adapter.parameters()} == {"meta"}
    assert isinstance(adapter._read, LayerFrames)
    assert adapter._read._encoder is adapter.encoder


def test_what_is_no_batch_is_refused(tmp_path: Path) -> None:
    adapter = adapter_of("padded", tmp_path)
    with pytest.raises(AudioError, match="stereo"):
        adapter(torch.zeros(1, 2, 16000))
    with pytest.raises(AudioError, match="divide by 32768"):
        adapter(torch.zeros(1, 16000, dtype=torch.int16))


@pytest.mark.parametrize("kind", KINDS)
def test_xares_finds_and_accepts_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = pytest.importorskip("xares.audio_encoder_checker", exc_type=ImportError)
    utils = pytest.importorskip("xares.utils", exc_type=ImportError)
    folder = write_folder(tmp_path / "model", tiny_encoder(kind))
    monkeypatch.setenv("SPEAR_MODEL", str(folder))
    adapter = utils.attr_from_py_path("spear/hub/adapters/xares.py", endswith="Encoder")()
    assert checker.check_audio_encoder(adapter) is True
