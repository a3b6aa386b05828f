"""NUTS by nutpie on compiled code: the only file that uses nutpie's interfaces.

nutpie (in Rust) provides the sampler, its adaptation and the threads. Its extension module accepts
the address of a compiled C function, as it does for functions that numba compiles for PyMC. That
interface is private and has changed between releases, so it is checked on a toy density before its
first use in a process. If the check fails, nutpie's public interface is used, which calls a Python
function and is slower. The extension module is loaded without the package around it, which takes
1.5 seconds to import storage back ends, and needs ArviZ below 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator
from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.methods.mcmc.chains import Chain, Chains, Starts, gather
from probdl.util.clock import check_time_limit, expire, time_left
from probdl.util.isolation import lock_suspended
from probdl.util.progress import bar, is_shown

__all__ = ["available", "findings", "run", "state"]

# nutpie's names of statistics, and ArviZ's.
_STATS = {
    "logp": "lp",
    "diverging": "diverging",
    "energy": "energy",
    "mean_tree_accept": "acceptance_rate",
    "step_size": "step_size",
    "n_steps": "n_steps",
    "depth": "tree_depth",
    "maxdepth_reached": "reached_max_treedepth",
}
# By mass matrix: a direction is corrected if its variance differs from that of the diagonal by more
# than this ratio. nutpie's default of 2 causes divergences in curved posteriors that a diagonal
# matrix samples well (`make bench-mass`). A dense matrix corrects all directions.
_CUTOFFS = {"low_rank": 4.0, "dense": 1.0 + 1e-6}
PROGRESS_TEMPLATE = (
    "{{ total_finished_draws }}{% for chain in chains %} {{ chain.divergences }}{% endfor %}"
)
PROGRESS_INTERVAL_MS = 200
# Seconds. The check on the toy density takes milliseconds, unless nutpie hangs.
CHECK_TIMEOUT = 120.0
JOIN_TIMEOUT = 10.0  # seconds; threads end within milliseconds

Start = Callable[[int], NDArray[np.float64]]
Update = Callable[[str], None]


@dataclass(frozen=True)
class _Task:
    """A sampling task, in the terms that nutpie's two interfaces share.

    Attributes:
        dim: the dimension d.
        evaluator: the density.
        start: finds the starting point of a chain, given its seed.
        settings: settings under nutpie's names.
        kind: the kind of mass matrix, ``"Diag"`` or ``"LowRank"``.
        seed: the seed of all chains.
        update: receives the progress as text; None shows no progress.
    """

    dim: int
    evaluator: Evaluator
    start: Start
    settings: Mapping[str, Any]
    kind: str
    seed: int
    update: Update | None = None


class _Sampling(Protocol):
    """A sampling run in the background."""

    def wait(self, timeout: float | None) -> None:
        """Wait until the run has ended.

        Raises:
            TimeoutError: the run has not ended yet.
            RuntimeError: a chain failed.
        """

    def abort(self) -> None:
        """Abort the run, and wait until its threads have ended."""

    def join(self) -> None:
        """Wait for threads that are still running after a failure."""

    def tables(self) -> tuple[list[Any], list[Any]]:
        """Return draws and statistics so far, one Arrow table per chain."""


class _Interface(Protocol):
    """One of nutpie's interfaces."""

    def begin(self, task: _Task) -> _Sampling:
        """Start sampling."""


# -- the extension module ---------------------------------------------------------------------

# The arguments between display and store in `PySampler.from_pymc`: a further callback and its
# interval in milliseconds since 0.16.9, none before.
EXTRA_ARGUMENTS: tuple[tuple[Any, ...], ...] = ((None, 100), ())


