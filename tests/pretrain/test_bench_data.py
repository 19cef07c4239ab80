"""`spear bench data`: the run's own configuration in, a report on its reading out."""

import re
from dataclasses import replace

import pytest
from test_pretrain_model import TEACHERS, small_student

from spear.config import parse_config, write_yaml
from spear.data.index.clip_index import SourceConfig
from spear.data.index.plan import BatchConfig
from spear.errors import ConfigError, TokenError
from spear.pretrain import bench
from spear.pretrain.augment import AugmentConfig
from spear.pretrain.bench import BenchConfig, FirstSteps, run, worker_counts, workers_for
from spear.pretrain.config import PretrainConfig
from spear.pretrain.data_bench import Pass
from spear.pretrain.reading import open_index, training_data
from spear.training import TrainConfig
from tests.pretrain.small_shards import write_corpus


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


def table_rows(text, header):
    """The cells of the table that begins with `header`, by their first two columns."""
    table = text[text.index(header) :].split("\n\n", maxsplit=1)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {tuple(row[:2]): [float(cell.replace(",", "")) for cell in row[2:]] for row in rows}


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


def test_the_report_has_every_setting_and_every_part(config, tmp_path, capsys):
    run(replace(config, target=1e9))
    text = (tmp_path / "bench.md").read_text()
    assert text.startswith("# Reading of training data") and "18 clips in `" in text
    rows = table_rows(text, "| augmentation |")
    assert list(rows) == [(kind, workers) for kind in ("off", "on") for workers in ("0", "1")]
    assert all(value > 0 for cells in rows.values() for value in cells[:2])
    parts = table_rows(text, "| ms per batch")
    assert [part for part, _ in parts] == [*bench.PARTS, "all"]
    assert re.search(r"Augmentation makes a batch \d+\.\d\d times as expensive", text)
    needed = int(re.search(r"h per hour need num_workers (\d+)", text)[1])
    assert 1e9 / needed == pytest.approx(rows["on", "1"][0], abs=0.51), "the table is rounded"
    assert "cores: too few" in text


def test_without_augmentation_there_is_nothing_to_compare(config, tmp_path, capsys):
    run(replace(config, augment=AugmentConfig(prob=0.0), worker_counts=[0]))
    text = (tmp_path / "bench.md").read_text()
    assert list(table_rows(text, "| augmentation |")) == [("off", "0")]
    assert "times as expensive" not in text and "h per hour need" not in text


def test_numbers_of_workers(config):
    counts = {n: worker_counts(replace(config, num_workers=n)) for n in (0, 1, 2, 6, 8)}
    assert counts == {0: [0], 1: [0, 1], 2: [0, 1, 2], 6: [0, 1, 2, 4, 6], 8: [0, 1, 2, 4, 8]}
    assert worker_counts(replace(config, worker_counts=[3, 1, 3])) == [1, 3]


def test_workers_for_a_speed():
    found = Pass(num_batches=4, audio_s=3600.0, cpu_s=6.0)  # 600 h per core-hour
    assert [workers_for(target, found) for target in (1.0, 600.0, 601.0, 6000.0)] == [1, 1, 2, 10]


def test_first_steps_are_those_of_the_whole_plan(config):
    whole = training_data(config, open_index(config, config.data))[1]
    assert whole.steps(0) > 2
    part = FirstSteps(whole, 2)
    assert part.steps(0) == 2 and FirstSteps(whole, 10**6).steps(0) == whole.steps(0)
    assert [part.batch(0, step) for step in (0, 1)] == [whole.batch(0, step) for step in (0, 1)]


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
