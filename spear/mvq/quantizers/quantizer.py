"""The multi-codebook quantiser: frames to one-byte tokens and back.

A frame, normalised per channel, is approximated by a direct sum x ~ sum_n C_n[z_n] of one centre of
each of N codebooks; all centres have the full dimension and the codebooks no order, so that a
student can predict every token by itself. The file that `save` writes holds all that the tokens
depend on: centres, first-guess classifiers, channel statistics, and as metadata the identity of
the teacher whose frames it was trained on.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from spear.errors import ConfigError
from spear.mvq.multi_quantization import export_state, import_state
from spear.mvq.quantizers.codebooks import Assign, CodebookQuantizer
from spear.mvq.search.joint import search
from spear.mvq.search.products import ProductTable, inner_products

_PRODUCTS_PER_SEARCH = 8

NUM_PASSES, BEAM_WIDTH = 6, 16
"""What `Quantizer.encode` does if not told otherwise."""


class Quantizer(CodebookQuantizer):
    """Turns frames (*, D) into tokens (*, N) uint8 and back.

    Args:
        centers: (N, K, D) float32.
        classifier_weight: (N * K, D) float32; with `classifier_bias` (N * K,) it gives logits
            whose largest per codebook is the first guess. Without it, or with an empty one, the
            search begins undecided.
        classifier_bias: See `classifier_weight`.
        channel_mean: (D,) subtracted from frames; zeros by default.
        channel_scale: (D,) that frames are divided by; ones by default.
        metadata: Text about where the quantiser comes from, e.g. {"teacher": "<json>"}.

    Raises:
        ConfigError: Shapes do not fit, or N is not in 1..64 or K not in 2..256.
    """

    kind = "mvq"
    tensor_names = CodebookQuantizer.tensor_names | {"classifier_weight", "classifier_bias"}

    classifier_weight: Tensor
    classifier_bias: Tensor

    def __init__(
        self,
        centers: Tensor,
        *,
        classifier_weight: Tensor | None = None,
        classifier_bias: Tensor | None = None,
        channel_mean: Tensor | None = None,
        channel_scale: Tensor | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            centers, channel_mean=channel_mean, channel_scale=channel_scale, metadata=metadata
        )
        if (classifier_weight is None) != (classifier_bias is None):
            raise ConfigError("classifier_weight and classifier_bias go together")
        if classifier_weight is None or classifier_bias is None:
            classifier_weight, classifier_bias = torch.empty(0, self.dim), torch.empty(0)
        num_codes = self.num_codebooks * self.codebook_size if len(classifier_weight) else 0
        shape = (num_codes, self.dim)
        self._add_tensor("classifier_weight", classifier_weight, shape, centers.device)
        self._add_tensor("classifier_bias", classifier_bias, (num_codes,), centers.device)
        self._table: tuple[tuple[int, int, torch.device], ProductTable] | None = None

    @property
    def has_classifiers(self) -> bool:
        """Whether linear classifiers give the first guess."""
        return len(self.classifier_weight) > 0

    @property
    def table(self) -> ProductTable:
        """Inner products of all centres; made at first use and whenever the centres changed."""
        key = (self.centers.data_ptr(), self.centers._version, self.centers.device)
        if self._table is None or self._table[0] != key:
            self._table = (key, ProductTable(self.centers.float()))
        return self._table[1]

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        *,
        num_passes: int = NUM_PASSES,
        beam_width: int = BEAM_WIDTH,
        max_batch_frames: int | None = None,
        product_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The tokens of frames.

        Args:
            x: (*, D) floating point frames as the teacher gives them.
            num_passes: At most so many passes of the search; 0 gives the classifiers' guess. The
                error never grows with it.
            beam_width: Codes that each codebook shortlists in a pass.
            max_batch_frames: Frames worked on at once, which bounds memory to about 16 * N * K
                bytes a frame. The tokens do not depend on how an input is cut into calls; another
                value here may change them where two choices are equally good to rounding.
            product_dtype: What frames and centres are rounded to for their inner products, summed
                in float32. bfloat16 is for GPUs; the search itself stays in float32.

        Returns:
            (*, N) uint8 on the quantiser's device.

        Raises:
            ConfigError: x has another width, or an argument is out of range.
            DataError: x holds NaN or infinite values.
        """
        if num_passes < 0 or beam_width < 2:
            raise ConfigError(
                f"encode needs num_passes >= 0 and beam_width >= 2, not {num_passes}, {beam_width}"
            )
        assign = self._assigner(num_passes, beam_width, product_dtype)
        return self._encode_blocks(x, assign, max_batch_frames)

    @classmethod
    def from_multi_quantization(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        channel_mean: Tensor | None = None,
        channel_scale: Tensor | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "Quantizer":
        """A quantiser trained by the package `multi_quantization` (0.1.1).

        Args:
            state_dict: Its state dict.
            channel_mean: (D,) statistics applied before it, which that package does not store.
            channel_scale: See `channel_mean`.
            metadata: Kept with the quantiser.

        Raises:
            CheckpointError: Keys are missing or unknown, or shapes do not fit.
        """
        tensors, source = import_state(state_dict)
        return cls(
            **tensors,
            channel_mean=channel_mean,
            channel_scale=channel_scale,
            metadata={**source, **(metadata or {})},
        )

    def to_multi_quantization(self, *, of_normalized_frames: bool = False) -> dict[str, Tensor]:
        """The same quantiser for the package `multi_quantization` (0.1.1).

        Kept are centres, classifiers and a name; `from_multi_quantization` gives the same id back
        where nothing had to be folded in. Lost are the metadata and the channel statistics. Those
        with one scale for all channels are folded into centres and classifiers, exact to rounding.
        A quantiser without classifiers gets those of the nearest centres, as the package needs
        some.

        Args:
            of_normalized_frames: Leave the channel statistics out: whoever uses the state dict
                gives it `normalize(frames)`, and passes `channel_mean` and `channel_scale` to
                `from_multi_quantization` to come back.

        Returns:
            A state dict that the package's `Quantizer.load_state_dict` takes; float32, on the CPU.

        Raises:
            ConfigError: Channels have scales of their own, which the package cannot express, or N
                or K is no power of two, or K is below 16.
        """
        names = (self.metadata.get("source_id", ""), self.id)
        tensors = dict(self.named_buffers())
        return export_state(tensors, names, of_normalized_frames=of_normalized_frames)

    def first_guess(self, normalized: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns (B, N) int64 by the classifiers, which must be there, for frames (B, D)."""
        logits = inner_products(normalized, self.classifier_weight, dtype)
        logits = logits.add_(self.classifier_bias)
        return logits.view(-1, self.num_codebooks, self.codebook_size).argmax(dim=2)

    def _frames_at_once(self) -> int:
        """Several products for one search: their threads and its own take turns less often."""
        return _PRODUCTS_PER_SEARCH * self._frames_per_product()

    def _assigner(
        self,
        num_passes: int = NUM_PASSES,
        beam_width: int = BEAM_WIDTH,
        dtype: torch.dtype = torch.float32,
    ) -> Assign:
        """Returns what searches the codes of normalised frames."""

        def assign(padded: Tensor, count: int) -> Tensor:
            table, size = self.table, self._frames_per_product()
            blocks = padded.split(size)[: max(-(-count // size), 1)]
            unary = torch.cat([table.unary(block, dtype) for block in blocks])[:count]
            guess = None
            if self.has_classifiers:
                guess = torch.cat([self.first_guess(block, dtype) for block in blocks])[:count]
            return search(table, unary, guess, num_passes=num_passes, beam_width=beam_width)

        return assign
