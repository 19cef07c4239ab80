"""Decoding: files, numbers, arrays, batch mates, and what it refuses."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from spear.asr.apply.decode import DecodeConfig, run
from spear.asr.apply.recognize import transcribe
from spear.asr.apply.search import SearchConfig
from spear.asr.loading import load_asr_model
from spear.asr.model import AsrModel
from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.audio import Fbank
from spear.cli import main
from spear.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def model(trained_run):
    return load_asr_model(trained_run)


@pytest.mark.parametrize("weights", ["averaged", "last"])
def test_known_utterances_have_no_errors(trained_run, tone_shards, tone_texts, tmp_path, weights):
    run(
        DecodeConfig(
            str(trained_run), [str(tone_shards)], output_dir=str(tmp_path), weights=weights
        )
    )
    num_words = sum(len(text.split()) for text in tone_texts)
    line = (tmp_path / f"wer-{tone_shards.name}.txt").read_text().splitlines()[0]
    assert line == f"%WER 0.00 [ 0 / {num_words}, 0 ins, 0 del, 0 sub ]"
    recogs = (tmp_path / f"recogs-{tone_shards.name}.txt").read_text().splitlines()
    assert recogs[1::2] == [f"utt{i}:\thyp={text}" for i, text in enumerate(tone_texts)]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["wer"] == 0.0
    assert summary["num_words"] == num_words
    assert summary["splits"]["tones"]["num_utterances"] == len(tone_texts)


def test_errors_are_counted(trained_run, sing, write_shards, tmp_path):
    said_wrong = [("one", sing("AB CD"), "AB CD", "x"), ("two", sing("DA"), "DA BC", "y")]
    shards = write_shards(tmp_path / "wrong", said_wrong)
    run(DecodeConfig(str(trained_run), [str(shards)], output_dir=str(tmp_path / "out")))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [summary[key] for key in ("ins", "del", "sub", "num_words")] == [0, 1, 0, 4]
    assert summary["wer"] == 25.0
    assert "two\t1\tDA (BC->*)" in (tmp_path / "out" / "errs-wrong.txt").read_text()


def test_beam_search_leaves_lists_of_the_best(trained_run, tone_shards, tone_texts, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    search = SearchConfig("beam", num_best=3)
    shards, output = [str(tone_shards)], str(tmp_path)
    run(DecodeConfig(str(trained_run), shards, output_dir=output, search=search))
    lines = (tmp_path / f"nbest-{tone_shards.name}.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["id"] for one in found] == [f"utt{i}" for i in range(len(tone_texts))]
    assert [one["n_best"][0]["text"] for one in found] == tone_texts
    for one in found:
        scores = [hypothesis["score"] for hypothesis in one["n_best"]]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"] == "beam"
    assert 0 < summary["real_time_factor"][tone_shards.name] < 100


def test_the_default_output_is_in_the_run_folder(trained_run, tone_shards):
    run(DecodeConfig(str(trained_run), [str(tone_shards)], num_workers=1))
    assert (trained_run / "decode" / "summary.json").is_file()


def test_text_does_not_depend_on_batch_mates_or_order(model, sing, tone_texts):
    audio = [sing(text, seed=i) for i, text in enumerate(tone_texts)]
    together = [transcript.text for transcript in transcribe(model, audio)]
    assert together == tone_texts
    assert [transcribe(model, [one])[0].text for one in audio] == together
    small = transcribe(model, audio[::-1], batch_s=0.1)
    assert [transcript.text for transcript in small] == together[::-1]


def test_recordings_without_frames_give_empty_text(model, sing):
    audio = [np.zeros(0, np.float32), sing("DA", seed=1), torch.zeros(100)]
    assert [transcript.text for transcript in transcribe(model, audio)] == ["", "DA", ""]
    assert transcribe(model, [np.zeros(0, np.float32)])[0].tokens == []
    assert transcribe(model, []) == []


def test_times_are_those_of_the_frames_where_tokens_begin(model, sing):
    audio = torch.from_numpy(sing("AB CD"))
    (transcript,) = transcribe(model, [audio])
    fbank, lens = Fbank(model.encoder.config.feature_dim)(audio[None], torch.tensor([len(audio)]))
    with torch.no_grad():
        best = model.log_probs(fbank, lens)[0][0].argmax(dim=-1).tolist()
    frames = [round((time - 0.015) / 0.02) for time in transcript.times_s]
    assert [model.tokenizer.piece(best[frame]) for frame in frames] == transcript.tokens
    assert all(frame == 0 or best[frame - 1] != best[frame] for frame in frames)
    assert transcript.times_s == sorted(set(transcript.times_s))
    assert transcript.times_s[-1] < len(audio) / 16000


@pytest.mark.parametrize(
    ("frontend_pad", "factor", "expected"),
    [(True, 1, [0.015, 0.215]), (True, 2, [0.025, 0.425]), (False, 1, [0.045, 0.245])],
)
def test_frame_times(model, frontend_pad, factor, expected):
    config = dataclasses.replace(
        model.encoder.config, frontend_pad=frontend_pad, output_downsampling_factor=factor
    )
    other = AsrModel(config, model.tokenizer)
    assert [other.frame_time_s(frame) for frame in (0, 10)] == expected


def test_wrong_arrays_are_refused(model):
    for bad in (np.zeros((2, 8000), np.float32), np.zeros(8000, np.int16)):
        with pytest.raises(DataError, match="recording 0 has shape"):
            transcribe(model, [bad])


def test_recordings_are_for_another_command(trained_run, capsys):
    assert main(["decode", "--run_dir", str(trained_run), "--audio", "talk.wav"]) == 2
    assert "unknown key audio; `spear transcribe --model" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"nothing to decode: .*`spear transcribe`"):
        run(DecodeConfig(str(trained_run)))


def test_shards_without_transcripts_are_recognised_but_not_scored(
    trained_run, sing, write_shards, tmp_path
):
    shards = write_shards(tmp_path / "unknown", [("u", sing("DA", seed=1), None, None)])
    run(DecodeConfig(str(trained_run), [str(shards)], output_dir=str(tmp_path / "out")))
    assert (tmp_path / "out" / "recogs-unknown.txt").read_text() == "u:\thyp=DA\n"
    assert not (tmp_path / "out" / "wer-unknown.txt").exists()


def test_partly_transcribed_shards_score_what_can_be_scored(
    trained_run, sing, write_shards, tmp_path
):
    utterances = [("known", sing("DA", seed=1), "DA", "x"), ("unknown", sing("D"), None, None)]
    shards = write_shards(tmp_path / "partly", utterances)
    run(DecodeConfig(str(trained_run), [str(shards)], output_dir=str(tmp_path / "out")))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["num_words"] == 1
    assert "unknown:\thyp=" in (tmp_path / "out" / "recogs-partly-all.txt").read_text()


def test_what_cannot_be_decoded_is_named(trained_run, tone_shards, sing, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    cases = [
        (DecodeConfig(str(trained_run), [nowhere]), DataError, "nowhere: no such shard folder"),
        (DecodeConfig(nowhere, [str(tone_shards)]), CheckpointError, "no run folder"),
        (DecodeConfig(str(tmp_path), [str(tone_shards)]), CheckpointError, "no checkpoints"),
        (DecodeConfig(str(trained_run), [str(tone_shards)] * 2), ConfigError, "two shard folders"),
        (
            DecodeConfig(str(trained_run), [str(tone_shards)], max_recording_s=0.5),
            DataError,
            "lasts .* more than max_recording_s 0.5",
        ),
        (
            DecodeConfig(str(trained_run), [str(tone_shards)], weights="best"),
            CheckpointError,
            "unknown weights",
        ),
    ]
    for config, error, message in cases:
        with pytest.raises(error, match=message):
            run(config)


def test_impossible_limits_are_refused():
    for name in ("batch_s", "max_recording_s"):
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            DecodeConfig("run", **{name: 0})


def test_a_run_of_another_tokenizer_is_refused(trained_run, tone_shards, tmp_path):
    folder = tmp_path / "mixed-up"
    shutil.copytree(trained_run, folder)
    Tokenizer.train(["OTHER WORDS"], TokenizerConfig()).save(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="tokenizer is not the one"):
        load_asr_model(folder)
