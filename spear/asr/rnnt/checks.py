"""What the transducer losses refuse: shapes, lengths and symbols that do not fit each other."""

from typing import NamedTuple

import torch
from torch import Tensor

from spear.asr.rnnt.lattice import Lengths
from spear.errors import ConfigError, DataError


class LatticeShape(NamedTuple):
    """Sizes of a batch of lattices.

    Attributes:
        batch_size: B.
        num_frames: T.
        num_nodes: U, one more than the most labels of a transcript.
        vocab_size: C, with the blank.
    """

    batch_size: int
    num_frames: int
    num_nodes: int
    vocab_size: int


def check_rank(name: str, x: Tensor, dims: str) -> None:
    """Refuses a tensor with another number of dimensions than `dims`, e.g. "(B, T, C)"."""
    if x.ndim != dims.count(",") + 1:
        raise DataError(f"{name} has shape {tuple(x.shape)}, expected {dims}")


def check_same(what: str, first: int, second: int) -> None:
    """Refuses two sizes that ought to be one."""
    if first != second:
        raise DataError(f"{what} differ: {first} and {second}")


def check_transcripts(
    shape: LatticeShape, symbols: Tensor, frames: Tensor, symbol_lengths: Tensor, blank: int
) -> tuple[Tensor, Lengths]:
    """Checks transcripts and lengths against the lattices.

    Values are looked at on a CPU only: on a GPU this would wait for it.

    Returns:
        (B, U - 1) int64 symbols, the blank beyond the lengths; and the lengths.

    Raises:
        DataError: They do not fit.
        ConfigError: There is no such blank.
    """
    if not 0 <= blank < shape.vocab_size:
        raise ConfigError(f"blank is {blank}: with {shape.vocab_size} logits, 0 to that minus 1")
    expected = (shape.batch_size, shape.num_nodes - 1)
    if tuple(symbols.shape) != expected:
        raise DataError(
            f"symbols have shape {tuple(symbols.shape)}, expected {expected}: one label fewer "
            "than the logits have places between labels"
        )
    frames = check_lengths("frames", frames, shape.batch_size, shape.num_frames)
    num_labels = check_lengths("symbol_lengths", symbol_lengths, *expected)
    is_label = torch.arange(expected[1], device=symbols.device) < num_labels.unsqueeze(1)
    if symbols.device.type == "cpu":
        _check_symbols(symbols, is_label, shape.vocab_size, blank)
    return torch.where(is_label, symbols.long(), blank), Lengths(frames, num_labels)


def check_lengths(name: str, lengths: Tensor, batch_size: int, longest: int) -> Tensor:
    """Returns (B,) int64; refuses another shape, and on a CPU values outside 0 to `longest`."""
    if tuple(lengths.shape) != (batch_size,):
        raise DataError(f"{name} has shape {tuple(lengths.shape)} for {batch_size} utterances")
    if lengths.device.type == "cpu" and bool(((lengths < 0) | (lengths > longest)).any()):
        raise DataError(f"{name} {lengths.tolist()} must lie between 0 and {longest}")
    return lengths.long()


def check_ranges(ranges: Tensor, shape: LatticeShape) -> None:
    """Refuses windows that do not fit the lattices or leave them."""
    if ranges.ndim != 3 or ranges.shape[:2] != (shape.batch_size, shape.num_frames):
        raise DataError(
            f"ranges have shape {tuple(ranges.shape)}, expected ({shape.batch_size}, "
            f"{shape.num_frames}, s_range)"
        )
    if ranges.device.type == "cpu" and ranges.numel():
        lowest, highest = ranges.aminmax()
        if lowest < 0 or highest >= shape.num_nodes:
            raise DataError(
                f"ranges go from {int(lowest)} to {int(highest)}, but transcripts have at most "
                f"{shape.num_nodes - 1} labels: take those of `prune_ranges` for this batch"
            )


def _check_symbols(symbols: Tensor, is_label: Tensor, vocab_size: int, blank: int) -> None:
    wrong = is_label & ((symbols < 0) | (symbols >= vocab_size) | (symbols == blank))
    if bool(wrong.any()):
        utterance, place = wrong.nonzero()[0].tolist()
        raise DataError(
            f"label {place} of utterance {utterance} is {int(symbols[utterance, place])}: labels "
            f"are 0 to {vocab_size - 1} without the blank, {blank}"
        )
