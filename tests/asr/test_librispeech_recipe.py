"""The LibriSpeech recipe on a miniature of the corpus: its layout, some seconds of tones."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import yaml

from spear.errors import DataError

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = ROOT / "recipes" / "librispeech"
SUBSETS = ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other")
TINY = {
    "finetune-asr": {
        "tokenizer": {"vocab_size": 8},
        "transducer": {"decoder_dim": 16, "joiner_dim": 16, "warmup_steps": 2},
        "freeze_encoder_steps": 1,
        "data": {"batch": {"max_duration_s": 8.0, "min_clip_s": 0.1}, "num_workers": 0},
        "train": {"max_steps": 3, "precision": "fp32", "valid_every": 0, "save_every": 1},
    },
    "decode": {"weights": "last"},
}


def load_lists():
    spec = importlib.util.spec_from_file_location(
        "librispeech_lists", RECIPE / "local" / "lists.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, sing, tone_texts):
    """Two speakers with a chapter each in every subset, one utterance for each text."""
    root = tmp_path_factory.mktemp("LibriSpeech")
    for subset in SUBSETS:
        texts = tone_texts if subset.startswith("train") else tone_texts[:2]
        for number, text in enumerate(texts):
            speaker, chapter = str(100 + number % 2), "7"
            folder = root / subset / speaker / chapter
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{speaker}-{chapter}-{number:04d}"
            soundfile.write(folder / f"{name}.flac", sing(text, seed=number), 16000)
            with open(folder / f"{speaker}-{chapter}.trans.txt", "a") as stream:
                stream.write(f"{name} {text}\n")
    return root


def run_recipe(corpus, output, *more):
    words = ["--librispeech-dir", str(corpus), "--output-dir", str(output), *more]
    return subprocess.run(
        [str(RECIPE / "run.sh"), *words],
        env={**os.environ, "SPEAR_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        cwd=output.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )


def test_all_stages_end_in_scores_of_four_subsets(corpus, export_folder, tmp_path):
    conf = tmp_path / "conf"
    conf.mkdir()
    for name, content in TINY.items():
        (conf / f"{name}.yaml").write_text(yaml.safe_dump(content))
    output = tmp_path / "out"
    options = ["--init", str(export_folder), "--conf-dir", str(conf), "--device", "cpu"]
    done = run_recipe(corpus, output, *options, "--scratch", "false", "--num-jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "skipped: --scratch false" in done.stderr
    decoded = output / "exp" / "100h" / "asr_finetuned" / "decode"
    summary = json.loads((decoded / "summary.json").read_text())
    assert set(summary["splits"]) == set(SUBSETS[1:])
    assert summary["method"] == "beam" and summary["num_words"] == 4 * 3
    assert (decoded / "errs-test-other.txt").is_file()
    table = (output / "exp" / "100h" / "summary.md").read_text()
    assert table.count("| ASR fine-tuned from the export | WER on ") == 4
    scratch = run_recipe(corpus, output, *options, "--stage", "4", "--stop-stage", "4")
    assert scratch.returncode == 0, scratch.stderr
    content = yaml.safe_load((output / "exp/100h/asr_scratch/config.yaml").read_text())
    assert content["init"] is None and content["init_config"] == str(export_folder)


def test_transcripts_get_the_ids_of_their_recordings(corpus, tmp_path):
    lists = load_lists()
    words = ["--librispeech-dir", str(corpus), "--output-dir", str(tmp_path), "dev-clean"]
    assert lists.main(words) == 0
    text = (tmp_path / "dev-clean" / "text").read_text().splitlines()
    assert text == ["100-7-100-7-0000 AB CD", "101-7-101-7-0001 DA"]
    speakers = (tmp_path / "dev-clean" / "utt2spk").read_text().splitlines()
    assert speakers == ["100-7-100-7-0000 100", "101-7-101-7-0001 101"]


def test_a_corpus_that_is_not_whole_is_named(tmp_path, capsys):
    lists = load_lists()
    folder = tmp_path / "dev-clean" / "1" / "2"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="no transcripts"):
        lists.find_utterances(tmp_path / "dev-clean")
    (folder / "1-2.trans.txt").write_text("1-2-0000 WORD\n1-2-0001 WORD\n")
    (folder / "1-2-0000.flac").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 utterances have either .* 1-2-1-2-0001"):
        lists.find_utterances(tmp_path / "dev-clean")
    (folder / "1-2.trans.txt").write_text("1-2-0000 WORD\n1-2-0001\n")
    with pytest.raises(DataError, match=r"1-2\.trans\.txt, line 2"):
        lists.find_utterances(tmp_path / "dev-clean")
    words = ["--librispeech-dir", str(tmp_path), "--output-dir", str(tmp_path / "o"), "nowhere"]
    assert lists.main(words) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hours", "10"], "--hours is 100 or 960"),
        (["--scratch", "false"], "give --init"),
        (["--noise-dir", "nowhere"], "--noise-dir nowhere: no such folder"),
        (["--librispeech-dir", "nowhere"], "--librispeech-dir nowhere: no such folder"),
    ],
)
def test_impossible_options_are_refused_in_one_line(corpus, tmp_path, words, message):
    done = run_recipe(corpus, tmp_path / "out", *words)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
