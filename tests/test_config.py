"""Configurations: YAML, overrides, and one clear line for each mistake."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from spear.config import load_config, parse_config, to_dict, write_yaml
from spear.errors import ConfigError


@dataclass
class Source:
    """A data set."""

    path: str
    """Folder."""
    weight: float = 1.0
    """Share."""


@dataclass
class Model:
    """A model."""

    dim: int = 3
    """Width, in channels."""
    layers: tuple[int, ...] = (1, 2)
    """Layers of each stack."""


@dataclass
class Run:
    """A run."""

    output: str
    """Where to."""
    model: Model = field(default_factory=Model)
    """The model."""
    base: Model | None = None
    """Another."""
    teachers: dict[str, Model] = field(default_factory=dict)
    """By name."""
    data: list[Source] = field(default_factory=list)
    """Data sets."""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_yaml_then_overrides_fill_nested_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a b.yaml",
        "output: x\nmodel: {dim: 4}\nbase: {dim: 7}\nteachers: {w: {dim: 5}}\ndata: [{path: p}]\n",
    )
    config = parse_config(
        Run, ["--config", path, "--model.layers", "[3, 4]", "--teachers.w.dim=6"], "spear run"
    )
    assert config == Run("x", Model(4, (3, 4)), Model(7), {"w": Model(6)}, [Source("p", 1.0)])


def test_later_files_overlay_earlier_ones(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "output: x\nmodel: {dim: 4}\n")
    second = write(tmp_path / "b.yaml", "model: {layers: [9]}\n")
    config = parse_config(Run, ["--config", first, "--config", second])
    assert config.model == Model(4, (9,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {dmi: 4}\noutput: x", "unknown key model.dmi; did you mean model.dim?"),
        ("teachers: {w: {lyers: 4}}\noutput: x", "did you mean teachers.w.layers?"),
        ("data: [{path: p, wieght: 2}]\noutput: x", "did you mean data.0.weight?"),
        ("base: {dmi: 4}\noutput: x", "did you mean base.dim?"),
        ("model: {dim: wide}\noutput: x", "model.dim"),
        ("model: {dim: 4}", "output"),
        ("- a\n- b", "holds a list"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError) as caught:
        parse_config(Run, ["--config", path], "spear run")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_on_the_command_line_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.dmi; did you mean model\.dim\?.*--help"):
        parse_config(Run, ["--output", "x", "--model.dmi", "4"])
    with pytest.raises(ConfigError, match=r"no configuration file nowhere\.yaml"):
        parse_config(Run, ["--config", "nowhere.yaml"])
    with pytest.raises(ConfigError, match="stray"):
        parse_config(Run, ["--output", "x", "stray"])


def test_help_lists_fields_with_docstrings_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(Run, ["--help"], "spear run")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Width, in channels." in text
    assert "default: 3" in text


def test_written_yaml_reads_back_equal(tmp_path: Path) -> None:
    config = Run("x", Model(4, (3,)), None, {"w": Model(6)}, [Source("p", 0.5)])
    write_yaml(tmp_path / "run.yaml", config)
    assert load_config(Run, tmp_path / "run.yaml") == config
    assert to_dict(config)["model"] == {"dim": 4, "layers": [3]}


@dataclass
class Switches:
    """Two switches."""

    profile: bool = False
    """Measure."""
    inner: Source = field(default_factory=lambda: Source("here"))
    """Not a switch."""
    quiet: bool = True
    """Say nothing."""


@pytest.mark.parametrize(
    ("words", "profile", "quiet"),
    [
        (["--profile"], True, True),
        (["--profile", "--quiet", "false"], True, False),
        (["--quiet", "false", "--profile"], True, False),
        (["--profile", "false"], False, True),
        ([], False, True),
    ],
)
def test_a_switch_needs_no_value(words: list[str], profile: bool, quiet: bool) -> None:
    config = parse_config(Switches, words)
    assert (config.profile, config.quiet) == (profile, quiet)


@pytest.mark.parametrize("words", [["--base-path", "x"], ["--base-path=x"], ["--base_path", "x"]])
def test_names_may_have_hyphens_as_in_shell_scripts(words: list[str]) -> None:
    @dataclass
    class Named:
        """One name."""

        base_path: str = ""
        """Where."""

    assert parse_config(Named, words).base_path == "x"
    with pytest.raises(ConfigError, match="base-pth"):
        parse_config(Named, ["--base-pth", "x"])


def test_other_options_need_their_value() -> None:
    with pytest.raises(ConfigError, match="expected one argument"):
        parse_config(Switches, ["--inner.path"])
