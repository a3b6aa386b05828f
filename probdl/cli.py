"""The ``probdl`` command: a thin skin over the public names.

What a command finds goes to standard output, what it says meanwhile to standard error. It ends
with 0 where all is well, with 1 under ``--strict`` where a finding is an error, with 2 on bad
input, with 3 on an error that nobody foresaw, and with 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import textwrap
import time
import traceback as tracebacks
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import typer
from matplotlib.backend_bases import FigureCanvasBase
from typer.core import TyperCommand

# At the top, though `--help` needs none of it: the package imports torch before it comes to this
# file, so that imports inside the commands would save nothing.
import probdl
from probdl.command import demo as demonstration
from probdl.command.console import aside, counted, finding_records, records, say, show
from probdl.command.locate import locate_model
from probdl.command.saved import (
    check_plot,
    load_with_model,
    observed_arguments,
    to_dataset,
    write_npz,
)
from probdl.command.settings import defaults, make_method, method_class, near
from probdl.command.tabular import bind, read_all
from probdl.diagnostics import Findings
from probdl.errors import DataError, FindingWarning, ProbdlError, SettingError
from probdl.idata import PLOTS
from probdl.idata import plot as plot_idata
from probdl.methods import METHODS
from probdl.program import runnable, signature

__all__ = ["app"]


class _Command(TyperCommand):
    """A command that tells an error in one line, and in its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # the last is `probdl … | head`
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted: there was nothing to keep yet", err=True)
            raise typer.Exit(130) from None
        except (ProbdlError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except Exception as error:
            typer.echo(f"error: {type(error).__name__}: {error}", err=True)
            if ctx.parent.params["traceback"]:
                tracebacks.print_exc()
            else:
                typer.echo(f"`probdl --traceback {self.name} …` shows where", err=True)
            raise typer.Exit(3) from None


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="The folder of a fit.", show_default=False)]
Data = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Data by name: .csv, .json, .npz, .nc; may be repeated."),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A column of the data to leave out; may be repeated."),
]
Model = Annotated[str | None, typer.Option(help="file.py:name, where it is not where it was.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 on findings that are errors.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"probdl {probdl.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Print where an unexpected error came from.")
    ] = False,
) -> None:
    """One call from a Pyro program to its posterior."""


@app.command(cls=_Command)
def infer(
    model: Annotated[
        str, typer.Argument(help="file.py:name or package.module:name.", show_default=False)
    ],
    data: Data = None,
    method: Annotated[str, typer.Option(help="A name that `probdl methods` lists.")] = "nuts",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A setting of the method; may be repeated."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats a fit.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds; keeps what there is.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to save the fit in.")] = None,
    drop: Drop = None,
    strict: Strict = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fit a model to data.

    Columns of a table, keys of a JSON object, arrays and variables of files are given to the
    arguments of the model by name. Columns x[0], x[1], … or x_0, x_1, … make one argument x.
    After Ctrl-C the fit is that of the draws there are.
    """
    chosen = make_method(method, setting or [])
    program = locate_model(model)
    bound = _bound(program, data, drop, probdl.infer)
    if out is not None:
        _check_folder(out)
    shapes = ", ".join(f"{n} {np.shape(v)}" for n, v in bound.arguments.items())
    start = time.perf_counter()
    say(f"fitting {model} by {chosen!r} to {shapes or 'no data'}", quiet)
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
    _judge(findings, strict)


@app.command(cls=_Command)
def summary(folder: Folder, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Print one row for each scalar of the draws."""
    with aside(quiet):
        table = probdl.load(folder).summary()
    show(as_json, table, fit=str(folder), summary=records(table))


