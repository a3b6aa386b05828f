"""NUTS by nutpie, on compiled code: the one file that knows nutpie's interfaces.

nutpie (Rust) has the sampler, its adaptation and the threads. Its extension module takes the
compiled density as the address of a C function, as it does with what numba compiles for PyMC.
That interface is private and has changed between releases, so it is called on a toy density before
it is used, once a process. Where it does not give what is expected, nutpie's public interface
serves, which calls a Python function and is slower. The extension is loaded by itself, since the
package around it imports a second and a half of storage back ends, and ArviZ below 1.
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
from arro3.core import list_flatten
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator
from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.methods.mcmc.chains import Chain, Chains, Starts, gather
from probdl.util.clock import look, time_left, time_up
from probdl.util.isolation import stepped_aside
from probdl.util.progress import bar, shown

__all__ = ["available", "findings", "run", "state"]

# nutpie's names of the statistics to ArviZ's.
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
# By mass matrix, how far the variance along a direction must be from what the diagonal says, as a
# ratio, to be corrected. nutpie's own 2 makes curved posteriors diverge that a diagonal matrix
# samples well (`make bench-mass`); a dense matrix has every direction.
_CUTOFFS = {"low_rank": 4.0, "dense": 1.0 + 1e-6}
_PROGRESS = (
    "{{ total_finished_draws }}{% for chain in chains %} {{ chain.divergences }}{% endfor %}"
)
_PROGRESS_MS = 200
# Seconds that the toy density may take, which is done in milliseconds: only a hang takes longer.
_HANG = 120.0
_JOIN = 10.0  # seconds for threads to end, which takes them milliseconds

Start = Callable[[int], NDArray[np.float64]]
Update = Callable[[str], None]


@dataclass(frozen=True)
class _Task:
    """What is to be sampled, in the terms that nutpie's interfaces have in common.

    Attributes:
        dim: d.
        evaluator: the density.
        start: makes the start of a chain from its seed.
        settings: by nutpie's names.
        kind: of the mass matrix, ``"Diag"`` or ``"LowRank"``.
        seed: of all chains.
        update: takes the text of the progress; None shows none.
    """

    dim: int
    evaluator: Evaluator
    start: Start
    settings: Mapping[str, Any]
    kind: str
    seed: int
    update: Update | None = None


class _Sampling(Protocol):
    """A run in the background."""

    def wait(self, timeout: float | None) -> None:
        """Wait until it is done.

        Raises:
            TimeoutError: it is not done yet.
            RuntimeError: a chain failed.
        """

    def abort(self) -> None:
        """End it, and wait until its threads have ended."""

    def join(self) -> None:
        """Wait until its threads have ended, after a failure that has left them behind."""

    def tables(self) -> tuple[list[Any], list[Any]]:
        """Return draws and statistics, an Arrow table for each chain, as far as they came."""


class _Interface(Protocol):
    """A way to call nutpie."""

    def begin(self, task: _Task) -> _Sampling:
        """Begin to sample."""


# -- the extension module ---------------------------------------------------------------------

# What stands between the display and the store in `PySampler.from_pymc`: since 0.16.9 another
# callback and its rate in milliseconds, before nothing.
_SIGNATURES: tuple[tuple[Any, ...], ...] = ((None, 100), ())


@dataclass(frozen=True)
class _Extension:
    """nutpie's extension module, which calls a C function by its address."""

    library: Any
    between: tuple[Any, ...]

    def begin(self, task: _Task) -> _Sampling:
        """Begin to sample."""
        library, dim = self.library, task.dim
        evaluator, held = task.evaluator, _Held(task)
        nuts = getattr(library.PyNutsSettings, task.kind)(task.seed)
        for name, value in task.settings.items():
            setattr(nuts, name, value)
        model = library.PyMcModel(
            library.LogpFunc(evaluator.address, evaluator.user, held),
            library.ExpandFunc(dim, dim, evaluator.expand, evaluator.user, held),
            library.PyVariable.new_variables(["z"], ["float64"], [(dim,)], {}, {}),
            dim,
            {"z_dim_0": dim},
            {},
            held.start,
            None,
        )
        chains = task.settings["num_chains"]
        display = library.ProgressType.none()
        if task.update is not None:
            display = library.ProgressType.template_callback(
                _PROGRESS_MS, _PROGRESS, chains, task.update
            )
        cores = min(chains, os.cpu_count() or 1)
        store = library.PyStorage.arrow()
        sampler = library.PySampler.from_pymc(nuts, cores, model, display, *self.between, store)
        return _Own(library, sampler, held)


