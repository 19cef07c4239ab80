"""Weights, loaded strictly: every name and shape must agree, or an error lists what does not."""

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
    missing, unexpected = own.keys() - state_dict.keys(), state_dict.keys() - own.keys()
    check_fit(source, missing, unexpected, _other_shapes(own, state_dict))
    module.load_state_dict(state_dict)


def check_fit(
    source: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    of_another_shape: Iterable[str],
) -> None:
    """Refuses weights with names that do not fit, whoever compared them.

    Raises:
        CheckpointError: There is such a name; it lists them.
    """
    problems = [
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed("of another shape", of_another_shape),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(found)}")


def num_parameters(module: nn.Module) -> int:
    """Returns how many numbers a module has learned."""
    return sum(parameter.numel() for parameter in module.parameters())


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
