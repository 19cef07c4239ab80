"""Fine-tuning: it learns, it freezes, it resumes to the bit, and it refuses what does not fit."""

import itertools
import logging
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

import spear
from spear.asr.apply.search import Search, SearchConfig
from spear.asr.consistency import ConsistencyConfig
from spear.asr.loading import load_asr_model
from spear.asr.search.ctc_beam import BeamConfig
from spear.asr.tokenizer import TokenizerConfig
from spear.asr.train.finetune import FinetuneAsrConfig, build_task, prepare_tokenizer, run
from spear.asr.transducer import TransducerConfig
from spear.config import load_config
from spear.data.index.plan import BatchConfig
from spear.errors import CheckpointError, ConfigError
from spear.finetune.spec_augment import SpecAugmentConfig
from spear.training import Position


def weights_at(run_dir, step):
    return load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def split_state(state):
    head = {name: value for name, value in state.items() if name.startswith("ctc_head.")}
    encoder = {name: value for name, value in state.items() if name not in head}
    return {name.removeprefix("encoder."): value for name, value in encoder.items()}, head


def same(state, other):
    return all(torch.equal(state[name], other[name]) for name in state)


def test_training_reduces_the_word_error_rate_to_zero(trained_run):
    lines = [line for line in (trained_run / "metrics.jsonl").read_text().splitlines() if line]
    rates = [float(found[1]) for line in lines if (found := re.search(r'wer": ([\d.]+)', line))]
    assert rates[-1] == 0.0


def test_the_run_folder_holds_all_that_decoding_needs(trained_run):
    assert {"config.yaml", "tokenizer", "checkpoints"} <= {p.name for p in trained_run.iterdir()}
    names = load_asr_model(trained_run).state_dict()
    prefixes = {name.split(".")[0] for name in names}
    assert prefixes == {"encoder", "ctc_head"}


def test_the_stored_configuration_is_the_one_of_the_run(trained_run, tone_shards, make_config):
    expected = make_config(tone_shards, trained_run, max_steps=200)
    assert load_config(FinetuneAsrConfig, trained_run / "config.yaml") == expected


def test_weights_come_from_an_export(tone_shards, export_folder, make_config, tmp_path):
    task = build_task(make_config(tone_shards, tmp_path, 1, init=str(export_folder)))
    expected = spear.from_pretrained(export_folder).model.state_dict()
    encoder, _ = split_state(task.model.state_dict())
    assert encoder.keys() == expected.keys() - {"mask_emb"}
    assert same(encoder, expected)


def test_an_architecture_comes_from_an_export_without_its_weights(
    tone_shards, export_folder, make_config, tmp_path
):
    config = make_config(tone_shards, tmp_path, 1, init_config=str(export_folder))
    config.student = None
    task = build_task(config)
    expected = spear.from_pretrained(export_folder).model.state_dict()
    encoder, _ = split_state(task.model.state_dict())
    assert {k: v.shape for k, v in encoder.items()} == {
        k: v.shape for k, v in expected.items() if k != "mask_emb"
    }
    assert not same(encoder, expected)
    assert {group["lr_scale"] for group in task.parameter_groups()} == {1.0}
    assert task.start.freeze_steps == 0


def test_the_seed_fixes_fresh_weights(tone_shards, make_config, tmp_path):
    states = [
        build_task(make_config(tone_shards, tmp_path, 1, train={"seed": seed})).model.state_dict()
        for seed in (0, 0, 1)
    ]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_a_25_hz_recogniser_starts_from_a_50_hz_encoder(
    tone_shards, export_folder, make_config, tmp_path
):
    config = make_config(
        tone_shards, tmp_path, 2, init=str(export_folder), output_downsampling_factor=2
    )
    task = build_task(config)
    assert task.recognizer.encoder.num_output_frames(100) == 25
    run(config)
    assert load_asr_model(tmp_path).encoder.config.output_downsampling_factor == 2


def test_every_parameter_is_in_one_group_and_the_encoder_learns_slowly(
    tone_shards, export_folder, make_config, tmp_path
):
    task = build_task(make_config(tone_shards, tmp_path, 1, init=str(export_folder)))
    groups = task.parameter_groups()
    names = [name for group in groups for name, _ in group["named_params"]]
    assert sorted(names) == sorted(name for name, _ in task.model.named_parameters())
    scales = {name: group["lr_scale"] for group in groups for name, _ in group["named_params"]}
    assert scales["ctc_head.linear.weight"] == 1.0
    assert {scale for name, scale in scales.items() if not name.startswith("ctc_head")} == {0.05}


