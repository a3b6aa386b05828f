"""The commands after their options are parsed: each is a thin layer over the public functions."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import probdl
from probdl.command import demo as demonstration
from probdl.command.binding import bind, misnamed, unused_names
from probdl.command.columns import Columns
from probdl.command.console import (
    count_findings,
    finding_records,
    log,
    output_to_stderr,
    print_result,
    records,
)
from probdl.command.outputs import written
from probdl.command.saved import (
    load_with_model,
    observed_arguments,
    prediction_table,
    predictions_of,
    with_classes,
    write_predictions,
)
from probdl.command.tabular import checked, read_raw
from probdl.command.trusted import recorded_place
from probdl.errors import DataError, FindingWarning, SettingError
from probdl.findings import Findings
from probdl.io.folders import read_index
from probdl.methods import METHODS
from probdl.model.callables import runnable, signature
from probdl.plots import plot_fit
from probdl.util.lazy import matplotlib as mpl
from probdl.util.lazy import pyplot as plt

__all__ = [
    *("compare", "demo", "diagnose", "doctor", "infer", "plot", "predict", "report", "summary"),
]

MAX_SHOWN_ROWS = 20  # of predictions
MAX_CODES = 10  # of categories, that are printed


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
    columns: Columns,
    coords: Mapping[str, Sequence[Any]],
    dims: Mapping[str, Sequence[str]],
    quiet: bool,
    as_json: bool,
) -> bool:
    """Fit a model, and return whether a finding is an error.

    Args:
        program: the model.
        place: the location of the model, as the user typed it.
        data: data files.
        method: the name of the method.
        settings: the settings of the method.
        seed: the random seed.
        time_limit: seconds.
        out: the folder to save the fit in.
        columns: how to read the columns of the data.
        coords: labels by dimension.
        dims: names of dimensions by site.
        quiet: whether to print errors only.
        as_json: whether to print JSON.
    """
    chosen = METHODS[method.lower()](**settings)
    bound = _bind_files(program, data, columns, probdl.infer, quiet=quiet)
    shapes = ", ".join(f"{n} {np.shape(v)}" for n, v in bound.arguments.items())
    start = time.perf_counter()
    log(f"fitting {place} by {chosen!r} to {shapes or 'no data'}", quiet)
    with output_to_stderr(quiet, FindingWarning):
        fit = probdl.infer(
            program,
            *bound.args,
            method=chosen,
            seed=seed,
            time_limit=time_limit,
            progress=False if quiet else None,
            missing=columns.missing,
            coords=coords or None,
            dims=dims or None,
            **bound.kwargs,
        )
        findings = fit.diagnose()
        unsaved: Exception | None = None
        if out is not None:
            try:
                fit.save(out)
            except Exception as error:  # its results are shown in any case
                unsaved = error
    seconds = time.perf_counter() - start
    for name, of in fit.program.encodings.items():
        if of.kind == "categories":
            codes = ", ".join(f"{i} = {label}" for i, label in enumerate(of.labels[:MAX_CODES]))
            log(f"codes of {name}: {codes}{', …' * (len(of.labels) > MAX_CODES)}", quiet)
    log(f"done in {seconds:.1f} s, seed {fit.seed}; {count_findings(findings)}", quiet)
    for finding in findings:
        log(str(finding), quiet)
    saved = out if unsaved is None else None
    if saved is not None:
        log(f"saved to {saved}", quiet)
    table = fit.summary()
    print_result(
        as_json,
        table,
        fit=None if saved is None else str(saved),
        method=repr(chosen),
        seed=fit.seed,
        seconds=seconds,
        summary=records(table),
        findings=finding_records(findings),
    )
    if unsaved is not None:
        raise unsaved
    return _has_error(findings)


def summary(folder: Path, site: Sequence[str] | None, quiet: bool, as_json: bool) -> None:
    """Print the summary table, one row per scalar."""
    with output_to_stderr(quiet):
        table = probdl.load(folder).summary(site)
    print_result(as_json, table, fit=str(folder), summary=records(table))


def diagnose(folder: Path, quiet: bool, as_json: bool) -> bool:
    """Print the findings, and return whether one is an error."""
    with output_to_stderr(quiet):
        findings = probdl.load(folder).diagnose()
    print_result(as_json, findings, fit=str(folder), findings=finding_records(findings))
    return _has_error(findings)


def predict(
    folder: Path,
    out: Path,
    data: Sequence[Path] | None,
    model: str | None,
    trust: bool,
    columns: Columns,
    *,
    coords: Mapping[str, Sequence[Any]],
    draws: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Draw from the posterior predictive, and write the draws or their summary to a file."""
    if draws and out.suffix != ".csv":
        raise SettingError(f"--draws is for .csv files; {out} has all draws in any case.")
    with output_to_stderr(quiet):
        fit = load_with_model(folder, model, trust=trust)
        if data:
            observed = observed_arguments(fit)
            columns = columns.with_categories(fit.program.encodings)
            if fit.program.masks_missing or fit.program.not_finite():
                columns = dataclasses.replace(columns, missing="mask")
            bound = _bind_files(
                fit.model, data, columns, fit.predict, optional=observed, quiet=quiet
            )
            args, kwargs = bound.args, bound.kwargs
        else:
            args, kwargs = (), {}
        predictions = predictions_of(fit, args, kwargs, coords)
        observed = [site.name for site in fit.structure.of("observed") if site.name in predictions]
        predictions = predictions[[*observed, *(n for n in predictions if n not in observed)]]
        table = with_classes(prediction_table(predictions), fit, args, kwargs, coords)
    with written(out) as part:
        write_predictions(part, predictions, table, draws=draws)
    variables = {n: dict(array.sizes) for n, array in predictions.items()}
    shown = table.head(MAX_SHOWN_ROWS).to_string(index=False, float_format="{:.4g}".format)
    more = len(table) - MAX_SHOWN_ROWS
    lines = [shown, *([f"… and {more} more"] if more > 0 else ()), f"wrote {out}"]
    print_result(as_json, "\n".join(lines), predictions=str(out), variables=variables)


