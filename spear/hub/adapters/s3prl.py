"""s3prl upstream: SUPERB and other s3prl tasks on a SPEAR model, frozen or fine-tuned.

    from spear.hub.adapters.s3prl import register
    register()
    s3prl.hub.spear(ckpt=FOLDER)                          # as any other upstream
    s3prl.nn.S3PRLUpstream("spear", path_or_url=FOLDER)

`python -m spear.hub.adapters.s3prl -m train -u spear -k FOLDER -d TASK ...` is s3prl's
`run_downstream.py` with the upstream registered. s3prl 0.4.18 cannot be imported beside torchaudio
2.9 or newer, and its `run_downstream.py` not beside a huggingface_hub without `HfFolder` and
`Repository`. `UpstreamExpert` itself needs none of these, nor s3prl.
"""

import runpy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from spear.audio.checks import FRAME_HOP, as_recording
from spear.encoders.frame_grid import on_grid
from spear.encoders.layer_frames import LayerFrames, lengthen_short
from spear.encoders.layers import uniform_layers
from spear.encoders.loading import from_pretrained
from spear.errors import AudioError, ConfigError, MissingPackageError, one_line
from spear.system.optional import require
from spear.zipformer.modules.resampling import upsample
from spear.zipformer.schedule import TRAINED, set_schedule


class UpstreamExpert(nn.Module):
    """A SPEAR model as an s3prl upstream.

    In training mode it has the dropout and the regularisers of the end of pre-training, and
    gradients flow; in evaluation mode what a waveform gets does not depend on its batch mates.

    Args:
        ckpt: Model folder or hub id.
        model_config: Not used: the folder holds the configuration.
        **_: What s3prl gives every upstream, e.g. `refresh`; without meaning here.

    Raises:
        ConfigError: No `ckpt`, or a `model_config`.
        CheckpointError: The model cannot be loaded.
    """

    def __init__(self, ckpt: str | None = None, model_config: str | None = None, **_: Any) -> None:
        super().__init__()
        if not ckpt:
            raise ConfigError("the spear upstream needs a model folder or hub id: ckpt=, or -k")
        if model_config:
            raise ConfigError(f"model_config {model_config} has no use: {ckpt} holds its own")
        self.name = "spear"
        self.model = from_pretrained(ckpt)
        set_schedule(self.model, TRAINED)

    def get_downsample_rates(self, key: str) -> int:
        """Returns the samples between frames: 320, whatever is asked for."""
        return FRAME_HOP

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Encodes waveforms.

        Args:
            wavs: B waveforms (S_i,) float, 16 kHz mono in [-1, 1], without padding.

        Returns:
            hidden_states: `num_layers` + 1 tensors (B, T, D), T = ceil(max S / 320): what the front
            end made and the output of every layer, as wide as the widest.
            last_hidden_state: (B, T, D), the encoder's output at the same 50 Hz.

        Raises:
            AudioError: There is no waveform, or one is stereo, empty or has unusable samples.
        """
        audio, lens = _as_batch(wavs)
        num_slots = -(-audio.shape[1] // FRAME_HOP)
        audio, lens = lengthen_short(self.model, audio, lens)
        output = self.model(audio, lens)
        layers = uniform_layers(output, self.model.output_dim)
        factor = self.model.config.output_downsampling_factor
        last = upsample(output["encoder_out"], factor, layers[0].shape[1])
        read = LayerFrames(self.model, layer=0)
        valid = torch.tensor([read.num_frames(n) for n in lens.tolist()], device=audio.device)
        *states, last = (on_grid(x, valid, num_slots, read.first_ms) for x in (*layers, last))
        return {"hidden_states": states, "last_hidden_state": last}


def spear(ckpt: str | None = None, **options: Any) -> UpstreamExpert:
    """Makes the upstream: the entry that `register` adds to `s3prl.hub`; see `UpstreamExpert`."""
    return UpstreamExpert(ckpt, **options)


def register() -> None:
    """Adds `spear` to the upstreams of `s3prl.hub`.

    Raises:
        MissingPackageError: s3prl is not installed, or cannot be imported.
    """
    try:
        hub: Any = require("s3prl.hub", "the s3prl upstream", "s3prl")
    except AttributeError as error:  # its modules call what newer packages no longer have
        raise MissingPackageError(
            f"s3prl is installed but cannot be imported ({one_line(error)}): version 0.4.18 needs "
            "torchaudio below 2.9"
        ) from error
    hub.spear = spear


def _as_batch(wavs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads waveforms to (B, S) with lengths (B,)."""
    if len(wavs) == 0:
        raise AudioError("no waveforms: give a list of at least one")
    recordings = [as_recording(wav) for wav in wavs]
    lens = torch.tensor([len(wav) for wav in recordings], device=recordings[0].device)
    return pad_sequence(recordings, batch_first=True), lens


if __name__ == "__main__":
    register()
    runpy.run_module("s3prl.run_downstream", run_name="__main__")
