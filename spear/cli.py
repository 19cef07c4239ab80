"""`spear COMMAND`: one command per stage, each a thin call into the package.

The table below is the whole command line: a command is the function `run` of a module, and the
class of its `config` says which options there are. Modules are imported when their command runs, so
`spear --help` is quick and optional packages stay optional.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from spear import __version__
from spear.config import parse_config
from spear.errors import SpearError
from spear.system.ledger import recording
from spear.system.progress import setup_logging

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
PLACE_ERRORS = (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What the system says of a path at which there is something else than a command needs."""
_WITHOUT_VALUE = ("--help", "--print_config")


@dataclass(frozen=True)
class Command:
    """Where a command lives and what it is for.

    `positional` names the fields of leading words without `--`, `listed` the one field that takes
    all plain words, wherever they stand, `ledger` the field that names the folder whose compute
    ledger the command adds to ("output/.." is the folder around a file).
    """

    module: str
    summary: str
    positional: tuple[str, ...] = ()
    listed: str | None = None
    ledger: str = ""

    def load(self) -> tuple[Callable[[Any], None], type[Any]]:
        """Imports the module; returns its function and the class of what that takes."""
        run = importlib.import_module(self.module).run
        return run, get_type_hints(run)["config"]


COMMANDS = {
    "unpack": Command(
        "spear.data.corpus.unpack",
        "archives -> folders of recordings",
        listed="archives",
        ledger="output_dir",
    ),
    "prepare": Command(
        "spear.data.corpus.prepare", "folder of recordings -> cuts", ledger="output_dir"
    ),
    "shard": Command(
        "spear.data.corpus.shard", "cuts -> shards of 16 kHz audio", ledger="output_dir"
    ),
    "embed": Command("spear.data.tokens.embed", "sample of a teacher's frames", ledger="output/.."),
    "train-quantizer": Command(
        "spear.mvq.command", "sample of frames -> MVQ quantiser", ledger="output/.."
    ),
    "extract-tokens": Command(
        "spear.data.tokens.extract", "shards -> teachers' tokens", ledger="shards"
    ),
    "verify": Command("spear.data.verify.command", "checks shards and tokens", ledger="shards"),
    "index": Command(
        "spear.data.index.command",
        "shard folders -> where every clip lies",
        listed="shards",
        ledger="shards",
    ),
    "bench": Command(
        "spear.pretrain.bench", "how fast a run's data are read", positional=("what",)
    ),
    "pretrain": Command(
        "spear.pretrain.command", "shards + tokens -> student", ledger="train.output_dir"
    ),
    "export": Command("spear.hub.export", "run folder -> model folder", ledger="run_dir"),
    "export-onnx": Command(
        "spear.hub.onnx.export",
        "model folder or recogniser's run -> ONNX files",
        ledger="output_dir/..",
    ),
    "import-icefall": Command(
        "spear.hub.icefall.command", "icefall checkpoint -> model folder", ledger="output_dir/.."
    ),
    "finetune-asr": Command(
        "spear.asr.train.finetune", "model -> speech recogniser", ledger="train.output_dir"
    ),
    "decode": Command(
        "spear.asr.apply.decode", "recogniser -> text, word error rate", ledger="run_dir"
    ),
    "finetune-tagging": Command(
        "spear.tagging.finetune", "model -> tagger of sounds", ledger="train.output_dir"
    ),
    "evaluate-tagging": Command(
        "spear.tagging.evaluate", "tagger -> mAP, a table of classes", ledger="run_dir"
    ),
    "tag": Command(
        "spear.tagging.tag", "recordings -> their most probable classes", listed="files"
    ),
    "transcribe": Command(
        "spear.asr.apply.transcribe_files",
        "recordings -> text, JSON, subtitles",
        listed="files",
        ledger="out",
    ),
    "report": Command(
        "spear.report.command", "run or exp folders -> one HTML page", listed="folders"
    ),
    "embed-files": Command(
        "spear.hub.embed_files", "recordings -> features", listed="files", ledger="out"
    ),
    "view": Command(
        "spear.view.command",
        "recording -> pictures of what a model makes of it",
        positional=("file",),
    ),
    "info": Command(
        "spear.hub.info",
        "quantizer FILE | model FOLDER | tokens FILE: what it is",
        positional=("kind", "path"),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0, 2 for a user's error, 130 for Ctrl-C, 141 where nobody reads the output any more.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())  # noqa: T201
        return 0 if words else EXIT_USER_ERROR
    if words[0] == "--version":
        print(f"spear {__version__}")  # noqa: T201
        return 0
    setup_logging()
    try:
        return _run(words[0], words[1:])
    except (SpearError, *PLACE_ERRORS) as error:
        advice = ": choose another path" if isinstance(error, PLACE_ERRORS) else ""
        print(f"spear: error: {error}{advice}", file=sys.stderr)  # noqa: T201
        return EXIT_USER_ERROR
    except BrokenPipeError:  # the reader has enough, as `head` has; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("spear: interrupted; the same command goes on from here", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED


def _run(name: str, options: list[str]) -> int:
    if name not in COMMANDS:
        raise SpearError(f"unknown command {name!r}; known: {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    run, config_class = command.load()
    options, plain = split_words(options) if command.listed else (options, [])
    words = _name_positionals(options, command.positional)
    config = parse_config(config_class, words, prog=f"spear {name}")
    if command.listed:
        getattr(config, command.listed).extend(plain)
    with recording(name, config, command.ledger):
        run(config)
    sys.stdout.flush()  # a reader that has gone is noticed here, not while Python ends
    return 0


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts a command's options from the plain words between them, as in `--model M *.wav --out D`.

    Every option of ours has one value, so what follows an option is its value and every other word
    is a file. The words do not go through the parser of options, which would read some names of
    files as YAML.

    Args:
        words: What follows the command's name; after `--` everything is a plain word.

    Returns:
        The options with their values, and the plain words, each in their order.
    """
    options: list[str] = []
    plain: list[str] = []
    has_value = False  # whether the last option's value is still to come
    for position, word in enumerate(words):
        if word == "--":
            return options, plain + list(words[position + 1 :])
        if word.startswith("--") or word == "-h":
            options.append(word)
            has_value = _takes_next(word)
        elif has_value:
            options.append(word)
            has_value = False
        else:
            plain.append(word)
    return options, plain


def _takes_next(option: str) -> bool:
    alone = option == "-h" or option.startswith(_WITHOUT_VALUE) or option.endswith(".help")
    return not alone and "=" not in option


def _name_positionals(words: list[str], fields: tuple[str, ...]) -> list[str]:
    """Turns leading plain words into `--field word`, in the order of `fields`."""
    named: list[str] = []
    rest = list(words)
    for field in fields:
        if rest and not rest[0].startswith("-"):
            named += [f"--{field}", rest.pop(0)]
    return named + rest


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {c.summary}" for name, c in COMMANDS.items())
    return (
        "usage: spear COMMAND [--config FILE.yaml] [--section.field VALUE ...]\n\n"
        f"{rows}\n\n'spear COMMAND --help' lists every field with its unit and default."
    )