def test_before_step_says_when_the_trainable_set_changes(
    tone_shards, export_folder, make_config, tmp_path
):
    config = make_config(tone_shards, tmp_path, 1, init=str(export_folder), freeze_encoder_steps=3)
    task = build_task(config)
    assert [task.before_step(Position(step=step)) for step in range(6)] == [
        True, False, False, True, False, False,
    ]  # fmt: skip
    resumed = build_task(config)
    assert not resumed.before_step(Position(step=5))
    assert all(parameter.requires_grad for parameter in resumed.model.parameters())


def test_the_encoder_is_frozen_first_and_trained_later(
    tone_shards, export_folder, make_config, tmp_path
):
    config = make_config(
        tone_shards,
        tmp_path,
        5,
        init=str(export_folder),
        freeze_encoder_steps=3,
        train={"save_every": 1, "keep_last": 9},
    )
    run(config)
    states = [split_state(weights_at(tmp_path, step)) for step in (1, 2, 3, 4, 5)]
    pretrained = spear.from_pretrained(export_folder).model.state_dict()
    assert [same(encoder, pretrained) for encoder, _ in states] == [True, True, True, False, False]
    heads = [head for _, head in states]
    assert not any(same(head, after) for head, after in itertools.pairwise(heads))


def test_a_run_that_was_interrupted_ends_with_the_same_bits(
    tone_shards, export_folder, make_config, tmp_path
):
    def config(folder):
        return make_config(
            tone_shards,
            folder,
            6,
            init=str(export_folder),
            freeze_encoder_steps=2,
            ctc_dropout=0.2,
            data={
                "specaugment": SpecAugmentConfig(probability=1.0),
                "batch": BatchConfig(max_duration_s=2.0, min_clip_s=0.1),
                "speeds": (0.9, 1.0, 1.1),
            },
            train={"save_every": 1, "keep_last": 9},
        )

    run(config(tmp_path / "whole"))
    for step in (2, 4):
        folder = tmp_path / f"killed-{step}"
        shutil.copytree(tmp_path / "whole", folder)
        for later in range(step + 1, 7):
            shutil.rmtree(folder / "checkpoints" / f"step-{later:08d}")
        run(config(folder))
        assert same(weights_at(folder, 6), weights_at(tmp_path / "whole", 6)), step


def test_utterances_with_more_labels_than_frames_are_named_and_left_out(
    sing, write_shards, make_config, tmp_path, caplog
):
    utterances = [("fine", sing("AB"), "AB", "x"), ("crammed", sing("AB"), "ABCD" * 20, "x")]
    shards = write_shards(tmp_path / "shards", utterances)
    with caplog.at_level(logging.WARNING):
        run(make_config(shards, tmp_path / "run", 3))
    named = [record.getMessage() for record in caplog.records if "crammed" in record.getMessage()]
    assert len(named) == 2
    assert named[0].startswith("1 of 2 transcripts need more frames")
    assert "needs 80 frames" in named[1]
    assert not [r for r in caplog.records if r.getMessage().startswith("fine")]
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"train/left_out": 0.5' in metrics
    assert "NaN" not in metrics


@pytest.mark.parametrize("layers", ["1", "weighted"])
def test_other_layers_can_be_read(tone_shards, export_folder, make_config, tmp_path, layers):
    config = make_config(
        tone_shards,
        tmp_path,
        10,
        init=str(export_folder),
        freeze_encoder_steps=5,
        encoder_lr_scale=1.0,
        layers=layers,
        output_downsampling_factor=2,
    )
    task = build_task(config)
    frozen = {n for n, p in task.model.named_parameters() if not p.requires_grad}
    assert frozen == task.recognizer.idle
    run(config)
    model = load_asr_model(tmp_path, "last")
    assert model.layers == layers
    pretrained = spear.from_pretrained(export_folder).model.state_dict()
    for name, value in model.state_dict().items():
        if name in model.idle:
            assert torch.equal(value, pretrained.get(name, value)), name
    if layers == "weighted":
        assert model.layer_mix.weights.abs().max() > 0


def metrics_of(folder):
    return (folder / "metrics.jsonl").read_text()


