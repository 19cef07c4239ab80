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
from spear.system.files import write_json
from spear.system.markdown import markdown_table, replace_end
from spear.system.progress import get_logger
from spear.training import train
from spear.training.logs.curves import read_curves

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
    curves = {
        tag.removeprefix("valid/"): curve
        for tag, curve in read_curves(run_folder).items()
        if tag.startswith("valid/")
    }
    if not curves:
        logger.info("no validation data (valid: is empty), so no summary of accuracies")
        return
    last = max(step for curve in curves.values() for step in curve)
    summary = {
        name: {key: curves[f"{name}_{key}"][last] for key in RESULT_KEYS}
        for name in teachers
        if last in curves.get(f"{name}_masked_accuracy", {})
    }
    write_json(run_folder / "summary.json", summary)
    rows = [
        (
            name,
            f"{one['masked_accuracy']:.2%}",
            f"{one['baseline_accuracy']:.2%}",
            f"{one['unmasked_accuracy']:.2%}",
            f"{one['loss']:.4f}",
        )
        for name, one in summary.items()
    ]
    header = ("teacher", "masked accuracy", "baseline", "unmasked accuracy", "loss")
    remark = (
        f"Held-out clips at step {last:.0f}; baseline: always the most frequent token of the "
        "training data; loss: cross-entropy per token, masked frames weighted alpha, others "
        "1 - alpha."
    )
    blocks = [remark, markdown_table(header, rows)]
    replace_end(run_folder / "report.md", RESULTS_TITLE, blocks)
