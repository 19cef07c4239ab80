"""Every snippet of docs/using-the-model.md runs as it stands where what it names is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spear.cli import main
from spear.config import to_dict
from spear.encoders.icefall import write_checkpoint
from spear.pretrain.losses import LossConfig
from spear.pretrain.model import PretrainModel, TeacherTarget
from spear.training.checkpoints.checkpoint import (
    CheckpointContent,
    checkpoint_path,
    save_checkpoint,
)
from tests.hub.models import export_tiny, tiny_encoder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "using-the-model.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


def write_run(folder: Path) -> None:
    """A pre-training run with one checkpoint."""
    targets = {"wavlm": TeacherTarget("speech", num_codebooks=4, codebook_size=16)}
    model = PretrainModel(tiny_encoder().config, targets, LossConfig())
    state = {name: value.detach() for name, value in model.state_dict().items()}
    teachers = {name: to_dict(target) for name, target in targets.items()}
    content = CheckpointContent(
        model=state,
        averaged={name: value.double() for name, value in state.items()},
        optimizer={},
        state={"position": {"step": 2}, "num_averaged": 1},
        config={"student": model.encoder.config.to_dict(), "teachers": teachers},
    )
    save_checkpoint(checkpoint_path(folder, 2), content)


def write_recogniser(folder: Path, encoder: Path) -> None:
    from transformers import AutoConfig

    from spear.hub.hf import SpearForCTC

    config = AutoConfig.from_pretrained(encoder, vocabulary=["<blk>", "<unk>", "▁", "A", "B"])
    SpearForCTC.from_pretrained(encoder, config=config).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    export_tiny(folder / "exp" / "model")
    write_recogniser(folder / "exp" / "recogniser", folder / "exp" / "model")
    write_checkpoint(tiny_encoder(), folder / "exp" / "icefall")
    write_run(folder / "exp" / "pretrain")
    audio = 0.1 * np.random.default_rng(0).standard_normal(20000)
    soundfile.write(folder / "speech.wav", audio, 16000)
    (folder / "recordings").mkdir()
    soundfile.write(folder / "recordings" / "a b.flac", audio[:9000], 8000)
    return folder


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("spear ")])
def test_commands(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "export-onnx" in command:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(place)
    assert main(shlex.split(command, comments=True)[1:]) == 0


def test_the_other_commands_are_those_that_need_other_tools() -> None:
    others = [command.split()[0] for command in COMMANDS if not command.startswith("spear ")]
    assert others == ["SPEAR_MODEL=exp/model"]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number: int, place: Path) -> None:
    code = PYTHON[number]
    for package in re.findall(r"^(?:import|from) (transformers|lhotse)", code, re.MULTILINE):
        pytest.importorskip(package)
    if "onnxruntime" in code:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        model, folder = str(place / "exp" / "model"), str(place / "exp" / "onnx")
        assert main(["export-onnx", "--model", model, "--output_dir", folder]) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(place / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_the_page_says_of_shapes(place: Path) -> None:
    """The comments of the first snippet, with the numbers of the small model."""
    import spear

    model = spear.from_pretrained(place / "exp" / "model")
    with torch.no_grad():
        out = model(torch.randn(2, 32000) * 0.1, torch.tensor([32000, 20000]))
    assert out["encoder_out"].shape == (2, 100, model.output_dim)
    assert [x.shape[:2] for x in out["hidden_states"]] == [(2, 100)] * model.num_layers
    assert int(out["encoder_out_lens"][1]) == model.num_frames(20000) == 62
