"""The list of programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["PROGRAMS", "Program", "about", "exact", "program"]

Check = Callable[[Any], None]


@dataclass(frozen=True)
class Program:
    """A program and its fit.

    Attributes:
        name: what it is.
        model: the program.
        args: its positional arguments.
        check: asserts that a fit is right.
        method: ``"nuts"`` or ``"svi"``.
        settings: of the method.
        engine: the engine that the fit must run on.
    """

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    check: Check
    method: str = "nuts"
    settings: dict[str, Any] = field(default_factory=dict)
    engine: str = "native"


PROGRAMS: dict[str, Program] = {}


def program(
    name: str,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    check: Check,
    method: str = "nuts",
    engine: str = "native",
    **settings: Any,
) -> None:
    """Add a program to the list; again if pytest imports the file again, to look for examples."""
    PROGRAMS[name] = Program(name, model, args, check, method, settings, engine)


def exact(**known: tuple[Any, Any]) -> Check:
    """Check means and standard deviations against known values, by site.

    A mean must be within 0.2 standard deviations, and a standard deviation within 25 %: both more
    than four Monte Carlo standard errors of 500 effective draws.
    """

    def check(fit: Any) -> None:
        for name, (mean, sd) in known.items():
            draws = fit.draws[name]
            mean, sd = np.asarray(mean, float), np.asarray(sd, float)
            np.testing.assert_array_less(np.abs(draws.mean((0, 1)) - mean), 0.2 * sd + 1e-9)
            np.testing.assert_allclose(
                draws.std((0, 1)), np.broadcast_to(sd, draws.shape[2:]), rtol=0.25
            )

    return check


def about(within: float = 4.0, **truth: Any) -> Check:
    """Check that the values that simulated the data are within some standard deviations."""

    def check(fit: Any) -> None:
        for name, value in truth.items():
            draws = fit.draws[name]
            sd = draws.std((0, 1))
            assert np.all(sd > 0), name
            gap = np.abs(draws.mean((0, 1)) - np.asarray(value, float))
            assert np.all(gap < within * sd), (name, draws.mean((0, 1)), sd, value)

    return check


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator for data."""
    return torch.Generator().manual_seed(seed)
