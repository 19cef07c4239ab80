"""Recordings in, transcripts out: reading, features and batches of like length around a search."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spear.asr.apply.long_recordings import Window, WindowConfig, cut_windows
from spear.asr.apply.search import Search, SearchConfig
from spear.asr.apply.utterances import Recording, from_array
from spear.asr.model import AsrModel, Transcript
from spear.audio import LOG_EPS, Fbank
from spear.data.index.loader import made_in_order
from spear.data.index.packing import pack
from spear.encoders.windows import FBANK_HZ, FBANK_PER_FRAME, rows_of
from spear.system.progress import progress


def transcribe(
    model: AsrModel,
    audio: Sequence[np.ndarray | Tensor],
    batch_s: float = 200.0,
    search: SearchConfig | None = None,
) -> list[Transcript]:
    """Recognises arrays.

    Args:
        model: A recogniser in evaluation mode, as `load_asr_model` gives it.
        audio: Recordings, each (S,) float in [-1, 1], 16 kHz mono, of any lengths.
        batch_s: Audio recognised at once, in seconds, counted with padding.
        search: How to search; greedily where not given.

    Returns:
        One transcript per recording, in the same order; `.text` is what was said.

    Raises:
        DataError: A recording is not one-dimensional or not of floats.
    """
    recordings = [from_array(number, samples) for number, samples in enumerate(audio)]
    return [found[0] for found in recognize(Search(model, search), recordings, batch_s)]


def recognize(
    search: Search,
    recordings: Sequence[Recording],
    batch_s: float,
    *,
    windows: WindowConfig | None = None,
    num_workers: int = 0,
    label: str | None = None,
) -> list[list[Transcript]]:
    """Recognises recordings in batches of like length, the longest first.

    Args:
        search: A recogniser and how it searches.
        recordings: What to recognise.
        batch_s: Seconds of a batch, padding included.
        windows: How long recordings are encoded; None encodes all of them whole.
        num_workers: Processes that read.
        label: Name for the progress lines; none for silence.

    Returns:
        The transcripts of every recording, the best first, in the order of the recordings.
    """
    order = sorted(range(len(recordings)), key=lambda i: -recordings[i].num_samples)
    cut = None if windows is None else windows.for_encoder(search.model.encoder)
    batches = list(_packed(list(cut_windows(recordings, order, cut)), batch_s))
    found: dict[int, list[Transcript]] = {}
    encoded: dict[int, list[Tensor]] = defaultdict(list)
    fbank = Fbank(num_mel_bins=search.model.encoder.config.feature_dim)
    make = _Features(recordings, batches, fbank)
    features = made_in_order(make, len(batches), num_workers)
    if label is not None:
        features = progress(features, label, total=len(batches))
    for batch, (x, lens) in zip(batches, features, strict=True):
        for window, frames in zip(batch, _encode(search.model, batch, x, lens), strict=True):
            encoded[window.number].append(frames)
        ended = [window for window in batch if window.is_last]
        whole = [torch.cat(encoded.pop(window.number)) for window in ended]
        found.update(
            zip((window.number for window in ended), _search(search, whole, batch_s), strict=True)
        )
    return [found[number] for number in range(len(recordings))]


def _search(search: Search, whole: Sequence[Tensor], batch_s: float) -> Iterator[list[Transcript]]:
    """Yields the transcripts of recordings, each (T', D) frames; those of an hour come alone."""
    lens = torch.tensor([len(frames) for frames in whole])
    per_frame = FBANK_PER_FRAME * search.model.encoder.config.output_downsampling_factor
    for begin, end in itertools.pairwise(pack(lens.numpy() * per_frame / FBANK_HZ, batch_s)):
        padded = pad_sequence(list(whole[begin:end]), batch_first=True)
        yield from search.find(padded, lens[begin:end].to(padded.device))


def _packed(windows: Sequence[Window], batch_s: float) -> Iterator[list[Window]]:
    """Puts windows into batches in their order."""
    seconds = np.array([window.num_frames / FBANK_HZ for window in windows])
    for begin, end in itertools.pairwise(pack(seconds, batch_s)):
        yield list(windows[begin:end])


@torch.no_grad()
def _encode(model: AsrModel, batch: Sequence[Window], fbank: Tensor, lens: Tensor) -> list[Tensor]:
    """Returns what is kept of each window's frames, (T', D), from features (B, T, M)."""
    device = next(model.parameters()).device
    frames, frame_lens = model.encode(fbank.to(device), lens.to(device))
    per_row = FBANK_PER_FRAME * model.encoder.config.output_downsampling_factor
    return [
        rows_of(own[:length], window.core, per_row)
        for window, own, length in zip(batch, frames, frame_lens.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class _Features:
    """Computes the features of batches, in a worker.

    Attributes:
        recordings: What can be read.
        batches: Windows of them, batch by batch.
        fbank: The filter bank.
    """

    recordings: Sequence[Recording]
    batches: Sequence[Sequence[Window]]
    fbank: Fbank

    def __call__(self, batch: int) -> tuple[Tensor, Tensor]:
        """Returns the features of a batch, (B, T, M) float32, and their lengths (B,) int64."""
        parts = [w.fbank(self.recordings[w.number], self.fbank) for w in self.batches[batch]]
        padded = pad_sequence(parts, batch_first=True, padding_value=LOG_EPS)
        return padded, torch.tensor([len(part) for part in parts])
