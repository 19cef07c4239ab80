"""`spear pretrain`: shard folders with tokens in, a run folder with a student out.

The same command on the same folder continues an interrupted run. At the end `summary.json` and
`report.md` say, per teacher, how well masked tokens are predicted and how well the most frequent
token would have done.
"""

from pathlib import Path

from spear.config import to_dict
from spear.pretrain.config import PretrainConfig
from spear.pretrain.reading import check_config, open_index
from spear.pretrain.task import RESULT_KEYS, PretrainTask
from spear.system.distributed import join_ranks
from spear.system.files import write_json, write_text
from spear.system.progress import get_logger
from spear.training import train
from spear.training.logs.metrics import read_jsonl

logger = get_logger(__name__)

RESULTS_TITLE = "## Masked prediction"


def run(config: PretrainConfig) -> None:
    """Trains, validates and reports.

    Raises:
        SpearError: A user's mistake: see `PretrainTask` and `spear.training.train`.
    """
    group = (config.train.device, config.train.backend, config.train.distributed_timeout_s)
    with join_ranks(*group) as ranks:
        if ranks.is_main:  # the indexes that are missing, once
            check_config(config)
            for sources in filter(None, (config.data, config.valid)):
                open_index(config, sources, num_jobs=max(1, config.num_workers))
        ranks.barrier()
        task = PretrainTask(config)
        train(task, config.train, to_dict(config), profile=config.profile)
        if ranks.is_main:
            write_results(Path(config.train.output_dir), list(config.teachers))


def write_results(run_folder: Path, teachers: list[str]) -> None:
    """Writes the last validation into `summary.json`, and as a table into `report.md`.

    Args:
        run_folder: The run, with its `metrics.jsonl`.
        teachers: Names, in the order of the table.
    """
    records = [
        record
        for record in read_jsonl(run_folder / "metrics.jsonl")
        if any(tag.startswith("valid/") for tag in record)
    ]
    if not records:
        logger.info("no validation data (valid: is empty), so no summary of accuracies")
        return
    last = records[-1]
    summary = {
        name: {key: last[f"valid/{name}_{key}"] for key in RESULT_KEYS}
        for name in teachers
        if f"valid/{name}_masked_accuracy" in last
    }
    write_json(run_folder / "summary.json", summary)
    report = run_folder / "report.md"
    text = report.read_text("utf-8") if report.is_file() else ""
    text = text.split(RESULTS_TITLE, maxsplit=1)[0].rstrip()
    rows = "\n".join(
        f"| {name} | {one['masked_accuracy']:.2%} | {one['baseline_accuracy']:.2%} "
        f"| {one['unmasked_accuracy']:.2%} | {one['loss']:.4f} |"
        for name, one in summary.items()
    )
    write_text(
        report,
        f"{text}\n\n{RESULTS_TITLE}\n\nHeld-out clips at step {last['step']}; baseline: always the "
        "most frequent token of the training data; loss: cross-entropy per token, masked frames "
        "weighted alpha, others 1 - alpha.\n\n"
        "| teacher | masked accuracy | baseline | unmasked accuracy | loss |\n"
        f"| --- | --- | --- | --- | --- |\n{rows}\n",
    )
