"""What a stage has finished, shard by shard, so that a killed run goes on where it was.

While a stage runs, each finished shard leaves one small JSON file; when all are there, the stage
folds them into its final record (`shards.json`, `{teacher}_tokens.json`) and removes them. Jobs on
several machines can work on one folder, since no two write the same file.
"""

import json
from pathlib import Path
from typing import Any

from spear.errors import DataError
from spear.system.files import write_json


class PartRecords:
    """The per-shard records `.{stem}.{shard}.part.json` of one stage in one folder."""

    def __init__(self, folder: Path, stem: str) -> None:
        """Names the records.

        Args:
            folder: Where the shards are.
            stem: Name of the final record without suffix, e.g. "shards" or "wavlm_tokens".
        """
        self.folder = Path(folder)
        self.stem = stem

    def path(self, shard: int) -> Path:
        """Returns the file of a shard's record."""
        return self.folder / f".{self.stem}.{shard:06d}.part.json"

    def save(self, shard: int, content: dict[str, Any]) -> None:
        """Notes that a shard is finished; its files must be in place already."""
        write_json(self.path(shard), content)

    def load(self) -> dict[int, dict[str, Any]]:
        """Returns the record of every finished shard.

        Raises:
            DataError: A record is no JSON mapping.
        """
        records = {}
        for path in sorted(self.folder.glob(f".{self.stem}.*.part.json")):
            try:
                content = json.loads(path.read_text("utf-8"))
                records[int(path.name.split(".")[-3])] = dict(content)
            except FileNotFoundError:
                continue  # another job has just folded the records
            except (OSError, ValueError, TypeError) as error:
                raise DataError(f"{path}: not readable ({error}); remove it, run again") from error
        return records

    def clear(self) -> None:
        """Removes the records, after the final one was written."""
        for path in self.folder.glob(f".{self.stem}.*.part.json"):
            path.unlink(missing_ok=True)
