from pathlib import Path

import pytest

from spear.data.formats.kaldi_text import check_known, read_ids, read_text, read_utt2spk
from spear.errors import DataError


def write(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "file"
    path.write_bytes(content.encode("utf-8"))
    return path


def test_reads_transcripts_with_any_white_space(tmp_path: Path) -> None:
    path = write(tmp_path, "a  one\ttwo \n\nb\r\nc größe\u2028drei\n")
    assert read_text(path) == {"a": "one two", "b": "", "c": "größe drei"}


def test_reads_speakers_and_ids(tmp_path: Path) -> None:
    path = write(tmp_path, "a ann\nb bob\n")
    assert read_utt2spk(path) == {"a": "ann", "b": "bob"}
    assert read_ids(path) == {"a", "b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [("a x\nb y\na z\n", "line 3: id 'a' is there twice"), ("\n \n", "empty")],
)
def test_refuses_broken_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_text(write(tmp_path, content))


def test_refuses_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_text(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="UTF-8"):
        read_text(tmp_path / "binary")


def test_a_speaker_line_has_two_fields(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' must be 'id speaker'"):
        read_utt2spk(write(tmp_path, "a ann smith\n"))


def test_unknown_ids_are_counted_and_named() -> None:
    check_known("text", {"a"}, {"a", "b"})
    with pytest.raises(DataError, match=r"text: 4 of 5 ids have no recording, e.g. 'v', 'w', 'x'"):
        check_known("text", {"a", "z", "w", "x", "v"}, {"a", "b"})
