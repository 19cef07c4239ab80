"""Configurations: YAML files and command-line overrides into typed dataclasses.

A command's configuration is a dataclass. `--config FILE.yaml` fills it (several files overlay each
other), `--section.field value` overrides single fields, and `--help` lists every field with its
docstring, type and default. A key that no dataclass has is an error that names the nearest one.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from spear.errors import ConfigError, one_line
from spear.system.files import write_text

C = TypeVar("C")

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse_config(config_class: type[C], argv: Sequence[str], prog: str = "spear") -> C:
    """Builds a configuration from command-line words.

    Args:
        config_class: The dataclass to fill.
        argv: Words such as `["--config", "a.yaml", "--train.max_steps", "100"]`.
        prog: What `--help` calls the command.

    Raises:
        ConfigError: An unknown key, a missing required field, or a value of the wrong type.
        SystemExit: With status 0, after `--help`.
    """
    argv = _complete_flags(config_class, [_with_underscores(config_class, word) for word in argv])
    for path in _config_files(argv):
        check_keys(config_class, read_yaml(path), str(path))
    _check_options(config_class, argv, prog)
    parser = _parser(config_class, prog)
    try:
        values = parser.instantiate(parser.parse_args(list(argv)))
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(f"{prog}: {one_line(error, limit=1000)}") from error
    fields = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: values[name] for name in fields})


def load_config(config_class: type[C], path: Path | str, overrides: Sequence[str] = ()) -> C:
    """Builds a configuration from one YAML file and `--section.field value` overrides."""
    return parse_config(config_class, ["--config", str(path), *overrides])


def to_dict(config: Any) -> Any:
    """Turns a configuration into plain dictionaries and lists, as YAML and JSON hold them."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Reads a YAML file that holds one mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: The file is missing, is no YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not a mapping of fields")
    return content


def write_yaml(path: Path, config: Any) -> None:
    """Writes a configuration as YAML, whole or not at all."""
    write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def check_keys(
    config_class: Any, content: Mapping[str, Any], source: str, prefix: str = ""
) -> None:
    """Refuses keys that the dataclass does not have, and names the nearest.

    Raises:
        ConfigError: There is an unknown key.
    """
    types_of = typing.get_type_hints(config_class)
    for key, value in content.items():
        if key not in types_of:
            # A class may say where fields went that it had: `RETIRED`, pairs of name and advice.
            retired = dict(getattr(config_class, "RETIRED", ()))
            advice = f"; {retired[key]}" if key in retired else _nearest(key, types_of, prefix)
            raise ConfigError(f"{source}: unknown key {prefix}{key}{advice}")
        for section, inner, name in _sections(types_of[key], value, f"{prefix}{key}."):
            check_keys(section, inner, source, name)


def _sections(kind: Any, value: Any, prefix: str) -> Iterator[tuple[Any, Mapping[str, Any], str]]:
    """Finds the dataclass-typed mappings inside a value: itself, or in its list or dictionary."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        for option in typing.get_args(kind):
            yield from _sections(option, value, prefix)
    elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        yield kind, value, prefix
    elif typing.get_origin(kind) is dict and isinstance(value, Mapping):
        for name, item in value.items():
            yield from _sections(typing.get_args(kind)[1], item, f"{prefix}{name}.")
    elif typing.get_origin(kind) in (list, tuple) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _sections(typing.get_args(kind)[0], item, f"{prefix}{number}.")


def _check_options(config_class: Any, argv: Sequence[str], prog: str) -> None:
    """Refuses `--options` that lead to no field; reads dotted names as nested mappings."""
    for word in argv:
        if not word.startswith("--") or word.startswith(("--config", "--help", "--print_config")):
            continue
        names = word[2:].split("=", maxsplit=1)[0].rstrip("+").split(".")
        if names[-1] == "help":  # --section.help, jsonargparse's own
            continue
        nested: Any = {}
        for name in reversed(names):
            nested = {name: nested}
        try:
            check_keys(config_class, nested, prog)
        except ConfigError as error:
            raise ConfigError(f"{error}; {prog} --help lists all") from None


def _with_underscores(config_class: Any, word: str) -> str:
    """Returns an option such as `--num-jobs=4` under its field's name, `--num_jobs=4`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    field = name.replace("-", "_")
    is_field = _type_of(config_class, field.rstrip("+")) is not None
    return f"--{field}{equals}{value}" if is_field else word


def _complete_flags(config_class: Any, argv: Sequence[str]) -> list[str]:
    """Gives options of boolean fields that stand alone, such as `--profile`, the value true."""
    words: list[str] = []
    for position, word in enumerate(argv):
        words.append(word)
        is_last = position + 1 == len(argv) or argv[position + 1].startswith("--")
        if word.startswith("--") and is_last and _type_of(config_class, word[2:]) is bool:
            words.append("true")
    return words


def _type_of(config_class: Any, name: str) -> Any:
    """Returns the type of a field by its dotted name; None where there is no such field."""
    kind: Any = config_class
    for part in name.split("."):
        kind = typing.get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    return kind


def _config_files(argv: Sequence[str]) -> Iterator[str]:
    for position, word in enumerate(argv):
        if word == "--config" and position + 1 < len(argv):
            yield argv[position + 1]
        elif word.startswith("--config="):
            yield word.removeprefix("--config=")


def _parser(config_class: Any, prog: str) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog=prog, description=_summary(config_class), exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below.")
    parser.add_class_arguments(config_class, None, fail_untyped=True)
    return parser


def _summary(config_class: Any) -> str:
    return (config_class.__doc__ or "").strip().split("\n\n", maxsplit=1)[0]


def _nearest(key: str, known: Mapping[str, Any], prefix: str) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    return (
        f"; did you mean {prefix}{close[0]}?" if close else f"; known: {', '.join(sorted(known))}"
    )