@dataclass(frozen=True)
class _Extension:
    """nutpie's extension module, which calls a C function by its address."""

    library: Any
    extra_arguments: tuple[Any, ...]

    def begin(self, task: _Task) -> _Sampling:
        """Start sampling."""
        library, dim = self.library, task.dim
        evaluator, shared = task.evaluator, _Shared(task)
        nuts = getattr(library.PyNutsSettings, task.kind)(task.seed)
        for name, value in task.settings.items():
            setattr(nuts, name, value)
        model = library.PyMcModel(
            library.LogpFunc(evaluator.address, evaluator.user, shared),
            library.ExpandFunc(dim, dim, evaluator.expand, evaluator.user, shared),
            library.PyVariable.new_variables(["z"], ["float64"], [(dim,)], {}, {}),
            dim,
            {"z_dim_0": dim},
            {},
            shared.start,
            None,
        )
        chains = task.settings["num_chains"]
        display = library.ProgressType.none()
        if task.update is not None:
            display = library.ProgressType.template_callback(
                PROGRESS_INTERVAL_MS, PROGRESS_TEMPLATE, chains, task.update
            )
        cores = min(chains, os.cpu_count() or 1)
        store = library.PyStorage.arrow()
        sampler = library.PySampler.from_pymc(
            nuts, cores, model, display, *self.extra_arguments, store
        )
        return _ExtensionSampling(library, sampler, shared)


