"""A finished student as a teacher, against the student itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import spear
from spear.errors import CheckpointError
from spear.system.files import sha256_of
from spear.teachers import load_teacher

Spec = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("layer", [None, 1, 4, 9])
def test_published_student_gives_published_frames(golden_dir: Path, layer: int | None) -> None:
    folder = golden_dir / "spear_tiny_50hz"
    reference = torch.load(folder / "reference.pt", weights_only=True)
    teacher = load_teacher(
        {"name": "student", "family": "spear", "path": str(folder), "layer": layer}
    )
    frames, lens = teacher(reference["audio"], reference["audio_lens"])
    for row, alone in enumerate(reference["alone"]):
        expected = alone["encoder_out"] if layer is None else alone["hidden_states"][layer - 1]
        expected = expected.reshape(-1, teacher.dim)
        assert len(expected) == lens[row]
        assert (frames[row, : lens[row]] - expected).abs().max() < 2e-4


@pytest.mark.parametrize(("variant", "rate_hz"), [("spear", 50.0), ("spear-25", 25.0)])
def test_output_and_layers_have_their_own_rates(
    make_spec: Spec, variant: str, rate_hz: float
) -> None:
    spec = make_spec(variant)
    audio, lens = torch.randn(2, 16080), torch.tensor([16080, 9000])
    out = spear.from_pretrained(spec["path"])(audio, lens)
    teacher = load_teacher(spec)
    frames, counts = teacher(audio, lens)
    assert teacher.frame_rate_hz == rate_hz
    assert counts.tolist() == out["encoder_out_lens"].tolist()
    torch.testing.assert_close(frames[0], out["encoder_out"][0])
    for layer, width in ((1, 32), (2, 48)):
        teacher = load_teacher({**spec, "layer": layer})
        frames, counts = teacher(audio, lens)
        assert (teacher.dim, teacher.frame_rate_hz, counts[0]) == (width, 50.0, 50)
        torch.testing.assert_close(frames[0], out["hidden_states"][layer - 1][0])


def test_digest_and_layer_range(make_spec: Spec) -> None:
    spec = make_spec("spear")
    expected = sha256_of(Path(spec["path"]) / "model.safetensors")
    assert load_teacher(spec).weights_sha256 == expected
    for layer in (0, 3):
        with pytest.raises(CheckpointError, match="layers 1 to 2"):
            load_teacher({**spec, "layer": layer})


def test_another_model_is_refused(make_spec: Spec) -> None:
    with pytest.raises(CheckpointError):
        load_teacher({**make_spec("wavlm"), "family": "spear"})
