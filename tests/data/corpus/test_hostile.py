"""Every kind of bad recording through `spear prepare` and `spear shard`, as a user runs them."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from spear.data.corpus import prepare, shard
from spear.data.corpus.prepare import PrepareConfig
from spear.data.corpus.scan import scan_recordings
from spear.data.corpus.shard import ShardConfig
from spear.data.formats.manifests import read_jsonl_gz
from spear.data.index.shard_folder import ShardFolder
from spear.data.verify import command as verify
from spear.data.verify.command import VerifyConfig
from spear.errors import ConfigError, DataError
from spear.teachers import TeacherConfig
from tests.data.fake_quantizer import FakeQuantizer, write_quantizer

PITCH_HZ = 440.0
ABROAD = "\u00fc\u65e5\u672c\U0001f3b5\u00a0"
Make = Callable[[Path], None]


def tone(rate_hz: int, duration_s: float = 0.5, pitch_hz: float = PITCH_HZ) -> np.ndarray:
    time_s = np.arange(round(rate_hz * duration_s)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.float32)


def sound(rate_hz: int = 16000, channels: int = 1, seconds: float = 0.5, **form: str) -> Make:
    """Returns what writes a tone: the first channel is full, the others are a half of it."""

    def write(path: Path) -> None:
        samples = tone(rate_hz, seconds)
        levels = np.array([1.0] + [0.5] * (channels - 1), np.float32)
        values = samples[:, None] * levels
        soundfile.write(os.fsencode(path), values, rate_hz, **({"format": "WAV"} | form))

    return write


def samples(values: np.ndarray, subtype: str = "FLOAT") -> Make:
    return lambda path: soundfile.write(path, values, 16000, subtype=subtype, format="WAV")


def with_one(value: float) -> np.ndarray:
    audio = tone(16000).astype(np.float64)
    audio[1234] = value
    return audio


def text(content: str) -> Make:
    return lambda path: path.write_text(content) and None


def header_only(path: Path) -> None:
    sound()(path)
    path.write_bytes(path.read_bytes()[:44])


def header_lies(path: Path) -> None:
    sound()(path)
    content = bytearray(path.read_bytes())
    content[40:44] = (len(content) * 3).to_bytes(4, "little")
    path.write_bytes(content)


def header_rate(path: Path) -> None:
    sound()(path)
    content = bytearray(path.read_bytes())
    content[24:28] = (1).to_bytes(4, "little")
    path.write_bytes(content)


def unix_socket(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as one:
        one.bind(f"{folder}/s")  # a socket's path must be short
        os.rename(f"{folder}/s", path)


def folder_with(name: str) -> Make:
    def make(path: Path) -> None:
        path.mkdir()
        sound()(path / name)

    return make


# What works: the file, how to make it, its id, and how loud its tone is.
GOOD: dict[str, tuple[str, Make, str, float]] = {
    "8_bit": ("8.wav", sound(subtype="PCM_U8"), "8", 0.5),
    "24_bit": ("24.wav", sound(subtype="PCM_24"), "24", 0.5),
    "float": ("f32.wav", sound(subtype="FLOAT"), "f32", 0.5),
    "double": ("f64.wav", sound(subtype="DOUBLE"), "f64", 0.5),
    "8_channels": ("many.wav", sound(channels=8), "many", 0.5 * (1 + 7 * 0.5) / 8),
    "4_khz": ("slow.wav", sound(4000), "slow", 0.5),
    "192_khz": ("fast.wav", sound(192000), "fast", 0.5),
    "telephone": ("gsm.wav", sound(8000, subtype="GSM610"), "gsm", 0.5),
    "mp3_called_wav": ("m.wav", sound(format="MP3", subtype="MPEG_LAYER_III"), "m", 0.5),
    "flac_called_wav": ("fl.wav", sound(format="FLAC", subtype="PCM_16"), "fl", 0.5),
    "ogg_called_mp3": ("o.mp3", sound(format="OGG", subtype="VORBIS"), "o", 0.5),
    "upper_case": ("U.WAV", sound(), "U", 0.5),
    "spaces": (" a  b .wav", sound(), " a  b ", 0.5),
    "quotes": ('it\'s "so" `x` $HOME;.wav', sound(), 'it\'s "so" `x` $HOME;', 0.5),
    "non_ascii": (f"{ABROAD}.wav", sound(), ABROAD, 0.5),
    "composed": ("caf\u00e9.wav", sound(), "caf\u00e9", 0.5),
    "decomposed": ("cafe\u0301.wav", sound(), "cafe\u0301", 0.5),
    "case": ("u.wav", sound(), "u", 0.5),
    "dash": ("-rf.wav", sound(), "-rf", 0.5),
    "dots": ("a.b..c.wav", sound(), "a.b..c", 0.5),
    "percent": ("%s{0}\\n*?.wav", sound(), "%s{0}\\n*?", 0.5),
    "long_name": ("n" * 250 + ".wav", sound(), "n" * 250, 0.5),
    "folder_called_wav": ("dir.wav", folder_with("x.wav"), "dir.wav-x", 0.5),
    "link": ("link.wav", lambda path: path.symlink_to("8.wav"), "link", 0.5),
    "clipped": ("clip.wav", samples(np.sign(tone(16000)), "PCM_16"), "clip", 1.0),
    "loud": ("loud.wav", samples(40 * tone(16000)), "loud", 1.0),
    "silent": ("zero.wav", samples(np.zeros(8000), "PCM_16"), "zero", 0.0),
    "dc": ("dc.wav", samples(np.full(8000, 0.25)), "dc", 0.25),
}
# What is named: the file, how to make it, what is said of it.
BAD: dict[str, tuple[str, Make, str]] = {
    "zero_bytes": ("empty.wav", text(""), "empty file (0 bytes)"),
    "header_only": ("header.wav", header_only, "truncated, the header promises 16000 bytes"),
    "lies": ("lies.wav", header_lies, "truncated, the header promises 48132 bytes"),
    "rate": ("rate.wav", header_rate, "a rate of 1 Hz is no recording's"),
    "nan": ("nan.wav", samples(with_one(np.nan)), "1 of 8000 samples are NaN or infinite"),
    "inf": ("inf.wav", samples(with_one(-np.inf)), "1 of 8000 samples are NaN or infinite"),
    "huge": ("1e300.wav", samples(with_one(1e300), "DOUBLE"), "samples are NaN or infinite"),
    "no_samples": ("none.wav", samples(np.zeros(0)), "no samples"),
    "text": ("text.wav", text("RIFF? no\n" * 99), "cannot be read (Format not recognised)"),
    "empty_folder": ("hollow.wav", lambda path: path.mkdir(), "a folder, not a recording"),
    "dangling": ("dang.wav", lambda path: path.symlink_to("gone.wav"), "a link to no such file"),
    "circle": ("loop.wav", lambda path: path.symlink_to("loop.wav"), "Too many levels of symbolic"),
    "pipe": ("pipe.wav", os.mkfifo, "a pipe, not a recording"),
    "socket": ("sock.wav", unix_socket, "a socket, not a recording"),
    "device": ("dev.wav", lambda path: path.symlink_to("/dev/zero"), "a device, not a recording"),
    "newline": ("new\nline.wav", sound(), "its name is no plain UTF-8 text, rename it"),
    "tab": ("t\tab.wav", sound(), "its name is no plain UTF-8 text, rename it"),
    "latin_1": (os.fsdecode(b"caf\xe9.wav"), sound(), "its name is no plain UTF-8 text"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every recording of the lists, and a link to itself."""
    folder = tmp_path_factory.mktemp("hostile") / "wav"
    folder.mkdir()
    for name, make, *_ in [*GOOD.values(), *BAD.values()]:
        make(folder / name)
    sound(seconds=0.05)(folder / "short.wav")
    (folder / "circle").symlink_to(folder)
    return folder


