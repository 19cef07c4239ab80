"""What differs between two configurations, in words."""

from collections.abc import Mapping
from typing import Any

_ABSENT = "nothing"


def describe_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], wording: str = "{}: {} before, {} now"
) -> list[str]:
    """Returns one line like "model.dim: 512 before, 384 now" for each value that differs."""
    old_flat, new_flat = _flatten(old), _flatten(new)
    return [
        wording.format(key, old_flat.get(key, _ABSENT), new_flat.get(key, _ABSENT))
        for key in sorted(old_flat.keys() | new_flat.keys())
        if old_flat.get(key, _ABSENT) != new_flat.get(key, _ABSENT)
    ]


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
