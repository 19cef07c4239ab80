import json
import os
import resource
import signal

import pytest
import torch
from torch import nn

from spear.errors import CheckpointError
from spear.system.weights import load_exact
from spear.training.checkpoints.averaging import RunningAverage
from spear.training.checkpoints.checkpoint import (
    AVERAGED,
    MODEL,
    CheckpointContent,
    average_between,
    checkpoint_path,
    find_damage,
    list_checkpoints,
    load_optimizer,
    load_state,
    load_weights,
    newest_intact,
    remove_old,
    save_checkpoint,
    step_of,
)


class Walk:
    """A model whose weights walk at random, saved now and then as a run would."""

    def __init__(self, folder, save_at, num_steps, averaging_every=2):
        self.folder = folder
        self.model = nn.Linear(3, 2)
        self.model.register_buffer("count", torch.tensor(0))
        generator = torch.Generator().manual_seed(0)
        average = RunningAverage(self.model)
        self.contributions = []
        self.weights = {}
        for step in range(1, num_steps + 1):
            noise = torch.randn(2, 3, generator=generator)
            with torch.no_grad():
                self.model.weight.add_(noise * 0.1)
                self.model.count += 1
            if step % averaging_every == 0:
                average.update(self.model)
                self.contributions.append((step, self.model.weight.detach().double()))
            if step in save_at:
                self.weights[step] = self.model.weight.detach().clone()
                self.save(step, average)

    def save(self, step, average):
        content = CheckpointContent(
            model=self.model.state_dict(),
            averaged=average.values,
            optimizer={"lr": 0.25, "delta": torch.arange(3.0)},
            state={"position": {"step": step}, "num_averaged": average.num_updates},
            config={"dim": [3, 2]},
        )
        save_checkpoint(checkpoint_path(self.folder, step), content)

    def mean(self, after, up_to):
        values = [value for step, value in self.contributions if after < step <= up_to]
        return torch.stack(values).mean(0)


def test_a_checkpoint_holds_what_the_contract_names(tmp_path):
    Walk(tmp_path, {4}, 4)
    path = checkpoint_path(tmp_path, 4)
    assert path == tmp_path / "checkpoints" / "step-00000004"
    names = {file.name for file in path.iterdir()}
    assert names == {
        "model.safetensors",
        "averaged.safetensors",
        "optimizer.pt",
        "state.json",
        "config.json",
        "checksums.json",
    }
    assert set(json.loads((path / "checksums.json").read_text())) == names - {"checksums.json"}
    assert find_damage(path) is None
    assert load_state(path)["num_averaged"] == 2
    assert load_optimizer(path)["lr"] == 0.25


@pytest.mark.parametrize("end", [100, 400, 1000])
def test_the_average_of_any_window_is_exact(tmp_path, end):
    walk = Walk(tmp_path, {37, 90, end}, end)
    for start in (None, 37, 90):
        first = None if start is None else checkpoint_path(tmp_path, start)
        state = average_between(first, checkpoint_path(tmp_path, end))
        assert state["weight"].dtype == torch.float64
        expected = walk.mean(start or 0, end)
        torch.testing.assert_close(state["weight"], expected, rtol=0, atol=1e-12)
    assert state["count"].item() == end


def test_an_average_is_never_stored_in_float32(tmp_path):
    walk = Walk(tmp_path, {4}, 4)
    average = RunningAverage(walk.model)
    average.values["weight"] = average.values["weight"].float()
    with pytest.raises(CheckpointError, match=r"weight is torch\.float32, not float64"):
        walk.save(6, average)
    assert newest_intact(tmp_path) == checkpoint_path(tmp_path, 4)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_window_without_contributions_is_refused(tmp_path):
    Walk(tmp_path, {4, 5}, 5)
    with pytest.raises(CheckpointError, match="no weights were averaged between"):
        average_between(checkpoint_path(tmp_path, 4), checkpoint_path(tmp_path, 5))


def cut_short(path):
    os.truncate(path / MODEL, 20)


