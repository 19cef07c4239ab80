"""ONNX files against the models they were made from, by onnxruntime and by sherpa-onnx."""

import importlib
import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor, nn

from spear.asr.ctc import greedy_decode
from spear.asr.loading import TOKENIZER_FOLDER, load_asr_model
from spear.asr.model import AsrModel
from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.audio import Fbank
from spear.config import parse_config
from spear.encoders.encoder import SpearEncoder
from spear.errors import CheckpointError, MissingPackageError
from spear.hub.export import ExportConfig, write_model_folder
from spear.hub.export import run as export
from spear.hub.onnx import export as command
from spear.hub.onnx import graph as onnx_graph
from spear.hub.onnx.check import measure_difference
from spear.hub.onnx.export import ExportOnnxConfig, run, token_lines
from spear.hub.onnx.graph import OnnxGraph, write_int8, write_onnx
from spear.hub.onnx.readme import readme
from spear.hub.onnx.source import OnnxSource, load_source
from spear.training.checkpoints.checkpoint import (
    CheckpointContent,
    checkpoint_path,
    save_checkpoint,
)
from spear.zipformer import Zipformer
from tests.hub.models import tiny_config

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ONE_STACK: dict[str, object] = {
    "downsampling_factor": (2,),
    "encoder_dim": (32,),
    "num_encoder_layers": (1,),
    "encoder_unmasked_dim": (24,),
    "num_heads": (2,),
    "feedforward_dim": (48,),
    "cnn_module_kernel": (7,),
}
LENGTHS = (1, 7, 13, 99, 100, 101, 333)


def stirred(model: nn.Module) -> Any:
    """Moves every weight, so that no branch is as good as absent."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def features(num_frames: int, num_bins: int = 128) -> Tensor:
    """Draws log-mel (T, M)."""
    return torch.randn(num_frames, num_bins, generator=torch.Generator().manual_seed(1)) * 3.0 - 8.0


def padded(utterances: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Makes a batch, with padding that spoils all it touches."""
    x = nn.utils.rnn.pad_sequence(utterances, batch_first=True, padding_value=float("nan"))
    return x, torch.tensor([len(utterance) for utterance in utterances])


def run_file(path: Path, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
    session = onnxruntime.InferenceSession(path)
    output, lens = session.run(None, {"x": x.numpy(), "x_lens": x_lens.numpy()})
    return torch.from_numpy(output), torch.from_numpy(lens)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of two stacks of different widths and rates."""
    folder = tmp_path_factory.mktemp("models") / "my encoder"
    write_model_folder(stirred(SpearEncoder(tiny_config())), folder, {"weights": "last"})
    return folder


@pytest.fixture(scope="module")
def encoder_folder(model_folder: Path) -> Path:
    folder = model_folder.parent / "encoder onnx"
    run(ExportOnnxConfig(str(model_folder), str(folder)))
    return folder


@pytest.fixture(scope="module")
def asr_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of `spear finetune-asr`: 25 Hz, no padding in the front end, BPE."""
    folder = tmp_path_factory.mktemp("runs") / "asr run"
    texts = ["ONE TWO THREE FOUR", "FIVE SIX SEVEN", "EIGHT NINE ZERO", "TWO ONE", "SIX NINE"]
    tokenizer = Tokenizer.train(texts, TokenizerConfig(model_type="bpe", vocab_size=36))
    config = tiny_config(**ONE_STACK, output_downsampling_factor=2, frontend_pad=False)
    model: AsrModel = stirred(AsrModel(config, tokenizer))
    with torch.no_grad():  # so that, as in a trained one, now this token wins and now that
        head = model.ctc_head.linear
        frames = model.encoder(*padded([features(400)])).output
        head.bias.copy_(-head.weight @ frames.mean(dim=(0, 1)))
    tokenizer.save(folder / TOKENIZER_FOLDER)
    state = {"step": 1, "num_averaged": 1}
    averaged = {name: value.double() for name, value in model.state_dict().items()}
    content = CheckpointContent(model.state_dict(), averaged, {}, state, model.model_config())
    save_checkpoint(checkpoint_path(folder, 1), content)
    return folder


@pytest.fixture(scope="module")
def recognizer_folder(asr_run: Path) -> Path:
    folder = asr_run.parent / "asr onnx"
    run(ExportOnnxConfig(str(asr_run), str(folder)))
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Zipformer, Path]:
    """A causal model, whose weights are taken to be too large for one file."""
    chunks: dict[str, object] = {"causal": True, "chunk_size": 16, "left_context_frames": 32}
    model: Zipformer = stirred(Zipformer(tiny_config(**ONE_STACK, **chunks)))
    path = tmp_path_factory.mktemp("causal") / "encoder.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "MAX_BYTES", 0)
        write_onnx(OnnxGraph(model), path, ("encoder_out", "encoder_out_lens"), {})
    return model, path


