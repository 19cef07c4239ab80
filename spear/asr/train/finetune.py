"""`spear finetune-asr`: an encoder and transcribed shards in, a recogniser's run folder out.

What the encoder starts from says `spear.finetune.config`. The run folder holds all that decoding
needs: configuration, tokenizer, checkpoints.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from spear.asr.loading import TOKENIZER_FOLDER, build_model, find_tokenizer
from spear.asr.model import AsrModel
from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.asr.train.data import AsrData, AsrDataConfig, TranscribedCuts
from spear.asr.train.task import AsrTask
from spear.asr.train.transcripts import check_transcripts
from spear.asr.transducer import TransducerConfig
from spear.errors import ConfigError
from spear.finetune.config import FinetuneConfig, num_million_parameters
from spear.system.files import remove_partials
from spear.system.progress import get_logger

logger = get_logger(__name__)


@dataclass
class FinetuneAsrConfig(FinetuneConfig):
    """Fine-tunes an encoder for speech recognition."""

    data: AsrDataConfig = field(default_factory=AsrDataConfig)
    """Recordings to train and validate on."""
    output_downsampling_factor: Literal[1, 2] | None = None
    """1: CTC at 50 frames a second; 2: at 25; none: as the encoder was pre-trained."""
    layers: str = "last"
    """What the head reads of the encoder: "last" (its output), "weighted" (a learned sum of all
    layers), or a layer's number, 0 for the front end."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How transcripts become tokens; trained on the training transcripts."""
    tokenizer_from: str | None = None
    """Run folder whose tokenizer is taken as it is, instead of training one."""
    head: Literal["ctc", "transducer"] = "ctc"
    """"ctc", or "transducer": the stateless transducer, with CTC as its second head."""
    transducer: TransducerConfig = field(default_factory=TransducerConfig)
    """Sizes and losses of the transducer."""
    ctc_dropout: float = 0.1
    """Probability of dropout before the last layer."""

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        super().__post_init__()
        if not 0.0 <= self.ctc_dropout < 1.0:
            raise ConfigError(f"ctc_dropout is {self.ctc_dropout}: 0 or more and below 1, please")
        if self.tokenizer_from is not None and self.tokenizer != TokenizerConfig():
            raise ConfigError("tokenizer_from brings its own settings: leave out tokenizer")


def run(config: FinetuneAsrConfig) -> None:
    """Fine-tunes; the same command again goes on with an interrupted run.

    Raises:
        DataError: Shards or transcripts are missing.
        CheckpointError: `init` cannot be loaded, or no checkpoint of the run is intact.
        ConfigError: Values do not fit the data, or the run folder holds another run.
    """
    config.fit(build_task(config))


def build_task(config: FinetuneAsrConfig) -> AsrTask:
    """Builds model and data, and puts the tokenizer into the run folder."""
    student = config.architecture()
    if config.output_downsampling_factor is not None:
        factor = config.output_downsampling_factor
        student = replace(student, output_downsampling_factor=factor)
    cuts = TranscribedCuts(config.data.train, "train", config.data.skip_untranscribed)
    tokenizer = prepare_tokenizer(
        Path(config.train.output_dir) / TOKENIZER_FOLDER,
        cuts.texts,
        config.tokenizer,
        config.tokenizer_from,
    )
    torch.manual_seed(config.train.seed)  # every rank starts from the same weights
    model = build_model(
        student,
        tokenizer,
        config.transducer if config.head == "transducer" else None,
        dropout=config.ctc_dropout,
        layers=config.layers,
        consistency_weight=config.data.consistency.weight,
    )
    config.start_model(model)
    data = AsrData(
        config.data,
        cuts,
        tokenizer=tokenizer,
        num_mel_bins=student.feature_dim,
        seed=config.train.seed,
        pin=config.pins_memory,
    )
    _log_sizes(cuts, tokenizer, model)
    check_transcripts(cuts, tokenizer, model.encoder.num_output_frames).log()
    return AsrTask(model, data, config.encoder_start())


def prepare_tokenizer(
    folder: Path, texts: list[str], config: TokenizerConfig, source: str | None = None
) -> Tokenizer:
    """Trains or loads the tokenizer, and stores it or compares it with the stored one.

    Training is deterministic, so every rank has the same tokenizer without waiting for another.

    Args:
        folder: Where the run keeps it.
        texts: Training transcripts.
        config: How to train it.
        source: Run folder from which to take it instead.

    Raises:
        ConfigError: The folder holds the tokenizer of other transcripts or another configuration;
            going on would give ids another meaning.
        CheckpointError: `source` has no tokenizer.
    """
    if source is None:
        tokenizer = Tokenizer.train(texts, config)
    else:
        tokenizer = Tokenizer.load(find_tokenizer(Path(source)))
    if folder.is_dir():
        stored = Tokenizer.load(folder)
        if stored.sha256 != tokenizer.sha256 or stored.config != tokenizer.config:
            raise ConfigError(
                f"{folder} was trained on other transcripts or with another tokenizer "
                "configuration: choose another train.output_dir"
            )
    elif os.environ.get("RANK", "0") == "0":
        remove_partials(folder.parent)
        tokenizer.save(folder)
    return tokenizer


def _log_sizes(cuts: TranscribedCuts, tokenizer: Tokenizer, model: AsrModel) -> None:
    logger.info(
        "%d training cuts, %.2f h, %d tokens; %.2f M parameters",
        len(cuts),
        sum(cuts.durations) / 3600,
        tokenizer.vocab_size,
        num_million_parameters(model),
    )
