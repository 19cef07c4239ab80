"""`spear view FILE --model M`: what an encoder makes of a recording, as pictures and a page.

Writes `{out}/{name}.png` with everything, one picture for each part, and `index.html`, which holds
them all and needs no other file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from spear.audio import SAMPLE_RATE_HZ
from spear.data.corpus.recordings import read_recording
from spear.encoders.encoder import SpearEncoder
from spear.encoders.frame_grid import STUDENT_RATE_HZ
from spear.encoders.layer_frames import LayerFrames
from spear.encoders.loading import from_pretrained, weights_file
from spear.errors import ConfigError
from spear.hub.feature_folder import make_folder
from spear.hub.token_heads import TokenHeads, load_token_heads
from spear.report.page import embedded, render
from spear.system.device import choose_device
from spear.system.files import write_text
from spear.system.markdown import save_figure
from spear.system.optional import require
from spear.system.progress import get_logger
from spear.system.weights import num_parameters
from spear.view.numbers import layer_colours, pooling_step, similarity
from spear.view.pictures import (
    Grid,
    View,
    draw_everything,
    draw_layers_alone,
    draw_log_mel_alone,
    draw_similarity_alone,
    draw_tokens_alone,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = get_logger(__name__)

_FBANK_S = 0.01
_PICTURES: tuple[tuple[str, str, Callable[[View], "Figure"]], ...] = (
    ("", "everything", draw_everything),
    ("_log_mel", "log-mel energies", draw_log_mel_alone),
    ("_layers", "layers", draw_layers_alone),
    ("_tokens", "tokens", draw_tokens_alone),
    ("_similarity", "similarity", draw_similarity_alone),
)
"""Suffix of the file, caption, and what draws it."""


@dataclass
class ViewConfig:
    """Draws what an encoder makes of a recording: `spear view FILE --model M --out DIR`."""

    file: str
    """The recording, of any format, rate and length."""
    model: str
    """Model folder, or hub id."""
    out: str
    """Folder for the pictures and `index.html`; those of an earlier view are replaced."""
    offset_s: float = 0.0
    """Where in the recording the pictures begin, in seconds."""
    max_s: float = 30.0
    """Most seconds that are drawn."""
    device: str = "auto"
    """Device of the encoder: auto, cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if self.offset_s < 0:
            raise ConfigError(f"offset_s is {self.offset_s}: it must be 0 seconds or more")
        if not self.max_s > 0:
            raise ConfigError(f"max_s is {self.max_s}: it must be above 0 seconds")


def run(config: ViewConfig) -> None:
    """Draws a recording.

    Raises:
        AudioError: The recording cannot be read.
        CheckpointError: The model cannot be loaded.
        ConfigError: There is nothing to draw, or `out` is a file.
        MissingPackageError: matplotlib or jinja2 is not installed.
    """
    require("matplotlib.figure", "spear view")
    require("jinja2", "spear view")
    out = Path(config.out)
    make_folder(out)
    audio = _read_part(config)
    model = from_pretrained(config.model, choose_device(config.device))
    if model.num_frames(len(audio)) == 0:
        raise ConfigError(
            f"{len(audio) / SAMPLE_RATE_HZ:.3f} s of {config.file} are too short for a frame"
        )
    heads = load_token_heads(weights_file(config.model).parent)
    if heads is None:
        logger.info("%s has no token heads: no tokens are drawn", config.model)
    path = Path(config.file)
    model_name = "/".join(Path(config.model).parts[-2:])
    view = look(model, heads, audio, f"{path.name}  ·  {model_name}", config.offset_s)
    pictures = _draw(view, out, path.stem)
    facts = _facts(config, model, view, len(audio))
    images = {caption: embedded(picture) for caption, picture in pictures.items()}
    page = render("view.html.j2", "spear view", title=path.name, facts=facts, pictures=images)
    write_text(out / "index.html", page)
    logger.info("%s and %s", pictures["everything"], out / "index.html")


