"""The student computes what icefall's and the SPEAR authors' code computed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spear.zipformer import Zipformer, ZipformerConfig, ZipformerOutput, load_exact

TOLERANCE = 2e-4


class Golden:
    """A reference model in evaluation mode, its input, and what it makes of it."""

    def __init__(self, config: dict[str, Any], state: dict[str, Tensor]) -> None:
        self.model = Zipformer(ZipformerConfig.from_dict(config)).eval()
        load_exact(self.model, state, "golden")

    @torch.no_grad()
    def run(self, fbank: Tensor, lens: Tensor) -> ZipformerOutput:
        self.stacks: list[Tensor] = []
        hooks = [
            stack.register_forward_hook(lambda _, __, out: self.stacks.append(out.output))
            for stack in self.model.encoder.encoders
        ]
        output = self.model(fbank, lens)
        for hook in hooks:
            hook.remove()
        return output


@pytest.fixture(scope="module")
def icefall(golden_dir: Path) -> tuple[Golden, dict[str, Any]]:
    reference = torch.load(golden_dir / "zipformer_tiny4.pt", weights_only=True)
    config = {**reference["config"], "output_downsampling_factor": 2, "frontend_pad": False}
    return Golden(config, reference["state_dict"]), reference


@pytest.fixture(scope="module")
def spear_tiny(golden_dir: Path) -> tuple[Golden, dict[str, Any]]:
    folder = golden_dir / "spear_tiny_50hz"
    raw = json.loads((folder / "config.json").read_text())
    numbers = ("downsampling_factor", "num_encoder_layers", "feedforward_dim", "encoder_dim")
    numbers += ("encoder_unmasked_dim", "cnn_module_kernel", "num_heads")
    config: dict[str, Any] = {name: [int(n) for n in raw[name].split(",")] for name in numbers}
    config |= {"feature_dim": raw["num_mel_bins"], "pos_dim": raw["pos_dim"], "frontend_pad": False}
    weights = load_file(folder / "model.safetensors")
    state = {name.removeprefix("model.model."): value for name, value in weights.items()}
    del state["mask_emb"]  # belongs to pre-training
    return Golden(config, state), torch.load(folder / "reference.pt", weights_only=True)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours[: len(theirs)], theirs, atol=TOLERANCE, rtol=0.0)


def test_every_utterance_of_a_batch_has_icefalls_output_for_it_alone(
    icefall: tuple[Golden, dict[str, Any]],
) -> None:
    golden, reference = icefall
    output = golden.run(reference["fbank"], reference["lengths"])
    assert output.lens.tolist() == reference["out_lengths"].tolist()
    for row, alone in zip(output.output, reference["alone"], strict=True):
        close(row, alone["out_25hz"])


def test_front_end_and_stacks_are_icefalls_for_the_longest_utterance(
    icefall: tuple[Golden, dict[str, Any]],
) -> None:
    golden, reference = icefall
    golden.run(reference["fbank"], reference["lengths"])
    for ours, theirs in zip(golden.stacks, reference["stacks"], strict=True):
        close(ours[0], theirs[0])
    with torch.no_grad():
        embed, lens = golden.model.encoder_embed(reference["fbank"], reference["lengths"])
    close(embed[0], reference["embed"][0])
    assert lens.tolist() == reference["embed_lengths"].tolist()


def test_every_utterance_of_a_batch_has_the_authors_output_and_hidden_states(
    spear_tiny: tuple[Golden, dict[str, Any]],
) -> None:
    golden, reference = spear_tiny
    output = golden.run(reference["fbank"], reference["fbank_lens"])
    assert output.lens.tolist() == reference["encoder_out_lens"].tolist()
    for index, alone in enumerate(reference["alone"]):
        close(output.output[index], alone["encoder_out"])
        assert len(output.hidden_states) == len(alone["hidden_states"]) == 9
        for ours, theirs in zip(output.hidden_states, alone["hidden_states"], strict=True):
            close(ours[index], theirs)


def test_a_batch_of_one_gives_the_same(spear_tiny: tuple[Golden, dict[str, Any]]) -> None:
    golden, reference = spear_tiny
    for index, alone in enumerate(reference["alone"]):
        lens = reference["fbank_lens"][index : index + 1]
        output = golden.run(reference["fbank"][index : index + 1, : int(lens)], lens)
        close(output.output[0], alone["encoder_out"])
