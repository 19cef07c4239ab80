"""icefall checkpoints, made here as icefall writes them: in, out, and what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import spear
from spear.encoders.encoder import SpearEncoder
from spear.encoders.icefall import load_checkpoint, to_icefall, write_checkpoint
from spear.errors import CheckpointError, ConfigError
from spear.hub.icefall.command import ImportIcefallConfig
from spear.zipformer import ZipformerConfig
from tests.encoders.test_encoder import tiny_config

DECODER = {"decoder.embedding.weight": torch.zeros(5, 4), "joiner.out.weight": torch.zeros(5, 4)}


def make_encoder(**changes: object) -> SpearEncoder:
    torch.manual_seed(3)
    return SpearEncoder(tiny_config(frontend_pad=False, **changes)).eval()


def options(config: ZipformerConfig) -> dict[str, Any]:
    """What icefall's train.py leaves in a checkpoint: the run's options, numbers as text."""
    values = config.to_dict()
    text = {k: ",".join(map(str, v)) for k, v in values.items() if isinstance(v, list)}
    del text["embed_channels"]
    plain = {k: values[k] for k in ("pos_dim", "causal", "feature_dim")}
    return {**text, **plain, "exp_dir": Path("exp dir"), "batch_idx_train": 4, "best": None}


def write_epoch(path: Path, encoder: SpearEncoder, **more: Any) -> Path:
    model = {**to_icefall(encoder), **DECODER}
    average = {name: 2.0 * value.double() for name, value in model.items()}
    content = {"model": model, "model_avg": average, "optimizer": None, **more}
    torch.save({**content, **options(encoder.config)}, path)
    return path


@pytest.mark.parametrize("factor", [1, 2])
def test_an_epoch_tells_its_architecture(tmp_path: Path, factor: int) -> None:
    encoder = make_encoder(output_downsampling_factor=factor)
    path = write_epoch(tmp_path / "epoch-3.pt", encoder)
    loaded, left_aside = load_checkpoint(path)
    assert left_aside == ["decoder", "joiner"]
    assert loaded.config == encoder.config
    audio = 0.1 * torch.randn(1, 9000)
    with torch.no_grad():
        assert torch.equal(loaded(audio)["encoder_out"], encoder(audio)["encoder_out"])
    doubled, _ = load_checkpoint(path, weights="model_avg")
    name = "model.encoder_embed.out.weight"
    assert torch.equal(doubled.state_dict()[name], 2.0 * encoder.state_dict()[name])


def assert_reads(path: Path, student: dict[str, Any] | None, encoder: SpearEncoder) -> None:
    loaded, left_aside = load_checkpoint(path, student)
    assert left_aside == []
    for ours, theirs in zip(loaded.model.parameters(), encoder.model.parameters(), strict=True):
        if ours is not loaded.model.mask_emb:  # icefall has no place for it
            assert torch.equal(ours, theirs)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    encoder = make_encoder()
    write_checkpoint(encoder, tmp_path / "for icefall")
    path = tmp_path / "for icefall" / "pretrained.pt"
    assert_reads(path, None, encoder)  # the configuration lies beside it
    (tmp_path / "for icefall" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="does not tell the sizes"):
        load_checkpoint(path)
    student = {k: v for k, v in encoder.config.to_dict().items() if k != "frontend_pad"}
    assert_reads(path, student, encoder)
    readme = (tmp_path / "for icefall" / "README.md").read_text()
    assert "--encoder-dim 32,48 " in readme and "--causal False" in readme
    assert "Pad the features" not in readme


def test_commands_take_a_checkpoint_in_and_out_again(tmp_path: Path) -> None:
    encoder = make_encoder()
    path = write_epoch(tmp_path / "epoch-3.pt", encoder)

    def run(*words: object) -> str:
        command = [sys.executable, "-m", "spear", *map(str, words)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout + done.stderr

    folder = tmp_path / "imported"
    log = run("import-icefall", "--checkpoint", path, "--output_dir", folder)
    assert "left aside: decoder, joiner" in log
    model = spear.from_pretrained(folder)
    assert model.config == encoder.config
    assert torch.equal(
        model.state_dict()["model.encoder_embed.out.weight"],
        encoder.state_dict()["model.encoder_embed.out.weight"],
    )
    assert "epoch-3.pt" in (folder / "README.md").read_text()


def test_bad_files_are_one_clear_error(tmp_path: Path) -> None:
    encoder = make_encoder()
    broken, other = tmp_path / "broken.pt", tmp_path / "other.pt"
    broken.write_bytes(b"text")
    torch.save({"model": DECODER}, other)
    pickled = write_epoch(tmp_path / "pickled.pt", encoder, sampler=ImportIcefallConfig)
    cases = [
        (tmp_path / "none.pt", "is no file"),
        (broken, "broken"),
        (other, r"no `encoder\.\*` weights: it holds \['"),
        (pickled, "more than tensors and plain values"),
    ]
    for path, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    torch.save([1], other)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(other)
    torch.save({"state_dict": {}}, other)
    with pytest.raises(CheckpointError, match="no weights called 'model'"):
        load_checkpoint(other)
    epoch = write_epoch(tmp_path / "epoch-1.pt", encoder)
    with pytest.raises(ConfigError, match="did you mean 'encoder_dim'"):
        load_checkpoint(epoch, {"encoder_dims": [3]})
    with pytest.raises(CheckpointError, match="of another shape"):
        load_checkpoint(epoch, {"encoder_dim": [16, 16], "encoder_unmasked_dim": [16, 16]})


def test_a_padded_encoder_says_what_icefall_must_do(tmp_path: Path) -> None:
    write_checkpoint(SpearEncoder(tiny_config()), tmp_path / "out")
    assert "Pad the features" in (tmp_path / "out" / "README.md").read_text()