@torch.no_grad()
def look(
    model: SpearEncoder,
    heads: TokenHeads | None,
    audio: np.ndarray,
    title: str = "",
    begin_s: float = 0.0,
) -> View:
    """Computes what there is to draw.

    Args:
        model: In evaluation mode.
        heads: Its token heads, where there are any.
        audio: (S,) float32 at 16 kHz, long enough for a frame.
        title: What stands above the pictures.
        begin_s: Where the audio begins in its recording.
    """
    samples = torch.from_numpy(audio)
    out = model.encode_long(samples, layers=range(model.num_layers + 1))
    frames = out["encoder_out"][0]
    log_mel, _ = model.fbank(samples.unsqueeze(0), torch.tensor([len(samples)]))
    output, layers = (_grid_of(LayerFrames(model, layer), begin_s) for layer in (None, 0))
    step = pooling_step(len(frames))
    return View(
        title=title,
        begin_s=begin_s,
        end_s=begin_s + len(audio) / SAMPLE_RATE_HZ,
        log_mel=log_mel[0],
        log_mel_grid=Grid(begin_s + _FBANK_S / 2, _FBANK_S),
        similarity=similarity(frames),
        similarity_grid=Grid(output.first_s + (step - 1) / 2 * output.step_s, step * output.step_s),
        layers=layer_colours([layer[0] for layer in out["hidden_states"]]),
        layer_grid=layers,
        rates_hz=_rates_hz(model),
        tokens={} if heads is None else heads.predict(frames),
        codebook_sizes={} if heads is None else heads.codebook_sizes,
        output_grid=output,
    )


def _grid_of(read: LayerFrames, begin_s: float) -> Grid:
    return Grid(begin_s + read.first_ms / 1000, read.hop_ms / 1000)


def _rates_hz(model: SpearEncoder) -> list[float]:
    """Returns the frames per second that the front end and each layer compute."""
    stacks = zip(model.config.downsampling_factor, model.config.num_encoder_layers, strict=True)
    layers = [STUDENT_RATE_HZ / factor for factor, num_layers in stacks for _ in range(num_layers)]
    return [STUDENT_RATE_HZ, *layers]


def _read_part(config: ViewConfig) -> np.ndarray:
    """Returns the samples that are to be drawn."""
    audio = read_recording(Path(config.file))
    begin = round(config.offset_s * SAMPLE_RATE_HZ)
    if begin >= len(audio):
        raise ConfigError(
            f"offset_s {config.offset_s:g} is behind the end of {config.file}, "
            f"which has {len(audio) / SAMPLE_RATE_HZ:.2f} s"
        )
    return audio[begin : begin + max(1, round(config.max_s * SAMPLE_RATE_HZ))]


def _draw(view: View, out: Path, name: str) -> dict[str, Path]:
    """Draws what there is; returns the pictures by their caption."""
    pictures = {}
    for suffix, caption, draw in _PICTURES:
        path = out / f"{name}{suffix}.png"
        if draw is draw_tokens_alone and not view.tokens:
            path.unlink(missing_ok=True)  # of another model
            continue
        save_figure(draw(view), path)
        pictures[caption] = path
    return pictures


def _facts(config: ViewConfig, model: SpearEncoder, view: View, num_samples: int) -> dict[str, str]:
    millions = num_parameters(model) / 1e6
    facts = {
        "recording": config.file,
        "drawn": f"{view.begin_s:.2f} s to {view.end_s:.2f} s",
        "model": f"{config.model}, {millions:.2f} M parameters, {model.num_layers} layers",
        "frames": f"{model.num_frames(num_samples)} of {model.output_dim} channels "
        f"at {model.frame_rate_hz:g} Hz",
    }
    for teacher, predicted in view.tokens.items():
        size = view.codebook_sizes[teacher]
        facts[f"tokens of {teacher}"] = (
            f"{predicted.tokens.shape[1]} codebooks of {size}; mean probability of the predicted "
            f"ones {float(predicted.probabilities.mean()):.3f}, of any {1 / size:.4f}"
        )
    return facts
