"""`load_teacher`: from a specification to a frozen model in evaluation mode."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from spear.config import check_keys
from spear.errors import ConfigError
from spear.teachers.base import Precision, Teacher
from spear.teachers.config import TeacherConfig, TeacherFamily

# Module and function that build each family: imported when first asked for.
_BUILDERS: dict[TeacherFamily, tuple[str, str]] = {
    "wavlm": ("spear.teachers.hf", "load_hf_teacher"),
    "hubert": ("spear.teachers.hf", "load_hf_teacher"),
    "wav2vec2": ("spear.teachers.hf", "load_hf_teacher"),
    "data2vec": ("spear.teachers.hf", "load_hf_teacher"),
    "dasheng": ("spear.teachers.dasheng", "load_dasheng_teacher"),
    "spear": ("spear.teachers.spear_student", "load_spear_teacher"),
    "logmel": ("spear.teachers.features", "load_feature_teacher"),
    "mfcc": ("spear.teachers.features", "load_feature_teacher"),
}


def load_teacher(
    spec: Mapping[str, Any] | TeacherConfig,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> Teacher:
    """Loads a teacher: evaluation mode, no gradients.

    Args:
        spec: A `TeacherConfig`, or its fields, e.g. `{"name": "wavlm", "path": ..., "layer": 21}`.
        device: Where its weights go.
        precision: What its network computes in.

    Raises:
        ConfigError: The specification has an unknown or unusable field.
        CheckpointError: The weights are missing, broken, or of another model.
        MissingPackageError: The family needs a package that is not installed.
    """
    config = spec if isinstance(spec, TeacherConfig) else _config_from(spec)
    module, function = _BUILDERS[config.resolved_family()]
    build: Callable[[TeacherConfig], Teacher] = getattr(importlib.import_module(module), function)
    teacher = build(config).to(device).eval().requires_grad_(False)
    teacher.precision = precision
    if config.frame_rate_hz not in (None, teacher.frame_rate_hz):
        raise ConfigError(
            f"teacher {config.name!r} has {teacher.frame_rate_hz:g} frames per second, "
            f"not frame_rate_hz {config.frame_rate_hz:g}"
        )
    return teacher


def _config_from(spec: Mapping[str, Any]) -> TeacherConfig:
    """Turns a dictionary into a `TeacherConfig`, naming what does not belong."""
    check_keys(TeacherConfig, spec, "teacher")
    if "name" not in spec:
        raise ConfigError("a teacher needs a name")
    path = spec.get("path")
    return TeacherConfig(**{**spec, "path": None if path is None else str(path)})
