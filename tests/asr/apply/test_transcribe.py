"""`spear transcribe` as a user meets it: files in, text on standard output or in a folder."""

import json

import pytest
import soundfile
import torch

from spear.asr.apply.recognize import transcribe
from spear.asr.apply.search import SearchConfig
from spear.asr.apply.streaming_recognizer import StreamingRecognizer
from spear.asr.apply.transcribe_files import TranscribeConfig, run
from spear.asr.loading import load_asr_model
from spear.asr.model import AsrModel
from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.asr.transducer import TransducerConfig, TransducerModel
from spear.errors import ConfigError, DataError
from spear.zipformer import ZipformerConfig


@pytest.fixture
def recordings(sing, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    soundfile.write(folder / "a.wav", sing("DA", seed=1), 16000)
    soundfile.write(folder / "deep" / "b.flac", sing("AB CD", seed=0), 16000)
    return folder


def test_text_of_one_file_is_alone_on_standard_output(trained_run, recordings, capsys):
    run(TranscribeConfig(str(trained_run), [str(recordings / "a.wav")]))
    assert capsys.readouterr().out == "DA\n"


def test_several_files_are_named(trained_run, recordings, capsys):
    run(TranscribeConfig(str(trained_run), [str(recordings)], num_workers=1))
    assert capsys.readouterr().out.splitlines() == [
        f"{recordings / 'a.wav'}\tDA",
        f"{recordings / 'deep' / 'b.flac'}\tAB CD",
    ]


def test_json_and_subtitles_in_a_folder(trained_run, recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for form in ("json", "srt"):
        run(TranscribeConfig(str(trained_run), ["in"], format=form, out="out"))
    content = json.loads((tmp_path / "out" / "in" / "deep" / "b.json").read_text())
    assert content["text"] == "AB CD"
    first, second = content["words"]
    assert (first["word"], second["word"]) == ("AB", "CD")
    assert 0 < first["start_s"] < first["end_s"] <= second["start_s"] < 1.2
    srt = (tmp_path / "out" / "in" / "a.srt").read_text().splitlines()
    assert srt[0] == "1" and " --> " in srt[1] and srt[2] == "DA"


def test_beam_search_is_an_option(trained_run, sing, tone_texts):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    model = load_asr_model(trained_run)
    audio = [sing(text, seed=i) for i, text in enumerate(tone_texts)]
    found = transcribe(model, audio, search=SearchConfig("beam"))
    assert [transcript.text for transcript in found] == tone_texts
    assert all(transcript.score < 0 for transcript in found)


def test_bad_recordings_are_named_after_the_others(trained_run, recordings, capsys):
    (recordings / "bad.wav").write_bytes(b"RIFF nothing")
    with pytest.raises(DataError, match=r"1 of 3 recordings could not be read: .*bad\.wav"):
        run(TranscribeConfig(str(trained_run), [str(recordings)]))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_what_cannot_be_done_is_refused(trained_run, recordings):
    with pytest.raises(ConfigError, match="no files"):
        run(TranscribeConfig(str(trained_run)))
    with pytest.raises(ConfigError, match="--out"):
        run(TranscribeConfig(str(trained_run), [str(recordings)], format="srt"))
    with pytest.raises(DataError, match="no such file"):
        run(TranscribeConfig(str(trained_run), ["nowhere.wav"]))
    with pytest.raises(ConfigError, match="cannot stream"):
        run(TranscribeConfig(str(trained_run), [str(recordings / "a.wav")], streaming=True))
    with pytest.raises(ConfigError, match="batch_s"):
        TranscribeConfig("x", batch_s=0.0)
    with pytest.raises(ConfigError, match=r"leave search\.num_best at 1"):
        TranscribeConfig("x", search=SearchConfig("beam", num_best=3))
    with pytest.raises(ConfigError, match="streaming is greedy"):
        TranscribeConfig("x", streaming=True, search=SearchConfig("beam"))
    for changes in ({"num_best": 0}, {"num_best": 2}):
        with pytest.raises(ConfigError, match="num_best"):
            SearchConfig(**changes)


@pytest.fixture(scope="module")
def causal_model():
    torch.manual_seed(0)
    config = ZipformerConfig(
        feature_dim=40,
        downsampling_factor=(1, 2),
        encoder_dim=(32,),
        num_encoder_layers=(1, 1),
        encoder_unmasked_dim=(32,),
        query_head_dim=(8,),
        value_head_dim=(8,),
        num_heads=(2,),
        feedforward_dim=(64,),
        cnn_module_kernel=(15,),
        pos_dim=16,
        embed_channels=(4, 8, 16),
        causal=True,
        chunk_size=(8,),
        left_context_frames=(32,),
    )
    model = AsrModel(config, Tokenizer.train(["AB CD", "DA"], TokenizerConfig())).eval()
    fbank = torch.randn(1, 400, 40, generator=torch.manual_seed(1)) * 4 - 10
    with torch.no_grad():  # no token is likelier than others, so they change all the time
        frames = model.encoder(fbank, torch.tensor([400])).output[0]
        head = model.ctc_head.linear
        head.weight.copy_(50 * torch.randn(head.weight.shape, generator=torch.manual_seed(2)))
        head.bias.copy_(-head.weight @ frames.mean(dim=0))
    return model


@pytest.mark.parametrize("num_pushed", [700, 16000])
def test_a_stream_gives_what_the_whole_gives(causal_model, sing, num_pushed):
    audio = torch.from_numpy(sing("AB CD DA BC"))
    (whole,) = transcribe(causal_model, [audio])
    stream = StreamingRecognizer(causal_model)
    tokens = [token for piece in audio.split(num_pushed) for token in stream.push(piece)]
    assert stream.transcript.tokens == tokens
    final = stream.finish()
    assert final == whole
    assert len(tokens) > 5 and tokens == final.tokens[: len(tokens)]


def test_a_transducer_streams_too(causal_model, sing):
    torch.manual_seed(3)
    sizes = TransducerConfig(decoder_dim=16, joiner_dim=16)
    model = TransducerModel(causal_model.encoder.config, causal_model.tokenizer, sizes).eval()
    with torch.no_grad():
        model.joiner.output_linear.weight.mul_(20)
    audio = torch.from_numpy(sing("AB CD DA BC"))
    stream = StreamingRecognizer(model)
    for piece in audio.split(3000):
        stream.push(piece)
    (whole,) = transcribe(model, [audio])
    found = stream.finish()
    assert found.tokens and (found.tokens, found.times_s) == (whole.tokens, whole.times_s)
    assert found.score == pytest.approx(whole.score, abs=1e-2)


def test_a_mixture_of_layers_cannot_stream(causal_model):
    mixed = AsrModel(causal_model.encoder.config, causal_model.tokenizer, layers="weighted")
    with pytest.raises(ConfigError, match="'weighted' cannot stream"):
        StreamingRecognizer(mixed)
