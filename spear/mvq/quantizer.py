"""The multi-codebook quantiser: frames to one-byte tokens and back.

A frame, normalised per channel, is approximated by a direct sum x ~ sum_n C_n[z_n] of one centre of
each of N codebooks; all centres have the full dimension and the codebooks no order, so that a
student can predict every token by itself. The file that `save` writes holds all that the tokens
depend on: centres, first-guess classifiers, channel statistics, and as metadata the identity of
the teacher whose frames it was trained on.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from spear.errors import CheckpointError, ConfigError, DataError, TokenError
from spear.files import atomic_path
from spear.mvq.search import ProductTable, search

FORMAT_VERSION = "1"
_MAX_CODEBOOKS, _MAX_CODEBOOK_SIZE = 64, 256
_OWN_KEYS = ("format_version", "dim", "num_codebooks", "codebook_size", "id")
# Frames per matrix product. Always the same number (the last ones are padded): BLAS may round
# differently for another shape, and then tokens would depend on the length of the input.
_CPU_PRODUCT_FRAMES = 256
_GPU_PRODUCT_FRAMES = 4096


class Quantizer(nn.Module):
    """Turns frames (*, D) into tokens (*, N) uint8 and back.

    Args:
        centers: (N, K, D) float32.
        classifier_weight: (N * K, D) float32; with `classifier_bias` (N * K,) it gives logits
            whose largest per codebook is the first guess. Without it the search begins undecided.
        classifier_bias: See `classifier_weight`.
        channel_mean: (D,) subtracted from frames; zeros by default.
        channel_scale: (D,) that frames are divided by; ones by default.
        metadata: Text about where the quantiser comes from, e.g. {"teacher": "<json>"}.

    Raises:
        ConfigError: Shapes do not fit, or N is not in 1..64 or K not in 2..256.
    """

    centers: Tensor
    classifier_weight: Tensor
    classifier_bias: Tensor
    channel_mean: Tensor
    channel_scale: Tensor

    def __init__(
        self,
        centers: Tensor,
        *,
        classifier_weight: Tensor | None = None,
        classifier_bias: Tensor | None = None,
        channel_mean: Tensor | None = None,
        channel_scale: Tensor | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if centers.dim() != 3:
            raise ConfigError(f"centers must be (N, K, D), not of shape {tuple(centers.shape)}")
        num_codebooks, codebook_size, dim = centers.shape
        check_sizes(num_codebooks, codebook_size)
        num_codes = num_codebooks * codebook_size
        if (classifier_weight is None) != (classifier_bias is None):
            raise ConfigError("classifier_weight and classifier_bias go together")
        tensors = {
            "centers": (centers, centers.shape),
            "channel_mean": (_or(channel_mean, torch.zeros(dim)), (dim,)),
            "channel_scale": (_or(channel_scale, torch.ones(dim)), (dim,)),
            "classifier_weight": (_or(classifier_weight, torch.empty(0, dim)), (num_codes, dim)),
            "classifier_bias": (_or(classifier_bias, torch.empty(0)), (num_codes,)),
        }
        for name, (tensor, shape) in tensors.items():
            absent = classifier_weight is None and name.startswith("classifier")
            if tuple(tensor.shape) != tuple(shape) and not absent:
                raise ConfigError(f"{name} is {tuple(tensor.shape)}, expected {tuple(shape)}")
            if not bool(torch.isfinite(tensor).all()):
                raise ConfigError(f"{name} of the quantiser holds NaN or infinite values")
            own = tensor.detach().to(centers.device, torch.float32).clone().contiguous()
            self.register_buffer(name, own)
        if bool((self.channel_scale <= 0).any()):
            raise ConfigError("channel_scale of the quantiser must be above 0 everywhere")
        self.metadata: dict[str, str] = dict(metadata or {})
        self._table: tuple[tuple[int, int, torch.device], ProductTable] | None = None

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
    def has_classifiers(self) -> bool:
        """Whether linear classifiers give the first guess."""
        return len(self.classifier_weight) > 0

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 over names, shapes and values."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.named_buffers()):
            digest.update(f"{name} {tuple(tensor.shape)} float32\n".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def table(self) -> ProductTable:
        """Inner products of all centres; made at first use and whenever the centres changed."""
        key = (self.centers.data_ptr(), self.centers._version, self.centers.device)
        if self._table is None or self._table[0] != key:
            self._table = (key, ProductTable(self.centers.float()))
        return self._table[1]

    def normalize(self, x: Tensor) -> Tensor:
        """Returns frames (*, D) in the space of the centres, float32."""
        return (x.float() - self.channel_mean) / self.channel_scale

    def denormalize(self, x: Tensor) -> Tensor:
        """Undoes `normalize`."""
        return x * self.channel_scale + self.channel_mean

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        *,
        num_passes: int = 3,
        beam_width: int = 16,
        max_batch_frames: int | None = None,
    ) -> Tensor:
        """The tokens of frames.

        Args:
            x: (*, D) floating point frames as the teacher gives them.
            num_passes: Passes of the full search; 0 gives the classifiers' guess. The error never
                grows with it.
            beam_width: Codes that each codebook shortlists in a pass.
            max_batch_frames: Frames worked on at once, which bounds memory to about 16 * N * K
                bytes a frame. The tokens do not depend on how an input is cut into calls; another
                value here may change them where two choices are equally good to rounding.

        Returns:
            (*, N) uint8 on the quantiser's device.

        Raises:
            ConfigError: x has another width, or an argument is out of range.
            DataError: x holds NaN or infinite values.
        """
        self._check_frames(x)
        if num_passes < 0 or beam_width < 2:
            raise ConfigError(
                f"encode needs num_passes >= 0 and beam_width >= 2, not {num_passes}, {beam_width}"
            )
        frames = x.reshape(-1, self.dim)
        size = max_batch_frames or self._product_frames()
        codes = [
            self._encode_block(frames[start : start + size], size, num_passes, beam_width)
            for start in range(0, len(frames), size)
        ]
        empty = torch.empty(0, self.num_codebooks, dtype=torch.uint8, device=self.centers.device)
        return torch.cat([empty, *codes]).view(*x.shape[:-1], self.num_codebooks)

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
        own = (FORMAT_VERSION, str(self.dim), str(self.num_codebooks), str(self.codebook_size))
        metadata = {**self.metadata, **dict(zip(_OWN_KEYS, (*own, self.id), strict=True))}
        content = _with_sorted_header(serialize(tensors, metadata=metadata))
        with atomic_path(Path(path)) as partial:
            partial.write_bytes(content)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Quantizer":
        """Reads what `save` wrote.

        Raises:
            CheckpointError: The file is missing, broken, or no quantiser of a known version.
        """
        tensors, metadata = _read(Path(path))
        version = metadata.get("format_version")
        names = {"centers", "channel_mean", "channel_scale", "classifier_weight", "classifier_bias"}
        if version != FORMAT_VERSION or set(tensors) != names:
            raise CheckpointError(
                f"{path} is no quantiser of format version {FORMAT_VERSION} (version {version}, "
                f"tensors {sorted(tensors)}): make it with `spear train-quantizer`"
            )
        if len(tensors["classifier_weight"]) == 0:
            del tensors["classifier_weight"], tensors["classifier_bias"]
        stored_id = metadata.get("id")
        own = {key: value for key, value in metadata.items() if key not in _OWN_KEYS}
        try:
            quantizer = cls(**tensors, metadata=own)
        except ConfigError as error:
            raise CheckpointError(f"{path} is a broken quantiser: {error}") from error
        if quantizer.id != stored_id:
            raise CheckpointError(
                f"{path} is broken: its tensors have the id {quantizer.id}, but it was saved as "
                f"{stored_id}; copy or train it again"
            )
        return quantizer.to(device)

    @classmethod
    def from_multi_quantization(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        channel_mean: Tensor | None = None,
        channel_scale: Tensor | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "Quantizer":
        """A quantiser trained by the package `multi_quantization` (0.1.1).

        Args:
            state_dict: Its state dict.
            channel_mean: (D,) statistics applied before it, which that package does not store.
            channel_scale: See `channel_mean`.
            metadata: Kept with the quantiser.

        Raises:
            CheckpointError: Keys are missing or unknown, or shapes do not fit.
        """
        from spear.mvq.reference_import import convert_state

        tensors, source = convert_state(state_dict)
        return cls(
            **tensors,
            channel_mean=channel_mean,
            channel_scale=channel_scale,
            metadata={**source, **(metadata or {})},
        )

    def to_multi_quantization(self, *, of_normalized_frames: bool = False) -> dict[str, Tensor]:
        """The same quantiser for the package `multi_quantization` (0.1.1).

        Kept are centres, classifiers and a name; `from_multi_quantization` gives the same id back
        where nothing had to be folded in. Lost are the metadata and the channel statistics. Those
        with one scale for all channels are folded into centres and classifiers, exact to rounding.
        A quantiser without classifiers gets those of the nearest centres, as the package needs
        some.

        Args:
            of_normalized_frames: Leave the channel statistics out: whoever uses the state dict
                gives it `normalize(frames)`, and passes `channel_mean` and `channel_scale` to
                `from_multi_quantization` to come back.

        Returns:
            A state dict that the package's `Quantizer.load_state_dict` takes; float32, on the CPU.

        Raises:
            ConfigError: Channels have scales of their own, which the package cannot express, or N
                or K is no power of two, or K is below 16.
        """
        from spear.mvq.reference_export import export_state

        return export_state(self, of_normalized_frames=of_normalized_frames)

    def teacher(self) -> dict[str, object]:
        """Returns the teacher's identity from the metadata; empty when it was not given."""
        identity = json.loads(self.metadata.get("teacher", "{}"))
        return identity if isinstance(identity, dict) else {}

    def first_guess(self, normalized: Tensor) -> Tensor | None:
        """Returns (B, N) int64 by the classifiers for frames (B, D), or None without them."""
        if not self.has_classifiers:
            return None
        logits = F.linear(normalized, self.classifier_weight.float(), self.classifier_bias.float())
        return logits.view(-1, self.num_codebooks, self.codebook_size).argmax(dim=2)

    def _encode_block(self, x: Tensor, size: int, num_passes: int, beam_width: int) -> Tensor:
        """Encodes up to `size` frames, padded with zeros to exactly that many for the products."""
        frames = self.normalize(x.to(self.centers.device))
        if not bool(torch.isfinite(frames).all()):
            bad = (~torch.isfinite(x).all(dim=1)).nonzero()[:, 0]
            first = f", the first of them {int(bad[0])}" if len(bad) else ""
            raise DataError(
                f"{max(len(bad), 1)} of {len(x)} frames given to the quantiser hold NaN, infinite "
                f"or overflowing values{first}: check the teacher and its recording"
            )
        padded = F.pad(frames, (0, 0, 0, size - len(frames)))
        table = self.table
        unary = table.unary(padded)[: len(frames)]
        guess = self.first_guess(padded)
        codes = search(
            table,
            unary,
            None if guess is None else guess[: len(frames)],
            num_passes=num_passes,
            beam_width=beam_width,
        )
        return codes.to(torch.uint8)

    def _product_frames(self) -> int:
        on_cpu = self.centers.device.type == "cpu"
        return _CPU_PRODUCT_FRAMES if on_cpu else _GPU_PRODUCT_FRAMES

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