class _Held:
    """What nutpie's threads hold on to: it is there as long as one of them is."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self.over = False

    def start(self, seed: int) -> NDArray[np.float64]:
        """Make the start of a chain, unless the run has failed."""
        if self.over:
            raise RuntimeError("the run is over")
        return self._task.start(seed)


class _Own:
    """A run of the extension module."""

    def __init__(self, library: Any, sampler: Any, held: _Held) -> None:
        self._library = library
        self._sampler = sampler
        self._held = weakref.ref(held)

    def wait(self, timeout: float | None) -> None:
        """Wait until it is done."""
        self._sampler.wait(timeout)

    def abort(self) -> None:
        """End it, and wait until its threads have ended."""
        self._sampler.abort()

    def join(self) -> None:
        """Wait until its threads have ended, after a failure that has left them behind."""
        if (held := self._held()) is not None:
            held.over = True
            del held
        with contextlib.suppress(Exception):  # it may raise the failure again
            self._sampler.abort()
        self._sampler = None
        started = time.perf_counter()
        while self._held() is not None and time.perf_counter() - started < _JOIN:
            time.sleep(0.001)
            self._library.PyStorage.arrow()  # any call lets go of what threads left behind

    def tables(self) -> tuple[list[Any], list[Any]]:
        """Return draws and statistics."""
        draws, stats = self._sampler.take_results().get_arrow_trace()
        return draws, stats


def _load() -> Any:
    """Load nutpie's extension module.

    Raises:
        ImportError: it is not there.
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
        """Begin to sample."""

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
        return _Background(
            self.nutpie.sample(
                model,
                draws=options.pop("num_draws"),
                tune=options.pop("num_tune"),
                chains=options.pop("num_chains"),
                cores=1,  # there is one interpreter
                seed=task.seed,
                progress_bar=task.update is not None,
                return_raw_trace=True,
                blocking=False,
                **options,
            )
        )


class _Background:
    """A run of the public interface."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._results: Any = None

    def wait(self, timeout: float | None) -> None:
        """Wait until it is done."""
        self._results = self._sampler.wait(timeout=timeout)

    def abort(self) -> None:
        """End it, and wait until its threads have ended."""
        self._results = self._sampler.abort()

    def join(self) -> None:
        """Wait until its threads have ended: there is one, and it has."""
        with contextlib.suppress(Exception):
            self._sampler.abort()

    def tables(self) -> tuple[list[Any], list[Any]]:
        """Return draws and statistics."""
        results = self._results
        draws, stats = results if isinstance(results, tuple) else results.get_arrow_trace()
        return draws, stats


# -- which of them serves ---------------------------------------------------------------------

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
    """A standard normal density, as C functions that Python runs and as a function of tensors."""

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
    """Sample the toy density with either mass matrix, and look at what comes back.

    Raises:
        Exception: whatever went wrong.
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
        # The public interface prints its progress itself.
        update = (lambda text: None) if isinstance(interface, _Extension) else None
        task = _Task(dim, _Toy(), lambda seed: np.ones(dim), settings, kind, 1, update)
        sampling = interface.begin(task)
        try:
            sampling.wait(_HANG)
        except BaseException:
            sampling.join()
            raise
        found = _read(*sampling.tables(), dim=dim, draws=draws, stop=None)
        if found.z.shape != (chains, draws, dim):
            raise TypeError(f"it returns draws of shape {found.z.shape}")
        if not np.allclose(found.stats["lp"], -0.5 * (found.z**2).sum(-1)):
            raise TypeError("the log densities that it returns are not those of its draws")


def _usable(make: Callable[[], _Interface]) -> tuple[_Interface | None, str]:
    """Return an interface that passed the check, or None and why it did not."""
    try:
        interface = make()
        _check(interface)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        said = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {said[0] if said else 'no message'}"
    return interface, ""


@functools.cache
def _private() -> tuple[_Interface | None, str]:
    """Return the extension module where it does what is expected, or None and why it does not."""
    try:
        library = _load()
    except (ImportError, OSError) as error:
        return None, str(error)
    why = ""
    for between in _SIGNATURES:
        found, failure = _usable(functools.partial(_Extension, library, between))
        if found is not None:
            return found, ""
        why = why or failure
    return None, why


@functools.cache
def _public() -> tuple[_Interface | None, str]:
    """Return nutpie's public interface where it works with this ArviZ, or None and why not."""

    def make() -> _Interface:
        import nutpie

        return _Public(nutpie)

    return _usable(make)


