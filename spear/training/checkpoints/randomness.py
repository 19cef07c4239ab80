"""Dropout and the like, drawn from the place in a run alone.

Before each batch torch's default generators are seeded by (seed, step, share): what a step draws
depends neither on what was drawn before, nor on the number of processes, nor on restarts. There is
no generator state to save.
"""

import hashlib

import torch


def seed_batch(seed: int, step: int, share: int) -> None:
    """Seeds torch's default generators, of all devices, for one batch.

    Args:
        seed: The run's seed.
        step: Steps done before.
        share: Which of the step's batches, over all ranks.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{share}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
