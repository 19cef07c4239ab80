"""Importing `spear.hub` costs no transformers, and registers with it whichever comes first."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.models import export_tiny

ORDERS = {
    # Many packages ask whether there is a transformers without importing it.
    "spear first": "import spear.hub, importlib.util; importlib.util.find_spec('transformers')\n"
    "import transformers",
    "transformers first": "import transformers, spear.hub",
    "a module of classes first": "import spear.hub.hf.config, transformers",
}


def run(script: str, *args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_our_models_in_either_order(
    order: str, tmp_path: Path, repo_dir: Path
) -> None:
    pytest.importorskip("transformers")
    folder = export_tiny(tmp_path / "model")
    script = f"""
import sys
{ORDERS[order]}
model = transformers.AutoModel.from_pretrained(sys.argv[1])
assert type(model) is spear.hub.SpearModel
assert isinstance(model.config, spear.hub.SpearConfig)
assert spear.hub.SpearForCTC.config_class is spear.hub.SpearConfig
assert not [f for f in sys.meta_path if type(f).__module__.startswith("spear")]
"""
    done = run(script, folder, cwd=repo_dir)
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_the_hub_imports_no_transformers(repo_dir: Path) -> None:
    done = run("import sys, spear.hub\nassert 'transformers' not in sys.modules\n", cwd=repo_dir)
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_transformers_the_hub_works_and_its_classes_say_what_to_install(
    repo_dir: Path,
) -> None:
    script = """
import sys
class NoTransformers:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError(f"no module {name}")
sys.meta_path.insert(0, NoTransformers())
import spear.hub
from spear.errors import MissingPackageError
assert not hasattr(spear.hub, "other")
try:
    spear.hub.SpearModel
except MissingPackageError as error:
    assert "pip install transformers" in str(error)
else:
    raise AssertionError("no error")
"""
    done = run(script, cwd=repo_dir)
    assert done.returncode == 0, done.stderr[-3000:]
