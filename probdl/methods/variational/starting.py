"""Start of automatic guides: a normal approximation of the posterior found by Pathfinder.

An optimizer such as Adam moves a parameter by about its learning rate in each step, whatever the
scale of the posterior. So a guide that starts far away, or a posterior much wider or narrower than
1, may need more steps than the training has. Automatic guides therefore start at the location and
scale of the approximation, and are trained in units that are proportional to its scale.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.linalg import LinAlgError
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoContinuous, AutoGuide
from torch import Tensor
from torch.distributions import transform_to

from probdl.compile import Evaluator, choose
from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.methods.approximate.pathfinder import Normal, best_normal, elbo
from probdl.methods.modes import Mode, check_modes
from probdl.methods.point.optimum import curvature, maximise
from probdl.methods.training.minibatch import Batches, PlateBatches
from probdl.methods.variational.objective import Objective, Scale
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.results.diagnostics import require_complete
from probdl.util.blas import one_torch_thread
from probdl.util.clock import time_left
from probdl.util.deadline import deadline
from probdl.util.seeds import stream

__all__ = ["Start", "find_start", "place_guide"]

PATH_STEPS_MIN, PATH_STEPS_MAX = 10, 200  # L-BFGS iterations
SLOW_PATH_STEPS_MAX = 50  # of a density that is not compiled
STEPS_PER_PATH_STEP = 50  # of the training, so that the search is the smaller part of the work
STEPS_PER_MODE_STEP = 5
NEWTON_STEPS_MAX = 5  # each takes as long as hundreds of steps of L-BFGS
DRAWS_PER_POINT = 5  # to estimate the ELBO at a point of the path
PATHS = 4  # searches by native code, beside one from a draw of the prior
TIME_SHARE = 0.3  # of the time limit, for the search
ELBO_DRAWS = 100  # to compare two approximations
ROWS_MAX = 10_000  # rows of a minibatch that stands for all data
SCALE_RANGE = (1e-12, 1e12)
# Of a location, in conditional standard deviations, if the guide does not know how sites are
# correlated: these are much smaller then than the way that a location has to go.
LOCATION_UNIT = 16.0
DENSE_MAX = 200  # coordinates up to which a full covariance is computed


@dataclass(frozen=True)
class Start:
    """Where automatic guides start.

    Attributes:
        values: values of the latent sites.
        density: the log density on R^d; None if there is no approximation.
        normal: the normal approximation of the posterior on R^d.
        findings: the findings of the search.
        evaluator: evaluates the density in native code; None if it was not compiled.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    density: LogDensity | None = None
    normal: Normal | None = None
    findings: list[Finding] = field(default_factory=list)
    evaluator: Evaluator | None = None


