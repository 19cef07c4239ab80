"""A teacher with its quantiser: from audio to tokens, and what these tokens are called.

`TokenMaker` is what extraction and `spear verify --recheck` share, so that tokens made again are
made the same way: precision and windows are part of what the sidecar says of the teacher.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spear.data.formats.tokens import Tokens, TokenSidecar
from spear.data.tokens.pieces import Piece
from spear.data.tokens.read_ahead import AudioBatch
from spear.data.tokens.represent import describe_teacher, represent_batch
from spear.errors import TokenError
from spear.mvq import CodebookQuantizer
from spear.system.files import sha256_of
from spear.teachers import Precision, Windowing

if TYPE_CHECKING:
    from spear.teachers import Teacher


@dataclass
class TokenMaker:
    """A teacher, its quantiser, and how recordings are cut for it.

    Attributes:
        teacher: The teacher.
        quantizer: Its quantiser, on the same device.
        sidecar: The sidecar of the tokens, without shards.
        windowing: How long recordings are cut.
    """

    teacher: "Teacher"
    quantizer: CodebookQuantizer
    sidecar: TokenSidecar
    windowing: Windowing
    _known: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, teacher: "Teacher", quantizer: CodebookQuantizer, path: str, windowing: Windowing
    ) -> "TokenMaker":
        """Puts a teacher and the quantiser from a file together.

        Raises:
            TokenError: The quantiser was not made for this teacher.
        """
        check_fit(teacher, quantizer, path)
        sidecar = describe_tokens(teacher, quantizer, path, windowing)
        return cls(teacher, quantizer, sidecar, windowing)

    @property
    def name(self) -> str:
        """The teacher's label, with which the names of the token files begin."""
        return self.teacher.name

    @property
    def frame_rate_hz(self) -> float:
        """Token frames per second."""
        return float(self.teacher.frame_rate_hz)

    def begin_folder(self) -> None:
        """Forgets the recordings of the folder before: their numbers come again."""
        self._known.clear()

    @torch.no_grad()
    def tokens(self, batch: AudioBatch) -> list[tuple[Piece, Tokens]]:
        """Returns the pieces of a batch with their tokens (T', N)."""
        pieces = represent_batch(self.teacher, batch, self._known)
        codes = self.quantizer.encode(torch.cat([frames for _, frames in pieces])).cpu()
        own = codes.split([len(frames) for _, frames in pieces])
        return [(piece, one.numpy()) for (piece, _), one in zip(pieces, own, strict=True)]

    def differences(self, found: TokenSidecar) -> list[str]:
        """Says how tokens with a sidecar were made otherwise than this makes them, windows aside.

        How long recordings are cut matters in folders that have some: `cuts_otherwise`.
        """
        wanted = self.sidecar
        pairs = [
            (name, getattr(found, name), getattr(wanted, name))
            for name in found.differences(wanted)
        ]
        pairs.append(("precision", precision_of(found), precision_of(wanted)))
        return [
            f"{name} {there!r} and not {here!r}" for name, there, here in pairs if there != here
        ]

    def cuts_otherwise(self, found: TokenSidecar, longest_s: float) -> str | None:
        """Says how recordings of up to so many seconds were cut otherwise; None: they were not."""
        former = windowing_of(found)
        if former == self.windowing or not any(
            one.may_cut(longest_s) for one in (former, self.windowing)
        ):
            return None
        return f"long recordings cut by {former} and not {self.windowing}"


def precision_of(sidecar: TokenSidecar) -> Precision:
    """Returns what a teacher computed in; sidecars that do not say are of float32 tokens."""
    return sidecar.teacher_identity.get("precision", "float32")


def windowing_of(sidecar: TokenSidecar) -> Windowing:
    """Returns how long recordings were cut; sidecars that do not say are of a time without."""
    return Windowing(**sidecar.teacher_identity.get("windows", {"window_s": 0.0}))


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


def describe_tokens(
    teacher: "Teacher", quantizer: CodebookQuantizer, path: str, windowing: Windowing
) -> TokenSidecar:
    """Returns the sidecar, without shards, of the tokens that will be written."""
    how = {"precision": teacher.precision, "windows": asdict(windowing)}
    return TokenSidecar(
        teacher=teacher.name,
        layer=teacher.layer,
        frame_rate_hz=float(teacher.frame_rate_hz),
        weights_sha256=teacher.weights_sha256,
        quantizer_id=quantizer.id,
        quantizer_sha256=sha256_of(Path(path)),
        num_codebooks=quantizer.num_codebooks,
        codebook_size=quantizer.codebook_size,
        teacher_identity={**describe_teacher(teacher), **how},
    )
