"""`spear view`: the numbers behind the pictures, the pictures, and the page that holds them."""

import base64
import itertools
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from spear.audio import Fbank
from spear.encoders.encoder import SpearEncoder
from spear.errors import AudioError, CheckpointError, ConfigError, MissingPackageError
from spear.hub.token_heads import TokenHeads, load_token_heads, write_token_heads
from spear.view.command import ViewConfig, look, run
from spear.view.numbers import layer_colours, pooling_step, principal_scores, similarity
from spear.view.pictures import (
    View,
    confidence,
    draw_everything,
    draw_layers_alone,
    draw_similarity_alone,
    draw_tokens_alone,
    mel_positions,
    token_colours,
)
from tests.hub.models import tiny_config, write_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEACHERS = {
    "wavlm": {"num_codebooks": 16, "codebook_size": 256, "frame_rate_hz": 50.0},
    "kmeans": {"num_codebooks": 1, "codebook_size": 500, "frame_rate_hz": 50.0},
}
PARTS = ("", "_log_mel", "_layers", "_tokens", "_similarity")


def noise(seconds: float) -> np.ndarray:
    generator = np.random.default_rng(1)
    return (0.1 * generator.standard_normal(round(16000 * seconds))).astype(np.float32)


def random_frames(num_frames: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(1, -1, dim)
    return torch.randn(num_frames, dim, generator=generator) * scales


def add_heads(folder: Path, dim: int = 48) -> TokenHeads:
    generator = torch.Generator().manual_seed(2)
    state = {}
    for name, fields in TEACHERS.items():
        rows = int(fields["num_codebooks"] * fields["codebook_size"])
        state[f"heads.{name}.weight"] = torch.randn(rows, dim, generator=generator)
        state[f"heads.{name}.bias"] = torch.randn(rows, generator=generator)
    write_token_heads(folder, state, TEACHERS)
    heads = load_token_heads(folder)
    assert heads is not None
    return heads


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    return write_folder(tmp_path / "model", SpearEncoder(tiny_config()))


@pytest.fixture
def deep_view(tmp_path: Path) -> View:
    """Three seconds from the fifth on, as a model with as many layers as Base sees them."""
    torch.manual_seed(1)
    config = tiny_config(
        downsampling_factor=(1, 2, 4, 8, 4, 2, 1), num_encoder_layers=(1, 2, 3, 4, 1, 1, 1),
        encoder_dim=48, encoder_unmasked_dim=32, num_heads=2, feedforward_dim=48,
        cnn_module_kernel=7,
    )  # fmt: skip
    model = SpearEncoder(config).eval()
    return look(model, add_heads(tmp_path), noise(3.0), "a_$recording$.wav", begin_s=5.0)


def test_similarity_is_the_cosine_of_what_differs_from_the_mean() -> None:
    frames = random_frames(30, 8) + 100.0
    found = similarity(frames).numpy()
    centred = frames.numpy() - frames.numpy().mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    np.testing.assert_allclose(found, centred @ centred.T / np.outer(norms, norms), atol=1e-4)
    assert found.min() < -0.5  # without the mean taken away all would be near 1


def test_many_frames_are_averaged_before_they_are_compared() -> None:
    frames = random_frames(3100, 4)
    assert pooling_step(3100) == 3
    assert similarity(frames).shape == (1034, 1034)
    pooled = torch.stack([frames[i : i + 3].mean(0) for i in range(0, 3100, 3)])
    torch.testing.assert_close(similarity(frames), similarity(pooled))
    assert (pooling_step(1), pooling_step(1500), pooling_step(1501)) == (1, 1, 2)


def test_principal_components_explain_what_they_explain() -> None:
    frames = random_frames(200, 10)
    scores, explained = principal_scores(frames)
    covariance = np.cov(frames.numpy().T)
    values = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(explained.numpy(), values[:3] / values.sum(), rtol=1e-3)
    torch.testing.assert_close(scores.T @ scores / 200, torch.eye(3), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(scores.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0.0)


def test_signs_do_not_depend_on_the_solver() -> None:
    frames = random_frames(50, 6)
    scores, _ = principal_scores(frames)
    loadings = scores.T @ (frames - frames.mean(dim=0))
    largest = loadings.gather(1, loadings.abs().argmax(dim=1, keepdim=True))
    assert bool((largest > 0).all())


def test_a_turned_layer_keeps_its_colours() -> None:
    layer = random_frames(100, 12)
    turn = torch.linalg.qr(random_frames(12, 12, seed=1))[0]
    same, turned, wide = layer_colours([layer, layer @ turn, torch.cat((layer, layer), dim=1)])
    torch.testing.assert_close(turned.colours, same.colours, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(wide.colours, same.colours, atol=1e-3, rtol=0.0)
    assert float(same.colours.min()) >= 0.0
    assert float(same.colours.max()) <= 1.0
    assert float(same.colours.std()) > 0.1


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_few_or_equal_frames_are_grey_where_nothing_differs(num_frames: int) -> None:
    found = layer_colours([torch.ones(num_frames, 5), random_frames(num_frames, 2)])
    assert found[0].colours.shape == found[1].colours.shape == (num_frames, 3)
    assert bool((found[0].colours == 0.5).all())
    assert bool(torch.isfinite(found[1].colours).all())
    assert float(found[0].explained.sum()) == 0.0


def test_frequencies_lie_at_their_mel_bins() -> None:
    filters = Fbank(num_mel_bins=40).mel_weights
    hz = torch.arange(257) * 16000 / 512
    centres = ((filters * hz[:, None]).sum(0) / filters.sum(0)).numpy()
    found = mel_positions(centres[10:], 40)  # lower filters hold hardly more than one bin
    np.testing.assert_allclose(found, np.arange(10, 40), atol=0.3)


def test_every_token_has_its_colour() -> None:
    colours = token_colours(256)
    assert colours.shape == (256, 3)
    assert (colours.min() >= 0) and (colours.max() <= 1)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert (distances + np.eye(256)).min() > 0.04
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 0.4


def test_confidence_goes_from_a_guess_to_certainty() -> None:
    found = confidence(np.array([1 / 256, 1 / 16, 1.0, 1e-9]), 256)
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0, 0.0], atol=1e-9)


def images_of(figure: "Figure") -> dict[str, Any]:
    return {axes.get_title(): axes.images[0] for axes in figure.axes if axes.get_title()}


@pytest.mark.usefixtures("pictures")
def test_panels_share_the_time_of_the_recording(deep_view: View) -> None:
    figure = draw_everything(deep_view)
    images = images_of(figure)
    assert list(images) == [
        "log-mel energies",
        "layers: three principal components as colours",
        "predicted tokens of wavlm, pale where unsure",
        "predicted tokens of kmeans, pale where unsure",
        "similarity of the output's frames",
    ]
    figure.canvas.draw()
    lefts = set()
    for title, image in images.items():
        assert image.axes.get_xlim() == (5.0, 8.0)
        begin, end = image.get_extent()[:2]
        step = 0.01 if title.startswith("log-mel") else 0.02
        assert begin == pytest.approx(5.0 if step == 0.01 else 5.005)
        assert end == pytest.approx(begin + 3.0)
        if not title.startswith("similarity"):
            assert image.get_array().shape[1] == 3.0 / step
            box = image.axes.get_window_extent()
            lefts.add((round(box.x0), round(box.x1)))
    assert len(lefts) == 1


@pytest.mark.usefixtures("pictures")
def test_the_picture_shows_the_numbers(deep_view: View) -> None:
    images = list(images_of(draw_everything(deep_view)).values())
    layers, tokens = images[1], images[2]
    assert layers.get_array().shape == (14, 150, 3)
    np.testing.assert_allclose(layers.get_array()[13], deep_view.layers[13].colours, atol=0.01)
    assert layers.get_extent()[2:] == [13.5, -0.5]  # the front end on top
    labels = [label.get_text() for label in layers.axes.get_yticklabels()]
    assert labels[0] == "front end, 50 Hz"
    assert labels[4] == "4, 12.5 Hz"
    assert labels[13] == "13, 50 Hz"
    wavlm = deep_view.tokens["wavlm"]
    shown, paint = tokens.get_array(), token_colours(256)
    sure = confidence(wavlm.probabilities.numpy(), 256)
    for frame, codebook in ((0, 0), (77, 9), (149, 15)):
        colour = paint[int(wavlm.tokens[frame, codebook])]
        expected = 1 - sure[frame, codebook] * (1 - colour)
        np.testing.assert_allclose(shown[codebook, frame], expected, atol=0.01)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    "draw", [draw_everything, draw_layers_alone, draw_tokens_alone, draw_similarity_alone]
)
def test_no_words_lie_over_others(draw: Any, deep_view: View) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = draw(deep_view)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()))
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible()
    ]
    assert len(boxes) > 8
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), (one, other)
    width, height = figure.canvas.get_width_height()
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, name