def _interface(evaluator: Evaluator) -> _Interface | None:
    """Return the best way to sample a density; None if nutpie does not serve."""
    if evaluator.engine == "native" and (private := _private()[0]) is not None:
        return private
    return _public()[0]


def available(evaluator: Evaluator) -> bool:
    """Return whether nutpie can sample this density."""
    return _interface(evaluator) is not None


def state() -> str:
    """Say whether nutpie does what is expected of it: the check of the first fit."""
    private, why = _private()
    if private is not None:
        return "as expected"
    if _public()[0] is not None:
        return f"not as expected ({why}); its public one serves, slower"
    return f"does not work ({_public()[1]}); Pyro's sampler serves, slower"


def findings(evaluator: Evaluator) -> list[Finding]:
    """Report where nutpie's fast interface cannot sample a density that it should sample."""
    if evaluator.engine == "eager" or (evaluator.engine == "native" and _private()[0] is not None):
        return []
    if evaluator.engine != "native" and _public()[0] is not None:
        return []
    serves = "its public interface, which is slower, serves"
    if _public()[0] is None:
        serves = "Pyro's sampler, which is slower, serves"
    try:
        version = importlib.metadata.version("nutpie")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    why = _private()[1] if evaluator.engine == "native" else _public()[1]
    return [
        Finding(
            "warning",
            "sampler",
            f"nutpie {version} does not work as expected ({why}); {serves}.",
            "Install a release of nutpie that this release of probdl knows; probdl.doctor() shows "
            "what is installed.",
        )
    ]


# -- a run ------------------------------------------------------------------------------------


def run(
    dim: int,
    evaluator: Evaluator,
    start_of: Callable[[int], Tensor],
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
    """Draw from a density on R^d, ``dim`` being d; on Ctrl-C return the draws so far.

    ``start_of`` makes the start of a chain of its seed.

    Raises:
        KeyboardInterrupt: interrupted before each chain had a draw.
        ModelError: the sampler could not start.
    """
    # Where there is no start, this says why; an error in one of nutpie's threads ends all of them.
    starts = Starts(start_of, seed)
    look()  # small models are done before a wait of no time ends
    settings: dict[str, Any] = {
        "num_draws": draws,
        "num_tune": max(warmup, 1),  # nutpie needs one
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
            functools.partial(_update, progress_bar) if shown(progress) else None,
        )
        with stepped_aside():
            sampling = interface.begin(task)
            stop = _wait(sampling)
            tables = sampling.tables()
    found = _read(*tables, dim=dim, draws=draws, stop=stop)
    return replace(found, findings=[*found.findings, *starts.findings()])


def _wait(sampling: _Sampling) -> KeyboardInterrupt | None:
    """Wait for nutpie, in the time that is left; return what ended it early."""
    try:
        sampling.wait(time_left())
        return None
    except TimeoutError:
        stop: KeyboardInterrupt = time_up()
    except KeyboardInterrupt as error:
        stop = error
    except RuntimeError as error:  # nutpie refuses a gradient of zero, among others
        sampling.join()  # threads must not outlive the interpreter
        raise ModelError(
            f"the sampler could not start: {_innermost(error)}. Nothing that a site changes seems "
            "to reach the density (a flat prior without data has none). Give the data to "
            "pyro.sample(..., obs=...), or a prior that is not flat."
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
    """Turn nutpie's tables, one a chain, into arrays; interrupted chains differ in length."""
    chains = []
    for point, told in zip(points, stats, strict=True):
        kept = slice(int(_numpy(told.column("tuning")).sum()), None)
        z = _numpy(list_flatten(point.column("z"))).reshape(-1, dim)[kept]
        values = {name: _numpy(told.column(theirs))[kept] for theirs, name in _STATS.items()}
        if "transformation_index" in told.column_names:
            values["energy"] = values["energy"] - _shift(values, dim)
        chains.append(Chain(z, values))
    return gather(chains, draws, stop)


def _shift(values: Mapping[str, NDArray[Any]], dim: int) -> float:
    """Estimate the constant that nutpie 0.16.9 and later add to the energies of a chain.

    It is the log determinant of the mass matrix, which comes with no draw. Without it the kinetic
    energy is that of d standard normal momenta, whose mean is d / 2.
    """
    kinetic = values["energy"] + values["lp"]
    return float(kinetic.mean()) - dim / 2 if len(kinetic) else 0.0


def _numpy(column: Any) -> NDArray[Any]:
    return np.asarray(column.to_numpy())
