"""Fine-tuning: it learns, it freezes, it resumes to the bit, and it refuses what does not fit."""

import itertools
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import spear
from spear.config import load_config
from spear.data.index.plan import BatchConfig
from spear.encoders.encoder import SpearEncoder
from spear.errors import CheckpointError, ConfigError, MissingPackageError
from spear.finetune.spec_augment import SpecAugmentConfig
from spear.hub.export import write_model_folder
from spear.tagging.balance import BalanceConfig
from spear.tagging.data import TaggingData
from spear.tagging.finetune import FinetuneTaggingConfig, build_task, run
from spear.tagging.mixup import MixupConfig
from spear.tagging.model import load_tagging_model
from spear.training import Position


@pytest.fixture(scope="module")
def export_folder(make_config, tmp_path_factory):
    """A model folder with an encoder that nobody trained."""
    torch.manual_seed(7)
    encoder = SpearEncoder(make_config(Path("nowhere"), "exp", 1).student)
    folder = tmp_path_factory.mktemp("export") / "encoder"
    write_model_folder(encoder, folder, {})
    return folder


@pytest.fixture(name="config")
def config_fixture(sound_dir, make_config, tmp_path):
    def make(max_steps=1, output=None, **changes):
        config = make_config(sound_dir, output or tmp_path / "run", max_steps, **changes)
        config.data.valid = []
        return config

    return make


def weights_at(run_dir, step):
    return load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def split_state(state):
    head = {name: value for name, value in state.items() if name.startswith("tagging_head.")}
    encoder = {name: value for name, value in state.items() if name not in head}
    return {name.removeprefix("encoder."): value for name, value in encoder.items()}, head


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[n], other[n]) for n in state)


def test_training_tells_the_classes_apart(trained_run, sound_dir, data_config):
    model = load_tagging_model(trained_run, weights="last")
    data = TaggingData(data_config(sound_dir), num_mel_bins=40, seed=0)
    with torch.no_grad():
        outputs = [model(batch) for batch in data.valid_batches(0, 1)]
    metric = [output.metrics["ranking_precision"] for output in outputs]
    precision = sum(m.total for m in metric) / sum(m.count for m in metric)
    assert precision > 95.0
    losses = [output.terms["bce"] for output in outputs]
    assert sum(t.total for t in losses) / sum(t.count for t in losses) < 0.3


def test_the_stored_configuration_is_the_one_of_the_run(config):
    expected = config(max_steps=1, pooling="mean")
    run(expected)
    stored = load_config(FinetuneTaggingConfig, f"{expected.train.output_dir}/config.yaml")
    assert stored == expected
    assert load_tagging_model(expected.train.output_dir).pooling == "mean"


def test_weights_come_from_an_export(config, export_folder):
    encoder, head = split_state(build_task(config(init=str(export_folder))).model.state_dict())
    expected = spear.from_pretrained(export_folder).model.state_dict()
    assert encoder.keys() == expected.keys() - {"mask_emb"}
    assert all(torch.equal(value, expected[name]) for name, value in encoder.items())
    assert head["tagging_head.1.weight"].shape == (3, 32)


def test_an_architecture_comes_from_an_export_without_its_weights(config, export_folder):
    fresh = build_task(config(init_config=str(export_folder)))
    loaded = build_task(config(init=str(export_folder)))
    states = [split_state(task.model.state_dict())[0] for task in (fresh, loaded)]
    assert not same(*states)
    assert {group["lr_scale"] for group in fresh.parameter_groups()} == {1.0}
    assert not fresh.before_step(Position(step=0))  # nothing is frozen


def test_every_parameter_is_in_one_group_and_the_encoder_learns_slowly(config, export_folder):
    task = build_task(config(init=str(export_folder)))
    groups = task.parameter_groups()
    names = [name for group in groups for name, _ in group["named_params"]]
    assert sorted(names) == sorted(name for name, _ in task.model.named_parameters())
    scales = {name: group["lr_scale"] for group in groups for name, _ in group["named_params"]}
    assert scales["tagging_head.1.weight"] == 1.0
    assert {scale for name, scale in scales.items() if not name.startswith("tagging")} == {0.05}


def test_the_encoder_is_frozen_first_and_trained_later(config, export_folder):
    settings = config(
        5,
        init=str(export_folder),
        freeze_encoder_steps=3,
        train={"save_every": 1, "keep_last": 9},
    )
    run(settings)
    pretrained = split_state(build_task(settings).model.state_dict())[0]
    folder = Path(settings.train.output_dir)
    states = [split_state(weights_at(folder, step)) for step in (1, 2, 3, 4, 5)]
    assert [same(encoder, pretrained) for encoder, _ in states] == [True, True, True, False, False]
    assert not any(same(a, b) for (_, a), (_, b) in itertools.pairwise(states))


def test_a_run_that_was_interrupted_ends_with_the_same_bits(config, tmp_path):
    def settings(folder):
        return config(
            6,
            folder,
            dropout=0.2,
            data={
                "specaugment": SpecAugmentConfig(probability=1.0),
                "mixup": MixupConfig(probability=0.7),
                "balance": BalanceConfig(strength=0.8),
                "batch": BatchConfig(max_duration_s=2.0, min_clip_s=0.0),
                "crop_s": 0.5,
            },
            train={"save_every": 1, "keep_last": 9},
        )

    run(settings(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for later in range(3, 7):
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / f"step-{later:08d}")
    run(settings(tmp_path / "killed"))
    assert same(weights_at(tmp_path / "killed", 6), weights_at(tmp_path / "whole", 6))


def test_the_finished_tagger_is_evaluated(sound_dir, make_config, tmp_path, caplog):
    pytest.importorskip("sklearn")
    config = make_config(sound_dir, tmp_path / "run", 2, evaluation_weights="last")
    with caplog.at_level(logging.INFO):
        run(config)
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())
    assert summary["num_clips"] == 10
    assert any("ranking precision" in record.getMessage() for record in caplog.records)
    with np.load(tmp_path / "run" / "evaluation" / "scores.npz", allow_pickle=False) as scores:
        assert scores["probabilities"].shape == (10, 3)


def test_missing_scikit_learn_is_found_before_the_training(
    sound_dir, make_config, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(MissingPackageError, match="pip install scikit-learn"):
        run(make_config(sound_dir, tmp_path / "run", 1))
    assert not (tmp_path / "run").exists()


def test_impossible_configurations_are_refused(config):
    for changes in (
        {"init": "a", "init_config": "b"},
        {"dropout": 1.0},
        {"init": "a", "freeze_encoder_steps": -1},
        {"init": "a", "encoder_lr_scale": 0.0},
    ):
        with pytest.raises(ConfigError, match=list(changes)[-1].split("_")[0]):
            config(**changes)
    with pytest.raises(CheckpointError, match="neither a model folder"):
        build_task(config(init="no/such/folder/x"))
