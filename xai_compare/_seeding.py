"""Seeds that depend on the piece of work only, not on what ran before."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded_for(seed: int, what: str, index: int) -> Iterator[None]:
    """Seed torch, numpy and random for one piece of work; their states are restored afterwards."""
    digest = hashlib.blake2b(f"{seed}/{what}/{index}".encode(), digest_size=4).digest()
    number = int.from_bytes(digest, "big")
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            torch.manual_seed(number)
            np.random.seed(number)
            random.seed(number)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
