"""`spear embed-files`: the features of a recording alone, in files that go by its path."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

import spear
from spear.audio import read_audio
from spear.data.corpus.recordings import feature_name, find_recordings
from spear.encoders.encoder import SpearEncoder
from spear.errors import CheckpointError, ConfigError, DataError
from spear.hub.embed_files import EmbedFilesConfig, parse_layers, run
from spear.hub.encode_many import encode_many
from spear.hub.feature_folder import FeatureFolder
from tests.hub.models import tiny_config, write_folder

Embed = Callable[..., None]


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(round(16000 * seconds))).astype(np.float32)


def write(path: Path, audio: np.ndarray, rate_hz: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate_hz)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return write_folder(tmp_path_factory.mktemp("m") / "model", SpearEncoder(tiny_config()))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings of many kinds in the working folder, two of them of one name."""
    monkeypatch.chdir(tmp_path)
    write(Path("corpus/a/x.wav"), noise(0.8, 1))
    write(Path("corpus/b/x.flac"), noise(1.3, 2))
    write(Path("corpus/b/stereo.wav"), np.stack((noise(1.0, 3), noise(1.0, 4)), axis=1), 44100)
    write(Path("corpus/b/deep/v1.2.ogg"), noise(0.5, 5), 8000)
    Path("corpus/b/notes.txt").write_text("no recording")
    return Path("corpus")


@pytest.fixture
def embed(model_folder: Path) -> Embed:
    def embed(*files: str | Path, **options: Any) -> None:
        run(EmbedFilesConfig(str(model_folder), "out", [str(f) for f in files], **options))

    return embed


def alone(model_folder: Path, path: str, layer: int | None = None) -> np.ndarray:
    """What one pass over one recording gives."""
    model = spear.from_pretrained(str(model_folder))
    with torch.no_grad():
        out = model(torch.from_numpy(read_audio(path)).unsqueeze(0))
    every = (out["embeddings"], *out["hidden_states"])
    chosen = out["encoder_out"] if layer is None else every[layer]
    return chosen[0].numpy()


def outputs() -> list[str]:
    return sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.npy"))


def test_every_recording_gets_what_it_gets_alone(
    corpus: Path, embed: Embed, model_folder: Path
) -> None:
    embed(corpus / "a/x.wav", corpus / "b")
    assert outputs() == [
        "corpus/a/x.npy", "corpus/b/deep/v1.2.npy", "corpus/b/stereo.npy", "corpus/b/x.npy",
    ]  # fmt: skip
    for name, path in (("a/x", "a/x.wav"), ("b/x", "b/x.flac"), ("b/stereo", "b/stereo.wav")):
        features = np.load(f"out/corpus/{name}.npy")
        assert features.dtype == np.float32
        expected = alone(model_folder, f"corpus/{path}")
        np.testing.assert_allclose(features, expected, atol=1e-4)
    assert not Path("out/bad_files.jsonl").exists()


def test_chosen_layers_lie_in_one_array(corpus: Path, embed: Embed, model_folder: Path) -> None:
    embed(corpus / "a/x.wav", layers="2,0")
    features = np.load("out/corpus/a/x.npy")
    last, front = (alone(model_folder, "corpus/a/x.wav", layer) for layer in (2, 0))
    assert features.shape == (2, len(last), 48)
    np.testing.assert_allclose(features[0], last, atol=1e-4)
    np.testing.assert_allclose(features[1, :, :32], front, atol=1e-4)
    assert not features[1, :, 32:].any()
    record = json.loads(Path("out/features.json").read_text())
    assert (record["layers"], record["num_channels"]) == ([2, 0], 48)
    assert record["axes"] == ["layer", "frame", "channel"]


def test_one_layer_has_its_own_width(corpus: Path, embed: Embed, model_folder: Path) -> None:
    embed(corpus / "a/x.wav", layers="1", dtype="float16")
    features = np.load("out/corpus/a/x.npy")
    assert features.dtype == np.float16
    np.testing.assert_allclose(features, alone(model_folder, "corpus/a/x.wav", 1), atol=0.01)
    record = json.loads(Path("out/features.json").read_text())
    assert (record["num_channels"], record["dtype"]) == (32, "float16")


def test_the_record_says_what_and_when(corpus: Path, embed: Embed, model_folder: Path) -> None:
    embed(corpus / "a/x.wav")
    record = json.loads(Path("out/features.json").read_text())
    assert record["model"] == str(model_folder)
    assert record["layers"] == "last"
    assert record["frame_rate_hz"] == 50.0
    assert record["first_frame_centre_ms"] == 15.0
    assert len(record["weights_sha256"]) == 64


