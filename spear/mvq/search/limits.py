"""How wide and how long the search looks: what its two implementations must agree on."""

MAX_SWEEPS = 16
"""Most sweeps through the codebooks after a pass; a frame seldom needs more than three."""


def num_kept(beam_width: int, num_codebooks: int) -> int:
    """Returns how many candidates a group of so many codebooks keeps.

    The number doubles whenever groups become four times longer, as in `multi_quantization`:
    16, 16, 32, 32, 64 for groups of 1, 2, 4, 8, 16 codebooks and a beam width of 16.
    """
    doublings = 0
    while num_codebooks >= 4:  # no `bit_length` where this is compiled
        num_codebooks //= 4
        doublings += 1
    return beam_width << doublings
