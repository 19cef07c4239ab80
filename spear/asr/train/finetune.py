"""`spear finetune-asr`: an encoder and transcribed shards in, a recogniser's run folder out.

The encoder comes from an export (`init`), or has an export's architecture with fresh weights
(`init_config`, for a baseline with the same budget), or is described here (`student`). The run
folder holds all that decoding needs: configuration, tokenizer, checkpoints.
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
from spear.config import to_dict
from spear.encoders.loading import from_pretrained
from spear.errors import ConfigError
from spear.finetune.encoder import EncoderStart, load_encoder, resolve_student
from spear.system.files import remove_partials
from spear.system.progress import get_logger
from spear.training import TrainConfig, train
from spear.zipformer import ZipformerConfig

logger = get_logger(__name__)


@dataclass
class FinetuneAsrConfig:
    """Fine-tunes an encoder for speech recognition."""

    data: AsrDataConfig = field(default_factory=AsrDataConfig)
    """Recordings to train and validate on."""
    init: str | None = None
    """Export folder or hub id whose weights the encoder starts from; none: fresh weights."""
    init_config: str | None = None
    """Export folder or hub id whose architecture is taken, without its weights; instead of `init`
    and `student`."""
    student: ZipformerConfig = field(default_factory=ZipformerConfig)
    """The encoder's architecture; used where neither `init` nor `init_config` is given."""
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
    freeze_encoder_steps: int = 2000
    """Steps during which only the head is trained; without `init` the encoder is never frozen."""
    encoder_lr_scale: float = 0.05
    """Factor on the encoder's learning rate; without `init` it is 1."""
    schedule_offset: float = 100_000.0
    """Where the encoder's schedules (dropout, layer skip, balancers) begin, in units of
    `train.schedule_unit_s`: a pre-trained encoder has left their steep part behind. Without `init`
    they begin at 0."""
    profile: bool = False
    """Trace 20 steps with torch's profiler into the run folder's profile/; `--profile` will do."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long and how fast to train, and the run folder."""

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        if self.init is not None and self.init_config is not None:
            raise ConfigError("give either init (with weights) or init_config (without), not both")
        if not 0.0 <= self.ctc_dropout < 1.0:
            raise ConfigError(f"ctc_dropout is {self.ctc_dropout}: 0 or more and below 1, please")
        if self.tokenizer_from is not None and self.tokenizer != TokenizerConfig():
            raise ConfigError("tokenizer_from brings its own settings: leave out tokenizer")
        self.encoder_start()

    def encoder_start(self) -> EncoderStart:
        """Returns how the encoder is treated."""
        start = EncoderStart(self.freeze_encoder_steps, self.encoder_lr_scale, self.schedule_offset)
        return EncoderStart() if self.init is None else start


def run(config: FinetuneAsrConfig) -> None:
    """Fine-tunes; the same command again goes on with an interrupted run.

    Raises:
        DataError: Shards or transcripts are missing.
        CheckpointError: `init` cannot be loaded, or no checkpoint of the run is intact.
        ConfigError: Values do not fit the data, or the run folder holds another run.
    """
    train(build_task(config), config.train, to_dict(config), profile=config.profile)


def build_task(config: FinetuneAsrConfig) -> AsrTask:
    """Builds model and data, and puts the tokenizer into the run folder."""
    student = resolve_student(config.init, config.init_config, config.student)
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
    if config.init is not None:
        load_encoder(model, from_pretrained(config.init).model.state_dict(), config.init)
    data = AsrData(
        config.data,
        cuts,
        tokenizer=tokenizer,
        num_mel_bins=student.feature_dim,
        seed=config.train.seed,
        pin=config.train.device != "cpu" and torch.cuda.is_available(),
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
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
    )
