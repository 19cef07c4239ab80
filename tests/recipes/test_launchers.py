"""The launchers of jobs take Kaldi's arguments, on this machine and on a Slurm cluster."""

import os
import re
import shlex
import signal
import subprocess
import time

import pytest
import slurm_fakes

RUN_PL = r"""#!/usr/bin/env python3
# Takes arguments and quotes them as Kaldi's run.pl does: words without blanks stay as they are.
import re, subprocess, sys
words = sys.argv[1:]
jobs = [0]
while words[0].startswith("-") or re.match(r"\w+=\d", words[0]):
    if words[0].startswith("-"):
        words = words[2:]
        continue
    name, first, last = re.match(r"(\w+)=(\d+):(\d+)$", words.pop(0)).groups()
    jobs = range(int(first), int(last) + 1)
log, *rest = words
quoted = [w if re.match(r"\S+$", w) else f"'{w}'" if '"' in w else f'"{w}"' for w in rest]
for job in jobs:
    command = " ".join(quoted)
    if jobs != [0]:
        log, command = (text.replace(name, str(job)) for text in (words[0], command))
    with open(log, "w") as stream:
        subprocess.run(["bash", "-c", command], stdout=stream, check=True)
"""


@pytest.fixture
def launch(repo_dir, tmp_path, shell):
    """Runs a launcher by its name, with a Slurm that runs jobs here."""
    variables = slurm_fakes.install(tmp_path)
    variables["PATH"] = f"{variables.pop('SLURM_BIN')}:{os.environ['PATH']}"

    def run(name, *words, **more):
        return shell(repo_dir / "local" / name, *words, **{**variables, **more})

    run.variables = variables
    return run


@pytest.mark.parametrize("name", ["launch.sh", "slurm.sh"])
def test_jobs_are_numbered_and_logged(launch, name, tmp_path):
    words = ["a b", "it's", "$HOME", "", "*", "JOB", '{"x": "JOB"}']
    done = launch(name, "JOB=2:4", "my logs/x.JOB.log", "printf", "%s|", *words)
    assert done.returncode == 0, done.stderr
    for job in ("2", "3", "4"):
        text = (tmp_path / "my logs" / f"x.{job}.log").read_text()
        assert f'a b|it\'s|$HOME||*|{job}|{{"x": "{job}"}}|' in text
        assert text.endswith("ended with status 0\n")
    assert not (tmp_path / "my logs" / "x.1.log").exists()


@pytest.mark.parametrize("name", ["launch.sh", "slurm.sh"])
@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_kaldis_options_stand_on_either_side_of_the_jobs(launch, name, dashes, tmp_path):
    words = ["--mem", "4G", "-V", "JOB=1:1", "--num-threads", "3", "--max-jobs-run", "2"]
    done = launch(name, *words, "log/JOB.log", *dashes, "echo", "--mem", "stays")
    assert done.returncode == 0, done.stderr
    assert "--mem stays\n" in (tmp_path / "log/1.log").read_text()


@pytest.mark.parametrize("name", ["launch.sh", "slurm.sh"])
def test_the_status_is_that_of_the_first_that_failed(launch, name):
    script = "echo job JOB speaks; exit $((JOB > 1 ? 5 + JOB : 0))"
    done = launch(name, "JOB=1:3", "x.JOB.log", "bash", "-c", script)
    assert done.returncode == 7
    assert "a job ended with status 7; its log is x.2.log" in done.stderr
    assert "a job ended with status 8; its log is x.3.log" in done.stderr
    assert "job 2 speaks" in done.stderr
    assert "job 1 speaks" not in done.stderr


