"""Recordings in, transcripts out: reading, features and batches of like length around a search."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spear.asr.apply.utterances import Recording, from_array
from spear.asr.model import AsrModel, Transcript
from spear.asr.search.search import Search, SearchConfig
from spear.audio import Fbank
from spear.data.index.packing import pack_by_length
from spear.errors import SpearError
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
    num_workers: int = 0,
    label: str | None = None,
) -> list[list[Transcript]]:
    """Recognises recordings in batches of like length.

    Args:
        search: A recogniser and how it searches.
        recordings: What to recognise.
        batch_s: Seconds of a batch, padding included.
        num_workers: Processes that read.
        label: Name for the progress lines; none for silence.

    Returns:
        The transcripts of every recording, the best first, in the order of the recordings.
    """
    groups = pack_by_length([recording.duration_s for recording in recordings], batch_s)
    loader = DataLoader(
        FeatureBatches(recordings, groups, search.model.encoder.config.feature_dim),
        batch_size=None,
        shuffle=False,
        num_workers=min(num_workers, len(groups)),
        generator=torch.Generator(),
    )
    device = next(search.model.parameters()).device
    found: dict[int, list[Transcript]] = {}
    batches: Iterable[Any] = loader
    if label is not None:
        batches = progress(batches, label, total=len(groups))
    for batch in batches:
        if isinstance(batch, SpearError):
            raise batch
        numbers, fbank, lens = batch
        found.update(zip(numbers, search(fbank.to(device), lens.to(device)), strict=True))
    return [found[number] for number in range(len(recordings))]


class FeatureBatches(Dataset[Any]):
    """Features of groups of recordings, computed in a worker.

    Args:
        recordings: What can be read.
        groups: Their numbers, batch by batch.
        num_mel_bins: M, size of an fbank frame.
    """

    def __init__(
        self, recordings: Sequence[Recording], groups: list[list[int]], num_mel_bins: int
    ) -> None:
        self.recordings = recordings
        self.groups = groups
        self.fbank = Fbank(num_mel_bins=num_mel_bins)

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self.groups)

    def __getitem__(self, batch: int) -> Any:
        """Returns (numbers, fbank (B, T, M), lens (B,)), or the user's error in reading."""
        try:
            audio = [torch.from_numpy(self.recordings[i].read()) for i in self.groups[batch]]
        except SpearError as error:
            return error
        lens = torch.tensor([len(samples) for samples in audio])
        padded = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True)
        return self.groups[batch], *self.fbank(padded, lens)