def test_the_transducer_is_a_head(tone_shards, make_config, tmp_path):
    config = make_config(
        tone_shards,
        tmp_path,
        8,
        head="transducer",
        transducer=TransducerConfig(decoder_dim=16, joiner_dim=16, warmup_steps=4),
        data={"consistency": ConsistencyConfig(weight=0.2)},
        train={"log_every": 1},
    )
    run(config)
    metrics = metrics_of(tmp_path)
    for name in ("ctc", "simple", "pruned", "consistency"):
        assert f'"train/{name}_loss"' in metrics
    assert "NaN" not in metrics
    model = load_asr_model(tmp_path, "last")
    audio = torch.zeros(1, 100, 40)
    assert len(Search(model, SearchConfig("beam"))(audio, torch.tensor([100]))) == 1
    assert len(Search(model)(audio, torch.tensor([100]))) == 1
    with pytest.raises(ConfigError, match=r"search\.head ctc"):
        Search(model, SearchConfig("beam", beam=BeamConfig(lm="x.arpa")))
    batch = next(iter(build_task(config).train_batches(0, 0, range(1), 1)))
    task = build_task(config)
    task.model.train()
    output = task.model(batch)
    expected = {name: float(term.count) for name, term in output.terms.items()}
    assert task.loss_counts(batch) == expected


def test_consistency_trains_and_is_exact_under_accumulation(tone_shards, make_config, tmp_path):
    config = make_config(
        tone_shards,
        tmp_path,
        3,
        data={
            "consistency": ConsistencyConfig(weight=0.2),
            "specaugment": SpecAugmentConfig(probability=1.0),
        },
        train={"log_every": 1},
    )
    task = build_task(config)
    batch = next(iter(task.train_batches(0, 0, range(1), 1)))
    output = task.model.train()(batch)
    assert output.terms["consistency"].weight == 0.2
    assert output.terms["consistency"].total.item() > 0
    assert task.loss_counts(batch) == {
        name: float(term.count) for name, term in output.terms.items()
    }
    run(config)
    assert '"train/consistency_loss"' in metrics_of(tmp_path)


@pytest.fixture
def shards_with_an_x(sing, write_shards, tmp_path):
    return write_shards(tmp_path / "new", [("new", sing("AB"), "AB X", "x")])


def test_a_tokenizer_of_another_run_is_taken_as_it_is(
    trained_run, shards_with_an_x, make_config, tmp_path, caplog
):
    shards = shards_with_an_x
    config = make_config(shards, tmp_path / "run", 1, tokenizer_from=str(trained_run))
    with caplog.at_level(logging.WARNING):
        task = build_task(config)
    assert task.recognizer.tokenizer.sha256 == load_asr_model(trained_run).tokenizer.sha256
    assert (
        "1 of 1 transcripts have characters that the tokenizer does not know (new)" in caplog.text
    )
    with pytest.raises(ConfigError, match="tokenizer_from"):
        make_config(shards, tmp_path, 1, tokenizer_from="x", tokenizer=TokenizerConfig("bpe"))
    with pytest.raises(CheckpointError, match="no tokenizer folder"):
        build_task(make_config(shards, tmp_path / "other", 1, tokenizer_from=str(tmp_path)))


def test_another_tokenizer_in_the_run_folder_is_refused(tmp_path):
    first = prepare_tokenizer(tmp_path / "tokenizer", ["A B", "C"], TokenizerConfig())
    again = prepare_tokenizer(tmp_path / "tokenizer", ["C", "A B"], TokenizerConfig())
    assert again.sha256 == first.sha256
    with pytest.raises(ConfigError, match="other transcripts"):
        prepare_tokenizer(tmp_path / "tokenizer", ["A B", "C D"], TokenizerConfig())
    with pytest.raises(ConfigError, match="another tokenizer"):
        prepare_tokenizer(tmp_path / "tokenizer", ["A B", "C"], TokenizerConfig(case="lower"))


def test_impossible_configurations_are_refused(tone_shards, make_config, tmp_path):
    for changes in (
        {"init": "a", "init_config": "b"},
        {"ctc_dropout": 1.0},
        {"freeze_encoder_steps": -1},
        {"encoder_lr_scale": 0.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            make_config(tone_shards, tmp_path, 1, **changes)
    with pytest.raises(CheckpointError, match="neither a model folder"):
        build_task(make_config(tone_shards, tmp_path, 1, init=str(tmp_path / "nowhere")))
