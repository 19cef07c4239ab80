"""lhotse's own way from Shar to features and tokens: the peer of the reading benchmark.

What a recipe on lhotse does: lazy Shar cuts, a `DynamicBucketingSampler`, a
`K2SpeechRecognitionDataset` with `OnTheFlyFeatures`, whose items carry the collated tokens too,
and `CutMix` for noise. Masks are not drawn, and no second speaker is added: it does a little less
than the other side.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import CutSet, Fbank, FbankConfig
from lhotse.dataset import (
    CutMix,
    DynamicBucketingSampler,
    K2SpeechRecognitionDataset,
    OnTheFlyFeatures,
)
from lhotse.dataset.collation import collate_custom_field
from lhotse.dataset.dataloading import make_worker_init_fn
from lhotse.dataset.iterable_dataset import IterableDatasetWrapper
from reading_corpus import NEEDED
from torch.utils.data import DataLoader

from spear.data.index.shard_folder import ShardFolder

NUM_BUCKETS = 10
NUM_MEL_BINS = 128


@dataclass
class PeerBatch:
    """A batch, its length, and how much of it is padding."""

    content: dict[str, Any]
    ids: list[str]
    audio_s: float
    padding: float


class TokenDataset(K2SpeechRecognitionDataset):
    """lhotse's dataset, with the tokens of those cuts that have them."""

    def __getitem__(self, cuts: CutSet) -> PeerBatch:
        content = super().__getitem__(cuts)
        cuts = cuts.sort_by_duration(ascending=False)
        content["tokens"] = {}
        for name in (f"{teacher}_tokens" for teacher in NEEDED["audio"]):
            having = CutSet.from_cuts(cut for cut in cuts if cut.has_custom(name))
            if len(having):
                content["tokens"][name] = collate_custom_field(having, name, pad_value=0)
        audio_s = sum(cut.duration for cut in cuts)
        frames = content["inputs"].shape[0] * content["inputs"].shape[1]
        return PeerBatch(content, list(cuts.ids), audio_s, 1.0 - 100.0 * audio_s / frames)


def peer_batches(
    folders: dict[str, Path], max_duration_s: float, num_workers: int, noise: CutSet | None
) -> Iterator[PeerBatch]:
    """Yields the batches of one pass over a corpus.

    Args:
        folders: Shard folders by domain.
        max_duration_s: Audio in a batch, with padding.
        num_workers: Processes that read, each its share of the shards.
        noise: What is added to half of the clips at 10 to 20 dB; None adds nothing.
    """
    logging.getLogger().setLevel(logging.ERROR)  # a line for every clip off a frame's length
    shar = [_open_shar(folders[domain], domain) for domain in NEEDED]
    sampler = DynamicBucketingSampler(
        CutSet.mux(*shar, weights=[3, 1], seed=0),
        max_duration=max_duration_s,
        num_buckets=NUM_BUCKETS,
        shuffle=True,
        drop_last=False,
    )
    noises = [] if noise is None else [_noise_mixer(noise)]
    features = OnTheFlyFeatures(Fbank(FbankConfig(num_filters=NUM_MEL_BINS)))
    dataset = TokenDataset(input_strategy=features, cut_transforms=noises)
    return iter(
        DataLoader(
            IterableDatasetWrapper(dataset, sampler),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=make_worker_init_fn(seed=0) if num_workers else None,
        )
    )


def noise_cuts(folder: Path) -> CutSet:
    """Holds a folder's clips, still encoded, in memory: `CutMix` takes its noise at random."""
    return CutSet.from_shar(fields=ShardFolder(folder).shar_fields()).to_eager()


def _open_shar(folder: Path, domain: str) -> CutSet:
    return CutSet.from_shar(
        fields=ShardFolder(folder).shar_fields(NEEDED[domain]),
        split_for_dataloading=True,
        shuffle_shards=True,
        seed=0,
    )


def _noise_mixer(noise: CutSet) -> CutMix:
    return CutMix(
        noise, snr=(10, 20), p=0.5, pad_to_longest=False, preserve_id=True, random_mix_offset=True
    )
