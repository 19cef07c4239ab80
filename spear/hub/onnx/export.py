"""`spear export-onnx`: an encoder or a recogniser as ONNX files, for onnxruntime and sherpa-onnx.

The folder holds the model in float32 and with 8-bit weights, the tokens of a recogniser, and a
README that says what goes in and out. Every file is run beside the model before it is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spear import __version__
from spear.asr.ctc import BLANK_ID
from spear.audio.checks import FRAME_HOP
from spear.audio.fbank import HIGH_HZ, LOW_HZ, SAMPLE_RATE_HZ
from spear.errors import CheckpointError
from spear.hub.onnx.check import Difference, measure_difference
from spear.hub.onnx.graph import write_int8, write_onnx
from spear.hub.onnx.readme import readme
from spear.hub.onnx.source import OnnxSource, load_source
from spear.system.files import atomic_folder
from spear.system.optional import require
from spear.system.progress import get_logger

logger = get_logger(__name__)

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOKENS_FILE = "tokens.txt"
OWNED = ("*.onnx", "*.onnx.data", "README.md", TOKENS_FILE)
"""What a folder holds that an export may replace."""
_BLANK = "<blk>"
_MAX_RELATIVE_ERROR = 1e-3


@dataclass
class ExportOnnxConfig:
    """Writes an encoder or a speech recogniser as ONNX files."""

    model: str
    """Model folder (or hub id), a recogniser's or an encoder's, or run of `spear finetune-asr`."""
    output_dir: str
    """Folder to write; an earlier export in it is replaced when the new one is complete, anything
    else is not."""
    int8: bool = True
    """Whether to write the model with 8-bit weights, too: a quarter of the size, 1.4 to 2 times as
    fast on CPUs, a little less exact."""
    weights: str = "averaged"
    """Which of a run's weights: "averaged" (over the later half of the run), "averaged:SHARE"
    (over its last share, e.g. averaged:0.25), "last", "average_last:K" (mean of K checkpoints).
    A model folder has one kind."""


def run(config: ExportOnnxConfig) -> None:
    """Exports a model.

    Raises:
        CheckpointError: There is no such model, or the file does not give its numbers.
        MissingPackageError: onnx, onnxscript or onnxruntime is not installed.
    """
    for package in PACKAGES:
        require(package, "spear export-onnx")
    source = load_source(config.model, config.weights)
    output = Path(config.output_dir)
    with atomic_folder(output, OWNED) as folder:
        path = folder / f"{source.stem}.onnx"
        logger.info("exporting %s: a minute or two for a large model", config.model)
        write_onnx(source.graph, path, source.outputs, metadata(source))
        differences = {path.name: _checked(source, path)}
        if config.int8:
            small = folder / f"{source.stem}.int8.onnx"
            write_int8(path, small)
            differences[small.name] = measure_difference(source.graph, small)
        if source.vocabulary is not None:
            (folder / TOKENS_FILE).write_text(token_lines(source.vocabulary), encoding="utf-8")
        text = readme(output.name, source, differences)
        (folder / "README.md").write_text(text, encoding="utf-8")
    for name, difference in differences.items():
        logger.info("%s: relative error %.1e", output / name, difference.relative)


def metadata(source: OnnxSource) -> dict[str, str]:
    """Returns the properties that a file carries: what sherpa-onnx asks for, and the features."""
    config = source.config
    task = "encoder" if source.vocabulary is None else "CTC"
    return {
        "model_type": "spear_encoder" if source.vocabulary is None else "zipformer2_ctc",
        "version": "1",
        "model_author": f"spear {__version__}",
        "comment": f"non-streaming zipformer2 {task}",
        "sample_rate": str(SAMPLE_RATE_HZ),
        "feature_dim": str(config.feature_dim),
        "feature_low_hz": f"{LOW_HZ:g}",
        "feature_high_hz": f"{HIGH_HZ:g}",
        "frame_rate_hz": str(SAMPLE_RATE_HZ // FRAME_HOP // config.output_downsampling_factor),
    }


def token_lines(vocabulary: Sequence[str]) -> str:
    """Returns a vocabulary as sherpa-onnx reads it: one token and its id a line, the blank first.

    A space within a token becomes the mark of one, since spaces part a line.
    """
    tokens = [token.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}") for token in vocabulary]
    tokens[BLANK_ID] = _BLANK
    return "".join(f"{token} {index}\n" for index, token in enumerate(tokens))


def _checked(source: OnnxSource, path: Path) -> Difference:
    difference = measure_difference(source.graph, path)
    if not difference.relative < _MAX_RELATIVE_ERROR:
        raise CheckpointError(
            f"the ONNX file of {source.stem} differs from the model by {difference.relative:.1e} "
            "of its output: install the versions of torch, onnx and onnxscript that "
            "requirements.txt names and export again"
        )
    return difference
