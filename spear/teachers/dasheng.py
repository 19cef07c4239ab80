"""The Dasheng teacher: released weights, whole recordings, batches.

Weights come as a released `.pt` file ({"model", "config"}) or a Hugging Face folder. A recording
is cut into stretches of 10.08 s without overlap, as the original does, each encoded by itself; the
last one is shorter and is not padded. (The Hugging Face code pads it with zeros and lets them be
attended to; the authors' package, which this file equals, does not.) The stretches of all
recordings form one batch, in which padding is no attention key. Frames stand for 40 ms: 25 Hz.
"""

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear.audio import SAMPLE_RATE_HZ
from spear.errors import CheckpointError, one_line
from spear.system.model_folder import CONFIG_FILE, read_json_object, read_tensors
from spear.system.weights import load_exact
from spear.teachers.base import Teacher, TeacherIdentity, check_layer, full_precision
from spear.teachers.config import TeacherConfig
from spear.teachers.dasheng_network import DashengNetwork, DashengSettings
from spear.teachers.source import resolve_model_folder, weights_digest, weights_files
from spear.teachers.windows import Excerpts, Window, Windowing, cut_windows

# Hugging Face weights nest the encoder, and compute the spectrogram outside of the model.
_PREFIX = "encoder."
_FRONT_END = "front_end."


