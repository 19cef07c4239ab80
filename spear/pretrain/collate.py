"""From clips to a batch: padded features, targets on the student's frames, masks.

Each teacher's tokens are brought to the student's 50 frames a second (25 Hz tokens are repeated)
and to its number of frames. Where they differ by more than two frames the tokens belong to other
audio, which is an error that names the cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spear.audio import Fbank
from spear.data.formats.tokens import Tokens, token_dtype
from spear.encoders.frame_grid import STUDENT_RATE_HZ, StudentFrames
from spear.errors import ConfigError, TokenError

MAX_MISMATCH = 2
"""Most student frames by which targets and student may differ. With S = 320 m + r samples a padded
student has m or m + 1 frames, WavLM m - 1 or m, Dasheng (x 2) m - 1 to m + 1: at most 1 apart. An
unpadded one (3 fewer) and targets that skip 2 frames differ by at most 2."""

Bools = NDArray[np.bool_]
MaskDraw = Callable[
    [NDArray[np.int64], Bools, np.random.Generator],
    tuple[Bools, Bools],
]


@dataclass(frozen=True)
class TokenLayout:
    """What a batch must know of a teacher's tokens.

    Attributes:
        num_codebooks: N.
        codebook_size: K.
        repeat: Student frames per token frame.
    """

    num_codebooks: int
    codebook_size: int = 256
    repeat: int = 1

    @classmethod
    def of_rate(
        cls, teacher: str, frame_rate_hz: float, num_codebooks: int, codebook_size: int = 256
    ) -> "TokenLayout":
        """Derives the repeats from a token rate.

        Raises:
            ConfigError: The student's rate is no multiple of the token rate.
        """
        repeat = STUDENT_RATE_HZ / frame_rate_hz if frame_rate_hz > 0 else 0.0
        if repeat < 1 or repeat != int(repeat):
            raise ConfigError(
                f"teachers.{teacher}.frame_rate_hz is {frame_rate_hz:g}: the student's "
                f"{STUDENT_RATE_HZ:g} Hz must be a multiple of it (50, 25, 12.5, ...)"
            )
        return cls(num_codebooks, codebook_size, int(repeat))


@dataclass
class Example:
    """One clip on its way into a batch, after augmentation perhaps.

    Attributes:
        id: Cut id.
        audio: (S,) float32, 16 kHz mono.
        is_audio: True for general audio, False for speech.
        tokens: Per teacher (T', N) uint8 or uint16 at the teacher's rate.
        valid: Per teacher (T',) bool, False where a frame has no target; a teacher that is not
            in it has targets everywhere.
    """

    id: str
    audio: NDArray[np.float32]
    is_audio: bool
    tokens: dict[str, Tokens]
    valid: dict[str, Bools] = field(default_factory=dict)

    def valid_frames(self, teacher: str) -> Bools:
        """Returns (T',) bool: where the teacher's tokens are targets."""
        frames = self.valid.get(teacher)
        return np.ones(len(self.tokens[teacher]), dtype=np.bool_) if frames is None else frames


@dataclass
class PretrainBatch:
    """A batch of the pre-training task.

    Attributes:
        ids: B cut ids.
        audio_s: Seconds of the clips, before augmentation and without padding.
        fbank: (B, T, M) float32 log-mel at 100 Hz, padded with log(1e-10).
        fbank_lens: (B,) int64 frames of each clip.
        is_audio: (B,) bool, True for general audio.
        mask: (B, T) bool, fbank frames that the student does not see.
        channel_mask: (B, M) bool, mel bins that it does not see.
        student_mask: (B, T') bool, student frames whose input is masked.
        tokens: Per teacher (B, T', N) on student frames, uint8 or, with more than 256 codes,
            int32; 0 where not valid.
        token_valid: Per teacher (B, T') bool, True where a frame has a target.
        valid_frames: Per teacher (F,) int64, the places of True in the flattened `token_valid`.
            Known before the batch travels, so that picking frames does not wait for a GPU.
    """

    ids: list[str]
    audio_s: float
    fbank: Tensor
    fbank_lens: Tensor
    is_audio: Tensor
    mask: Tensor
    channel_mask: Tensor
    student_mask: Tensor
    tokens: dict[str, Tensor]
    token_valid: dict[str, Tensor]
    valid_frames: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "PretrainBatch":
        """Returns the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PretrainBatch":
        """Returns the batch in page-locked memory; the DataLoader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "PretrainBatch":
        changed: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                changed[one.name] = change(value)
            elif isinstance(value, dict):
                changed[one.name] = {name: change(tensor) for name, tensor in value.items()}
        return replace(self, **changed)


def align_tokens(
    tokens: Tokens,
    valid: Bools,
    num_frames: int,
    *,
    layout: TokenLayout,
    shift: int,
    name: str,
) -> tuple[Tokens, Bools]:
    """Brings one clip's tokens to the student's frames.

    Args:
        tokens: (T', N) uint8 or uint16 at the teacher's rate.
        valid: (T',) bool, where there is a target.
        num_frames: Frames of the student.
        layout: Codebooks, and how often a token frame is repeated.
        shift: Token frames (at the student's rate) before the student's first.
        name: What to call the clip and teacher in an error.

    Returns:
        (num_frames, N) of the same type and (num_frames,) bool; missing frames are 0 and not valid.

    Raises:
        TokenError: Another number of codebooks, a token that is not below the codebook's size,
            or more than `MAX_MISMATCH` frames too many or too few.
    """
    if tokens.ndim != 2 or tokens.shape[1] != layout.num_codebooks:
        raise TokenError(
            f"{name}: tokens have shape {tokens.shape}, expected {layout.num_codebooks} codebooks"
        )
    if tokens.max(initial=0) >= layout.codebook_size:
        raise TokenError(
            f"{name}: token {tokens.max()} in a codebook of {layout.codebook_size}; run `spear "
            "verify` on this shard folder"
        )
    tokens = np.repeat(tokens, layout.repeat, axis=0)[shift:]
    valid = np.repeat(valid, layout.repeat)[shift:]
    missing = num_frames - len(tokens)
    if abs(missing) > MAX_MISMATCH:
        raise TokenError(
            f"{name}: {len(tokens)} frames of tokens for {num_frames} frames of the student, more "
            f"than {MAX_MISMATCH} apart: they were made from other audio; extract them again"
        )
    if missing > 0:
        tokens = np.pad(tokens, ((0, missing), (0, 0)))
        valid = np.pad(valid, (0, missing))
    return tokens[:num_frames], valid[:num_frames]


class Collator:
    """Turns examples into a `PretrainBatch`.

    Attributes:
        layouts: Per teacher, what its tokens look like.
        frames: Geometry of the student's frames.
        draw_masks: (fbank lens, is_audio, generator) -> time mask (B, T), channel mask (B, M).
        fbank: The features.
    """

    def __init__(
        self,
        layouts: dict[str, TokenLayout],
        frames: StudentFrames,
        draw_masks: MaskDraw,
        num_mel_bins: int = 128,
    ) -> None:
        self.layouts = layouts
        self.frames = frames
        self.draw_masks = draw_masks
        self.fbank = Fbank(num_mel_bins)

    def __call__(
        self, examples: Sequence[Example], audio_s: float, rng: np.random.Generator
    ) -> PretrainBatch:
        """Builds a batch.

        Args:
            examples: B clips.
            audio_s: Seconds of the clips before augmentation.
            rng: Generator of this batch's masks.

        Raises:
            TokenError: A clip's tokens do not fit its audio.
        """
        fbank, fbank_lens = self.fbank(*_pad_audio([example.audio for example in examples]))
        is_audio = np.array([example.is_audio for example in examples])
        mask, channel_mask = self.draw_masks(fbank_lens.numpy(), is_audio, rng)
        targets = {name: self._targets(name, examples, fbank_lens) for name in self.layouts}
        return PretrainBatch(
            ids=[example.id for example in examples],
            audio_s=audio_s,
            fbank=fbank,
            fbank_lens=fbank_lens,
            is_audio=torch.from_numpy(is_audio),
            mask=torch.from_numpy(mask),
            channel_mask=torch.from_numpy(channel_mask),
            student_mask=torch.from_numpy(np.ascontiguousarray(self.frames.mask(mask))),
            tokens={name: tokens for name, (tokens, _) in targets.items()},
            token_valid={name: valid for name, (_, valid) in targets.items()},
            valid_frames={
                name: valid.flatten().nonzero().squeeze(1) for name, (_, valid) in targets.items()
            },
        )

    def _targets(
        self, teacher: str, examples: Sequence[Example], fbank_lens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns (B, T', N) tokens and (B, T') bool validity of one teacher."""
        layout = self.layouts[teacher]
        counts = [self.frames.count(int(frames)) for frames in fbank_lens]
        shape = (len(examples), max(counts), layout.num_codebooks)
        # Two-byte tokens widen: torch can do next to nothing with uint16.
        is_small = token_dtype(layout.codebook_size).itemsize == 1
        tokens = np.zeros(shape, dtype=np.uint8 if is_small else np.int32)
        valid = np.zeros(shape[:2], dtype=np.bool_)
        for row, (example, count) in enumerate(zip(examples, counts, strict=True)):
            if teacher in example.tokens:
                tokens[row, :count], valid[row, :count] = align_tokens(
                    example.tokens[teacher],
                    example.valid_frames(teacher),
                    count,
                    layout=layout,
                    shift=self.frames.token_shift,
                    name=f"cut {example.id}, teacher {teacher}",
                )
        tokens[~valid] = 0
        return torch.from_numpy(tokens), torch.from_numpy(valid)


def _pad_audio(clips: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Stacks waveforms: (B, S) float32 padded with zeros, and (B,) int64 lengths in samples."""
    lens = [len(clip) for clip in clips]
    audio = np.zeros((len(clips), max(lens)), dtype=np.float32)
    for row, clip in enumerate(clips):
        audio[row, : len(clip)] = clip
    return torch.from_numpy(audio), torch.tensor(lens)
