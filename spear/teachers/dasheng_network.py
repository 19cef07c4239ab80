"""Dasheng's network in plain torch: patches of a log-mel spectrogram to transformer frames.

Dasheng (Dinkel et al., arXiv 2406.06992) is the encoder of a masked autoencoder: a batch norm over
mel bins, non-overlapping patches of all mel bins by 4 frames (40 ms), learned positions, pre-norm
transformer blocks. Parameter names are those of the released state dicts. A network sees at most
`target_length` spectrogram frames (10.08 s) at a time; cutting recordings into such stretches is
the caller's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.errors import CheckpointError
from spear.teachers.dasheng_frontend import MelSpectrogram, PowerToDecibel, decibels_of

NORM_EPS = 1e-6
_SIZES = {
    "dasheng-base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "dasheng-0.6B": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "dasheng-1.2B": {"embed_dim": 1536, "depth": 40, "num_heads": 24},
}
# Variants that the original code knows, no released encoder uses, and this file does not have.
_ONLY_VALUES = {
    "pooling": ("mean", None),
    "center": (True,),
    "block_type": ("Block",),
    "attention_type": ("Attention",),
}


@dataclass(frozen=True)
class DashengSettings:
    """The architecture, with the original's names and defaults."""

    embed_dim: int = 768
    """Width of a frame."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int = 12
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Feed-forward width as a multiple of `embed_dim`."""
    qkv_bias: bool = True
    """Whether query, key and value projections have a bias."""
    init_values: float | None = None
    """Initial scale of each residual branch; none leaves the scales out."""
    target_length: int = 1008
    """Longest stretch that the network sees at once, in spectrogram frames."""
    patch_size: tuple[int, int] = (64, 4)
    """Mel bins and frames of a patch: all bins."""
    n_mels: int = 64
    """Mel bins."""
    n_fft: int = 512
    """FFT length, in samples."""
    win_size: int = 512
    """Window length, in samples."""
    hop_size: int = 160
    """Shift between spectrogram frames, in samples."""
    f_min: float = 0.0
    """Lowest frequency, in Hz."""
    f_max: float = 8000.0
    """Highest frequency, in Hz."""
    top_db: float = 120.0
    """Dynamic range kept below a recording's maximum, in dB."""

    @property
    def patch_frames(self) -> int:
        """Spectrogram frames in a patch."""
        return self.patch_size[1]

    @property
    def max_patches(self) -> int:
        """Patches that the network sees at once: 252."""
        return self.target_length // self.patch_frames

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> "DashengSettings":
        """Reads a released configuration.

        Args:
            config: The "config" entry of a released `.pt`, or the `config.json` of a Hugging Face
                folder, which names the size and nests the details in "encoder_kwargs".
            where: The file, for messages.

        Raises:
            CheckpointError: It asks for a variant that this file does not have, or is no Dasheng
                configuration at all.
        """
        values = {**_SIZES.get(str(config.get("name")), {}), **config}
        values.update(config.get("encoder_kwargs") or {})
        for key, allowed in _ONLY_VALUES.items():
            if key in values and values[key] not in allowed:
                raise CheckpointError(f"{where}: {key} {values[key]!r} is not supported")
        known = {field.name for field in fields(cls)}
        try:
            chosen = {key: values[key] for key in known & values.keys()}
            if "patch_size" in chosen:
                chosen["patch_size"] = tuple(int(side) for side in chosen["patch_size"])
            settings = cls(**chosen)
            settings._check(tuple(values.get("patch_stride", settings.patch_size)))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: not a Dasheng configuration: {error}") from error
        return settings

    def _check(self, patch_stride: tuple[int, ...]) -> None:
        if self.patch_size != patch_stride or self.patch_size[0] != self.n_mels:
            raise ValueError(
                f"patches of {self.patch_size} every {patch_stride} do not tile {self.n_mels} mels"
            )
        if self.embed_dim % self.num_heads or self.depth < 1:
            raise ValueError(
                f"{self.num_heads} heads and {self.depth} blocks of width {self.embed_dim}"
            )


