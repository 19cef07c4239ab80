"""Transcripts to token ids and back: sentencepiece characters or byte-pair pieces.

A tokenizer is trained from the transcripts of the training data, depends on nothing but these
transcripts and its configuration (not on their order), and lies in the run folder as
`tokenizer/model.spm` with the configuration beside it, so that decoding normalises and splits text
exactly as training did. Id 0 is CTC's blank, id 1 (of icefall's models 2) stands for characters
that training never saw.
"""

import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from spear.asr.ctc import BLANK_ID
from spear.errors import CheckpointError, ConfigError, DataError
from spear.system.files import atomic_folder
from spear.system.optional import require

UNKNOWN_ID = 1  # of tokenizers that are trained here
UNKNOWN_TEXT = "\N{REPLACEMENT CHARACTER}"
BLANK_PIECE = "<blk>"
WORD_BEGIN = "\N{LOWER ONE EIGHTH BLOCK}"
"""Where a word begins in a token, or between words where tokens are characters."""
MODEL_FILE = "model.spm"
CONFIG_FILE = "tokenizer.json"
MAX_LINE_BYTES = 1 << 20  # sentencepiece leaves out longer transcripts without saying so
# Marks inside a word belong to it: "don't", "mother-in-law".
_IN_WORD = re.compile(r"(?<=\w)['\N{RIGHT SINGLE QUOTATION MARK}-](?=\w)")


@dataclass
class TokenizerConfig:
    """How transcripts are normalised and split into tokens."""

    model_type: Literal["char", "bpe"] = "char"
    """"char": one token per character; "bpe": byte-pair encoding (sentencepiece)."""
    vocab_size: int = 500
    """Tokens of a "bpe" model, with blank and unknown; a "char" model takes all characters."""
    case: Literal["none", "upper", "lower"] = "none"
    """What happens to the case of transcripts, in training and in scoring."""
    strip_punctuation: bool = False
    """Whether punctuation goes away; apostrophes and hyphens inside words stay."""


def normalize(text: str, config: TokenizerConfig) -> str:
    """Brings a transcript to the form that is trained on and scored.

    Unicode is composed (NFC), white space becomes single spaces, case and punctuation follow the
    configuration.
    """
    text = unicodedata.normalize("NFC", text)
    if config.strip_punctuation:
        text = _strip_punctuation(text)
    if config.case == "upper":
        text = text.upper()
    elif config.case == "lower":
        text = text.lower()
    return " ".join(text.split())


def _strip_punctuation(text: str) -> str:
    inside = {match.start() for match in _IN_WORD.finditer(text)}
    return "".join(
        letter if position in inside or not unicodedata.category(letter).startswith("P") else " "
        for position, letter in enumerate(text)
    )


