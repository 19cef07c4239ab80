"""spear: multi-codebook VQ distillation of speech and audio teachers into one encoder.

`import spear` needs torch, numpy and lhotse only; everything optional is imported where it is used.
"""

from typing import TYPE_CHECKING, Any

from spear.version import __version__

if TYPE_CHECKING:
    from spear.encoders.encoder import SpearEncoder

__all__ = ["__version__", "from_pretrained"]


def from_pretrained(path_or_repo: str, **options: Any) -> "SpearEncoder":
    """Loads a pre-trained encoder; see `spear.encoders.loading.from_pretrained`."""
    from spear.encoders.loading import from_pretrained as load

    return load(path_or_repo, **options)
