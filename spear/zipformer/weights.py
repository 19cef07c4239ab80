"""Loading weights strictly: every name and shape must agree, or an error lists what does not."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from spear.errors import CheckpointError

_SHOWN = 8


def load_exact(module: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Copies weights into a module, or leaves it as it was.

    Args:
        module: Where to.
        state_dict: Weights by the module's own names.
        source: Where they come from, for the message.

    Raises:
        CheckpointError: Names are missing or unexpected, or shapes differ; it lists them.
    """
    own = module.state_dict()
    problems = [
        _listed("missing", own.keys() - state_dict.keys()),
        _listed("unexpected", state_dict.keys() - own.keys()),
        _listed("of another shape", _other_shapes(own, state_dict)),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(found)}")
    module.load_state_dict(state_dict)


def _other_shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if own[name].shape != given[name].shape
    ]


def _listed(label: str, names: Iterable[str]) -> str:
    ordered = sorted(names)
    if not ordered:
        return ""
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"{len(ordered)} {label}: {', '.join(ordered[:_SHOWN])}{more}"