def find_start(
    program: Program,
    structure: Structure,
    batches: Batches,
    init: Mapping[str, Any] | None = None,
    *,
    steps: int,
    engine: str,
    seed: int,
) -> Start:
    """Find a normal approximation of the posterior, by a short run of Pathfinder or by Laplace.

    Args:
        program: the model.
        structure: its sites.
        batches: the data; of a data plate, at most 10,000 rows are used, scaled to all rows.
        init: values of sites where the search begins; None begins at several random points.
        steps: number of steps of the training; the search is short compared with them.
        engine: as for a method.
        seed: seed of the search.

    Raises:
        ModelError: the log density is not finite at any starting point.
    """
    density = _density(program, structure, batches, seed)
    if init is not None:
        density = density.starting_at(init)
    evaluator: Evaluator = density
    if density.program is program:  # compiled code does not know the scale of a minibatch
        evaluator, _ = choose(density, engine, seed)
    length = max(PATH_STEPS_MIN, min(PATH_STEPS_MAX, steps // STEPS_PER_PATH_STEP))
    native = evaluator.engine == "native"
    if not native:
        length = min(length, SLOW_PATH_STEPS_MAX)
    found = []
    starts = [(path, False) for path in range(PATHS if native and init is None else 1)]
    if init is None:
        starts.append((0, True))
    left = time_left()
    threads = nullcontext() if program.is_large else one_torch_thread()
    with threads, nullcontext() if left is None else deadline(TIME_SHARE * left):
        for path, of_prior in starts:
            with suppress(ModelError):
                normal, _ = best_normal(
                    density, evaluator, seed, length, DRAWS_PER_POINT, path=path, of_prior=of_prior
                )
                found.append(normal)
        if density.dim <= DENSE_MAX and native:
            with suppress(ModelError, LinAlgError):
                climbing = max(length, min(PATH_STEPS_MAX, steps // STEPS_PER_MODE_STEP))
                found.append(_laplace(density, evaluator, climbing, seed))
    if not found:
        start = density.initial(torch.Generator().manual_seed(seed))
        return Start(density.constrain(start))
    rng = np.random.default_rng(stream(seed, "start"))
    modes = [
        Mode(normal.mean, normal.variances**0.5, elbo(evaluator, normal, ELBO_DRAWS, rng))
        for normal in found
    ]
    best = found[max(range(len(modes)), key=lambda i: modes[i].log_mass)]
    findings = check_modes(density, evaluator, modes, "The guide covers one.")
    values = density.constrain(torch.from_numpy(best.mean))
    return Start(values, density, best, findings, evaluator if native else None)


def _laplace(density: LogDensity, evaluator: Evaluator, steps: int, seed: int) -> Normal:
    """Return the normal approximation at a mode.

    Raises:
        ModelError: no strict maximum was found.
        LinAlgError: the covariance is singular.
    """
    generator = torch.Generator().manual_seed(stream(seed, "mode"))
    newton = min(NEWTON_STEPS_MAX, steps)
    optimum = maximise(
        density, evaluator, 1, steps, generator, False, quick=True, newton_steps=newton
    )
    require_complete(optimum.findings)
    if optimum.ended is not None:
        raise optimum.ended
    if optimum.information is None:
        raise ModelError("The mode lies at an edge of the support.")
    parts = curvature(optimum.information, optimum.z)
    if parts.vectors.shape[1] < density.dim:
        raise ModelError("The log density has no strict maximum.")
    covariance, mode = parts.covariance.numpy(), optimum.z.numpy()
    scale = np.sqrt(np.diag(covariance))
    root: Any = np.linalg.cholesky(covariance / scale[:, None] / scale)
    return Normal(mode, mode, scale, np.eye(density.dim), root)


def _density(program: Program, structure: Structure, batches: Batches, seed: int) -> LogDensity:
    if batches.plate is None:
        return LogDensity(program, structure)
    if isinstance(batches, PlateBatches):
        if batches.size <= ROWS_MAX:
            return LogDensity(program, structure)
        rows = min(batches.size, max(ROWS_MAX, batches.batch_size))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(batches.size, generator=generator)[:rows]
        program = program.with_tensors(batches.rows(chosen))
    scaled = copy.copy(program)
    scaled.model = Scale(batches.plate, batches.size, None)(program.model)
    return LogDensity(scaled, structure)


def place_guide(guide: AutoGuide, objective: Objective, start: Start) -> Tensor | None:
    """Set the scales of an automatic guide to those of a start.

    Args:
        guide: the guide, whose locations are at the start already.
        objective: the loss, which knows the guide's parameters.
        start: the start.

    Returns:
        The units (d,) in which to train the parameters of the objective, powers of two, in which
        multiplication is exact; None for guides whose parameters have no known scale.
    """
    if start.normal is None or start.density is None:
        return None
    wanted = _parameters(guide, start.density, start.normal)
    if not wanted:
        return None
    own = {
        id(parameter): name.removesuffix("_unconstrained")
        for name, parameter in guide.named_parameters()
    }
    units = []
    for leaf in objective.leaves:
        name = own.get(objective.aliases.get(id(leaf), id(leaf)), "")
        value, unit = wanted.get(name, (None, 1.0))
        if value is not None:
            with torch.no_grad():
                leaf.copy_(value)
        unit = torch.as_tensor(unit, dtype=leaf.dtype).expand(leaf.shape)
        units.append(unit.reshape(-1))
    return torch.exp2(torch.round(torch.log2(torch.cat(units))))


Placed = tuple[Tensor | None, Tensor | float]  # the unconstrained value, and the unit


def _parameters(guide: AutoGuide, density: LogDensity, normal: Normal) -> dict[str, Placed]:
    """Return the values and units of the guide's parameters, by name."""
    conditional = _clipped(normal.precisions**-0.5)
    marginal = _clipped(normal.variances**0.5)
    if isinstance(guide, (autoguide.AutoNormal, autoguide.AutoDelta)):
        placed: dict[str, Placed] = {}
        for name, block in density.blocks.items():
            scale = block.of(conditional)
            if isinstance(guide, autoguide.AutoNormal):
                partial = {*block.site.dims} & {*density.program.subsampled}
                mean = block.of(torch.from_numpy(normal.mean)) if partial else None
                placed[f"locs.{name}"] = (mean, LOCATION_UNIT * scale)
                placed[f"scales.{name}"] = _scale(scale, guide.scale_constraint)
            elif block.coordinates == "plain":  # the guide has its own transforms
                placed[name] = (None, LOCATION_UNIT * scale)
        return placed
    if not isinstance(guide, AutoContinuous) or guide.latent_dim != density.dim:
        return {}
    trace: Any = guide.prototype_trace
    names = [name for name, _ in trace.iter_stochastic_nodes()]
    index = torch.arange(density.dim)
    order = torch.cat([density.blocks[name].of(index).reshape(-1) for name in names])
    scale, constraint = conditional[order], getattr(guide, "scale_constraint", None)
    loc: Placed = (None, LOCATION_UNIT * scale)
    if isinstance(guide, autoguide.AutoLowRankMultivariateNormal):
        # The factors of the covariance start at random, with about the variance of the diagonal.
        return {"loc": loc, "scale": _scale(marginal[order] * 0.5**0.5, constraint)}
    if isinstance(guide, autoguide.AutoMultivariateNormal) and density.dim <= DENSE_MAX:
        root = torch.linalg.cholesky(torch.from_numpy(normal.covariance)[order][:, order])
        diagonal = root.diagonal()
        tril = transform_to(guide.scale_tril_constraint).inv(root / diagonal[:, None])
        # A change by one unit moves each latent value by its conditional standard deviation.
        share = scale / diagonal
        value, unit = _scale(diagonal, constraint)
        return {
            "loc": (None, scale),
            "scale": (value, unit * share),
            "scale_tril": (tril, share[:, None]),
        }
    if isinstance(guide, (autoguide.AutoDiagonalNormal, autoguide.AutoMultivariateNormal)):
        return {"loc": loc, "scale": _scale(scale, constraint)}
    return {}


def _clipped(scale: Any) -> Tensor:
    return torch.from_numpy(np.clip(scale, *SCALE_RANGE))


def _scale(scale: Tensor, constraint: Any) -> Placed:
    """Return a scale in the parametrisation of the guide, and the unit that changes it by itself.

    A step of one unit changes the scale by about its own size.
    """
    transform = transform_to(constraint)
    value = transform.inv(scale)
    slope = transform.log_abs_det_jacobian(value, scale).exp()
    return value, scale / slope
