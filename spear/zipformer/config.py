"""The Zipformer's configuration: icefall's field names, the paper's numbers, checked on creation.

A per-stack field given as one number, or as a tuple of one, is meant for every stack; after
creation every per-stack field holds one number per stack, so readers never have to care. Another
number of stacks can be laid over the expanded defaults: those still count as one number.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from spear.errors import ConfigError

PER_STACK = (
    "encoder_dim",
    "num_encoder_layers",
    "encoder_unmasked_dim",
    "query_head_dim",
    "pos_head_dim",
    "value_head_dim",
    "num_heads",
    "feedforward_dim",
    "cnn_module_kernel",
)
_TUPLES = ("downsampling_factor", *PER_STACK, "embed_channels", "chunk_size", "left_context_frames")
_BASE_STACKS = (1, 2, 4, 8, 4, 2, 1)
_MIN_FEATURE_DIM = 7  # three 3 x 3 convolutions, two of them with stride 2, leave one bin


@dataclass
class ZipformerConfig:
    """Architecture of the student encoder; the defaults are the Base model of 94 M parameters."""

    feature_dim: int = 128
    """Mel bins of the input."""
    output_downsampling_factor: int = 1
    """Frames that become one at the output: 1 gives 50 Hz, 2 gives 25 Hz."""
    downsampling_factor: tuple[int, ...] = _BASE_STACKS
    """Downsampling of each stack below 50 Hz; its length is the number of stacks."""
    encoder_dim: tuple[int, ...] = (512,)
    """Channels of each stack."""
    num_encoder_layers: tuple[int, ...] = (1, 2, 3, 3, 1, 1, 1)
    """Layers of each stack."""
    encoder_unmasked_dim: tuple[int, ...] = (256,)
    """Channels of each stack that the feature mask of training never drops."""
    query_head_dim: tuple[int, ...] = (32,)
    """Channels of queries and keys per head."""
    pos_head_dim: tuple[int, ...] = (4,)
    """Channels of the projected relative position per head."""
    value_head_dim: tuple[int, ...] = (12,)
    """Channels of values per head."""
    num_heads: tuple[int, ...] = (8,)
    """Attention heads of each stack."""
    feedforward_dim: tuple[int, ...] = (1536,)
    """Hidden channels of the second feed-forward module; the others have 3/4 and 5/4 of it."""
    cnn_module_kernel: tuple[int, ...] = (31, 31, 15, 15, 15, 31, 31)
    """Kernel of the depthwise convolutions of each stack, in frames of that stack; odd."""
    pos_dim: int = 48
    """Channels of the relative positional encoding before its projection; even."""
    embed_channels: tuple[int, ...] = (8, 32, 128)
    """Channels of the three convolutions of the front end."""
    frontend_pad: bool = True
    """Pads each utterance by 3 fbank frames left and 4 right, so that T of them give T // 2 frames;
    without it (published checkpoints) they give (T - 7) // 2."""
    dropout: float | None = None
    """Dropout probability of the front end and the feed-forward modules; None is the schedule
    0.3 to 0.1 over 20,000 counts."""
    warmup_batches: float = 4000.0
    """Counts over which the layer-skip probability of one stack after the other goes down."""
    causal: bool = False
    """Chunk-causal convolution and attention, as for streaming models."""
    chunk_size: tuple[int, ...] = (-1,)
    """Chunk sizes in 50 Hz frames, one of them drawn per batch in training; -1 is no chunking.
    Evaluation uses the last. Read only with `causal`."""
    left_context_frames: tuple[int, ...] = (-1,)
    """Left contexts in 50 Hz frames that a chunk attends to, rounded down to whole chunks (at
    least one), drawn and chosen as `chunk_size`; -1 is all. Read only with `causal`."""

    def __post_init__(self) -> None:
        for name in _TUPLES:
            setattr(self, name, _as_tuple(name, getattr(self, name)))
        for name in PER_STACK:
            setattr(self, name, self._per_stack(name))
        self._check()

    @classmethod
    def named(cls, name: str, **changes: Any) -> "ZipformerConfig":
        """Returns a model of the paper or a small one for CPUs and tests of recipes.

        Args:
            name: "base" (94 M parameters), "large" (327 M) or "xlarge" (600 M), the paper's, or
                "tiny" (8 M).
            **changes: Fields that differ from it.

        Raises:
            ConfigError: There is no model of that name, or a field does not exist or fit.
        """
        if name not in _NAMED:
            raise ConfigError(f"no Zipformer named {name!r}: choose one of {', '.join(_NAMED)}")
        return cls.from_dict({**_NAMED[name], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ZipformerConfig":
        """Builds a configuration from plain values, as JSON and YAML hold them.

        Raises:
            ConfigError: A key is unknown, or values do not fit.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f": did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"ZipformerConfig has no field {key!r}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values (tuples as lists) that `from_dict` and JSON take."""
        plain = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items()}

    @property
    def num_stacks(self) -> int:
        """Number of stacks."""
        return len(self.downsampling_factor)

    @property
    def output_dim(self) -> int:
        """Channels of the output: those of the widest stack."""
        return max(self.encoder_dim)

    def _per_stack(self, name: str) -> tuple[int, ...]:
        values: tuple[int, ...] = getattr(self, name)
        if len(values) == self.num_stacks:
            return values
        if len(values) == 1 or values == _expanded_default(name):
            return values[:1] * self.num_stacks
        raise ConfigError(
            f"{name} has {len(values)} numbers for {self.num_stacks} stacks "
            f"(downsampling_factor {self.downsampling_factor}): give one, or one per stack"
        )

    def _check(self) -> None:
        for name in ("downsampling_factor", *PER_STACK, "embed_channels"):
            if min(getattr(self, name)) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: every number must be positive")
        _require(
            self.feature_dim >= _MIN_FEATURE_DIM,
            f"feature_dim {self.feature_dim}: the front end needs at least {_MIN_FEATURE_DIM} bins",
        )
        _require(
            self.output_downsampling_factor in {1, 2},
            f"output_downsampling_factor {self.output_downsampling_factor}: must be 1 or 2",
        )
        _require(
            len(self.embed_channels) == 3,
            f"embed_channels {self.embed_channels}: the front end has three convolutions",
        )
        dims = zip(self.encoder_unmasked_dim, self.encoder_dim, strict=True)
        _require(
            all(unmasked <= dim for unmasked, dim in dims),
            f"encoder_unmasked_dim {self.encoder_unmasked_dim}: none may be above its encoder_dim "
            f"{self.encoder_dim}",
        )
        _require(
            all(kernel % 2 == 1 for kernel in self.cnn_module_kernel),
            f"cnn_module_kernel {self.cnn_module_kernel}: kernels must be odd",
        )
        _require(
            self.pos_dim > 0 and self.pos_dim % 2 == 0,
            f"pos_dim {self.pos_dim}: must be even and positive",
        )
        _require(
            self.dropout is None or 0.0 <= self.dropout < 1.0,
            f"dropout {self.dropout}: must be at least 0 and below 1",
        )
        _require(self.warmup_batches > 0, f"warmup_batches {self.warmup_batches}: must be positive")
        if self.causal:
            self._check_chunks()

    def _check_chunks(self) -> None:
        for chunk in self.chunk_size:
            if chunk != -1 and (chunk < 1 or any(chunk % d for d in self.downsampling_factor)):
                raise ConfigError(
                    f"chunk_size {chunk}: must be -1 or a multiple of every downsampling factor "
                    f"{self.downsampling_factor}"
                )
        for context in self.left_context_frames:
            if context != -1 and context < 1:
                raise ConfigError(f"left_context_frames {context}: must be -1 or positive")


def _expanded_default(name: str) -> tuple[int, ...] | None:
    """The default of a per-stack field as it stands after creation, if it is one number."""
    defaults = {field.name: field.default for field in fields(ZipformerConfig)}
    default: Any = defaults[name]
    return default * len(_BASE_STACKS) if len(default) == 1 else None


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise ConfigError(message)


def _as_tuple(name: str, value: Any) -> tuple[int, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    values = tuple(value) if is_list else (value,)
    if not values or not all(type(number) is int for number in values):
        raise ConfigError(f"{name} is {value!r}: expected a whole number or a list of them")
    return values


_NAMED: dict[str, dict[str, Any]] = {
    "tiny": {
        "encoder_dim": (192,),
        "feedforward_dim": (512,),
        "encoder_unmasked_dim": (128,),
        "num_heads": (4,),
        "num_encoder_layers": (1,),
    },
    "base": {},
    "large": {
        "encoder_dim": (1024,),
        "feedforward_dim": (3072,),
        "encoder_unmasked_dim": (512,),
        "num_encoder_layers": (1, 2, 2, 3, 1, 1, 1),
    },
    "xlarge": {
        "encoder_dim": (1280,),
        "feedforward_dim": (3840,),
        "encoder_unmasked_dim": (768,),
        "num_encoder_layers": (1, 2, 3, 4, 1, 1, 1),
    },
}
