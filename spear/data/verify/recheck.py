"""Token arrays against what teacher and quantiser make of a sample of cuts anew.

Checksums tell that tokens are those that were written, not that these were right. `spear verify
--recheck 20` runs the teacher over a few cuts of every folder, each by itself, and compares. Tokens
that belong to other frames are recognised: the shift at which they agree best is named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from spear.data.formats.shards import CutInfo
from spear.data.formats.tokens import Tokens, TokenSidecar
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens.batches import BatchReader, plan_batches
from spear.data.tokens.maker import TokenMaker, precision_of, windowing_of
from spear.errors import TokenError
from spear.mvq import load_quantizer
from spear.system.rng import generator
from spear.teachers import TeacherConfig, load_teacher

MIN_AGREEMENT = 0.9
"""Share of a cut's tokens that must come out the same; another device changes few."""
MIN_AGREEMENT_BFLOAT16 = 0.5
"""The same in bfloat16, where the batch's shape changes more of them: see `spear.teachers.base`."""
_MAX_SHIFT = 25
_SEED = 0


def load_maker(
    sidecar: TokenSidecar,
    quantizer_path: str,
    device: torch.device,
    weights_path: str | None = None,
) -> TokenMaker:
    """Loads what made some tokens, in the precision and windows of before.

    Args:
        sidecar: Of the tokens.
        quantizer_path: The quantiser's file.
        device: Where teacher and quantiser go.
        weights_path: Where the teacher's weights lie, if not where they were then.

    Raises:
        TokenError: Teacher or quantiser are not those of the sidecar.
        SpearError: One of them cannot be loaded.
    """
    config = _teacher_of(sidecar, weights_path)
    teacher = load_teacher(config, device, precision_of(sidecar))
    quantizer = load_quantizer(quantizer_path).to(device).eval()
    maker = TokenMaker(teacher, quantizer, quantizer_path, windowing_of(sidecar))
    if differing := maker.differences(sidecar):
        raise TokenError(
            f"{sidecar.teacher} tokens cannot be made again: the teacher or quantiser given "
            f"differs from theirs in {'; '.join(differing)}"
        )
    return maker


def recheck(maker: TokenMaker, folder: ShardFolder, num_cuts: int) -> Iterator[tuple[CutInfo, str]]:
    """Makes the tokens of a sample of cuts again.

    Args:
        maker: What made them.
        folder: With the tokens.
        num_cuts: Size of the sample; all cuts where there are fewer.

    Yields:
        What is wrong, with the cut in which it is.
    """
    is_rough = maker.teacher.precision == "bfloat16"
    min_agreement = MIN_AGREEMENT_BFLOAT16 if is_rough else MIN_AGREEMENT
    reader = BatchReader(folder)
    for cut in sample(folder, num_cuts):
        # Batches of one: whatever a batch does to tokens shows.
        batches = plan_batches(maker.teacher, [cut], 1e-9, maker.windowing)
        made = [tokens for one in batches for _, tokens in maker.tokens(reader(one))]
        found = folder.tokens(cut, maker.name)
        if problem := compare_tokens(found, np.concatenate(made), min_agreement):
            yield cut, problem


def sample(folder: ShardFolder, num_cuts: int) -> list[CutInfo]:
    """Draws cuts without replacement, in their order; the same ones in every call.

    Only the shards of the drawn cuts are read. A larger sample contains every smaller one.
    """
    rng = generator(_SEED, "recheck")
    chosen: set[int] = set()
    while len(chosen) < min(num_cuts, len(folder)):
        chosen.add(int(rng.integers(len(folder))))
    return [folder.cut(number) for number in sorted(chosen)]


def compare_tokens(
    found: Tokens, expected: Tokens, min_agreement: float = MIN_AGREEMENT
) -> str | None:
    """Says how the tokens of a cut differ from what they should be.

    Args:
        found: (T', N), as they are stored.
        expected: (T'', N), made anew.
        min_agreement: Share of the tokens that must agree.

    Returns:
        The difference in words; None where enough of the tokens agree.
    """
    if found.shape != expected.shape:
        return f"shape {found.shape} where extraction gives {expected.shape}"
    shares = {shift: _agreement(found, expected, shift) for shift in range(-_MAX_SHIFT, 26)}
    if shares[0] >= min_agreement or found.size == 0:
        return None
    best = max(shares, key=lambda shift: (shares[shift], -abs(shift)))
    if best != 0 and shares[best] >= min_agreement:
        direction = "late" if best > 0 else "early"
        return f"shifted: {abs(best)} frames too {direction} ({shares[best]:.0%} agree there)"
    return f"{shares[0]:.0%} agree with what extraction gives"


def _agreement(found: Tokens, expected: Tokens, shift: int) -> float:
    """Returns the share of equal tokens if frame i of what is expected is i + shift of `found`."""
    num_frames = len(found) - abs(shift)
    if num_frames < max(1, len(found) // 2):
        return 0.0
    late, early = max(shift, 0), max(-shift, 0)
    same = found[late : late + num_frames] == expected[early : early + num_frames]
    return float(np.mean(same))


def _teacher_of(sidecar: TokenSidecar, weights_path: str | None) -> TeacherConfig:
    """Returns how to load the teacher that a sidecar describes."""
    identity: Mapping[str, object] = sidecar.teacher_identity
    try:
        config = TeacherConfig(
            name=sidecar.teacher,
            family=identity["family"],  # type: ignore[arg-type]
            path=identity["path"],  # type: ignore[arg-type]
            layer=sidecar.layer,
            frame_rate_hz=sidecar.frame_rate_hz,
        )
    except KeyError as error:
        raise TokenError(
            f"{sidecar.teacher} tokens cannot be made again: their sidecar does not say {error} of "
            "the teacher"
        ) from None
    return config if weights_path is None else replace(config, path=weights_path)