def check_lengths(model: Zipformer, head: nn.Module | None, path: Path) -> None:
    """Compares every length alone, and all in one batch, with the model on each alone."""
    utterances = [features(length) for length in LENGTHS]
    together, lens = run_file(path, *padded(utterances))
    for row, utterance in enumerate(utterances):
        x, x_lens = utterance.unsqueeze(0), torch.tensor([len(utterance)])
        encoded = model(x, x_lens)
        expected = encoded.output if head is None else head(encoded.output)
        alone, alone_lens = run_file(path, x, x_lens)
        assert alone.shape == expected.shape
        assert alone_lens.tolist() == encoded.lens.tolist() == [lens[row]]
        torch.testing.assert_close(alone, expected, atol=1e-4, rtol=0.0)
        found = together[row : row + 1, : expected.shape[1]]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0.0)


@torch.no_grad()
def test_encoder_gives_the_models_numbers(model_folder: Path, encoder_folder: Path) -> None:
    source = load_source(str(model_folder), "averaged")
    check_lengths(source.graph.zipformer, None, encoder_folder / "encoder.onnx")


@torch.no_grad()
def test_recognizer_gives_the_models_numbers(asr_run: Path, recognizer_folder: Path) -> None:
    model = load_asr_model(asr_run)
    check_lengths(model.encoder, model.ctc_head, recognizer_folder / "model.onnx")


@torch.no_grad()
def test_causal_model_is_exported_with_its_chunks(causal: tuple[Zipformer, Path]) -> None:
    model, path = causal
    check_lengths(model, None, path)
    x = features(120).unsqueeze(0)
    changed = x.clone()
    changed[:, 100:] += 1.0  # behind the first chunk and what the front end looks ahead
    lens = torch.tensor([120])
    before, after = (run_file(path, batch, lens)[0] for batch in (x, changed))
    torch.testing.assert_close(before[:, :32], after[:, :32], atol=1e-5, rtol=0.0)
    assert (before[:, 48:] - after[:, 48:]).abs().max() > 1e-2


