"""What is found in a folder, and what files say when they are whole, broken or missing."""

from pathlib import Path

import pytest
import yaml
from run_folders import make_run, process, write_lines

from spear.errors import ConfigError
from spear.report.compute import read_processes
from spear.report.run_files import Run
from spear.report.sources import Reader, find_sources


def names(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_everything_is_sorted_into_its_kind(tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    make_run(exp / "b_run")
    make_run(exp / "a_run")
    write_lines(exp / "a_run" / "ledger.jsonl", [process("a", "pretrain")])
    write_lines(exp / "asr" / "decode" / "summary.json", [{"splits": {}}])
    write_lines(exp / "quantizers" / "q" / "summary.json", [{"num_codebooks": 4}])
    write_lines(exp / "tags" / "evaluation" / "summary.json", [{"mean_average_precision": 0.5}])
    write_lines(exp / "b_run" / "summary.json", [{"wavlm": {"loss": 2.0}}])
    write_lines(tmp_path / "data" / "train" / "shards.json", [{}])
    write_lines(tmp_path / "data" / "tokens_only" / "wavlm_tokens.json", [{}])
    reader = Reader()
    found = find_sources([exp], reader)
    assert names(found.runs, tmp_path) == ["exp/a_run", "exp/b_run"]
    summaries = {kind: names(list(one), tmp_path) for kind, one in found.summaries.items()}
    assert summaries == {
        "decoding": ["exp/asr/decode"],
        "tagging": ["exp/tags/evaluation"],
        "quantizer": ["exp/quantizers/q"],
    }
    assert names(found.shards, tmp_path) == ["data/tokens_only", "data/train"]
    assert names(found.ledgers, tmp_path) == ["exp/a_run"]
    assert reader.problems == []


@pytest.mark.parametrize("passed_over", ["checkpoints/step-1", "tensorboard", ".hidden", "log"])
def test_some_folders_hold_no_results(passed_over: str, tmp_path: Path) -> None:
    write_lines(tmp_path / passed_over / "metrics.jsonl", [{"step": 1}])
    write_lines(tmp_path / "a" / "b" / "c" / "d" / "metrics.jsonl", [{"step": 1}])
    write_lines(tmp_path / "a" / "b" / "c" / "d" / "too_deep" / "metrics.jsonl", [{"step": 1}])
    assert names(find_sources([tmp_path], Reader()).runs, tmp_path) == ["a/b/c/d"]


def test_a_run_without_metrics_is_still_a_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert names(find_sources([tmp_path], Reader()).runs, tmp_path) == ["run"]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        find_sources([tmp_path, tmp_path / "none"], Reader())


def test_a_data_folder_is_listed_once(tmp_path: Path) -> None:
    shards = tmp_path / "data" / "train"
    write_lines(shards / "shards.json", [{}])
    for name in ("a", "b"):
        run = make_run(tmp_path / "exp" / name)
        (run / "config.yaml").write_text(
            f"data: [{{path: {shards}}}, {{path: {shards.parent}/../data/train}}, {{path: gone}}]\n"
        )
    found = find_sources([tmp_path / "exp"], Reader())
    assert [path.resolve() for path in found.shards] == [shards]


def test_folders_are_named_as_seen_from_the_page(tmp_path: Path) -> None:
    for name in ("exp/asr/a", "other/asr/a", "data/train"):
        (tmp_path / name).mkdir(parents=True)
    one = find_sources([tmp_path / "exp"], Reader())
    assert one.name(tmp_path / "exp" / "asr" / "a") == "asr/a"
    assert one.name(tmp_path / "exp") == "exp"
    assert one.name(tmp_path / "data" / "train") == "data/train"
    two = find_sources([tmp_path / "exp", tmp_path / "other"], Reader())
    assert two.name(tmp_path / "exp" / "asr" / "a") == "exp/asr/a"
    assert two.name(tmp_path / "other" / "asr" / "a") == "other/asr/a"


def test_the_reader_remembers_each_problem_once(tmp_path: Path) -> None:
    broken = tmp_path / "a.json"
    broken.write_text("[1")
    reader = Reader()
    assert reader.mapping(tmp_path / "none.json") == {}
    assert reader.text(tmp_path / "none.txt") == ""
    assert reader.lines(tmp_path / "none.jsonl") == []
    assert reader.problems == []
    assert reader.mapping(broken) == reader.mapping(broken) == {}
    assert len(reader.problems) == 1
    assert reader.problems[0].startswith(f"{broken} cannot be read: ")
    broken.write_text("[1]")
    assert Reader().mapping(broken) == {}
    assert Reader().mapping(broken, yaml.safe_load) == {}


def test_folders_in_the_place_of_files(tmp_path: Path) -> None:
    reader = Reader()
    assert reader.mapping(tmp_path) == {}
    assert reader.text(tmp_path) == ""
    assert len(reader.problems) == 1


def test_the_facts_of_a_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    lines = [
        process("a", "pretrain", gpu="H200", num_gpus=1),
        process("b", "pretrain", gpu="H200", num_gpus=1, started="2026-01-02T10:00:00+00:00"),
        process("c", "verify"),
    ]
    run = Run.read(folder, "run", Reader(), read_processes(lines))
    assert run.kind == "pre-training"
    assert run.teachers == ["wavlm"]
    found = run.facts
    assert found["ran on"] == "1 x H200"
    assert found["started"] == "2 times"
    assert found["steps"] == "60 of 100 (not complete)"


def test_starts_are_counted_without_a_ledger(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text("tokenizer: {}\ntrain: {max_steps: 60}\n")
    for number in range(3):
        write_lines(folder / "tensorboard" / f"events.out.tfevents.{number}", [])
    run = Run.read(folder, "run", Reader(), [])
    assert run.kind == "fine-tuning"
    found = run.facts
    assert found["started"] == "3 times"
    assert found["steps"] == "60 of 60"
    assert "ran on" not in found


def test_nothing_is_said_of_nothing(tmp_path: Path) -> None:
    run = Run.read(tmp_path, "run", Reader(), [])
    assert run.facts == {}
    assert run.kind == "training"
