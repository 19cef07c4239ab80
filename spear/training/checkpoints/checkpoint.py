"""Checkpoints on disk: written whole or not at all, checked before they are trusted.

A checkpoint is a folder `checkpoints/step-00000100/`:

    model.safetensors      weights
    averaged.safetensors   running average of the weights since the start, float64
    optimizer.pt           optimiser and schedule (loads with weights_only=True)
    state.json             position and counters
    config.json            what rebuilds the model
    checksums.json         size and SHA-256 of every other file

It is written beside its place and renamed when everything is on disk. Which checkpoints stay is
decided by `keep_last` and `keep_every`, and one half way through the run stays as well: the average
over the second half needs it.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from spear.errors import CheckpointError, one_line
from spear.system.files import atomic_folder, partial_name, sha256_of, sync, write_json
from spear.system.model_folder import read_json_object, read_tensors
from spear.system.progress import get_logger
from spear.training.checkpoints.averaging import check_wide, mean_between

FORMAT_VERSION = 3
_OLD_FORMAT = 2
_OLD_ENCODER = ("encoder_embed.", "encoder.")
MODEL, AVERAGED, OPTIMIZER = "model.safetensors", "averaged.safetensors", "optimizer.pt"
STATE, CONFIG, CHECKSUMS = "state.json", "config.json", "checksums.json"
_NAME = re.compile(r"step-(\d{8,})")
_logger = get_logger(__name__)


@dataclass
class CheckpointContent:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        model: The model's state.
        averaged: Its running average, float64.
        optimizer: State of optimiser and schedule: plain containers, numbers, tensors.
        state: Position and counters, JSON; "num_averaged" is the number of contributions.
        config: What rebuilds the model, JSON.
    """

    model: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    config: dict[str, Any]


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """Returns the folder of the checkpoint after `step` steps."""
    return Path(run_folder) / "checkpoints" / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Returns the number of steps in a checkpoint folder's name."""
    match = _NAME.fullmatch(Path(checkpoint).name)
    if match is None:
        raise CheckpointError(f"{checkpoint} is no checkpoint: its name is not step-NNNNNNNN")
    return int(match.group(1))


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Returns the checkpoint folders of a run, oldest first, intact or not."""
    return _checkpoints_in(Path(run_folder) / "checkpoints")


def _checkpoints_in(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def save_checkpoint(path: Path, content: CheckpointContent) -> None:
    """Writes a checkpoint folder; a killed process leaves either all of it or nothing.

    Raises:
        CheckpointError: The disk is full, or cannot be written to; earlier checkpoints stay.
    """
    try:
        _write(path, content)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be saved ({one_line(error)}); earlier checkpoints are as they were: "
            "make room, and the same command goes on from the last of them"
        ) from error


def _write(path: Path, content: CheckpointContent) -> None:
    with atomic_folder(path) as folder:
        save_file(_independent(content.model), folder / MODEL)
        averaged = _independent(content.averaged)
        check_wide(averaged)
        save_file(averaged, folder / AVERAGED)
        torch.save(content.optimizer, folder / OPTIMIZER)
        write_json(folder / STATE, {"format_version": FORMAT_VERSION, **content.state})
        write_json(folder / CONFIG, content.config)
        sums = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
            for file in sorted(folder.iterdir())
        }
        write_json(folder / CHECKSUMS, sums)


def find_damage(checkpoint: Path, names: Iterable[str] | None = None) -> str | None:
    """Compares a checkpoint's files with its checksums.

    Args:
        checkpoint: Its folder.
        names: Only these files; all by default.

    Returns:
        What is wrong, in words, or None.
    """
    try:
        sums = json.loads((checkpoint / CHECKSUMS).read_text("utf-8"))
        for name in sums if names is None else names:
            file = checkpoint / name
            if file.stat().st_size != sums[name]["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {sums[name]['bytes']}"
            if sha256_of(file) != sums[name]["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{error.__class__.__name__}: {error}"
    return None


def newest_intact(run_folder: Path, names: Iterable[str] | None = None) -> Path | None:
    """Returns the newest checkpoint whose checksums hold; damaged ones are named and skipped.

    Args:
        run_folder: The run.
        names: The files that are needed; all by default.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    checkpoints = list_checkpoints(run_folder)
    for checkpoint in reversed(checkpoints):
        damage = find_damage(checkpoint, names)
        if damage is None:
            return checkpoint
        _logger.warning("%s is damaged and skipped: %s", checkpoint, damage)
    if checkpoints:
        raise CheckpointError(
            f"all {len(checkpoints)} checkpoints in {Path(run_folder) / 'checkpoints'} are "
            "damaged: remove them to start the run again"
        )
    return None


