"""Long recordings: windows keep every frame once, and one search goes over all of them."""

import pytest
import torch

from spear.asr.apply.long_recordings import Window, WindowConfig, cut_windows
from spear.asr.apply.recognize import recognize
from spear.asr.apply.search import Search, SearchConfig
from spear.asr.apply.utterances import from_array
from spear.asr.model import AsrModel
from spear.asr.search.ctc_beam import BeamConfig
from spear.asr.search.hotwords import HotwordsConfig
from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.asr.transducer import TransducerConfig, TransducerModel
from spear.audio import Fbank, num_fbank_frames
from spear.encoders.windows import Windows
from spear.errors import ConfigError
from spear.zipformer import ZipformerConfig

RATE = 16000
NUM_BINS = 40
WINDOWS = Windows(core=96, context=32)
SHORT = WindowConfig(length_s=1.6, overlap_s=0.64)
"""The same in seconds: a window keeps 0.96 s, about as long as a word."""


@pytest.mark.parametrize("num_frames", [0, 1, 97, 160, 161, 224, 225, 5000])
def test_windows_keep_every_frame_once_and_see_their_neighbours(num_frames):
    kept = []
    for seen, core in WINDOWS.cut(num_frames):
        frames = list(range(num_frames))[seen]
        kept += frames[core]
        assert len(frames) <= 96 + 2 * 32
        assert not kept or frames[0] == max(0, frames[core][0] - 32)
        assert core.stop is None or core.stop - core.start == 96
        assert seen.start % 32 == 0
    assert kept == list(range(num_frames))


def test_features_of_windows_are_those_of_the_whole():
    audio = 0.1 * torch.randn(4 * RATE + 77, generator=torch.manual_seed(0))
    recording, fbank = from_array(0, audio), Fbank(num_mel_bins=NUM_BINS)
    (whole,), _ = fbank(audio.unsqueeze(0), torch.tensor([len(audio)]))
    windows = list(cut_windows([recording], [0], WINDOWS))
    assert len(windows) == 4 and [w.is_last for w in windows] == [False] * 3 + [True]
    for window in windows:
        torch.testing.assert_close(
            window.fbank(recording, fbank), whole[window.seen], atol=1e-5, rtol=1e-5
        )
    assert list(cut_windows([recording], [0], None)) == [
        Window(0, slice(0, num_fbank_frames(len(audio))), slice(0, None))
    ]


def test_windows_that_do_not_get_on_are_refused():
    for length_s, overlap_s in ((10.0, 0.0), (10.0, 5.1), (0.0, 0.0)):
        with pytest.raises(ConfigError, match="overlap_s"):
            WindowConfig(length_s, overlap_s)


# Recognisers whose frames depend on 20 ms alone: in windows they hear what they hear in one pass.

TONES_HZ = {"A": 400.0, "B": 900.0, "C": 1700.0, "D": 3000.0, " ": 5000.0}


def tone(frequency_hz, seconds=0.12):
    return torch.sin(2 * torch.pi * frequency_hz * torch.arange(round(seconds * RATE)) / RATE)


