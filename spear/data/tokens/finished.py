"""Which shards of a folder have a teacher's tokens, however often the work was interrupted.

A finished shard has its tar file and a record: a small file of its own while others are missing,
then an entry of the sidecar. Tokens that were made otherwise are refused, whoever made them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spear.data.formats.part_records import PartRecords
from spear.data.formats.shards import CutInfo
from spear.data.formats.tokens import (
    ShardTokens,
    Tokens,
    TokenSidecar,
    TokenTarWriter,
    sidecar_name,
    token_tar_name,
)
from spear.data.index.shard_folder import ShardFolder
from spear.data.stage_reports import write_token_report
from spear.data.tokens.maker import TokenMaker
from spear.errors import DataError, TokenError
from spear.system.files import atomic_path, sha256_of
from spear.system.progress import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class TokenState:
    """One teacher's tokens in one folder.

    Attributes:
        folder: The folder.
        maker: What makes the tokens.
    """

    folder: ShardFolder
    maker: TokenMaker

    @property
    def sidecar_path(self) -> Path:
        """Where the sidecar lies, or will lie."""
        return self.folder.path / sidecar_name(self.maker.name)

    @property
    def parts(self) -> PartRecords:
        """The records of single shards."""
        return PartRecords(self.folder.path, f"{self.maker.name}_tokens")

    def finished(self) -> dict[int, ShardTokens]:
        """Returns the records of shards whose tokens are in place.

        Raises:
            TokenError: The folder holds tokens of another teacher or quantiser, or made with other
                settings, under this name.
        """
        done: dict[int, ShardTokens] = {}
        checked: list[dict[str, object]] = []
        # The sidecar last: another job that folds the records writes it before they go.
        for shard, content in self.parts.load().items():
            done[shard] = ShardTokens(**content["tokens"])
            if content["identity"] not in checked:
                entry = {**content["identity"], "shards": {}}
                self._refuse_others(TokenSidecar.from_dict(entry, self.sidecar_path))
                checked.append(content["identity"])
        if self.sidecar_path.is_file():
            found = TokenSidecar.load(self.sidecar_path)
            self._refuse_others(found)
            done |= found.shards
        return {
            shard: tokens
            for shard, tokens in done.items()
            if (self.folder.path / token_tar_name(self.maker.name, shard)).is_file()
        }

    def write(self, shard: int, cuts: Sequence[CutInfo], tokens: Sequence[Tokens]) -> None:
        """Writes the tokens of a shard, in the order of its cuts, and then its record.

        Raises:
            DataError: The disk is full, or the folder is not to be written.
        """
        path = self.folder.path / token_tar_name(self.maker.name, shard)
        rate_hz = self.maker.sidecar.frame_rate_hz
        try:
            with atomic_path(path) as partial, TokenTarWriter(partial, rate_hz) as writer:
                for info, own in zip(cuts, tokens, strict=True):
                    writer.write(info.id, own)
            record = ShardTokens(writer.num_cuts, writer.num_frames, sha256_of(path))
            identity = asdict(self.maker.sidecar)
            del identity["shards"]
            self.parts.save(shard, {"identity": identity, "tokens": asdict(record)})
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}); make room and run again"
            ) from error

    def finalise(self) -> None:
        """Writes report and sidecar when every shard has tokens; else says that some are missing.

        Every job that finds the folder complete does so, since none knows which is the last; all
        write the same bytes.
        """
        done, path = self.finished(), self.sidecar_path
        if any(shard not in done for shard in self.folder.shard_ids):
            log.info("%s: shards are left to other jobs", self.folder.path)
            return
        shards = {shard: done[shard] for shard in self.folder.shard_ids}
        sidecar = replace(self.maker.sidecar, shards=shards)
        is_there = path.is_file() and TokenSidecar.load(path) == sidecar
        report = path.with_suffix(".md")
        if not (is_there and report.is_file()):
            write_token_report(report, self.folder, sidecar)
        if not is_there:
            sidecar.save(path)
        self.parts.clear()
        num_frames = sum(entry.num_frames for entry in shards.values())
        log.info("%s: %d shards, %d frames", path, len(shards), num_frames)

    def _refuse_others(self, found: TokenSidecar) -> None:
        if different := self.maker.differences(found, self.folder.longest_s):
            raise TokenError(
                f"{self.sidecar_path}: tokens of {self.maker.name!r} made otherwise are there "
                f"already: {'; '.join(different)}; remove *{self.sidecar_path.stem}* from this "
                "folder or give the teacher another name"
            )
