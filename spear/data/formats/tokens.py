"""Teacher tokens on disk: one more Shar field beside the audio, and the sidecar that says whose.

`{teacher}_tokens.000000.tar` holds, for every cut of shard 0 in its order, a uint8 array (T', N)
as `.npy` with lhotse's temporal-array manifest; a uint16 one where codebooks have more than 256
codes, as baselines' may. `{teacher}_tokens.json`, the sidecar, names the
teacher and the quantiser and counts what every shard holds. A run states what it wants and
`TokenSidecar.check` refuses anything else.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear.data.formats.shards import tar_name
from spear.data.formats.tars import FileReader, PairTarWriter, index_pairs
from spear.errors import DataError, TokenError
from spear.system.files import write_json

FORMAT_VERSION = 1
MAX_CODEBOOK_SIZE = 1 << 16
"""Codes that two bytes can tell apart."""
Tokens = NDArray[np.unsignedinteger[Any]]
"""(T', N), uint8 or uint16: see `token_dtype`."""


def token_dtype(codebook_size: int) -> np.dtype[Any]:
    """Returns the type that tokens have on disk: one byte where every code fits, else two."""
    return np.dtype(np.uint8) if codebook_size <= 256 else np.dtype("<u2")


def token_field(teacher: str) -> str:
    """Returns the Shar field of a teacher's tokens, e.g. "wavlm_tokens"."""
    return f"{teacher}_tokens"


def token_tar_name(teacher: str, shard: int) -> str:
    """Returns the file name of a shard's tokens, e.g. "wavlm_tokens.000003.tar"."""
    return tar_name(token_field(teacher), shard)


def sidecar_name(teacher: str) -> str:
    """Returns the file name of a teacher's sidecar, e.g. "wavlm_tokens.json"."""
    return f"{teacher}_tokens.json"


def find_teachers(folder: Path) -> list[str]:
    """Returns the names of the teachers that have a sidecar in a folder, sorted."""
    suffix = sidecar_name("")
    return sorted(path.name.removesuffix(suffix) for path in folder.glob(f"[!.]*{suffix}"))


@dataclass
class ShardTokens:
    """What one token tar holds."""

    num_cuts: int
    """Cuts in the shard."""
    num_frames: int
    """Frames T' of all cuts together."""
    sha256: str
    """Checksum of the tar file."""


@dataclass
class TokenSidecar:
    """The content of `{teacher}_tokens.json`."""

    teacher: str
    """Name of the teacher, e.g. "wavlm"; also the prefix of the files."""
    layer: int | None
    """Layer of the teacher whose output was quantised; None where a teacher has no layers."""
    frame_rate_hz: float
    """Token frames per second."""
    weights_sha256: str
    """SHA-256 of the teacher's weights."""
    quantizer_id: str
    """`Quantizer.id`: the first 16 hexadecimal digits of the SHA-256 of its tensors."""
    quantizer_sha256: str
    """SHA-256 of the quantiser's file."""
    num_codebooks: int
    """N, tokens in a frame."""
    codebook_size: int
    """K, values that a token can take; it also says whether they are uint8 or uint16."""
    teacher_identity: dict[str, Any] = field(default_factory=dict)
    """`Teacher.identity()` in full, for people; not compared."""
    shards: dict[int, ShardTokens] = field(default_factory=dict)
    """By number of the shard."""
    format_version: int = FORMAT_VERSION
    """Version of this layout."""

    @classmethod
    def load(cls, path: Path) -> "TokenSidecar":
        """Reads a sidecar.

        Raises:
            TokenError: It is missing, no JSON, of another version, or lacks fields.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError as error:
            raise TokenError(f"{path}: no such file; run `spear extract-tokens` first") from error
        except (OSError, ValueError) as error:
            raise TokenError(f"{path}: not a readable sidecar ({error})") from error
        if not isinstance(content, dict):
            raise TokenError(f"{path}: not a sidecar, the top level is no mapping")
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise TokenError(
                f"{path}: format version {version}, this spear reads {FORMAT_VERSION}; "
                "extract the tokens again"
            )
        return cls.from_dict(content, path)

    @classmethod
    def from_dict(cls, content: dict[str, Any], path: Path) -> "TokenSidecar":
        """Takes a sidecar from JSON; `path` is named where it does not fit.

        Raises:
            TokenError: Fields are missing, unknown or of another form.
        """
        try:
            shards = {int(key): ShardTokens(**entry) for key, entry in content["shards"].items()}
            return cls(**{**content, "shards": shards})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TokenError(f"{path}: not a sidecar of this version ({error})") from error

    def save(self, path: Path) -> None:
        """Writes the sidecar atomically, its shards in order."""
        content = asdict(self)
        content["shards"] = {f"{key:06d}": asdict(self.shards[key]) for key in sorted(self.shards)}
        write_json(path, content)

    def check(self, where: str | Path, **expected: Any) -> None:
        """Refuses tokens that are not what a run asks for.

        Args:
            where: The folder or file, for the message.
            **expected: What the run asks for, by the names of this class's fields (`teacher`,
                `layer`, `frame_rate_hz`, `weights_sha256`, `quantizer_id`, `quantizer_sha256`,
                `num_codebooks`, `codebook_size`); what is not named is not compared.

        Raises:
            TokenError: Says every field that differs, with both values.
        """
        differences = [
            f"{name} is {getattr(self, name)!r} where the run asks for {wanted!r}"
            for name, wanted in expected.items()
            if getattr(self, name) != wanted
        ]
        if differences:
            raise TokenError(
                f"{where}: tokens of {self.teacher!r} do not fit: {'; '.join(differences)}; "
                "extract them again or change the configuration"
            )

    def differences(self, other: "TokenSidecar") -> list[str]:
        """Returns the names of fields that differ from `other`'s, shards and paths aside."""
        identity = {one.name for one in fields(self)} - {"shards", "teacher_identity"}
        return sorted(name for name in identity if getattr(self, name) != getattr(other, name))


