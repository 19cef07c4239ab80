"""`spear extract-tokens`: a teacher's tokens for every clip of shard folders.

Takes shard folders, a teacher and its quantiser; runs the teacher over every clip and writes the
codes as one more Shar field, `{teacher}_tokens.000000.tar`, beside the audio. When the tokens of
all shards are there, a report and the sidecar `{teacher}_tokens.json` are written. Run again, it
does only the shards that are missing; several jobs (torchrun, or --job i --num-jobs n) share the
shards.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from spear.data.records import PartRecords
from spear.data.represent import check_sources, describe_teacher, represent
from spear.data.shards import ShardFolder
from spear.data.stage_reports import write_token_report
from spear.data.tokens import (
    ShardTokens,
    TokenSidecar,
    TokenTarWriter,
    sidecar_name,
    token_tar_name,
)
from spear.device import choose_device
from spear.errors import ConfigError, TokenError
from spear.files import atomic_path, remove_partials, sha256_of
from spear.mvq import CodebookQuantizer, load_quantizer
from spear.progress import get_logger, progress
from spear.teachers import TeacherConfig, load_teacher

if TYPE_CHECKING:
    from spear.teachers import Teacher

log = get_logger(__name__)


@dataclass
class ExtractConfig:
    """Which tokens to extract."""

    shards: list[str] = field(default_factory=list)
    """Shard folders; the tokens are written into them."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The teacher."""
    quantizer: str = ""
    """Quantiser file (quantizer.safetensors) that was trained on this teacher's frames."""
    batch_s: float = 120.0
    """Most seconds of audio, padding counted, that the teacher gets at once."""
    job: int = 1
    """Which of the jobs this is, from 1; under torchrun the ranks divide its share further."""
    num_jobs: int = 1
    """Jobs that share the shards."""
    device: str = "auto"
    """Device of teacher and quantiser: auto, cpu, cuda, cuda:1, ..."""


def run(config: ExtractConfig) -> None:
    """Writes the tokens that are missing.

    Raises:
        ConfigError: Settings that do not fit together.
        DataError: A shard folder is unusable.
        TokenError: Teacher and quantiser do not fit, or the folder holds other tokens.
    """
    _check_config(config)
    folders = [ShardFolder(path) for path in config.shards]
    device = choose_device(config.device)
    quantizer = load_quantizer(config.quantizer).to(device).eval()
    teacher = load_teacher(config.teacher, device)
    check_fit(teacher, quantizer, config.quantizer)
    sidecar = describe_tokens(teacher, quantizer, config.quantizer)
    extractor = Extractor(teacher, quantizer, sidecar, config.batch_s, device)
    for folder in folders:  # before any work: a folder with other tokens stops the stage at once
        extractor.finished(folder)
    index, total = _share(config)
    for folder in folders:
        remove_partials(folder.path)
        extractor.extract(folder, range(index, folder.num_shards, total))
        extractor.finalise(folder)


def check_fit(teacher: "Teacher", quantizer: CodebookQuantizer, path: str) -> None:
    """Refuses a quantiser that was not made for a teacher.

    The width must match; so must what the quantiser's metadata says of the teacher whose frames it
    was trained on, where it says anything.

    Raises:
        TokenError: Says what differs.
    """
    if quantizer.dim != teacher.dim:
        raise TokenError(
            f"{path}: quantises vectors of {quantizer.dim} channels and teacher {teacher.name!r} "
            f"gives {teacher.dim}; train a quantiser on this teacher's frames"
        )
    try:
        trained_on = json.loads(quantizer.metadata.get("teacher", "{}"))
    except ValueError:
        trained_on = {}
    identity = teacher.identity()
    different = [
        f"{key} {trained_on[key]!r} and not {identity[key]!r}"
        for key in ("weights_sha256", "layer", "frame_rate_hz")
        if isinstance(trained_on, dict) and key in trained_on and trained_on[key] != identity[key]
    ]
    if different:
        raise TokenError(
            f"{path}: was trained on frames of another teacher: {'; '.join(different)}; train a "
            "quantiser on this teacher's frames"
        )


def _check_config(config: ExtractConfig) -> None:
    check_sources(config.shards, config.batch_s)
    if not config.quantizer:
        raise ConfigError("quantizer is not set")
    if not 1 <= config.job <= config.num_jobs:
        raise ConfigError(f"job must lie between 1 and num_jobs {config.num_jobs}: {config.job}")


def describe_tokens(teacher: "Teacher", quantizer: CodebookQuantizer, path: str) -> TokenSidecar:
    """Returns the sidecar, without shards, of the tokens that will be written."""
    return TokenSidecar(
        teacher=teacher.name,
        layer=teacher.layer,
        frame_rate_hz=float(teacher.frame_rate_hz),
        weights_sha256=teacher.weights_sha256,
        quantizer_id=quantizer.id,
        quantizer_sha256=sha256_of(Path(path)),
        num_codebooks=quantizer.num_codebooks,
        codebook_size=quantizer.codebook_size,
        teacher_identity=describe_teacher(teacher),
    )