def test_all_features_in_one_file(corpus: Path, embed: Embed, model_folder: Path) -> None:
    embed(corpus / "a", format="safetensors")
    embed(corpus, format="safetensors")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "features.json", "features.safetensors",
    ]  # fmt: skip
    with safe_open("out/features.safetensors", "np") as file:
        names = sorted(file.keys())
        features = file.get_tensor("corpus/b/x")
        record = json.loads(file.metadata()["features"])
    assert names == ["corpus/a/x", "corpus/b/deep/v1.2", "corpus/b/stereo", "corpus/b/x"]
    np.testing.assert_allclose(features, alone(model_folder, "corpus/b/x.flac"), atol=1e-4)
    assert record == json.loads(Path("out/features.json").read_text())


@pytest.mark.parametrize("layout", ["npy", "safetensors"])
def test_again_only_what_is_missing_is_done(
    layout: str, corpus: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(corpus / "b", format=layout)
    calls: list[int] = []
    forward = SpearEncoder.forward

    def counted(self: SpearEncoder, audio: torch.Tensor, lens: torch.Tensor) -> Any:
        calls.append(len(audio))
        return forward(self, audio, lens)

    monkeypatch.setattr(SpearEncoder, "forward", counted)
    embed(corpus, format=layout)
    assert calls == [1]
    embed(corpus, format=layout)
    assert calls == [1]


def test_a_killed_run_goes_on_where_it_was(
    corpus: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, done = FeatureFolder.add, list[str]()

    def killed(self: FeatureFolder, name: str, features: np.ndarray) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        add(self, name, features)
        done.append(name)

    monkeypatch.setattr(FeatureFolder, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        embed(corpus, format="safetensors")
    assert not Path("out/features.safetensors").exists()
    Path("out/.parts/corpus/a/.y.partial-gone-1.npy").parent.mkdir(parents=True, exist_ok=True)
    Path("out/.parts/corpus/a/.y.partial-gone-1.npy").write_bytes(b"half")
    again = list[str]()

    def noted(self: FeatureFolder, name: str, features: np.ndarray) -> None:
        again.append(name)
        add(self, name, features)

    monkeypatch.setattr(FeatureFolder, "add", noted)
    embed(corpus, format="safetensors")
    assert len(again) == 2
    assert not set(again) & set(done)
    with safe_open("out/features.safetensors", "np") as file:
        assert sorted(file.keys()) == sorted(done + again)


def test_bad_recordings_are_named_and_the_others_go_on(corpus: Path, embed: Embed) -> None:
    whole = Path("corpus/a/x.wav").read_bytes()
    Path("corpus/a/cut.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write("corpus/a/loud.wav", 20000 * noise(0.5), 16000, subtype="FLOAT")
    write(Path("corpus/a/short.wav"), noise(0.004))
    with pytest.raises(DataError, match="3 of 7 recordings are bad, more than max_bad_fraction"):
        embed(corpus)
    lines = map(json.loads, Path("out/bad_files.jsonl").read_text().splitlines())
    errors = {line["id"]: line["error"] for line in lines}
    assert sorted(errors) == ["corpus/a/cut", "corpus/a/loud", "corpus/a/short"]
    assert "truncated" in errors["corpus/a/cut"]
    assert errors["corpus/a/loud"].startswith("corpus/a/loud.wav: audio has a sample of magnitude")
    assert "0.004 s are too short for a frame" in errors["corpus/a/short"]
    assert len(outputs()) == 4
    embed(corpus, max_bad_fraction=0.5)
    for name in ("cut", "loud", "short"):
        Path(f"corpus/a/{name}.wav").unlink()
    embed(corpus)
    assert not Path("out/bad_files.jsonl").exists()


def test_recordings_are_read_in_other_processes(corpus: Path, embed: Embed) -> None:
    Path("corpus/a/empty.wav").write_bytes(b"")
    embed(corpus, num_workers=2, max_bad_fraction=0.5)
    assert len(outputs()) == 4
    assert "empty file" in Path("out/bad_files.jsonl").read_text()


def test_a_folder_of_other_features_is_refused(corpus: Path, embed: Embed) -> None:
    embed(corpus / "a")
    for options in ({"layers": "1"}, {"format": "safetensors"}, {"dtype": "float16"}):
        with pytest.raises(DataError, match=f"out holds other features: .*{next(iter(options))}"):
            embed(corpus / "b", **options)
    Path("out/features.json").write_text("{")
    with pytest.raises(DataError, match="not readable"):
        embed(corpus / "a")


def test_other_weights_make_other_features(corpus: Path, embed: Embed, tmp_path: Path) -> None:
    embed(corpus / "a")
    torch.manual_seed(2)
    other = write_folder(tmp_path / "other", SpearEncoder(tiny_config()))
    with pytest.raises(DataError, match="weights_sha256"):
        run(EmbedFilesConfig(str(other), "out", [str(corpus / "a")]))


@pytest.mark.parametrize(
    ("files", "options", "kind", "message"),
    [
        ([], {}, ConfigError, "no files"),
        (["none.wav"], {}, DataError, "none.wav: no such file"),
        (["empty"], {}, DataError, "no recordings in this folder"),
        (["corpus"], {"layers": "3"}, ConfigError, r"layers \[3\] do not exist"),
        (["corpus"], {"layers": "first"}, ConfigError, "give last, all, or numbers such as 0,3,2"),
        (["corpus"], {"device": "nowhere"}, ConfigError, "'nowhere' cannot be used"),
        (["corpus"], {"max_bad_fraction": 2.0}, ConfigError, "max_bad_fraction"),
    ],
)
@pytest.mark.usefixtures("corpus")
def test_what_cannot_be_done_is_one_clear_error(
    files: list[str], options: dict[str, Any], kind: type[Exception], message: str, embed: Embed
) -> None:
    Path("empty").mkdir()
    with pytest.raises(kind, match=message) as caught:
        embed(*files, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_model_and_an_out_that_is_a_file(corpus: Path, embed: Embed) -> None:
    with pytest.raises(CheckpointError, match="neither a model folder"):
        run(EmbedFilesConfig("no/such/model", "out", ["corpus"]))
    Path("out").write_text("a file")
    with pytest.raises(ConfigError, match="out out cannot be made a folder"):
        embed(corpus)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("x.wav", "x"),
        ("./a/../a/x.WAV", "a/x"),
        ("a/b.c/x.y.flac", "a/b.c/x.y"),
        ("/data/x.wav", "data/x"),
        ("a/utt.001", "a/utt.001"),
        ("../../up.wav", "up"),
    ],
)
def test_names_are_paths(path: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert feature_name(Path(path)) == name


def test_names_that_meet_are_refused(corpus: Path) -> None:
    write(Path("corpus/a/x.flac"), noise(0.2))
    with pytest.raises(DataError, match=r"a/x\.flac: .* called corpus/a/x, as are those of"):
        find_recordings(["corpus/a/x.wav", "corpus/a/x.flac"])
    same = find_recordings(["corpus/a/x.wav", "./corpus/a/x.wav", "corpus/a/../a/x.wav"])
    assert list(same) == ["corpus/a/x"]


def test_layers_are_read() -> None:
    assert parse_layers("last", 3) is None
    assert parse_layers("all", 3) == (0, 1, 2, 3)
    assert parse_layers("3, 0", 3) == (3, 0)
    for text in ("", "1,", "-1", "4", "0-2", "[1]"):
        with pytest.raises(ConfigError, match="layers"):
            parse_layers(text, 3)


@pytest.mark.parametrize("layers", [None, (0, 2)])
@pytest.mark.parametrize("batch_s", [0.5, 3.0, 100.0])
def test_batches_and_windows_give_what_each_gives_alone(
    layers: tuple[int, ...] | None, batch_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spear.hub.encode_many.ONE_PASS_S", 2.0)  # windows of 40 s: one pass here
    torch.manual_seed(4)
    model = SpearEncoder(tiny_config(output_downsampling_factor=2)).eval()
    recordings = {str(s): noise(s, i) for i, s in enumerate((0.3, 1.1, 2.5, 0.7, 1.9, 0.05))}
    found = dict(encode_many(model, recordings.items(), layers, batch_s))
    assert found.keys() == recordings.keys()
    for name, waveform in recordings.items():
        with torch.no_grad():
            out = model(torch.from_numpy(waveform).unsqueeze(0))
        if layers is None:
            expected = out["encoder_out"][0]
            assert len(expected) == model.num_frames(len(waveform))
        else:
            front = torch.nn.functional.pad(out["embeddings"][0], (0, 16))
            expected = torch.stack((front, out["hidden_states"][1][0]))
        torch.testing.assert_close(found[name], expected, atol=1e-4, rtol=0.0)


def test_no_batch_is_longer_than_asked_for() -> None:
    model = SpearEncoder(tiny_config()).eval()
    sizes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    recordings = [(str(i), noise(0.2 + 0.1 * (i * 7 % 10), i)) for i in range(20)]
    assert len(dict(encode_many(model, recordings, batch_s=2.0))) == 20
    assert max(rows * samples for rows, samples in sizes) <= 2.0 * 16000
    assert sum(rows for rows, _ in sizes) == 20
    assert len(sizes) < 12
