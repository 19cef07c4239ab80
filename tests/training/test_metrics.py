import json

import pytest
import torch

from spear.errors import MissingPackageError
from spear.system.distributed import Ranks
from spear.training.logs import board
from spear.training.logs.metrics import (
    JsonLines,
    MetricSums,
    MetricWriter,
    describe_values,
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
    assert not any(flat.requires_grad for flat in sums._sums.values())


def test_sums_survive_a_restart():
    sums = MetricSums(RANKS)
    sums.add_output(output(10.0, 5.0, 2.0, 1.0))
    again = MetricSums(RANKS)
    again.load_state_dict(json.loads(json.dumps(sums.state_dict())))
    for one in (sums, again):
        one.add_output(output(1.0, 3.0, 1.0, 7.0))
    assert again.values() == sums.values()


def listed(totals, count, tag="accuracy_by_book"):
    return StepOutput({}, {tag: Metric(torch.tensor(totals), torch.tensor(count))})


def test_a_list_is_averaged_place_by_place():
    sums = MetricSums(RANKS)
    sums.add_output(listed([3.0, 0.0], 4.0))
    sums.add_output(listed([1.0, 1.0], 1.0))
    sums.add("table", torch.tensor([[1, 2], [3, 4]]), torch.tensor(2))
    assert sums.values() == {"accuracy_by_book": [0.8, 0.2], "table": [[0.5, 1.0], [1.5, 2.0]]}


def test_a_list_with_a_place_that_was_not_counted_is_left_out():
    sums = MetricSums(RANKS)
    sums.add("x", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
    assert sums.values() == {}
    sums.add("x", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    assert sums.values() == {"x": [1.0, 4.0]}


def test_lists_have_six_digits_and_numbers_all():
    sums = MetricSums(RANKS)
    sums.add("x", torch.ones(1, dtype=torch.float64), 3)
    sums.add("y", 1.0, 3.0)
    assert sums.values() == {"x": [0.333333], "y": 1 / 3}


def test_outputs_of_skipped_steps_add_nothing_not_even_nan():
    sums = MetricSums(RANKS)
    sums.add_output(output(10.0, 5.0, 1.0, 1.0), torch.tensor(True))
    sums.add_output(output(float("nan"), 5.0, float("inf"), 1.0), torch.tensor(False))
    assert sums.values()["speech_loss"] == 2.0 and sums.values()["audio_loss"] == 1.0


def test_a_sum_that_was_saved_goes_on_to_the_same_bits():
    parts = [0.1, 0.2, 0.3, 0.7, 1e-9, 1 / 3]
    straight, before = MetricSums(RANKS), MetricSums(RANKS)
    for part in parts[:3]:
        before.add_output(listed([part, part / 7], 1.0))
    resumed = MetricSums(RANKS)
    resumed.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for part in parts:
        straight.add_output(listed([part, part / 7], 1.0))
    for part in parts[3:]:
        resumed.add_output(listed([part, part / 7], 1.0))
    assert resumed.totals() == straight.totals()


class FakeRanks(Ranks):
    """Two ranks, of which this is one: the other has the same numbers, and a tag beside them."""

    def all_reduce(self, tensor, operation="sum"):
        tensor *= 2.0
        return tensor

    def gather_bytes(self, payload):
        return [payload, json.dumps([{"y_loss": [2]}, {"y_loss": 1.0}]).encode()]


def test_ranks_may_have_tags_that_others_never_saw():
    sums = MetricSums(FakeRanks(torch.device("cpu"), 0, 2))
    sums.add("x", 6.0, 2.0)
    sums.add("z", torch.ones(2, 3))
    assert sums.totals() == {"x": (12.0, 4.0), "z": ([[2.0] * 3] * 2, [[2.0] * 3] * 2)}
    assert sums.values() == {"x": 3.0, "z": [[1.0] * 3] * 2}
    assert sums.state_dict()["weights"] == {"y_loss": 1.0}
    sums.clear()
    assert sums.values() == {}


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
    JsonLines(tmp_path / "absent.jsonl").drop_after(3)
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


def test_lists_are_in_the_line_and_tables_in_a_file_of_the_newest(tmp_path):
    writer = MetricWriter(tmp_path, 0, True, False)
    writer.write(1, {"a": 1.0, "b": [0.1, 0.2], "valid/t": [[1.0], [2.0]]})
    writer.write(2, {"valid/u": [[3.0]]})
    writer.write(3, {"valid/t": [[4.0]]})
    lines = list(read_jsonl(writer.path))
    assert lines == [{"step": 1, "a": 1.0, "b": [0.1, 0.2]}, {"step": 2}, {"step": 3}]
    tables = {"valid/t": {"step": 3, "rows": [[4.0]]}, "valid/u": {"step": 2, "rows": [[3.0]]}}
    assert json.loads((tmp_path / "tables.json").read_text()) == tables
    MetricWriter(tmp_path, 2, True, False).write(3, {"valid/v": [[5.0]]})
    assert set(json.loads((tmp_path / "tables.json").read_text())) == {"valid/u", "valid/v"}


def test_tensorboard_has_a_histogram_of_a_list_and_the_ranking_of_a_table(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    writer = MetricWriter(tmp_path, 0, True, True)
    writer.write(4, {"list": [0.25, 0.5, 0.75], "table": [[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]]})
    writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == []
    (of_list,), (of_table,) = events.Histograms("list"), events.Histograms("table")
    assert (of_list.step, of_list.histogram_value.min, of_list.histogram_value.max) == (
        4,
        0.25,
        0.75,
    )
    assert of_list.histogram_value.num == 3
    assert of_table.histogram_value.bucket_limit == [1, 2, 3]
    assert of_table.histogram_value.bucket == pytest.approx([0.6, 0.3, 0.1])


def test_without_tensorboard_a_line_says_so(tmp_path, monkeypatch, caplog):
    def missing(module, purpose, package=None):
        raise MissingPackageError(f"{purpose} needs the package {module!r}: pip install {module}")

    monkeypatch.setattr(board, "require", missing)
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
