"""`spear info KIND PATH`: what a quantiser, a model folder or a token sidecar is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spear.hub.encoder import SpearEncoder
from spear.hub.loading import from_pretrained

if TYPE_CHECKING:
    from spear.data.tokens import TokenSidecar


@dataclass
class InfoConfig:
    """Prints what a file or folder holds: `spear info quantizer q.safetensors`."""

    kind: Literal["quantizer", "model", "tokens"]
    """What to describe."""
    path: str
    """A quantiser file, a model folder (or hub id), or a `{teacher}_tokens.json`."""


def run(config: InfoConfig) -> None:
    """Prints the description.

    Raises:
        SpearError: The file or folder cannot be read as what it is said to be.
    """
    describe = {"quantizer": _quantizer, "model": _model, "tokens": _tokens}[config.kind]
    print(describe(config.path))  # noqa: T201


def _quantizer(path: str) -> str:
    from spear.mvq import Quantizer
    from spear.mvq.report import describe

    return str(describe(Quantizer.load(path)))


def _tokens(path: str) -> str:
    from spear.data.tokens import TokenSidecar

    return describe_tokens(TokenSidecar.load(Path(path)), path)


def describe_tokens(sidecar: "TokenSidecar", name: str) -> str:
    """Returns whose tokens a sidecar describes and how many there are, as text."""
    num_cuts = sum(shard.num_cuts for shard in sidecar.shards.values())
    num_frames = sum(shard.num_frames for shard in sidecar.shards.values())
    hours = num_frames / sidecar.frame_rate_hz / 3600
    layer = "last" if sidecar.layer is None else sidecar.layer
    return "\n".join(
        [
            f"{name}: tokens of teacher {sidecar.teacher!r}, layer {layer}",
            f"{sidecar.num_codebooks} codebooks of {sidecar.codebook_size} "
            f"at {sidecar.frame_rate_hz:g} Hz",
            f"{num_cuts} cuts, {num_frames} frames, {hours:.3f} h in {len(sidecar.shards)} shards",
            f"teacher weights {sidecar.weights_sha256}",
            f"quantizer {sidecar.quantizer_id} (file {sidecar.quantizer_sha256})",
        ]
    )


def _model(path: str) -> str:
    return describe_model(from_pretrained(path), path)


def describe_model(model: SpearEncoder, name: str) -> str:
    """Returns sizes, rates and a table of the stacks, as text."""
    config = model.config
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    lines = [
        f"{name}: SPEAR encoder, {millions:.2f} M parameters",
        f"input: {model.sampling_rate} Hz mono audio, {config.feature_dim} log-mel bins",
        f"output: {model.output_dim} channels at {model.frame_rate_hz:g} Hz",
        "",
        "stack  layers  width  down-sampling  feed-forward  heads  kernel     M",
    ]
    stacks = model.model.encoder.encoders
    rows = zip(
        config.num_encoder_layers,
        config.encoder_dim,
        config.downsampling_factor,
        config.feedforward_dim,
        config.num_heads,
        config.cnn_module_kernel,
        [sum(p.numel() for p in stack.parameters()) / 1e6 for stack in stacks],
        strict=True,
    )
    lines += [
        f"{i:5}  {n:6}  {dim:5}  {down:13}  {ff:12}  {heads:5}  {kernel:6}  {m:4.2f}"
        for i, (n, dim, down, ff, heads, kernel, m) in enumerate(rows)
    ]
    return "\n".join(lines)
