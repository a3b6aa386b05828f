"""Compile time and gradient time of unrolled loops over time: `make bench-loops`."""

from __future__ import annotations

import numpy as np

from benchmarks.engine import measure
from tests.reference.posteriors import garch


def main() -> None:
    """Print the times of a GARCH model for several lengths."""
    rng = np.random.default_rng(0)
    for steps in (100, 200, 400, 800, 1400):
        row = measure(garch, (rng.normal(size=steps), 1.0))
        print(
            f"{steps:5} steps: {row['make_s']:5.1f} s to compile, "
            f"{row['eager_us'] / 1e3:6.1f} ms eager, {row['native_us']:6.1f} µs native",
            flush=True,
        )


if __name__ == "__main__":
    main()