def flip_a_bit(path):
    content = bytearray((path / MODEL).read_bytes())
    content[-1] ^= 4
    (path / MODEL).write_bytes(content)


def lose_a_file(path):
    (path / AVERAGED).unlink()


def lose_the_checksums(path):
    (path / "checksums.json").unlink()


def break_the_checksums(path):
    (path / "checksums.json").write_text('{"model.safetensors": 3}')


@pytest.mark.parametrize(
    "damage", [cut_short, flip_a_bit, lose_a_file, lose_the_checksums, break_the_checksums]
)
def test_damage_of_any_kind_is_found_and_named(tmp_path, damage, caplog):
    walk = Walk(tmp_path, {4, 8}, 8)
    damage(checkpoint_path(tmp_path, 8))
    assert find_damage(checkpoint_path(tmp_path, 8)) is not None
    assert newest_intact(tmp_path) == checkpoint_path(tmp_path, 4)
    assert "step-00000008 is damaged and skipped" in caplog.text
    # Files that a reader does not need may be damaged: here the average.
    weights, _ = load_weights(tmp_path)
    assert torch.equal(weights["weight"], walk.weights[8 if damage is lose_a_file else 4])
    with pytest.raises(CheckpointError, match="step-00000008 is damaged"):
        load_weights(checkpoint_path(tmp_path, 8), "averaged" if damage is lose_a_file else "last")


def test_other_names_are_no_checkpoints(tmp_path):
    Walk(tmp_path, {4}, 4)
    folder = tmp_path / "checkpoints"
    for name in ("step-old", ".step-00000009.partial-1", "step-00000009.tmp", "notes"):
        (folder / name).mkdir()
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 4)]
    with pytest.raises(CheckpointError, match="step-NNNNNNNN"):
        step_of(folder / "notes")


@pytest.mark.parametrize("place", ["save_file", "torch.save"])
def test_a_full_disk_keeps_the_checkpoints_and_says_what_to_do(tmp_path, monkeypatch, place):
    walk = Walk(tmp_path, {4}, 4)

    def full(*args):
        # torch reports a failed write as a RuntimeError, the system as an OSError
        error = RuntimeError if place == "torch.save" else OSError
        raise error("No space left on device")

    monkeypatch.setattr(f"spear.training.checkpoints.checkpoint.{place}", full)
    with pytest.raises(CheckpointError, match=r"No space left.*earlier checkpoints.*make room"):
        walk.save(6, RunningAverage(walk.model))
    assert newest_intact(tmp_path) == checkpoint_path(tmp_path, 4)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_file_size_limit_of_the_system_is_met_like_a_full_disk(tmp_path):
    """With a real limit, in a process of its own: the write itself fails."""
    walk = Walk(tmp_path, {4}, 4)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
            walk.save(6, RunningAverage(walk.model))
        except CheckpointError:
            status = 7
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert newest_intact(tmp_path) == checkpoint_path(tmp_path, 4)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_the_newest_and_the_pinned_checkpoint_stay(tmp_path):
    Walk(tmp_path, {2, 4, 6, 8, 10, 12}, 12)
    removed = remove_old(tmp_path, keep_last=2, pinned_step=6)
    assert [step_of(path) for path in removed] == [2, 4, 8]
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [6, 10, 12]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    assert remove_old(tmp_path, keep_last=2, pinned_step=6) == []


def test_every_nth_checkpoint_stays_for_good(tmp_path):
    Walk(tmp_path, {2, 4, 6, 8, 10, 12, 14}, 14)
    removed = remove_old(tmp_path, keep_last=1, pinned_step=6, keep_every=4)
    assert [step_of(path) for path in removed] == [2, 10]
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [4, 6, 8, 12, 14]


