"""Options of shell scripts: every declared variable is one, and nothing else."""

from pathlib import Path

import pytest

SCRIPT = """#!/usr/bin/env bash
# Says what it was told.
#
#   script.sh --name NAME
set -euo pipefail
{before}
stage=0               # first stage to run
long_name="a b"       # a value with
  # two words
keep=false            # a boolean
path_to='x'           # no double quotes
HIDDEN=1              # constants are not options
. "{root}/local/parse_options.sh"
after=no              # declared later, so not an option
printf '%s|' "$stage" "$long_name" "$keep" "$path_to" "$HIDDEN" "$after"
"""


@pytest.fixture
def script(tmp_path: Path, repo_dir: Path) -> Path:
    folder = tmp_path / "a folder"
    folder.mkdir()
    path = folder / "script.sh"
    path.write_text(SCRIPT.format(root=repo_dir, before=""))
    path.chmod(0o755)
    return path


def test_without_options_defaults_stay(script, shell):
    assert shell(script).stdout == "0|a b|false|x|1|no|"


def test_options_set_variables_in_both_forms_and_the_last_wins(script, shell):
    done = shell(script, "--stage", "3", "--long-name=c  d=e", "--keep", "true", "--stage", "4")
    assert (done.returncode, done.stdout) == (0, "4|c  d=e|true|x|1|no|")


@pytest.mark.parametrize("value", ["", "with spaces", "$HOME `ls`", "it's", "--stage", "*"])
def test_values_are_taken_literally(script, shell, value):
    assert shell(script, "--path-to", value).stdout == f"0|a b|false|{value}|1|no|"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stag", "3"], "unknown option --stag;"),
        (["--stag"], "unknown option --stag;"),
        (["--stag=3"], "unknown option --stag;"),
        (["--HIDDEN", "3"], "unknown option --HIDDEN;"),
        (["--after", "3"], "unknown option --after;"),
        (["--stage"], "--stage needs a value"),
        (["--keep", "yes"], "--keep takes true or false, not 'yes'"),
        (["extra"], "unexpected argument 'extra'"),
        (["-s", "3"], "unexpected argument '-s'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_status_2(script, shell, words, message):
    done = shell(script, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"script.sh: error: {message}")


def test_exported_variables_of_the_same_name_change_nothing(script, shell):
    assert shell(script, "--stage", "1", keep="true", after="yes").stdout == "1|a b|false|x|1|no|"


def test_help_shows_the_opening_comment_and_every_option_with_its_default(script, shell):
    done = shell(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Says what it was told.\n\n  script.sh --name NAME\n")
    assert "set -euo" not in done.stdout
    lines = [line.split(maxsplit=1) for line in done.stdout.split("Options:\n")[1].splitlines()]
    assert lines == [
        ["--stage", "first stage to run (default: 0)"],
        ["--long-name", "a value with two words (default: a b)"],
        ["--keep", "a boolean (default: false)"],
        ["--path-to", "no double quotes (default: x)"],
    ]


def test_shared_options_come_from_the_files_that_the_script_names(tmp_path, repo_dir, shell):
    (tmp_path / "shared.sh").write_text("common=1  # an option of all\nshared() { :; }\n")
    script = tmp_path / "script.sh"
    before = f'. "{tmp_path}/shared.sh"\nOPTION_FILES=("{tmp_path}/shared.sh")'
    script.write_text(SCRIPT.format(root=repo_dir, before=before) + 'printf "%s" "$common"\n')
    done = shell("bash", script, "--common", "7", "--stage", "2")
    assert done.stdout == "2|a b|false|x|1|no|7"
    assert "--common" in shell("bash", script, "--help").stdout
