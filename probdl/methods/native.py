"""NUTS by nutpie, on compiled code.

nutpie (Rust) has the sampler, its adaptation and the threads. Its extension module takes the
compiled density as the address of a C function, as it does with what numba compiles for PyMC.
That interface is private: it is looked at before use, and where it is not as expected nutpie's
public one serves, which calls a Python function and is slower. The extension is loaded by itself,
since the package around it imports a second and a half of storage back ends, and ArviZ below 1.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from arro3.core import list_flatten
from numpy.typing import NDArray
from torch import Tensor

from probdl.clock import look, time_left, time_up, timed
from probdl.compile import Evaluator
from probdl.errors import ModelError
from probdl.methods.chains import Chain, Chains, Starts, gather
from probdl.progress import bar, shown

__all__ = ["available", "run", "state"]

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
_USED = ("ExpandFunc", "LogpFunc", "ProgressType", "PyMcModel", "PyNutsSettings", "PySampler",
         "PyStorage", "PyVariable")  # fmt: skip
# By mass matrix, how far the variance along a direction must be from what the diagonal says, as a
# ratio, to be corrected. nutpie's own 2 makes curved posteriors diverge that a diagonal matrix
# samples well (`make bench-mass`); a dense matrix has every direction.
_CUTOFFS = {"low_rank": 4.0, "dense": 1.0 + 1e-6}
_PROGRESS = (
    "{{ total_finished_draws }}{% for chain in chains %} {{ chain.divergences }}{% endfor %}"
)
_PROGRESS_MS = 200

Start = Callable[[int], NDArray[np.float64]]


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
    """
    # Where there is no start, this says why; an error in one of nutpie's threads ends all of them.
    starts = Starts(start_of, seed)
    look()  # small models are done before a wait of no time ends

    def start(chain_seed: int) -> NDArray[np.float64]:
        return starts(chain_seed).numpy()

    settings: dict[str, Any] = {
        "num_draws": draws,
        "num_tune": max(warmup, 1),  # nutpie needs one
        "num_chains": chains,
        "maxdepth": max_treedepth,
        "target_accept": target_accept,
    }
    if mass_matrix in _CUTOFFS:
        settings["mass_matrix_eigval_cutoff"] = _CUTOFFS[mass_matrix]
    kind = "Diag" if mass_matrix == "diag" else "LowRank"
    library = _library()
    if library is None or evaluator.engine != "native":
        found = _run_public(dim, evaluator, start, settings, kind, seed, progress)
        return replace(found, findings=[*found.findings, *starts.findings()])
    nuts = getattr(library.PyNutsSettings, kind)(seed % 2**63)
    for name, value in settings.items():
        setattr(nuts, name, value)
    model = library.PyMcModel(
        library.LogpFunc(evaluator.address, evaluator.user, evaluator),
        library.ExpandFunc(dim, dim, evaluator.expand, evaluator.user, evaluator),
        library.PyVariable.new_variables(["z"], ["float64"], [(dim,)], {}, {}),
        dim,
        {"z_dim_0": dim},
        {},
        start,
        None,
    )
    with bar(chains * (settings["num_tune"] + draws), "sampling", progress) as progress_bar:
        display = library.ProgressType.none()
        if shown(progress):
            display = library.ProgressType.template_callback(
                _PROGRESS_MS, _PROGRESS, chains, functools.partial(_update, progress_bar)
            )
        cores = min(chains, os.cpu_count() or 1)
        store = library.PyStorage.arrow()
        sampler = library.PySampler.from_pymc(nuts, cores, model, display, store)
        stop = _wait(sampler)
        tables = sampler.take_results().get_arrow_trace()
    found = _read(*tables, dim=dim, draws=draws, stop=stop)
    return replace(found, findings=[*found.findings, *starts.findings()])


def _wait(sampler: Any) -> KeyboardInterrupt | None:
    """Wait for nutpie, in the time that is left; return what ended it early."""
    try:
        sampler.wait(time_left())
        return None
    except TimeoutError:
        stop: KeyboardInterrupt = time_up()
    except KeyboardInterrupt as error:
        stop = error
    except RuntimeError as error:  # nutpie refuses a gradient of zero, among others
        raise ModelError(
            f"the sampler could not start: {_innermost(error)}. Nothing that a site changes seems "
            "to reach the density (a flat prior without data has none). Give the data to "
            "pyro.sample(..., obs=...), or a prior that is not flat."
        ) from None
    sampler.abort()
    return stop


def _innermost(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return (lines[3] if len(lines) > 3 else lines[0]).rstrip(".")


def available(evaluator: Evaluator) -> bool:
    """Tell whether nutpie is there, in a form that can sample this."""
    return (evaluator.engine == "native" and _library() is not None) or _public() is not None


def state() -> str:
    """Tell in words whether nutpie is there and in the form that is used."""
    if _library() is not None:
        return "as expected"
    return "not as expected; its public one serves, slower" if _public() else "nutpie is missing"


@functools.cache
def _public() -> Any:
    """Import nutpie itself; None if it is not there or does not go with this ArviZ."""
    try:
        import nutpie
    except (ImportError, AttributeError):
        return None
    return nutpie


@functools.cache
def _library() -> Any:
    """Load nutpie's extension module; None if it is not there or not as expected."""
    package = importlib.util.find_spec("nutpie")
    if package is None or package.submodule_search_locations is None:
        return None
    spec = importlib.machinery.PathFinder.find_spec("_lib", package.submodule_search_locations)
    if spec is None or spec.loader is None:
        return None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    return library if all(hasattr(library, name) for name in _USED) else None


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
        chains.append(Chain(z, values))
    return gather(chains, draws, stop)


def _numpy(column: Any) -> NDArray[Any]:
    return np.asarray(column.to_numpy())


def _run_public(
    dim: int,
    evaluator: Evaluator,
    start: Start,
    settings: dict[str, Any],
    kind: str,
    seed: int,
    progress: bool | None,
) -> Chains:
    """Draw through nutpie's public interface, which takes a Python function."""
    nutpie = _public()

    def logp(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, grad = evaluator.value_and_grad(torch.from_numpy(np.array(z)))
        return float(value), grad.numpy()

    model = nutpie.compiled_pyfunc.from_pyfunc(
        dim,
        lambda: logp,
        lambda *_: lambda z: {"z": np.array(z)},
        [np.dtype("float64")],
        [(dim,)],
        ["z"],
        make_initial_point_fn=start,
    )
    options = dict(settings)
    draws = options.pop("num_draws")
    background: Any = nutpie.sample(
        model,
        draws=draws,
        tune=options.pop("num_tune"),
        chains=options.pop("num_chains"),
        cores=1,  # there is one interpreter
        seed=seed % 2**63,
        low_rank_modified_mass_matrix=kind == "LowRank",
        progress_bar=shown(progress),
        return_raw_trace=True,
        blocking=False,
        **options,
    )
    sampler = background._sampler  # the wait() around it gives nothing of a run that ends early
    with timed("sampling"):
        stop = _wait(sampler)
    tables = sampler.take_results().get_arrow_trace()
    return _read(*tables, dim=dim, draws=draws, stop=stop)
