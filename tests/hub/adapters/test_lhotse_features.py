"""The lhotse extractor through lhotse's own ways of extracting, storing and validating."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, validate
from lhotse.dataset import OnTheFlyFeatures
from lhotse.features import FeatureExtractor, create_default_feature_extractor
from lhotse.features.io import NumpyFilesWriter
from lhotse.utils import compute_num_frames

from spear.errors import AudioError, ConfigError
from spear.hub.adapters.lhotse_features import SpearFeatures, SpearFeaturesConfig
from tests.hub.adapters.test_hear import KINDS, noise, tiny_encoder
from tests.hub.models import write_folder

ODD_LENGTHS = [321, 479, 480, 799, 800, 880, 959, 961, 1439, 7999, 16000, 16159, 16161, 35123]


def extractor_of(kind: str, parent: Path, layer: int | str = "last") -> SpearFeatures:
    folder = write_folder(parent / kind, tiny_encoder(kind))
    return SpearFeatures(SpearFeaturesConfig(model=str(folder), layer=layer))


def cuts_of(folder: Path, lengths: list[int], rate: int = 16000) -> CutSet:
    cuts = []
    for number, length in enumerate(lengths):
        path = folder / f"{number}.wav"
        soundfile.write(path, noise(length).numpy(), rate, subtype="FLOAT")
        recording = Recording.from_file(path, recording_id=f"recording-{number}")
        cuts.append(recording.to_cut())
    return CutSet.from_cuts(cuts)


def check_stored(cuts: CutSet, extractor: SpearFeatures) -> None:
    """Whatever lhotse believes about stored features is true."""
    validate(cuts, read_data=True)
    for cut in cuts:
        assert cut.features.type == "spear-encoder"
        expected = compute_num_frames(cut.duration, extractor.frame_shift, 16000)
        assert cut.load_features().shape == (expected, cut.num_features)
        assert cut.num_frames == expected
        assert cut.num_features == extractor.feature_dim(16000)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_features_of_odd_durations_are_valid(kind: str, tmp_path: Path) -> None:
    extractor = extractor_of(kind, tmp_path)
    cuts = cuts_of(tmp_path, ODD_LENGTHS)
    stored = cuts.compute_and_store_features(
        extractor, tmp_path / "features", storage_type=NumpyFilesWriter, progress_bar=False
    )
    check_stored(stored, extractor)


@pytest.mark.parametrize("collate", [False, True])
@pytest.mark.parametrize("max_duration", [0.5, 600.0], ids=["alone", "together"])
def test_stored_in_batches_they_are_the_same(
    collate: bool, max_duration: float, tmp_path: Path
) -> None:
    extractor = extractor_of("padded", tmp_path)
    cuts = cuts_of(tmp_path, ODD_LENGTHS)
    stored = cuts.compute_and_store_features_batch(
        extractor,
        tmp_path / "features",
        batch_duration=max_duration,
        num_workers=0,
        collate=collate,
        storage_type=NumpyFilesWriter,
    )
    check_stored(stored, extractor)
    for cut in stored:
        alone = extractor.extract(cut.load_audio(), 16000)
        np.testing.assert_allclose(cut.load_features(), alone, atol=1e-4)


def test_parts_of_stored_features_can_be_read(tmp_path: Path) -> None:
    extractor = extractor_of("padded", tmp_path)
    stored = cuts_of(tmp_path, [35123]).compute_and_store_features(
        extractor, tmp_path / "features", storage_type=NumpyFilesWriter, progress_bar=False
    )
    cut = stored[0].truncate(offset=0.5, duration=1.003)
    part = cut.load_features()
    assert part.shape == (compute_num_frames(1.003, 0.02, 16000), 48)
    np.testing.assert_array_equal(part, stored[0].load_features()[25 : 25 + len(part)])


def test_features_are_made_in_a_data_loader(tmp_path: Path) -> None:
    extractor = extractor_of("padded", tmp_path)
    cuts = cuts_of(tmp_path, [16000, 8000])
    features, lens = OnTheFlyFeatures(extractor)(cuts)
    one_by_one, _ = OnTheFlyFeatures(extractor, use_batch_extract=False)(cuts)
    assert features.shape == (2, 50, 48)
    assert lens.tolist() == [50, 25]
    torch.testing.assert_close(features, one_by_one, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(("layer", "width"), [("last", 48), (0, 32), (1, 32), (2, 48)])
def test_a_layer_can_be_chosen(layer: int | str, width: int, tmp_path: Path) -> None:
    extractor = extractor_of("25 Hz", tmp_path, layer)
    features = extractor.extract(noise(16000).numpy(), 16000)
    output = tiny_encoder("25 Hz")(noise(16000).unsqueeze(0))
    expected = output["encoder_out"]
    if layer != "last":
        expected = (output["embeddings"], *output["hidden_states"])[int(layer)]
    np.testing.assert_allclose(features, expected[0].detach().numpy(), atol=1e-5)
    assert extractor.feature_dim(16000) == width
    assert extractor.frame_shift == (0.04 if layer == "last" else 0.02)


def test_the_configuration_goes_round(tmp_path: Path) -> None:
    extractor = extractor_of("padded", tmp_path, layer=1)
    content = extractor.to_dict()
    assert content["feature_type"] == "spear-encoder"
    extractor.to_yaml(tmp_path / "features.yaml")
    audio = noise(8000).numpy()
    expected = extractor.extract(audio, 16000)
    for again in (
        FeatureExtractor.from_dict(dict(content)),
        FeatureExtractor.from_yaml(tmp_path / "features.yaml"),
    ):
        assert isinstance(again, SpearFeatures)
        assert again.config == extractor.config
        np.testing.assert_array_equal(again.extract(audio, 16000), expected)


def test_lhotse_knows_it_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEAR_MODEL", str(write_folder(tmp_path / "model", tiny_encoder())))
    extractor = create_default_feature_extractor("spear-encoder")
    assert extractor is not None
    assert extractor.device == "cpu"
    assert extractor.extract(noise(16000).numpy(), 16000).shape == (50, 48)
    monkeypatch.delenv("SPEAR_MODEL")
    with pytest.raises(ConfigError, match="set SPEAR_MODEL"):
        create_default_feature_extractor("spear-encoder").feature_dim(16000)  # type: ignore[union-attr]


def test_another_process_is_sent_no_weights(tmp_path: Path) -> None:
    extractor = extractor_of("padded", tmp_path)
    loaded = extractor._read
    sent = copy.copy(extractor)  # by the same protocol
    assert "_read" not in vars(sent)
    assert sent.config == extractor.config
    assert sent._read is not loaded


@pytest.mark.parametrize(
    ("samples", "shape"),
    [
        (np.zeros(16000, np.float32), (50, 48)),
        (torch.zeros(1, 16000), (50, 48)),
        (np.zeros((3, 16000), np.float32), (3, 50, 48)),
        ([np.zeros((1, 16000), np.float32)], [(50, 48)]),
        ([torch.zeros(1, 16000), torch.zeros(16000)], (2, 50, 48)),
        ([np.zeros(16000, np.float32), np.zeros(8000, np.float32)], [(50, 48), (25, 48)]),
    ],
    ids=["array", "tensor", "rows", "list of one", "same", "different"],
)
def test_batches_come_back_as_they_were_given(samples: Any, shape: Any, tmp_path: Path) -> None:
    features = extractor_of("padded", tmp_path).extract_batch(samples, 16000)
    first = samples[0] if isinstance(samples, list) else samples
    parts = features if isinstance(features, list) else [features]
    assert all(isinstance(part, type(first)) for part in parts)
    found = [part.shape for part in features] if isinstance(features, list) else features.shape
    assert found == shape


def test_padding_of_a_batch_is_not_looked_at(tmp_path: Path) -> None:
    extractor, audio = extractor_of("padded", tmp_path), noise(2, 16000)
    audio[1, 5000:] = float("nan")
    features = extractor.extract_batch(audio, 16000, lengths=torch.tensor([16000, 5000]))
    assert [len(x) for x in features] == [50, 16]
    alone = extractor.extract(audio[1, :5000], 16000)
    torch.testing.assert_close(features[1], alone, atol=1e-4, rtol=0.0)
    one = extractor.extract_batch(audio[:1], 16000, lengths=torch.tensor([16000]))
    assert one.shape == (1, 50, 48)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(16000, np.float32), 8000, "8000 Hz"),
        (np.zeros((2, 16000), np.float32), 16000, "stereo"),
        (np.zeros(16000, np.int16), 16000, "divide by 32768"),
        (np.zeros(0, np.float32), 16000, "empty"),
        (np.zeros(159, np.float32), 16000, "shorter than half a frame of 20 ms"),
    ],
)
def test_what_is_no_recording_is_refused(
    samples: Any, rate: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(AudioError, match=message):
        extractor_of("padded", tmp_path).extract(samples, rate)


def test_cuts_of_another_rate_are_refused(tmp_path: Path) -> None:
    extractor = extractor_of("padded", tmp_path)
    with pytest.raises(AudioError, match="8000 Hz"):
        extractor.feature_dim(8000)
    cut = cuts_of(tmp_path, [8000], rate=8000)[0]
    assert isinstance(cut, MonoCut)
    with pytest.raises(AudioError, match="8000 Hz"):
        cut.compute_features(extractor)
    (right,) = cuts_of(tmp_path, [16000])
    assert right.compute_features(extractor).shape == (50, 48)


@pytest.mark.parametrize("layer", ["first", "1", 1.0, True])
def test_layers_have_numbers(layer: Any) -> None:
    with pytest.raises(ConfigError, match="the number of a layer"):
        SpearFeaturesConfig(layer=layer)


def test_unknown_layers_and_fields_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[9\] do not exist"):
        extractor_of("padded", tmp_path, layer=9).feature_dim(16000)
    with pytest.raises(ConfigError, match="layers"):
        FeatureExtractor.from_dict({"feature_type": "spear-encoder", "layers": 3})
