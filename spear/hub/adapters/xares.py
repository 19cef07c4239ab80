"""X-ARES: an encoder that the evaluation suite finds in this file and constructs by itself.

    SPEAR_MODEL=FOLDER python -m xares.run --max-jobs 4 spear/hub/adapters/xares.py TASKS...

X-ARES turns the path into a module name, so it is to be written just so, in any working folder. It
takes the module's one name that ends in "Encoder": no other name here may.
"""

from torch import Tensor, nn

from spear.audio.checks import SAMPLE_RATE_HZ
from spear.encoders.frame_grid import num_slots, on_grid
from spear.encoders.layer_frames import LayerFrames
from spear.encoders.loading import WEIGHTS_FILE, from_pretrained, model_name, resolve_folder
from spear.system.files import sha256_of


class SpearXaresEncoder(nn.Module):
    """A SPEAR model as X-ARES wants its encoders.

    X-ARES keeps embeddings and scores in folders that are named after the class of an encoder, and
    reuses what it finds there. So that no model is given another's scores, every object's class
    carries the first digits of its weights' SHA-256 in its name.

    Args:
        model: Model folder or hub id; where empty, the one that SPEAR_MODEL names.

    Attributes:
        sampling_rate: 16000, in Hz.
        output_dim: D, width of an embedding.
        hop_size_in_ms: Milliseconds between embeddings: 20, or 40 for models at 25 Hz.

    Raises:
        ConfigError: No model is given.
        CheckpointError: It cannot be loaded.
    """

    def __init__(self, model: str = "") -> None:
        super().__init__()
        folder = resolve_folder(model_name(model))
        self.encoder = from_pretrained(folder)
        self._read = LayerFrames(self.encoder)
        self.sampling_rate = SAMPLE_RATE_HZ
        self.output_dim = self._read.dim
        self.hop_size_in_ms = self._read.hop_ms
        digits = sha256_of(folder / WEIGHTS_FILE)[:8]
        self.__class__ = type(f"Spear{digits}Encoder", (SpearXaresEncoder,), {})

    def forward(self, audio: Tensor) -> Tensor:
        """Embeds recordings of one length; beyond 40 s in windows, in bounded memory.

        Args:
            audio: (B, S) or (S,) float, 16 kHz mono in [-1, 1].

        Returns:
            (B, T, D) float32; embedding i is about the i-th `hop_size_in_ms`.

        Raises:
            AudioError: The audio has another shape or type, or unusable samples.
        """
        if audio.ndim == 1:
            audio = audio.unsqueeze(0)
        frames, lens = self._read(audio)
        slots = max(num_slots(audio.shape[1], self.hop_size_in_ms), 1)
        return on_grid(frames, lens, slots, self._read.first_ms, self.hop_size_in_ms)
