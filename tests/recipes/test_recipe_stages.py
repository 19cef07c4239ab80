"""The stages themselves, with the real commands, on a few seconds of generated audio.

One recipe run serves most tests: it goes through all stages, with names that have spaces in them,
and is then asked to do again, to go on after a kill, and to refuse bad input.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = ROOT / "recipes" / "custom" / "run.sh"
NUM_SPEECH, NUM_AUDIO = 20, 10
TINY_STUDENT = {
    "downsampling_factor": [1, 2],
    "encoder_dim": [32],
    "encoder_unmasked_dim": [16],
    "num_encoder_layers": [1],
    "num_heads": [2],
    "query_head_dim": [8],
    "value_head_dim": [4],
    "pos_head_dim": [4],
    "feedforward_dim": [32],
    "cnn_module_kernel": [7],
    "embed_channels": [2, 4, 8],
}
TINY_TRAIN = {"max_steps": 4, "valid_every": 0, "save_every": 1, "averaging_every": 1}
TINY_CONFIGS = {
    "shard": {"shard_size": 8},
    "train-quantizer": {"codebook_size": 256},
    "pretrain": {
        "student": TINY_STUDENT,
        "batch": {"max_duration_s": 12.0},
        "num_workers": 0,
        "train": TINY_TRAIN,
    },
    "finetune-asr": {
        "data": {"batch": {"max_duration_s": 12.0}, "num_workers": 0},
        "freeze_encoder_steps": 1,
        "train": TINY_TRAIN,
    },
}

pytestmark = pytest.mark.xdist_group("recipe_stages")  # one worker: the tests share one run


def write_sounds(folder: Path, count: int, seed: int) -> None:
    """Writes sweeps with noise, 0.9 to 1.6 s long, at 16 kHz or 22.05 kHz."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        rate_hz = 16000 if number % 2 else 22050
        time_s = np.arange(round(rng.uniform(0.9, 1.6) * rate_hz)) / rate_hz
        sweep = np.sin(2 * np.pi * (200 + rng.uniform(50, 900) * time_s) * time_s)
        noise = rng.standard_normal(len(time_s)) * 0.05
        sf.write(folder / f"sound {number:02d}.wav", 0.3 * sweep + noise, rate_hz)


