"""The table at the end of a recipe says what the stages left, and what is missing."""

import json

import pytest
import summarize


@pytest.fixture
def exp(tmp_path):
    folder = tmp_path / "exp"
    write(folder / "quantizers/wavlm/summary.json", num_codebooks=16, codebook_size=256,
          relative_error=0.12345, usage_entropy=0.9876)  # fmt: skip
    accuracies = {"masked_accuracy": 0.0912, "baseline_accuracy": 0.0271}
    write(folder / "pretrain/summary.json", wavlm=accuracies)
    scores = {"wer": 4.567, "ins": 1, "del": 2, "sub": 3}
    write(folder / "asr_finetuned/decode/summary.json", splits={"speech_test": scores})
    write(folder / "asr_scratch/decode/summary.json",
          splits={"speech_test": {**scores, "wer": None}})  # fmt: skip
    (folder / "model").mkdir()
    return folder


def write(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_every_result_has_its_row(exp, capsys):
    assert summarize.main(["--exp-dir", str(exp)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "| what | measure | value |",
        "| --- | --- | --- |",
        "| quantiser wavlm (16 x 256) | relative error | 0.123 |",
        "| quantiser wavlm (16 x 256) | entropy of its codes (1: uniform) | 0.988 |",
        "| pre-training, wavlm tokens | masked accuracy | 9.12% |",
        "| pre-training, wavlm tokens | most frequent token (baseline) | 2.71% |",
        "| ASR fine-tuned from the export | WER on speech_test | 4.57% (1 ins, 2 del, 3 sub) |",
        "| ASR from scratch | WER on speech_test | no reference words (1 ins, 2 del, 3 sub) |",
        "",
        f"Exported model: `{exp / 'model'}`",
    ]
    assert (exp / "summary.md").read_text() == out


def test_stages_that_left_nothing_are_named(exp):
    (exp / "pretrain/summary.json").unlink()
    (exp / "asr_finetuned/decode/summary.json").unlink()
    table = summarize.make_table(exp)
    assert "No results of: pre-training." in table
    assert "ASR from scratch" in table
    assert "fine-tuned" not in table


def test_a_folder_without_results_is_an_error(tmp_path, capsys):
    assert summarize.main(["--exp-dir", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert "no results yet; run the earlier stages" in error
    assert error.count("\n") == 1


def test_a_broken_summary_is_named(exp, capsys):
    (exp / "pretrain/summary.json").write_text('{"wavlm": ')
    assert summarize.main(["--exp-dir", str(exp)]) == 2
    assert "pretrain/summary.json: not readable as JSON" in capsys.readouterr().err
    assert not (exp / "summary.md").exists()