def report(
    folder: Path, out: Path, model: str | None, trust: bool, quiet: bool, as_json: bool
) -> None:
    """Write the report of a fit."""
    mpl.use("Agg")
    with output_to_stderr(quiet):
        named = model is not None or trust
        fit = load_with_model(folder, model, trust=trust) if named else probdl.load(folder)
    if not named:
        trusted = " or --trust" if recorded_place(read_index(folder)["model"]) else ""
        log(f"without the source of the model; --model file.py:name{trusted} adds it", quiet)
    with output_to_stderr(quiet), written(out) as part:
        fit.report(part)
    print_result(as_json, f"wrote {out}", report=str(out))


def compare(
    folders: Sequence[Path],
    models: Sequence[str] | None,
    *,
    refit: bool,
    trust: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare fits by leave-one-out cross-validation."""
    if models and len(models) != len(folders):
        raise SettingError(
            f"There are {len(folders)} folders, but {len(models)} models. Pass one --model for "
            "each folder, in the same order."
        )
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):  # such as a/fit and b/fit
        names = [str(folder) for folder in folders]
    with output_to_stderr(quiet):
        fits = {}
        for i, (name, folder) in enumerate(zip(names, folders, strict=True)):
            model = models[i] if models else None
            load = partial(load_with_model, model=model, trust=trust) if refit else probdl.load
            fits[name] = load(folder)
        table = probdl.compare(fits, refit=refit, progress=False if quiet else None)
    if not refit and table["high_k"].any():
        log("k-hat is high for some rows; --refit refits without them (needs the models)", quiet)
    print_result(as_json, table.round(3), comparison=records(table))


def plot(
    folder: Path, kind: str, out: Path, site: Sequence[str] | None, quiet: bool, as_json: bool
) -> None:
    """Draw one of ArviZ's plots, or the ELBO of training."""
    mpl.use("Agg")
    with output_to_stderr(quiet):
        fit = probdl.load(folder)
    with output_to_stderr(quiet=True):  # without matplotlib's warnings
        figure = plot_fit(fit, kind, site)
    with written(out) as part:
        figure.savefig(part, dpi=120, bbox_inches="tight")
    print_result(as_json, f"wrote {out}", plot=str(out))


def doctor(quiet: bool, as_json: bool) -> None:
    """Print the report on the requirements of the native engine."""
    with contextlib.redirect_stdout(None):  # doctor() prints its report itself
        report = probdl.doctor()
    print_result(as_json, report, **dataclasses.asdict(report))


def demo(out: Path | None, quiet: bool, as_json: bool) -> None:
    """Fit the eight schools by four methods."""
    mpl.use("Agg")
    fits = {}
    with output_to_stderr(quiet, FindingWarning):
        for name, fit in demonstration.fit_schools(False if quiet else None):
            fits[name] = fit
            log(f"{name}: {fit.diagnose()}", quiet)
    if out is not None:
        demonstration.plot_methods(fits, demonstration.EFFECT, demonstration.LABELS)
        with written(out) as part:
            plt.gcf().savefig(part, dpi=120)
    table = demonstration.side_by_side(fits, "mu", "tau", "theta")
    print_result(
        as_json,
        f"{table.to_string()}" + (f"\nwrote {out}" if out else ""),
        summary={name: records(fit.summary()) for name, fit in fits.items()},
        findings={name: finding_records(fit.diagnose()) for name, fit in fits.items()},
        plot=None if out is None else str(out),
    )


def _bind_files(
    model: Any,
    paths: Sequence[Path] | None,
    columns: Columns,
    call: Callable[..., Any],
    optional: Sequence[str] = (),
    *,
    quiet: bool = False,
) -> inspect.BoundArguments:
    """Read data files and bind their contents to the arguments of a model.

    Raises:
        DataError: as in `bind`, or a name in the data is an argument of ``call`` itself.
    """
    known = signature(runnable(model)).parameters
    contents = read_raw(paths or (), drop=columns.drop, coordinates=known)
    for line in contents.lines:
        log(line, quiet)
    unused = unused_names(model, contents.values)
    used = [name for name in contents.values if name not in unused]
    if unused and not used:
        used, unused = unused, []  # nothing fits: bind() says so
    if unused:
        takes = ", ".join(known) or "none"
        log(f"ignored {', '.join(unused)}: no arguments of the model ({takes})", quiet)
    wrong = [name for name in misnamed(model, contents.values) if name not in columns.categories]
    values = checked(
        contents,
        [name for name in used if name not in wrong],  # whose contents do not matter
        categories=[name for name in columns.categories if name in used or not columns.known],
        orders=columns.orders,
        missing=columns.missing is not None,
    )
    bound = bind(model, values | dict.fromkeys(wrong), optional=optional)
    reserved = inspect.signature(call).parameters
    if clash := [name for name in bound.kwargs if name in reserved and name not in known]:
        raise DataError(
            f"The data contain {clash[0]!r}, which is an argument of {call.__name__}() itself, so "
            f"it cannot be passed to the model through **{_var_keyword(known)}. Rename it in the "
            f"file, or ignore it with --drop {clash[0]}."
        )
    return bound


def _var_keyword(parameters: Mapping[str, inspect.Parameter]) -> str:
    return next(name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD)


def _has_error(findings: Findings) -> bool:
    return any(f.severity == "error" for f in findings)
