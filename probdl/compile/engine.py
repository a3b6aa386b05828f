"""The choice of the engine that evaluates a density.

There are three engines, the fastest first: C code (``native``); the traced graph, run by torch
without Pyro (``graph``); and the model itself (``eager``). The graph is used if C code
does not support an operation or there is no compiler, and only if it is faster than the model when
both are timed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten

from probdl.compile.codegen.emit import Source, emit
from probdl.compile.codegen.statements import UnsupportedError
from probdl.compile.long_series import Series, of_first_steps
from probdl.compile.probe import check_gradient, probe
from probdl.compile.runtime import cache
from probdl.compile.runtime.native_density import NativeDensity, differentiable
from probdl.compile.runtime.toolchain import CompilerError
from probdl.compile.tracing.trace import (
    CaughtError,
    Prepared,
    Traced,
    UntraceableError,
    WriteError,
    trace,
)
from probdl.compile.verify import MismatchError, verify
from probdl.errors import ModelError, ProbdlError, TimeLimitError
from probdl.findings import Finding
from probdl.io.surroundings import Surroundings, surroundings
from probdl.model.density import LogDensity
from probdl.util.clock import check_time_limit, timed
from probdl.util.isolation import evaluation
from probdl.util.lazy import optimize

__all__ = ["ENGINES", "Evaluator", "GraphDensity", "choose"]

ENGINES = ("auto", "native", "eager")
MAX_STATEMENTS = 40_000  # of C; they take a minute to compile
VERIFIED_POINTS = 5  # at which new code is compared with the model
CLIMBED_STEPS = 50  # towards a mode, to verify code there
GUARD = 2**20  # numbers, behind the arrays that unverified code reads
REASON_MAX = 200  # characters of an error that are shown
REVERIFIED_POINTS = 2  # for code that was verified on other data, or if the data are large

Evaluator = Any
"""An evaluator of a density: it has ``engine``, ``value_and_grad(z)`` and ``__call__(z)``."""

_REMEDIES: dict[type[Exception], str] = {
    CaughtError: CaughtError.remedy,
    UntraceableError: "Replace `if` on the value of a site by torch.where(), and draw random "
    "numbers with pyro.sample only.",
    WriteError: "Collect values in a list and join them by torch.stack() or torch.cat(), instead "
    "of writing to parts of a tensor.",
    MismatchError: "The results are correct, but slower to compute. Please report the model.",
    CompilerError: "probdl.doctor() shows what is available and what is missing.",
    UnsupportedError: "Use other operations in that part of the model, and operations on whole "
    "series instead of loops over time.",
}


@dataclass(frozen=True)
class _Compiled:
    prepared: Prepared
    source: Source
    findings: tuple[Finding, ...]
    of_first_steps: bool  # whether later steps were not traced
    surroundings: Surroundings  # of the model


# By model, then by the shapes of its arguments and the kind of density. An entry is removed
# with its model.
_compiled_models: weakref.WeakKeyDictionary[Any, dict[Any, _Compiled]] = weakref.WeakKeyDictionary()


class _Remembered:
    """Evaluates a model, which may take long, once at each point."""

    def __init__(self, density: LogDensity) -> None:
        self._density = density
        self._known: dict[bytes, tuple[Tensor, Tensor]] = {}

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        key = z.numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._density.value_and_grad(z)
        return self._known[key]


class GraphDensity:
    """A traced log density, run by torch without Pyro."""

    engine = "graph"

    def __init__(self, traced: Traced, arrays: Sequence[Tensor]) -> None:
        self._graph = fx.GraphModule({}, traced.density)
        self._arrays = list(arrays)

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density at ``z`` (d,) and its gradient (d,)."""
        with evaluation(), torch.no_grad():
            grad, value = self._graph(z.detach(), *self._arrays)
        return value, grad

    def __call__(self, z: Tensor) -> Tensor:
        """Return the log density at ``z`` (d,), as a scalar that autograd can differentiate."""
        return differentiable(self, z)


def choose(
    density: LogDensity,
    engine: str,
    seed: int,
    *,
    threads: int = 1,
    trusted: bool = False,
    gradient: bool = True,
) -> tuple[Evaluator, list[Finding]]:
    """Return an evaluator of the density, and findings: if it is not native code, the reason.

    Args:
        density: the density.
        engine: ``"native"``, ``"eager"``, or ``"auto"``: native if possible.
        seed: seed of the points at which the compiled code is verified.
        threads: number of threads that will call it at once.
        trusted: whether to reuse code that was compiled for this model on other data without
            verifying it again, since only the data have changed.
        gradient: whether the method needs the gradient.

    Raises:
        ModelError: the native engine is required but not available; the density is not finite
            anywhere, is random, or has no correct gradient.
    """
    with timed("compile"):
        return _choose(density, engine, seed, threads, trusted, gradient)


