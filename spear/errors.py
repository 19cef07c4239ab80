"""Errors that a user can cause.

Each message says what is wrong, where, and what to do, in one line. The command line prints it
without a traceback and exits with status 2; a library user can catch `SpearError`.
"""


class SpearError(Exception):
    """Base class of every error that a user can cause."""


class ConfigError(SpearError):
    """A configuration has an unknown key, a value of the wrong type, or values that do not fit."""


class AudioError(SpearError):
    """A recording cannot be read, or its samples are unusable."""


class DataError(SpearError):
    """A folder, manifest, shard or transcript is missing, broken or inconsistent."""


class TokenError(SpearError):
    """Teacher tokens do not match their sidecar, their cuts, or what the run asks for."""


class CheckpointError(SpearError):
    """A checkpoint or weights file is missing, broken, or of another shape than the model."""


class MissingPackageError(SpearError):
    """An optional package is needed and not installed."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns an error's message on one line, cut at `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]}..."
