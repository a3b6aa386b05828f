"""What the commands do, once their options are read: thin skins over the public names."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import probdl
from probdl.command import demo as demonstration
from probdl.command.console import aside, counted, finding_records, records, say, show
from probdl.command.saved import (
    load_with_model,
    observed_arguments,
    to_dataset,
    write_npz,
)
from probdl.command.tabular import bind, read_all
from probdl.errors import DataError, FindingWarning
from probdl.findings import Findings
from probdl.methods import METHODS
from probdl.model.program import runnable, signature
from probdl.plots import plot_fit
from probdl.util.lazy import matplotlib as mpl
from probdl.util.lazy import pyplot as plt

__all__ = ["compare", "demo", "diagnose", "doctor", "infer", "plot", "predict", "summary"]


def infer(
    program: Any,
    place: str,
    data: Sequence[Path] | None,
    method: str,
    settings: Mapping[str, Any],
    *,
    seed: int | None,
    time_limit: float | None,
    out: Path | None,
    drop: Sequence[str] | None,
    quiet: bool,
    as_json: bool,
) -> bool:
    """Fit a model; return whether a finding is an error.

    Args:
        program: the model.
        place: where it is, as it was typed.
        data: files.
        method: a name.
        settings: of the method.
        seed: repeats a fit.
        time_limit: in seconds.
        out: the folder to save the fit in.
        drop: columns of the data to leave out.
        quiet: whether to say nothing but errors.
        as_json: whether to print JSON.
    """
    chosen = METHODS[method.lower()](**settings)
    bound = _bound(program, data, drop, probdl.infer)
    shapes = ", ".join(f"{n} {np.shape(v)}" for n, v in bound.arguments.items())
    start = time.perf_counter()
    say(f"fitting {place} by {chosen!r} to {shapes or 'no data'}", quiet)
    with aside(quiet, FindingWarning):
        fit = probdl.infer(
            program,
            *bound.args,
            method=chosen,
            seed=seed,
            time_limit=time_limit,
            progress=False if quiet else None,
            **bound.kwargs,
        )
        findings = fit.diagnose()
        if out is not None:
            fit.save(out)
    seconds = time.perf_counter() - start
    say(f"done in {seconds:.1f} s, seed {fit.seed}; {counted(findings)}", quiet)
    for finding in findings:
        say(str(finding), quiet)
    if out is not None:
        say(f"saved to {out}", quiet)
    table = fit.summary()
    show(
        as_json,
        table,
        fit=None if out is None else str(out),
        method=repr(chosen),
        seed=fit.seed,
        seconds=seconds,
        summary=records(table),
        findings=finding_records(findings),
    )
    return _serious(findings)


def summary(folder: Path, quiet: bool, as_json: bool) -> None:
    """Print one row for each scalar of the draws."""
    with aside(quiet):
        table = probdl.load(folder).summary()
    show(as_json, table, fit=str(folder), summary=records(table))


def diagnose(folder: Path, quiet: bool, as_json: bool) -> bool:
    """Print the findings; return whether one is an error."""
    with aside(quiet):
        findings = probdl.load(folder).diagnose()
    show(as_json, findings, fit=str(folder), findings=finding_records(findings))
    return _serious(findings)


def predict(
    folder: Path,
    out: Path,
    data: Sequence[Path] | None,
    model: str | None,
    drop: Sequence[str] | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Draw predictions, and write them to a file."""
    with aside(quiet):
        fit = load_with_model(folder, model)
        if data:
            observed = observed_arguments(fit)
            bound = _bound(fit.model, data, drop, fit.predict, optional=observed)
            draws = fit.predict(*bound.args, **bound.kwargs)
        else:
            draws = fit.predict()
    predictions = to_dataset(fit, draws)
    if out.suffix == ".nc":
        predictions.to_netcdf(out, engine="h5netcdf")
    else:
        write_npz(out, draws)
    variables = {n: dict(array.sizes) for n, array in predictions.items()}
    show(
        as_json,
        "\n".join(f"{n}: {sizes}" for n, sizes in variables.items()) + f"\nwrote {out}",
        predictions=str(out),
        variables=variables,
    )


def compare(folders: Sequence[Path], refit: bool, quiet: bool, as_json: bool) -> None:
    """Compare fits by leave-one-out cross-validation."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):  # a/fit and b/fit
        names = [str(folder) for folder in folders]
    with aside(quiet):
        load = load_with_model if refit else probdl.load
        fits = {name: load(folder) for name, folder in zip(names, folders, strict=True)}
        table = probdl.compare(fits, refit=refit, progress=False if quiet else None)
    if not refit and table["high_k"].any():
        say("no row was fitted again, which needs the models; --refit does it", quiet)
    show(as_json, table.round(3), comparison=records(table))


def plot(
    folder: Path, kind: str, out: Path, site: Sequence[str] | None, quiet: bool, as_json: bool
) -> None:
    """Draw one of ArviZ's plots."""
    mpl.use("Agg")
    with aside(quiet):
        fit = probdl.load(folder)
    with aside(quiet=True):  # of matplotlib's
        figure = plot_fit(fit, kind, site)
    figure.savefig(out, dpi=120, bbox_inches="tight")
    show(as_json, f"wrote {out}", plot=str(out))


def doctor(quiet: bool, as_json: bool) -> None:
    """Print what the native engine needs, and what is available."""
    with contextlib.redirect_stdout(None):  # it prints its report by itself
        report = probdl.doctor()
    show(as_json, report, **dataclasses.asdict(report))


def demo(out: Path | None, quiet: bool, as_json: bool) -> None:
    """Fit eight schools by four methods."""
    mpl.use("Agg")
    fits = {}
    with aside(quiet, FindingWarning):
        for name, fit in demonstration.fit_schools(False if quiet else None):
            fits[name] = fit
            say(f"{name}: {fit.diagnose()}", quiet)
    if out is not None:
        demonstration.plot_methods(fits, demonstration.EFFECT, demonstration.LABELS)
        plt.gcf().savefig(out, dpi=120)
    table = demonstration.side_by_side(fits, "mu", "tau", "theta")
    show(
        as_json,
        f"{table.to_string()}" + (f"\nwrote {out}" if out else ""),
        summary={name: records(fit.summary()) for name, fit in fits.items()},
        findings={name: finding_records(fit.diagnose()) for name, fit in fits.items()},
        plot=None if out is None else str(out),
    )


def _bound(
    model: Any,
    paths: Sequence[Path] | None,
    drop: Sequence[str] | None,
    call: Callable[..., Any],
    optional: Sequence[str] = (),
) -> inspect.BoundArguments:
    """Read files of data, and give what they hold to the arguments of a model, for a call."""
    known = signature(runnable(model)).parameters
    bound = bind(model, read_all(paths or (), drop=drop or (), also=known), optional=optional)
    taken = inspect.signature(call).parameters
    if clash := [name for name in bound.kwargs if name in taken and name not in known]:
        raise DataError(
            f"the data have {clash[0]!r}, which {call.__name__}() takes for itself, so that a "
            f"model with **{_rest(known)} cannot have it. Rename it in the file, or leave it out "
            f"by --drop {clash[0]}."
        )
    return bound


def _rest(parameters: Mapping[str, inspect.Parameter]) -> str:
    return next(name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD)


def _serious(findings: Findings) -> bool:
    return any(f.severity == "error" for f in findings)
