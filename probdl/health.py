"""``doctor``: check the requirements of the native engine, and time a small model."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pyro
import pyro.distributions as dist
import torch

from probdl.compile.codegen.emit import emit
from probdl.compile.kernels.nuts import check_compiled
from probdl.compile.runtime import cache
from probdl.compile.runtime.lapack import lapack
from probdl.compile.runtime.native_density import NativeDensity
from probdl.compile.runtime.toolchain import CompilerError, compile_to, find_compiler
from probdl.compile.tracing.trace import trace
from probdl.compile.verify import verify
from probdl.methods.mcmc import nutpie_adapter
from probdl.model.density import LogDensity
from probdl.util.blas import blas_kernels
from probdl.util.clock import TimeUp, clock

__all__ = ["Report", "clear_cache", "doctor"]

_TOY_TIME_LIMIT = 60.0  # seconds; the toy model takes one or two
_PACKAGES = ("probdl", "torch", "pyro-ppl", "arviz", "nutpie", "numpy")


@dataclass(frozen=True)
class Report:
    """The report of ``doctor``.

    Attributes:
        healthy: whether models can run on the native engine.
        lines: the result of each check, by topic.
        seconds: the time of each step for a toy model.
    """

    healthy: bool
    lines: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = dict(self.lines)
        rows |= {f"toy model, {step}": f"{s * 1000:.3g} ms" for step, s in self.seconds.items()}
        rows["native engine"] = "works" if self.healthy else "does not work, see above"
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())

    def __repr__(self) -> str:
        return str(self)


def _toy_model(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def doctor() -> Report:
    """Check the requirements of the native engine, and print a report.

    The checks cover the C compiler, nutpie (if it is installed) and the part of its interface that
    probdl uses, SciPy's BLAS, and the cache of compiled code. Then a toy model runs through every
    step, without the cache, and the sampler is compiled.

    Returns:
        The report, which prints as a table.

    Example:
        >>> import probdl
        >>> report = probdl.doctor()                                    # doctest: +ELLIPSIS
        machine ...
        native engine                    works
    """
    lines = {"machine": f"{platform.machine()}, Python {platform.python_version()}"}
    for package in _PACKAGES:
        try:
            lines[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            lines[package] = "not installed"
    try:
        compiler = find_compiler()
        lines["C compiler"] = f"{compiler}: {compiler.version}"
    except CompilerError as error:
        lines["C compiler"] = f"{str(error).rstrip('.')}. Install gcc or clang."
    lines["nutpie's interface"] = nutpie_adapter.state()
    try:
        lapack()
        lines["BLAS for large matrices"] = blas_kernels()
    except ImportError as error:
        lines["BLAS for large matrices"] = f"{error}. Use another release of SciPy."
    entries, size = cache.size()
    lines["compiled code"] = f"{entries} entries, {size / 2**20:.1f} MiB, in {cache.folder()}"
    seconds: dict[str, float] = {}
    healthy = False
    try:
        with clock(_TOY_TIME_LIMIT):
            _time_toy_model(seconds)
        check_compiled()
        healthy = True
    except CompilerError as error:
        lines["toy model"] = str(error)
    except TimeUp:
        lines["toy model"] = f"not finished after {_TOY_TIME_LIMIT:g} s; the C compiler may hang"
    report = Report(healthy, lines, seconds)
    print(report)  # noqa: T201
    return report


def _time_toy_model(seconds: dict[str, float]) -> None:
    """Run the toy model through each step of the native engine, and time the steps."""
    density = LogDensity.from_model(_toy_model, (torch.tensor([0.1, -0.3, 0.5]),))
    z = density.initial(torch.Generator().manual_seed(0))
    trace(density, z)  # the first trace of a process loads parts of torch, so it is not timed
    start = time.perf_counter()
    traced = trace(density, z)
    seconds["trace"] = time.perf_counter() - start
    start = time.perf_counter()
    source = emit(traced.density, density.dim)
    seconds["write as C"] = time.perf_counter() - start
    with TemporaryDirectory() as folder:
        path = Path(folder) / "toy.so"
        start = time.perf_counter()
        compile_to(path, source)
        seconds["compile to a library"] = time.perf_counter() - start
    compiled = NativeDensity(source, density.dim, traced.arrays(density.program.tensors()) or [], 1)
    start = time.perf_counter()
    verify(compiled, density, z[None])
    seconds["verify at a point"] = time.perf_counter() - start
    for evaluator, calls in ((compiled, 1000), (density, 10)):
        start = time.perf_counter()
        for _ in range(calls):
            evaluator.value_and_grad(z)  # type: ignore[attr-defined]
        seconds[f"a gradient, {evaluator.engine}"] = (time.perf_counter() - start) / calls  # type: ignore[attr-defined]


def clear_cache() -> int:
    """Remove all compiled code from the cache folder, and return the number of entries removed.

    :func:`doctor` reports the folder and its size. Code is compiled again when it is needed.

    Example:
        >>> import probdl
        >>> probdl.clear_cache()    # doctest: +SKIP
        12
    """
    return cache.clear()
