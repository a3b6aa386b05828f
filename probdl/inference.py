"""``infer``: choose the method, run it, and report its findings."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

from probdl.errors import FindingWarning, ModelError, SettingError, TimeLimitError, warn
from probdl.findings import Findings
from probdl.methods import METHODS, Method, resolve
from probdl.methods.base import PYRO_NAMES, setting_named
from probdl.model.callables import accepts_argument, callable_name, runnable, signature
from probdl.model.preparing import prepared
from probdl.model.program import Program
from probdl.model.sites import discover
from probdl.nn import is_network
from probdl.results.fit import Fit
from probdl.results.labels import checked_labels
from probdl.results.of_model import model_findings
from probdl.util.blas import one_blas_thread
from probdl.util.clock import Clock, TimeUp, clock, timed
from probdl.util.isolation import isolated
from probdl.util.progress import print_line
from probdl.util.ranks import ALONE, current_ranks, is_first_rank
from probdl.util.settings import check_limit, check_progress, check_seed

__all__ = ["infer"]

_METHOD_SETTINGS = {f.name for kind in METHODS.values() for f in fields(kind)} | set(PYRO_NAMES)
# What other packages call arguments of infer(), and what does not exist here.
_HABITS = {
    "random_seed": "Here it is seed=.",
    "rng_seed": "Here it is seed=.",
    "rng_key": "Here it is seed=, an integer.",
    "random_state": "Here it is seed=.",
    "cores": "The chains of a fit share the cores by themselves; OMP_NUM_THREADS limits them.",
    "parallel_chains": "The chains of a fit share the cores by themselves.",
    "chain_method": "The chains of a fit share the cores by themselves.",
    "progressbar": "Here it is progress=.",
    "progress_bar": "Here it is progress=.",
    "disable_progbar": "Here it is progress=False.",
    "show_progress": "Here it is progress=.",
    "timeout": "Here it is time_limit=, in seconds.",
    "idata_kwargs": "fit.idata holds the log likelihood by itself.",
    "return_inferencedata": "fit.idata is the ArviZ container.",
    "data": "Pass the data as the model's own arguments: infer(model, x, y).",
}
_RESERVED_NAMES = ("method", "seed", "coords", "dims", "progress", "time_limit", "missing")


def infer(
    model: Callable[..., Any],
    *args: Any,
    method: str | Method | type[Method] = "nuts",
    seed: int | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    progress: bool | None = None,
    time_limit: float | None = None,
    missing: str | None = None,
    **kwargs: Any,
) -> Fit:
    r"""Fit a model to data.

    .. math:: p(\theta | y) = \frac{p(y | \theta) p(\theta)}{p(y)} \qquad\text{(Eq. 1)}

    Args:
        model: a Pyro program: a callable or an ``nn.Module`` with ``pyro.sample`` statements.
        args: the arguments of the model, the data: tensors, NumPy arrays, pandas Series or
            numbers. Floating-point data are converted to float64; the caller's tensors do not
            change.
        method: a name such as ``"nuts"``, ``"mle"``, ``"laplace"`` or ``"svi"``, or a
            method with its settings, such as ``probdl.NUTS(draws=2000)``.
        seed: the random seed; fits with the same seed are equal, bit for bit. None draws a seed,
            which is stored in ``fit.seed``.
        coords: labels along dimensions by name, as in ArviZ. Plates name the dimensions.
        dims: names of dimensions by site, as in ArviZ, for dimensions that are not plates.
        progress: whether to show progress; None shows it on a terminal and in a notebook.
        time_limit: seconds after which the method stops. The fit then holds the results so far, as
            after Ctrl-C, and a finding reports this. The current step is always completed.
        missing: ``"mask"`` leaves out observations that are NaN, and a finding reports their
            number. None regards NaN in the data as a mistake, unless the model itself masks it.
        kwargs: the model's keyword arguments.

    Returns:
        The fit. Global state does not change, such as random generators and Pyro's param store.

    Raises:
        ModelError: the model does not run on the arguments, or the method cannot fit it.
        DataError: the data are not finite, or outside the support of their site.
        SettingError: there is no such method, or a setting is out of range.
        TimeLimitError: the time limit passed before there were results to return.

    Warns:
        FindingWarning: a check has a finding of severity "warning" or "error"; see
            ``fit.diagnose()``.

    Example:
        >>> import numpy as np, pyro, pyro.distributions as dist, probdl
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("obs", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> x = np.array([1.0, 2.0, 3.0])
        >>> fit = probdl.infer(model, x, 2 * x, method="laplace", seed=1)
        >>> fit.predict(np.array([4.0, 5.0]))["y"].shape
        (1, 1000, 2)
    """
    started = time.perf_counter()
    chosen = resolve(method)
    if not is_first_rank():  # which reports
        progress = False
    if seed is None:
        ranks = current_ranks() if chosen._divides_batches(args) else ALONE
        seed = ranks.of_first(lambda: secrets.randbits(32))
    else:
        check_seed("infer", seed)
    clash = [name for name in _RESERVED_NAMES if name in signature(runnable(model)).parameters]
    if clash:
        raise ModelError(
            f"The model has an argument {clash[0]!r}, which is an argument of infer() itself. "
            "Rename the model's argument."
        )
    seed = int(seed)
    check_limit(time_limit)
    misplaced = [
        name for name in kwargs if name in _METHOD_SETTINGS and not accepts_argument(model, name)
    ]
    if misplaced:
        name = misplaced[0]
        raise SettingError(
            f"{name}= is a setting of a method, not an argument of infer(). Pass it to the method: "
            f"method=probdl.{type(chosen).__name__}({setting_named(name)}=...)."
        )
    for name in kwargs:
        if name in _HABITS and not accepts_argument(model, name):
            raise SettingError(f"infer() has no argument {name!r}. {_HABITS[name]}")
    if missing not in (None, "mask"):
        raise SettingError(f'missing={missing!r}: missing must be "mask" or None.')
    check_progress("infer", progress)
    with isolated(seed):  # also isolates what Program does with the arguments
        _check_likelihood(model, args, kwargs)
        program = prepared(model, args, kwargs, masks_missing=missing is not None)
        fit = _fit(chosen, program, seed, coords, dims, progress, time_limit)
    checked = time.perf_counter()
    findings = fit.diagnose()
    fit.timings["checks"] += time.perf_counter() - checked
    # All that the call took: the checks after the method, and waiting for other threads, too.
    fit.timings["total"] = total = time.perf_counter() - started
    fit.timings["other"] = total - sum(
        seconds for part, seconds in fit.timings.items() if part not in ("other", "total")
    )
    if is_first_rank():
        _report(fit, findings, progress)
    return fit


def _fit(
    chosen: Method,
    program: Program,
    seed: int,
    coords: Mapping[str, Any] | None,
    dims: Mapping[str, Sequence[str]] | None,
    progress: bool | None,
    time_limit: float | None,
) -> Fit:
    """Check the arguments, run the method, and add the findings that do not depend on it."""
    if program.loader is not None and not chosen.takes_loader:
        raise SettingError(
            f"Method {chosen.name!r} needs all the data at once and cannot use a DataLoader. "
            "Pass the data themselves, or use method='svi'."
        )
    # Before the work: a mistake must not cost a finished fit.
    all_dims, all_coords = checked_labels(program, dims, coords)
    with clock(time_limit) as own, timed("other"):
        fit = _run(chosen, program, seed, progress, own)
    finished = time.perf_counter()
    findings = [*fit.findings, *model_findings(fit, program, all_coords)]
    return replace(
        fit,
        findings=findings,
        timings={**own.timings, "checks": time.perf_counter() - finished},
        coords=all_coords,
        dims=all_dims,
    )


def _check_likelihood(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raise ModelError, with an example, for a network in place of a model."""
    if not is_network(model):
        return
    try:
        signature(model).bind(*args, **kwargs)
    except TypeError:
        pass  # it has no argument for y
    else:
        if discover(Program(model, args, kwargs)).of("observed", "factor"):
            return
    raise ModelError(
        f"The model is a network, {callable_name(model)}, without a likelihood: nothing in it says "
        "how the data are distributed given its output. Write a model that calls the network:\n\n"
        "    net = probdl.nn.bayesian(...)     # with a prior; a plain network has weights to fit\n"
        "\n"
        "    def model(x, y=None):\n"
        "        mean = net(x).squeeze(-1)     # a plain network: pyro.module('net', net)(x)\n"
        "        with pyro.plate('data', len(x)):\n"
        "            pyro.sample('y', dist.Normal(mean, 1.0), obs=y)\n"
        "\n"
        "    fit = probdl.infer(model, x, y)"
    )


def _run(method: Method, program: Program, seed: int, progress: bool | None, own: Clock) -> Fit:
    """Run the method; if the time limit passes too early, report where the time was spent."""
    try:
        # Chains run side by side, each on one thread; networks train on all of them.
        with isolated(seed), nullcontext() if method.trains_networks else one_blas_thread():
            return method.run(program, seed, progress)
    except TimeUp:
        less = ", ".join(f"{name}=" for name in ("warmup", "steps") if hasattr(method, name))
        spent = ", ".join(f"{part} {seconds:.3g} s" for part, seconds in own.timings.items())
        raise TimeLimitError(
            f"The time limit of {own.limit} s passed before there were results to return "
            f"({spent or 'during preparation'}). Raise time_limit=, or reduce the work"
            f"{f' ({less})' if less else ''}."
        ) from None


def _report(fit: Fit, findings: Findings, progress: bool | None) -> None:
    """Warn of serious findings; print one line if there are none and progress is shown."""
    serious = [f for f in findings if f.severity != "info"]
    if serious:
        warn("\n".join(map(str, serious)), FindingWarning)
    else:
        count = len(findings)
        found = f"{count} finding{'s' * (count > 1)}: {count} info" if count else "no findings"
        print_line(f"{fit.title} in {fit.timings['total']:.3g} s: {found}", progress)
