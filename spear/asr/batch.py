"""One batch of speech recognition: what training reads and a recogniser's losses take."""

from dataclasses import dataclass

from torch import Tensor

from spear.finetune.data import TensorBatch


@dataclass
class AsrBatch(TensorBatch):
    """One rank's batch.

    Where clips come in two copies, row B / 2 + i is the other copy of row i.

    Attributes:
        ids: B cut ids.
        audio_s: Seconds of audio in it, without padding; copies count once.
        fbank: (B, T, M) float32 log-mel, `LOG_EPS` beyond the lengths.
        fbank_lens: (B,) int64, valid fbank frames.
        tokens: (B, L) int64 token ids, 0 beyond the lengths.
        token_lens: (B,) int64, labels of each utterance.
        texts: B transcripts as the data has them.
        num_copies: Rows of each clip, 1 or 2.
    """

    ids: list[str]
    audio_s: float
    fbank: Tensor
    fbank_lens: Tensor
    tokens: Tensor
    token_lens: Tensor
    texts: list[str]
    num_copies: int = 1
