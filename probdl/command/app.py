"""The ``probdl`` command: its options, and the checks that run before any work.

Results go to standard output, progress and messages to standard error. Exit codes: 0 for success,
1 for a finding that is an error (with ``--strict``), 2 for invalid input, 3 for an unexpected
error, and 130 after Ctrl-C.
"""

from __future__ import annotations

import textwrap
import traceback as tracebacks
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from probdl import __version__
from probdl.command.catalogue import catalogue, find_method
from probdl.command.columns import Columns
from probdl.command.console import print_result, printable
from probdl.command.locate import locate_model
from probdl.command.outputs import check_file, check_folder, check_picture
from probdl.command.settings import parse, parse_labels
from probdl.errors import ProbdlError, SettingError
from probdl.io.idata import KINDS
from probdl.util.suggestions import nearest, suggest

__all__ = ["app"]


def _actions() -> ModuleType:
    """Import the actions when they are needed: they import torch, but help and checks do not."""
    from probdl.command import actions

    return actions


class _Command(TyperCommand):
    """A command that reports an error in one line and by its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # BrokenPipeError: `probdl … | head`
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted: no results yet, nothing was saved", err=True)
            raise typer.Exit(130) from None
        except SystemExit as error:  # typer's own exits are other exceptions
            typer.echo(f"error: the model ended the program (sys.exit({error.code!r})).", err=True)
            raise typer.Exit(2) from None
        except (ProbdlError, OSError) as error:
            typer.echo(printable(f"error: {error}"), err=True)
            raise typer.Exit(2) from None
        except Exception as error:
            typer.echo(printable(f"error: {type(error).__name__}: {error}"), err=True)
            if ctx.parent.params["traceback"]:
                tracebacks.print_exc()
            else:
                typer.echo(f"Run `probdl --traceback {self.name} …` for a traceback.", err=True)
            raise typer.Exit(3) from None


# What other tools call these commands.
_OTHER_NAMES = {
    **dict.fromkeys(("fit", "run", "sample", "train", "mcmc"), "infer"),
    **dict.fromkeys(("check", "findings"), "diagnose"),
    **dict.fromkeys(("print", "show", "stats"), "summary"),
    "forecast": "predict",
    "loo": "compare",
}


class _Commands(TyperGroup):
    """The commands, with a suggestion for a misspelt one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            name = _OTHER_NAMES.get(args[0]) or nearest(args[0], self.commands)
            meant = f"Did you mean {name!r}? " if name else ""
            known = ", ".join(self.commands)
            typer.echo(f"error: There is no command {args[0]!r}. {meant}({known})", err=True)
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="The folder of a fit.", show_default=False)]
Data = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A data file (.csv, .json, .npz or .nc); may be repeated."),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A column of the data to ignore; may be repeated."),
]
Category = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=A,B,…]",
        help="A column of categories, and their order if it matters; may be repeated.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="PLACE", help="The model: file.py:name or package:name."),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Import and run the model that the folder names, if unchanged."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors to stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if a finding is an error.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"probdl {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Print the traceback of an unexpected error.")
    ] = False,
) -> None:
    """Fit Pyro models to data from the command line."""


@app.command(cls=_Command)
def infer(
    model: Annotated[
        str, typer.Argument(help="file.py:name or package.module:name.", show_default=False)
    ],
    data: Data = None,
    method: Annotated[str, typer.Option(help="A name listed by `probdl methods`.")] = "nuts",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A setting of the method; may be repeated."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed; makes the fit repeatable.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="In seconds; the fit holds the draws made by then.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to save the fit in.")] = None,
    drop: Drop = None,
    category: Category = None,
    missing: Annotated[
        str | None, typer.Option(help="`mask` leaves out observations without a value.")
    ] = None,
    coords: Annotated[
        list[str] | None,
        typer.Option(metavar="DIM=A,B,…", help="Labels along a dimension; may be repeated."),
    ] = None,
    dims: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE=DIM,…", help="Names of dimensions; may be repeated."),
    ] = None,
    strict: Strict = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fit a model to data.

    Table columns, JSON keys, arrays and netCDF variables are passed to the model's arguments by
    name. Columns x[0], x[1], … or x_0, x_1, … are joined into one argument x. After Ctrl-C, the
    fit holds the draws made so far.
    """
    settings = parse(method, setting or [])
    program = locate_model(model)
    if out is not None:
        check_folder(out)
    has_errors = _actions().infer(
        program,
        model,
        data,
        method,
        settings,
        seed=seed,
        time_limit=time_limit,
        out=out,
        columns=Columns.of(drop, category, missing),
        coords=parse_labels("coords", coords or ()),
        dims=parse_labels("dims", dims or ()),
        quiet=quiet,
        as_json=as_json,
    )
    _exit_if(has_errors and strict)


@app.command(cls=_Command)
def summary(
    folder: Folder,
    site: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A site to show; may be repeated.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Print the summary table, one row per scalar."""
    _actions().summary(folder, site, quiet, as_json)


