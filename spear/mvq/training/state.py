"""The state of a training on disk, so that it survives being stopped at any moment."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spear.errors import CheckpointError, ConfigError
from spear.mvq.training.alternation import Alternation, Round
from spear.system.distributed import Ranks
from spear.system.files import atomic_path

_FORMAT = "spear-quantizer-training-1"


class TrainingState:
    """Saves an alternation now and then, and loads it again.

    Args:
        path: The file; None to keep nothing.
        made_from: What the state depends on beside itself; must be the same when it is loaded.
        ranks: The processes; the first of them writes.
        every_s: Seconds between two savings.
    """

    def __init__(
        self, path: Path | None, made_from: Mapping[str, object], ranks: Ranks, every_s: float
    ) -> None:
        self.path, self.ranks, self.every_s = path, ranks, every_s
        # As text and back: what was a tuple is a list on both sides.
        self.made_from = json.loads(json.dumps(made_from))
        self._last = time.monotonic()

    def load_into(self, alternation: Alternation) -> list[Round]:
        """Loads the state where there is one; returns how the rounds so far ended.

        Raises:
            ConfigError: It is that of another training.
            CheckpointError: The file is broken.
        """
        if self.path is None or not self.ranks.broadcast_int(self.path.exists()):
            return []
        try:
            with safe_open(str(self.path), "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header.get("format") != _FORMAT:
                raise CheckpointError(f"{self.path} is of another version: remove it to start anew")
            made_from = json.loads(header["made_from"])
            history = [Round(**one) for one in json.loads(header["history"])]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} is broken ({error}): remove it to start anew"
            ) from error
        if made_from != self.made_from:
            names = sorted(
                name
                for name in made_from.keys() | self.made_from.keys()
                if made_from.get(name) != self.made_from.get(name)
            )
            raise ConfigError(
                f"{self.path} holds an unfinished training that differs in {', '.join(names)}: "
                "finish it with the settings it began with, or remove it to start anew"
            )
        alternation.load_state(tensors)
        return history

    def save_when_due(self, alternation: Alternation, history: list[Round]) -> None:
        """Saves when the time has come, but not at the end: the quantiser is near."""
        if self.path is None or not self.ranks.is_main:
            return
        if time.monotonic() - self._last < self.every_s or alternation.is_done:
            return
        tensors = {name: tensor.cpu().contiguous() for name, tensor in alternation.state().items()}
        header = {
            "format": _FORMAT,
            "made_from": json.dumps(self.made_from),
            "history": json.dumps([asdict(one) for one in history]),
        }
        with atomic_path(self.path) as partial:
            save_file(tensors, str(partial), metadata=header)
        self._last = time.monotonic()
