r"""Pathfinder: normal approximations along the path of L-BFGS to the mode.

Source: Zhang, Carpenter, Gelman and Vehtari, "Pathfinder: parallel quasi-Newton variational
inference", JMLR 23 (2022). The numbers of algorithms below refer to it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.compile import ENGINES, Evaluator, choose
from probdl.errors import ModelError
from probdl.findings import TAIL_DRAWS_MIN
from probdl.io.pareto import psis
from probdl.methods.angles import beyond_a_turn, unwound
from probdl.methods.approach import approach, evaluate_with
from probdl.methods.approximate.comparison import compare_with_density
from probdl.methods.approximate.weighting import resample
from probdl.methods.base import Method
from probdl.methods.fixed_params import held_params
from probdl.methods.point.optimum import NOT_FINITE
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.results.diagnostics import interrupted
from probdl.results.fit import Fit
from probdl.results.weights import check_approximation, log_evidence_of
from probdl.util.clock import check_time_limit
from probdl.util.executors import finished
from probdl.util.isolation import isolated
from probdl.util.lazy import linalg, optimize
from probdl.util.progress import bar
from probdl.util.settings import check_workers

__all__ = ["Normal", "Pathfinder", "best_normal", "elbo", "pathfinder_draw"]

Array = NDArray[np.float64]

HISTORY = 6  # number of updates in the inverse Hessian, as in the paper
CURVATURE_MAX = 1e12  # updates along directions of larger curvature are left out
DRAWS_PER_BLOCK = 10_000
NUMBERS_PER_BLOCK = 2**19  # so that the time limit is seen soon; larger blocks get new pages
UNIT_MAX = 1e4  # scales beyond it, or below its inverse, are changed to 1
AFTER = 0.5  # of the time to draw from a path, to process its draws; and to check all
HIGHER_MIN = 10.0  # nats of the ELBO between them that no mode makes up for
PATHS_MAX = 5  # number of paths that may fail before an error


@dataclass(frozen=True, repr=False)
class Pathfinder(Method, name="pathfinder"):
    r"""Pathfinder, the best of the normal approximations on R^d along paths of L-BFGS.

    .. math:: q_l = N(z_l + \Sigma_l \nabla \log p(z_l), \Sigma_l), \qquad
        l^* = \arg\max_l \mathrm{ELBO}(q_l)

    where z_l are the iterates of L-BFGS on log p, and Sigma_l is its estimate of the inverse
    Hessian, diagonal plus low rank. The draws of several paths are weighted and resampled together
    (Pareto-smoothed importance resampling), relative to the mixture of all paths, so that each mode
    has its probability however many paths lead to it. Every other path starts at the mirror image
    of the random start before it. If a path from a draw of the prior has a much higher ELBO, as in
    models with group effects whose scale goes to zero along other paths, all start at such draws.
    The method needs a few hundred gradients, and provides
    good starting points for NUTS: ``NUTS(init="pathfinder")``.

    The fit has one chain of independent draws, and in ``stats``: ``elbo`` (nats, one per path),
    ``pareto_k`` and ``log_weights`` (of all draws of all paths), ``log_evidence`` (nats), ``lp``
    of each draw, and ``engine``.

    Args:
        draws: number of draws, at least 25. Default: 1000.
        paths: number of paths, each with its own starting point. With one path there is no
            resampling. Default: 4.
        steps: maximal number of L-BFGS iterations of each path. Default: 1000.
        num_samples: number of draws that estimate the ELBO at each point of a path. Default: 25.
        init: values of sites at which to start, such as ``{"mu": 3.0}``; the other sites start as
            without it. Each path starts there. Default: None.
        engine: how the density is evaluated, as in :class:`NUTS`. Default: ``"auto"``.
        executor: finds all paths but the first on its workers: a ``concurrent.futures.Executor``,
            or a Dask ``Client``. The draws are the same. Default: None.

    Raises:
        SettingError: a setting is out of range.
        ModelError: no path finds a usable curvature of the density.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> fit = probdl.infer(model, torch.tensor(1.0), method="pathfinder", seed=1)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0)).item()
        >>> abs(fit.stats["log_evidence"] - exact) < 0.01
        True

    Source: Zhang, Carpenter, Gelman and Vehtari, JMLR 23 (2022).
    """

    draws_are_independent: ClassVar[bool] = True

    draws: int = 1000
    paths: int = 4
    steps: int = 1000
    num_samples: int = 25
    init: Mapping[str, Any] | None = None
    engine: str = "auto"
    executor: Any = field(default=None, repr=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        check_workers(type(self).__name__, None, self.executor)
        self._check_int(draws=TAIL_DRAWS_MIN, paths=1, steps=1, num_samples=1)
        self._check_choice(engine=ENGINES)
        self._check_init()

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by Pathfinder."""
        structure = self._discover(program)
        density = self._density(program, structure)
        evaluator, findings = choose(density, self.engine, seed)
        normals: list[Normal] = []
        found: list[_Sampled] = []
        seconds: list[float] = []  # of drawing from a path
        path_of = functools.partial(
            best_normal, density, evaluator, seed, self.steps, self.num_samples
        )

        def add(normal: Normal, rng: np.random.Generator) -> None:
            start = time.perf_counter()
            keep(normal, _sample(evaluator, normal, self.draws, rng, least=TAIL_DRAWS_MIN))
            seconds.append(time.perf_counter() - start)

        def keep(normal: Normal, sampled: _Sampled) -> None:
            normals.append(normal)
            found.append(sampled)
            if sampled.stop is not None:
                raise sampled.stop

        with bar(self.paths, "finding paths", progress) as shown:
            try:
                start = time.perf_counter()
                add(*path_of())
                longest = time.perf_counter() - start
                of_prior = False
                if self.init is None:
                    with contextlib.suppress(ModelError):
                        add(*path_of(of_prior=True))
                        of_prior = found[1].elbo > found[0].elbo + HIGHER_MIN
                        del normals[not of_prior], found[not of_prior]
                shown.update()
                elsewhere = range(1, self.paths if self.executor is not None else 1)
                for normal, sampled in self._on_workers(program, seed, elsewhere, of_prior, shown):
                    keep(normal, sampled)
                for path in range(1 + len(elsewhere), self.paths):
                    check_time_limit(longest + AFTER * (len(found) + 2) * max(seconds))
                    start = time.perf_counter()
                    add(*path_of(path=path, of_prior=of_prior))
                    longest = max(longest, time.perf_counter() - start)
                    shown.update()
            except KeyboardInterrupt as stop:
                if not found:
                    raise
                of = f"{self.paths} paths"
                drawn = sum(len(s.z) for s in found)
                kept_draws = f"their {drawn} draws are used"
                findings.append(interrupted(stop, len(found), of, kept_draws, "get all draws"))
        means = np.stack([normal.mean for normal in normals])
        turns = unwound(density, evaluator, means) - means
        normals = [normal.moved(by) for normal, by in zip(normals, turns, strict=True)]
        parts = [s.z + by if by.any() else s.z for s, by in zip(found, turns, strict=True)]
        lp = np.concatenate([s.log_p for s in found])
        counts = [len(s.z) for s in found]
        ratios = lp - np.concatenate([_log_mixture(normals, counts, part) for part in parts])
        ratios = np.where(beyond_a_turn(density, evaluator, *parts), -np.inf, ratios)
        log_weights, pareto_k = psis(ratios)
        log_evidence = log_evidence_of(ratios)
        count = min(self.draws, len(lp))
        chosen = torch.arange(count)
        if len(found) > 1:
            chosen = resample(log_weights, count, torch.Generator().manual_seed(seed))
        kept = torch.from_numpy(unwound(density, evaluator, _rows(parts, chosen.numpy())))
        values = density.constrain(kept[None], deterministic=True)
        stats: dict[str, Any] = {
            "lp": lp[chosen.numpy()][None],
            "elbo": np.array([s.elbo for s in found]),
            "pareto_k": pareto_k,
            "log_weights": log_weights,
            "log_evidence": log_evidence,
            "engine": evaluator.engine,
        }
        compared = compare_with_density(density, evaluator, kept.numpy(), seed)
        findings += [
            *check_approximation(
                {name: values[name][0].numpy() for name in density.blocks},
                log_weights,
                pareto_k,
                "the normal approximation",
                "Increase paths." if len(found) > 1 else "",
                compared.reference,
                resampled=len(found) > 1,
                log_evidence=log_evidence,
            ),
            *compared.findings,
            *held_params(structure),
        ]
        draws = {name: value.numpy() for name, value in values.items()}
        method = replace(self, executor=None)
        return Fit(method, program, structure, draws, stats, seed, findings)

    def run_path(
        self, program: Program, seed: int, path: int, of_prior: bool
    ) -> tuple[Normal, _Sampled]:
        """Find one of the paths of ``run``, and draw from it."""
        density = self._density(program, self._discover(program))
        evaluator, _ = choose(density, self.engine, seed)
        normal, rng = best_normal(
            density, evaluator, seed, self.steps, self.num_samples, path=path, of_prior=of_prior
        )
        return normal, _sample(evaluator, normal, self.draws, rng, least=TAIL_DRAWS_MIN)

    def _on_workers(
        self, program: Program, seed: int, paths: Sequence[int], of_prior: bool, shown: Any
    ) -> Iterator[tuple[Normal, _Sampled]]:
        """Yield the paths that the executor has found, in their order, also after Ctrl-C."""
        if not paths:
            return
        alone = replace(self, executor=None)

        def run(_: int, path: int) -> tuple[Normal, _Sampled]:
            with isolated(seed):
                return alone.run_path(program, seed, path, of_prior)

        def lost(message: str) -> tuple[Normal, _Sampled]:
            raise ModelError(message)

        done, stop = finished(self.executor, run, paths, lost, shown.update)
        yield from (done[i] for i in sorted(done))
        if stop is not None:
            raise stop


