"""Whether a sound file holds what its header promises.

libsndfile gives the samples that it finds and says nothing when a file was cut short. This module
reads the log of its parser, which has the sizes of chunks and file, and looks at the last page of
an Ogg stream, so that a download that broke off is an error and not a shorter recording.
"""

import re
from pathlib import Path

from spear.errors import AudioError

# What libsndfile's parsers log of the chunk that holds the samples: WAV, AIFF, AU, W64, CAF; and
# of RF64, whose data chunk has its size elsewhere. "(should be N)" is the size that is there.
_DATA_CHUNK = re.compile(
    r"^\s*(?:data|SSND|Data [Ss]ize)\s*:\s*(\d+)(?: \(should be (\d+)\))?", re.MULTILINE
)
_FILE_LENGTH = re.compile(r"^Length : (\d+)", re.MULTILINE)
# Programs that write to a pipe do not know the length and leave the largest one (ffmpeg, sox).
_UNKNOWN_LENGTH_BYTES = 0x7FFF0000
_LONGEST_OGG_PAGE = 65307


def check_container(path: Path, log: str) -> None:
    """Compares what the header promises with the size of the file.

    Args:
        path: The sound file.
        log: What libsndfile's parser said of it, `SoundFile.extra_info`.

    Raises:
        AudioError: The file ends before the samples that its header promises.
    """
    length = _FILE_LENGTH.search(log)
    for match in _DATA_CHUNK.finditer(log):
        promised_bytes = int(match[1])
        limits = [int(limit) for limit in (match[2], length and length[1]) if limit is not None]
        there = min(limits, default=promised_bytes)
        if there < promised_bytes < _UNKNOWN_LENGTH_BYTES:
            raise AudioError(
                f"{path}: truncated, the header promises {promised_bytes} bytes of samples "
                f"and the file holds {there}"
            )
    if not _ogg_is_whole(path):
        raise AudioError(f"{path}: truncated, the Ogg stream has no end")


def check_num_samples(path: Path, promised: int, found: int) -> None:
    """Compares the number of samples that were promised with that decoded.

    Raises:
        AudioError: There are none, or fewer than promised.
    """
    if found == 0:
        raise AudioError(f"{path}: no samples")
    if found < promised:
        raise AudioError(f"{path}: truncated, {found} of the {promised} promised samples are there")


def _ogg_is_whole(path: Path) -> bool:
    """Whether a file's last Ogg page is complete and marked as the last (RFC 3533, section 6).

    libsndfile gives what the whole pages hold, or nothing, without an error. Files that are not
    Ogg are whole here.
    """
    with open(path, "rb") as stream:
        if stream.read(4) != b"OggS":
            return True
        stream.seek(max(0, path.stat().st_size - 2 * _LONGEST_OGG_PAGE))
        tail = stream.read()
    start = tail.rfind(b"OggS\0")
    page = tail[start:]
    if start < 0 or len(page) < 27 + page[26:27].ljust(1, b"\xff")[0]:
        return False
    segments = page[27 : 27 + page[26]]
    is_last = bool(page[5] & 4)
    return is_last and len(page) >= 27 + len(segments) + sum(segments)
