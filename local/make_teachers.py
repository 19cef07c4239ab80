"""Makes small WavLM and Dasheng checkpoints in their official formats, with random weights.

The mini recipe runs on these where no real teacher is named: nothing is downloaded, and exactly
the code that loads the released models runs. Random networks can teach: their outputs are fixed
functions of the audio. For a student to have a chance these functions must change with what is
heard and must not depend on what log-mel features cannot show, the phase of the waveform. Hence the
initialisation: WavLM's convolutions filter, rectify and then average over time, and Dasheng's batch
norm has the statistics of ordinary recordings.

Writes DIR/wavlm/ (config.json, model.safetensors, preprocessor_config.json) and DIR/dasheng.pt
({"model", "config"}), each whole or not at all; what is there from an earlier run is left alone.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from spear.errors import CheckpointError, SpearError
from spear.system.files import atomic_folder, atomic_path, remove_partials
from spear.system.optional import require
from spear.system.progress import get_logger, setup_logging
from spear.teachers import load_teacher
from spear.teachers.dasheng_network import DashengNetwork, DashengSettings

logger = get_logger("make_teachers")

WAVLM_CONFIG: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "conv_dim": (32,) * 7,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "apply_spec_augment": False,
}
DASHENG_CONFIG: dict[str, Any] = {
    "embed_dim": 96,
    "depth": 3,
    "num_heads": 4,
    "target_length": 1008,
    "patch_size": [64, 4],
    "patch_stride": [64, 4],
}
# Mean and variance over mel bins and time that speech and sounds have roughly, in dB and dB^2.
LOG_MEL_MEAN, LOG_MEL_VARIANCE = -10.0, 400.0


# Standard deviation of biases, beside signals of about 1: it keeps some of the level, which layer
# norms would take away.
BIAS = 0.3
SHARPNESS = 2.0  # weight of the convolutions' layer norms: how hard GELU rectifies


def make_wavlm(folder: Path, seed: int) -> None:
    """Writes a small WavLM as transformers does."""
    transformers = require("transformers", "making a WavLM checkpoint")
    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.WavLMModel(transformers.WavLMConfig(**WAVLM_CONFIG)).eval()
        first, *others = model.feature_extractor.conv_layers
        draw_high_pass(first.conv)
        for layer in others:
            draw_average(layer.conv)
        for layer in (first, *others):
            layer.layer_norm.weight.fill_(SHARPNESS)
        strengthen(model.encoder.layers)
    preprocessor = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=True, return_attention_mask=True, sampling_rate=16000
    )
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        preprocessor.save_pretrained(partial)


def make_dasheng(file: Path, seed: int) -> None:
    """Writes a small Dasheng as the released `.pt` files are."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = DashengNetwork(DashengSettings.from_config(DASHENG_CONFIG, "make_teachers"))
        state = network.state_dict()
        state["init_bn.1.running_mean"].fill_(LOG_MEL_MEAN)
        state["init_bn.1.running_var"].fill_(LOG_MEL_VARIANCE)
        strengthen(network.blocks)
    # Into a stream: torch writes the name of a path into the archive, and equal seeds should give
    # equal bytes.
    with atomic_path(file) as partial, open(partial, "wb") as stream:
        torch.save({"model": dict(state), "config": DASHENG_CONFIG}, stream)


def draw_high_pass(conv: nn.Conv1d) -> None:
    """Draws filters on the waveform of unit norm and without answer to a constant.

    Each is the difference of a random filter and itself one sample later. Rectified low
    frequencies would otherwise drown the rest.
    """
    drawn = torch.randn_like(conv.weight[..., :-1])
    filters = F.pad(drawn, (0, 1)) - F.pad(drawn, (1, 0))
    conv.weight.copy_(filters / filters.norm(dim=2, keepdim=True))
    _draw_bias(conv)


def draw_average(conv: nn.Conv1d) -> None:
    """Draws a random mixture of channels and takes its average over the kernel."""
    num_outputs, num_inputs, kernel = conv.weight.shape
    mixture = torch.randn(num_outputs, num_inputs) / math.sqrt(num_inputs)
    conv.weight.copy_(mixture[..., None].expand_as(conv.weight) / kernel)
    _draw_bias(conv)


def strengthen(blocks: nn.Module, gain: float = 0.7) -> None:
    """Draws the blocks' linear layers with the usual variance, gain^2 / inputs.

    The initialisations for training keep the branches so weak that the blocks do next to nothing.
    """
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0.0, gain / math.sqrt(module.in_features))


def _draw_bias(conv: nn.Conv1d) -> None:
    assert conv.bias is not None
    conv.bias.normal_(0.0, BIAS)


def make_missing(path: Path, family: str, make: Callable[[Path, int], None], seed: int) -> None:
    """Makes a checkpoint unless a complete one is there already."""
    try:
        load_teacher({"name": family, "path": str(path)})
    except CheckpointError:
        make(path, seed)
        logger.info("made %s from seed %d", path, seed)
    else:
        logger.info("%s is there already", path)


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="fixes the weights")
    options = parser.parse_args(arguments)
    setup_logging()
    try:
        remove_partials(options.output_dir)
        make_missing(options.output_dir / "wavlm", "wavlm", make_wavlm, options.seed)
        make_missing(options.output_dir / "dasheng.pt", "dasheng", make_dasheng, options.seed)
    except (SpearError, OSError) as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