class DashengTeacher(Teacher):
    """One block's output, or the final output, of a Dasheng encoder.

    Args:
        identity: What it is.
        network: The encoder.
    """

    def __init__(self, identity: TeacherIdentity, network: DashengNetwork) -> None:
        super().__init__(identity, normalize_channels=False)
        self.network = network

    def num_frames(self, num_samples: int) -> int:
        """Returns floor((S // hop + 1) / 4): whole patches of the centred spectrogram."""
        settings = self.network.settings
        if num_samples <= settings.n_fft // 2:  # too short to be reflected at its ends
            return 0
        return (num_samples // settings.hop_size + 1) // settings.patch_frames

    def windows(self, num_samples: int, windowing: Windowing) -> list[Window]:
        """Returns windows of whole stretches of 10.08 s, as many as `window_s` has room for.

        Stretches are encoded by themselves in one pass, too, so that `context_s` has no meaning:
        the context is what the spectrogram at a window's edges looks at, 256 samples.
        """
        stretch = self.network.settings.max_patches
        room = int(windowing.window_s * self.frame_rate_hz)
        core = max(1, room // stretch) * stretch
        num_frames = self.num_frames(num_samples)
        if windowing.window_s == 0 or num_frames <= max(core, room):
            return []
        # Half a patch on the right: a whole one would be a stretch of its own.
        return [
            replace(one, stop=None if one.stop is None else one.stop - self.hop // 2)
            for one in cut_windows(num_frames, core, 1, self.hop)
        ]

    @torch.no_grad()
    def statistics(self, audio: Tensor) -> Tensor:
        """Returns (1,): the loudest value of a recording's spectrogram (S,), in decibels."""
        peaks: list[Tensor] = []
        with full_precision(self.device):
            for window in self.windows(len(audio), Windowing()) or [Window(0, None, 0, 0, None)]:
                part = audio[window.start : window.stop].to(self.device)
                # By patches, without context: its mirrored ends are not in the recording.
                decibels = self.network.decibels(part).T
                per_patch = self.network.settings.patch_frames
                stop = window.num_frames and (window.num_context + window.num_frames) * per_patch
                peaks.append(decibels[window.num_context * per_patch : stop].max())
        return torch.stack(peaks).max()[None]

    def represent(
        self, audio: Tensor, audio_lens: Tensor, lens: Tensor, excerpts: Excerpts | None = None
    ) -> Tensor:
        """Encodes the stretches of all recordings as one batch and joins them again.

        In windows the frames of context before the first stretch are zeros.
        """
        settings = self.network.settings
        longest = settings.max_patches * settings.patch_frames
        skipped = [0] * len(lens) if excerpts is None else list(excerpts.num_context)
        stretches: list[Tensor] = []
        for row, samples in enumerate(audio_lens.tolist()):
            with full_precision(self.device):
                peak = None if excerpts is None else excerpts.statistics[row, 0]
                log_mel = self.network.log_mel(audio[row, :samples], peak)
            first, last = skipped[row], int(lens[row])
            own = log_mel[:, first * settings.patch_frames : last * settings.patch_frames]
            stretches += own.split(longest, dim=1)
        frames = self._encode(stretches)
        joined: list[Tensor] = []
        for first, length in zip(skipped, lens.tolist(), strict=True):
            count = -(-(length - first) // settings.max_patches)
            context = frames[0].new_zeros(first, self.dim)
            joined.append(torch.cat((context, *frames[:count])))
            frames = frames[count:]
        return nn.utils.rnn.pad_sequence(joined, batch_first=True)

    def _encode(self, stretches: list[Tensor]) -> list[Tensor]:
        """Maps spectrograms (n_mels, T_i), T_i whole patches, to frames (T_i / 4, dim)."""
        patches = [log_mel.shape[1] // self.network.settings.patch_frames for log_mel in stretches]
        batch = nn.utils.rnn.pad_sequence([log_mel.T for log_mel in stretches], batch_first=True)
        equal = len(set(patches)) == 1
        counts = None if equal else torch.tensor(patches, device=batch.device)
        encoded = self.network(batch.transpose(1, 2), counts, self.layer)
        return [row[:count] for row, count in zip(encoded, patches, strict=True)]


def load_dasheng_teacher(config: TeacherConfig) -> DashengTeacher:
    """Loads Dasheng from a released `.pt` file, a Hugging Face folder, or the hub.

    Raises:
        CheckpointError: Nothing is there, it is no Dasheng, its weights are broken, missing,
            surplus or of another shape, or it has no such layer.
    """
    assert config.path is not None
    path = Path(config.path).expanduser()
    if path.is_file():
        files = [path]
        state, values = _read_released(path)
    else:
        folder = resolve_model_folder(config.path, config.name)
        files = weights_files(folder)
        state, values = _read_folder(folder, files)
    settings = DashengSettings.from_config(values, str(config.path))
    check_layer(config.layer, settings.depth, config.name)
    network = DashengNetwork(settings)
    _load_exactly(network, state, str(config.path))
    if config.layer is not None:
        del network.blocks[config.layer :]
    identity = TeacherIdentity(
        name=config.name,
        family="dasheng",
        path=config.path,
        layer=config.layer,
        frame_rate_hz=SAMPLE_RATE_HZ / (settings.hop_size * settings.patch_frames),
        dim=settings.embed_dim,
        weights_sha256=weights_digest(files),
    )
    return DashengTeacher(identity, network)


def _read_released(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Reads a `.pt` file with a state dict under "model" and settings under "config"."""
    content = _read_weights(path)
    if not isinstance(content, dict) or not {"model", "config"} <= content.keys():
        raise CheckpointError(f"{path}: expected a released Dasheng file with 'model' and 'config'")
    return content["model"], content["config"]


def _read_folder(folder: Path, files: list[Path]) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Reads a Hugging Face folder: the prefix of the weights' names taken off."""
    values = read_json_object(folder / CONFIG_FILE)
    if values.get("model_type", "dasheng") != "dasheng":
        raise CheckpointError(
            f"{folder} holds a model of type {values['model_type']!r}, expected 'dasheng'"
        )
    state = {name: value for file in files for name, value in _read_weights(file).items()}
    return {name.removeprefix(_PREFIX): value for name, value in state.items()}, values


def _read_weights(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is not a readable weights file: {one_line(error)}"
        ) from error


def _load_exactly(network: DashengNetwork, state: dict[str, Tensor], where: str) -> None:
    """Loads a state dict whose names and shapes must be the network's.

    Front-end buffers may be absent: they follow from the settings. Positions beyond
    `target_length` are cut off, as the original does.
    """
    own = network.state_dict()
    front_end = {name: value for name, value in own.items() if name.startswith(_FRONT_END)}
    state = {**front_end, **state}
    positions = state.get("time_pos_embed")
    if positions is not None and positions.ndim == 4:
        state["time_pos_embed"] = positions[..., : network.settings.max_patches]
    load_exact(network, state, where)
