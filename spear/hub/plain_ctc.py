"""Which recognisers are an encoder with one linear layer for CTC, all that others can run."""

from pathlib import Path

from spear.asr.model import AsrModel
from spear.errors import ConfigError
from spear.system.progress import get_logger

logger = get_logger(__name__)


def check_plain_ctc(model: AsrModel, folder: Path) -> None:
    """Refuses a recogniser whose CTC head does not read the encoder's output.

    Of a transducer others run the CTC head alone, which is said.

    Raises:
        ConfigError: The head reads a mixture of layers, or one of them, or was never trained.
    """
    if not model.has_ctc:
        raise ConfigError(f"{folder}: this transducer was trained without CTC: no head to export")
    if model.layer_mix is not None:
        raise ConfigError(
            f"{folder}: the recogniser reads inner layers of its encoder (layers), which an export "
            "does not hold; fine-tune with layers last to export it"
        )
    if any(name.startswith("joiner.") for name in model.state_dict()):
        logger.warning("%s: transformers and ONNX run only the CTC head of this transducer", folder)
