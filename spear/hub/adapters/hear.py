"""HEAR's common API: embeddings of sounds with the times that they belong to.

hear-validator spear.hub.adapters.hear --model FOLDER
python -m heareval.embeddings.runner spear.hub.adapters.hear --model FOLDER
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.audio.checks import SAMPLE_RATE_HZ, check_audio
from spear.audio.fbank import FRAME_SHIFT
from spear.encoders.encoder import SpearEncoder
from spear.encoders.layer_frames import LayerFrames, full_lens
from spear.encoders.loading import from_pretrained, model_name

_TAIL = 4 * FRAME_SHIFT
"""Samples of silence behind a sound without which unpadded front ends end too early for HEAR."""


class HearModel(nn.Module):
    """An encoder as HEAR wants its models.

    Args:
        encoder: The encoder.

    Attributes:
        encoder: The same.
        sample_rate: 16000, in Hz.
        scene_embedding_size: D, width of an embedding of a sound.
        timestamp_embedding_size: The same D for the embedding of a moment.
    """

    def __init__(self, encoder: SpearEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.sample_rate = SAMPLE_RATE_HZ
        self.scene_embedding_size = encoder.output_dim
        self.timestamp_embedding_size = encoder.output_dim

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds sounds of one length; see `get_timestamp_embeddings`."""
        check_audio(audio, full_lens(audio))
        if not self.encoder.config.frontend_pad:
            audio = F.pad(audio, (0, _TAIL))
        read = LayerFrames(self.encoder)
        embeddings, _ = read(audio)
        frames = torch.arange(embeddings.shape[1], device=audio.device, dtype=torch.float32)
        timestamps = read.first_ms + read.hop_ms * frames
        return embeddings, timestamps.expand(len(audio), -1)


def load_model(model_file_path: str = "") -> HearModel:
    """Loads a model.

    Args:
        model_file_path: Model folder or hub id; where empty, the one that SPEAR_MODEL names.

    Raises:
        ConfigError: Neither is given.
        CheckpointError: It cannot be loaded.
    """
    return HearModel(from_pretrained(model_name(model_file_path))).eval()


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embeds every 20 ms (40 ms for models at 25 Hz) of sounds.

    Args:
        audio: (n_sounds, n_samples) float, 16 kHz mono in [-1, 1].
        model: What `load_model` returned.

    Returns:
        (n_sounds, n_timestamps, D) float32, and (n_sounds, n_timestamps) float32: the middle of
        what each embedding is about, in milliseconds from the sound's start.

    Raises:
        AudioError: The audio has another shape or type, or unusable samples.
    """
    embeddings, timestamps = model(audio)
    return embeddings, timestamps


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Embeds whole sounds as the mean over their moments.

    Args:
        audio: (n_sounds, n_samples) float, 16 kHz mono in [-1, 1].
        model: What `load_model` returned.

    Returns:
        (n_sounds, D) float32.

    Raises:
        AudioError: The audio has another shape or type, or unusable samples.
    """
    return get_timestamp_embeddings(audio, model)[0].mean(dim=1)
