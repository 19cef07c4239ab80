"""Token heads beside an export: the predictions of the run, and what does not fit together."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from spear.errors import CheckpointError, DataError
from spear.hub.token_heads import HEADS_FILE, TokenHeads, load_token_heads, write_token_heads
from spear.pretrain.losses import LossConfig, TokenHead
from spear.pretrain.model import PretrainModel, TeacherTarget
from tests.hub.models import tiny_config

DIM = 48
TEACHERS = {
    "wavlm": {"role": "speech", "num_codebooks": 3, "codebook_size": 16, "frame_rate_hz": 50.0},
    "kmeans-500": {"role": "audio", "num_codebooks": 1, "codebook_size": 500, "frame_rate_hz": 25},
}


def state_of(dim: int = DIM) -> dict[str, Tensor]:
    """A run's weights: heads, and something that is none."""
    generator = torch.Generator().manual_seed(3)
    state = {"encoder.x": torch.zeros(2)}
    for name, fields in TEACHERS.items():
        rows = int(fields["num_codebooks"]) * int(fields["codebook_size"])
        state[f"heads.{name}.weight"] = torch.randn(rows, dim, generator=generator)
        state[f"heads.{name}.bias"] = torch.randn(rows, generator=generator)
    return state


def written(folder: Path) -> TokenHeads:
    write_token_heads(folder, state_of(), TEACHERS)
    heads = load_token_heads(folder)
    assert heads is not None
    return heads


def test_predictions_are_those_of_the_run(tmp_path: Path) -> None:
    targets = {
        name: TeacherTarget(**fields)  # type: ignore[arg-type]
        for name, fields in TEACHERS.items()
    }
    model = PretrainModel(tiny_config(), targets, LossConfig())
    write_token_heads(tmp_path, model.state_dict(), TEACHERS)
    heads = load_token_heads(tmp_path)
    assert heads is not None
    frames = torch.randn(7, model.encoder.output_dim)
    predicted = heads.predict(frames)
    assert list(predicted) == list(TEACHERS)
    for name, target in targets.items():
        head = model.heads[name]
        assert isinstance(head, TokenHead)
        tokens = torch.zeros(7, target.num_codebooks, dtype=torch.long)
        _, _, expected = head.loss(frames, tokens, torch.ones(7))
        assert torch.equal(predicted[name].tokens.long(), expected)


def test_probabilities_are_those_of_the_predicted_tokens(tmp_path: Path) -> None:
    state, frames = state_of(), torch.randn(5, DIM)
    predicted = written(tmp_path).predict(frames)["wavlm"]
    logits = frames @ state["heads.wavlm.weight"].T + state["heads.wavlm.bias"]
    shares = logits.view(5, 3, 16).softmax(-1)
    assert torch.equal(predicted.tokens.long(), shares.argmax(-1))
    torch.testing.assert_close(predicted.probabilities, shares.amax(-1))
    assert predicted.probabilities.dtype == torch.float32


def test_tokens_above_a_byte_have_more(tmp_path: Path) -> None:
    heads = written(tmp_path)
    predicted = heads.predict(100 * torch.randn(400, DIM))
    assert predicted["wavlm"].tokens.dtype == torch.uint8
    assert predicted["kmeans-500"].tokens.dtype == torch.int32
    assert predicted["kmeans-500"].tokens.shape == (400, 1)
    assert int(predicted["kmeans-500"].tokens.max()) > 255
    assert heads.codebook_sizes == {"wavlm": 16, "kmeans-500": 500}


def test_many_frames_are_predicted_as_few_are(tmp_path: Path) -> None:
    heads, frames = written(tmp_path), torch.randn(5000, DIM)
    whole = heads.predict(frames)["wavlm"]
    assert torch.equal(whole.tokens[4000:4010], heads.predict(frames[4000:4010])["wavlm"].tokens)
    assert len(whole.probabilities) == 5000
    assert heads.predict(frames[:0])["wavlm"].tokens.shape == (0, 3)


