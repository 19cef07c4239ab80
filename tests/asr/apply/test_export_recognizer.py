"""A recogniser exported for transformers says what it says here."""

import json

import numpy as np
import pytest
import torch

import spear
from spear.asr import load_asr_model, transcribe
from spear.asr.tokenizer import Tokenizer
from spear.errors import CheckpointError
from spear.hub.export import ExportConfig
from spear.hub.export import run as export
from spear.system.weights import load_exact


@pytest.fixture(scope="module")
def folder(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "recognizer"
    export(ExportConfig(str(trained_run), str(folder), weights="last", layout="ctc"))
    return folder


@pytest.fixture(scope="module")
def batch(sing, tone_texts):
    recordings = [torch.as_tensor(sing(text, seed=i)) for i, text in enumerate(tone_texts)]
    lens = torch.tensor([len(recording) for recording in recordings])
    return torch.nn.utils.rnn.pad_sequence(recordings, batch_first=True).float(), lens


@torch.no_grad()
def test_transformers_gives_our_text_and_scores(folder, trained_run, batch, tone_texts):
    transformers = pytest.importorskip("transformers")
    import spear.hub  # noqa: F401 (registers the classes)

    ours = load_asr_model(trained_run, "last")
    theirs = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    audio, lens = batch
    fbank, fbank_lens = theirs.encoder.fbank(audio, lens)
    log_probs, frames = ours.log_probs(fbank, fbank_lens)
    found = theirs(audio, audio_lens=lens)
    assert torch.equal(found.logits_lens, frames)
    torch.testing.assert_close(found.logits, log_probs, atol=1e-5, rtol=0.0)
    texts = theirs.transcribe(audio, audio_lens=lens)
    assert texts == [t.text for t in ours.recognize(fbank, fbank_lens)] == tone_texts


@torch.no_grad()
def test_its_encoder_loads_alone(folder, trained_run, batch):
    audio, lens = batch
    encoder = spear.from_pretrained(folder)
    recognizer = load_asr_model(trained_run, "last")
    body = {**recognizer.encoder.state_dict(), "mask_emb": encoder.model.mask_emb}
    again = type(encoder)(encoder.config).eval()
    load_exact(again.model, body, "the run")
    assert torch.equal(encoder(audio, lens)["encoder_out"], again(audio, lens)["encoder_out"])


def test_it_carries_its_tokenizer_and_vocabulary(folder, trained_run):
    tokenizer = Tokenizer.load(folder / "tokenizer")
    assert tokenizer.sha256 == load_asr_model(trained_run, "last").tokenizer.sha256
    vocabulary = json.loads((folder / "config.json").read_text())["vocabulary"]
    assert len(vocabulary) == tokenizer.vocab_size
    assert vocabulary[2:] == [tokenizer.piece(i) for i in range(2, tokenizer.vocab_size)]
    assert "Fine-tuned with spear" in (folder / "README.md").read_text()


def test_an_encoder_is_no_recogniser(export_folder, tmp_path):
    with pytest.raises(CheckpointError):
        export(ExportConfig(str(export_folder), str(tmp_path / "out"), layout="ctc"))


def test_a_recogniser_leaves_its_run_whole(trained_run, tone_shards, tmp_path):
    output = tmp_path / "recogniser"
    export(ExportConfig(str(trained_run), str(output), "last", "recognizer"))
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer", "modeling_spear.py"} <= names
    ours, theirs = load_asr_model(output), load_asr_model(trained_run, "last")
    audio = [0.1 * np.random.default_rng(0).standard_normal(16000)]
    assert transcribe(ours, audio) == transcribe(theirs, audio)
    assert json.loads((output / "spear_export.json").read_text())["weights"] == "last"
