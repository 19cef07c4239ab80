"""WavLM, HuBERT, wav2vec 2.0 and data2vec teachers, loaded by `transformers`.

These four share one shape: convolutions over the waveform, a projection, a convolutional position
embedding, transformer blocks. The modules are transformers' own; this file runs them so that batch
mates change nothing, which the library's `forward` does not promise:

* the waveform is normalised over its own samples;
* a front end with group normalisation (its statistics run over time) sees one recording at a time;
* every convolution of the position embedding sees zeros behind the recording's last frame, as it
  would if the recording were alone (data2vec stacks five, and the first fills the padding);
* padded frames are no attention keys.

Layers: k is the output of the k-th transformer block, the residual stream as it is. Models with
`do_stable_layer_norm` (WavLM Large, HuBERT Large, ...) normalise once more behind the last block:
that normalised vector is the *final output*, `layer` none. So k equals transformers'
`hidden_states[k]` for k below the number of blocks, while `hidden_states[-1]` is our `layer` none.
WavLM Large alone has another default: block 21, as in SPEAR (Yang et al., arXiv 2510.25955).
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from spear.audio import SAMPLE_RATE_HZ
from spear.errors import CheckpointError, one_line
from spear.system.model_folder import CONFIG_FILE, read_json_object
from spear.system.optional import require
from spear.system.weights import check_fit
from spear.teachers.base import (
    Teacher,
    TeacherIdentity,
    check_layer,
    full_precision,
    valid_positions,
)
from spear.teachers.config import TeacherConfig
from spear.teachers.source import (
    PREPROCESSOR_FILE,
    resolve_model_folder,
    weights_digest,
    weights_files,
)
from spear.teachers.windows import Excerpts

MODEL_TYPES = {
    "wavlm": "wavlm",
    "hubert": "hubert",
    "wav2vec2": "wav2vec2",
    "data2vec": "data2vec-audio",
}
WAVLM_LARGE_LAYER = 21
NORMALIZE_EPS = 1e-7  # of transformers' Wav2Vec2FeatureExtractor
_SAMPLES_AT_ONCE = 1 << 20
# The modules that a teacher runs. Checkpoints also hold pre-training heads, which are left out.
_USED_MODULES = ("feature_extractor.", "feature_projection.", "encoder.")


class HuggingFaceTeacher(Teacher):
    """One block's output of a wav2vec 2.0-like model.

    Args:
        identity: What it is.
        model: The transformers model, cut behind the block that is wanted.
        normalize_audio: Whether the waveform is brought to zero mean and unit variance.
    """

    model: Any  # transformers' classes of the four families share attributes, not a base class

    def __init__(self, identity: TeacherIdentity, model: Any, normalize_audio: bool) -> None:
        super().__init__(identity, normalize_channels=True)
        self.model = model
        self.normalize_audio = normalize_audio
        self._kernels_and_strides = list(
            zip(model.config.conv_kernel, model.config.conv_stride, strict=True)
        )
        self._one_by_one = getattr(model.config, "feat_extract_norm", "layer") == "group"
        self._valid: Tensor | None = None  # (B, T) bool, of the batch in work
        for module in self.model.encoder.pos_conv_embed.modules():
            if isinstance(module, nn.Conv1d):
                module.register_forward_pre_hook(self._zero_padding)

    def num_frames(self, num_samples: int) -> int:
        """Returns the frames of the convolutions: floor((S - 400) / 320) + 1 of usual models."""
        length = num_samples
        for kernel, stride in self._kernels_and_strides:
            length = (length - kernel) // stride + 1 if length >= kernel else 0
        return length

    @torch.no_grad()
    def statistics(self, audio: Tensor) -> Tensor:
        """Returns (2 + 2 C,): what brings a recording (S,) to zero mean and unit variance.

        Mean and deviation of its samples; then those of the C channels behind the first
        convolution, where that is followed by group normalisation (C is 0 elsewhere).
        """
        mean, scale = torch.zeros(()), torch.ones(())
        if self.normalize_audio:
            mean, scale = moments(audio.split(_SAMPLES_AT_ONCE))
        whole = torch.stack((mean, scale)).to(self.device)
        if not self._one_by_one:
            return whole
        first = self.model.feature_extractor.conv_layers[0]
        with full_precision(self.device):
            parts = self._parts_of(audio, first.conv.kernel_size[0], first.conv.stride[0])
            hidden = (first.conv((part[None, None] - whole[0]) / whole[1])[0] for part in parts)
            return torch.cat((whole, *moments(hidden, first.layer_norm.eps)))

    def _parts_of(self, audio: Tensor, kernel: int, stride: int) -> Iterator[Tensor]:
        """Yields parts of a recording (S,) that give a convolution's output in pieces."""
        step = _SAMPLES_AT_ONCE // stride * stride
        for start in range(0, len(audio) - kernel + 1, step):
            yield audio[start : start + step + kernel - stride].to(self.device)

    def represent(
        self, audio: Tensor, audio_lens: Tensor, lens: Tensor, excerpts: Excerpts | None = None
    ) -> Tensor:
        """Runs the model; see the head of this file for what differs from its `forward`."""
        if excerpts is not None:
            mean, scale = excerpts.statistics[:, :1], excerpts.statistics[:, 1:2]
            inside = valid_positions(audio_lens, audio.shape[1])
            audio = ((audio - mean) / scale).masked_fill(~inside, 0.0)
        elif self.normalize_audio:
            audio = normalize_waveforms(audio, audio_lens)
        hidden = self._front_end(audio, audio_lens, int(lens.max()), excerpts)
        hidden = self.model.feature_projection(hidden)
        # Sums along the residual stream stay in float32, whatever the precision of products.
        hidden = (hidden[0] if isinstance(hidden, tuple) else hidden).float()
        self._valid = valid_positions(lens, hidden.shape[1])
        try:
            with warnings.catch_warnings():
                # WavLM gives torch a float bias and a boolean mask, on purpose.
                warnings.filterwarnings("ignore", message="Support for mismatched key_padding")
                return self._encode(hidden, self._valid)
        finally:
            self._valid = None

    def _front_end(
        self, audio: Tensor, audio_lens: Tensor, num_frames: int, excerpts: Excerpts | None
    ) -> Tensor:
        """Returns (B, num_frames, C): the convolutions' output."""
        if not self._one_by_one:
            return self.model.feature_extractor(audio).transpose(1, 2)[:, :num_frames]
        if excerpts is not None:
            return self._windows_front_end(audio, excerpts).transpose(1, 2)[:, :num_frames]
        rows = [
            self.model.feature_extractor(audio[row : row + 1, :samples])[0].T
            for row, samples in enumerate(audio_lens.tolist())
        ]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _windows_front_end(self, audio: Tensor, excerpts: Excerpts) -> Tensor:
        """Returns (B, C, T) with group normalisation by the recordings' statistics."""
        first, *others = self.model.feature_extractor.conv_layers
        mean, scale = excerpts.statistics[:, 2:, None].chunk(2, dim=1)
        norm = first.layer_norm
        hidden = (first.conv(audio[:, None]) - mean) / scale
        hidden = first.activation(hidden * norm.weight[:, None] + norm.bias[:, None])
        for layer in others:
            hidden = layer(hidden)
        return hidden

    def _encode(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """Returns what the wanted block gives, or the final output."""
        encoder = self.model.encoder
        if self.layer is None:
            return encoder(hidden, attention_mask=valid).last_hidden_state
        kept: list[Tensor] = []

        def keep(block: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            # A block gives a tensor or, with attention weights or a position bias, a tuple.
            given = output[0] if isinstance(output, tuple) else output
            kept.append(inputs[0] if self.layer == 0 else given)

        hook = encoder.layers[max(self.layer, 1) - 1].register_forward_hook(keep)
        try:
            encoder(hidden, attention_mask=valid)
        finally:
            hook.remove()
        return kept[0]

    def _zero_padding(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Before a convolution over (B, C, T): zeros where the recording has ended."""
        assert self._valid is not None
        return (args[0].masked_fill(~self._valid[:, None], 0.0), *args[1:])


def moments(parts: Iterable[Tensor], eps: float = NORMALIZE_EPS) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation (...,) float32 over the last axis of parts (..., T_i) together.

    `eps` is added to the variance. Sums are float64: there may be a hundred million samples.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        count += part.shape[-1]
        total = part.double().sum(-1) + total
        squares = part.double().square().sum(-1) + squares
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0.0)
    return mean.float(), (variance + eps).sqrt().float()


def normalize_waveforms(audio: Tensor, audio_lens: Tensor, eps: float = NORMALIZE_EPS) -> Tensor:
    """Brings every waveform to zero mean and unit variance over its own samples.

    Args:
        audio: (B, S) float32, zeros behind the valid samples.
        audio_lens: (B,) int64, valid samples, at least 1.
        eps: Added to the variance, as transformers' Wav2Vec2FeatureExtractor does.

    Returns:
        (B, S) float32, zeros behind the valid samples.
    """
    padding = ~valid_positions(audio_lens, audio.shape[1])
    counts = audio_lens[:, None].to(audio.dtype)
    centred = (audio - audio.sum(1, keepdim=True) / counts).masked_fill(padding, 0.0)
    variance = centred.square().sum(1, keepdim=True) / counts
    return centred / (variance + eps).sqrt()


def load_hf_teacher(config: TeacherConfig) -> HuggingFaceTeacher:
    """Loads a wav2vec 2.0-like teacher from a folder or the hub.

    Raises:
        CheckpointError: There is no such model, it is of another architecture, its weights are
            broken, missing or surplus, or it has no such layer.
        MissingPackageError: transformers is not installed.
    """
    family = config.resolved_family()
    transformers = require("transformers", f"the {family} teacher")
    assert config.path is not None
    folder = resolve_model_folder(config.path, config.name)
    model_config = read_json_object(folder / CONFIG_FILE)
    if model_config.get("model_type") != MODEL_TYPES[family]:
        raise CheckpointError(
            f"teacher {config.name!r}: {config.path} holds a model of type "
            f"{model_config.get('model_type')!r}, family {family} needs {MODEL_TYPES[family]!r}"
        )
    model = _load_model(transformers, folder, config.name)
    num_layers = len(model.encoder.layers)
    check_layer(config.layer, num_layers, config.name)
    layer = config.layer
    if layer is None and _is_wavlm_large(model.config):
        layer = WAVLM_LARGE_LAYER
    if layer is not None:  # the first block stays for layer 0: its input is what is wanted
        del model.encoder.layers[max(layer, 1) :]
    hop = torch.tensor(model.config.conv_stride).prod().item()
    identity = TeacherIdentity(
        name=config.name,
        family=family,
        path=config.path,
        layer=layer,
        frame_rate_hz=SAMPLE_RATE_HZ / hop,
        dim=model.config.hidden_size,
        weights_sha256=weights_digest(weights_files(folder)),
    )
    return HuggingFaceTeacher(identity, model, _wants_normalized_audio(folder, model.config))


def _load_model(transformers: ModuleType, folder: Path, name: str) -> Any:
    """Returns the transformers model in float32, every one of its used weights loaded."""
    try:
        with _quiet(transformers):
            model, report = transformers.AutoModel.from_pretrained(
                str(folder),
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below
            )
    except Exception as error:  # transformers raises many types, down to bare RuntimeError
        raise CheckpointError(
            f"teacher {name!r}: {folder} cannot be loaded: {one_line(error)}"
        ) from error
    # Only pre-training masks its input; a checkpoint without this vector is complete for us.
    missing = set(report["missing_keys"]) - {"masked_spec_embed"}
    unexpected = [key for key in report["unexpected_keys"] if key.startswith(_USED_MODULES)]
    # Names, or names with both shapes: that changes from version to version.
    other = [x if isinstance(x, str) else str(x[0]) for x in report["mismatched_keys"]]
    check_fit(f"teacher {name!r}: {folder}", missing, unexpected, other)
    return model.float()


def _wants_normalized_audio(folder: Path, model_config: Any) -> bool:
    """Reads `do_normalize`; without a preprocessor file, models with layer norm want it."""
    file = folder / PREPROCESSOR_FILE
    by_default = getattr(model_config, "feat_extract_norm", "layer") == "layer"
    if not file.is_file():
        return by_default
    return bool(read_json_object(file).get("do_normalize", by_default))


def _is_wavlm_large(model_config: Any) -> bool:
    size = (model_config.model_type, model_config.num_hidden_layers, model_config.hidden_size)
    return size == ("wavlm", 24, 1024)


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Silences load reports and bars of transformers; what matters is raised by us."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
