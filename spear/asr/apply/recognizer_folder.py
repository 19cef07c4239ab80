"""A recogniser as a folder of its own, without the run that trained it.

    recognizer.json      what rebuilds the model, where it comes from, checksum of the weights
    model.safetensors    all weights
    tokenizer/           what the ids mean

`load_asr_model` reads it as it reads a run; `spear export --layout recognizer` and
`spear import-icefall --bpe_model FILE` write it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from spear import __version__
from spear.asr.loading import RECOGNIZER_FILE, RECOGNIZER_WEIGHTS, TOKENIZER_FOLDER
from spear.asr.model import AsrModel
from spear.system.files import atomic_folder, sha256_of, write_json


def write_recognizer(model: AsrModel, output: Path, origin: Mapping[str, Any]) -> None:
    """Writes a recogniser; an existing folder is replaced when the new one is complete.

    Args:
        model: What to write.
        output: The folder.
        origin: Where the weights come from; kept in `recognizer.json`.
    """
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    with atomic_folder(output) as folder:
        model.tokenizer.save(folder / TOKENIZER_FOLDER)
        save_file(state, folder / RECOGNIZER_WEIGHTS, metadata={"format": "pt"})
        record = {
            "spear_version": __version__,
            **model.model_config(),
            "origin": dict(origin),
            "weights_sha256": sha256_of(folder / RECOGNIZER_WEIGHTS),
        }
        write_json(folder / RECOGNIZER_FILE, record)
