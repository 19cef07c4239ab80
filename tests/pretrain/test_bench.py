"""`spear bench`: the run's own configuration in, a report on its reading out."""

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_pretrain_model import TEACHERS, small_student
from torch.utils.data import DataLoader

from spear.config import parse_config, write_yaml
from spear.data.index.clip_index import SourceConfig
from spear.data.index.plan import BatchConfig
from spear.errors import AudioError, ConfigError, TokenError
from spear.pretrain.bench import BenchConfig, one_thread, run, time_pass, worker_counts
from spear.pretrain.config import PretrainConfig
from spear.training import TrainConfig
from tests.pretrain.small_shards import make_clip, write_corpus


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), num_speech=12, num_audio=6)


@pytest.fixture
def config(folders, tmp_path):
    return BenchConfig(
        data=[SourceConfig(str(folder)) for folder in folders],
        teachers=TEACHERS,
        student=small_student(),
        batch=BatchConfig(max_duration_s=12.0),
        num_workers=1,
        train=TrainConfig(device="cpu", output_dir=str(tmp_path / "exp")),
        num_batches=2,
        output=str(tmp_path / "bench.md"),
    )


def table_rows(text):
    """The cells of the table by the number of workers."""
    table = text[text.index("| workers |") :].split("\n\n", maxsplit=1)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {int(row[0]): [float(cell.replace(",", "")) for cell in row[1:]] for row in rows}


def test_a_runs_own_yaml_is_enough(config, tmp_path, capsys):
    own = {name: getattr(config, name) for name in PretrainConfig.__dataclass_fields__}
    write_yaml(tmp_path / "pretrain.yaml", PretrainConfig(**own))
    words = ["--config", str(tmp_path / "pretrain.yaml"), "--num_batches", "2"]
    words += ["--output", config.output, "--target", "100", "--what", "data"]
    parsed = parse_config(BenchConfig, words)
    assert parsed == replace(config, target=100.0)
    run(parsed)
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "bench.md").read_text()
    assert not (tmp_path / "exp").exists(), "a run's folder is left alone"


def test_the_report_has_every_setting(config, tmp_path, capsys):
    run(replace(config, target=1e9))
    text = (tmp_path / "bench.md").read_text()
    assert text.startswith("# Reading of training data") and "18 clips in `" in text
    assert "in each pass 2 batches of up to 12 s" in text
    rows = table_rows(text)
    assert list(rows) == [0, 1]
    assert all(value > 0 for cells in rows.values() for value in cells[:4])
    needed = int(re.search(r"h per hour need num_workers (\d+)", text)[1])
    assert 1e9 / needed == pytest.approx(rows[1][1], abs=0.51), "the table is rounded"
    assert "cores: too few" in text


def test_a_short_epoch_is_read_once(config, tmp_path, capsys):
    run(replace(config, num_batches=10**6, worker_counts=[0]))
    text = (tmp_path / "bench.md").read_text()
    assert list(table_rows(text)) == [0]
    hours = float(re.search(r"([\d.]+) h of audio", text)[1])
    clips = [make_clip(i, kind) for kind, num in (("speech", 12), ("audio", 6)) for i in range(num)]
    assert hours == pytest.approx(sum(len(one["audio"]) for one in clips) / 16000 / 3600, abs=0.006)
    assert "h per hour need" not in text


def test_numbers_of_workers(config):
    counts = {n: worker_counts(replace(config, num_workers=n)) for n in (0, 1, 2, 6, 8)}
    assert counts == {0: [0], 1: [0, 1], 2: [0, 1, 2], 6: [0, 1, 2, 4, 6], 8: [0, 1, 2, 4, 8]}
    assert worker_counts(replace(config, worker_counts=[3, 1, 3])) == [1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_batches": 0}, "num_batches must be 1 or more"),
        ({"worker_counts": [-1]}, "worker_counts 0 or more"),
        ({"target": 0.0}, "target is a number of hours"),
        ({"teachers": {}}, "teachers is empty"),
        ({"data": []}, "no shard folder is given"),
    ],
)
def test_what_cannot_be_timed_is_said(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(replace(config, **changes))


def test_tokens_of_another_width_are_refused_before_anything_is_timed(config):
    wrong = {"wavlm": replace(TEACHERS["wavlm"], num_codebooks=9)}
    with pytest.raises(TokenError, match="num_codebooks is 4 where the run asks for 9"):
        run(replace(config, teachers=wrong))


def burn(number):
    """A batch that costs a tenth of a second of processor time."""
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    return SimpleNamespace(audio_s=1.5, ids=["a", "b"])


def burning_loader(num_workers):
    return iter(DataLoader(range(3), batch_size=None, num_workers=num_workers, collate_fn=burn))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pass_counts_the_processor_time_of_its_workers(num_workers):
    found = time_pass(lambda: burning_loader(num_workers))
    assert (found.num_batches, found.audio_s) == (3, 4.5)
    assert 0.3 <= found.cpu_s < 1.5
    assert 0.1 <= found.first_s < found.wall_s
    assert found.per_core == pytest.approx(4.5 / found.cpu_s)
    assert found.per_hour == pytest.approx(4.5 / found.wall_s)
    assert found.num_clips == 6 and 0.1 <= found.longest_wait_s < found.wall_s


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(AudioError), one_thread():
        assert torch.get_num_threads() == 1
        raise AudioError("stop")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
