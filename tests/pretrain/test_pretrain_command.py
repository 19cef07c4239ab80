"""`spear pretrain` on seconds of data: it learns, resumes, reports, refuses what cannot work."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pretrain_model import TEACHERS, small_student

from spear.config import load_config, parse_config, to_dict, write_yaml
from spear.data.index.clip_index import SourceConfig
from spear.data.index.plan import BatchConfig
from spear.errors import ConfigError, DataError, TokenError
from spear.optim import OptimConfig
from spear.pretrain import command
from spear.pretrain.augment import AugmentConfig
from spear.pretrain.command import PretrainConfig, run, write_results
from spear.pretrain.losses import LossConfig
from spear.pretrain.task import PretrainTask
from spear.system.files import sha256_of
from spear.training import TrainConfig, load_weights
from spear.training.checkpoints.checkpoint import AVERAGED, MODEL, checkpoint_path
from tests.pretrain.small_shards import make_clip, write_corpus, write_shards

STEPS = 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    train = write_corpus(folder / "train", num_speech=24, num_audio=12)
    valid = write_corpus(folder / "valid", num_speech=6, num_audio=4, seed=1)
    return [[SourceConfig(str(path)) for path in part] for part in (train, valid)]


def make_config(corpus, output_dir, max_steps=STEPS, **changes):
    config = PretrainConfig(
        data=corpus[0],
        valid=corpus[1],
        teachers=TEACHERS,
        student=small_student(dropout=0.1, warmup_batches=10.0),
        batch=BatchConfig(max_duration_s=24.0),
        num_workers=0,
        train=TrainConfig(
            output_dir=str(output_dir),
            seed=1,
            max_steps=max_steps,
            log_every=5,
            valid_every=0,
            save_every=0,
            schedule_unit_s=20.0,
            device="cpu",
            tensorboard=False,
            optim=OptimConfig(warmup_batches=5.0),
        ),
    )
    return replace(config, **changes)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "exp"
    run(make_config(corpus, folder))
    return folder


def test_the_loss_falls_and_numbers_of_each_teacher_are_written(finished):
    lines = [line for line in records(finished) if "train/loss" in line]
    assert lines[-1]["train/loss"] < 0.8 * lines[0]["train/loss"]
    for teacher in TEACHERS:
        assert lines[-1][f"train/{teacher}_loss"] < lines[0][f"train/{teacher}_loss"]
        for name in ("masked_accuracy", "unmasked_accuracy", "predicted_usage", "target_usage"):
            assert 0.0 <= lines[-1][f"train/{teacher}_{name}"] <= 1.0


def test_the_summary_is_the_last_validation_and_beats_the_baseline(finished):
    summary = json.loads((finished / "summary.json").read_text())
    last = [line for line in records(finished) if "valid/loss" in line][-1]
    assert set(summary) == set(TEACHERS)
    for teacher, values in summary.items():
        assert values == {key: last[f"valid/{teacher}_{key}"] for key in values}
        assert set(values) == set(command.RESULT_KEYS)
    assert summary["wavlm"]["unmasked_accuracy"] > summary["wavlm"]["baseline_accuracy"]
    report = (finished / "report.md").read_text()
    assert f"| wavlm | {summary['wavlm']['masked_accuracy']:.2%} |" in report
    assert report.count(command.RESULTS_TITLE) == 1


def test_running_again_changes_no_result(finished, corpus):
    before = {name: (finished / name).read_text() for name in ("summary.json", "report.md")}
    weights, _ = load_weights(finished, "last")
    run(make_config(corpus, finished))
    again, _ = load_weights(finished, "last")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert before["summary.json"] == (finished / "summary.json").read_text()
    assert (finished / "report.md").read_text().count(command.RESULTS_TITLE) == 1


def test_the_configuration_that_was_used_can_be_used_again(finished, corpus):
    loaded = load_config(PretrainConfig, finished / "config.yaml")
    assert to_dict(loaded) == to_dict(make_config(corpus, finished))


def test_two_processes_train_together(corpus, tmp_path, repo_dir):
    config = make_config(corpus, tmp_path / "exp", max_steps=4, num_workers=1)
    write_yaml(tmp_path / "c.yaml", config)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    words += ["-m", "spear", "pretrain", "--config", str(tmp_path / "c.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(repo_dir), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "exp" / "summary.json").read_text())
    assert set(summary) == set(TEACHERS)
    last = [line for line in records(tmp_path / "exp") if "data/audio(hours)" in line][-1]
    task = PretrainTask(config)
    seen_s = sum(b.audio_s for rank in range(2) for b in first_steps(task, 4, rank))
    assert last["data/audio(hours)"] == pytest.approx(seen_s / 3600)


def first_steps(task, num_steps, rank):
    """The batches of one of two ranks in the first steps of a run."""
    epoch, found = 0, []
    while len(found) < num_steps:
        found += list(task.train_batches(epoch, 0, range(rank, rank + 1), 2))
        epoch += 1
    return found[:num_steps]


def test_validation_is_masked_and_the_same_each_time(corpus, tmp_path):
    task = PretrainTask(make_config(corpus, tmp_path))
    first, second = (list(task.valid_batches(0, 1)) for _ in range(2))
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.mask.any() and torch.equal(one.mask, other.mask)
        assert torch.equal(one.fbank, other.fbank)
    ids = sorted(i for batch in first for i in batch.ids)
    halves = sorted(i for rank in range(2) for b in task.valid_batches(rank, 2) for i in b.ids)
    assert ids == halves and len(ids) == 10


def test_a_checkpoint_holds_the_encoder_under_its_own_names(finished):
    state, content = load_weights(finished, "averaged")
    assert {name.split(".")[0] for name in state} == {"encoder", "mask_emb", "heads"}
    assert content["student"]["encoder_dim"] == [32, 48]
    assert content["teachers"]["dasheng"] == {
        "role": "audio",
        "num_codebooks": 2,
        "codebook_size": 16,
        "frame_rate_hz": 25.0,
    }


def to_previous_format(checkpoint):
    """Turns a checkpoint into one of format 2, where models were encoders and held none."""

    def renamed(values):
        return {name.removeprefix("encoder."): value for name, value in values.items()}

    for name in (MODEL, AVERAGED):
        save_file(renamed(load_file(checkpoint / name)), checkpoint / name)
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    saved["optimizer"]["parameters"] = renamed(saved["optimizer"]["parameters"])
    torch.save(saved, checkpoint / "optimizer.pt")
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({**state, "format_version": 2}))
    sums = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in checkpoint.iterdir()
        if file.name != "checksums.json"
    }
    (checkpoint / "checksums.json").write_text(json.dumps(sums))


def test_checkpoints_of_the_previous_format_load_and_go_on(corpus, tmp_path):
    config = make_config(corpus, tmp_path / "whole", max_steps=4)
    config.train.save_every, config.train.averaging_every = 2, 1
    run(config)
    shutil.copytree(tmp_path / "whole", tmp_path / "old")
    shutil.rmtree(checkpoint_path(tmp_path / "old", 4))
    to_previous_format(checkpoint_path(tmp_path / "old", 2))
    for weights in ("last", "averaged"):
        old, _ = load_weights(tmp_path / "old", weights)
        new, _ = load_weights(checkpoint_path(tmp_path / "whole", 2), weights)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in new)
    run(replace(config, train=replace(config.train, output_dir=str(tmp_path / "old"))))
    states = [load_file(checkpoint_path(tmp_path / n, 4) / MODEL) for n in ("whole", "old")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weights_depend_on_the_seed_alone(corpus, tmp_path):
    config = make_config(corpus, tmp_path)
    torch.manual_seed(3)
    first = PretrainTask(config).model.state_dict()
    torch.manual_seed(4)
    second = PretrainTask(config).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_modes_ask_for_the_tokens_that_they_need(corpus, tmp_path):
    joint = make_config(corpus, tmp_path, loss=LossConfig(mode="joint"))
    with pytest.raises(TokenError, match=r"no tokens of teacher 'dasheng' .there: wavlm."):
        PretrainTask(joint)
    disjoint = make_config(corpus, tmp_path, loss=LossConfig(mode="disjoint"))
    batch = next(iter(PretrainTask(disjoint).train_batches(0, 0, range(1), 1)))
    assert not batch.token_valid["wavlm"][batch.is_audio].any()
    assert not batch.token_valid["dasheng"][~batch.is_audio].any()


def test_without_validation_data_a_run_ends_all_the_same(corpus, tmp_path):
    run(make_config(corpus, tmp_path, max_steps=1, valid=[]))
    assert (tmp_path / "report.md").is_file() and not (tmp_path / "summary.json").exists()


def test_clips_in_both_training_and_validation_are_pointed_out(corpus, tmp_path, caplog):
    PretrainTask(make_config(corpus, tmp_path, valid=corpus[0][:1]))
    assert "24 of 24 validation clips are training clips too" in caplog.text


def test_a_teacher_without_clips_is_pointed_out(corpus, tmp_path, caplog):
    speech = [corpus[0][0]], [corpus[1][0]]
    run(make_config(speech, tmp_path, max_steps=1))
    assert "no training clip has tokens of dasheng" in caplog.text
    assert set(json.loads((tmp_path / "summary.json").read_text())) == {"wavlm"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": []}, ConfigError, "at least one source"),
        ({"teachers": {}}, ConfigError, "teachers is empty"),
        ({"teachers": {"a.b": TEACHERS["wavlm"]}}, ConfigError, "letters, digits"),
        (
            {"student": small_student(output_downsampling_factor=2)},
            ConfigError,
            "output_downsampling_factor",
        ),
        ({"data": [SourceConfig("/nowhere")]}, DataError, "/nowhere"),
        (
            {"teachers": {**TEACHERS, "wavlm": replace(TEACHERS["wavlm"], quantizer="/no/q")}},
            TokenError,
            "teachers.wavlm.quantizer: no such file",
        ),
        (
            {"teachers": {**TEACHERS, "wavlm": replace(TEACHERS["wavlm"], num_codebooks=16)}},
            TokenError,
            "num_codebooks is 4 where the run asks for 16",
        ),
        (
            {"teachers": {**TEACHERS, "wavlm": replace(TEACHERS["wavlm"], frame_rate_hz=40.0)}},
            (ConfigError, TokenError),
            "frame_rate_hz",
        ),
        ({"batch": BatchConfig(max_duration_s=1.0)}, ConfigError, "raise max_duration_s"),
        ({"augment": AugmentConfig(noise_source="folder", noise_folder="/no")}, DataError, "/no"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(corpus, tmp_path, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        run(make_config(corpus, tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def test_tokens_of_another_quantizer_than_the_one_named_are_refused(corpus, tmp_path):
    file = tmp_path / "quantizer.safetensors"
    file.write_bytes(b"another")
    target = replace(TEACHERS["wavlm"], quantizer=str(file))
    with pytest.raises(TokenError, match="quantizer_sha256"):
        PretrainTask(make_config(corpus, tmp_path, teachers={**TEACHERS, "wavlm": target}))


def test_tokens_of_other_audio_stop_the_run_and_name_the_cut(tmp_path):
    clips = [make_clip(i, "speech") for i in range(4)]
    clips[2]["tokens"]["wavlm"] = clips[2]["tokens"]["wavlm"][:-9]
    sources = [SourceConfig(str(write_shards(tmp_path / "s", clips, ("wavlm",))))]
    with pytest.raises(TokenError, match="cut speech-002, teacher wavlm"):
        run(make_config((sources, []), tmp_path / "exp", augment=AugmentConfig(prob=0.0)))


def test_a_report_is_not_doubled_and_needs_no_trainer_report(tmp_path):
    line = {"step": 3, **{f"valid/t_{key}": 0.25 for key in command.RESULT_KEYS}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for _ in range(2):
        write_results(tmp_path, ["t", "unseen"])
    text = (tmp_path / "report.md").read_text()
    assert text.count("| t | 25.00% | 25.00% | 25.00% | 0.2500 |") == 1
    assert set(json.loads((tmp_path / "summary.json").read_text())) == {"t"}


def test_configuration_from_yaml_and_words(corpus, tmp_path):
    config = make_config(corpus, tmp_path)
    write_yaml(tmp_path / "c.yaml", config)
    loaded = parse_config(
        PretrainConfig, ["--config", str(tmp_path / "c.yaml"), "--loss.mode", "disjoint"]
    )
    assert loaded.loss.mode == "disjoint" and loaded.teachers == TEACHERS
    assert loaded.data == corpus[0]
    with pytest.raises(ConfigError, match=r"mask.speech_prob"):
        parse_config(PretrainConfig, ["--mask.speech_porb", "0.5"])


@pytest.mark.parametrize(
    ("name", "millions", "batch_s", "hours"),
    [("base", 93.29, 4800, 25000), ("large", 326.95, 6400, 75000), ("xlarge", 596.97, 6400, 75000)],
)
def test_the_papers_configurations(repo_dir, name, millions, batch_s, hours):
    config = load_config(PretrainConfig, repo_dir / f"recipes/spear/conf/{name}.yaml")
    with torch.device("meta"):
        from spear.zipformer import Zipformer

        model = Zipformer(config.student)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)
    text = (repo_dir / f"recipes/spear/conf/{name}.yaml").read_text()
    ranks = int(text.split("nproc-per-node=")[1].split()[0]) * int(
        text.split("nnodes=")[1].split()[0] if "nnodes=" in text else 1
    )
    assert ranks * config.batch.max_duration_s == batch_s
    assert config.train.optim.lr_hours == hours
    assert config.train.max_steps == (400_000 if name == "base" else 500_000)
    assert {
        n: (t.role, t.num_codebooks, t.codebook_size, t.frame_rate_hz)
        for n, t in config.teachers.items()
    } == {
        "wavlm": ("speech", 16, 256, 50.0),
        "dasheng": ("audio", 8, 256, 25.0),
    }
    assert (config.loss.mode, config.loss.audio_weight, config.loss.alpha) == (
        "asymmetric",
        0.1,
        0.5,
    )
    assert (config.augment.prob, config.augment.mixing_share) == (0.5, 0.2)
    assert (config.mask.speech_prob, config.mask.channel_prob) == (0.5, 0.25)


def test_interrupted_folders_of_another_model_are_refused(finished, corpus, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    with pytest.raises(ConfigError, match="other settings of the model"):
        run(make_config(corpus, copy, max_steps=40, student=small_student(pos_dim=24)))


def test_other_data_are_refused_and_moved_data_are_not(finished, corpus, tmp_path):
    folder = tmp_path / "exp"
    shutil.copytree(finished, folder)
    louder = make_config(corpus, folder, augment=AugmentConfig(noise_snr_db=(0.0, 5.0)))
    with pytest.raises(ConfigError, match=r"settings of the data \(augment.noise_snr_db"):
        run(louder)
    speech_only = make_config([corpus[0][:1], corpus[1]], folder)
    with pytest.raises(ConfigError, match="settings of the data"):
        run(speech_only)
    moved = []
    for part in corpus:
        moved.append([])
        for source in part:
            copy = tmp_path / "moved" / Path(source.path).parent.name / Path(source.path).name
            shutil.copytree(source.path, copy)
            moved[-1].append(SourceConfig(str(copy)))
    run(make_config(moved, folder, max_steps=STEPS + 1))
    assert [line["step"] for line in records(folder)][-1] == STEPS + 1


def test_the_longest_batch_is_the_largest_of_the_epoch(corpus, tmp_path):
    task = PretrainTask(make_config(corpus, tmp_path))
    batches = list(task.train_batches(0, 0, range(1), 1))
    longest = task.longest_batch(0, 1)
    sizes = [batch.fbank.size(0) * batch.audio_s for batch in batches]
    assert longest.ids in [batch.ids for batch in batches]
    assert longest.audio_s * len(longest.ids) > 0.8 * max(sizes)


def test_counts_before_the_forward_pass_are_those_of_the_model(corpus, tmp_path):
    task = PretrainTask(make_config(corpus, tmp_path))
    for batch in task.train_batches(0, 0, range(1), 1):
        terms = task.model(batch).terms
        assert task.loss_counts(batch) == {name: float(term.count) for name, term in terms.items()}