class _Shared:
    """An object that nutpie's threads share: it is freed once all of them have ended."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self.over = False

    def start(self, seed: int) -> NDArray[np.float64]:
        """Find the starting point of a chain, unless the run has failed."""
        if self.over:
            raise RuntimeError("the run has ended")
        return self._task.start(seed)


class _ExtensionSampling:
    """A sampling run of the extension module."""

    def __init__(self, library: Any, sampler: Any, shared: _Shared) -> None:
        self._library = library
        self._sampler = sampler
        self._shared = weakref.ref(shared)

    def wait(self, timeout: float | None) -> None:
        """Wait until the run has ended."""
        self._sampler.wait(timeout)

    def abort(self) -> None:
        """Abort the run, and wait until its threads have ended."""
        self._sampler.abort()

    def join(self) -> None:
        """Wait for threads that are still running after a failure."""
        if (shared := self._shared()) is not None:
            shared.over = True
            del shared
        with contextlib.suppress(Exception):  # it may raise the failure again
            self._sampler.abort()
        self._sampler = None
        started = time.perf_counter()
        while self._shared() is not None and time.perf_counter() - started < JOIN_TIMEOUT:
            time.sleep(0.001)
            self._library.PyStorage.arrow()  # any call frees objects of threads that have ended

    def tables(self) -> tuple[list[Any], list[Any]]:
        """Return draws and statistics."""
        draws, stats = self._sampler.take_results().get_arrow_trace()
        return draws, stats


def _load() -> Any:
    """Load nutpie's extension module.

    Raises:
        ImportError: nutpie or its extension module is not installed.
    """
    package = importlib.util.find_spec("nutpie")
    if package is None or package.submodule_search_locations is None:
        raise ImportError("nutpie is not installed")
    spec = importlib.machinery.PathFinder.find_spec("_lib", package.submodule_search_locations)
    if spec is None or spec.loader is None:
        raise ImportError("nutpie has no extension module")
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    return library


# -- the public interface ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Public:
    """nutpie's public interface, which calls a Python function."""

    nutpie: Any

    def begin(self, task: _Task) -> _Sampling:
        """Start sampling."""

        def logp(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            value, grad = task.evaluator.value_and_grad(torch.from_numpy(np.array(z)))
            return float(value), grad.numpy()

        model = self.nutpie.compiled_pyfunc.from_pyfunc(
            task.dim,
            lambda: logp,
            lambda *_: lambda z: {"z": np.array(z)},
            [np.dtype("float64")],
            [(task.dim,)],
            ["z"],
            make_initial_point_fn=task.start,
        )
        options = dict(task.settings)
        low_rank = task.kind == "LowRank"
        if "adaptation" in inspect.signature(self.nutpie.sample).parameters:  # 0.16.9 and later
            options["adaptation"] = "low_rank" if low_rank else "diag"
        else:
            options["low_rank_modified_mass_matrix"] = low_rank
        return _PublicSampling(
            self.nutpie.sample(
                model,
                draws=options.pop("num_draws"),
                tune=options.pop("num_tune"),
                chains=options.pop("num_chains"),
                cores=1,  # the density runs in Python
                seed=task.seed,
                progress_bar=task.update is not None,
                return_raw_trace=True,
                blocking=False,
                **options,
            )
        )


class _PublicSampling:
    """A sampling run of the public interface."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._results: Any = None

    def wait(self, timeout: float | None) -> None:
        """Wait until the run has ended."""
        self._results = self._sampler.wait(timeout=timeout)

    def abort(self) -> None:
        """Abort the run, and wait until its threads have ended."""
        self._results = self._sampler.abort()

    def join(self) -> None:
        """Wait for threads; there is only one, which has ended."""
        with contextlib.suppress(Exception):
            self._sampler.abort()

    def tables(self) -> tuple[list[Any], list[Any]]:
        """Return draws and statistics."""
        results = self._results
        draws, stats = results if isinstance(results, tuple) else results.get_arrow_trace()
        return draws, stats


# -- the choice of the interface -------------------------------------------------------------

_LOGP = ctypes.CFUNCTYPE(
    ctypes.c_int64,
    ctypes.c_uint64,
    *[ctypes.POINTER(ctypes.c_double)] * 3,
    ctypes.c_void_p,
)
_EXPAND = ctypes.CFUNCTYPE(
    ctypes.c_int64,
    ctypes.c_uint64,
    ctypes.c_uint64,
    *[ctypes.POINTER(ctypes.c_double)] * 2,
    ctypes.c_void_p,
)


class _Toy:
    """A standard normal density, as C functions (run by Python) and as a function of tensors."""

    user = 0

    def __init__(self) -> None:
        self._functions = _LOGP(self._logp), _EXPAND(self._expand)
        self.address, self.expand = (
            ctypes.cast(function, ctypes.c_void_p).value for function in self._functions
        )

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density at ``z`` (d,) and its gradient (d,)."""
        return -0.5 * (z @ z), -z

    @staticmethod
    def _logp(dim: int, z: Any, grad: Any, value: Any, user: Any) -> int:
        for i in range(dim):
            grad[i] = -z[i]
        value[0] = -0.5 * sum(z[i] ** 2 for i in range(dim))
        return 0

    @staticmethod
    def _expand(dim: int, expanded: int, z: Any, out: Any, user: Any) -> int:
        for i in range(dim):
            out[i] = z[i]
        return 0


def _check(interface: _Interface) -> None:
    """Sample the toy density with both kinds of mass matrix, and check the draws.

    Raises:
        Exception: the interface failed, or its draws are wrong.
    """
    dim, draws, chains = 2, 8, 2
    for kind in ("Diag", "LowRank"):
        settings: dict[str, Any] = {
            "num_draws": draws,
            "num_tune": 8,
            "num_chains": chains,
            "maxdepth": 3,
            "target_accept": 0.8,
        }
        if kind == "LowRank":
            settings["mass_matrix_eigval_cutoff"] = _CUTOFFS["low_rank"]
        # The public interface prints progress itself.
        update = (lambda text: None) if isinstance(interface, _Extension) else None
        task = _Task(dim, _Toy(), lambda seed: np.ones(dim), settings, kind, 1, update)
        sampling = interface.begin(task)
        try:
            sampling.wait(CHECK_TIMEOUT)
        except BaseException:
            sampling.join()
            raise
        found = _read(*sampling.tables(), dim=dim, draws=draws, stop=None)
        if found.z.shape != (chains, draws, dim):
            raise TypeError(f"it returns draws of shape {found.z.shape}")
        if not np.allclose(found.stats["lp"], -0.5 * (found.z**2).sum(-1)):
            raise TypeError("it returns log densities that do not match its draws")


def _usable(make: Callable[[], _Interface]) -> tuple[_Interface | None, str]:
    """Return an interface that passes the check, or None and the reason."""
    try:
        interface = make()
        _check(interface)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return interface, ""


@functools.cache
def _private() -> tuple[_Interface | None, str]:
    """Return the interface of the extension module if it works, or None and the reason."""
    try:
        library = _load()
    except (ImportError, OSError) as error:
        return None, str(error)
    reason = ""
    for arguments in EXTRA_ARGUMENTS:
        found, failure = _usable(functools.partial(_Extension, library, arguments))
        if found is not None:
            return found, ""
        reason = reason or failure
    return None, reason


@functools.cache
def _public() -> tuple[_Interface | None, str]:
    """Return nutpie's public interface if it works with this ArviZ, or None and the reason."""

    def make() -> _Interface:
        import nutpie

        return _Public(nutpie)

    return _usable(make)


def _interface(evaluator: Evaluator) -> _Interface | None:
    """Return the fastest interface that works for a density; None if there is none."""
    if evaluator.engine == "native" and (private := _private()[0]) is not None:
        return private
    return _public()[0]


def available(evaluator: Evaluator) -> bool:
    """Return whether nutpie can sample this density."""
    return evaluator.engine != "eager" and _interface(evaluator) is not None


def state() -> str:
    """Describe the result of the check of nutpie, in words."""
    if importlib.util.find_spec("nutpie") is None:
        return "not installed; only NUTS(sampler='nutpie') needs it"
    private, reason = _private()
    if private is not None:
        return "as expected"
    if _public()[0] is not None:
        return f"not as expected ({reason}); the slower public interface is used"
    return f"does not work ({_public()[1]}); Pyro's slower sampler is used"


def findings(evaluator: Evaluator) -> list[Finding]:
    """Report if the fastest interface for a density does not work, and which sampler is used."""
    if evaluator.engine == "eager" or (evaluator.engine == "native" and _private()[0] is not None):
        return []
    if evaluator.engine != "native" and _public()[0] is not None:
        return []
    used = "its public interface, which is slower, is used"
    if _public()[0] is None:
        used = "Pyro's sampler, which is slower, is used"
    reason = _private()[1] if evaluator.engine == "native" else _public()[1]
    problem = f"does not work as expected ({reason})"
    try:
        version = importlib.metadata.version("nutpie")
    except importlib.metadata.PackageNotFoundError:
        version, problem = "", "is not installed"
    return [
        Finding(
            "warning",
            "sampler",
            f"{f'nutpie {version}'.strip()} {problem}; {used}.",
            'Install it as this release of probdl needs it: pip install "probdl[nutpie]"; '
            "probdl.doctor() shows what is installed. sampler='native' does not need it.",
        )
    ]


# -- a run ------------------------------------------------------------------------------------


def run(
    dim: int,
    evaluator: Evaluator,
    find_start: Callable[[int], Tensor],
    *,
    draws: int,
    warmup: int,
    chains: int,
    target_accept: float,
    max_treedepth: int,
    mass_matrix: str,
    seed: int,
    progress: bool | None,
) -> Chains:
    """Draw from a density on R^d; on Ctrl-C return the draws so far.

    Args:
        dim: the dimension d.
        evaluator: the density.
        find_start: finds the starting point of a chain, given a seed.
        draws: as in :class:`NUTS`, like the arguments below.
        warmup: number of transitions for adaptation.
        chains: number of chains.
        target_accept: acceptance rate to which the step size is adapted.
        max_treedepth: limit of the length of trajectories.
        mass_matrix: ``"diag"``, ``"low_rank"`` or ``"dense"``.
        seed: all random numbers derive from it.
        progress: whether to show progress.

    Raises:
        KeyboardInterrupt: interrupted before each chain had a draw.
        ModelError: the sampler could not start.
    """
    # A model without any starting point fails here, with an error that says why. An error in one of
    # nutpie's threads would end all chains.
    starts = Starts(find_start, seed)
    check_time_limit()  # a small model may finish before the wait below sees a limit of zero
    settings: dict[str, Any] = {
        "num_draws": draws,
        "num_tune": max(warmup, 1),  # nutpie needs at least one
        "num_chains": chains,
        "maxdepth": max_treedepth,
        "target_accept": target_accept,
    }
    if mass_matrix in _CUTOFFS:
        settings["mass_matrix_eigval_cutoff"] = _CUTOFFS[mass_matrix]
    interface = _interface(evaluator)
    assert interface is not None
    with bar(chains * (settings["num_tune"] + draws), "sampling", progress) as progress_bar:
        task = _Task(
            dim,
            evaluator,
            lambda chain_seed: starts(chain_seed).numpy(),
            settings,
            "Diag" if mass_matrix == "diag" else "LowRank",
            seed % 2**63,
            functools.partial(_update, progress_bar) if is_shown(progress) else None,
        )
        with lock_suspended():
            sampling = interface.begin(task)
            stop = _wait(sampling)
            tables = sampling.tables()
    found = _read(*tables, dim=dim, draws=draws, stop=stop)
    return replace(found, findings=[*found.findings, *starts.findings()])


def _wait(sampling: _Sampling) -> KeyboardInterrupt | None:
    """Wait for nutpie until the time limit; return the interruption that ended the run, if any."""
    try:
        sampling.wait(time_left())
        return None
    except TimeoutError:
        stop: KeyboardInterrupt = expire()
    except KeyboardInterrupt as error:
        stop = error
    except RuntimeError as error:  # for example, nutpie rejects a gradient of zero
        sampling.join()  # threads must not outlive the interpreter
        raise ModelError(
            f"The sampler could not start: {_innermost(error)}. The density does not appear to "
            "depend on the sites, as for a flat prior without data. Give the data to "
            "pyro.sample(..., obs=...), or use a prior that is not flat."
        ) from None
    sampling.abort()
    return stop


def _innermost(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return (lines[3] if len(lines) > 3 else lines[0]).rstrip(".")


def _update(progress_bar: Any, text: str) -> None:
    done, *divergences = map(int, text.split())
    progress_bar.set_postfix(divergences=sum(divergences), refresh=False)
    progress_bar.update(done - progress_bar.n)


def _read(
    points: list[Any],
    stats: list[Any],
    *,
    dim: int,
    draws: int,
    stop: KeyboardInterrupt | None,
) -> Chains:
    """Convert nutpie's tables, one per chain, to arrays; interrupted chains differ in length."""
    from arro3.core import list_flatten  # of the extra

    chains = []
    for point, table in zip(points, stats, strict=True):
        kept = slice(int(_numpy(table.column("tuning")).sum()), None)
        z = _numpy(list_flatten(point.column("z"))).reshape(-1, dim)[kept]
        values = {name: _numpy(table.column(theirs))[kept] for theirs, name in _STATS.items()}
        if "transformation_index" in table.column_names:
            values["energy"] = values["energy"] - _energy_shift(values, dim)
        chains.append(Chain(z, values))
    return gather(chains, draws, stop)


def _energy_shift(values: Mapping[str, NDArray[Any]], dim: int) -> float:
    """Estimate the constant that nutpie 0.16.9 and later add to the energies of a chain.

    The constant is the log determinant of the mass matrix, which nutpie does not return. Without
    it, the kinetic energy is that of d standard normal momenta, whose mean is d / 2.
    """
    kinetic = values["energy"] + values["lp"]
    return float(kinetic.mean()) - dim / 2 if len(kinetic) else 0.0


def _numpy(column: Any) -> NDArray[Any]:
    return np.asarray(column.to_numpy())
