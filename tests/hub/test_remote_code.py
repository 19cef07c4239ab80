"""An exported folder in a process that has no spear: transformers loads it with its own code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spear.hub.export import write_model_folder
from spear.hub.remote_code import AUTO_MAP, OPTIONAL, flat_sources, write_code
from tests.hub.models import export_tiny, tiny_encoder

WITHOUT_SPEAR = """
import sys, os
os.environ["HF_HOME"] = sys.argv[1]
class NoSpear:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("spear", "lhotse", "jsonargparse"):
            raise ModuleNotFoundError(f"no module {name}")
sys.meta_path.insert(0, NoSpear())
import torch
"""


def run_without_spear(script: str, *args: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_SPEAR + script, *map(str, args)],
        capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def snippets(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)


def test_it_loads_trains_and_saves_itself_where_there_is_no_spear(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = export_tiny(tmp_path / "model")
    audio = 0.1 * torch.randn(2, 16000)
    torch.save(audio, tmp_path / "audio.pt")
    with torch.no_grad():
        expected = tiny_encoder()(audio, torch.tensor([16000, 9000]))["encoder_out"]
    script = """
from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification
folder, saved = sys.argv[2:4]
audio = torch.load("audio.pt", weights_only=True)
lens = torch.tensor([16000, 9000])
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    out = model(audio, audio_lens=lens).last_hidden_state
torch.save(out, "out.pt")
model.save_pretrained(saved)
config = AutoConfig.from_pretrained(saved, trust_remote_code=True, num_labels=2)
again = AutoModelForAudioClassification.from_pretrained(
    saved, trust_remote_code=True, config=config
).train()
again(audio, audio_lens=lens, labels=torch.tensor([0, 1])).loss.backward()
with torch.no_grad():
    assert torch.equal(again.eval().spear(audio, audio_lens=lens).last_hidden_state, out)
assert not any(name.split(".")[0] == "spear" for name in sys.modules)
"""
    run_without_spear(script, tmp_path / "hf", folder, tmp_path / "saved", cwd=tmp_path)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0.0)


def test_the_cards_snippets_run_as_they_stand(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = export_tiny(tmp_path / "model")
    alone, with_spear = snippets(folder / "README.md")
    printed = run_without_spear(alone, tmp_path / "hf", cwd=folder)
    assert printed == "torch.Size([2, 50, 48]) tensor([50, 28]) 3\n"
    done = subprocess.run(
        [sys.executable, "-c", with_spear],
        capture_output=True, text=True, cwd=folder, check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.stdout == "torch.Size([1, 50, 48]) tensor([50])\n"


def test_files_need_nothing_but_torch_numpy_and_transformers() -> None:
    allowed = {"torch", "numpy", "transformers", *sys.stdlib_module_names}
    for name, source in flat_sources().items():
        tree = ast.parse(source, name)
        blocks = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
        tried = {child for block in blocks for child in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                packages = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                packages = {(node.module or "").split(".")[0]}
            else:
                continue
            if node in tried:
                assert packages <= OPTIONAL | allowed
            else:
                assert packages <= allowed, (name, packages)


def test_relative_imports_name_files_that_are_there() -> None:
    sources = flat_sources()
    for name, source in sources.items():
        named = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", source, re.MULTILINE))
        assert named <= set(sources), (name, named - set(sources))
        assert "from spear" not in source
    for place in AUTO_MAP.values():
        file, class_name = place.split(".")
        assert f"class {class_name}(" in sources[file]
        # transformers 4 copies no more files than the first one names.
        named = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", sources[file], re.MULTILINE))
        for inner in named:
            more = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", sources[inner], re.MULTILINE))
            assert more <= named | {file}


def test_the_code_is_written_again_the_same(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_code(tmp_path / folder)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"
    )
    assert first == second
    assert "modeling_spear.py" in first


def test_a_card_tells_the_runs_records(tmp_path: Path) -> None:
    origin = {
        "weights": "averaged",
        "teachers": {"wavlm": {"num_codebooks": 16, "codebook_size": 256, "frame_rate_hz": 50.0}},
        "training": {
            "steps": 1200, "audio_hours": 12.5, "elapsed_s": 7200.0, "data": ["speech_train"],
            "validation": {"wavlm_masked_accuracy": 0.321, "wavlm_baseline_accuracy": 0.0274},
        },
    }  # fmt: skip
    write_model_folder(tiny_encoder(), tmp_path / "my model", origin)
    card = (tmp_path / "my model" / "README.md").read_text()
    for text in (
        "# my model",
        "| steps | 1200 |",
        "| audio seen | 12.5 h |",
        "| time | 2.00 h |",
        "`speech_train`",
        "| wavlm | 16 x 256 | 50 | 32.10% | 2.74% |",
        "`averaged` weights",
        "48 channels at 50 Hz",
    ):
        assert text in card
    assert str(tmp_path) not in card