def test_the_file_says_what_it_predicts(tmp_path: Path) -> None:
    assert write_token_heads(tmp_path, state_of(), TEACHERS) == tmp_path / HEADS_FILE
    with safe_open(tmp_path / HEADS_FILE, "pt") as file:
        assert set(file.keys()) == {
            "wavlm.weight", "wavlm.bias", "kmeans-500.weight", "kmeans-500.bias",
        }  # fmt: skip
        content = json.loads(file.metadata()["teachers"])
    assert content["wavlm"] == {"num_codebooks": 3, "codebook_size": 16, "frame_rate_hz": 50.0}
    assert [path.name for path in tmp_path.iterdir()] == [HEADS_FILE]


def test_averaged_weights_are_written_as_float32(tmp_path: Path) -> None:
    wide = {name: value.double() for name, value in state_of().items()}
    write_token_heads(tmp_path, wide, TEACHERS)
    heads = load_token_heads(tmp_path)
    assert heads is not None
    assert all(weight.dtype == torch.float32 for weight in heads.parameters())
    assert not heads.training


def test_no_heads_are_no_file(tmp_path: Path) -> None:
    assert write_token_heads(tmp_path, {"encoder.x": torch.zeros(2)}, TEACHERS) is None
    assert load_token_heads(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"heads.wavlm.bias": None}, "1 missing: wavlm.bias"),
        ({"heads.other.weight": torch.zeros(4, DIM)}, "1 unexpected: other.weight"),
        ({"heads.wavlm.bias": torch.zeros(5)}, r"wavlm.bias \(5,\) instead of \(48,\)"),
        ({"heads.wavlm.weight": torch.zeros(48, 7)}, r"channels|7, 48"),
    ],
)
def test_heads_that_do_not_fit_are_not_written(
    change: dict[str, Tensor | None], expected: str, tmp_path: Path
) -> None:
    state = {k: v for k, v in {**state_of(), **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=expected):
        write_token_heads(tmp_path, state, TEACHERS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("teachers", [{"wavlm": {}}, {"wavlm": 3}, ["wavlm"], {"wavlm": {
    "num_codebooks": 0, "codebook_size": 16, "frame_rate_hz": 50}}])  # fmt: skip
def test_teachers_without_sizes_are_named(teachers: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the run's teachers"):
        write_token_heads(tmp_path, state_of(), teachers)  # type: ignore[arg-type]


def test_a_name_that_no_parameter_can_have_is_refused(tmp_path: Path) -> None:
    state = {"heads.a.b.weight": torch.zeros(48, DIM), "heads.a.b.bias": torch.zeros(48)}
    with pytest.raises(CheckpointError, match=r"a teacher's name cannot be: .*a\.b"):
        write_token_heads(tmp_path, state, {"a.b": TEACHERS["wavlm"]})


def test_broken_files_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / HEADS_FILE
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"{HEADS_FILE} cannot be read"):
        load_token_heads(tmp_path)
    save_file({"wavlm.weight": torch.zeros(4, DIM)}, path)
    with pytest.raises(CheckpointError, match="does not say what it predicts"):
        load_token_heads(tmp_path)
    save_file({"wavlm.weight": torch.zeros(4, DIM)}, path, {"teachers": "{no json"})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_token_heads(tmp_path)
    sizes = {"num_codebooks": 2, "codebook_size": 2, "frame_rate_hz": 50}
    save_file(
        {"wavlm.weight": torch.zeros(4, DIM)}, path, {"teachers": json.dumps({"wavlm": sizes})}
    )
    with pytest.raises(CheckpointError, match=r"wavlm\.bias"):
        load_token_heads(tmp_path)


@pytest.mark.parametrize("shape", [(5, DIM + 1), (1, 5, DIM), (DIM,)])
def test_frames_of_another_encoder_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"the token heads take \(frames, {DIM}\)"):
        written(tmp_path).predict(torch.zeros(shape))
