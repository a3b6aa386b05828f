"""Which engine evaluates a density: native code where it can be had, the model itself elsewhere.

Three ways, the fastest first: C code (``native``); the traced graph, run by torch without Pyro
around it; the model as it is (``eager``). The second serves where an operation has no C form,
or there is no compiler, and only if it proves faster than the third when both are timed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten

from probdl.compile.codegen.emit import Source, emit
from probdl.compile.codegen.statements import UnsupportedError
from probdl.compile.probe import probe
from probdl.compile.runtime import cache
from probdl.compile.runtime.native_density import NativeDensity, differentiable
from probdl.compile.runtime.toolchain import CompilerError
from probdl.compile.tracing.trace import Traced, UntraceableError, trace
from probdl.compile.verify import MismatchError, verify
from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.model.density import LogDensity
from probdl.util.clock import look, timed
from probdl.util.isolation import evaluation

__all__ = ["ENGINES", "Evaluator", "GraphDensity", "choose"]

ENGINES = ("auto", "native", "eager")
MAX_STATEMENTS = 40_000  # of C; so many take a minute to compile
POINTS = 5  # at which new code is verified
POINTS_AGAIN = 2  # where the same model was verified before, on other data

Evaluator = Any
"""What evaluates a density: it has ``engine``, ``value_and_grad(z)`` and ``__call__(z)``."""

_REMEDIES: dict[type[Exception], str] = {
    UntraceableError: "Write `if` on the value of a site as torch.where(), and keep what is drawn "
    "at random in pyro.sample.",
    MismatchError: "The draws are right, only slow. Please report the model.",
    CompilerError: "probdl.doctor() shows what is available and what is missing.",
    UnsupportedError: "Write that part of the model in other operations, and loops over time as "
    "operations on whole series.",
}


@dataclass(frozen=True)
class _Compiled:
    traced: Traced
    source: Source
    findings: tuple[Finding, ...]


# By model, then by the shapes of its arguments and the kind of density. A model that is gone
# takes its entry with it.
_known: weakref.WeakKeyDictionary[Any, dict[Any, _Compiled]] = weakref.WeakKeyDictionary()


class GraphDensity:
    """A traced log density, run by torch as a graph, without Pyro around it."""

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
        """Evaluate the log density at ``z`` (d,), as a scalar that autograd can follow."""
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
    """Return what evaluates the density, and findings: where that is not native code, and why.

    Args:
        density: the density.
        engine: ``"native"``, ``"eager"``, or ``"auto"``: native if that can be.
        seed: of the points at which the compiled code is verified.
        threads: how many threads will call it at once.
        trusted: whether code that this model has from other data need not be verified again, since
            nothing but the data has changed.
        gradient: whether the method needs the gradient.

    Raises:
        ModelError: the engine must be native, and cannot be; the density is finite nowhere, random,
            or without a gradient.
    """
    with timed("compile"):
        return _choose(density, engine, seed, threads, trusted, gradient)


def _choose(
    density: LogDensity, engine: str, seed: int, threads: int, trusted: bool, gradient: bool
) -> tuple[Evaluator, list[Finding]]:
    generator = torch.Generator().manual_seed(seed)
    evaluator: Evaluator = density
    findings: list[Finding] = []
    if (again := _remembered(density)) is not None:
        findings = list(again.findings)
    elif not trusted:
        findings = probe(density, density.initial(generator), gradient=gradient)
    if engine == "eager":
        return density, findings
    generator = torch.Generator().manual_seed(seed)
    try:
        if (known := _recall(density, generator, threads, trusted)) is not None:
            return known, [*findings, *cache.findings()]
        points = _points(density, generator, POINTS)
        look()
        traced = trace(density, points[0])
        look()
        try:
            native = _compile(density, traced, points, threads, findings)
            return native, [*findings, *cache.findings()]
        except (UnsupportedError, CompilerError):
            if engine == "auto":
                evaluator = _graph_if_faster(density, traced, points)
            raise
    except (UntraceableError, MismatchError, UnsupportedError, CompilerError) as error:
        failure = error
    why, remedy = f"{failure}".rstrip("."), _REMEDIES[type(failure)]
    if engine == "native":
        raise ModelError(
            f"the model '{density.program.name}' cannot run on the native engine: {why}. {remedy} "
            "engine='auto' takes another in its place."
        )
    return evaluator, [
        *findings,
        Finding(
            "warning",
            "engine",
            f"the model '{density.program.name}' runs on the {evaluator.engine} engine, which is "
            f"slow, and not on the native one: {why}.",
            remedy,
        ),
    ]


def _remembered(density: LogDensity) -> _Compiled | None:
    key = _key(density)
    return _known.get(density.program.model, {}).get(key) if key is not None else None


def _recall(
    density: LogDensity, generator: torch.Generator, threads: int, trusted: bool
) -> NativeDensity | None:
    """Take the code that this model had on other data; None if there is none that is right."""
    known = _remembered(density)
    arrays = known.traced.arrays(density.program.tensors()) if known is not None else None
    if known is None or arrays is None:
        return None
    compiled = NativeDensity(known.source, density.dim, arrays, threads)
    if trusted:
        return compiled
    try:
        verify(compiled, density, _points(density, generator, POINTS_AGAIN))
    except MismatchError:  # what the model has from elsewhere than its arguments has changed
        return None
    return compiled


def _compile(
    density: LogDensity, traced: Traced, points: Tensor, threads: int, findings: Sequence[Finding]
) -> NativeDensity:
    source = emit(traced.density, density.dim)
    if source.statements > MAX_STATEMENTS:
        raise UnsupportedError(
            f"its graph has {source.statements} operations, and more than {MAX_STATEMENTS} take "
            "minutes to compile; loops over time are the usual cause"
        )
    compiled = NativeDensity(source, density.dim, _arrays(density, traced), threads)
    look()
    verify(compiled, density, points)
    key = _key(density)
    if key is not None and traced.reads_data:
        _known.setdefault(density.program.model, {})[key] = _Compiled(
            traced, source, tuple(findings)
        )
    return compiled


def _arrays(density: LogDensity, traced: Traced) -> list[Tensor]:
    arrays = traced.arrays(density.program.tensors())
    assert arrays is not None  # they have the shapes that they were traced with
    return arrays


def _points(density: LogDensity, generator: torch.Generator, count: int) -> Tensor:
    return torch.stack([density.initial(generator) for _ in range(count)])


def _key(density: LogDensity) -> Any:
    """Name what a trace depends on, but for the values of the data; None if that is not known."""
    try:
        _known.get(density.program.model)
    except TypeError:  # a model that has no hash or no weak references
        return None
    leaves, structure = tree_flatten(density.program.arguments)
    kinds: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            kinds.append((tuple(leaf.shape), leaf.dtype))
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            kinds.append((type(leaf), leaf))
        else:
            return None
    options = (density.prior, density.jacobian, tuple(density.blocks))
    return (str(structure), tuple(kinds), options)


def _graph_if_faster(density: LogDensity, traced: Traced, points: Tensor) -> Evaluator:
    graph = GraphDensity(traced, _arrays(density, traced))
    try:
        verify(graph, density, points)
    except MismatchError:
        return density
    return min((graph, density), key=lambda evaluator: _seconds(evaluator, points))


def _seconds(evaluator: Evaluator, points: Tensor) -> float:
    times = []
    for point in points:
        start = time.perf_counter()
        evaluator.value_and_grad(point)
        times.append(time.perf_counter() - start)
    return min(times)