@pytest.mark.usefixtures("pictures")
def test_the_page_holds_every_picture(model_folder: Path, tmp_path: Path) -> None:
    add_heads(model_folder)
    file = tmp_path / "a <b> & $x_1$.wav"
    soundfile.write(file, np.stack((noise(1.0), noise(1.0)), axis=1), 48000)
    run(ViewConfig(str(file), str(model_folder), str(tmp_path / "out"), offset_s=0.1, max_s=0.5))
    paths = [tmp_path / "out" / f"a <b> & $x_1${part}.png" for part in PARTS]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html", *(path.name for path in paths),
    }  # fmt: skip
    page = (tmp_path / "out/index.html").read_text("utf-8")
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(one) for one in embedded] == [path.read_bytes() for path in paths]
    assert "<h1>a &lt;b&gt; &amp; $x_1$.wav</h1>" in page
    assert "<b>" not in page
    assert page.count("src=") == len(paths)
    assert "<link" not in page
    assert "<td>0.10 s to 0.33 s</td>" in page  # 16,000 samples at 48 kHz are a third of a second
    assert "2 layers" in page
    assert "16 codebooks of 256; mean probability" in page


@pytest.mark.usefixtures("pictures")
def test_without_heads_no_tokens_are_drawn(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "x.wav", noise(0.4), 16000)
    out = tmp_path / "out"
    out.mkdir()
    (out / "x_tokens.png").write_bytes(b"of another model")
    with caplog.at_level(logging.INFO):
        run(ViewConfig(str(tmp_path / "x.wav"), str(model_folder), str(out)))
    assert sum("no token heads" in line for line in caplog.messages) == 1
    assert not (out / "x_tokens.png").exists()
    assert (out / "index.html").read_text().count("<img") == 4


