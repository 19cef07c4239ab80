import os
from pathlib import Path

import pytest

from spear.data.corpus.scan import scan_recordings
from spear.data.formats.manifests import BadCuts, kind_of_error, printable
from spear.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_archives_and_other_files_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.wav", "b.tar.gz", "c.ZIP", "notes.gz", "text")
    with caplog.at_level("INFO"):
        assert list(scan_recordings(tmp_path).files) == ["a"]
    assert "4 files that are no recordings" in caplog.text
    assert "2 archives are not looked into, e.g. b.tar.gz; `spear unpack`" in caplog.text
    (tmp_path / "a.wav").unlink()
    with pytest.raises(DataError, match=r"but 2 archives.*spear unpack .*b\.tar\.gz"):
        scan_recordings(tmp_path)


def test_a_folder_is_visited_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.wav")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    assert list(scan_recordings(tmp_path).files) == ["a-x"]


def test_the_folder_itself_may_be_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    (refused,) = scan_recordings(tmp_path).refused
    assert refused[2] == f"{tmp_path}: the folder cannot be listed (Permission denied)"


def test_names_that_are_no_text_are_refused_by_a_name_that_is(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"\xff.wav"), "a\nb.wav", "\u2028.wav", "fine \u00a0\u3000.wav")
    found = scan_recordings(tmp_path)
    assert list(found.files) == ["fine \u00a0\u3000"]
    assert {key for key, _, _ in found.refused} == {"\\xff", "a\\nb", "\\u2028"}
    for key, path, error in found.refused:
        assert path == f"{tmp_path}/{key}.wav" and error.startswith(path)
        error.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\u00e9 \U0001f3b5\u00a0'\"", "caf\u00e9 \U0001f3b5\u00a0'\""),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("a\nb\tc\x7f\x85", "a\\nb\\tc\\x7f\\x85"),
        ("\ud800 alone", "\\ud800 alone"),
    ],
)
def test_printable_text_can_be_written(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_any_name_can_be_noted_as_bad(tmp_path: Path) -> None:
    names = [os.fsdecode(b"\xff"), "a\nb", "\x85\u2028"]
    for source in ("one", "two"):
        bad = BadCuts(tmp_path, source, 1.0)
        for name in names:
            bad.add(name, f"/x/{name}.wav", f"/x/{name}.wav: no samples")
        bad.write()
        assert [entry["id"] for entry in bad.recorded()] == list(map(printable, names))
    assert len((tmp_path / "bad_cuts.jsonl").read_text("utf-8").split("\n")) == 7


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("/a 1.wav: truncated, the header promises 9 bytes", "truncated"),
        ("/a 1.wav: empty file (0 bytes)", "empty file (N bytes)"),
        ("/a 1.wav: 5 of 1,000 samples are NaN or infinite", "N of N samples are NaN or infinite"),
        ("/a 1.wav: cut 'b 2' ends at 1.5 s", "cut ... ends at N s"),
        ("/a 1.wav: '../b.wav': a name that goes up (..)", "a name that goes up (..)"),
        ("shorter than min_duration_s 0.1", "shorter than min_duration_s N"),
    ],
)
def test_the_kind_of_an_error_leaves_out_whose_it_is(error: str, kind: str) -> None:
    assert kind_of_error({"path": "/a 1.wav", "error": error}) == kind
