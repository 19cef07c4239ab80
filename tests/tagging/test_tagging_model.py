"""The tagger and its numbers: pooled logits, metrics by batch, and what a run folder gives back."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spear.data.index.plan import BatchConfig
from spear.errors import CheckpointError
from spear.tagging.data import TaggingData
from spear.tagging.labels import Classes
from spear.tagging.model import TaggingModel, load_tagging_model, ranking_metrics

HAS_SKLEARN = importlib.util.find_spec("sklearn") is not None


@pytest.fixture
def model(make_config):
    torch.manual_seed(0)
    student = make_config(Path("nowhere"), "exp", 1).student
    return TaggingModel(
        student, Classes.of(["a", "b", "c", "d"]), "linear-softmax", dropout=0.0
    ).eval()


def ranking_precision(logits, targets):
    """The definition, clip by clip: written as slowly as it reads."""
    per_clip = []
    for scores, truth in zip(logits.tolist(), targets.tolist(), strict=True):
        own = [k for k, one in enumerate(truth) if one]
        if not own:
            continue
        shares = []
        for k in own:
            no_lower = [j for j, score in enumerate(scores) if score >= scores[k]]
            shares.append(sum(truth[j] for j in no_lower) / len(no_lower))
        per_clip.append(sum(shares) / len(shares))
    return 100.0 * sum(per_clip), len(per_clip)


def test_ranking_metrics_are_their_definitions():
    torch.manual_seed(1)
    logits = torch.randn(40, 6).round(decimals=1)  # with ties
    targets = (torch.rand(40, 6) < 0.3).float()
    assert (targets.sum(1) == 0).any()
    found = ranking_metrics(logits, targets)
    total, count = ranking_precision(logits, targets)
    assert found["ranking_precision"].total.item() == pytest.approx(total, rel=1e-5)
    assert found["ranking_precision"].count.item() == count
    right = sum(t[s.argmax()] for s, t in zip(logits, targets, strict=True) if t.any())
    assert found["top_class_right"].total.item() == pytest.approx(100.0 * float(right))


@pytest.mark.skipif(not HAS_SKLEARN, reason="no scikit-learn")
def test_ranking_precision_is_scikit_learns():
    from sklearn.metrics import label_ranking_average_precision_score

    torch.manual_seed(2)
    logits, targets = torch.randn(30, 5), (torch.rand(30, 5) < 0.4).float()
    targets[:, 0] = 1.0  # no clip without a class: scikit-learn counts those as right
    metric = ranking_metrics(logits, targets)["ranking_precision"]
    expected = label_ranking_average_precision_score(targets.numpy(), logits.numpy())
    assert (metric.total / metric.count).item() == pytest.approx(100.0 * expected, rel=1e-5)


def test_a_clip_is_tagged_the_same_whatever_it_is_batched_with(model, sound_dir, data_config):
    data = TaggingData(
        data_config(sound_dir, batch=BatchConfig(60.0, min_clip_s=0.0)), num_mel_bins=40, seed=0
    )
    (batch,) = data.valid_batches(0, 1)
    together, lens = model.frame_logits(batch.fbank, batch.fbank_lens)
    for row, num in enumerate(batch.fbank_lens.tolist()):
        alone, _ = model.frame_logits(batch.fbank[row : row + 1, :num], torch.tensor([num]))
        torch.testing.assert_close(together[row, : lens[row]], alone[0], atol=1e-4, rtol=1e-4)


def test_a_new_tagger_expects_each_class_as_often_as_it_occurs(model):
    shares = torch.tensor([0.5, 0.01, 0.0, 1.0])
    model.start_at(shares)
    bias = model.state_dict()["tagging_head.1.bias"]
    torch.testing.assert_close(bias.sigmoid(), shares, atol=2e-5, rtol=0)
    assert torch.isfinite(bias).all()


def test_a_run_folder_gives_the_trained_tagger_back(trained_run):
    model = load_tagging_model(trained_run, weights="last")
    stored = load_file(trained_run / "checkpoints" / "step-00000040" / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"encoder", "tagging_head"}
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert model.classes.names == ("a low tone", "middle", "a high tone")
    assert not model.training


def test_other_folders_are_refused(trained_run, tmp_path):
    with pytest.raises(CheckpointError, match="finetune-tagging"):
        load_tagging_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError):
        load_tagging_model(tmp_path)
    with pytest.raises(CheckpointError, match="unknown weights"):
        load_tagging_model(trained_run, weights="best")


def test_the_loss_is_binary_cross_entropy_per_clip_and_class(model, sound_dir, data_config):
    data = TaggingData(data_config(sound_dir), num_mel_bins=40, seed=0)
    model = TaggingModel(model.encoder.config, data.classes, "mean", dropout=0.0).eval()
    batch = next(data.valid_batches(0, 1))
    with torch.no_grad():
        term = model(batch).terms["bce"]
        frames, lens = model.frame_logits(batch.fbank, batch.fbank_lens)
    total = 0.0
    for row, num in enumerate(lens.tolist()):
        p = frames[row, :num].mean(0).double().sigmoid().numpy()
        t = batch.targets[row].numpy()
        total -= float(np.sum(t * np.log(p) + (1 - t) * np.log(1 - p)))
    assert term.total.item() == pytest.approx(total, rel=1e-4)
    assert term.count.item() == batch.targets.numel()
