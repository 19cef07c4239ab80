"""The s3prl upstream against what s3prl expects of upstreams, and against s3prl where it is."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from spear.encoders.layers import uniform_layers
from spear.errors import AudioError, CheckpointError, ConfigError, MissingPackageError
from spear.hub.adapters.s3prl import UpstreamExpert, register
from spear.zipformer.schedule import scheduled_floats
from tests.hub.adapters.test_hear import KINDS, noise, tiny_encoder
from tests.hub.models import write_folder

LENGTHS = [800, 801, 959, 960, 961, 1119, 1120, 1360, 2000, 3000, 16000, 16159, 16161, 50000]
TOLERABLE_DIFFERENCE = 5  # s3prl.upstream.interfaces.TOLERABLE_SEQLEN_DIFF


def folder_of(kind: str, parent: Path) -> str:
    return str(write_folder(parent / kind, tiny_encoder(kind)))


def upstream_of(kind: str, parent: Path) -> UpstreamExpert:
    return UpstreamExpert(folder_of(kind, parent)).eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_lengths_are_those_that_s3prl_tolerates(kind: str, tmp_path: Path) -> None:
    upstream = upstream_of(kind, tmp_path)
    rate = upstream.get_downsample_rates("hidden_states")
    assert rate == 320
    for length in LENGTHS:
        output = upstream([noise(length)])
        shapes = {state.shape for state in output["hidden_states"]}
        assert len(output["hidden_states"]) == upstream.model.num_layers + 1
        assert shapes == {output["last_hidden_state"].shape}
        ((batch, num_frames, _),) = shapes
        assert batch == 1
        assert abs(num_frames - round(length / rate)) < TOLERABLE_DIFFERENCE
        assert num_frames == len(range(0, length, rate))  # what S3PRLUpstream makes of it


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_batches_do_not_leak(kind: str, tmp_path: Path) -> None:
    upstream = upstream_of(kind, tmp_path)
    wavs = [noise(9000), noise(800), noise(16001), noise(2399), 5 * noise(20)]
    together = upstream(wavs)
    for row, wav in enumerate(wavs):
        alone = upstream([wav])
        pairs = zip(
            (*together["hidden_states"], together["last_hidden_state"]),
            (*alone["hidden_states"], alone["last_hidden_state"]),
            strict=True,
        )
        for ours, theirs in pairs:
            end = theirs.shape[1]
            torch.testing.assert_close(ours[row, :end], theirs[0], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(("kind", "repeated"), [("padded", 0), ("unpadded", 2)])
@torch.no_grad()
def test_values_are_the_encoders_own(kind: str, repeated: int, tmp_path: Path) -> None:
    upstream, wav = upstream_of(kind, tmp_path), noise(16000)
    output, expected = upstream([wav]), upstream.model(wav.unsqueeze(0))
    inner = slice(repeated, repeated + expected["encoder_out"].shape[1])
    layers = uniform_layers(expected, upstream.model.output_dim)
    for ours, theirs in zip(output["hidden_states"], layers, strict=True):
        assert torch.equal(ours[:, inner], theirs)
        assert torch.equal(ours[:, 0], theirs[:, 0])
        assert torch.equal(ours[:, -1], theirs[:, -1])
    assert torch.equal(output["last_hidden_state"][:, inner], expected["encoder_out"])


@torch.no_grad()
def test_the_output_of_a_25_hz_model_is_repeated(tmp_path: Path) -> None:
    upstream, wav = upstream_of("25 Hz", tmp_path), noise(16000)
    last = upstream([wav])["last_hidden_state"]
    output = upstream.model(wav.unsqueeze(0))["encoder_out"]
    assert torch.equal(last[:, 0::2], output)
    assert torch.equal(last[:, 1::2], output)


def test_gradients_flow_when_it_is_trained(tmp_path: Path) -> None:
    upstream = upstream_of("padded", tmp_path).train()
    hidden = upstream([noise(16000), noise(8000)])["hidden_states"]
    weights = torch.nn.Parameter(torch.zeros(len(hidden)))
    torch.einsum("l,lbtd->btd", weights.softmax(0), torch.stack(hidden)).square().sum().backward()
    gradients: dict[str, Tensor | None] = {
        name: parameter.grad for name, parameter in upstream.model.model.named_parameters()
    }
    for name in ("encoder_embed.conv.0.weight", "encoder_embed.out.weight"):
        gradient = gradients[name]
        assert gradient is not None
        assert gradient.abs().sum() > 0
    without = [name for name, gradient in gradients.items() if gradient is None]
    assert len(without) < 0.2 * len(gradients), without
    assert weights.grad is not None


def test_training_regularises_as_at_the_end_of_pre_training(tmp_path: Path) -> None:
    upstream = upstream_of("padded", tmp_path)
    schedules = list(scheduled_floats(upstream))
    assert all(float(scheduled) == scheduled.points[-1][1] for scheduled in schedules)
    assert any(float(scheduled) == 0.1 for scheduled in schedules)  # dropout


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ckpt="):
        UpstreamExpert()
    with pytest.raises(ConfigError, match=r"conf\.yaml has no use"):
        UpstreamExpert(folder_of("padded", tmp_path), "conf.yaml")
    with pytest.raises(CheckpointError, match="neither a model folder"):
        UpstreamExpert(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("wavs", "message"),
    [
        ([], "at least one"),
        ([torch.zeros(2, 16000)], "stereo"),
        ([torch.zeros(16000), torch.zeros(0)], "empty"),
        ([torch.zeros(16000, dtype=torch.int16)], "divide by 32768"),
        ([torch.full((16000,), 3000.0)], "16-bit"),
    ],
)
def test_what_are_no_waveforms_is_refused(wavs: list[Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=message):
        upstream_of("padded", tmp_path)(wavs)


def test_registered_it_is_an_entry_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, hub = ModuleType("s3prl"), ModuleType("s3prl.hub")
    monkeypatch.setitem(sys.modules, "s3prl", package)
    monkeypatch.setitem(sys.modules, "s3prl.hub", hub)
    register()
    folder = folder_of("padded", tmp_path)
    # As s3prl's runner calls an entry.
    upstream = hub.spear(ckpt=folder, model_config=None, refresh=False)
    assert isinstance(upstream, UpstreamExpert)


def test_without_s3prl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3prl", None)
    monkeypatch.delitem(sys.modules, "s3prl.hub", raising=False)
    with pytest.raises(MissingPackageError, match="pip install s3prl"):
        register()


def test_an_s3prl_that_does_not_fit_its_torchaudio_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 0.4.18 does beside torchaudio 2.9, which has no `set_audio_backend`."""
    (tmp_path / "s3prl").mkdir()
    (tmp_path / "s3prl" / "__init__.py").touch()
    (tmp_path / "s3prl" / "hub.py").write_text("import math\nmath.set_audio_backend('sox_io')\n")
    for name in ("s3prl", "s3prl.hub"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=r"set_audio_backend.*torchaudio below 2\.9"):
        register()
    sys.modules.pop("s3prl", None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.98])
@torch.no_grad()
def test_s3prl_itself_takes_it(kind: str, seconds: float, tmp_path: Path) -> None:
    nn = pytest.importorskip("s3prl.nn", exc_type=ImportError)
    interfaces = pytest.importorskip("s3prl.upstream.interfaces", exc_type=ImportError)
    register()
    upstream = nn.S3PRLUpstream("spear", path_or_url=folder_of(kind, tmp_path)).eval()
    lens = torch.tensor([int(16000 * seconds), int(12000 * seconds)])
    audio = noise(2, int(lens[0]))
    hidden, hidden_lens = upstream(audio, lens)
    combined, combined_lens = nn.Featurizer(upstream)(hidden, hidden_lens)
    assert combined_lens.tolist() == [-(-int(length) // 320) for length in lens]
    assert combined.shape == (2, int(combined_lens[0]), 48)

    featurizer = interfaces.Featurizer(upstream.upstream, upstream_device="cpu")
    wavs = [row[:end] for row, end in zip(audio, lens.tolist(), strict=True)]
    features = featurizer(wavs, upstream.upstream(wavs))
    assert [len(feature) for feature in features] == [round(len(wav) / 320) for wav in wavs]
