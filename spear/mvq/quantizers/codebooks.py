"""What every kind of quantiser has: a table of codebooks, a decoding, a name and a file.

A frame, normalised per channel, is decoded as the sum of one row of each of N codebooks. How the
rows are chosen is what kinds differ in: a joint search (`Quantizer`), the nearest centre
(`KMeansQuantizer`), one stage after the other (`ResidualQuantizer`), or a random projection
(`RandomProjectionQuantizer`). All stand behind this interface, so that one can replace another in
every stage.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.errors import CheckpointError, ConfigError, DataError, TokenError
from spear.mvq.quantizers.files import read_quantizer, write_quantizer

# Frames per matrix product. Always the same number (the last ones are padded): BLAS may round
# differently for another shape, and then tokens would depend on the length of the input.
_CPU_PRODUCT_FRAMES = 256
_GPU_PRODUCT_FRAMES = 4096
_FORMAT_VERSION = "1"

Assign = Callable[[Tensor, int], Tensor]
"""(normalised frames (B, D), how many of them count) -> their codes (count, N) integers."""
AnyQuantizer = TypeVar("AnyQuantizer", bound="CodebookQuantizer")


class CodebookQuantizer(nn.Module, ABC):
    """Turns frames (*, D) into tokens (*, N) and back.

    Tokens are uint8 where K is at most 256, else uint16.

    Args:
        centers: (N, K, D) float32, what each code adds to a decoded frame.
        channel_mean: (D,) subtracted from frames; zeros by default.
        channel_scale: (D,) that frames are divided by; ones by default.
        metadata: Text about where the quantiser comes from, e.g. {"teacher": "<json>"}.

    Raises:
        ConfigError: Shapes do not fit, or N or K is out of the kind's range.
    """

    kind: ClassVar[str]
    """Name of the kind, as `spear train-quantizer --method` and the file's metadata have it."""
    id_prefix: ClassVar[bytes] = b""
    """Hashed first: two kinds with equal tensors are two quantisers."""
    tensor_names: ClassVar[frozenset[str]] = frozenset({"centers", "channel_mean", "channel_scale"})
    """What a file of this kind holds; also the constructor's arguments."""
    num_codebooks_range: ClassVar[tuple[int, int]] = (1, 64)
    """Least and most N."""
    codebook_size_range: ClassVar[tuple[int, int]] = (2, 256)
    """Least and most K."""

    centers: Tensor
    channel_mean: Tensor
    channel_scale: Tensor

    def __init__(
        self,
        centers: Tensor,
        *,
        channel_mean: Tensor | None = None,
        channel_scale: Tensor | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if centers.dim() != 3:
            raise ConfigError(f"centers must be (N, K, D), not of shape {tuple(centers.shape)}")
        num_codebooks, codebook_size, dim = centers.shape
        self.check_sizes(num_codebooks, codebook_size)
        mean = torch.zeros(dim) if channel_mean is None else channel_mean
        scale = torch.ones(dim) if channel_scale is None else channel_scale
        self._add_tensor("centers", centers, centers.shape, centers.device)
        self._add_tensor("channel_mean", mean, (dim,), centers.device)
        self._add_tensor("channel_scale", scale, (dim,), centers.device)
        if bool((self.channel_scale <= 0).any()):
            raise ConfigError("channel_scale of the quantiser must be above 0 everywhere")
        self.metadata: dict[str, str] = dict(metadata or {})

    @classmethod
    def check_sizes(cls, num_codebooks: int, codebook_size: int) -> None:
        """Refuses numbers that this kind cannot work with.

        Raises:
            ConfigError: N or K is out of range.
        """
        for name, value, (least, most) in (
            ("num_codebooks", num_codebooks, cls.num_codebooks_range),
            ("codebook_size", codebook_size, cls.codebook_size_range),
        ):
            if not least <= value <= most:
                allowed = str(most) if least == most else f"{least} to {most}"
                raise ConfigError(f"{name} must be {allowed}, not {value}, for {cls.kind}")

    @property
    def num_codebooks(self) -> int:
        """N."""
        return self.centers.shape[0]

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.centers.shape[1]

    @property
    def dim(self) -> int:
        """D, the width of frames."""
        return self.centers.shape[2]

    @property
    def token_dtype(self) -> torch.dtype:
        """What `encode` gives: uint8 where every code fits, else uint16."""
        return torch.uint8 if self.codebook_size <= 256 else torch.uint16

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 over names, shapes and values."""
        digest = hashlib.sha256(self.id_prefix)
        for name, tensor in sorted(self.named_buffers()):
            digest.update(f"{name} {tuple(tensor.shape)} float32\n".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def normalize(self, x: Tensor) -> Tensor:
        """Returns frames (*, D) in the space of the centres, float32."""
        return (x.float() - self.channel_mean) / self.channel_scale

    def denormalize(self, x: Tensor) -> Tensor:
        """Undoes `normalize`."""
        return x * self.channel_scale + self.channel_mean

    @torch.no_grad()
    def encode(self, x: Tensor, *, max_batch_frames: int | None = None) -> Tensor:
        """The tokens of frames.

        Args:
            x: (*, D) floating point frames as the teacher gives them.
            max_batch_frames: Frames worked on at once, which bounds memory. The tokens do not
                depend on how an input is cut into calls; another value here may change them where
                two choices are equally good to rounding.

        Returns:
            (*, N) uint8, or uint16 where K is above 256, on the quantiser's device.

        Raises:
            ConfigError: x has another width.
            DataError: x holds NaN or infinite values.
        """
        return self._encode_blocks(x, self._assigner(), max_batch_frames)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The frames that tokens stand for, in the teacher's own space.

        Args:
            codes: (*, N) integers in 0..K-1.

        Returns:
            (*, D) float32.

        Raises:
            TokenError: The number of codebooks differs, or a token is out of range.
        """
        if codes.dim() == 0 or codes.shape[-1] != self.num_codebooks:
            raise TokenError(
                f"quantiser of {self.num_codebooks} codebooks was given tokens of shape "
                f"{tuple(codes.shape)}: these come from another quantiser"
            )
        if codes.is_floating_point() or codes.is_complex():
            raise TokenError(f"tokens must be integers, not {codes.dtype}")
        rows = codes.reshape(-1, self.num_codebooks).to(self.centers.device, torch.long)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self.codebook_size):
            raise TokenError(
                f"tokens reach from {int(rows.min())} to {int(rows.max())}, but the quantiser has "
                f"codes 0 to {self.codebook_size - 1}: these come from another quantiser"
            )
        rows = rows + torch.arange(self.num_codebooks, device=rows.device) * self.codebook_size
        total = F.embedding_bag(rows, self.centers.float().view(-1, self.dim), mode="sum")
        return self.denormalize(total).view(*codes.shape[:-1], self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Same as `encode` with its defaults."""
        return self.encode(x)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        tensors = {name: tensor.detach().cpu() for name, tensor in self.named_buffers()}
        write_quantizer(Path(path), tensors, self.metadata | self._own_metadata())

    @classmethod
    def load(
        cls: type[AnyQuantizer], path: str | Path, device: str | torch.device = "cpu"
    ) -> AnyQuantizer:
        """Reads what `save` wrote; `spear.mvq.load_quantizer` does so for files of any kind.

        Raises:
            CheckpointError: The file is missing, broken, of an unknown version or another kind.
        """
        tensors, metadata = read_quantizer(Path(path))
        if metadata["kind"] != cls.kind:
            raise CheckpointError(
                f"{path} is a quantiser of kind {metadata['kind']!r}, not {cls.kind!r}: read it "
                "with spear.mvq.load_quantizer"
            )
        return cls.from_file(path, tensors, metadata).to(device)

    @classmethod
    def from_file(
        cls: type[AnyQuantizer],
        path: str | Path,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
    ) -> AnyQuantizer:
        """Makes a quantiser of what a file holds.

        Args:
            path: The file, for messages.
            tensors: Its tensors by name.
            metadata: Its metadata, all of them.

        Raises:
            CheckpointError: The version is unknown, or the tensors are not those that were saved.
        """
        version = metadata.get("format_version")
        if version != _FORMAT_VERSION or set(tensors) != cls.tensor_names:
            raise CheckpointError(
                f"{path} is no quantiser of format version {_FORMAT_VERSION} (version {version}, "
                f"tensors {sorted(tensors)}): make it with `spear train-quantizer`"
            )
        try:
            quantizer = cls(**tensors, metadata=metadata)
        except ConfigError as error:
            raise CheckpointError(f"{path} is a broken quantiser: {error}") from error
        own = quantizer._own_metadata()
        if own["id"] != metadata.get("id"):
            raise CheckpointError(
                f"{path} is broken: its tensors have the id {own['id']}, but it was saved as "
                f"{metadata.get('id')}; copy or train it again"
            )
        quantizer.metadata = {key: value for key, value in metadata.items() if key not in own}
        return quantizer

    def teacher(self) -> dict[str, object]:
        """Returns the teacher's identity from the metadata; empty when it was not given."""
        identity = json.loads(self.metadata.get("teacher", "{}"))
        return identity if isinstance(identity, dict) else {}

    def _own_metadata(self) -> dict[str, str]:
        """Returns what a file says of the quantiser beside `metadata`."""
        return {
            "format_version": _FORMAT_VERSION,
            "dim": str(self.dim),
            "num_codebooks": str(self.num_codebooks),
            "codebook_size": str(self.codebook_size),
            "id": self.id,
            "kind": self.kind,
        }

    @abstractmethod
    def _assigner(self) -> Assign:
        """Returns what finds the codes of normalised frames; made anew for every `encode`."""

    def _add_tensor(
        self, name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device
    ) -> None:
        """Registers a copy of a tensor as a float32 buffer.

        Raises:
            ConfigError: It has another shape, or values that are not finite.
        """
        if tuple(tensor.shape) != tuple(shape):
            raise ConfigError(f"{name} is {tuple(tensor.shape)}, expected {tuple(shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{name} of the quantiser holds NaN or infinite values")
        own = tensor.detach().to(device, torch.float32).clone().contiguous()
        self.register_buffer(name, own)

    def _frames_at_once(self) -> int:
        """Returns how many frames `encode` hands to the assigner."""
        return self._frames_per_product()

    def _frames_per_product(self) -> int:
        """Returns how many frames a matrix product takes, always the same number."""
        on_cpu = self.centers.device.type == "cpu"
        return _CPU_PRODUCT_FRAMES if on_cpu else _GPU_PRODUCT_FRAMES

    def _encode_blocks(self, x: Tensor, assign: Assign, max_batch_frames: int | None) -> Tensor:
        """Encodes frames (*, D) block by block, each padded to the same number of frames."""
        self._check_frames(x)
        frames = x.reshape(-1, self.dim)
        size = max_batch_frames or self._frames_at_once()
        codes = [torch.empty(0, self.num_codebooks, dtype=torch.long, device=self.centers.device)]
        for start in range(0, len(frames), size):
            block = self._finite(frames[start : start + size])
            padded = F.pad(block, (0, 0, 0, size - len(block)))
            codes.append(assign(padded, len(block)))
        shape = (*x.shape[:-1], self.num_codebooks)
        return torch.cat(codes).to(self.token_dtype).view(shape)

    def _finite(self, x: Tensor) -> Tensor:
        """Returns frames (B, D) normalised on the quantiser's device, once all are finite."""
        frames = self.normalize(x.to(self.centers.device))
        if not bool(torch.isfinite(frames).all()):
            bad = (~torch.isfinite(x).all(dim=1)).nonzero()[:, 0]
            first = f", the first of them {int(bad[0])}" if len(bad) else ""
            raise DataError(
                f"{max(len(bad), 1)} of {len(x)} frames given to the quantiser hold NaN, infinite "
                f"or overflowing values{first}: check the teacher and its recording"
            )
        return frames

    def _check_frames(self, x: Tensor) -> None:
        if x.dim() == 0 or x.shape[-1] != self.dim:
            width = x.shape[-1] if x.dim() else 0
            name = self.teacher().get("name")
            whose = f" (trained on {name})" if name else ""
            raise ConfigError(
                f"quantiser of width {self.dim}{whose} was given frames of width {width}: it "
                "belongs to another teacher or layer"
            )
        if not x.is_floating_point():
            raise ConfigError(f"frames must be floating point, not {x.dtype}")
