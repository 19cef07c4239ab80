"""The digits recipe on a miniature of the corpus: tones that stand for digits, tiny models."""

import json
from pathlib import Path

import digits_table
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = ROOT / "recipes" / "digits"
STUDENT = {
    "downsampling_factor": [1, 2],
    "encoder_dim": [32],
    "encoder_unmasked_dim": [32],
    "num_encoder_layers": [1],
    "num_heads": [2],
    "query_head_dim": [8],
    "value_head_dim": [8],
    "pos_head_dim": [4],
    "feedforward_dim": [48],
    "cnn_module_kernel": [15],
    "embed_channels": [4, 8, 16],
}
TINY = {
    "train-quantizer": {"budget": {"num_iterations": 1}},
    "pretrain": {
        "student": STUDENT,
        "batch": {"max_duration_s": 4.0, "min_clip_s": 0.1},
        "num_workers": 0,
        "train": {"valid_every": 0, "save_every": 0},
    },
    "finetune-asr": {
        "tokenizer": {"model_type": "char"},
        "freeze_encoder_steps": 1,
        "transducer": {"decoder_dim": 16, "joiner_dim": 16, "warmup_steps": 2},
        "data": {"batch": {"max_duration_s": 4.0, "min_clip_s": 0.1}},
        "train": {"valid_every": 0, "save_every": 0},
    },
    "export": {"weights": "last"},
    "decode": {"weights": "last"},
}


def run_recipe(shell, tone_digits, output, *words):
    options = ["--digits-dir", tone_digits, "--held-out-speaker", "carl", "--device", "cpu"]
    return shell(RECIPE / "run.sh", *options, "--output-dir", output, *words)


def test_all_stages_end_in_a_table(tone_digits, tmp_path, shell):
    conf, output = tmp_path / "conf", tmp_path / "out"
    conf.mkdir()
    for name, content in TINY.items():
        (conf / f"{name}.yaml").write_text(yaml.safe_dump(content))
    words = ["--conf-dir", conf, "--seconds", "6 3", "--seeds", "4", "--transducer-seconds", "3"]
    words += ["--max-steps", "3", "--asr-max-steps", "3", "--recheck", "1"]
    done = run_recipe(shell, tone_digits, output, *words)
    assert done.returncode == 0, done.stderr
    table = (output / "exp" / "summary.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith(("| 6 s", "| 3 s"))]
    assert len(rows) == 2 * 2 * 2 + 2 * 3  # CTC: amounts, searches, test sets; transducers
    assert done.stdout.endswith(table)
    decoded = output / "exp" / "asr" / "ctc-finetuned-6s-4" / "decode" / "greedy" / "summary.json"
    splits = json.loads(decoded.read_text())["splits"]
    assert splits["test_speaker"]["num_words"] == 80
    assert splits["test"]["num_words"] == 2 * 10 * 5
    again = run_recipe(shell, tone_digits, output, *words, "--stage", "6", "--stop-stage", "6")
    assert again.returncode == 0, again.stderr
    log = (output / "exp" / "log" / "asr_ctc-scratch-3s-4.log").read_text()
    assert "is complete" in log


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "2 min"], "--seconds is like '600 120', not '2 min'"),
        (["--seeds", "a"], "--seeds is like '0 1 2', not 'a'"),
        (["--num-jobs", "0"], "--num-jobs is 1 or more, not '0'"),
        (["--digits-dir", "/nowhere"], "--digits-dir /nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(tone_digits, tmp_path, shell, words, message):
    done = run_recipe(shell, tone_digits, tmp_path / "out", *words)
    assert done.returncode == 2
    assert done.stderr == f"run.sh: error: {message}\n"
    assert not (tmp_path / "out").exists()


def write_decoded(exp, run, search, test, speaker):
    folder = exp / "asr" / run / "decode" / search
    folder.mkdir(parents=True)
    splits = {"test": {"wer": test}, "test_speaker": {"wer": speaker}}
    (folder / "summary.json").write_text(json.dumps({"splits": splits}))


def test_the_table_has_means_spreads_and_the_errors_left(tmp_path, capsys):
    for seed, rates in enumerate([(40.0, 60.0), (50.0, 70.0)]):
        write_decoded(tmp_path, f"ctc-scratch-120s-{seed}", "greedy", *rates)
        write_decoded(tmp_path, f"ctc-finetuned-120s-{seed}", "greedy", 9.0, 26.0)
    write_decoded(tmp_path, "transducer-finetuned-30s-0", "ctc_head", 20.0, 30.0)
    assert digits_table.main(["--exp-dir", str(tmp_path)]) == 0
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if " min " in line or " s " in line
    ]
    assert cells == [
        ["2 min", "CTC", "greedy", "test", "2", "45.0 ± 7.1", "9.0 ± 0.0", "0.20"],
        ["2 min", "CTC", "greedy", "held-out speaker", "2", "65.0 ± 7.1", "26.0 ± 0.0", "0.40"],
        ["30 s", "transducer", "its CTC head, greedy", "test", "1", "", "20.0", ""],
        ["30 s", "transducer", "its CTC head, greedy", "held-out speaker", "1", "", "30.0", ""],
    ]


def test_a_summary_without_runs_is_refused(tmp_path, capsys):
    assert digits_table.main(["--exp-dir", str(tmp_path)]) == 2
    assert "no decoded recognisers; run the earlier stages" in capsys.readouterr().err
    write_decoded(tmp_path, "ctc-scratch-30s-0", "greedy", 1.0, 2.0)
    broken = tmp_path / "asr/ctc-scratch-30s-0/decode/greedy/summary.json"
    broken.write_text("{}")
    assert digits_table.main(["--exp-dir", str(tmp_path)]) == 2
    assert "not what `spear decode` writes" in capsys.readouterr().err
    broken.write_text("{")
    assert digits_table.main(["--exp-dir", str(tmp_path)]) == 2
    assert "not readable as JSON" in capsys.readouterr().err
