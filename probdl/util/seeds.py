"""Seeds that derive from one another."""

from __future__ import annotations

import numpy as np

__all__ = ["stream"]


def stream(seed: int, purpose: str, *index: int) -> int:
    """Derive the seed for a purpose, such as one block of steps, independent of all others."""
    sequence = np.random.SeedSequence([seed, *purpose.encode(), *index])
    return int(sequence.generate_state(1, np.uint32)[0])
