"""Random generators that are pure functions of what they are for.

A number that data needs (an order, a mask, a noise level) is drawn from a generator keyed by the
run's seed, a purpose and a few integers such as epoch and step. Nothing here has state, so neither
the number of workers, nor a restart, nor what else was drawn changes a number.
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Returns the generator of one purpose at one place of a run.

    Seed, purpose and keys are hashed into the 128-bit key of a Philox counter generator. Hashing
    keeps (1, 23) apart from (12, 3) and (1,) apart from (1, 0), which seeding by a list of
    integers does not.

    Args:
        seed: The run's seed; any integer.
        purpose: What is drawn, e.g. "mask": streams of different purposes are independent.
        *keys: Where in the run, e.g. epoch, step, rank; any integers.
    """
    name = "/".join([str(int(seed)), purpose, *(str(int(key)) for key in keys)])
    digest = hashlib.blake2b(name.encode("utf-8"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