def remove_old(
    run_folder: Path, keep_last: int, pinned_step: int, keep_every: int = 0
) -> list[Path]:
    """Removes all but the newest checkpoints and those that are to stay.

    Args:
        run_folder: The run.
        keep_last: Newest checkpoints that stay.
        pinned_step: One that stays.
        keep_every: Those whose step is a multiple of this stay; 0: none.

    Returns:
        What was removed.
    """
    old = list_checkpoints(run_folder)[:-keep_last]
    steps = {checkpoint: step_of(checkpoint) for checkpoint in old}
    removed = [
        checkpoint
        for checkpoint, step in steps.items()
        if step != pinned_step and not (keep_every and step % keep_every == 0)
    ]
    for checkpoint in removed:
        # Renamed first: half a removed checkpoint must not look like a damaged one.
        doomed = checkpoint.with_name(partial_name(checkpoint.name))
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    if removed:
        sync(Path(run_folder) / "checkpoints")
    return removed


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Reads position and counters of a checkpoint."""
    state = read_json_object(checkpoint / STATE)
    if state.get("format_version") not in (_OLD_FORMAT, FORMAT_VERSION):
        raise CheckpointError(
            f"{checkpoint} has format {state.get('format_version')}, this program reads "
            f"{_OLD_FORMAT} and {FORMAT_VERSION}: use the version of spear that wrote it"
        )
    return state


def load_config(checkpoint: Path) -> dict[str, Any]:
    """Reads what rebuilds the model."""
    return read_json_object(checkpoint / CONFIG)


def load_part(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Reads one of a checkpoint's two files of weights, by the names that they have today.

    Raises:
        CheckpointError: It is missing or broken.
    """
    return _present_names(read_tensors(checkpoint / name), checkpoint)


