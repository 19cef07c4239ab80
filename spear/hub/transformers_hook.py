"""Registers our classes with transformers as soon as somebody imports it, and not before.

The import of transformers takes seconds, which most users of `spear.hub` have no need to wait for.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_transformers() -> None:
    """Imports `spear.hub.hf`, which registers, now or behind the first import of transformers."""
    if "transformers" in sys.modules:
        importlib.import_module("spear.hub.hf")
    else:
        sys.meta_path.insert(0, _TransformersFinder())


class _TransformersFinder(MetaPathFinder):
    """Lets the other finders find transformers, and adds to what its import does."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            setattr(loader, "exec_module", partial(self._load, loader.exec_module))  # noqa: B010
        return spec

    def _load(self, exec_module: Callable[[ModuleType], None], module: ModuleType) -> None:
        # Not before: many packages ask whether there is a transformers, and do not import it.
        sys.meta_path.remove(self)
        exec_module(module)
        importlib.import_module("spear.hub.hf")
