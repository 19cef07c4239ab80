"""What the student's benchmarks share: icefall's Zipformer2, built beside ours with equal weights.

icefall is not on the package index. Give a checkout of https://github.com/k2-fsa/icefall; only
three files of its LibriSpeech recipe are imported. They ask for k2 (for the Swoosh functions) and
for one helper of the `icefall` package, whose imports need the whole of a recipe's environment;
where k2 cannot be imported, the stand-ins below take their place. They do what k2 does, with the
derivative for the backward pass kept in one byte, by the fastest operations of torch that we know.
"""

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.zipformer import Zipformer, ZipformerConfig

RECIPE = Path("egs/librispeech/ASR/zipformer")
_SLOPE = 0.08


class _ByteSwoosh(torch.autograd.Function):
    """k2.swoosh_l and k2.swoosh_r: the derivative is kept as one byte an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset: float, constant: float) -> Tensor:
        derivative = (x - offset).sigmoid_()
        ctx.save_for_backward(derivative.mul_(255.0).round_().to(torch.uint8))
        return _swoosh(x, offset, constant)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return derivative.to(grad.dtype).mul_(1.0 / 255.0).sub_(_SLOPE).mul_(grad), None, None


def _swoosh(x: Tensor, offset: float, constant: float) -> Tensor:
    return F.softplus(x - offset).sub_(x, alpha=_SLOPE).sub_(constant)


def _k2_stand_in() -> types.ModuleType:
    module = types.ModuleType("k2")
    for letter, offset, constant in (("l", 4.0, 0.035), ("r", 1.0, 0.313261687)):
        functions = {
            f"swoosh_{letter}": lambda x, o=offset, c=constant: _ByteSwoosh.apply(x, o, c),
            f"swoosh_{letter}_forward": lambda x, o=offset, c=constant: _swoosh(x, o, c),
            f"swoosh_{letter}_forward_and_deriv": lambda x, o=offset, c=constant: (
                _swoosh(x, o, c),
                (x - o).sigmoid_().sub_(_SLOPE),
            ),
        }
        vars(module).update(functions)
    return module


def _icefall_stand_in() -> dict[str, types.ModuleType]:
    package, utils = types.ModuleType("icefall"), types.ModuleType("icefall.utils")

    def torch_autocast(device_type: str = "cpu", **options: Any) -> torch.autocast:
        return torch.autocast(device_type, **options)

    vars(utils)["torch_autocast"] = torch_autocast
    return {"icefall": package, "icefall.utils": utils}


def import_icefall(checkout: Path) -> None:
    """Makes `zipformer`, `subsampling` and `scaling` of icefall importable."""
    folder = checkout / RECIPE
    if not (folder / "zipformer.py").is_file():
        raise SystemExit(f"{checkout} holds no {RECIPE}/zipformer.py: give a checkout of icefall")
    try:
        importlib.import_module("k2")
    except ImportError:
        sys.modules["k2"] = _k2_stand_in()
    sys.modules.update(_icefall_stand_in())
    sys.path.insert(0, str(folder))


class IcefallEncoder(nn.Module):
    """icefall's front end and Zipformer2, called as our `Zipformer` is; names of weights agree."""

    def __init__(self, config: ZipformerConfig) -> None:
        super().__init__()
        scaling = importlib.import_module("scaling")
        subsampling = importlib.import_module("subsampling")
        zipformer = importlib.import_module("zipformer")
        self.encoder_embed = subsampling.Conv2dSubsampling(
            config.feature_dim,
            config.encoder_dim[0],
            layer1_channels=config.embed_channels[0],
            layer2_channels=config.embed_channels[1],
            layer3_channels=config.embed_channels[2],
            dropout=scaling.ScheduledFloat((0.0, 0.3), (20000.0, 0.1)),
        )
        named = config.to_dict()
        for key in ("feature_dim", "embed_channels", "frontend_pad"):
            del named[key]
        self.encoder = zipformer.Zipformer2(
            **{key: tuple(v) if isinstance(v, list) else v for key, v in named.items()}
        )
        self._scheduled = scaling.ScheduledFloat

    def set_count(self, count: float) -> None:
        """Moves the schedules; what icefall's training script does once a batch."""
        for name, module in self.named_modules():
            if isinstance(module, self._scheduled):
                module.batch_count = count
            module.name = name

    def forward(self, fbank: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes (B, T, M) with valid frames (B,) to (B, T', D) with valid frames (B,)."""
        x, lens = self.encoder_embed(fbank, lens)
        padding = torch.arange(x.shape[1], device=x.device) >= lens.unsqueeze(1)
        output, lens = self.encoder(x.permute(1, 0, 2), lens, padding)
        return output.permute(1, 0, 2), lens


def twin_of(model: Zipformer) -> IcefallEncoder:
    """Returns icefall's encoder with the weights of ours."""
    twin = IcefallEncoder(model.config)
    known = twin.state_dict().keys()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if k in known})
    return twin


@contextmanager
def plain_gradients() -> Iterator[None]:
    """Leaves icefall's gradients as they follow from the outputs.

    Its balancers and whitening act in evaluation, too, where there are gradients; and derivatives
    of Swoosh that were kept in one byte are not exact.
    """
    scaling, zipformer = (importlib.import_module(name) for name in ("scaling", "zipformer"))
    k2 = sys.modules["k2"]
    changed = [
        (scaling.Balancer, "forward", lambda self, x: x),
        (scaling.Whiten, "forward", lambda self, x: x),
        (scaling.ScaleGrad, "forward", lambda self, x: x),
        (zipformer, "penalize_abs_values_gt", lambda x, *_, **__: x),
        (k2, "swoosh_l", k2.swoosh_l_forward),
        (k2, "swoosh_r", k2.swoosh_r_forward),
    ]
    before = [getattr(owner, name) for owner, name, _ in changed]
    for owner, name, function in changed:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name, _), function in zip(changed, before, strict=True):
            setattr(owner, name, function)
