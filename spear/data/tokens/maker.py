"""A teacher with its quantiser: from audio to tokens, and what these tokens are called.

`TokenMaker` is what extraction and `spear verify --recheck` share, so that tokens made again are
made the same way: precision and windows are part of what the sidecar says of the teacher.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from spear.data.formats.tokens import Tokens, TokenSidecar
from spear.data.tokens.batches import AudioBatch, Piece
from spear.data.tokens.frames import TeacherFrames, describe_teacher
from spear.errors import TokenError
from spear.mvq import CodebookQuantizer
from spear.system.files import sha256_of
from spear.teachers import Precision, Teacher, Windowing

OF_TEACHER = ("weights_sha256", "layer", "frame_rate_hz")
"""What both a sidecar and a quantiser's file say of the teacher."""


class TokenMaker:
    """A teacher, its quantiser, and how recordings are cut for it.

    Attributes:
        teacher: The teacher.
        quantizer: Its quantiser, on the same device.
        windowing: How long recordings are cut.
        sidecar: The sidecar of the tokens, without shards.
        name: The teacher's label, with which the names of the token files begin.
    """

    def __init__(
        self, teacher: Teacher, quantizer: CodebookQuantizer, path: str, windowing: Windowing
    ) -> None:
        """Puts a teacher and the quantiser from a file together.

        Raises:
            TokenError: The quantiser was not made for this teacher.
        """
        check_fit(teacher, quantizer, path)
        self.teacher, self.quantizer, self.windowing = teacher, quantizer, windowing
        self.name = teacher.name
        how = {"precision": teacher.precision, "windows": asdict(windowing)}
        self.sidecar = TokenSidecar(
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
        self._frames = TeacherFrames(teacher, windowing)

    @torch.no_grad()
    def tokens(self, batch: AudioBatch) -> list[tuple[Piece, Tokens]]:
        """Returns the pieces of a batch with their tokens (T', N)."""
        pieces = self._frames(batch)
        codes = self.quantizer.encode(torch.cat([frames for _, frames in pieces])).cpu()
        own = codes.split([len(frames) for _, frames in pieces])
        return [(piece, one.numpy()) for (piece, _), one in zip(pieces, own, strict=True)]

    def differences(self, found: TokenSidecar, longest_s: float = 0.0) -> list[str]:
        """Says how tokens with a sidecar were made otherwise than this makes them.

        Args:
            found: The sidecar.
            longest_s: Seconds of the longest recording; how recordings are cut matters where some
                are.
        """
        wanted = self.sidecar
        pairs = [
            (name, getattr(found, name), getattr(wanted, name))
            for name in found.differences(wanted)
        ]
        pairs.append(("precision", precision_of(found), precision_of(wanted)))
        if different := [f"{name} {a!r} and not {b!r}" for name, a, b in pairs if a != b]:
            return different
        former = windowing_of(found)
        if former != self.windowing and any(
            one.may_cut(longest_s) for one in (former, self.windowing)
        ):
            return [f"long recordings cut by {former} and not {self.windowing}"]
        return []


def precision_of(sidecar: TokenSidecar) -> Precision:
    """Returns what a teacher computed in; sidecars that do not say are of float32 tokens."""
    return sidecar.teacher_identity.get("precision", "float32")


def windowing_of(sidecar: TokenSidecar) -> Windowing:
    """Returns how long recordings were cut; sidecars that do not say are of a time without."""
    return Windowing(**sidecar.teacher_identity.get("windows", {"window_s": 0.0}))


def trained_on(quantizer: CodebookQuantizer) -> dict[str, Any]:
    """Returns what a quantiser's file says of the teacher on whose frames it was trained."""
    try:
        return dict(json.loads(quantizer.metadata.get("teacher", "{}")))
    except (ValueError, TypeError):
        return {}


def check_fit(teacher: Teacher, quantizer: CodebookQuantizer, path: str) -> None:
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
    said, identity = trained_on(quantizer), teacher.identity()
    different = [
        f"{key} {said[key]!r} and not {identity[key]!r}"
        for key in OF_TEACHER
        if key in said and said[key] != identity[key]
    ]
    if different:
        raise TokenError(
            f"{path}: was trained on frames of another teacher: {'; '.join(different)}; train a "
            "quantiser on this teacher's frames"
        )
