"""A teacher's sidecar against the quantiser's file, and against itself.

The checksums in a sidecar say which tar files belong to it. Whether it tells the truth about
quantiser and teacher is checked here: the quantiser's file has an id, N and K of its own, and says
on which teacher's frames it was trained.
"""

from pathlib import Path
from typing import Any

from spear.data.formats.tokens import TokenSidecar
from spear.data.tokens.maker import OF_TEACHER, trained_on
from spear.errors import SpearError
from spear.mvq import load_quantizer
from spear.system.files import sha256_of


def check_sidecar(sidecar: TokenSidecar, teacher: str, quantizer_path: str | None) -> list[str]:
    """Returns what is wrong with a sidecar, one line each.

    Args:
        sidecar: As it was read.
        teacher: The teacher in the name of its file.
        quantizer_path: The file from which the tokens must come; None where any will do.
    """
    problems = []
    if sidecar.teacher != teacher:
        problems.append(f"{teacher} tokens: the sidecar is that of teacher {sidecar.teacher!r}")
    if sidecar.num_codebooks < 1 or sidecar.codebook_size < 2 or sidecar.frame_rate_hz <= 0:
        problems.append(
            f"{teacher} tokens: the sidecar says {sidecar.num_codebooks} codebooks of "
            f"{sidecar.codebook_size} codes at {sidecar.frame_rate_hz:g} Hz"
        )
    found = {name: getattr(sidecar, name) for name in OF_TEACHER}
    if differing := _differences(found, sidecar.teacher_identity):
        problems.append(f"{teacher} tokens: the sidecar contradicts itself: {differing}")
    if quantizer_path is not None:
        problems += _check_quantizer(sidecar, teacher, quantizer_path)
    return problems


def _check_quantizer(sidecar: TokenSidecar, teacher: str, path: str) -> list[str]:
    if sha256_of(Path(path)) != sidecar.quantizer_sha256:
        return [
            f"{teacher} tokens come from quantiser {sidecar.quantizer_id} "
            f"(SHA-256 {sidecar.quantizer_sha256[:16]}), not from {path}"
        ]
    try:
        quantizer = load_quantizer(path)
    except SpearError as error:
        return [f"{teacher} tokens: their quantiser cannot be loaded: {error}"]
    said = {
        **trained_on(quantizer),
        "quantizer_id": quantizer.id,
        "num_codebooks": quantizer.num_codebooks,
        "codebook_size": quantizer.codebook_size,
    }
    if differing := _differences(vars(sidecar), said):
        return [f"{teacher} tokens: the sidecar and its quantiser {path} differ: {differing}"]
    return []


def _differences(said: dict[str, Any], found: dict[str, Any]) -> str:
    """Returns the fields that both have with other values, in words."""
    return "; ".join(
        f"{name} {value!r} and {found[name]!r}"
        for name, value in said.items()
        if name in found and found[name] != value
    )