def test_heads_are_asked_about_the_output(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = SpearEncoder(tiny_config(output_downsampling_factor=2)).eval()
    heads, audio = add_heads(tmp_path), noise(0.6)
    view = look(model, heads, audio)
    with torch.no_grad():
        out = model(torch.from_numpy(audio).unsqueeze(0))
    expected = heads.predict(out["encoder_out"][0])["wavlm"].tokens
    assert torch.equal(view.tokens["wavlm"].tokens, expected)
    assert view.output_grid.step_s == 0.04
    assert view.output_grid.edges(15) == pytest.approx((0.005, 0.605))
    assert view.layer_grid.edges(30) == pytest.approx((0.005, 0.605))
    assert [len(layer.colours) for layer in view.layers] == [30, 30, 30]
    assert list(view.rates_hz) == [50.0, 50.0, 25.0]


@pytest.mark.usefixtures("pictures")
def test_what_cannot_be_drawn_is_one_clear_error(model_folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", noise(0.4), 16000)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    good, model, out = str(tmp_path / "x.wav"), str(model_folder), str(tmp_path / "out")
    with pytest.raises(AudioError, match=r"none\.wav: no such file"):
        run(ViewConfig(str(tmp_path / "none.wav"), model, out))
    with pytest.raises(AudioError, match=r"bad\.wav: cannot be read"):
        run(ViewConfig(str(tmp_path / "bad.wav"), model, out))
    with pytest.raises(CheckpointError, match="neither a model folder"):
        run(ViewConfig(good, "no/such/model", out))
    with pytest.raises(ConfigError, match=r"offset_s 1 is behind the end .* 0\.40 s"):
        run(ViewConfig(good, model, out, offset_s=1.0))
    with pytest.raises(ConfigError, match=r"0\.004 s of .* too short for a frame"):
        run(ViewConfig(good, model, out, max_s=0.004))
    with pytest.raises(ConfigError, match="cannot be made a folder"):
        run(ViewConfig(good, model, good))
    with pytest.raises(ConfigError, match="offset_s is -1"):
        ViewConfig(good, model, out, offset_s=-1.0)
    with pytest.raises(ConfigError, match="max_s is 0"):
        ViewConfig(good, model, out, max_s=0.0)


def test_without_matplotlib_it_says_how_to_get_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str, purpose: str) -> None:
        raise MissingPackageError(f"{purpose} needs the package 'matplotlib'")

    monkeypatch.setattr("spear.view.command.require", missing)
    with pytest.raises(MissingPackageError, match="spear view needs the package 'matplotlib'"):
        run(ViewConfig(str(tmp_path / "x.wav"), str(model_folder), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
