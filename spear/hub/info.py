"""`spear info KIND PATH`: what a quantiser, a model folder or a token sidecar is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from spear.data.formats.tokens import TokenSidecar
from spear.encoders.encoder import SpearEncoder
from spear.encoders.frame_grid import HOP_MS, output_centre_ms
from spear.encoders.loading import from_pretrained, weights_file
from spear.errors import ConfigError
from spear.hub.token_heads import TokenHeads, load_token_heads
from spear.mvq import load_quantizer
from spear.mvq.command import frames_path, load_frames
from spear.mvq.evaluation import evaluate, spread_out
from spear.mvq.report import describe, evaluation_blocks
from spear.mvq.training.frames import read_rows
from spear.system.weights import num_parameters
from spear.zipformer import ZipformerConfig
from spear.zipformer.stack import DownsampledStack, ZipformerStack

_MAX_FRAMES = 10_000
_FRONT_END_MS = 105.0  # nine fbank windows of 25 ms, 10 ms apart
_HEADER = (
    "layer",
    "stack",
    "width",
    "down-sampling",
    "feed-forward",
    "heads",
    "kernel",
    "kernel (ms)",
    "parameters",
)
_Row = tuple[Sequence[object], int]
"""Cells of a row of the table, and its parameters."""


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
    text = {"quantizer": _quantizer, "model": _model, "tokens": _tokens}[config.kind](config.path)
    if config.frames:
        text += "\n\n" + _measured(config.path, config.frames, config.pictures)
    print(text)  # noqa: T201


def _quantizer(path: str) -> str:
    return describe(load_quantizer(path))


def _measured(path: str, frames: str, pictures: str) -> str:
    """Returns what frames say about a quantiser, and draws it where a folder is given."""
    quantizer = load_quantizer(path)
    rows, teacher = load_frames(frames_path(frames))
    own = quantizer.teacher().get("weights_sha256")
    if own is not None and own != teacher.get("weights_sha256"):
        raise ConfigError(f"{path} and {frames} are of different teachers, by their weights_sha256")
    found = evaluate(quantizer, read_rows(rows, spread_out(torch.arange(len(rows)), _MAX_FRAMES)))
    folder = Path(pictures) if pictures else None
    return "\n\n".join(filter(None, evaluation_blocks(quantizer, {"frames": found}, folder)))


def _tokens(path: str) -> str:
    return describe_tokens(TokenSidecar.load(Path(path)), path)


def describe_tokens(sidecar: TokenSidecar, name: str) -> str:
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
    text = describe_model(from_pretrained(path), path)
    heads = load_token_heads(weights_file(path).parent)
    return text if heads is None else f"{text}\n\n{describe_heads(heads)}"


def describe_model(model: SpearEncoder, name: str) -> str:
    """Returns sizes, rates and a table of the layers by their numbers, as text."""
    config = model.config
    millions = num_parameters(model) / 1e6
    lines = [
        f"{name}: SPEAR encoder, {millions:.2f} M parameters, {model.num_layers} layers",
        f"input: {model.sampling_rate} Hz mono audio, {config.feature_dim} log-mel bins",
        f"output: {model.output_dim} channels at {model.frame_rate_hz:g} Hz, "
        f"frame 0 is centred at {output_centre_ms(config):g} ms",
        *_describe_chunks(config),
        "",
        *_table(_HEADER, _layer_rows(model)),
        "",
        "layer 0 is the front end; the convolutions of a layer see its kernel, attention sees "
        + ("its chunk and those before it" if config.causal else "everything"),
    ]
    return "\n".join(lines)


def describe_heads(heads: TokenHeads) -> str:
    """Returns what a model's token heads predict, as text."""
    return "\n".join(
        f"token head {name}: {shape.num_codebooks} codebooks of {shape.codebook_size} "
        f"at {shape.frame_rate_hz:g} Hz"
        for name, shape in heads.shapes.items()
    )


def _describe_chunks(config: ZipformerConfig) -> list[str]:
    if not config.causal:
        return []
    chunk, left = (
        "all" if frames == -1 else f"{HOP_MS * frames:g} ms"
        for frames in (config.chunk_size[-1], config.left_context_frames[-1])
    )
    return [f"causal: chunks of {chunk}, left context of {left}"]


def _layer_rows(model: SpearEncoder) -> list[_Row]:
    """Returns the rows of the table: front end, layers, what is in none of them, all."""
    config = model.config
    front_end = (0, "", config.encoder_dim[0], 1, "", "", "", f"{_FRONT_END_MS:g}")
    rows: list[_Row] = [(front_end, num_parameters(model.model.encoder_embed))]
    for index, stack in enumerate(model.model.encoder.encoders):
        factor, kernel = config.downsampling_factor[index], config.cnn_module_kernel[index]
        sizes = (config.feedforward_dim[index], config.num_heads[index], kernel)
        seen = f"{HOP_MS * factor * kernel:g}"
        assert isinstance(stack, ZipformerStack | DownsampledStack)
        for layer in stack.layers:
            cells = (len(rows), index, config.encoder_dim[index], factor, *sizes, seen)
            rows.append((cells, num_parameters(layer)))
    num_all = num_parameters(model)
    rest = num_all - sum(count for _, count in rows)
    blank = ("",) * (len(_HEADER) - 2)
    return [*rows, (("rest", *blank), rest), (("all", *blank), num_all)]


def _table(header: Sequence[str], rows: Sequence[_Row]) -> list[str]:
    """Returns the lines of a table whose columns are on the right."""
    lines = [header, *([*map(str, cells), f"{count:,}"] for cells, count in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