def say(text):
    """Speaks letters as tones with pauses; "?" is a D in which there is some of an A."""
    pause = torch.zeros(RATE // 20)
    parts = [pause, pause]
    for letter in text:
        sound = 0.3 * tone(TONES_HZ["D" if letter == "?" else letter])
        if letter == "?":
            sound += 0.15 * tone(TONES_HZ["A"])
        parts += [sound, pause]
    audio = torch.cat([*parts, pause])
    return audio + 0.001 * torch.randn(len(audio), generator=torch.manual_seed(0))


def hear(fbank, lens):
    """(B, T, M) -> (B, T // 2, M): means of pairs."""
    return fbank[:, : fbank.size(1) // 2 * 2].unflatten(1, (-1, 2)).mean(dim=2), lens // 2


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["AB CD"], TokenizerConfig())


def detectors(tokenizer):
    """(V, M) and (V,): above 0 where a letter's tone is heard."""
    weight = torch.zeros(tokenizer.vocab_size, NUM_BINS)
    bias = torch.full((tokenizer.vocab_size,), -30.0)
    for letter, frequency_hz in TONES_HZ.items():
        samples = 0.3 * tone(frequency_hz)
        (fbank,), _ = Fbank(NUM_BINS)(samples.unsqueeze(0), torch.tensor([len(samples)]))
        level, place = fbank.mean(dim=0).max(dim=0)
        token = tokenizer.encode(f"A{letter}A")[1]
        weight[token, place], bias[token] = 1.0, 4.0 - level
    return weight, bias


def small_encoder():
    return ZipformerConfig(
        feature_dim=NUM_BINS,
        downsampling_factor=(1, 2),
        encoder_dim=(NUM_BINS,),
        num_encoder_layers=(1, 1),
        encoder_unmasked_dim=(NUM_BINS,),
        query_head_dim=(8,),
        value_head_dim=(8,),
        num_heads=(2,),
        feedforward_dim=(64,),
        cnn_module_kernel=(15,),
        pos_dim=16,
        embed_channels=(4, 8, 16),
    )


@pytest.fixture(scope="module")
def ctc(tokenizer):
    model = AsrModel(small_encoder(), tokenizer).eval()
    weight, bias = detectors(tokenizer)
    bias[0] = 0.0
    model.ctc_head.linear.load_state_dict({"weight": weight, "bias": bias})
    model.encode = hear
    return model


@pytest.fixture(scope="module")
def transducer(tokenizer):
    """Writes a label where its tone is heard and the label before is another one."""
    size = tokenizer.vocab_size
    sizes = TransducerConfig(decoder_dim=4 * size, joiner_dim=size, context_size=1)
    model = TransducerModel(small_encoder(), tokenizer, sizes).eval()
    weight, bias = detectors(tokenizer)
    same = torch.eye(size, 4 * size)
    with torch.no_grad():
        model.decoder.embedding.weight.copy_(same)
        model.joiner.encoder_proj.load_state_dict({"weight": 0.1 * weight, "bias": 0.1 * bias})
        model.joiner.decoder_proj.load_state_dict(
            {"weight": -9.0 * same, "bias": torch.zeros(size)}
        )
        model.joiner.output_linear.load_state_dict(
            {"weight": 20.0 * torch.eye(size), "bias": torch.zeros(size)}
        )
        model.joiner.output_linear.weight[0] = 0.0  # the blank
    model.encode = hear
    return model


def texts(model, audio, search=None, windows=None):
    recordings = [from_array(number, one) for number, one in enumerate(audio)]
    found = recognize(Search(model, search), recordings, 20.0, windows=windows)
    return [transcripts[0] for transcripts in found]


@pytest.mark.parametrize("method", ["greedy", "beam"])
@pytest.mark.parametrize("kind", ["ctc", "transducer"])
def test_words_over_seams_come_once(request, kind, method):
    if (kind, method) == ("ctc", "beam"):
        pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is missing")
    model, search = request.getfixturevalue(kind), SearchConfig(method)
    said = [" ".join(["ABCD", "BADC", "CDAB", "DABA"] * 3), "AB", "ABAB CDCD", "C"]
    audio = [*map(say, said), torch.zeros(0)]
    whole = texts(model, audio, search)
    assert [one.text for one in whole] == [*said, ""]
    found = texts(model, audio, search, SHORT)
    assert [(one.text, one.times_s) for one in found] == [(one.text, one.times_s) for one in whole]


BIGRAMS = """\\data\\
ngram 1=6
ngram 2=1

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-1.0\t</s>
-1.0\tAB\t-0.3
-1.0\tCD
-1.0\tCA

\\2-grams:
-0.1\tAB CA

\\end\\
"""


def assert_seam_is_no_limit(model, search, text):
    """A search finds a text over the seam at 0.96 s that sound alone does not give."""
    audio = [torch.cat((torch.zeros(RATE // 5), say("AB C?")))]
    (plain,), (whole,) = (texts(model, audio, one) for one in (SearchConfig("beam"), search))
    (found,) = texts(model, audio, search, SHORT)
    assert text in whole.text and text not in plain.text
    assert (found.text, found.times_s) == (whole.text, whole.times_s)
    assert found.times_s[0] < 0.9 and 0.96 < found.times_s[4] < 1.1


def test_an_ngram_looks_over_the_seam(ctc, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    (tmp_path / "words.arpa").write_text(BIGRAMS)
    beam = BeamConfig(lm=str(tmp_path / "words.arpa"), lm_weight=8.0)
    assert_seam_is_no_limit(ctc, SearchConfig("beam", beam=beam), "AB CA")


@pytest.mark.parametrize("kind", ["ctc", "transducer"])
def test_a_phrase_goes_over_the_seam(request, kind, tmp_path):
    if kind == "ctc":
        pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is missing")
    (tmp_path / "phrases.txt").write_text("AB CA\n")
    search = SearchConfig("beam", hotwords=HotwordsConfig(str(tmp_path / "phrases.txt"), 3.0))
    assert_seam_is_no_limit(request.getfixturevalue(kind), search, "AB CA")
