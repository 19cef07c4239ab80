"""`spear info KIND PATH`: what a quantiser, a model folder or a token sidecar is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from spear.errors import ConfigError
from spear.hub.encoder import SpearEncoder
from spear.hub.loading import from_pretrained

if TYPE_CHECKING:
    from spear.data.tokens import TokenSidecar

_MAX_FRAMES = 10_000


@dataclass
class InfoConfig:
    """Prints what a file or folder holds: `spear info quantizer q.safetensors`."""

    kind: Literal["quantizer", "model", "tokens"]
    """What to describe."""
    path: str
    """A quantiser file, a model folder (or hub id), or a `{teacher}_tokens.json`."""
    frames: str = ""
    """For a quantiser: frames that `spear embed` wrote, to measure it on (at most 10,000)."""
    pictures: str = ""
    """For a quantiser with `frames`: folder where usage.png and codebooks.png go."""


def run(config: InfoConfig) -> None:
    """Prints the description.

    Raises:
        ConfigError: Frames for something else than a quantiser, or pictures without frames.
        SpearError: The file or folder cannot be read as what it is said to be.
    """
    if config.frames and config.kind != "quantizer":
        raise ConfigError(f"frames are for a quantizer, not for {config.kind}")
    if config.pictures and not config.frames:
        raise ConfigError("pictures show what frames say of a quantizer: give frames, too")
    describe = {"quantizer": _quantizer, "model": _model, "tokens": _tokens}[config.kind]
    text = describe(config.path)
    if config.frames:
        text += "\n\n" + _measured(config.path, config.frames, config.pictures)
    print(text)  # noqa: T201


def _quantizer(path: str) -> str:
    from spear.mvq import load_quantizer
    from spear.mvq.report import describe

    return describe(load_quantizer(path))


def _measured(path: str, frames: str, pictures: str) -> str:
    """Returns what frames say about a quantiser, and draws it where a folder is given."""
    from spear.mvq import load_quantizer
    from spear.mvq.command import frames_path, load_frames
    from spear.mvq.evaluation import spread_out, teacher_identity
    from spear.mvq.frames import read_rows
    from spear.mvq.report import describe_evaluation, draw_pictures, evaluate

    quantizer = load_quantizer(path)
    rows, teacher = load_frames(frames_path(frames))
    own = teacher_identity(quantizer.metadata).get("weights_sha256")
    if own is not None and own != teacher.get("weights_sha256"):
        raise ConfigError(f"{path} and {frames} are of different teachers, by their weights_sha256")
    found = evaluate(quantizer, read_rows(rows, spread_out(torch.arange(len(rows)), _MAX_FRAMES)))
    if pictures:
        draw_pictures(Path(pictures), quantizer, {"frames": found})
    return describe_evaluation(quantizer, found)


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
