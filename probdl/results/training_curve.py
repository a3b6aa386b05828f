"""The ELBO of a training by SVI, drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from probdl.model.sites import data_plates

__all__ = ["draw_elbo"]


def draw_elbo(fit: Any, ax: Any, window: int = 100) -> None:
    """Draw the ELBO at each step with its moving average, and that of held-out data if known.

    Args:
        fit: a fit by SVI that has the ELBO of each step.
        ax: the axes to draw on.
        window: the number of steps in the moving average.
    """
    elbo = np.asarray(fit.stats["elbo"])
    held_out, unit = fit.stats.get("validation_elbo"), "nats"
    if held_out is not None:
        elbo, unit = elbo / fit.stats["rows"], "nats per row"
    window = max(1, min(window, len(elbo) // 2))
    smooth = np.convolve(elbo, np.ones(window) / window, "valid")
    steps = np.arange(1, len(elbo) + 1)
    ax.plot(steps, elbo, color="C0", alpha=0.25, lw=0.5, label="each step")
    ax.plot(steps[window - 1 :], smooth, color="C0", label=f"mean of {window}")
    # The first steps are far below the others and would flatten the rest of the curve.
    low, high = np.quantile(elbo[len(elbo) // 10 :], [0.005, 1.0])
    if held_out is not None:
        rows = data_plates(fit.structure)
        shared = [s.name for s in fit.structure.of("latent") if not {*rows} & {*s.dims}]
        label = "held-out data" + ", without the KL of shared sites" * bool(shared)
        ax.plot(fit.stats["validation_steps"], held_out, color="C1", label=label)
        finite = np.isfinite(held_out)
        late = held_out[finite & (fit.stats["validation_steps"] > len(elbo) // 10)]
        low, high = min([low, *late]), max([high, *held_out[finite]])
    ax.set_ylim(low - 0.1 * (high - low), high + 0.05 * (high - low) + 1e-9)
    if (kept := fit.stats.get("best_step")) is not None:
        ax.axvline(kept, color="k", lw=0.8, ls=":", label=f"state that is kept: step {kept}")
    ax.set(xlabel="step", ylabel=f"ELBO ({unit})")
    # Above the axes, where it covers no curve.
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2}
    ax.legend(**above, frameon=False, fontsize="small")
