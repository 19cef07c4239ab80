"""The transducer's losses in plain torch: pruned and whole, equal to k2's.

Read `lattice` (the recursion over a lattice of log-probabilities), `arcs` (what its edges cost),
`pruning` (which symbols a frame looks at), then `losses`. `k2` is k2 itself under the same names.
"""

from spear.asr.rnnt.losses import (
    prune,
    prune_ranges,
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_smoothed,
)

__all__ = ["prune", "prune_ranges", "rnnt_loss", "rnnt_loss_pruned", "rnnt_loss_smoothed"]