def _choose(
    density: LogDensity, engine: str, seed: int, threads: int, trusted: bool, gradient: bool
) -> tuple[Evaluator, list[Finding]]:
    model = _Remembered(density)
    evaluator: Evaluator = density
    findings: list[Finding] = []
    if (known := _compiled_before(density, trusted)) is not None:
        findings = list(known.findings)
    elif engine != "eager" and (found := _of_first_steps(density, seed, threads)):
        return found
    elif not trusted:
        (start,) = _points(density, model, seed, 1)
        findings = probe(density, start, gradient=gradient, value_and_grad=model.value_and_grad)
    if engine == "eager":
        return density, findings
    try:
        reused = known and _reused(known, density, model, seed, threads, trusted)
        if reused is not None:
            return reused, [*findings, *cache.findings()]
        count = REVERIFIED_POINTS if density.program.is_large else VERIFIED_POINTS
        points = _points(density, model, seed, count)
        check_time_limit()
        traced = _traced(density, points[0])
        check_time_limit()
        try:
            native = _compile_and_verify(density, traced, model, points, threads, findings)
            return native, [*findings, *cache.findings()]
        except (UnsupportedError, CompilerError):
            if engine == "auto":
                evaluator = _graph_if_faster(density, traced, model, points)
            raise
    except (UntraceableError, MismatchError, UnsupportedError, CompilerError) as error:
        failure = error
    why, remedy = f"{failure}".rstrip("."), _REMEDIES[type(failure)]
    if engine == "native":
        raise ModelError(
            f"The model '{density.program.name}' cannot run on the native engine: {why}. {remedy} "
            "engine='auto' uses another engine."
        )
    return evaluator, [
        *findings,
        Finding(
            "warning",
            "engine",
            f"The model '{density.program.name}' runs on the {evaluator.engine} engine, which is "
            f"slow, instead of the native one: {why}.",
            remedy,
        ),
    ]


def _traced(density: LogDensity, z: Tensor) -> Traced:
    """Trace a density at a point where it was evaluated."""
    try:
        return trace(density, z)
    except ModelError as error:  # such as TorchScript that branches on a value
        reason = str(error).partition("\n")[0][:REASON_MAX]
        raise UntraceableError(f"its operations cannot be recorded ({reason} …)") from None


def _compiled_before(density: LogDensity, trusted: bool) -> _Compiled | None:
    """Return what was compiled for this model, unless what it captures has changed since."""
    key = _key(density)
    known = _compiled_models.get(density.program.model, {}).get(key) if key is not None else None
    if known is None or trusted or known.surroundings == surroundings(density.program.original):
        return known
    return None


def _reused(
    known: _Compiled,
    density: LogDensity,
    model: _Remembered,
    seed: int,
    threads: int,
    trusted: bool,
) -> NativeDensity | None:
    """Return the code that was compiled for this model on other data; None if it is not usable."""
    arrays = known.prepared.arrays(density.program.tensors())
    if arrays is None:
        return None
    compiled = NativeDensity(known.source, density.dim, arrays, threads)
    try:
        if not trusted:
            points = _points(density, model, seed, REVERIFIED_POINTS)
            starts = [block.start for block in density.blocks.values() if block.size]
            verify(compiled, model, points, starts=starts)
        elif known.of_first_steps:  # a later step may branch on the data
            verify(compiled, density, _points(density, compiled, seed, 1), gradient=False)
    except MismatchError:  # data that are not arguments of the model have changed
        return None
    return compiled


def _compile_and_verify(
    density: LogDensity,
    traced: Traced,
    model: _Remembered,
    points: Tensor,
    threads: int,
    findings: Sequence[Finding],
) -> NativeDensity:
    source = emit(traced.density, density.dim)
    if source.statements > MAX_STATEMENTS:
        raise UnsupportedError(
            f"its graph has {source.statements} operations; more than {MAX_STATEMENTS} would take "
            "minutes to compile. Loops over time are the usual cause"
        )
    compiled = NativeDensity(source, density.dim, _arrays(density, traced), threads)
    check_time_limit()
    verify(compiled, model, points)
    _remember(density, traced, source, findings)
    return compiled


