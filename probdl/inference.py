"""``infer``: choose the method, run it, and report its findings."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import torch

from probdl.errors import FindingWarning, ModelError, SettingError, TimeLimitError, warn
from probdl.findings import Finding, Findings
from probdl.methods import METHODS, Method, resolve
from probdl.methods.base import PYRO_NAMES, setting_named
from probdl.model.callables import accepts_argument, callable_name, runnable, signature
from probdl.model.preparing import prepared, uses_codes_as_numbers
from probdl.model.program import Program
from probdl.model.sites import Site, discover
from probdl.nn import is_network
from probdl.results.classes import OF_CLASSES, unnamed_classes
from probdl.results.fit import Fit
from probdl.results.labels import checked_labels
from probdl.results.missing import missing_findings
from probdl.results.priors import check_prior
from probdl.util.blas import one_blas_thread
from probdl.util.clock import Clock, TimeUp, clock
from probdl.util.isolation import isolated
from probdl.util.progress import print_line
from probdl.util.seeds import stream
from probdl.util.settings import check_progress, check_seed, is_real

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
    if seed is None:
        seed = secrets.randbits(32)
    else:
        check_seed("infer", seed)
    clash = [name for name in _RESERVED_NAMES if name in signature(runnable(model)).parameters]
    if clash:
        raise ModelError(
            f"The model has an argument {clash[0]!r}, which is an argument of infer() itself. "
            "Rename the model's argument."
        )
    seed = int(seed)
    if time_limit is not None and not (is_real(time_limit) and time_limit > 0):
        raise SettingError(
            f"time_limit={time_limit!r}: time_limit must be a number of seconds above 0, or None."
        )
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
    fit.timings["checks"] = time.perf_counter() - checked
    # All that the call took: the checks after the method, and waiting for other threads, too.
    fit.timings["total"] = time.perf_counter() - started
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
    with clock(time_limit) as own:
        fit = _run(chosen, program, seed, progress, own)
    findings = [*fit.findings, *_no_data_findings(program, fit), *_factor_findings(fit)]
    findings += [*missing_findings(program, fit), *_category_findings(program, fit, all_coords)]
    if chosen.uses_prior:
        findings += check_prior(fit.program, fit.structure, fit.draws, stream(seed, "prior check"))
    return replace(
        fit,
        findings=findings,
        timings=own.timings,
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
        spent = ", ".join(f"{part} {seconds:.3g} s" for part, seconds in own.timings.items())
        raise TimeLimitError(
            f"The time limit of {own.limit} s passed before there were results to return "
            f"({spent or 'during preparation'}). Raise time_limit=, or reduce the work (warmup=, "
            "steps=)."
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


def _no_data_findings(program: Program, fit: Fit) -> list[Finding]:
    """Report a fit without observed sites if an optional argument of the model was not given."""
    omitted = [
        name
        for name, parameter in program.signature.parameters.items()
        if parameter.default is None and program.arguments.get(name) is None
    ]
    if not omitted or fit.structure.of("observed", "factor") or fit.structure.of("param"):
        return []
    return [
        Finding(
            "warning",
            "no_data",
            "No site is observed, so the result reflects only the prior: the "
            f"argument{'s' * (len(omitted) > 1)} {', '.join(map(repr, omitted))} of "
            f"'{program.name}' {'was' if len(omitted) == 1 else 'were'} not given.",
            "Pass the data to infer(), after the model.",
        )
    ]


def _category_findings(program: Program, fit: Fit, coords: Mapping[str, Any]) -> list[Finding]:
    """Report categories whose codes nothing in the model has elements for.

    Codes are meant as an index of groups, or as the data of a discrete site. Two categories may
    also be a variable that is 0 or 1.
    """
    findings = []
    for name, encoding in program.encodings.items():
        labels = [*encoding.labels]
        codes = program.arguments.get(name)
        indexed = any({*of} <= {*labels} for of in coords.values())
        if indexed or codes is None or not uses_codes_as_numbers(program, name, fit.structure):
            continue
        observed = [s for s in fit.structure.of("observed") if s.value.shape == codes.shape]
        sites = [s for s in observed if torch.equal(s.value.double(), codes.double())]
        if any(s.distribution == "OrderedLogistic" for s in sites):
            if not encoding.ordered and len(labels) > 2 and labels == sorted(labels):
                findings.append(_alphabetical(name, labels))
            continue
        if any(s.distribution in OF_CLASSES for s in sites):
            unnamed = [(s, found) for s in sites if (found := unnamed_classes(program, s))]
            findings += [_unnamed(site, labels, classes) for site, classes in unnamed]
            continue
        known = ", ".join(f"{label!r} is {code}" for code, label in enumerate(labels[:3]))
        more = ", …" * (len(labels) > 3)
        findings.append(
            Finding(
                "info" if len(labels) == 2 else "warning",
                "categories",
                f"The texts in '{name}' became codes ({known}{more}), but the model has no plate "
                "with an element for each of them, so they may be used as numbers.",
                "Use the codes as an index, such as effect[group], in a plate with the name of the "
                "argument; convert numbers stored as text.",
            )
        )
    return findings


def _unnamed(site: Site, labels: Sequence[str], classes: Sequence[int]) -> Finding:
    """Report classes of a distribution that no row of texts has."""
    shown = ", ".join(map(str, classes[:5])) + (" …" if len(classes) > 5 else "")
    return Finding(
        "warning",
        "categories",
        f"The data of '{site.name}' have {len(labels)} classes, and its distribution has "
        f"{len(labels) + len(classes)}: the classes {shown} have no name and no data.",
        "If the data lack some classes, name all of them by pd.Categorical(values, "
        "categories=[...]); otherwise give the distribution fewer.",
        (site.name,),
    )


def _alphabetical(name: str, labels: Sequence[str]) -> Finding:
    return Finding(
        "warning",
        "categories",
        f"The classes in '{name}' are ordered, but their codes are in alphabetical order "
        f"({' < '.join(map(str, labels[:6]))}).",
        f"Pass pd.Categorical({name}, categories=[...], ordered=True) with the lowest class first "
        f"(in the shell: --category {name}=lowest,…,highest).",
    )


def _factor_findings(fit: Fit) -> list[Finding]:
    """Report factors outside all plates that count as a term of the likelihood beside others."""
    terms = fit.structure.terms()
    if not any(site.kind == "observed" for site in terms):
        return []
    findings = []
    for site in terms:
        if site.kind != "factor" or site.plated:
            continue
        counted = (
            "has no log likelihood of single observations, so there is no leave-one-out score"
            if site.term == "joint"
            else f"counts as {site.count} observation{'s' * (site.count != 1)}"
        )
        findings.append(
            Finding(
                "info",
                "factor",
                f"The factor '{site.name}' is computed from the data and outside all plates. It "
                f"is taken as a term of the likelihood and {counted}.",
                "Put it in a pyro.plate, with one element for each observation.",
                (site.name,),
            )
        )
    return findings