def spear(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does."""
    command = [sys.executable, "-m", "spear", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def shards(source: Path) -> Iterator[ShardFolder]:
    """The folder prepared and sharded from the command line."""
    root = source.parent
    words = f"prepare --source_dir {source} --corpus hostile --output_dir {root}/manifests"
    result = spear(*words.split(), "--domain", "audio", "--max_bad_fraction", "0.5")
    assert result.returncode == 0, result.stderr
    cuts = f"{root}/manifests/hostile_train_cuts.jsonl.gz"
    result = spear("shard", "--cuts", cuts, "--output_dir", f"{root}/shards")
    assert result.returncode == 0, result.stderr
    folder = ShardFolder(root / "shards")
    yield folder
    folder.close()


def bad_entries(path: Path) -> dict[str, dict[str, str]]:
    lines = path.read_text("utf-8").split("\n")
    entries = [json.loads(line) for line in lines if line]
    assert len({entry["id"] for entry in entries}) == len(entries), "named once"
    return {entry["id"]: entry for entry in entries}


@pytest.mark.parametrize("case", GOOD)
def test_it_works(shards: ShardFolder, case: str) -> None:
    _, _, key, level = GOOD[case]
    (info,) = [one for one in shards if one.id == key]
    audio = shards.audio(info)
    if case not in ("mp3_called_wav", "telephone"):  # whose encoders pad
        assert abs(len(audio) - 8000) <= 1
    assert np.abs(audio).max() == pytest.approx(level, abs=0.1 if case == "telephone" else 0.06)
    if case in ("silent", "dc"):
        np.testing.assert_array_equal(audio, np.full(8000, level, np.float32))
    elif case not in ("clipped", "mp3_called_wav", "ogg_called_mp3", "telephone"):
        middle = slice(1000, 7000)  # away from the edges of the resampling filter
        tolerance = {"8_bit": 1 / 128, "link": 1 / 128}.get(case, 2e-3)
        np.testing.assert_allclose(audio[middle], 2 * level * tone(16000)[middle], atol=tolerance)
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    if level and case != "dc":
        assert np.argmax(spectrum) * 16000 / len(audio) == pytest.approx(PITCH_HZ, abs=3)


@pytest.mark.parametrize("case", BAD)
def test_it_is_named(shards: ShardFolder, source: Path, case: str) -> None:
    name, _, reason = BAD[case]
    entries = bad_entries(source.parent / "manifests" / "bad_cuts.jsonl")
    shown = name.replace("\n", "\\n").replace("\t", "\\t").replace("\udce9", "\\xe9")
    entry = entries[shown.removesuffix(".wav")]
    assert entry["path"] == f"{source}/{shown}"
    assert reason in entry["error"] and "\n" not in entry["error"]
    assert entry["error"].startswith(entry["path"])


def test_nothing_is_lost_in_silence(shards: ShardFolder, source: Path) -> None:
    """Every recording is a clip, or named by the stage that left it out."""
    entries = bad_entries(source.parent / "manifests" / "bad_cuts.jsonl")
    assert len(entries) == len(BAD)
    assert {info.id for info in shards} == {key for _, _, key, _ in GOOD.values()}
    (short,) = bad_entries(shards.path / "bad_cuts.jsonl").values()
    assert (short["id"], short["error"]) == ("short", "shorter than min_duration_s 0.1")


def test_50_ms_work_where_they_are_wanted(
    source: Path, shards: ShardFolder, tmp_path: Path
) -> None:
    cuts = source.parent / "manifests" / "hostile_train_cuts.jsonl.gz"
    shard.run(ShardConfig(str(cuts), str(tmp_path / "s"), min_duration_s=0.04))
    (info,) = [one for one in ShardFolder(tmp_path / "s") if one.id == "short"]
    assert info.duration_s == 0.05


def test_lhotse_reads_every_name(shards: ShardFolder) -> None:
    cuts = list(CutSet.from_shar(fields=shards.shar_fields()))
    assert [cut.id for cut in cuts] == [info.id for info in shards]
    for cut, info in zip(cuts, shards, strict=True):
        np.testing.assert_array_equal(cut.load_audio()[0], shards.audio(info))


def test_later_stages_end_cleanly(
    shards: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spear.data.tokens import extract
    from spear.data.tokens.extract import ExtractConfig

    for module in ("tokens.extract", "verify.sidecar"):
        monkeypatch.setattr(f"spear.data.{module}.load_quantizer", FakeQuantizer.load)
    quantizer = write_quantizer(tmp_path / "quantizer.json")
    extract.run(
        ExtractConfig(
            shards=[str(shards.path)],
            teacher=TeacherConfig(name="logmel"),
            quantizer=quantizer,
            device="cpu",
        )
    )
    verify.run(VerifyConfig(shards=[str(shards.path)], quantizers={"logmel": quantizer}))
    for info in shards:
        assert abs(len(shards.tokens(info, "logmel")) - 50 * info.duration_s) <= 2


def test_the_summary_counts_reasons(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = PrepareConfig(f"{source}", "c", f"{tmp_path}", max_bad_fraction=0.5)
    prepare.run(config)
    (line,) = [one.getMessage() for one in caplog.records if "are left out" in one.getMessage()]
    total = len(GOOD) + len(BAD) + 1
    assert f"{len(BAD)} of {total} recordings are left out: " in line and "\n" not in line
    for reason in ("3 x N of N samples are NaN or infinite", "2 x truncated", "1 x a pipe"):
        assert reason in line


def test_too_many_stop_it_with_one_line_and_all_named(source: Path, tmp_path: Path) -> None:
    words = f"prepare --source_dir {source} --corpus c --output_dir {tmp_path} --num_jobs 2"
    result = spear(*words.split(), "--max_bad_fraction", "0.1")
    assert result.returncode == 2
    message = result.stderr[result.stderr.index("spear: error:") :]
    assert message.count("\n") == 1
    assert f"{len(BAD)} of {len(GOOD) + len(BAD) + 1} recordings are bad" in message
    assert len(bad_entries(tmp_path / "bad_cuts.jsonl")) == len(BAD)
    assert not list(tmp_path.glob("*_cuts.jsonl.gz"))


def test_files_that_change_or_vanish_between_the_stages_are_named(tmp_path: Path) -> None:
    wav = tmp_path / "wav"
    wav.mkdir()
    for name in ("stays", "shrinks", "vanishes", "breaks", "rots"):
        sound()(wav / f"{name}.wav")
    prepare.run(PrepareConfig(str(wav), "c", f"{tmp_path}/m", domain="audio"))
    sound(seconds=0.2)(wav / "shrinks.wav")
    (wav / "vanishes.wav").unlink()
    (wav / "breaks.wav").write_bytes((wav / "breaks.wav").read_bytes()[:5000])
    (wav / "rots.wav").write_bytes(b"\0" * 16044)
    config = ShardConfig(f"{tmp_path}/m/c_train_cuts.jsonl.gz", f"{tmp_path}/s")
    with pytest.raises(DataError, match="4 of 5 recordings are bad"):
        shard.run(config)
    shard.run(replace(config, max_bad_fraction=0.9))
    entries = bad_entries(tmp_path / "s" / "bad_cuts.jsonl")
    for key, reason in {
        "shrinks": "cut 'shrinks' ends at 0.500 s and the recording at 0.200 s",
        "vanishes": "no such file",
        "breaks": "truncated",
        "rots": "cannot be read",
    }.items():
        assert reason in entries[key]["error"]
    assert [info.id for info in ShardFolder(tmp_path / "s")] == ["stays"]


@contextmanager
def as_nobody() -> Iterator[Path]:
    """Yields a folder as a user without privileges, whom permissions bind."""
    with tempfile.TemporaryDirectory() as folder:
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            for path in [*Path(folder).iterdir()]:
                path.chmod(0o700)
            if is_root:
                os.seteuid(0)


def test_what_may_not_be_read_is_named() -> None:
    with as_nobody() as folder:
        (folder / "wav").mkdir()
        sound()(folder / "wav" / "good.wav")
        sound()(folder / "wav" / "locked.wav")
        (folder / "wav" / "closed").mkdir()
        sound()(folder / "wav" / "closed" / "x.wav")
        (folder / "wav" / "locked.wav").chmod(0)
        (folder / "wav" / "closed").chmod(0)
        config = PrepareConfig(f"{folder}/wav", "c", f"{folder}/m", max_bad_fraction=0.9)
        prepare.run(config)
        entries = bad_entries(folder / "m" / "bad_cuts.jsonl")
        (folder / "wav" / "closed").chmod(0o700)
        cuts = read_jsonl_gz(folder / "m" / "c_train_cuts.jsonl.gz")
    assert "cannot be read (Permission denied)" in entries["locked"]["error"]
    assert "the folder cannot be listed (Permission denied)" in entries["closed"]["error"]
    assert [cut["id"] for cut in cuts] == ["good"]


def test_a_folder_that_is_not_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    sound()(folder / "a.wav")
    with pytest.raises(ConfigError, match=r"\\xff: no plain UTF-8 text"):
        prepare.run(PrepareConfig(str(folder), "c", f"{tmp_path}/m"))


def test_two_files_of_one_id_are_both_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    sound()(tmp_path / "a" / "b.wav")
    sound()(tmp_path / "a-b.wav")
    with pytest.raises(DataError, match=r"a/b\.wav: has the id 'a-b', as has .*a-b\.wav; rename"):
        scan_recordings(tmp_path)


_LONG = """
import resource, sys
from spear.data.corpus import prepare, shard
from spear.data.corpus.prepare import PrepareConfig
from spear.data.corpus.shard import ShardConfig
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
root = sys.argv[1]
prepare.run(PrepareConfig(root + "/wav", "l", root + "/m", domain="audio", num_jobs=1))
shard.run(ShardConfig(root + "/m/l_train_cuts.jsonl.gz", root + "/s"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_three_hours_take_little_memory(tmp_path: Path) -> None:
    """8 kHz, 8 bits: 86 MB on disk, 346 MB decoded, 691 MB resampled; a window is 2 MB."""
    (tmp_path / "wav").mkdir()
    minute = 0.5 * np.sin(2 * np.pi * 20 * np.arange(60 * 8000) / 8000)
    with soundfile.SoundFile(tmp_path / "wav" / "l.wav", "w", 8000, 1, "ULAW") as file:
        for _ in range(180):
            file.write(minute)
    result = subprocess.run(
        [sys.executable, "-c", _LONG, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 60, "MiB"
    folder = ShardFolder(tmp_path / "s")
    assert len(folder) == 360
    assert folder.duration_s == 3 * 3600
    audio = np.concatenate([folder.audio(number) for number in (118, 119, 120)])
    time_s = 118 * 30 + np.arange(len(audio)) / 16000
    np.testing.assert_allclose(audio, 0.5 * np.sin(2 * np.pi * 20 * time_s), atol=0.02)
    folder.close()
