"""icefall's recognisers, made here as icefall writes them, and recognisers as folders."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from lhotse import Recording
from lhotse.shar import SharWriter
from torch import Tensor

from spear.asr.apply.decode import DecodeConfig
from spear.asr.apply.decode import run as decode
from spear.asr.apply.recognize import transcribe
from spear.asr.apply.search import Search, SearchConfig
from spear.asr.loading import load_asr_model
from spear.asr.model import AsrModel
from spear.asr.tokenizer import Tokenizer
from spear.asr.transducer import TransducerConfig, TransducerModel
from spear.errors import CheckpointError, ConfigError
from spear.hub.export import write_recognizer
from spear.hub.icefall.command import ImportIcefallConfig, run
from spear.hub.onnx.source import load_source
from spear.hub.plain_ctc import check_plain_ctc
from tests.encoders.test_encoder import tiny_config

TEXTS = ["THE CAT SAT ON THE MAT", "A HAT FOR THE CAT", "THAT CAT HAS NO HAT"]


@pytest.fixture(scope="module")
def bpe_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as icefall's local/train_bpe_model.py makes it: unknown is id 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="unigram",
        vocab_size=20,
        character_coverage=1.0,
        user_defined_symbols=["<blk>", "<sos/eos>"],
        unk_id=2,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("lang") / "bpe.model"
    path.write_bytes(model.getvalue())
    return path


def make_model(bpe_model: Path, head: str, **sizes: Any) -> AsrModel:
    torch.manual_seed(5)
    tokenizer = Tokenizer.from_sentencepiece(bpe_model)
    config = tiny_config(frontend_pad=False, output_downsampling_factor=2)
    if head == "ctc":
        return AsrModel(config, tokenizer).eval()
    transducer = TransducerConfig(decoder_dim=12, joiner_dim=10, **sizes)
    return TransducerModel(config, tokenizer, transducer).eval()


def as_icefall(model: AsrModel, *left_out: str) -> dict[str, Tensor]:
    return {
        name.replace("ctc_head.linear.", "ctc_output.1.").removeprefix("encoder."): value
        for name, value in model.state_dict().items()
        if not name.startswith(left_out or ("nothing",))
    }


def write_epoch(path: Path, model: AsrModel, state: dict[str, Tensor]) -> Path:
    values = model.encoder.config.to_dict()
    options = {k: ",".join(map(str, v)) for k, v in values.items() if isinstance(v, list)}
    del options["embed_channels"]
    plain = {k: values[k] for k in ("pos_dim", "causal", "feature_dim")}
    torch.save({"model": state, **options, **plain}, path)
    return path


def import_it(checkpoint: Path, bpe_model: Path, output: Path) -> AsrModel:
    run(ImportIcefallConfig(str(checkpoint), str(output), bpe_model=str(bpe_model)))
    return load_asr_model(output)


@pytest.mark.parametrize("head", ["ctc", "transducer"])
def test_a_recogniser_comes_whole(bpe_model: Path, tmp_path: Path, head: str) -> None:
    model = make_model(bpe_model, head)
    path = write_epoch(tmp_path / "epoch-9.pt", model, as_icefall(model))
    loaded = import_it(path, bpe_model, tmp_path / "recogniser")
    assert type(loaded) is type(model)
    audio = [0.1 * np.random.default_rng(n).standard_normal(20000 + n) for n in range(2)]
    for method in ("greedy", "beam"):
        search = SearchConfig(method=method)
        assert transcribe(loaded, audio, search=search) == transcribe(model, audio, search=search)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_other_decoders_are_left_aside_and_named(
    bpe_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(bpe_model, "transducer", context_size=1)
    state = {**as_icefall(model), "attention_decoder.out.weight": torch.zeros(3, 3)}
    with caplog.at_level(logging.INFO):
        loaded = import_it(
            write_epoch(tmp_path / "e.pt", model, state), bpe_model, tmp_path / "out"
        )
    assert "left aside: attention_decoder" in caplog.text
    assert isinstance(loaded, TransducerModel)
    assert loaded.transducer.context_size == 1


def test_a_transducer_without_ctc_says_so(bpe_model: Path, tmp_path: Path) -> None:
    model = make_model(bpe_model, "transducer")
    path = write_epoch(tmp_path / "e.pt", model, as_icefall(model, "ctc_head"))
    loaded = import_it(path, bpe_model, tmp_path / "out")
    audio = [0.1 * np.ones(16000, dtype=np.float32)]
    assert transcribe(loaded, audio) == transcribe(model, audio)
    with pytest.raises(ConfigError, match="was never trained"):
        Search(loaded, SearchConfig(head="ctc"))
    with pytest.raises(ConfigError, match="trained without CTC: no head to export"):
        check_plain_ctc(loaded, tmp_path / "out")


def test_what_does_not_fit_is_named(bpe_model: Path, tmp_path: Path) -> None:
    model = make_model(bpe_model, "transducer")
    state = as_icefall(model)
    encoder = {name: value for name, value in state.items() if name.startswith("encoder")}
    broken = {name: value for name, value in state.items() if name != "joiner.output_linear.bias"}
    longer = {**state, "joiner.output_linear.weight": torch.zeros(31, 10)}
    for content, message in (
        (encoder, "holds no recogniser, neither joiner nor ctc_output"),
        (broken, r"e\.pt.*missing: joiner\.output_linear\.bias"),
        (longer, "has 31 tokens, the tokenizer 20: it is the tokenizer of another model"),
    ):
        path = write_epoch(tmp_path / "e.pt", model, content)
        with pytest.raises(CheckpointError, match=message):
            import_it(path, bpe_model, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"none\.model cannot be read"):
        import_it(path, tmp_path / "none.model", tmp_path / "out")
    (tmp_path / "bad.model").write_bytes(b"bad")
    with pytest.raises(CheckpointError, match=r"bad\.model: this is no sentencepiece model"):
        import_it(path, tmp_path / "bad.model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_characters_have_the_models_own_id(bpe_model: Path) -> None:
    tokenizer = Tokenizer.from_sentencepiece(bpe_model)
    assert tokenizer.unknown_id == 2
    assert tokenizer.unknown_id in tokenizer.encode("THE CÄT")
    assert tokenizer.decode(tokenizer.encode("THE CAT")) == "THE CAT"
    assert tokenizer.config.vocab_size == tokenizer.vocab_size == 20


def test_commands_take_a_recogniser_without_its_run(bpe_model: Path, tmp_path: Path) -> None:
    import soundfile

    folder = tmp_path / "recogniser"
    write_recognizer(make_model(bpe_model, "ctc"), folder, {"weights": "last"})
    assert json.loads((folder / "spear_export.json").read_text())["weights"] == "last"
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(16000), 16000)
    (tmp_path / "shards").mkdir()
    with SharWriter(str(tmp_path / "shards"), fields={"recording": "flac"}) as writer:
        cut = Recording.from_file(tmp_path / "a.wav").to_cut()
        cut.custom = {"domain": "speech"}
        writer.write(cut)
    decode(DecodeConfig(str(folder), [str(tmp_path / "shards")], device="cpu"))
    summary = json.loads((folder / "decode" / "summary.json").read_text())
    assert summary["weights"] == "its own"


def test_changed_weights_are_refused(bpe_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recogniser"
    write_recognizer(make_model(bpe_model, "ctc"), folder, {})
    with open(folder / "model.safetensors", "r+b") as stream:
        stream.seek(-1, io.SEEK_END)
        stream.write(b"\x7f")
    with pytest.raises(CheckpointError, match="was changed since its export"):
        load_asr_model(folder)


@pytest.mark.parametrize("head", ["ctc", "transducer"])
@torch.no_grad()
def test_an_imported_recogniser_reaches_onnx_and_transformers(
    bpe_model: Path, tmp_path: Path, head: str
) -> None:
    transformers = pytest.importorskip("transformers")
    import spear.hub

    model = make_model(bpe_model, head)
    path = write_epoch(tmp_path / "epoch-9.pt", model, as_icefall(model))
    folder = tmp_path / "recogniser"
    import_it(path, bpe_model, folder)
    audio, lens = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 9000])
    theirs = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    fbank, fbank_lens = theirs.encoder.fbank(audio, lens)
    expected, num_frames = model.log_probs(fbank, fbank_lens)
    found = theirs(audio, audio_lens=lens)
    assert torch.equal(found.logits_lens, num_frames)
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=0.0)
    source = load_source(str(folder), "averaged")
    graph, graph_lens = source.graph(fbank, fbank_lens)
    assert torch.equal(graph_lens, num_frames)
    torch.testing.assert_close(graph[0], expected[0], atol=1e-4, rtol=0.0)
    assert source.vocabulary == model.tokenizer.vocabulary
    encoder = spear.from_pretrained(folder)
    output = encoder.encode_fbank(fbank, fbank_lens)["encoder_out"]
    assert torch.equal(output, model.encoder(fbank, fbank_lens).output)


def test_what_others_cannot_run_still_comes_whole(bpe_model: Path, tmp_path: Path) -> None:
    """A mixture of layers, or a transducer without CTC: transformers gets the encoder."""
    transformers = pytest.importorskip("transformers")
    import spear.hub  # noqa: F401 (registers the classes)

    tokenizer = Tokenizer.from_sentencepiece(bpe_model)
    mixed = AsrModel(tiny_config(), tokenizer, layers="weighted").eval()
    audio = [0.1 * np.ones(16000, dtype=np.float32)]
    for name, model in (
        ("mixed", mixed),
        ("without", make_model(bpe_model, "transducer", ctc_weight=0.0)),
    ):
        folder = tmp_path / name
        write_recognizer(model, folder, {})
        loaded = load_asr_model(folder)
        assert transcribe(loaded, audio) == transcribe(model, audio)
        with pytest.raises(ConfigError):
            load_source(str(folder), "averaged")
        with pytest.raises(ConfigError, match="vocabulary"):
            transformers.AutoModelForCTC.from_pretrained(folder)
        encoder = transformers.AutoModel.from_pretrained(folder).eval()
        assert encoder(torch.from_numpy(audio[0])[None]).last_hidden_state.isfinite().all()


def test_folders_of_an_earlier_version_say_so(tmp_path: Path) -> None:
    (tmp_path / "recognizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="earlier version: export it again"):
        load_asr_model(tmp_path)
