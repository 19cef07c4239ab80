"""The script that makes the mini recipe's teachers."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from spear.system.files import sha256_of
from spear.teachers import Teacher, load_teacher

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def script(repo_dir: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_teachers", repo_dir / "local" / "make_teachers.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with a space") / "teachers"
    assert script.main(["--output-dir", str(folder), "--seed", "5"]) == 0
    return folder


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256_of(file) for file in files}


def _teachers(folder: Path) -> list[Teacher]:
    wavlm = load_teacher({"name": "wavlm", "path": str(folder / "wavlm")})
    return [wavlm, load_teacher({"name": "dasheng", "path": str(folder / "dasheng.pt")})]


def test_official_formats(folder: Path) -> None:
    names = ["dasheng.pt", *(f"wavlm/{name}" for name in ("config.json", "model.safetensors"))]
    assert sorted(_digests(folder)) == [*names, "wavlm/preprocessor_config.json"]
    released = torch.load(folder / "dasheng.pt", weights_only=True)
    assert set(released) == {"model", "config"}
    assert "front_end.0.mel_scale.fb" in released["model"]
    wavlm, dasheng = _teachers(folder)
    assert (wavlm.frame_rate_hz, dasheng.frame_rate_hz) == (50.0, 25.0)
    assert dasheng.num_frames(16000 * 30) == 750


def test_equal_seeds_give_equal_bytes(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    """Tokens carry the digest of their teacher: a teacher made anew must fit them."""
    script.main(["--output-dir", str(tmp_path / "same"), "--seed", "5"])
    assert _digests(tmp_path / "same") == _digests(folder)
    script.main(["--output-dir", str(tmp_path / "other"), "--seed", "6"])
    other = _digests(tmp_path / "other")
    for weights in ("dasheng.pt", "wavlm/model.safetensors"):
        assert other[weights] != _digests(folder)[weights]


def test_only_what_is_missing_or_broken_is_made(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--output-dir", str(tmp_path), "--seed", "5"]
    script.main(arguments)
    before = _digests(tmp_path)
    with monkeypatch.context() as patch:
        for name in ("make_wavlm", "make_dasheng"):
            patch.setattr(script, name, lambda path, seed: pytest.fail(f"{path} made again"))
        script.main(arguments)
    weights = tmp_path / "wavlm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "dasheng.pt").unlink()
    script.main(arguments)
    assert _digests(tmp_path) == before


def test_global_generator_is_left_alone(script: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    script.main(["--output-dir", str(tmp_path), "--seed", "5"])
    assert torch.equal(torch.rand(4), expected)


def test_unwritable_place_is_one_line(
    script: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert script.main(["--output-dir", str(tmp_path / "file" / "sub")]) == 2
    assert "ERROR" in capfd.readouterr().err


def test_first_filters_ignore_a_constant(folder: Path) -> None:
    weights = _teachers(folder)[0].model.feature_extractor.conv_layers[0].conv.weight[:, 0]
    torch.testing.assert_close(weights.sum(dim=1), torch.zeros(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(32))


def _vowels(num: int, generator: torch.Generator) -> torch.Tensor:
    """(num, 8000): steady sounds, noise through a random resonance each, equally loud."""
    noise = torch.fft.rfft(torch.randn(num, 8000, generator=generator))
    centre_hz = torch.linspace(300, 6000, num)[:, None]
    hz = torch.linspace(0, 8000, noise.shape[1])
    sound = torch.fft.irfft(noise * torch.exp(-(((hz - centre_hz) / 300) ** 2)))
    return 0.1 * sound / sound.std(dim=1, keepdim=True)


@pytest.mark.parametrize("index", [0, 1], ids=["wavlm", "dasheng"])
def test_frames_follow_the_sound_and_not_its_phase(folder: Path, index: int) -> None:
    """Two draws of noise with one spectrum are closer than two spectra: a student can learn it.

    With transformers' own initialisation this ratio is 0.9 for WavLM.
    """
    teacher = _teachers(folder)[index]
    generator = torch.Generator().manual_seed(0)
    lens = torch.full((12,), 8000)
    first = teacher(_vowels(12, generator), lens)[0]
    second = teacher(_vowels(12, generator), lens)[0]
    within = (first - second).square().mean()
    between = (first - second.roll(5, dims=0)).square().mean()
    assert within < 0.1 * between
    assert first.mean(dim=1).std(dim=0).min() > 0.01  # no channel is constant