class TokenTarWriter:
    """Writes the tokens of one shard in lhotse's layout; a context manager.

    Attributes:
        num_cuts: Cuts written so far.
        num_frames: Their frames.
    """

    def __init__(self, path: Path, frame_rate_hz: float) -> None:
        """Opens a tar file whose arrays have `frame_rate_hz` frames per second."""
        self.frame_rate_hz = frame_rate_hz
        self.num_cuts = 0
        self.num_frames = 0
        self._tar = PairTarWriter(path)

    def write(self, cut_id: str, tokens: Tokens) -> None:
        """Appends the tokens of one cut.

        Args:
            cut_id: Id of the cut.
            tokens: (T', N) uint8 or uint16.
        """
        assert is_tokens(tokens), (tokens.dtype, tokens.shape)
        stream = io.BytesIO()
        np.save(stream, np.ascontiguousarray(tokens), allow_pickle=False)
        manifest = {
            "array": {
                "storage_type": "shar",
                "storage_path": "",
                "storage_key": "",
                "shape": list(tokens.shape),
            },
            "temporal_dim": 0,
            "frame_shift": 1.0 / self.frame_rate_hz,
            "start": 0,
        }
        self._tar.add(cut_id, "npy", stream.getvalue(), manifest)
        self.num_cuts += 1
        self.num_frames += len(tokens)

    def __enter__(self) -> "TokenTarWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._tar.__exit__(*error)


def read_token_tar(folder: Path, teacher: str, shard: int) -> Iterator[tuple[str, Tokens]]:
    """Yields the cut ids and (T', N) tokens of one shard, in the order of its tar.

    Raises:
        TokenError: The tar is missing or broken.
    """
    path = folder / token_tar_name(teacher, shard)
    reader = FileReader(max_open=1)
    try:
        for pair in index_pairs(path):
            data = reader.read(path, pair.offset, pair.size)
            yield pair.id, decode_tokens(data, f"{path}: cut {pair.id}")
    except DataError as error:
        raise TokenError(f"{error} (with `spear extract-tokens`)") from error


def is_tokens(array: NDArray[Any]) -> bool:
    """Whether an array has the form of tokens: (T', N) uint8 or uint16."""
    return array.ndim == 2 and array.dtype in (token_dtype(256), token_dtype(MAX_CODEBOOK_SIZE))


def decode_tokens(data: bytes, name: str) -> Tokens:
    """Decodes the `.npy` of one cut.

    Args:
        data: The member's bytes.
        name: What to call it in an error.

    Returns:
        (T', N) uint8 or uint16.

    Raises:
        TokenError: The bytes are no such array.
    """
    try:
        tokens = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise TokenError(f"{name}: tokens cannot be decoded ({error})") from error
    if not is_tokens(tokens):
        raise TokenError(
            f"{name}: expected uint8 or uint16 tokens (frames, codebooks), found {tokens.dtype} "
            f"of shape {tokens.shape}"
        )
    return tokens