def test_averaged_weights_are_those_of_the_second_half(tmp_path):
    walk = Walk(tmp_path, {50, 90, 96, 98, 100}, 100)
    weights, config = load_weights(tmp_path, "averaged")
    assert weights["weight"].dtype == torch.float32 and config == {"dim": [3, 2]}
    torch.testing.assert_close(weights["weight"], walk.mean(50, 100).float(), rtol=0, atol=1e-6)
    earlier, _ = load_weights(checkpoint_path(tmp_path, 96), "averaged")
    torch.testing.assert_close(earlier["weight"], walk.mean(50, 96).float(), rtol=0, atol=1e-6)
    first, _ = load_weights(checkpoint_path(tmp_path, 50), "averaged")
    torch.testing.assert_close(first["weight"], walk.mean(0, 50).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("share", "start"), [("0.5", 50), (".1", 90), ("0.03", 98), ("1", 0)])
def test_averaged_weights_over_another_share_of_the_run(tmp_path, share, start):
    walk = Walk(tmp_path, {50, 90, 96, 98, 100}, 100)
    weights, _ = load_weights(tmp_path, f"averaged:{share}")
    torch.testing.assert_close(weights["weight"], walk.mean(start, 100).float(), rtol=0, atol=1e-6)


def test_averaged_weights_do_without_a_damaged_start(tmp_path):
    walk = Walk(tmp_path, {50, 60, 100}, 100)
    lose_a_file(checkpoint_path(tmp_path, 50))
    weights, _ = load_weights(tmp_path, "averaged")
    torch.testing.assert_close(weights["weight"], walk.mean(60, 100).float(), rtol=0, atol=1e-6)


def test_the_mean_of_the_last_checkpoints(tmp_path):
    walk = Walk(tmp_path, {90, 96, 98, 100}, 100)
    weights, _ = load_weights(tmp_path, "average_last:3")
    expected = sum(walk.weights[step].double() for step in (96, 98, 100)) / 3
    torch.testing.assert_close(weights["weight"], expected.float(), rtol=0, atol=1e-7)
    assert weights["count"].item() == 100
    only, _ = load_weights(tmp_path, "average_last:1")
    assert torch.equal(only["weight"], walk.weights[100])
    with pytest.raises(CheckpointError, match=r"has 4 checkpoints .* average_last:5 needs 5"):
        load_weights(tmp_path, "average_last:5")


@pytest.mark.parametrize("weights", ["best", "average_last:0", "LAST", "averaged:2", "averaged:"])
def test_unknown_words_for_weights_are_refused(tmp_path, weights):
    Walk(tmp_path, {4}, 4)
    with pytest.raises(CheckpointError, match=r"choose last, .*averaged:SHARE .*average_last:K"):
        load_weights(tmp_path, weights)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoints"):
        load_weights(tmp_path / "nowhere")


def test_weights_of_another_model_are_listed():
    state = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        load_exact(nn.Linear(3, 2), state, "a checkpoint")
    text = str(error.value)
    assert "missing: bias" in text and "unexpected: extra" in text
    assert "weight (2, 4) instead of (2, 3)" in text


def test_shared_and_sliced_tensors_are_saved_whole(tmp_path):
    walk = Walk(tmp_path, set(), 1)
    walk.model.tied = nn.Linear(3, 2)
    walk.model.tied.weight = walk.model.weight
    walk.model.register_buffer("column", torch.arange(12.0).view(3, 4)[:, 1])
    walk.save(2, RunningAverage(walk.model))
    weights, _ = load_weights(tmp_path)
    assert torch.equal(weights["tied.weight"], weights["weight"])
    assert weights["column"].tolist() == [1.0, 5.0, 9.0]


def test_a_format_of_another_version_is_refused(tmp_path):
    Walk(tmp_path, {4}, 4)
    path = checkpoint_path(tmp_path, 4)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_state(path)


def test_loading_runs_no_code_from_a_file(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    Walk(tmp_path, {4}, 4)
    path = checkpoint_path(tmp_path, 4)
    torch.save({"optimizer": Evil()}, path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"cannot read .*optimizer.pt"):
        load_optimizer(path)
    assert not (tmp_path / "owned").exists()