def check_sizes(num_codebooks: int, codebook_size: int) -> None:
    """Refuses numbers that one-byte tokens and the search cannot hold.

    Raises:
        ConfigError: N is not in 1..64 or K not in 2..256.
    """
    if not 1 <= num_codebooks <= _MAX_CODEBOOKS:
        raise ConfigError(f"num_codebooks must be 1 to {_MAX_CODEBOOKS}, not {num_codebooks}")
    if not 2 <= codebook_size <= _MAX_CODEBOOK_SIZE:
        raise ConfigError(f"codebook_size must be 2 to {_MAX_CODEBOOK_SIZE}, not {codebook_size}")


def _or(tensor: Tensor | None, default: Tensor) -> Tensor:
    return default if tensor is None else tensor


def _with_sorted_header(content: bytes) -> bytes:
    """Returns safetensors content with the keys of its header in order.

    The library writes metadata in an order that differs from process to process; the same
    quantiser should be the same file, as token sidecars store the file's checksum.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, ensure_ascii=False)
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)  # the data begins at a multiple of 8 bytes
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns tensors and metadata of a safetensors file."""
    if not path.is_file():
        raise CheckpointError(
            f"no quantiser at {path}: make it with `spear train-quantizer`, or correct the path"
        )
    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            return tensors, dict(stream.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error})") from error
