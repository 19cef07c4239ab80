"""WavLM, HuBERT, wav2vec 2.0 and data2vec against transformers' own forward pass."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spear.errors import CheckpointError
from spear.system.files import sha256_of
from spear.teachers import load_teacher
from spear.teachers.hf import _is_wavlm_large, normalize_waveforms

transformers = pytest.importorskip("transformers")
Spec = Callable[[str], dict[str, Any]]
VARIANTS = ["wavlm", "wavlm-group", "hubert", "wav2vec2", "wav2vec2-stable", "data2vec"]


@pytest.fixture
def copy(make_spec: Spec, tmp_path: Path) -> dict[str, Any]:
    """A WavLM in a folder of its own, to be broken."""
    spec = make_spec("wavlm")
    shutil.copytree(spec["path"], tmp_path / "wavlm")
    return {**spec, "path": str(tmp_path / "wavlm")}


def _change_weights(folder: str, change: Callable[[dict[str, Tensor]], None]) -> None:
    file = Path(folder) / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})


def _change_config(folder: str, **changes: Any) -> None:
    file = Path(folder) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_are_block_outputs(make_spec: Spec, variant: str) -> None:
    """Hooks say what a block gives; `hidden_states` of transformers agrees below the last."""
    spec = make_spec(variant)
    model = transformers.AutoModel.from_pretrained(spec["path"]).eval()
    seen: list[Tensor] = []
    first = model.encoder.layers[0]
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for block in model.encoder.layers:
        block.register_forward_hook(
            lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    audio = torch.randn(1, 9000) * 0.1 + 0.02
    lens = torch.tensor([9000])
    is_normalized = load_teacher(spec).normalize_audio
    assert is_normalized == (variant in ("wavlm", "wav2vec2-stable", "data2vec"))
    with torch.no_grad():
        out = model(
            normalize_waveforms(audio, lens) if is_normalized else audio, output_hidden_states=True
        )
    assert len(seen) == 4
    for layer, expected in enumerate(seen):
        frames, _ = load_teacher({**spec, "layer": layer})(audio, lens)
        torch.testing.assert_close(frames, expected, atol=1e-4, rtol=0)
        if layer < 3:
            torch.testing.assert_close(frames, out.hidden_states[layer], atol=1e-4, rtol=0)
    final, _ = load_teacher(spec)(audio, lens)
    torch.testing.assert_close(final, out.last_hidden_state, atol=1e-4, rtol=0)
    has_last_norm = variant in ("wavlm", "wav2vec2-stable")
    assert bool((final - seen[-1]).abs().max() > 0.01) == has_last_norm


def test_blocks_behind_the_layer_are_not_kept(make_spec: Spec) -> None:
    spec = make_spec("wavlm")
    kept = [len(load_teacher({**spec, "layer": k}).model.encoder.layers) for k in (0, 1, 2, 3)]
    assert kept == [1, 1, 2, 3]


def test_default_layer_is_21_for_wavlm_large_only() -> None:
    large = {"num_hidden_layers": 24, "hidden_size": 1024}
    assert _is_wavlm_large(transformers.WavLMConfig(**large))
    assert not _is_wavlm_large(transformers.WavLMConfig())
    assert not _is_wavlm_large(transformers.HubertConfig(**large))


def test_waveforms_are_normalised_as_transformers_does() -> None:
    rng = np.random.default_rng(0)
    waveforms = [rng.normal(0.3, 0.1, num).astype(np.float32) for num in (700, 300)]
    waveforms.append(np.zeros(500, np.float32))
    extractor = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=True, return_attention_mask=True, sampling_rate=16000
    )
    expected = extractor(
        waveforms, padding=True, sampling_rate=16000, return_tensors="pt"
    ).input_values
    audio = torch.zeros(3, 700)
    for row, waveform in enumerate(waveforms):
        audio[row, : len(waveform)] = torch.from_numpy(waveform)
    ours = normalize_waveforms(audio, torch.tensor([700, 300, 500]))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_preprocessor_file_decides_normalisation(copy: dict[str, Any]) -> None:
    assert load_teacher(copy).normalize_audio
    file = Path(copy["path"]) / "preprocessor_config.json"
    file.write_text(json.dumps({"do_normalize": False}))
    assert not load_teacher(copy).normalize_audio


def test_frame_count_is_that_of_the_convolutions(make_spec: Spec) -> None:
    teacher = load_teacher(make_spec("wavlm"))
    for samples in (0, 399, 400, 719, 720, 16000, 160000):
        expected = (samples - 400) // 320 + 1 if samples >= 400 else 0
        assert teacher.num_frames(samples) == expected
    assert teacher.frame_rate_hz == 50.0
    assert teacher.num_frames(160000) == 499


def test_digest_is_of_the_weights_files(copy: dict[str, Any]) -> None:
    folder = Path(copy["path"])
    single = sha256_of(folder / "model.safetensors")
    assert load_teacher(copy).weights_sha256 == single
    model = transformers.AutoModel.from_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    lines = "".join(f"{sha256_of(shard)}  {shard.name}\n" for shard in shards)
    assert load_teacher(copy).weights_sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_pickled_weights_load_without_running_code(copy: dict[str, Any]) -> None:
    audio, lens = torch.randn(1, 4000), torch.tensor([4000])
    expected, _ = load_teacher(copy)(audio, lens)
    folder = Path(copy["path"])
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    teacher = load_teacher(copy)
    assert teacher.weights_sha256 == sha256_of(folder / "pytorch_model.bin")
    torch.testing.assert_close(teacher(audio, lens)[0], expected)

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "code-ran",))

    torch.save({**state, "trap": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_teacher(copy)
    assert not (folder / "code-ran").exists()


def test_half_precision_weights_are_run_in_float32(copy: dict[str, Any]) -> None:
    def halve(state: dict[str, Tensor]) -> None:
        state.update({name: value.half() for name, value in state.items()})

    _change_weights(copy["path"], halve)
    _change_config(copy["path"], dtype="float16", torch_dtype="float16")
    teacher = load_teacher(copy)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}


def test_pretraining_heads_and_a_missing_mask_vector_are_fine(copy: dict[str, Any]) -> None:
    def as_published(state: dict[str, Tensor]) -> None:
        state.pop("masked_spec_embed", None)
        state["quantizer.codevectors"] = torch.zeros(1, 4, 4)
        state["project_q.weight"] = torch.zeros(4, 4)

    audio, lens = 0.1 * torch.randn(1, 8000), torch.tensor([8000])
    expected, _ = load_teacher(copy)(audio, lens)
    _change_weights(copy["path"], as_published)
    assert torch.equal(load_teacher(copy)(audio, lens)[0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("encoder.layers.1.layer_norm.weight"), "encoder.layers.1.layer_n"),
        (
            lambda state: state.update({"encoder.extra": torch.zeros(2)}),
            r"unexpected: .*encoder.extra",
        ),
        (
            lambda state: state.update({"encoder.layer_norm.bias": torch.zeros(2)}),
            "layer_norm.bias",
        ),
    ],
    ids=["missing", "surplus", "other-shape"],
)
def test_weights_that_do_not_fit_are_listed(
    copy: dict[str, Any], change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    _change_weights(copy["path"], change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_teacher(copy)
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused(make_spec: Spec) -> None:
    spec = make_spec("hubert")
    with pytest.raises(CheckpointError, match="type 'hubert', family wavlm needs 'wavlm'"):
        load_teacher({**spec, "family": "wavlm"})


@pytest.mark.parametrize("layer", [-1, 4])
def test_layer_out_of_range_is_refused(make_spec: Spec, layer: int) -> None:
    with pytest.raises(CheckpointError, match=rf"layer {layer} is out of range.*0 to 3"):
        load_teacher({**make_spec("wavlm"), "layer": layer})


def test_truncated_weights_are_refused(copy: dict[str, Any]) -> None:
    file = Path(copy["path"]) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_teacher(copy)
    assert "\n" not in str(caught.value)


def test_loading_prints_nothing(make_spec: Spec, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.utils.logging.enable_progress_bar()
    load_teacher(make_spec("wavlm"))(torch.randn(1, 4000), torch.tensor([4000]))
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