class Recipe:
    """A small job in folders whose names have spaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "my output"
        write_sounds(folder / "my speech", NUM_SPEECH, seed=1)
        write_sounds(folder / "my audio", NUM_AUDIO, seed=2)
        keys = [f"sound {number:02d}" for number in range(NUM_SPEECH)]
        # Kaldi's ids have no spaces, so these recordings get other names.
        for key in keys:
            path = folder / "my speech" / f"{key}.wav"
            path.rename(path.with_name(f"{key.replace(' ', '_')}.wav"))
        keys = [key.replace(" ", "_") for key in keys]
        rng = np.random.default_rng(3)
        lines = [f"{key} {' '.join(rng.choice(['UP', 'DOWN'], 2))}" for key in keys]
        (folder / "text").write_text("\n".join(lines) + "\n")
        (folder / "test ids").write_text("\n".join(keys[:3]) + "\n")
        (folder / "valid ids").write_text("\n".join(keys[3:6]) + "\n")
        self.conf = folder / "my conf"
        self.conf.mkdir()
        for name, content in TINY_CONFIGS.items():
            (self.conf / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def command(self, *more: str) -> list[str]:
        folder = self.folder
        options = {
            "speech-dir": folder / "my speech",
            "text": folder / "text",
            "test-ids": folder / "test ids",
            "valid-ids": folder / "valid ids",
            "audio-dir": folder / "my audio",
            "output-dir": self.output,
            "conf-dir": self.conf,
            "wavlm-codebooks": 2,
            "dasheng-codebooks": 2,
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return [str(RUN), *words, *more]

    def start(self, *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*more),
            env={**os.environ, "SPEAR_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *more: str) -> tuple[int, str, str]:
        process = self.start(*more)
        out, err = process.communicate(timeout=1800)
        return process.returncode, out, err

    def stamps(self, *patterns: str) -> dict[str, int]:
        """Times of the last change of the files that fit."""
        paths = [path for pattern in patterns for path in self.output.glob(pattern)]
        assert paths
        return {str(path): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    return Recipe(tmp_path_factory.mktemp("a recipe"))


@pytest.fixture(scope="module")
def finished(recipe) -> tuple[Recipe, str, str]:
    status, out, err = recipe.run()
    assert status == 0, err
    return recipe, out, err


def test_all_stages_end_in_a_table(finished):
    recipe, out, _ = finished
    exp = recipe.output / "exp"
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    named = {(row[0].removeprefix("| "), row[1]) for row in rows[2:]}
    for name in ("wavlm", "dasheng"):
        assert (f"quantiser {name} (2 x 256)", "relative error") in named
        assert (f"pre-training, {name} tokens", "masked accuracy") in named
        assert (f"pre-training, {name} tokens", "most frequent token (baseline)") in named
    for name in ("ASR fine-tuned from the export", "ASR from scratch"):
        assert (name, "WER on speech_test") in named
    assert f"Exported model: `{exp / 'model'}`" in out
    assert (exp / "summary.md").read_text() == out


def test_numbers_in_the_table_are_those_that_the_stages_left(finished):
    recipe, out, _ = finished
    exp = recipe.output / "exp"
    scores = json.loads((exp / "asr_finetuned" / "decode" / "summary.json").read_text())
    assert f"| {scores['splits']['speech_test']['wer']:.2f}% (" in out
    accuracies = json.loads((exp / "pretrain" / "summary.json").read_text())
    assert f"| {accuracies['dasheng']['masked_accuracy']:.2%} |" in out
    # Six words in the test set.
    assert scores["splits"]["speech_test"]["num_words"] == 6


def test_the_exported_model_is_the_one_that_was_trained(finished):
    import torch

    import spear

    recipe, _, _ = finished
    model = spear.from_pretrained(str(recipe.output / "exp" / "model"))
    with torch.no_grad():
        out = model(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    assert out["encoder_out"].shape == (2, 50, 32)
    assert out["encoder_out_lens"].tolist() == [50, 25]


def test_every_command_is_logged_so_that_it_can_be_typed(finished):
    import shlex

    _, _, err = finished
    lines = [line.split(") ", 1)[1] for line in err.splitlines() if "launch.sh" in line]
    commands = [shlex.split(line) for line in lines]
    names = [command[command.index("spear") + 1] for command in commands]
    assert names.count("shard") == 5
    for name in ("prepare", "embed", "train-quantizer", "verify", "finetune-asr"):
        assert names.count(name) == 2, name
    assert names.count("extract-tokens") == 1, "one pass for both teachers"
    # Typed again, from any folder, it finds its work done.
    done = subprocess.run(
        commands[names.index("prepare")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing to do" in done.stderr


def test_again_it_does_only_what_is_missing(finished):
    recipe, _, _ = finished
    patterns = ("data/*/*.tar", "exp/quantizers/*/*.safetensors", "exp/frames/*.npy")
    before = recipe.stamps(*patterns)
    lost = recipe.output / "data" / "audio_train" / "dasheng_tokens.000000.tar"
    lost.unlink()
    status, _, err = recipe.run("--stage", "3", "--stop-stage", "5")
    assert status == 0, err
    after = recipe.stamps(*patterns)
    assert after.pop(str(lost)) > before.pop(str(lost))
    assert after == before


def test_pretraining_killed_and_started_again_goes_on(finished):
    recipe, _, _ = finished
    run_folder = recipe.output / "exp" / "pretrain"
    process = recipe.start("--stage", "7", "--stop-stage", "7", "--max-steps", "60")
    deadline = time.monotonic() + 60
    while not list((run_folder / "checkpoints").glob("step-0000000[6-9]")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status, _, err = recipe.run("--stage", "7", "--stop-stage", "8", "--max-steps", "12")
    assert status == 0, err
    steps = [json.loads(line)["step"] for line in (run_folder / "metrics.jsonl").open()]
    assert max(steps) >= 12


def test_two_processes_train_together(finished):
    recipe, _, _ = finished
    run_folder = recipe.output / "exp" / "asr_finetuned"
    words = ["--stage", "9", "--stop-stage", "9", "--nproc", "2", "--asr-max-steps", "6"]
    status, _, err = recipe.run(*words)
    assert status != 0 and "holds a run of 1 batches a step" in err, "another order of the data"
    run_folder.rename(run_folder.with_name("asr_alone"))
    status, _, err = recipe.run(*words)
    assert status == 0, err
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").open()]
    assert max(record["step"] for record in records) == 6
    assert (run_folder / "checkpoints" / "step-00000006" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speech-dir", "/no/such folder"], "/no/such folder"),
        (["--text", "/no/such text"], "/no/such text: no such file"),
        (["--valid-ids", "{folder}/test ids"], "test ids"),
    ],
)
def test_bad_input_stops_the_recipe_with_one_error_and_status_2(recipe, options, message):
    options = [word.format(folder=recipe.folder) for word in options]
    status, _, err = recipe.run("--stage", "1", "--stop-stage", "2", *options)
    assert status == 2
    errors = [line for line in err.splitlines() if line.startswith("spear: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err


def test_without_transcripts_there_is_no_asr(recipe):
    status, out, err = recipe.run("--text", "", "--stage", "9", "--stop-stage", "11")
    assert (status, out) == (0, "")
    assert err.count("skipped: no --text") == 3
