"""How long unrolled loops over time take to compile, and what they then cost."""

from __future__ import annotations

import time

import numpy as np
import torch

import probdl
from benchmarks.engine import raw, seconds
from probdl.compile import choose
from tests.reference.posteriors import garch


def main() -> None:
    """Print a row for each length of a GARCH model, the cache left out."""
    rng = np.random.default_rng(0)
    for steps in (100, 200, 400, 800, 1400):
        density = probdl.LogDensity.from_model(garch, (rng.normal(size=steps), 1.0))
        start = time.perf_counter()
        compiled, _ = choose(density, "native", 0)
        made = time.perf_counter() - start
        z = density.initial(torch.Generator().manual_seed(0))
        eager = seconds(lambda d=density, z=z: d.value_and_grad(z), 2, 2)
        native = seconds(raw(compiled, z), 1000)
        print(
            f"{steps:5} steps: {made:5.1f} s to compile, {eager * 1e3:6.1f} ms eager, "
            f"{native * 1e6:6.1f} µs native",
            flush=True,
        )


if __name__ == "__main__":
    main()
