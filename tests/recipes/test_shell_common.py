"""Log lines, quoting, stages, locks, and the launcher of jobs."""

import os
import re
import shlex
import signal
import subprocess
import time

import pytest


@pytest.fixture
def common(repo_dir, shell):
    """Runs bash lines after sourcing common.sh, in a script of its own name."""

    def run(lines, **variables):
        return shell(f'set -euo pipefail\n. "{repo_dir}/local/common.sh"\n{lines}\n', **variables)

    return run


def test_run_logs_a_command_that_can_be_typed_again(common):
    words = ["printf", "%s|", "a b", "it's", "$HOME", "", "x=1,2/3", "tab\there"]
    done = common(f"run {shlex.join(words)}")
    assert done.stdout == "a b|it's|$HOME||x=1,2/3|tab\there|"
    logged = re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(.+:\d+\) (.+)\n", done.stderr)
    assert logged is not None
    assert shlex.split(logged[1]) == words


def test_run_hands_on_the_status(common):
    assert common("run bash -c 'exit 5'").returncode == 5


def test_log_names_the_script_and_line_that_speak(repo_dir, tmp_path, shell):
    script = tmp_path / "speaker.sh"
    script.write_text(f'. "{repo_dir}/local/common.sh"\n\nlog hello  "you"\nrun true\n')
    lines = shell("bash", script).stderr.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "(speaker.sh:3) hello you",
        "(speaker.sh:4) true",
    ]


def test_stages_run_from_the_first_to_the_last_asked_for(common):
    done = common(
        "stage=2 stop_stage=3\nfor n in 1 2 3 4; do\n"
        'if begin_stage $n "number $n"; then echo $n; fi\ndone'
    )
    assert done.stdout == "2\n3\n"
    assert "stage 2: number 2" in done.stderr
    assert "number 4" not in done.stderr


@pytest.mark.parametrize("most", [1, 2, 9])
def test_side_by_side_calls_with_every_item(common, tmp_path, most):
    """So many at once: each waits until the others of its group have begun."""
    together = min(most, 3)
    done = common(
        f"act() {{ echo $1 >>log; touch began-$1; "
        f"for n in $(seq 100); do (($(ls began-* | wc -l) >= {together})) && return; "
        f"sleep 0.05; done; return 7; }}\nside_by_side {most} act a b c\necho done",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "b", "c"]


@pytest.mark.parametrize("most", [1, 2])
def test_side_by_side_ends_with_the_first_failure(common, tmp_path, most):
    done = common(
        "act() { echo $1 >>log; if [[ $1 == b ]]; then return 5; fi; }\n"
        f"side_by_side {most} act a b c d\necho done",
    )
    assert done.returncode == 5
    assert done.stdout == ""
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "b"]


def test_side_by_side_shares_the_cores(common):
    done = common(
        "getconf() { echo 8; }\nunset OMP_NUM_THREADS\n"
        "act() { echo ${OMP_NUM_THREADS:-all}; }\n"
        "side_by_side 2 act a b; side_by_side 1 act a; side_by_side 4 act"
    )
    assert done.stdout.split() == ["4", "4", "all"]


def test_absolute_keeps_rooted_and_empty_paths(common, tmp_path):
    done = common("for p in /a/b 'c d' ./e ../f ''; do absolute \"$p\"; echo; done")
    here = str(tmp_path)
    assert done.stdout.splitlines() == ["/a/b", f"{here}/c d", f"{here}/e", f"{here}/../f", ""]


def test_a_lock_is_waited_for_and_dies_with_its_holder(repo_dir, tmp_path, common):
    lock = tmp_path / "a folder" / ".lock"
    take = f'. "{repo_dir}/local/common.sh"; take_lock 8 "{lock}" python3 "works here"'
    holder = subprocess.Popen(["bash", "-c", f"{take}; echo held; read"], stdin=-1, stdout=-1)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waiter = subprocess.Popen(["bash", "-c", f"{take}; echo mine"], stdout=-1, stderr=-1)
    assert waiter.stderr is not None
    assert b"another process works here; waiting" in waiter.stderr.readline()
    assert waiter.poll() is None
    holder.kill()
    holder.wait()
    out, _ = waiter.communicate(timeout=20)
    assert out == b"mine\n"


def test_launch_runs_jobs_in_parallel_with_a_log_each(repo_dir, tmp_path, shell):
    # Each job waits for the other's file: they end only if both run at the same time.
    script = "touch here.JOB; until [ -e here.1 ] && [ -e here.2 ]; do sleep 0.05; done; echo JOB"
    done = shell(
        repo_dir / "local/launch.sh", "JOB=1:2", "my logs/x.JOB.log", "--", "bash", "-c", script
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for number in ("1", "2"):
        lines = (tmp_path / "my logs" / f"x.{number}.log").read_text().splitlines()
        assert lines[1] == number
        assert lines[0].startswith("# ") and f"here.{number}" in lines[0]
        assert lines[2].endswith("ended with status 0")


def test_launch_names_the_log_of_the_job_that_failed_and_returns_its_status(
    repo_dir, tmp_path, shell
):
    script = "echo job JOB speaks; exit $((JOB == 2 ? 7 : 0))"
    done = shell(repo_dir / "local/launch.sh", "JOB=1:3", "x.JOB.log", "--", "bash", "-c", script)
    assert done.returncode == 7
    assert "a job ended with status 7; its log is x.2.log" in done.stderr
    assert "job 2 speaks" in done.stderr
    assert "job 1 speaks" not in done.stderr


def test_launch_shows_a_single_job_and_logs_it(repo_dir, tmp_path, shell):
    script = "echo out; echo err >&2; printf '# kept'; exit 2"
    done = shell(repo_dir / "local/launch.sh", "x.log", "--", "bash", "-c", script)
    assert done.returncode == 2
    for text in (done.stderr, (tmp_path / "x.log").read_text()):
        assert re.search(r"^out\nerr\n# kept", text, re.MULTILINE)


def test_launch_passes_words_on_unchanged(repo_dir, shell):
    words = ["a b", "it's", "$HOME", "", "*", "JOB"]
    done = shell(repo_dir / "local/launch.sh", "x.log", "--", "printf", "%s|", *words)
    assert done.stderr == "a b|it's|$HOME||*|JOB|"
    more = shell(repo_dir / "local/launch.sh", "ME=7:7", "x.ME", "--", "printf", "%s|", "JOB", "ME")
    assert more.stderr == "JOB|7|"


@pytest.mark.parametrize("jobs", [[], ["JOB=1:2"]])
def test_a_signal_to_launch_ends_its_jobs(repo_dir, tmp_path, jobs):
    command = [str(repo_dir / "local/launch.sh"), *jobs, "x.JOB.log", "--"]
    job = subprocess.Popen(
        [*command, "bash", "-c", f"echo $$ > pid.{'JOB' if jobs else 1}; exec sleep 60"],
        cwd=tmp_path,
    )
    pid_files = [tmp_path / f"pid.{number}" for number in range(1, 3 if jobs else 2)]
    for _ in range(200):
        if all(file.exists() and file.read_text().strip() for file in pid_files):
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=10) == 143
    for file in pid_files:
        with pytest.raises(ProcessLookupError):
            for _ in range(100):
                os.kill(int(file.read_text()), 0)
                time.sleep(0.05)


@pytest.mark.parametrize(
    "words", [["x.log"], ["JOB=3:1", "x.log", "--", "true"], ["JOB=a", "x", "--", "true"]]
)
def test_launch_refuses_other_arguments(repo_dir, shell, words):
    done = shell(repo_dir / "local/launch.sh", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
