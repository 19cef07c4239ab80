"""The README of an ONNX folder: what the files take and give, and how to run them."""

from collections.abc import Mapping

from spear.audio.checks import FRAME_HOP
from spear.audio.fbank import HIGH_HZ, LOW_HZ
from spear.hub.onnx.check import Difference
from spear.hub.onnx.graph import is_split
from spear.hub.onnx.source import OnnxSource
from spear.system.markdown import markdown_table

_LOAD = """\
import onnxruntime
import soundfile
import torch

from spear.audio import Fbank

samples, rate = soundfile.read("audio.wav", dtype="float32")
assert rate == 16000 and samples.ndim == 1
audio, audio_lens = torch.from_numpy(samples).unsqueeze(0), torch.tensor([len(samples)])
x, x_lens = Fbank({num_bins})(audio, audio_lens)
session = onnxruntime.InferenceSession("{file}")
"""
_ENCODE = """\
encoder_out, encoder_out_lens = session.run(None, {"x": x.numpy(), "x_lens": x_lens.numpy()})
print(encoder_out.shape, encoder_out_lens)
"""
_RECOGNIZE = """\
log_probs, log_probs_len = session.run(None, {"x": x.numpy(), "x_lens": x_lens.numpy()})
best = log_probs[0, : log_probs_len[0]].argmax(axis=-1)
ids = [i for n, i in enumerate(best) if i != 0 and (n == 0 or i != best[n - 1])]
tokens = [line.split(" ")[0] for line in open("tokens.txt", encoding="utf-8")]
print("".join(tokens[i] for i in ids).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip())
"""
_SHERPA = """\
import sherpa_onnx
import soundfile

recognizer = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
    model="{file}", tokens="tokens.txt", feature_dim={num_bins}
)
samples, rate = soundfile.read("audio.wav", dtype="float32")
stream = recognizer.create_stream()
stream.accept_waveform(rate, samples)
recognizer.decode_stream(stream)
print(stream.result.text.strip())
"""


def readme(name: str, source: OnnxSource, differences: Mapping[str, Difference]) -> str:
    """Writes the README.

    Args:
        name: Its heading.
        source: What was exported.
        differences: How far each file's output is from the model's, by the file's name.
    """
    blocks = [f"# {name}", _files(source, differences), _interface(source), _features(source)]
    blocks += [_snippet(source), _sherpa(source)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _files(source: OnnxSource, differences: Mapping[str, Difference]) -> str:
    rows = [(f"`{name}`", f"{d.relative:.1e}") for name, d in differences.items()]
    table = markdown_table(("file", "difference from PyTorch"), rows, "lr")
    notes = [
        "The difference is that of the output on noise, as a share of its size.",
        f"The weights of `{source.stem}.onnx` lie in `{source.stem}.onnx.data`, which has to stay "
        "beside it; sherpa-onnx reads the int8 file only."
        if is_split(source.graph)
        else "",
        "What an utterance is batched with changes nothing in the float32 file. In the int8 file "
        "activations are rounded with one scale for a whole batch, so it changes a little."
        if len(differences) > 1
        else "What an utterance is batched with changes nothing.",
    ]
    return f"{table}\n\n{' '.join(filter(None, notes))}"


def _interface(source: OnnxSource) -> str:
    config = source.config
    output, lens = source.outputs
    width = config.output_dim if source.vocabulary is None else len(source.vocabulary)
    what = "frames" if source.vocabulary is None else "log-probabilities of tokens, blank 0"
    hop_ms = FRAME_HOP // 16 * config.output_downsampling_factor
    rows = [
        ("input", "`x`", "float32", f"(N, T, {config.feature_dim})", "log-mel at 100 Hz"),
        ("input", "`x_lens`", "int64", "(N,)", "valid frames of `x`, at most T"),
        ("output", f"`{output}`", "float32", f"(N, T_out, {width})", f"{what}, every {hop_ms} ms"),
        ("output", f"`{lens}`", "int64", "(N,)", f"valid frames of `{output}`"),
    ]
    table = markdown_table(("", "name", "type", "shape", ""), rows)
    return f"{table}\n\nAny N and T from 1 on will do; padding may hold anything.{_chunks(source)}"


def _chunks(source: OnnxSource) -> str:
    config = source.config
    if not config.causal or config.chunk_size[-1] < 0:
        return ""
    return (
        " The model is causal, but takes whole recordings here: a frame sees its own chunk of "
        f"{20 * config.chunk_size[-1]} ms and what is before it."
    )


def _features(source: OnnxSource) -> str:
    return (
        f"`x` is Kaldi's fbank of 16 kHz mono audio in [-1, 1]: {source.config.feature_dim} bins "
        f"from {LOW_HZ:g} to {HIGH_HZ:g} Hz (`high_freq` -400), 25 ms Povey windows every 10 ms, "
        "`snip_edges` false, `dither` 0, pre-emphasis 0.97, `remove_dc_offset` true, natural "
        "logarithm, no normalisation. `spear.audio.Fbank`, lhotse's `Fbank` and kaldi-native-fbank "
        "1.22 compute it (1.23 refuses bins that no frequency falls into; of 128 one is such)."
    )


def _snippet(source: OnnxSource) -> str:
    code = _LOAD.format(num_bins=source.config.feature_dim, file=f"{source.stem}.onnx")
    code += _ENCODE if source.vocabulary is None else _RECOGNIZE
    return f"```python\n{code}```"


def _sherpa(source: OnnxSource) -> str:
    if source.vocabulary is None:
        return ""
    code = _SHERPA.format(num_bins=source.config.feature_dim, file=f"{source.stem}.onnx")
    note = (
        ""
        if source.config.output_downsampling_factor == 2
        else "\n\nIt takes frames to be 40 ms long, here they are 20: halve its time stamps."
    )
    return f"sherpa-onnx computes the features itself:\n\n```python\n{code}```{note}"