class Tokenizer:
    """A trained tokenizer.

    Attributes:
        config: How it normalises and splits.
        vocab_size: Number of ids, with blank (0) and unknown.
        unknown_id: The id of characters that training never saw.
        model_bytes: The sentencepiece model as it lies on disk.
    """

    def __init__(self, model_bytes: bytes, config: TokenizerConfig) -> None:
        """Wraps a serialised sentencepiece model.

        Raises:
            CheckpointError: The bytes are no sentencepiece model whose id 0 is the blank.
        """
        spm = require("sentencepiece", "the ASR tokenizer")
        self.config = config
        self.model_bytes = model_bytes
        self._processor = spm.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_bytes)
        except RuntimeError as error:
            raise CheckpointError(f"this is no sentencepiece model: {error}") from error
        self.vocab_size = int(self._processor.GetPieceSize())
        self.unknown_id = int(self._processor.unk_id())
        if self.piece(BLANK_ID) != BLANK_PIECE:
            raise CheckpointError(
                f"the sentencepiece model has {self.piece(BLANK_ID)!r} at id 0, where the blank "
                f"{BLANK_PIECE} must be: take one that `spear finetune-asr` or icefall trained"
            )

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
        """Trains on transcripts; the result does not depend on their order.

        Args:
            texts: Transcripts as they stand in the data.
            config: How to normalise and split.

        Raises:
            DataError: There is no text.
            ConfigError: `vocab_size` does not fit the text; the message names what does.
        """
        spm = require("sentencepiece", "the ASR tokenizer")
        lines = sorted(line for line in (normalize(text, config) for text in texts) if line)
        if not lines:
            raise DataError("no transcript has any text: a tokenizer cannot be trained")
        model = io.BytesIO()
        try:
            spm.SentencePieceTrainer.Train(
                sentence_iterator=iter(lines), model_writer=model, **_trainer_options(config)
            )
        except RuntimeError as error:
            raise _training_error(error, lines, config) from error
        return cls(model.getvalue(), config)

    def encode(self, text: str) -> list[int]:
        """Normalises a transcript and gives its ids; what was never seen becomes `unknown_id`."""
        ids: list[int] = self._processor.EncodeAsIds(normalize(text, self.config))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Gives the text of ids; blanks vanish, unknown becomes the replacement character.

        Raises:
            ValueError: An id is negative or not below `vocab_size`.
        """
        if any(not 0 <= index < self.vocab_size for index in ids):
            raise ValueError(f"token ids must lie in 0 .. {self.vocab_size - 1}, got {list(ids)}")
        return self.join([self.piece(int(index)) for index in ids if index != BLANK_ID])

    def join(self, pieces: Sequence[str]) -> str:
        """Gives the text of tokens as `piece` writes them, without spaces around it."""
        return " ".join(self._processor.DecodePieces(list(pieces)).split())

    @property
    def has_spaces(self) -> bool:
        """Whether there are words with spaces between them."""
        return any(WORD_BEGIN in piece for piece in self.vocabulary)

    @property
    def vocabulary(self) -> list[str]:
        """The text of every token by id, for who decodes without sentencepiece."""
        pieces = [self.piece(index) for index in range(self.vocab_size)]
        pieces[self.unknown_id] = UNKNOWN_TEXT
        return pieces

    @property
    def separator(self) -> int | None:
        """The token between words, where it is one of its own; None where words bring theirs.

        That is so with characters, unless no transcript had two words.
        """
        if self.config.model_type != "char" or WORD_BEGIN not in self.vocabulary:
            return None
        return self.vocabulary.index(WORD_BEGIN)

    def piece(self, index: int) -> str:
        """Returns how a token is written, e.g. "\N{LOWER ONE EIGHTH BLOCK}THE"."""
        piece: str = self._processor.IdToPiece(index)
        return piece

    @property
    def sha256(self) -> str:
        """SHA-256 of the model, as hexadecimal text: weights fit the tokenizer they came with."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @classmethod
    def from_sentencepiece(cls, path: Path | str) -> "Tokenizer":
        """Takes a sentencepiece model that was trained elsewhere, icefall's `bpe.model` say.

        Raises:
            CheckpointError: There is no such file, or its id 0 is not the blank.
        """
        try:
            model_bytes = Path(path).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        try:
            tokenizer = cls(model_bytes, TokenizerConfig("bpe"))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        tokenizer.config = TokenizerConfig("bpe", tokenizer.vocab_size)
        return tokenizer

    def save(self, folder: Path | str) -> None:
        """Writes model and configuration into a folder of their own, whole or not at all."""
        with atomic_folder(Path(folder)) as partial:
            (partial / MODEL_FILE).write_bytes(self.model_bytes)
            content = {"sha256": self.sha256, **asdict(self.config)}
            (partial / CONFIG_FILE).write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Reads what `save` wrote.

        Raises:
            CheckpointError: A file is missing or broken.
        """
        folder = Path(folder)
        try:
            content: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
            model_bytes = (folder / MODEL_FILE).read_bytes()
            expected = content.pop("sha256")
            config = TokenizerConfig(**content)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder} is no tokenizer folder, {Path(error.filename).name} is missing: "
                "give the run folder of `spear finetune-asr`"
            ) from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{folder / CONFIG_FILE} cannot be read: {error}") from error
        if hashlib.sha256(model_bytes).hexdigest() != expected:
            raise CheckpointError(f"{folder / MODEL_FILE} is not the file that was written there")
        return cls(model_bytes, config)


def _trainer_options(config: TokenizerConfig) -> dict[str, Any]:
    is_char = config.model_type == "char"
    return {
        "model_type": config.model_type,
        # The text is normalised before; a second, hidden normalisation would change references.
        "normalization_rule_name": "identity",
        "character_coverage": 1.0,
        "max_sentence_length": MAX_LINE_BYTES,
        "input_sentence_size": 0,
        "shuffle_input_sentence": False,
        "num_threads": 1,
        "pad_id": BLANK_ID,
        "pad_piece": BLANK_PIECE,
        "unk_id": UNKNOWN_ID,
        "unk_surface": UNKNOWN_TEXT,
        "bos_id": -1,
        "eos_id": -1,
        "minloglevel": 2,
        # A leading space would be a label without any sound of its own where pieces are characters.
        "add_dummy_prefix": not is_char,
        **({"use_all_vocab": True} if is_char else {"vocab_size": config.vocab_size}),
    }


def _training_error(error: RuntimeError, lines: list[str], config: TokenizerConfig) -> ConfigError:
    """Says in the configuration's terms what sentencepiece says in its own."""
    message = " ".join(str(error).split())
    asked = f"tokenizer.vocab_size {config.vocab_size}"
    if limit := re.search(r"value <= (\d+)", message):
        return ConfigError(
            f"{asked} is too large for {len(lines)} transcripts: "
            f'use at most {limit[1]}, or tokenizer.model_type "char"'
        )
    if smaller := re.search(r"smaller than required_chars\.? *\d+ vs (\d+)", message):
        return ConfigError(
            f"{asked} is too small for the characters of the transcripts: use at least {smaller[1]}"
        )
    return ConfigError(f"sentencepiece cannot train with {asked}: {message}")
