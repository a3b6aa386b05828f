"""Compare the draws of an approximation with what the density says without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from probdl.compile import Evaluator
from probdl.findings import Finding
from probdl.methods.approach import find_modes
from probdl.methods.approximate.reference import find_reference
from probdl.methods.modes import Mode, check_covered
from probdl.methods.tails import check_tails
from probdl.model.density import LogDensity
from probdl.results.diagnostics import unchecked
from probdl.results.weights import Reference
from probdl.util.seeds import stream

__all__ = ["Comparison", "compare_with_density"]


class Comparison(NamedTuple):
    """What the density says of draws."""

    findings: list[Finding]  # moments that do not exist, modes that no draw is near
    reference: Reference | None  # weighted draws of the posterior, where they are reliable


def compare_with_density(
    density: LogDensity,
    evaluator: Evaluator,
    z: NDArray[np.float64],
    seed: int,
    modes: Sequence[Mode] = (),
) -> Comparison:
    """Look for moments that do not exist, for other modes, and for a reference.

    Ctrl-C and the time limit end the comparison, and leave the draws as they are.

    Args:
        density: the log density on R^d.
        evaluator: evaluates it.
        z: draws (n, d) of the approximation.
        seed: all random numbers derive from it.
        modes: modes that are known already.
    """
    findings: list[Finding] = []
    reference = None
    try:
        findings += check_tails(density, evaluator, z)
        modes = [*modes, *find_modes(density, evaluator, seed)]
        findings += check_covered(density, evaluator, z, modes)
        reference = find_reference(density, evaluator, z, stream(seed, "reference"))
    except KeyboardInterrupt as stop:
        kept = "biased moments or a missed mode may not be reported"
        findings.append(unchecked(stop, kept, "make all checks"))
    return Comparison(findings, reference)