def _share(config: ExtractConfig) -> tuple[int, int]:
    """Returns which share of the shards is this process's, and how many shares there are."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return (config.job - 1) * world_size + rank, config.num_jobs * world_size


@dataclass(frozen=True)
class Extractor:
    """A teacher and its quantiser, and what their tokens are called."""

    teacher: "Teacher"
    """The teacher."""
    quantizer: CodebookQuantizer
    """Its quantiser, on the same device."""
    sidecar: TokenSidecar
    """The sidecar of the tokens, without shards."""
    batch_s: float
    """Most seconds of audio in a batch."""
    device: torch.device
    """Where the work is done."""

    def finished(self, folder: ShardFolder) -> dict[int, ShardTokens]:
        """Returns the records of shards whose tokens are in place.

        Raises:
            TokenError: The folder holds tokens of another teacher or quantiser under this name.
        """
        done: dict[int, ShardTokens] = {}
        path = folder.path / sidecar_name(self.teacher.name)
        if path.is_file():
            found = TokenSidecar.load(path)
            self._refuse_others(found, path)
            done |= found.shards
        for shard, content in self._parts(folder).load().items():
            entry = {"shards": {f"{shard}": content["tokens"]}}
            found = TokenSidecar.from_dict({**content["identity"], **entry}, path)
            self._refuse_others(found, path)
            done |= found.shards
        return {
            shard: tokens
            for shard, tokens in done.items()
            if (folder.path / token_tar_name(self.teacher.name, shard)).is_file()
        }

    def extract(self, folder: ShardFolder, positions: Sequence[int]) -> None:
        """Writes the missing ones of the shards at the given positions of a folder."""
        done = self.finished(folder)
        todo = [position for position in positions if folder.shard_ids[position] not in done]
        identity = {key: value for key, value in asdict(self.sidecar).items() if key != "shards"}
        for position in progress(todo, f"extract {self.teacher.name} {folder.path.name}"):
            tokens = self.write_shard(folder, position)
            content = {"identity": identity, "tokens": asdict(tokens)}
            self._parts(folder).save(folder.shard_ids[position], content)

    @torch.no_grad()
    def write_shard(self, folder: ShardFolder, position: int) -> ShardTokens:
        """Computes and writes the tokens of one shard, in the order of its cuts."""
        cuts = folder.cuts(position)
        tokens: dict[int, np.ndarray] = {}
        for batch, frames in represent(self.teacher, folder, cuts, self.batch_s, self.device):
            codes = self.quantizer.encode(torch.cat(frames)).cpu().numpy()
            ends = np.cumsum([len(one) for one in frames])
            for info, own in zip(batch, np.split(codes, ends[:-1]), strict=True):
                tokens[info.index] = own
        path = folder.path / token_tar_name(self.teacher.name, folder.shard_ids[position])
        rate_hz = float(self.teacher.frame_rate_hz)
        with atomic_path(path) as partial, TokenTarWriter(partial, rate_hz) as writer:
            for info in cuts:
                writer.write(info.id, tokens[info.index])
        return ShardTokens(writer.num_cuts, writer.num_frames, sha256_of(path))

    def finalise(self, folder: ShardFolder) -> None:
        """Writes report and sidecar when every shard has tokens; else says how many are missing.

        Every job that finds the folder complete does so, since none knows which is the last; all
        write the same bytes.
        """
        done = self.finished(folder)
        missing = [shard for shard in folder.shard_ids if shard not in done]
        if missing:
            log.info("%s: %d shards are left to other jobs", folder.path, len(missing))
            return
        path = folder.path / sidecar_name(self.teacher.name)
        sidecar = replace(self.sidecar, shards={shard: done[shard] for shard in folder.shard_ids})
        is_there = path.is_file() and TokenSidecar.load(path) == sidecar
        report = path.with_suffix(".md")
        if not (is_there and report.is_file()):
            write_token_report(report, folder, sidecar)
        if not is_there:
            sidecar.save(path)
        self._parts(folder).clear()
        num_frames = sum(entry.num_frames for entry in sidecar.shards.values())
        log.info("%s: %d shards, %d frames", path, len(done), num_frames)

    def _parts(self, folder: ShardFolder) -> PartRecords:
        return PartRecords(folder.path, f"{self.teacher.name}_tokens")

    def _refuse_others(self, found: TokenSidecar, path: Path) -> None:
        different = found.differences(self.sidecar)
        if different:
            shown = "; ".join(
                f"{name} {getattr(found, name)!r} and not {getattr(self.sidecar, name)!r}"
                for name in different
            )
            raise TokenError(
                f"{path}: tokens of {self.teacher.name!r} made otherwise are there already: "
                f"{shown}; remove *{path.stem}* from this folder or give the teacher another name"
            )