def _remember(
    density: LogDensity,
    prepared: Prepared,
    source: Source,
    findings: Sequence[Finding],
    *,
    of_first_steps: bool = False,
) -> None:
    key = _key(density)
    if key is not None and prepared.reads_data:
        around = surroundings(density.program.original)
        known = _Compiled(prepared, source, tuple(findings), of_first_steps, around)
        _compiled_models.setdefault(density.program.model, {})[key] = known


def _of_first_steps(
    density: LogDensity, seed: int, threads: int
) -> tuple[NativeDensity, list[Finding]] | None:
    """Return code made from the first steps of a long loop, and findings, if that is right."""
    if (found := of_first_steps(density)) is None:
        return None
    series, part = found
    try:
        # If later steps are of another kind, this may read other places than the model.
        guarded, of_part = (_native(x, threads, guard=GUARD) for x in (series, part))
        # An evaluation of all steps by torch takes seconds with its gradient.
        checked = _points(part.density, of_part, seed, VERIFIED_POINTS)
        verify(of_part, part.density, checked, finite=True)
        (start,) = _points(density, guarded, seed, 1)
        # A term of later steps that is constant at one of two opposite points is not at the other.
        mirror = density.initial(
            torch.Generator().manual_seed(seed), mirror=True, value_and_grad=guarded.value_and_grad
        )
        points = torch.stack([start, mirror, _climbed(guarded, start)])
        verify(guarded, density, points, gradient=False, finite=True)
        check_gradient(density, start, guarded.value_and_grad)
        findings = probe(density, start, part=(part.density, checked[0]))
        compiled = _native(series, threads)
    except (ProbdlError, RuntimeError, ValueError) as error:
        if isinstance(error, TimeLimitError):
            raise
        return None  # the trace of all steps gives the reason
    _remember(density, series.prepared, series.source, findings, of_first_steps=True)
    return compiled, [*findings, *cache.findings()]


def _native(series: Series, threads: int, guard: int = 0) -> NativeDensity:
    arrays = series.prepared.arrays(series.density.program.tensors())
    if arrays is None:
        raise UnsupportedError("the shapes of the data are not those of the trace")
    return NativeDensity(series.source, series.density.dim, arrays, threads, guard=guard)


def _climbed(density: Evaluator, start: Tensor) -> Tensor:
    """Return a point (d,) nearer to a mode, where terms of the density have their usual sizes."""

    def negative(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, grad = density.value_and_grad(torch.from_numpy(z))
        return -float(value), -grad.numpy()

    options = {"maxiter": CLIMBED_STEPS}
    found = optimize.minimize(negative, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x)


def _arrays(density: LogDensity, traced: Traced) -> list[Tensor]:
    arrays = traced.arrays(density.program.tensors())
    assert arrays is not None  # the shapes are those of the trace
    return arrays


def _points(density: LogDensity, model: Evaluator, seed: int, count: int) -> Tensor:
    generator, evaluate = torch.Generator().manual_seed(seed), model.value_and_grad
    return torch.stack([density.initial(generator, value_and_grad=evaluate) for _ in range(count)])


def _key(density: LogDensity) -> Any:
    """Return a key of all that a trace depends on, except values of the data; None if unknown."""
    try:
        _compiled_models.get(density.program.model)
    except TypeError:  # a model without a hash, or without weak references
        return None
    leaves, structure = tree_flatten(density.program.arguments)
    types: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            types.append((tuple(leaf.shape), leaf.dtype))
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            types.append((type(leaf), leaf))
        else:
            return None
    constants = [*density.program.used.items(), *density.program.fills.items()]
    values = tuple((name, tuple(x.reshape(-1).tolist())) for name, x in constants)
    options = (density.prior, density.jacobian, tuple(density.blocks), values)
    return (str(structure), tuple(types), options)


def _graph_if_faster(
    density: LogDensity, traced: Traced, model: _Remembered, points: Tensor
) -> Evaluator:
    graph = GraphDensity(traced, _arrays(density, traced))
    try:
        verify(graph, model, points)
    except RuntimeError:  # it computes other numbers, or torch cannot run it
        return density
    return min((graph, density), key=lambda evaluator: _seconds(evaluator, points))


def _seconds(evaluator: Evaluator, points: Tensor) -> float:
    times = []
    for point in points:
        start = time.perf_counter()
        evaluator.value_and_grad(point)
        times.append(time.perf_counter() - start)
    return min(times)