def test_large_weights_lie_beside_the_graph(
    causal: tuple[Zipformer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = causal
    source = OnnxSource(OnnxGraph(model))
    assert ".data" not in readme("folder", source, {})
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", 0)
    text = readme("folder", source, {})
    assert "`encoder.onnx.data`" in text
    assert "chunk of 320 ms" in text
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    weights = path.with_name("encoder.onnx.data")
    assert weights.stat().st_size >= 0.9 * num_bytes
    small = path.with_name("encoder.int8.onnx")
    write_int8(path, small)
    weights.rename(path.with_name("gone"))
    try:
        assert measure_difference(OnnxGraph(model), small).relative < 0.1
    finally:
        path.with_name("gone").rename(weights)


@torch.no_grad()
def test_int8_stays_near(model_folder: Path, encoder_folder: Path) -> None:
    source = load_source(str(model_folder), "averaged")
    path = encoder_folder / "encoder.int8.onnx"
    x, x_lens = padded([features(333), features(100)])
    expected, lens = source.graph(x.nan_to_num(0.0), x_lens)
    found, _ = run_file(path, x.nan_to_num(0.0), x_lens)
    for row, length in enumerate(lens.tolist()):
        cosine = torch.cosine_similarity(found[row, :length], expected[row, :length], dim=1)
        assert cosine.min() > 0.999
    assert 1e-4 < measure_difference(source.graph, path).relative < 0.01


def test_int8_has_integers_in_all_linear_layers_but_one(encoder_folder: Path) -> None:
    counts = {}
    for name in ("encoder.onnx", "encoder.int8.onnx"):
        graph = onnx.load(encoder_folder / name).graph
        weights = {tensor.name for tensor in graph.initializer}
        products = [node.op_type for node in graph.node if weights & set(node.input[1:2])]
        counts[name] = {kind: products.count(kind) for kind in ("MatMul", "Gemm", "MatMulInteger")}
    # A layer has 2 + 2 + 2 x 2 + 2 x 2 + 3 x 2, one of them for positions, which have no batch. The
    # front end has 3, of which the last keeps its weights.
    assert counts["encoder.onnx"] == {"MatMul": 2 * 17 + 3, "Gemm": 2, "MatMulInteger": 0}
    assert counts["encoder.int8.onnx"] == {"MatMul": 1, "Gemm": 0, "MatMulInteger": 2 * 18 + 2}


def test_files_say_what_they_are(encoder_folder: Path, recognizer_folder: Path) -> None:
    names = sorted(path.name for path in encoder_folder.iterdir())
    assert names == ["README.md", "encoder.int8.onnx", "encoder.onnx"]
    names = sorted(path.name for path in recognizer_folder.iterdir())
    assert names == ["README.md", "model.int8.onnx", "model.onnx", "tokens.txt"]
    for name in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(recognizer_folder / name)
        properties = session.get_modelmeta().custom_metadata_map
        assert properties["model_type"] == "zipformer2_ctc"
        assert properties["feature_dim"] == "128"
        assert properties["frame_rate_hz"] == "25"
        inputs, outputs = session.get_inputs(), session.get_outputs()
        assert [(i.name, i.shape, i.type) for i in inputs] == [
            ("x", ["N", "T", 128], "tensor(float)"),
            ("x_lens", ["N"], "tensor(int64)"),
        ]
        assert [(o.name, o.shape, o.type) for o in outputs] == [
            ("log_probs", ["N", "T_out", 36], "tensor(float)"),
            ("log_probs_len", ["N"], "tensor(int64)"),
        ]
    model = onnx.load(recognizer_folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (9, 18)


def test_files_tell_nothing_of_the_machine(encoder_folder: Path, repo_dir: Path) -> None:
    content = (encoder_folder / "encoder.onnx").read_bytes()
    for trace in (str(repo_dir), str(encoder_folder.parent), ".py", "stack_trace"):
        assert trace.encode() not in content


def read_snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)


def write_audio(folder: Path, seconds: float = 2.0) -> Tensor:
    """Writes noise that comes and goes as audio.wav; returns the samples (S,)."""
    time = torch.arange(int(seconds * 16000)) / 16000
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(len(time), generator=generator) * (3.0 * time).sin()
    soundfile.write(folder / "audio.wav", 0.1 * noise.numpy(), 16000, subtype="FLOAT")
    return 0.1 * noise


@torch.no_grad()
def test_readme_of_an_encoder_runs(
    model_folder: Path,
    encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (snippet,) = read_snippets(encoder_folder)
    audio = write_audio(tmp_path)
    (tmp_path / "encoder.onnx").symlink_to(encoder_folder / "encoder.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert "(1, 100, 48) [100]" in capsys.readouterr().out
    source = load_source(str(model_folder), "averaged")
    expected, _ = source.graph(*Fbank(128)(audio.unsqueeze(0), torch.tensor([len(audio)])))
    torch.testing.assert_close(
        torch.from_numpy(names["encoder_out"]), expected, atol=1e-4, rtol=0.0
    )


def our_text(run_dir: Path, audio: Tensor) -> str:
    x, x_lens = Fbank(128)(audio.unsqueeze(0), torch.tensor([len(audio)]))
    return load_asr_model(run_dir).recognize(x, x_lens)[0].text


def test_readme_of_a_recognizer_gives_our_text(
    asr_run: Path,
    recognizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, with_sherpa = read_snippets(recognizer_folder)
    expected = our_text(asr_run, write_audio(tmp_path))
    assert len(expected) > 5
    for name in ("model.onnx", "tokens.txt"):
        (tmp_path / name).symlink_to(recognizer_folder / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(plain, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == expected
    pytest.importorskip("sherpa_onnx")
    exec(compile(with_sherpa, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == expected


def test_sherpa_decodes_a_batch_of_lengths(asr_run: Path, recognizer_folder: Path) -> None:
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    recognizer = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
        model=str(recognizer_folder / "model.onnx"),
        tokens=str(recognizer_folder / "tokens.txt"),
        feature_dim=128,
    )
    generator = torch.Generator().manual_seed(4)
    recordings = [0.1 * torch.randn(size, generator=generator) for size in (40000, 11111, 1600)]
    streams = []
    for recording in recordings:
        streams.append(recognizer.create_stream())
        streams[-1].accept_waveform(16000, recording.numpy())
    recognizer.decode_streams(streams)
    for stream, recording in zip(streams, recordings, strict=True):
        assert stream.result.text.strip() == our_text(asr_run, recording)


def test_tokens_are_those_of_the_tokenizer(asr_run: Path, recognizer_folder: Path) -> None:
    tokenizer = load_asr_model(asr_run).tokenizer
    lines = (recognizer_folder / "tokens.txt").read_text("utf-8").splitlines()
    tokens = [line.split(" ")[0] for line in lines]
    assert lines == [f"{token} {index}" for index, token in enumerate(tokens)]
    assert tokens[0] == "<blk>"
    assert tokens[2:] == [tokenizer.piece(index) for index in range(2, tokenizer.vocab_size)]
    assert token_lines(["<pad>", "?", " ", "a b"]) == "<blk> 0\n? 1\n▁ 2\na▁b 3\n"


@torch.no_grad()
def test_a_recognizer_of_transformers_is_the_same_model(asr_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "for transformers"
    export(ExportConfig(str(asr_run), str(folder), layout="ctc"))
    ours = load_source(str(asr_run), "averaged")
    theirs = load_source(str(folder), "averaged")
    assert (theirs.stem, theirs.outputs) == ("model", ("log_probs", "log_probs_len"))
    assert theirs.vocabulary == ours.vocabulary
    x, x_lens = padded([features(80), features(31)])
    for one, other in zip(ours.graph(x, x_lens), theirs.graph(x, x_lens), strict=True):
        assert torch.equal(one, other)
    checkpoint = load_source(str(checkpoint_path(asr_run, 1)), "last")
    assert torch.equal(checkpoint.graph(x, x_lens)[0], ours.graph(x, x_lens)[0])
    assert greedy_decode(*ours.graph(x, x_lens))[0].tokens


def test_what_is_no_model_is_one_clear_error(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "wavlm"}')
    (tmp_path / "file.txt").write_text("no checkpoint")
    headless = json.loads((model_folder / "config.json").read_text())
    headless["architectures"] = ["SpearForCTC"]
    (tmp_path / "headless").mkdir()
    (tmp_path / "headless" / "config.json").write_text(json.dumps(headless))
    for name, message in {
        "nothing": "neither a model folder nor a hub id",
        "empty": "neither a model folder .* nor a run folder",
        "other": "'wavlm' model, not a 'spear' one",
        "file.txt": "broken",
        "headless": "no vocabulary",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            run(ExportOnnxConfig(str(tmp_path / name), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: written.append(args))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=f"pip install {package} "):
        run(ExportOnnxConfig(str(model_folder), str(tmp_path / "out")))
    assert not written
    assert not (tmp_path / "out").exists()


def test_a_file_that_gives_other_numbers_is_refused(
    model_folder: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_source(str(model_folder), "averaged")
    path = encoder_folder / "encoder.onnx"
    assert measure_difference(source.graph, path).largest < 1e-4

    def other_model(model: str, weights: str) -> OnnxSource:
        return replace(source, graph=OnnxGraph(Zipformer(source.config).eval()))

    monkeypatch.setattr(command, "load_source", other_model)
    monkeypatch.setattr(
        command, "write_onnx", lambda graph, to, *rest: to.write_bytes(path.read_bytes())
    )
    with pytest.raises(CheckpointError, match=r"requirements\.txt"):
        run(ExportOnnxConfig(str(model_folder), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_an_exporter_that_fails_is_explained(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.export, "export", fail)
    message = r"torch .* cannot export this model \(no such operator\): install"
    with pytest.raises(CheckpointError, match=message):
        run(ExportOnnxConfig(str(model_folder), str(tmp_path / "out")))


def test_without_int8_there_is_one_file(
    model_folder: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (encoder_folder / "encoder.onnx").read_bytes()
    monkeypatch.setattr(command, "write_onnx", lambda graph, to, *rest: to.write_bytes(content))
    words = ["--model", str(model_folder), "--output_dir", str(tmp_path / "out"), "--int8", "false"]
    run(parse_config(ExportOnnxConfig, words, prog="spear export-onnx"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "encoder.onnx",
    ]
    assert "int8" not in (tmp_path / "out" / "README.md").read_text()


def test_benchmark_measures_every_side(
    model_folder: Path, encoder_folder: Path, repo_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(repo_dir / "local" / "benchmarks")
    script = importlib.import_module("onnx_speed")
    files = {"float32": encoder_folder / "encoder.onnx"}
    graph = load_source(str(model_folder), "averaged").graph
    (row,) = script.measure(script.make_sides(graph, files), [(2, 0.5)], repeats=1)
    assert row[0] == "2 x 0.5 s"
    ours, theirs, ratio = map(float, row[1:])
    assert min(ours, theirs) > 0
    assert ratio == pytest.approx(ours / theirs, abs=0.3 * ratio + 0.01)  # of rounded times


def test_exporters_are_silenced_and_then_heard_again() -> None:
    with onnx_graph._quiet():
        assert not logging.getLogger("spear").isEnabledFor(logging.WARNING)
        assert logging.getLogger("spear").isEnabledFor(logging.ERROR)
    assert logging.getLogger("spear").isEnabledFor(logging.WARNING)
