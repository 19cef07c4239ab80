"""Optional packages: imported where they are used, with an install command when missing."""

import importlib
from types import ModuleType

from spear.errors import MissingPackageError


def require(module: str, purpose: str, package: str | None = None) -> ModuleType:
    """Imports `module`, or says how to install it.

    Args:
        module: Dotted name to import, e.g. "transformers".
        purpose: What needs it, e.g. "the WavLM teacher".
        package: Name on the package index, if it differs from the top-level module.

    Raises:
        MissingPackageError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.split(".", maxsplit=1)[0]
        raise MissingPackageError(
            f"{purpose} needs the package {name!r}: pip install {name} ({error})"
        ) from error
