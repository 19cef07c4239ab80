"""Which shards of a folder have a teacher's tokens, however often the work was interrupted.

A finished shard has its tar file and a record: a small file of its own while others are missing,
then an entry of the sidecar. Tokens that were made otherwise are refused, whoever made them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spear.data.formats.records import PartRecords
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
from spear.data.tokens.extract_teacher import TokenMaker, windowing_of
from spear.errors import DataError, TokenError
from spear.system.files import atomic_path, sha256_of


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
            entry = {"shards": {f"{shard}": content["tokens"]}}
            found = TokenSidecar.from_dict({**content["identity"], **entry}, self.sidecar_path)
            if content["identity"] not in checked:
                self._refuse_others(found)
                checked.append(content["identity"])
            done |= found.shards
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
        rate_hz = self.maker.frame_rate_hz
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

    def sidecar(self) -> TokenSidecar | None:
        """Returns the sidecar of all shards; None where some are not finished."""
        done = self.finished()
        if any(shard not in done for shard in self.folder.shard_ids):
            return None
        shards = {shard: done[shard] for shard in self.folder.shard_ids}
        return replace(self.maker.sidecar, shards=shards)

    @property
    def parts(self) -> PartRecords:
        """The records of single shards."""
        return PartRecords(self.folder.path, f"{self.maker.name}_tokens")

    def _refuse_others(self, found: TokenSidecar) -> None:
        different = self.maker.differences(found)
        if not different and windowing_of(found) != self.maker.windowing:
            cuts = self.maker.cuts_otherwise(found, self.folder.longest_s)
            different = [cuts] if cuts else []
        if different:
            raise TokenError(
                f"{self.sidecar_path}: tokens of {self.maker.name!r} made otherwise are there "
                f"already: {'; '.join(different)}; remove *{self.sidecar_path.stem}* from this "
                "folder or give the teacher another name"
            )
