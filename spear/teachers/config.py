"""What a user says about a teacher: which one, where its weights are, which layer.

`TeacherConfig` is part of the configuration of every command that runs a teacher. Problems that
show without opening the weights are found here.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from spear.errors import ConfigError

TeacherFamily = Literal[
    "wavlm", "hubert", "wav2vec2", "data2vec", "dasheng", "spear", "logmel", "mfcc"
]
FAMILIES: tuple[TeacherFamily, ...] = get_args(TeacherFamily)
WEIGHTLESS_FAMILIES: tuple[TeacherFamily, ...] = ("logmel", "mfcc")
# Stacking pairs or quadruples of 100 Hz frames gives the rates of WavLM and Dasheng.
FEATURE_RATES_HZ = (50.0, 25.0)


@dataclass
class TeacherConfig:
    """Names one teacher."""

    name: str = "wavlm"
    """Label of this teacher: its tokens are the field `{name}_tokens`."""

    family: TeacherFamily | None = None
    """Kind of model; none takes `name` as the family."""

    path: str | None = None
    """Hub id, folder or (Dasheng) `.pt` file with the weights; logmel and mfcc have none."""

    layer: int | None = None
    """Transformer block whose output is taken, counted from 1; 0 is the input of the first block;
    none is block 21 of WavLM Large, and the final output of every other model."""

    frame_rate_hz: float | None = None
    """Frames per second: 50 (when none) or 25 for logmel and mfcc; others have their own rate,
    and a number given here must equal it."""

    num_mel_bins: int | None = None
    """Mel bins of logmel (80 when none) and mfcc (23 when none)."""

    deltas: bool | None = None
    """Whether logmel (no when none) and mfcc (yes when none) append first and second
    differences over time."""

    def resolved_family(self) -> TeacherFamily:
        """Returns the family, checking that the fields fit it.

        Raises:
            ConfigError: A field has an unusable value for this family.
        """
        family = self.family or self.name
        where = f"teacher {self.name!r}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name):
            raise ConfigError(f"{where}: name must be letters, digits, '_' and '-': it names files")
        if family not in FAMILIES:
            raise ConfigError(
                f"{where}: unknown family {family!r}: set family to one of {', '.join(FAMILIES)}"
            )
        if family in WEIGHTLESS_FAMILIES:
            self._check_weightless(where, family)
        else:
            self._check_pretrained(where, family)
        return family

    def _check_weightless(self, where: str, family: str) -> None:
        for field in ("path", "layer"):
            if getattr(self, field) is not None:
                raise ConfigError(f"{where}: {family} has no weights: leave out {field}")
        if self.frame_rate_hz not in (None, *FEATURE_RATES_HZ):
            raise ConfigError(
                f"{where}: frame_rate_hz {self.frame_rate_hz} must be 50 or 25 for {family}"
            )
        if self.num_mel_bins is not None and not 13 <= self.num_mel_bins <= 128:
            raise ConfigError(f"{where}: num_mel_bins {self.num_mel_bins} must be 13 to 128")

    def _check_pretrained(self, where: str, family: str) -> None:
        if not self.path:
            raise ConfigError(f"{where}: {family} needs path, a hub id or a local folder")
        for field in ("num_mel_bins", "deltas"):
            if getattr(self, field) is not None:
                raise ConfigError(f"{where}: {field} is for logmel and mfcc, not for {family}")