def _rows(parts: list[Array], chosen: NDArray[np.int64]) -> Array:
    """Return rows (n, d) of arrays that together have all of them, without joining the arrays."""
    ends = np.cumsum([len(part) for part in parts])
    which = np.searchsorted(ends, chosen, side="right")
    starts = ends - [len(part) for part in parts]
    return np.stack([parts[p][i - starts[p]] for p, i in zip(which, chosen, strict=True)])


def pathfinder_draw(density: LogDensity, evaluator: Evaluator, seed: int) -> Array:
    """Return one draw (d,) of a single path, to start a Markov chain from."""
    approximation, rng = best_normal(density, evaluator, seed, 1000, 25)
    for _ in range(PATHS_MAX):
        sampled = _sample(evaluator, approximation, 1, rng)
        if np.isfinite(sampled.log_p[0]):
            return sampled.z[0]
    return approximation.point


@dataclass(frozen=True)
class Normal:
    """A normal density whose covariance is diagonal plus low rank.

    Its covariance is A^(1/2) (I + Q (L L' - I) Q') A^(1/2), with A = diag(scale**2).
    """

    point: Array  # the iterate at which the approximation was made
    mean: Array
    scale: Array  # (d,)
    basis: Array  # Q, (d, r), orthonormal
    root: Array  # L, (r, r), lower triangular

    def draw(self, draws: Array, rng: np.random.Generator) -> Array:
        """Write draws to an array (n, d), and return their log densities (n,)."""
        rng.standard_normal(out=draws)
        inside = draws @ self.basis
        squares = np.einsum("nd,nd->n", draws, draws)
        log_det = np.log(self.scale).sum() + np.log(np.diag(self.root)).sum()
        draws += (inside @ self.root.T - inside) @ self.basis.T
        draws *= self.scale
        draws += self.mean
        return -0.5 * (squares + len(self.mean) * math.log(2 * math.pi)) - log_det

    def log_density(self, z: Array) -> Array:
        """Return the log density at points (n, d), as (n,)."""
        size = max(1, NUMBERS_PER_BLOCK // len(self.mean))
        inside, length = np.empty((len(z), self.basis.shape[1])), np.empty(len(z))
        for first in range(0, len(z), size):
            rows = slice(first, first + size)
            noise = (z[rows] - self.mean) / self.scale
            inside[rows], length[rows] = noise @ self.basis, np.einsum("nd,nd->n", noise, noise)
        whitened = linalg.solve_triangular(self.root, inside.T, lower=True)
        squares = length - (inside**2).sum(1) + (whitened**2).sum(0)
        log_det = np.log(self.scale).sum() + np.log(np.diag(self.root)).sum()
        return -0.5 * (squares + len(self.mean) * math.log(2 * math.pi)) - log_det

    @property
    def variances(self) -> Array:
        """The diagonal of the covariance (d,)."""
        change = self.root @ self.root.T - np.eye(len(self.root))
        return self.scale**2 * (1 + np.einsum("dr,rs,ds->d", self.basis, change, self.basis))

    @property
    def precisions(self) -> Array:
        """The diagonal of the inverse of the covariance (d,)."""
        change = np.linalg.inv(self.root @ self.root.T) - np.eye(len(self.root))
        return (1 + np.einsum("dr,rs,ds->d", self.basis, change, self.basis)) / self.scale**2

    @property
    def covariance(self) -> Array:
        """The covariance (d, d)."""
        change = self.root @ self.root.T - np.eye(len(self.root))
        inner = np.eye(len(self.mean)) + self.basis @ change @ self.basis.T
        return self.scale[:, None] * inner * self.scale

    def moved(self, by: Array) -> Normal:
        """Return the normal density of the points plus a vector (d,)."""
        return replace(self, point=self.point + by, mean=self.mean + by)

    def times(self, unit: float) -> Normal:
        """Return the normal density of the points times a number."""
        return Normal(unit * self.point, unit * self.mean, unit * self.scale, self.basis, self.root)


@dataclass(frozen=True)
class _InUnits:
    """A density of points in other units."""

    evaluator: Evaluator
    unit: float

    def value_and_grad(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log density at ``z`` (d,) times the unit, and its gradient by ``z``."""
        value, grad = self.evaluator.value_and_grad(z * self.unit)
        return value, grad * self.unit


@dataclass(frozen=True)
class _Sampled:
    """Draws of a normal approximation, scored by it and by the density."""

    z: Array
    log_p: Array
    log_q: Array
    stop: KeyboardInterrupt | None = None  # the interruption that ended it early, if any

    @property
    def elbo(self) -> float:
        gap = self.log_p - self.log_q
        return float(gap.mean()) if np.isfinite(gap).all() else -math.inf


def _sample(
    evaluator: Evaluator,
    normal: Normal,
    count: int,
    rng: np.random.Generator,
    *,
    least: int | None = None,
) -> _Sampled:
    """Draw ``count`` draws; an interruption leaves fewer, if at least ``least`` are done."""
    z, log_q = np.empty((count, len(normal.mean))), np.empty(count)
    scores: list[float] = []
    early = None
    size = max(1, min(DRAWS_PER_BLOCK, NUMBERS_PER_BLOCK // len(normal.mean)))
    try:
        for first in range(0, count, size):
            rows = slice(first, first + size)
            log_q[rows] = normal.draw(z[rows], rng)
            for x in z[rows]:
                check_time_limit()
                scores.append(float(evaluator.value_and_grad(torch.from_numpy(x))[0]))
    except KeyboardInterrupt as stop:
        if least is None or len(scores) < least:
            raise
        early = stop
    done, log_p = len(scores), np.array(scores)
    return _Sampled(z[:done], np.where(np.isfinite(log_p), log_p, -np.inf), log_q[:done], early)


def _log_mixture(normals: list[Normal], counts: list[int], z: Array) -> Array:
    """Return the log density of the draws of all paths together (n,), at points (n, d).

    Weights relative to this mixture do not depend on the number of paths that led to a mode.
    """
    shares = np.array(counts) / sum(counts)
    parts = [normal.log_density(z) + math.log(s) for normal, s in zip(normals, shares, strict=True)]
    return np.logaddexp.reduce(parts, axis=0)


def elbo(evaluator: Evaluator, normal: Normal, count: int, rng: np.random.Generator) -> float:
    """Estimate the ELBO of a normal approximation from ``count`` draws, in nats."""
    return _sample(evaluator, normal, count, rng).elbo


def best_normal(
    density: LogDensity,
    evaluator: Evaluator,
    seed: int,
    steps: int,
    num_samples: int,
    *,
    path: int = 0,
    of_prior: bool = False,
) -> tuple[Normal, np.random.Generator]:
    """Follow one path, and return the approximation with the highest ELBO (Algorithm 1).

    Args:
        density: the density.
        evaluator: evaluates it.
        seed: seed of all paths.
        steps: maximal number of L-BFGS iterations.
        num_samples: number of draws that estimate the ELBO at each point of the path.
        path: number of the path. The paths 1, 3, ... start at the mirror images of the starts of
            the paths 0, 2, ...
        of_prior: whether the path starts at a draw from the prior instead.

    Returns:
        The approximation, and a generator for its draws.

    Raises:
        ModelError: no usable curvature was found.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, path)))
    key = (2, path) if of_prior else (1, path // 2)
    starts = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    for _ in range(PATHS_MAX):
        generator = torch.Generator().manual_seed(int(starts.integers(2**62)))
        evaluate = evaluator.value_and_grad
        if of_prior:
            start = density.initial_of_prior(generator, evaluate)
        else:
            start = density.initial(generator, mirror=path % 2 == 1, value_and_grad=evaluate)
        # L-BFGS knows no scale: it stops where a gradient is small in other units than those of z.
        found = approach(functools.partial(evaluate_with, evaluator), start.numpy())
        unit = 1.0 if 1 / UNIT_MAX < found.unit < UNIT_MAX else found.unit
        scaled = evaluator if unit == 1.0 else _InUnits(evaluator, unit)
        origin = start.numpy()
        if unit != 1.0:  # a path needs some way to go
            origin = found.start / unit + rng.uniform(-2, 2, density.dim)
        best, highest = None, -math.inf
        for normal in _normals(*_path(scaled, origin, steps)):
            value = elbo(scaled, normal, num_samples, rng)
            if value > highest:
                best, highest = normal, value
        if best is not None:
            return best if unit == 1.0 else best.times(unit), rng
    raise ModelError(
        "L-BFGS found no usable curvature of the log density of the model "
        f"'{density.program.name}' on any of {PATHS_MAX} paths, so there is no normal "
        "approximation. The posterior may be improper: give all sites proper priors, or use "
        "method='nuts'."
    )


def _path(evaluator: Evaluator, start: Array, steps: int) -> tuple[list[Array], list[Array]]:
    """Return the iterates of L-BFGS and the gradients of log p there."""
    gradients: dict[bytes, Array] = {}

    def objective(x: Array) -> tuple[float, Array]:
        check_time_limit()
        value, grad = evaluator.value_and_grad(torch.from_numpy(x.copy()))
        if not (torch.isfinite(value) and torch.isfinite(grad).all()):
            return NOT_FINITE, np.zeros_like(x)
        gradients[x.tobytes()] = grad.numpy()
        return -float(value), -grad.numpy()

    points = [start.copy()]
    options = {"maxiter": steps, "maxfun": 20 * steps, "maxcor": HISTORY, "ftol": 1e-12}
    optimize.minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options=options,
        callback=lambda x: points.append(x.copy()),
    )
    kept = [p for p in points if p.tobytes() in gradients]
    return kept, [gradients[p.tobytes()] for p in kept]