@app.command(cls=_Command)
def diagnose(
    folder: Folder, strict: Strict = False, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """Print the findings, each with what to try."""
    with aside(quiet):
        findings = probdl.load(folder).diagnose()
    show(as_json, findings, fit=str(folder), findings=finding_records(findings))
    _judge(findings, strict)


@app.command(cls=_Command)
def predict(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="predictions.nc or .npz.", show_default=False)],
    data: Data = None,
    model: Model = None,
    drop: Drop = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw predictions, at new data or at those of the fit.

    The observed arguments may be missing from the new data. Predictions have the dimensions
    (chain, draw, *shape of the site at the new data).
    """
    _check_file(out, "predictions", (".nc", ".npz"))
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


@app.command(cls=_Command)
def compare(
    folders: Annotated[list[Path], typer.Argument(help="The folders of fits of the same data.")],
    refit: Annotated[
        bool, typer.Option(help="Fit again without the rows where k-hat is high; needs the models.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
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


@app.command(cls=_Command)
def plot(
    folder: Folder,
    kind: Annotated[str, typer.Argument(help=" | ".join(PLOTS), show_default=False)],
    out: Annotated[Path, typer.Option(help="A .png, .pdf or .svg file.", show_default=False)],
    site: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A site to draw; may be repeated.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw one of ArviZ's plots."""
    mpl.use("Agg")
    if kind not in PLOTS:
        raise SettingError(f"there is no plot {kind!r}; {near(kind, PLOTS)}")
    _check_picture(out)
    with aside(quiet):
        fit = probdl.load(folder)
    with aside(quiet=True):  # of matplotlib's
        check_plot(fit, kind, site)
        figure = plot_idata(fit.idata, kind, site)
    figure.savefig(out, dpi=120, bbox_inches="tight")
    show(as_json, f"wrote {out}", plot=str(out))


@app.command(cls=_Command)
def methods(
    name: Annotated[str | None, typer.Argument(help="One of them, in full.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """List the methods with their settings."""
    shown = METHODS if name is None else {name.lower(): method_class(name)}
    table = {n: (inspect.getdoc(cls) or "", defaults(cls)) for n, cls in shown.items()}
    if name is not None:
        text = "\n".join(doc for doc, _ in table.values())
    else:
        text = "\n\n".join(
            f"{n}: {doc.splitlines()[0]}\n" + _wrapped(f"{k}={v!r}" for k, v in settings.items())
            for n, (doc, settings) in table.items()
        )
    records = [
        {"name": n, "description": doc if name else doc.splitlines()[0], "settings": settings}
        for n, (doc, settings) in table.items()
    ]
    show(as_json, text, methods=records)


@app.command(cls=_Command)
def doctor(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Tell what the native engine needs, and what is there."""
    with contextlib.redirect_stdout(None):  # it prints its report by itself
        report = probdl.doctor()
    show(as_json, report, **dataclasses.asdict(report))


@app.command(cls=_Command)
def demo(
    out: Annotated[Path | None, typer.Option(help="A file for the plot, such as demo.png.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fit eight schools by four methods."""
    mpl.use("Agg")
    if out is not None:
        _check_picture(out)
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


def _check_picture(out: Path) -> None:
    known = FigureCanvasBase.get_supported_filetypes()
    _check_file(out, "plots", [f".{ending}" for ending in known])


def _check_file(out: Path, what: str, endings: Sequence[str]) -> None:
    """Refuse a file that cannot be written, before the work, and make its folder."""
    if out.suffix not in endings:
        last = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise SettingError(f"--out {out}: {what} are written to {last}.")
    if out.is_dir():
        raise SettingError(f"--out {out} is a folder; give the name of a file.")
    out.resolve().parent.mkdir(parents=True, exist_ok=True)


def _check_folder(out: Path) -> None:
    """Refuse a place that a fit cannot be saved in, before the work."""
    if out.exists() and not out.is_dir():
        raise SettingError(f"--out {out} is a file; a fit is saved in a folder of its own.")
    if out.is_dir() and any(out.iterdir()) and not (out / "fit.json").exists():
        raise SettingError(f"--out {out} is a folder that holds something else than a fit.")
    out.resolve().parent.mkdir(parents=True, exist_ok=True)


def _judge(findings: Findings, strict: bool) -> None:
    if strict and any(f.severity == "error" for f in findings):
        raise typer.Exit(1)


def _wrapped(words: Iterable[str]) -> str:
    return textwrap.fill(", ".join(words), 78, initial_indent="  ", subsequent_indent="  ")