@app.command(cls=_Command)
def diagnose(
    folder: Folder, strict: Strict = False, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """Print the findings, each with a remedy."""
    _exit_if(_actions().diagnose(folder, quiet, as_json) and strict)


@app.command(cls=_Command)
def predict(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="predictions.csv, .nc or .npz.", show_default=False)],
    data: Data = None,
    draws: Annotated[
        bool, typer.Option("--draws", help="Write each draw to the .csv, not a summary.")
    ] = False,
    model: Model = None,
    trust: Trust = False,
    drop: Drop = None,
    category: Category = None,
    coords: Annotated[
        list[str] | None,
        typer.Option(metavar="DIM=A,B,…", help="Labels at the new data; may be repeated."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw from the posterior predictive, at new data or at the data of the fit.

    The new data may omit the observed arguments. A .csv has the mean, the standard deviation and
    quantiles of each value, and the probabilities of classes; a .nc, which ArviZ opens, has the
    group predictions with dimensions (chain, draw, *dimensions of the site). They run the model:
    name it by --model, or pass --trust.
    """
    check_file(out, "predictions", (".csv", ".nc", ".npz"), data)
    _actions().predict(
        folder,
        out,
        data,
        model,
        trust,
        Columns.of(drop, category),
        coords=parse_labels("coords", coords or ()),
        draws=draws,
        quiet=quiet,
        as_json=as_json,
    )


@app.command(cls=_Command)
def compare(
    folders: Annotated[list[Path], typer.Argument(help="The folders of fits to the same data.")],
    refit: Annotated[
        bool, typer.Option(help="Refit without each row whose k-hat is high; needs the models.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(help="file.py:name of each fit's model, for --refit, in order."),
    ] = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare fits by leave-one-out cross-validation."""
    _actions().compare(folders, model, refit=refit, trust=trust, quiet=quiet, as_json=as_json)


@app.command(cls=_Command)
def plot(
    folder: Folder,
    kind: Annotated[str, typer.Argument(help=" | ".join(KINDS), show_default=False)],
    out: Annotated[Path, typer.Option(help="A .png, .pdf or .svg file.", show_default=False)],
    site: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A site to plot; may be repeated.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw one of ArviZ's plots, or the ELBO of training."""
    if kind not in KINDS:
        raise SettingError(f"There is no plot {kind!r}; {suggest(kind, KINDS)}")
    check_picture(out)
    _actions().plot(folder, kind, out, site, quiet, as_json)


@app.command(cls=_Command)
def report(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="An .html file.", show_default=False)],
    model: Model = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a page with the findings, tables and plots of a fit.

    With --model or --trust, it has the source of the model, too.
    """
    check_file(out, "reports", (".html",))
    _actions().report(folder, out, model, trust, quiet, as_json)


@app.command(cls=_Command)
def methods(
    name: Annotated[str | None, typer.Argument(help="A method to describe in full.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """List the methods with their settings."""
    shown = catalogue() if name is None else {name.lower(): find_method(name)}
    if name is not None:
        text = "\n".join(entry.doc for entry in shown.values())
    else:
        text = "\n\n".join(
            f"{n}: {entry.doc.splitlines()[0]}\n"
            + _wrapped(f"{k}={v!r}" for k, v in entry.settings.items())
            for n, entry in shown.items()
        )
    records = [
        {
            "name": n,
            "description": entry.doc if name else entry.doc.splitlines()[0],
            "settings": entry.settings,
        }
        for n, entry in shown.items()
    ]
    print_result(as_json, text, methods=records)


@app.command(cls=_Command)
def doctor(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Check the requirements of the native engine."""
    _actions().doctor(quiet, as_json)


@app.command(cls=_Command)
def demo(
    out: Annotated[Path | None, typer.Option(help="The plot's file, such as demo.png.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fit the eight schools by four methods."""
    if out is not None:
        check_picture(out)
    _actions().demo(out, quiet, as_json)


def _exit_if(failed: bool) -> None:
    if failed:
        raise typer.Exit(1)


def _wrapped(words: Iterable[str]) -> str:
    return textwrap.fill(", ".join(words), 78, initial_indent="  ", subsequent_indent="  ")