def _normals(points: list[Array], gradients: list[Array]) -> Iterator[Normal]:
    """Make the normal approximation at each iterate after the first (Algorithms 3 and 4)."""
    alpha = np.ones(len(points[0])) if points else np.empty(0)
    updates: deque[tuple[Array, Array]] = deque(maxlen=HISTORY)
    for i in range(1, len(points)):
        check_time_limit()
        s, y = points[i] - points[i - 1], gradients[i - 1] - gradients[i]
        curvature = float(s @ y)
        if curvature > 0 and float(y @ y) / curvature < CURVATURE_MAX:
            with np.errstate(all="ignore"):
                updated = _diagonal(alpha, s, y)
            if np.isfinite(updated).all() and (updated > 0).all():
                alpha = updated
                updates.append((s, y))
        if updates:
            with contextlib.suppress(np.linalg.LinAlgError):  # indefinite by rounding
                yield _normal(points[i], gradients[i], alpha, updates)


def _diagonal(alpha: Array, s: Array, y: Array) -> Array:
    """Update the diagonal of the inverse Hessian, after Gilbert and Lemaréchal (1989)."""
    a = float(y @ (alpha * y))
    b = float(y @ s)
    c = float(s @ (s / alpha))
    return 1 / (a / (b * alpha) + y**2 / b - (a * s**2) / (b * c * alpha**2))


def _normal(
    point: Array, gradient: Array, alpha: Array, updates: deque[tuple[Array, Array]]
) -> Normal:
    """Make the normal density of an iterate: mean z + Sigma grad, covariance Sigma."""
    s = np.stack([u[0] for u in updates], 1)
    y = np.stack([u[1] for u in updates], 1)
    product = s.T @ y
    upper = np.triu(product)
    inverse = linalg.solve_triangular(upper, np.eye(len(upper)))
    eta = np.diag(product)
    corner = inverse.T @ (np.diag(eta) + y.T @ (alpha[:, None] * y)) @ inverse
    zero = np.zeros_like(corner)
    gamma = np.block([[zero, -inverse], [-inverse.T, corner]])
    beta = np.concatenate([alpha[:, None] * y, s], 1)
    scale = np.sqrt(alpha)
    basis, r = np.linalg.qr(beta / scale[:, None])
    root = np.linalg.cholesky(np.eye(len(r)) + r @ gamma @ r.T)
    mean = point + alpha * gradient + beta @ (gamma @ (beta.T @ gradient))
    return Normal(point, mean, scale, basis, root)
