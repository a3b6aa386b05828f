"""A report of a fit: one HTML page with its findings, tables, plots and origin."""

from __future__ import annotations

import base64
import functools
import html
import inspect
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.errors import ProbdlError, SettingError
from probdl.io.idata import good_k, pareto_k, plot
from probdl.io.identity import layers
from probdl.model.without_model import WithoutModel
from probdl.results.training_curve import draw_elbo
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import pyplot as plt
from probdl.util.lock import GLOBAL_LOCK

__all__ = ["write_report"]

MAX_ROWS = 200  # of the summary
MAX_SCALARS = 12  # in the plots of single scalars
MAX_FOREST = 60
MAX_LABEL = 10  # characters of the label of a row in a plot
MAX_OBSERVATIONS = 20_000  # in plots of observations, which need minutes beyond
DPI = 80
PACKAGES = ("probdl", "torch", "pyro-ppl", "arviz", "numpy")
PLOTS = {  # title and caption by ArviZ's name
    "trace": (
        "Trace",
        "The draws of each chain. Chains that overlap and wander around one level have mixed.",
    ),
    "rank": (
        "Ranks",
        "The ranks of each chain's draws among all, thinned to about independent ones. Even ranks "
        "mean that the chains agree.",
    ),
    "forest": ("Intervals", "Medians and intervals of the posterior."),
    "ppc": (
        "Posterior predictive",
        "Data sets that the fit predicts, and the data. They should look alike.",
    ),
}
STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: 0.2rem 0.6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } figcaption { font-size: 0.85rem; opacity: 0.8; }
img { max-width: 100%; background: white; border-radius: 4px; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: 0.8rem; font-size: 0.85rem; }
"""


def write_report(fit: Any, file: str | os.PathLike[str]) -> Path:
    """Write a report of a fit; see :meth:`Fit.report`."""
    path = Path(file)
    if path.is_dir() or not path.parent.is_dir():
        raise SettingError(
            f"report({str(path)!r}): the report is a file in a folder that exists, such as "
            "'fit.html'."
        )
    parts = [part for section in SECTIONS for part in section(fit)]
    title = html.escape(fit.program.name)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Fit of {title}</title><style>{STYLE}</style></head><body>"
        f"<h1>Fit of {title}</h1>{''.join(parts)}</body></html>"
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SettingError(f"report({str(path)!r}): {error.strerror or error}.") from None
    return path


def _head(fit: Any) -> Iterator[str]:
    yield f"<p>{html.escape(fit.title)}.</p>"
    yield f"<h2>Findings</h2>{fit.diagnose()._repr_html_()}"


def _tables(fit: Any) -> Iterator[str]:
    table = fit.summary()
    more = len(table) - MAX_ROWS
    yield f"<h2>Summary</h2>{table.head(MAX_ROWS).to_html(float_format=_short)}"
    if more > 0:
        yield f"<p>… and {more} more rows in <code>fit.summary()</code></p>"


def _plots(fit: Any) -> Iterator[str]:
    yield "<h2>Plots</h2>"
    if "elbo" in fit.stats:
        caption = "The evidence lower bound in training."
        yield _figure(lambda: _plot_elbo(fit), "ELBO", caption)
    if fit.is_point:
        yield "<p>A point estimate has no draws to plot.</p>"
        return
    one, several = _few(fit, MAX_SCALARS), _few(fit, MAX_FOREST)
    observed = sum(site.count for site in fit.whole.of("observed"))
    chosen: dict[str, Sequence[str] | None] = {"trace": one, "rank": one, "forest": several}
    if fit.num_chains == 1:
        del chosen["rank"]
    if 0 < observed * fit.num_chains * fit.num_draws <= MAX_OBSERVATIONS * 4000:
        chosen["ppc"] = None
    posterior = fit.to_idata(predictive=False)
    for kind, names in chosen.items():
        if names is None or names:
            title, caption = PLOTS[kind]
            if kind == "trace" and fit.num_chains == 1:
                caption = "The distribution of the draws, and the draws in their order."
            if names is not None and len(names) < len(fit.draws):
                caption += f" Shown: {', '.join(names)}."
            data = fit.idata if kind == "ppc" else posterior
            draw = functools.partial(plot, data, kind, names)
            yield _figure(draw, title, caption)
    if 0 < observed <= MAX_OBSERVATIONS:
        yield from _loo(fit)


def _loo(fit: Any) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = fit.loo()
            observed = _observed_places(fit)
    except ProbdlError as error:
        yield f"<p>There is no leave-one-out score: {html.escape(str(error))}</p>"
        return
    caption = (
        "Pareto k-hat of each observation. Above the line, the estimate of its score without it "
        "is unreliable, and the observation is influential."
    )
    draw = functools.partial(_plot_khat, result, *observed)
    yield _figure(draw, "Leave-one-out cross-validation", caption)
    yield f"<pre>{html.escape(str(result))}</pre>"


def _origin(fit: Any) -> Iterator[str]:
    yield "<h2>Model</h2>"
    source = _source(fit)
    absent = "<p>The source is not available. Load the fit with its model.</p>"
    yield f"<pre>{html.escape(source)}</pre>" if source else absent
    shapes = {
        name: f"{tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
        for name, value in fit.program.named_data()
    }
    yield f"<h2>Data</h2>{_rows(shapes)}"
    settings = {"method": repr(fit.method), "seed": str(fit.seed)}
    if "engine" in fit.stats:
        settings["engine"] = str(fit.stats["engine"])
    yield f"<h2>Settings</h2>{_rows(settings)}"
    yield f"<h2>Time</h2>{_rows({part: f'{s:.3g} s' for part, s in fit.timings.items()})}"
    yield f"<h2>Versions</h2>{_rows({name: metadata.version(name) for name in PACKAGES})}"


SECTIONS: tuple[Callable[[Any], Iterator[str]], ...] = (_head, _tables, _plots, _origin)


def _few(fit: Any, limit: int) -> list[str]:
    """Return the first sites as shown, with at most this many scalars together.

    Sites with a constant element, as in a Cholesky factor, are left out: it looks like a failure.
    """
    names: list[str] = []
    for name in fit.shown_sites:
        draws = fit.draws[name]
        size = draws[0, 0].size
        if 0 < size <= limit and np.ptp(draws, axis=(0, 1)).all():
            names.append(name)
            limit -= size
    return names


def _source(fit: Any) -> str:
    if isinstance(fit.program, WithoutModel):
        return ""
    *_, inner = layers(fit.program.original)
    owner = getattr(inner, "__self__", inner)
    try:
        return inspect.getsource(owner if inspect.isfunction(owner) else type(owner))
    except (OSError, TypeError):
        return ""


def _rows(values: Mapping[str, str]) -> str:
    if not values:
        return "<p>none</p>"
    table = pd.DataFrame({"": [*values.values()]}, index=[*values])
    return str(table.to_html(header=False))


def _short(value: float) -> str:
    return f"{value:.4g}"


def _figure(draw: Callable[[], Any], title: str, caption: str) -> str:
    """Draw a figure, and return it with its caption; the reason in its place if that fails."""
    buffer = io.BytesIO()
    with GLOBAL_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_figures = set(plt.get_fignums())
        try:
            draw().savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
        except Exception as error:  # of a plotting library; the rest of the report stands
            reason = html.escape(f"{type(error).__name__}: {error}")
            return f"<h3>{title}</h3><p>This plot could not be drawn ({reason}).</p>"
        finally:
            for number in set(plt.get_fignums()) - open_figures:
                plt.close(number)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<h3>{title}</h3><figure><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _plot_elbo(fit: Any) -> Any:
    figure, ax = plt.subplots(figsize=(8, 3))
    draw_elbo(fit, ax)
    return figure


def _observed_places(fit: Any) -> tuple[NDArray[np.int64] | None, str, list[Any]]:
    """Return the places of the observations among all rows, and what the rows are."""
    sites = [*fit.observations.values()]
    if len(sites) != 1 or len(sites[0].shape) - sites[0].event_dim != 1:
        return None, "observation", []
    (site,) = sites
    kept = site.is_scored
    rows = np.arange(site.shape[0]) if kept is None else np.flatnonzero(kept.numpy())
    dim = site.dims[0] or "observation"
    return rows, dim, [*fit.coords.get(dim, ())]


def _plot_khat(
    result: Any, rows: NDArray[np.int64] | None, dim: str, row_labels: Sequence[Any]
) -> Any:
    shapes = pareto_k(result)
    figure, ax = plt.subplots(figsize=(8, 3))
    ax.plot(np.arange(len(shapes)) if rows is None else rows, shapes, "+")
    ax.axhline(good_k(result), color="k", lw=0.8, ls=":")
    if row_labels:
        places = [int(x) for x in ax.get_xticks() if 0 <= x < len(row_labels) and x == int(x)]
        ax.set_xticks(places, [str(row_labels[i])[:MAX_LABEL] for i in places])
    ax.set(xlabel=dim, ylabel="Pareto k-hat")
    return figure
