"""`spear info model`: a table whose rows are layers and whose sums are true."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spear.encoders.encoder import SpearEncoder
from spear.encoders.frame_grid import layer_centre_ms, output_centre_ms
from spear.errors import CheckpointError
from spear.hub.info import InfoConfig, describe_model, run
from spear.hub.token_heads import write_token_heads
from spear.zipformer import ZipformerConfig
from tests.hub.models import tiny_config, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    return write_folder(tmp_path / "model", SpearEncoder(tiny_config()))


def table_of(text: str) -> list[list[str]]:
    """The rows below the header, as words."""
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.lstrip().startswith("layer  stack"))
    rows = lines[begin + 1 :]
    return [line.split() for line in rows[: rows.index("")]]


def count(cell: str) -> int:
    return int(cell.replace(",", ""))


def test_info_prints_sizes(folder: Path, repo_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spear", "info", "model", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=repo_dir,
    )
    assert "48 channels at 50 Hz" in done.stdout
    assert [row[0] for row in table_of(done.stdout)] == ["0", "1", "2", "rest", "all"]


def test_rows_are_the_layers_by_their_numbers() -> None:
    config = tiny_config(
        num_encoder_layers=(1, 3), feedforward_dim=(48, 64), num_heads=(2, 4),
        cnn_module_kernel=(15, 7),
    )  # fmt: skip
    model = SpearEncoder(config)
    rows = table_of(describe_model(model, "m"))
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "rest", "all"]
    assert rows[1][1:-1] == ["0", "32", "1", "48", "2", "15", "300"]
    for row in rows[2:5]:
        assert row[1:-1] == ["1", "48", "2", "64", "4", "7", "280"]
    stacks = model.model.encoder.encoders
    layers = [layer for stack in stacks for layer in stack.layers]
    for row, layer in zip(rows[1:5], layers, strict=True):
        assert count(row[-1]) == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("changes", [{}, {"output_downsampling_factor": 2}], ids=["50 Hz", "25 Hz"])
def test_parameters_sum_to_the_total(changes: dict[str, object]) -> None:
    model = SpearEncoder(tiny_config(**changes))
    text = describe_model(model, "m")
    *parts, total = [count(row[-1]) for row in table_of(text)]
    assert min(parts) > 0
    assert sum(parts) == total == sum(p.numel() for p in model.parameters())
    assert f"{total / 1e6:.2f} M parameters, 2 layers" in text


def test_columns_are_aligned() -> None:
    lines = describe_model(SpearEncoder(ZipformerConfig.named("tiny")), "m").splitlines()
    begin = next(i for i, line in enumerate(lines) if "down-sampling" in line)
    assert {len(line) for line in lines[begin : begin + 11]} == {len(lines[begin])}


def test_causal_models_name_their_chunks() -> None:
    changes = {"causal": True, "chunk_size": (16, 8), "left_context_frames": (64, -1)}
    text = describe_model(SpearEncoder(tiny_config(**changes)), "m")
    assert "causal: chunks of 160 ms, left context of all" in text
    assert "attention sees its chunk and those before it" in text
    assert "causal" not in describe_model(SpearEncoder(tiny_config()), "m")


def test_token_heads_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(InfoConfig("model", str(folder)))
    assert "token head" not in capsys.readouterr().out
    state = {"heads.wavlm.weight": torch.zeros(32, 48), "heads.wavlm.bias": torch.zeros(32)}
    sizes = {"num_codebooks": 2, "codebook_size": 16, "frame_rate_hz": 25.0}
    write_token_heads(folder, state, {"wavlm": sizes})
    run(InfoConfig("model", str(folder)))
    assert "token head wavlm: 2 codebooks of 16 at 25 Hz" in capsys.readouterr().out


@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_the_first_frame_is_centred_where_it_says(padded: bool) -> None:
    """One changed fbank frame changes the frames around its own time, as far on either side."""
    model = SpearEncoder(tiny_config(frontend_pad=padded)).eval()
    fbank, lens = torch.randn(1, 120, 128), torch.tensor([120])
    before = model.encode_fbank(fbank, lens)["embeddings"][0]
    for changed in (60, 61):
        other = fbank.clone()
        other[0, changed] += 1.0
        difference = (model.encode_fbank(other, lens)["embeddings"][0] - before).abs().amax(dim=1)
        places = torch.nonzero(difference > 0).flatten()
        middle_ms = 20.0 * float(places[0] + places[-1]) / 2 + layer_centre_ms(model.config)
        assert middle_ms == 10.0 * changed + 5.0


def test_the_output_at_25_hz_is_centred_between_two_frames() -> None:
    config = tiny_config()
    assert layer_centre_ms(config) == output_centre_ms(config) == 15.0
    assert output_centre_ms(tiny_config(output_downsampling_factor=2)) == 25.0
    assert output_centre_ms(tiny_config(frontend_pad=False)) == 45.0
    assert "frame 0 is centred at 15 ms" in describe_model(SpearEncoder(config), "m")


def test_a_missing_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a model folder nor a hub id"):
        run(InfoConfig("model", str(tmp_path / "none")))