def test_no_more_jobs_run_than_asked_for(launch, tmp_path):
    script = "touch on.JOB; ls on.* | wc -l; sleep 0.3; rm on.JOB"
    done = launch("launch.sh", "--max-jobs-run", "2", "JOB=1:5", "x.JOB.log", "bash", "-c", script)
    assert done.returncode == 0, done.stderr
    counts = [
        int(line)
        for job in range(1, 6)
        for line in (tmp_path / f"x.{job}.log").read_text().splitlines()
        if line.strip().isdigit()
    ]
    assert len(counts) == 5 and max(counts) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.log"], "no command is given after the log file x.log"),
        (["JOB=1:2"], "no log file is given"),
        (["JOB=3:1", "x", "true"], "JOB=3:1 names no job"),
        (["JOB=a", "x", "true"], "jobs are given as JOB=1:4, not JOB=a"),
        (["JOB=1:2", "x.log", "true"], "the log file x.log lacks the word JOB"),
        (["JOB=1:2", "ME=1:2", "x.JOB", "true"], "jobs are given once"),
        (["--mem"], "option --mem needs a value"),
        (["--max-jobs-run", "few", "x.log", "true"], "--max-jobs-run is a number, not 'few'"),
    ],
)
@pytest.mark.parametrize("name", ["launch.sh", "slurm.sh"])
def test_other_arguments_are_refused(launch, name, words, message):
    done = launch(name, *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and message in done.stderr


def test_usage_is_shown(launch):
    for name in ("launch.sh", "slurm.sh"):
        done = launch(name, "--help")
        assert done.returncode == 0 and f"local/{name}" in done.stdout


def test_threads_are_openmps(launch, tmp_path):
    launch("launch.sh", "--num-threads", "3", "x.log", "bash", "-c", "echo OMP=$OMP_NUM_THREADS")
    assert "OMP=3" in (tmp_path / "x.log").read_text()


def test_a_job_that_dies_without_a_status_is_found(launch, tmp_path):
    script = "echo job JOB speaks; [[ JOB == 1 ]] || kill -9 $PPID $$"
    done = launch("slurm.sh", "JOB=1:2", "x.JOB.log", "bash", "-c", script)
    assert done.returncode == 1
    message = "a job ended with status 1 (OUT_OF_MEMORY|0:125); its log is x.2.log"
    assert message in done.stderr
    assert "ended without a status (OUT_OF_MEMORY|0:125)" in (tmp_path / "x.2.log").read_text()
    assert "x.1.log" not in done.stderr


def test_a_queue_that_does_not_answer_is_asked_again(launch, tmp_path):
    (tmp_path / "slurm_state/unreachable").touch()
    done = launch("slurm.sh", "x.log", "sleep", "0.5", SLURM_POLL_S="0.05")
    assert done.returncode == 0, done.stderr


def test_statuses_of_an_earlier_run_do_not_count(launch):
    assert launch("slurm.sh", "JOB=1:2", "x.JOB.log", "true").returncode == 0
    assert launch("slurm.sh", "JOB=1:2", "x.JOB.log", "false").returncode == 1


def sbatch_words(tmp_path) -> str:
    return (tmp_path / "slurm_state/sbatch.log").read_text()


def test_options_become_sbatchs(launch, tmp_path):
    words = ["--mem", "4G", "--gpu", "1", "--num-threads", "2", "--time", "1:0:0"]
    launch("slurm.sh", *words, "--max-jobs-run", "3", "JOB=1:2", "x.JOB.log", "true")
    expected = "--mem 4G --gres gpu:1 --cpus-per-task 2 --time 1:0:0 --array 1-2%3 --job-name x"
    assert sbatch_words(tmp_path).startswith(expected)


def test_a_site_has_its_own_configuration(launch, tmp_path):
    (tmp_path / "site.conf").write_text(
        "# Kaldi's format\ncommand sbatch --account lab # ours\noption mem=* --mem-per-cpu $0\n"
        "option mem=0\noption gpu=* -p gpu --gres=gpu:$0 \noption gpu=0 -p cpu\ndefault gpu=0\n"
        "option queue=* --partition $0\n"
    )
    site = ["--config", "site.conf"]
    launch("slurm.sh", *site, "--mem", "2G", "a.log", "true")
    launch("slurm.sh", *site, "--mem", "0", "--gpu", "2", "b.log", "true")
    first, second = sbatch_words(tmp_path).splitlines()
    assert first.startswith("--account lab --mem-per-cpu 2G -p cpu --job-name a")
    assert second.startswith("--account lab -p gpu --gres=gpu:2 --job-name b")
    unknown = launch("slurm.sh", *site, "--time", "1:0:0", "c.log", "true")
    assert unknown.returncode == 2
    assert "put 'option time=* ...' into --config" in unknown.stderr
    refused = launch("slurm.sh", *site, "--queue", "broken", "d.log", "true")
    assert refused.returncode == 2
    assert "invalid partition" in refused.stderr and "the queue refused" in refused.stderr
    assert launch("slurm.sh", "--config", "no.conf", "e.log", "true").returncode == 2


def test_a_signal_cancels_the_jobs(repo_dir, tmp_path, launch):
    job = subprocess.Popen(
        [str(repo_dir / "local/slurm.sh"), "JOB=1:2", "x.JOB.log", "sleep", "60"],
        cwd=tmp_path,
        env={**os.environ, **launch.variables, "SLURM_POLL_S": "30"},
    )
    for _ in range(200):
        if len(list((tmp_path / "slurm_state").glob("pid.*"))) == 2:
            break
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=10) == 143
    assert (tmp_path / "slurm_state/cancelled").read_text() == "7\n"


def test_kaldis_own_launcher_takes_what_recipes_give(repo_dir, tmp_path, shell):
    (tmp_path / "run.pl").write_text(RUN_PL)
    (tmp_path / "run.pl").chmod(0o755)
    values = ['["a b", "c"]', '{"x": {"path": "p q", "n": 1}}', '["/one/path"]']
    (tmp_path / "show.py").write_text(
        "import sys, yaml\nprint([yaml.safe_load(word) for word in sys.argv[3:]])\n"
    )
    script = (
        f'set -euo pipefail\n. "{repo_dir}/local/common.sh"\ntrain_cmd=(./run.pl --mem 4G)\n'
        f"launch_jobs 2 x.THIS_JOB.log {' '.join(map(shlex.quote, values))} THIS_JOB\n"
    )
    # `python -m spear WORDS` is stood in for by a program that shows what YAML makes of the words.
    (tmp_path / "python").write_text('#!/usr/bin/env bash\nexec python3 show.py "$@"\n')
    (tmp_path / "python").chmod(0o755)
    done = shell(script, SPEAR_PYTHON="./python", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    shown = (tmp_path / "x.2.log").read_text()
    assert re.search(r"^\[\['a b', 'c'\], \{'x'.*'p q'.*\}, \['/one/path'\], 2\]", shown)
