"""A folder of features: an array for each recording, in `.npy` files or one `.safetensors` file.

`features.json` says what they are, and a folder that holds others is refused. Arrays are written
whole or not at all, and what is there is kept, so that a job that was killed goes on where it was.
One file for all is packed at the end, out of `.npy` files in a hidden folder.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from spear.errors import ConfigError, DataError, one_line
from spear.system.files import atomic_path, remove_partials, write_json

RECORD_FILE = "features.json"
PACKED_FILE = "features.safetensors"
_PARTS = ".parts"
_NOT_COMPARED = ("model", "spear_version")


class FeatureFolder:
    """Features by the names of their recordings; names may have slashes.

    Args:
        folder: Where they are; made where it is missing.
        layout: "npy": `{name}.npy` for each recording; "safetensors": all in one file.
        record: What they are, as JSON; the same features can come from another place, so `model`
            is not compared with what is there.

    Raises:
        ConfigError: The folder cannot be made, e.g. since it is a file.
        DataError: It holds other features.
    """

    def __init__(
        self, folder: Path, layout: Literal["npy", "safetensors"], record: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.layout = layout
        self.record = {"format": layout, **record}
        make_folder(folder)
        remove_partials(folder)
        self._check_record()
        write_json(folder / RECORD_FILE, self.record)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Returns the names, in their order, whose features are not there yet."""
        packed = self._packed_names()
        found = [name for name in names if name not in packed]
        for folder in {self._path(name).parent for name in found}:
            remove_partials(folder)
        return [name for name in found if not self._path(name).is_file()]

    def add(self, name: str, features: np.ndarray) -> None:
        """Writes the features of a recording."""
        with atomic_path(self._path(name)) as partial:
            np.save(partial, features, allow_pickle=False)

    def finish(self) -> None:
        """Packs what was added into the one file, where that is the layout."""
        parts = self.folder / _PARTS
        if not parts.is_dir():
            return
        # Mapped, not read: together they may be larger than the memory.
        added = {
            path.relative_to(parts).with_suffix("").as_posix(): np.load(path, mmap_mode="r")
            for path in parts.rglob("*.npy")
            if ".partial-" not in path.name
        }
        arrays = {**self._packed(), **added}
        with atomic_path(self.folder / PACKED_FILE) as partial:
            metadata = {"features": json.dumps(self.record)}
            save_file({name: arrays[name] for name in sorted(arrays)}, partial, metadata)
        shutil.rmtree(parts)

    def _path(self, name: str) -> Path:
        """The `.npy` file of a recording, for good or until it is packed."""
        folder = self.folder if self.layout == "npy" else self.folder / _PARTS
        return folder / f"{name}.npy"

    def _check_record(self) -> None:
        path = self.folder / RECORD_FILE
        if not path.is_file():
            return
        try:
            found = json.loads(path.read_text("utf-8"))
            compared = self.record.keys() - set(_NOT_COMPARED)
            different = sorted(key for key in compared if found.get(key) != self.record[key])
        except (ValueError, AttributeError) as error:
            raise DataError(f"{path} is not readable ({one_line(error)}): remove it") from error
        if different:
            raise DataError(
                f"{self.folder} holds other features: {_listed(different, found, self.record)}; "
                "choose another out, or remove it"
            )

    def _packed_names(self) -> set[str]:
        path = self.folder / PACKED_FILE
        if not path.is_file():
            return set()
        try:
            with safe_open(path, "np") as file:
                return set(file.keys())
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is not readable ({one_line(error)}): remove it") from error

    def _packed(self) -> dict[str, np.ndarray]:
        path = self.folder / PACKED_FILE
        return load_file(path) if path.is_file() else {}


def make_folder(folder: Path) -> None:
    """Makes the folder that a command writes into, where it is missing.

    Raises:
        ConfigError: It cannot be made or written into, e.g. since it is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out {folder} cannot be made a folder: {one_line(error)}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"out {folder} cannot be written: choose another folder")


def _listed(keys: Iterable[str], found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {found.get(key)!r} where {wanted[key]!r} is wanted" for key in keys)