class DashengNetwork(nn.Module):
    """Log-mel front end, patch embedding and transformer.

    Args:
        settings: The architecture.
    """

    def __init__(self, settings: DashengSettings) -> None:
        super().__init__()
        self.settings = settings
        dim = settings.embed_dim
        self.time_pos_embed = nn.Parameter(0.02 * torch.randn(1, dim, 1, settings.max_patches))
        self.freq_pos_embed = nn.Parameter(0.02 * torch.randn(1, dim, 1, 1))
        mel_spectrogram = MelSpectrogram(
            n_fft=settings.n_fft,
            win_size=settings.win_size,
            hop_size=settings.hop_size,
            n_mels=settings.n_mels,
            f_min=settings.f_min,
            f_max=settings.f_max,
        )
        self.front_end = nn.Sequential(mel_spectrogram, PowerToDecibel(settings.top_db))
        # The original surrounds this norm by two reshapings, hence its name `init_bn.1`.
        self.init_bn = nn.Sequential(nn.Identity(), nn.BatchNorm1d(settings.n_mels, momentum=0.01))
        self.patch_embed = PatchEmbed(settings.patch_size, dim)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def log_mel(self, audio: Tensor, peak: Tensor | None = None) -> Tensor:
        """Maps a recording (S,) float32 to decibels (n_mels, S // hop_size + 1).

        `peak` () is the loudest of the whole recording where `audio` is a part of it.
        """
        mel_spectrogram, power_to_decibel = self.front_end
        return power_to_decibel(mel_spectrogram(audio), peak)

    def decibels(self, audio: Tensor) -> Tensor:
        """Maps a recording (S,) to decibels as `log_mel`, before `top_db` cuts them."""
        return decibels_of(self.front_end[0](audio))

    def forward(
        self, log_mel: Tensor, num_patches: Tensor | None = None, layer: int | None = None
    ) -> Tensor:
        """Encodes stretches of at most `target_length` spectrogram frames.

        Args:
            log_mel: (N, n_mels, T) float32 decibels; frames beyond the last whole patch are left
                out.
            num_patches: (N,) int64, how many patches count, at least 1 each; None means all.
            layer: Block whose output is wanted (0 is the first block's input); None is the final
                output behind the last norm.

        Returns:
            (N, T // patch_frames, embed_dim) float32.
        """
        hidden = self.patch_embed(self.init_bn(log_mel)[:, None])
        hidden = hidden + self.time_pos_embed[..., : hidden.shape[-1]] + self.freq_pos_embed
        hidden = hidden.flatten(2).transpose(1, 2)
        keys = None
        if num_patches is not None:
            valid = torch.arange(hidden.shape[1], device=hidden.device) < num_patches[:, None]
            keys = valid[:, None, None]
        for block in list(self.blocks)[:layer]:
            hidden = block(hidden, keys)
        return self.norm(hidden) if layer is None else hidden


class PatchEmbed(nn.Module):
    """A linear layer on non-overlapping patches, as a convolution.

    Args:
        patch_size: Mel bins and frames of a patch.
        embed_dim: Width of the result.
    """

    def __init__(self, patch_size: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, embed_dim, patch_size, stride=patch_size)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Maps (N, 1, n_mels, T) to (N, embed_dim, 1, T // frames of a patch)."""
        return self.proj(log_mel)


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        settings: The architecture.
    """

    def __init__(self, settings: DashengSettings) -> None:
        super().__init__()
        dim, scale = settings.embed_dim, settings.init_values
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, settings.num_heads, settings.qkv_bias)
        self.ls1 = LayerScale(dim, scale) if scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * settings.mlp_ratio))
        self.ls2 = LayerScale(dim, scale) if scale else nn.Identity()

    def forward(self, hidden: Tensor, keys: Tensor | None) -> Tensor:
        """Maps (N, P, dim) to the same; `keys` (N, 1, 1, P) bool, True where to attend."""
        hidden = hidden + self.ls1(self.attn(self.norm1(hidden), keys))
        return hidden + self.ls2(self.mlp(self.norm2(hidden)))


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Args:
        dim: Width of input and output.
        num_heads: Heads.
        qkv_bias: Whether the projection has a bias.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, keys: Tensor | None) -> Tensor:
        """Maps (N, P, dim) to the same; `keys` (N, 1, 1, P) bool, True where to attend."""
        qkv = self.qkv(hidden).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU between.

    Args:
        dim: Width of input and output.
        hidden_dim: Width between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., dim) to (..., dim)."""
        return self.fc2(F.gelu(self.fc1(hidden)))


class LayerScale(nn.Module):
    """A learned scale per channel of a residual branch.

    Args:
        dim: Channels.
        initial: First value of every scale.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(initial * torch.ones(dim))

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., dim) to (..., dim)."""
        return hidden * self.gamma
