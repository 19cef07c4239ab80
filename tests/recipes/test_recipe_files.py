"""What recipes ship: configurations that load, scripts that explain themselves and refuse typos."""

import dataclasses
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from spear.cli import COMMANDS
from spear.config import parse_config, to_dict
from spear.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = sorted(ROOT.glob("recipes/*/conf/**/*.yaml"))
RECIPES = sorted(ROOT.glob("recipes/*/run.sh"))
SCRIPTS = sorted([*ROOT.glob("local/*.sh"), *ROOT.glob("recipes/*/*.sh"), ROOT / ".ci" / "run"])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def command_of(path: Path) -> str:
    """Command of a configuration: `pretrain-x.yaml` is for `pretrain`, and so is a model's name."""
    fitting = [name for name in COMMANDS if f"{path.stem}-".startswith(f"{name}-")]
    return max(fitting, key=len, default="pretrain")


def config_class(path: Path) -> type:
    return COMMANDS[command_of(path)].load()[1]


def required_options(kind: type) -> list[str]:
    """Values for the fields that a recipe sets on the command line."""
    return list(
        itertools.chain.from_iterable(
            (f"--{field.name}", "x")
            for field in dataclasses.fields(kind)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
    )


def assert_holds(loaded: Any, content: Any, where: str) -> None:
    """Every value of the file stands in what was loaded; one number may stand for all stacks."""
    if isinstance(content, dict):
        for key, value in content.items():
            assert_holds(loaded[key], value, f"{where}: {key}")
    elif isinstance(content, list):
        content = content * len(loaded) if len(content) == 1 else content
        for number, (one, value) in enumerate(zip(loaded, content, strict=True)):
            assert_holds(one, value, f"{where}: {number}")
    else:
        assert loaded == content, where


def test_there_are_configurations_and_recipes():
    assert CONFIGS and RECIPES


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_configuration_loads_and_says_something(path):
    kind = config_class(path)
    words = ["--config", str(path), *required_options(kind)]
    content = yaml.safe_load(path.read_text("utf-8"))
    loaded = parse_config(kind, words)
    assert_holds(to_dict(loaded), content, path.name)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_configuration_with_a_misspelt_key_is_refused(path, tmp_path):
    content = yaml.safe_load(path.read_text("utf-8"))
    key = next(iter(content))
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump({f"{key}s": content[key]}))
    kind = config_class(path)
    words = ["--config", str(tmp_path / "typo.yaml"), *required_options(kind)]
    with pytest.raises(ConfigError, match=f"{key}s"):
        parse_config(kind, words)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_explains_its_options(path, shell):
    done = shell(path, "--help")
    assert done.returncode == 0, done.stderr
    for option in ("--stage", "--stop-stage", "--output-dir"):
        assert f"  {option} " in done.stdout
    assert name_of(path) in done.stdout  # an example to type


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
@pytest.mark.parametrize(
    "words", [["--no-such-option", "1"], ["--stage"], ["--stage", "two"], ["extra"]], ids=" ".join
)
def test_recipe_refuses_mistakes_with_one_line_before_doing_anything(path, words, shell, tmp_path):
    done = shell(path, *words, "--output-dir", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("run.sh: error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_scripts_are_clean():
    program = Path(sys.executable).with_name("shellcheck")
    found = str(program) if program.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("no shellcheck")
    command = [found, "--external-sources", f"--source-path={ROOT}", *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "path", [p for p in SCRIPTS if p.read_text().startswith("#!")], ids=name_of
)
def test_programs_can_be_executed(path):
    assert path.stat().st_mode & 0o111


def test_test_script_refuses_an_unknown_part(shell):
    done = shell(ROOT / "local" / "test.sh", "--only", "nonsense")
    assert done.returncode == 2
    assert "--only is all, lint, types, shell, numbers or tests" in done.stderr
