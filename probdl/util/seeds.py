"""Independent seeds derived from one seed."""

from __future__ import annotations

import numpy as np

__all__ = ["stream"]


def stream(seed: int, purpose: str, *index: int) -> int:
    """Derive the seed for a purpose, such as one chain, independent of the other seeds.

    Args:
        seed: the seed of the whole.
        purpose: a name.
        index: numbers, if the purpose needs several seeds.
    """
    sequence = np.random.SeedSequence([seed, *purpose.encode(), *index])
    return int(sequence.generate_state(1, np.uint32)[0])
