"""Dasheng against the authors' numbers and against a naive network, and its file formats."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from spear.errors import CheckpointError
from spear.system.files import sha256_of
from spear.teachers import load_teacher
from spear.teachers.dasheng_frontend import PowerToDecibel, mel_filters
from spear.teachers.dasheng_network import DashengSettings

Spec = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def golden(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    numbers = torch.load(golden_dir / "dasheng_short.pt", weights_only=True)
    path = tmp_path_factory.mktemp("golden") / "dasheng.pt"
    torch.save({"model": numbers["state_dict"], "config": numbers["config"]}, path)
    return {**numbers, "spec": {"name": "dasheng", "path": str(path)}}


@pytest.fixture
def content(make_spec: Spec) -> dict[str, Any]:
    """A released file's content: "model" and "config"."""
    return torch.load(make_spec("dasheng")["path"], weights_only=True)


def _write_folder(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> str:
    """Writes what the hub has: nested names, no front end."""
    folder.mkdir()
    kept = {k: v.contiguous() for k, v in state.items() if not k.startswith("front_end.")}
    save_file({f"encoder.{k}": v for k, v in kept.items()}, folder / "model.safetensors")
    nested = {"model_type": "dasheng", "name": "dasheng-base", "encoder_kwargs": config}
    (folder / "config.json").write_text(json.dumps(nested))
    return str(folder)


def test_whole_teacher_equals_the_authors_package(golden: dict[str, Any]) -> None:
    teacher = load_teacher(golden["spec"])
    frames, lens = teacher(golden["audio"], golden["lengths"])
    assert lens.tolist() == [25, 25]
    assert (frames - golden["output"]).abs().max() < 2e-4


def test_log_mel_equals_torchaudio(golden: dict[str, Any], tmp_path: Path) -> None:
    """With the released buffers, and with those that follow from the settings."""
    folder = _write_folder(tmp_path / "hub", golden["state_dict"], golden["config"])
    for path in (golden["spec"]["path"], folder):
        network = load_teacher({"name": "dasheng", "path": path}).network
        log_mel = torch.stack([network.log_mel(audio) for audio in golden["audio"]])
        assert (log_mel - golden["log_mel"]).abs().max() < 1e-3


def test_network_with_lengths_equals_the_authors_package(golden: dict[str, Any]) -> None:
    network = load_teacher(golden["spec"]).network
    num_patches = golden["lengths"] // (160 * 4)  # how the package scales lengths
    frames = network(golden["log_mel"], num_patches)
    assert (frames - golden["output_with_lengths"]).abs().max() < 2e-4


def _naive_stretch(log_mel: Tensor, state: dict[str, Tensor], layer: int | None) -> Tensor:
    """Dasheng on one stretch (64, T), one frame and one head at a time, from the paper's text."""
    mean, var = state["init_bn.1.running_mean"], state["init_bn.1.running_var"]
    scale = state["init_bn.1.weight"] / (var + 1e-5).sqrt()
    normed = (log_mel - mean[:, None]) * scale[:, None] + state["init_bn.1.bias"][:, None]
    weight = state["patch_embed.proj.weight"]
    rows = []
    for patch in range(log_mel.shape[1] // 4):
        pixels = normed[:, 4 * patch : 4 * patch + 4]
        row = (weight[:, 0] * pixels).sum((1, 2)) + state["patch_embed.proj.bias"]
        position = state["time_pos_embed"][0, :, 0, patch] + state["freq_pos_embed"][0, :, 0, 0]
        rows.append(row + position)
    x = torch.stack(rows)

    def norm(value: Tensor, name: str) -> Tensor:
        return F.layer_norm(value, (24,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(value: Tensor, name: str) -> Tensor:
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for block in range(3 if layer is None else layer):
        name = f"blocks.{block}"
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").split(24, dim=1)
        heads = []
        for head in range(4):
            part = slice(6 * head, 6 * head + 6)
            scores = (q[:, part] @ k[:, part].T / math.sqrt(6)).softmax(dim=1)
            heads.append(scores @ v[:, part])
        attended = linear(torch.cat(heads, dim=1), f"{name}.attn.proj")
        x = x + state[f"{name}.ls1.gamma"] * attended
        hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + state[f"{name}.ls2.gamma"] * linear(hidden, f"{name}.mlp.fc2")
    return norm(x, "norm") if layer is None else x


@pytest.mark.parametrize("layer", [None, 0, 2, 3])
def test_long_recordings_are_cut_into_stretches(
    make_spec: Spec, content: dict[str, Any], layer: int | None
) -> None:
    """Stretches of 80 spectrogram frames; the last is shorter and sees no padding."""
    teacher = load_teacher({**make_spec("dasheng"), "layer": layer})
    audio = torch.randn(1, 33000)
    frames, (count,) = teacher(audio, torch.tensor([33000]))
    log_mel = teacher.network.log_mel(audio[0])
    assert log_mel.shape[1] == 207
    pieces = [_naive_stretch(part, content["model"], layer) for part in log_mel.split(80, dim=1)]
    expected = torch.cat(pieces)
    assert count == len(expected) == 51  # 20 + 20 + 11 patches of 4 frames
    torch.testing.assert_close(frames[0], expected, atol=1e-4, rtol=0)


def test_network_gives_any_layer_of_itself(make_spec: Spec, content: dict[str, Any]) -> None:
    network = load_teacher(make_spec("dasheng")).network
    log_mel = 20 * torch.randn(2, 64, 40) - 20
    for layer in (None, 0, 1, 3):
        expected = torch.stack([_naive_stretch(x, content["model"], layer) for x in log_mel])
        frames = network(log_mel, layer=layer)
        torch.testing.assert_close(frames, expected, atol=1e-4, rtol=0)


def test_stretch_of_the_released_models_is_10_08_s() -> None:
    settings = DashengSettings.from_config({}, "test")
    assert settings.max_patches * settings.patch_frames * settings.hop_size / 16000 == 10.08


def test_frame_counts(make_spec: Spec) -> None:
    teacher = load_teacher(make_spec("dasheng"))
    assert teacher.frame_rate_hz == 25.0
    for samples, expected in [(0, 0), (256, 0), (479, 0), (480, 1), (1119, 1), (1120, 2)]:
        assert teacher.num_frames(samples) == expected
        assert teacher(torch.ones(1, samples + 1), torch.tensor([samples]))[1] == expected
    assert teacher.num_frames(160000) == 250


def test_dynamic_range_counts_from_the_recording_own_maximum() -> None:
    convert = PowerToDecibel(top_db=30.0)
    assert convert(torch.tensor([1.0, 0.1, 1e-7])).tolist() == pytest.approx([0.0, -10.0, -30.0])
    assert convert(torch.tensor([1e-4, 1e-12])).tolist() == pytest.approx([-40.0, -70.0])


def test_mel_filters_are_triangles_on_the_htk_scale() -> None:
    filters = mel_filters(257, 64, 0.0, 8000.0, 16000).double()
    top_mel = 2595 * math.log10(1 + 8000 / 700)
    edges = [700 * (10 ** (top_mel * i / 65 / 2595) - 1) for i in range(66)]
    for mel in (3, 20, 63):
        left, centre, right = edges[mel : mel + 3]
        for index in range(257):
            hz = index * 8000 / 256
            height = min((hz - left) / (centre - left), (right - hz) / (right - centre))
            assert float(filters[index, mel]) == pytest.approx(max(0.0, height), abs=2e-4)


def test_hub_folder_gives_the_same_frames(
    make_spec: Spec, content: dict[str, Any], tmp_path: Path
) -> None:
    audio, lens = torch.randn(2, 9000), torch.tensor([9000, 4000])
    expected, _ = load_teacher(make_spec("dasheng"))(audio, lens)
    folder = _write_folder(tmp_path / "hub", content["model"], content["config"])
    teacher = load_teacher({"name": "dasheng", "path": folder})
    torch.testing.assert_close(teacher(audio, lens)[0], expected, atol=1e-4, rtol=0)
    assert teacher.weights_sha256 == sha256_of(Path(folder) / "model.safetensors")
    pickled = Path(folder) / "pytorch_model.bin"
    (Path(folder) / "model.safetensors").unlink()
    torch.save(content["model"], pickled)
    teacher = load_teacher({"name": "dasheng", "path": folder})
    torch.testing.assert_close(teacher(audio, lens)[0], expected)
    assert teacher.weights_sha256 == sha256_of(pickled)


def test_sizes_that_configurations_name() -> None:
    named = {"name": "dasheng-0.6B", "encoder_kwargs": {"target_length": 1012}}
    settings = DashengSettings.from_config(named, "test")
    assert (settings.embed_dim, settings.depth, settings.num_heads) == (1280, 32, 16)
    assert settings.target_length == 1012
    largest = DashengSettings.from_config({"name": "dasheng-1.2B"}, "test")
    assert (largest.embed_dim, largest.depth, largest.num_heads) == (1536, 40, 24)


def test_positions_beyond_the_target_length_are_cut_off(
    make_spec: Spec, content: dict[str, Any], tmp_path: Path
) -> None:
    positions = content["model"]["time_pos_embed"]
    content["model"]["time_pos_embed"] = torch.cat((positions, torch.ones(1, 24, 1, 5)), dim=3)
    torch.save(content, tmp_path / "long.pt")
    audio, lens = torch.randn(1, 20000), torch.tensor([20000])
    expected, _ = load_teacher(make_spec("dasheng"))(audio, lens)
    frames, _ = load_teacher({"name": "dasheng", "path": str(tmp_path / "long.pt")})(audio, lens)
    torch.testing.assert_close(frames, expected)


def _set(part: str, key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content[part].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("config"), "'model' and 'config'"),
        (lambda content: content["model"].pop("norm.bias"), r"1 missing: norm.bias"),
        (_set("model", "head.weight", torch.zeros(2)), r"1 unexpected: head.weight"),
        (_set("model", "norm.bias", torch.zeros(2)), r"norm.bias \(2,\) instead of \(24,\)"),
        (_set("config", "embed_dim", 32), "another shape"),
        (_set("config", "num_heads", 5), "5 heads"),
        (_set("config", "depth", 0), "0 blocks"),
        (_set("config", "depth", "deep"), "not a Dasheng configuration"),
        (_set("config", "pooling", "token"), "pooling 'token' is not supported"),
        (_set("config", "patch_size", [16, 16]), "do not tile"),
        (_set("config", "patch_stride", [64, 2]), "do not tile"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    content: dict[str, Any],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    change(content)
    torch.save(content, tmp_path / "changed.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_teacher({"name": "dasheng", "path": str(tmp_path / "changed.pt")})
    assert "\n" not in str(caught.value)


def test_broken_and_dangerous_files_are_refused(make_spec: Spec, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "code-ran",))

    whole = Path(make_spec("dasheng")["path"]).read_bytes()
    bad = tmp_path / "bad.pt"
    torch.save({"model": Trap(), "config": {}}, bad)
    trap = bad.read_bytes()
    for file_bytes in (whole[: len(whole) // 2], b"", b"no weights", trap):
        bad.write_bytes(file_bytes)
        with pytest.raises(CheckpointError, match="not a readable weights file") as caught:
            load_teacher({"name": "dasheng", "path": str(bad)})
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "code-ran").exists()


def test_folder_of_another_model_is_refused(make_spec: Spec) -> None:
    with pytest.raises(CheckpointError, match="type 'hubert', expected 'dasheng'"):
        load_teacher({"name": "dasheng", "path": make_spec("hubert")["path"]})


def test_layer_out_of_range_is_refused(make_spec: Spec) -> None:
    with pytest.raises(CheckpointError, match=r"layer 4 is out of range.*0 to 3"):
        load_teacher({**make_spec("dasheng"), "layer": 4})
