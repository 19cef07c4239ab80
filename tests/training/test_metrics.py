import json

import pytest
import torch

from spear.distributed import Ranks
from spear.errors import MissingPackageError
from spear.training import metrics
from spear.training.metrics import (
    MetricSums,
    MetricWriter,
    describe_values,
    drop_after,
    loss_tag,
    read_jsonl,
)
from spear.training.task import LossTerm, Metric, StepOutput

RANKS = Ranks(torch.device("cpu"))


def output(speech, speech_count, audio, audio_count):
    return StepOutput(
        {
            "speech": LossTerm(
                torch.tensor(speech, requires_grad=True), torch.tensor(speech_count)
            ),
            "audio": LossTerm(torch.tensor(audio), torch.tensor(audio_count), 0.1),
        },
        {"accuracy": Metric(torch.tensor(3), torch.tensor(4))},
    )


def test_values_are_sums_over_sums():
    sums = MetricSums(RANKS)
    sums.add_output(output(10.0, 5.0, 0.0, 0.0))
    sums.add_output(output(2.0, 1.0, 6.0, 3.0))
    assert sums.values() == pytest.approx(
        {"speech_loss": 2.0, "audio_loss": 2.0, "loss": 2.2, "accuracy": 0.75}
    )
    sums.clear()
    assert sums.values() == {}


def test_what_was_never_counted_is_not_reported():
    sums = MetricSums(RANKS)
    sums.add_output(output(10.0, 5.0, 0.0, 0.0))
    assert sums.values() == pytest.approx({"speech_loss": 2.0, "loss": 2.0, "accuracy": 0.75})


def test_adding_keeps_no_graph_and_takes_no_float32_detour():
    sums = MetricSums(RANKS)
    for _ in range(1000):
        sums.add("x", torch.tensor(16777217.0, dtype=torch.float64, requires_grad=True))
    assert sums.values()["x"] == 16777217.0
    assert not sums._sums["x"].requires_grad


def test_sums_survive_a_restart():
    sums = MetricSums(RANKS)
    sums.add_output(output(10.0, 5.0, 2.0, 1.0))
    again = MetricSums(RANKS)
    again.load_state_dict(json.loads(json.dumps(sums.state_dict())))
    for one in (sums, again):
        one.add_output(output(1.0, 3.0, 1.0, 7.0))
    assert again.values() == sums.values()


@pytest.mark.parametrize(
    ("term", "tag"),
    [
        ("wavlm", "wavlm_loss"),
        ("ctc_loss", "ctc_loss"),
        ("loss_ctc", "loss_ctc"),
        ("gloss", "gloss_loss"),
    ],
)
def test_tags_of_losses(term, tag):
    assert loss_tag(term) == tag


def test_a_resumed_file_has_no_step_twice(tmp_path):
    writer = MetricWriter(tmp_path, 0, True, False)
    for step in (2, 4, 6):
        writer.write(step, {"train/loss": float(step)}, epoch=0)
    with open(writer.path, "a") as stream:
        stream.write('{"step": 8, "train/lo')  # killed in the middle of a line
    resumed = MetricWriter(tmp_path, 4, True, False)
    resumed.write(6, {"train/loss": 0.5}, epoch=0)
    resumed.close()
    lines = [json.loads(line) for line in writer.path.read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(2, 2.0), (4, 4.0), (6, 0.5)]
    assert list(read_jsonl(writer.path)) == lines


def test_other_ranks_write_nothing(tmp_path):
    writer = MetricWriter(tmp_path / "run", 0, False, True)
    writer.write(1, {"train/loss": 1.0})
    writer.flush()
    writer.close()
    assert not (tmp_path / "run").exists()
    drop_after(tmp_path / "absent.jsonl", 3)
    assert not (tmp_path / "absent.jsonl").exists()


def test_tensorboard_shows_the_same_numbers_and_purges_a_lost_future(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    first = MetricWriter(tmp_path, 0, True, True)
    for step in (1, 2, 3):
        first.write(step, {"train/wavlm_loss": float(step)})
    first.close()
    second = MetricWriter(tmp_path, 1, True, True)
    second.write(2, {"train/wavlm_loss": 20.0})
    second.flush()
    second.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in events.Scalars("train/wavlm_loss")]
    assert points == [(1, 1.0), (2, 20.0)]


def test_without_tensorboard_a_line_says_so(tmp_path, monkeypatch, caplog):
    def missing(module, purpose, package=None):
        raise MissingPackageError(f"{purpose} needs the package {module!r}: pip install {module}")

    monkeypatch.setattr(metrics, "require", missing)
    with caplog.at_level("INFO"):
        writer = MetricWriter(tmp_path, 0, True, True)
    writer.write(1, {"train/loss": 1.0})
    assert "pip install tensorboard" in caplog.text and "metrics.jsonl only" in caplog.text
    assert len(list(read_jsonl(writer.path))) == 1
    assert not (tmp_path / "tensorboard").exists()


def test_the_line_that_passes_by_names_losses_first():
    values = {"optim/grad_norm": 2.0, "train/wavlm_loss": 1.5, "train/loss": 1.0, "train/x": 9.0}
    assert describe_values(values) == "wavlm_loss 1.5, loss 1, grad norm 2"
    assert describe_values({"data/wait(%)": 3.0}) == "every step was skipped, wait 3%"
