"""Arrays that belong together, as `.npy` files of a folder that is written once and memory-mapped.

Hundreds of millions of numbers are opened at once: pages are read when they are touched, and the
processes of a machine share them. A folder's name says what its content was made from, so a folder
that is there is complete and right, and is never replaced.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear.errors import DataError
from spear.system.files import partial_name, sync

Array = NDArray[Any]


def write_arrays(folder: Path, arrays: Mapping[str, Array]) -> None:
    """Writes arrays into a new folder, which appears when all are on disk.

    Args:
        folder: Its name says what the arrays were made from: where another process has written it
            in the meantime, it holds the same, and stays.
        arrays: By the name of their files, without suffix.

    Raises:
        OSError: It cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(partial_name(folder.name))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
            sync(partial / f"{name}.npy")
        os.rename(partial, folder)
        sync(folder.parent)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def map_arrays(folder: Path, names: Iterable[str]) -> dict[str, Array]:
    """Maps arrays of a folder.

    Returns:
        Read-only arrays by name.

    Raises:
        DataError: One is missing, cut short or of another kind.
    """
    try:
        # Views without the class `memmap`, which makes each look at a single number slower.
        return {name: np.asarray(_map(folder / f"{name}.npy")) for name in names}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{folder}: not readable ({error}); remove it") from error


def _map(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
