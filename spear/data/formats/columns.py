"""Named columns of numbers in one file that is memory-mapped, however long they are.

The layout is safetensors' (eight bytes with the length of a JSON header, the header, the raw
little-endian numbers), so that any tool reads it; the safetensors package itself copies what it
writes and reads, which hundreds of millions of numbers cannot afford. Pages are read when they are
touched, and processes of one machine share them.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear.errors import DataError
from spear.system.files import atomic_path

_NAMES = {"U8": "<u1", "U32": "<u4", "U64": "<u8", "I64": "<i8"}
"""safetensors' names of the types that columns have."""
_MAX_HEADER_BYTES = 100_000_000

Column = NDArray[Any]


@contextmanager
def write_columns(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> Iterator[dict[str, Column]]:
    """Creates a file of columns, which the block fills; it appears when the block succeeds.

    Args:
        path: The file; an existing one is replaced as a whole.
        shapes: Column -> (safetensors' type: "U8", "U32", "U64" or "I64", shape).
        metadata: Texts to keep with the columns.

    Yields:
        Writable arrays, memory-mapped, by column.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # Wide types first, as safetensors has it: every column is aligned to its own type.
    for name, (kind, shape) in sorted(shapes.items(), key=lambda one: (-_width(one[1][0]), one[0])):
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * _width(kind)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as partial:
        with open(partial, "wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + end)
        columns = _map(partial, header, 8 + len(text), "r+")
        yield columns
        for column in columns.values():
            if isinstance(column, np.memmap):
                column.flush()


def open_columns(path: Path) -> tuple[dict[str, Column], dict[str, str]]:
    """Maps a file of columns.

    Returns:
        Read-only arrays by column, and the metadata.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file is cut short or of another kind.
    """
    path = Path(path)
    with open(path, "rb") as stream:
        size = path.stat().st_size
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER_BYTES
        text = stream.read(min(length, _MAX_HEADER_BYTES))
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        end = 8 + length + max((one["data_offsets"][1] for one in header.values()), default=0)
        if end != size:
            raise ValueError(f"{size} bytes instead of {end}")
        return _map(path, {"__metadata__": metadata, **header}, 8 + length, "r"), metadata
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a readable file of columns ({error}); remove it") from error


def _map(path: Path, header: Mapping[str, Any], first: int, mode: Any) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, dtype = tuple(entry["shape"]), np.dtype(_NAMES[entry["dtype"]])
        if 0 in shape:  # nothing can be mapped
            columns[name] = np.zeros(shape, dtype)
        else:
            offset = first + entry["data_offsets"][0]
            columns[name] = np.memmap(path, dtype, mode, offset, shape)
    return columns


def _width(kind: str) -> int:
    return np.dtype(_NAMES[kind]).itemsize