def _present_names(values: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Renames what belongs to an encoder: in format 2 models were encoders, now they hold one."""
    if load_state(checkpoint)["format_version"] != _OLD_FORMAT:
        return values
    return {
        f"encoder.{name}" if name.startswith(_OLD_ENCODER) else name: value
        for name, value in values.items()
    }


def load_optimizer(checkpoint: Path) -> dict[str, Any]:
    """Reads the state of optimiser and schedule onto the CPU."""
    try:
        saved = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else error.__class__.__name__
        raise CheckpointError(f"cannot read {checkpoint / OPTIMIZER}: {reason}") from error
    own = saved.get("optimizer", {})
    if "parameters" in own:
        own["parameters"] = _present_names(own["parameters"], checkpoint)
    return saved


def average_between(start: Path | None, end: Path) -> dict[str, Tensor]:
    """Returns the average of the weights over the steps after `start` up to `end`, in float64.

    Args:
        start: A checkpoint of the same run, or None for the start of the run.
        end: A later checkpoint.

    Raises:
        CheckpointError: Damaged files, or nothing was averaged between the two.
    """
    values = {} if start is None else _load_checked(start, AVERAGED)
    num_start = 0 if start is None else load_state(start)["num_averaged"]
    num_end = load_state(end)["num_averaged"]
    if num_end <= num_start:
        raise CheckpointError(
            f"no weights were averaged between {start or 'the start'} and {end}: take "
            "weights=last, or train with a smaller averaging_every"
        )
    return mean_between(values, num_start, _load_checked(end, AVERAGED), num_end)


def load_weights(
    checkpoint_or_run_folder: str | Path, weights: str = "last"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Loads a trained model's weights and the configuration that rebuilds it.

    Args:
        checkpoint_or_run_folder: A run folder (its newest intact checkpoint is taken) or one
            checkpoint.
        weights: "last": the weights of that checkpoint.
            "averaged:SHARE": the average over that last share of the training up to there: from
            the kept checkpoint (or start of the run) that is nearest to its beginning.
            "averaged": the same over the second half.
            "average_last:K": the mean of the weights of the K newest checkpoints up to there.

    Returns:
        Weights, rounded to float32 at the very end, and the configuration.

    Raises:
        CheckpointError: Nothing usable there, or an unknown word for the weights.
    """
    share = re.fullmatch(r"averaged(?::(0?\.\d+|1(?:\.0*)?))?", weights)
    needed = MODEL if share is None else AVERAGED
    end = _resolve(Path(checkpoint_or_run_folder), (needed, STATE, CONFIG))
    last_k = re.fullmatch(r"average_last:([1-9]\d*)", weights)
    if weights == "last":
        state = _load_checked(end, MODEL)
    elif share is not None:
        state = average_between(average_start(end, float(share.group(1) or 0.5)), end)
    elif last_k is not None:
        state = _mean_of_last(end, int(last_k.group(1)))
    else:
        raise CheckpointError(
            f"unknown weights {weights!r}: choose last, averaged, averaged:SHARE (e.g. "
            "averaged:0.25) or average_last:K (e.g. average_last:3)"
        )
    narrow = {n: v.float() if v.is_floating_point() else v for n, v in state.items()}
    return narrow, load_config(end)


def average_start(end: Path, share: float) -> Path | None:
    """Returns the kept checkpoint nearest to where the last `share` of `end`'s steps begins.

    None is the start of the run. Checkpoints that are damaged, or after which nothing was averaged,
    do not count.
    """
    begin = step_of(end) * (1.0 - share)
    best: Path | None = None
    best_distance = begin  # of the start of the run
    num_end = load_state(end)["num_averaged"]
    for checkpoint in _up_to(end)[:-1]:
        distance = abs(step_of(checkpoint) - begin)
        if distance > best_distance or find_damage(checkpoint, (AVERAGED, STATE)) is not None:
            continue
        if load_state(checkpoint)["num_averaged"] < num_end:
            best, best_distance = checkpoint, distance
    return best


def _mean_of_last(end: Path, count: int) -> dict[str, Tensor]:
    checkpoints = _up_to(end)[-count:]
    if len(checkpoints) < count:
        raise CheckpointError(
            f"{end.parent} has {len(checkpoints)} checkpoints up to {end.name}, "
            f"average_last:{count} needs {count}: train with a larger keep_last"
        )
    mean: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        for name, value in _load_checked(checkpoint, MODEL).items():
            if not value.is_floating_point():
                mean[name] = value
            elif name in mean:
                mean[name] += value.double() / count
            else:
                mean[name] = value.double() / count
    return mean


def _up_to(end: Path) -> list[Path]:
    """Returns the checkpoints beside `end`, up to it, oldest first."""
    return [path for path in _checkpoints_in(end.parent) if step_of(path) <= step_of(end)]


def _resolve(path: Path, names: Iterable[str]) -> Path:
    if _NAME.fullmatch(path.resolve().name) and path.is_dir():
        return path.resolve()
    found = newest_intact(path, names)
    if found is None:
        raise CheckpointError(
            f"{path} has no checkpoints: name a run folder (with checkpoints/ in it) or one "
            "checkpoint (.../step-NNNNNNNN)"
        )
    return found.resolve()


def _load_checked(checkpoint: Path, name: str) -> dict[str, Tensor]:
    damage = find_damage(checkpoint, (name, STATE, CONFIG))
    if damage is not None:
        raise CheckpointError(f"{checkpoint} is damaged: {damage}")
    values = load_part(checkpoint, name)
    if name == AVERAGED:
        check_wide(values, checkpoint / name)
    return values


def _independent(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns contiguous CPU tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    independent = {}
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        independent[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return independent
