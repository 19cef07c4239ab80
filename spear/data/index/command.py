"""`spear index`: shard folders get an index that says where every clip lies.

Takes shard folders with or without tokens, reads the cuts and the headers of all tar files once, in
several processes, and writes `clips.index` (see `shard_folder`). Run again, it does nothing where
the index is of the folder's present content, and reads only the new tokens where a teacher was
added. Whatever reads a shard folder does the same by itself, in one process, for what it needs.
"""

from dataclasses import dataclass, field

from spear.data.index.shard_folder import INDEX_NAME, ShardFolder
from spear.errors import ConfigError
from spear.system.progress import get_logger

log = get_logger(__name__)


@dataclass
class IndexConfig:
    """What to index."""

    shards: list[str] = field(default_factory=list)
    """Shard folders; each gets a folder `clips.index`."""
    num_jobs: int = 4
    """Processes that read the headers of the shards."""


def run(config: IndexConfig) -> None:
    """Writes the indexes that are missing or of other content.

    Raises:
        ConfigError: No folder is given.
        DataError: A folder or shard is missing or broken, or two cuts share an id.
        TokenError: A teacher's tokens are not complete.
    """
    if not config.shards:
        raise ConfigError("shards is not set: name at least one shard folder")
    if config.num_jobs < 1:
        raise ConfigError("num_jobs must be 1 or more")
    for path in config.shards:
        folder = ShardFolder(path, config.num_jobs)
        folder.open_tokens(folder.teachers(), config.num_jobs)
        log.info(
            "%s: %d cuts in %d shards, %.2f h, tokens of %s",
            folder.path / INDEX_NAME,
            len(folder),
            folder.num_shards,
            folder.duration_s / 3600,
            ", ".join(folder.teachers()) or "no teacher",
        )
