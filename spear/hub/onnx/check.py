"""How near the output of an ONNX file is to that of the model it was made from."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spear.audio.fbank import SAMPLE_RATE_HZ, Fbank
from spear.hub.onnx.graph import INPUTS, OnnxGraph
from spear.system.optional import require

_SECONDS = 2.0
_FRAMES = (1, 150, 199)


@dataclass(frozen=True)
class Difference:
    """What an ONNX file's output differs by.

    Attributes:
        largest: Of all values.
        relative: The norm of the differences by the norm of the output.
    """

    largest: float
    relative: float


@torch.no_grad()
def measure_difference(graph: OnnxGraph, path: Path) -> Difference:
    """Runs an ONNX file and its model on noise, of a single frame and of batches with padding.

    Raises:
        MissingPackageError: onnxruntime is not installed.
    """
    session = require("onnxruntime", "ONNX export").InferenceSession(path)
    errors, values = [], []
    for num_frames in _FRAMES:
        x, x_lens = _features(graph.zipformer.config.feature_dim, num_frames)
        expected, lens = graph(x, x_lens)
        output, output_lens = session.run(
            None, dict(zip(INPUTS, (x.numpy(), x_lens.numpy()), strict=True))
        )
        found = torch.from_numpy(output)
        assert found.shape == expected.shape, (found.shape, expected.shape)
        assert output_lens.tolist() == lens.tolist(), (output_lens, lens)
        valid = torch.arange(expected.shape[1]) < lens.unsqueeze(1)
        errors.append((found - expected)[valid].flatten())
        values.append(expected[valid].flatten())
    error = torch.cat(errors)
    return Difference(float(error.abs().max()), float(error.norm() / torch.cat(values).norm()))


def _features(num_bins: int, num_frames: int) -> tuple[Tensor, Tensor]:
    """Returns log-mel (2, T, M) of noise, the second half as long."""
    noise = torch.randn(
        2, int(_SECONDS * SAMPLE_RATE_HZ), generator=torch.Generator().manual_seed(0)
    )
    fbank, _ = Fbank(num_bins)(0.1 * noise, torch.full((2,), noise.shape[1]))
    return fbank[:, :num_frames], torch.tensor([num_frames, (num_frames + 1) // 2])
