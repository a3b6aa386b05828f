"""Text and HTML representations of a fit, for terminals and notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probdl.findings import Findings
from probdl.util.lazy import pandas as pd

__all__ = ["as_html", "as_text", "sketched"]

MAX_SUMMARY_ROWS = 20
SKETCH = (260, 60)  # width and height in pixels
SKETCH_POINTS = 200
COLOURS = ("#3e8ed0", "#c77700", "#2f9e44", "#9c5fd0")  # readable on light and on dark


def as_text(
    title: str, facts: Sequence[str], table: pd.DataFrame, rows: int, findings: Findings
) -> str:
    """Return a fit as text: the title, the findings, the first rows of the summary.

    Args:
        title: the first line.
        facts: lines below it.
        table: the rows of the summary that are shown.
        rows: the number of all its rows.
        findings: the findings.
    """
    lines = table.to_string(na_rep=_missing(table)).splitlines()
    if rows > len(table):
        lines.append(f"… and {rows - len(table)} more rows in fit.summary()")
    return "\n".join([title, *facts, *map(str, findings), *lines])


def as_html(
    model: str,
    method: str,
    facts: Sequence[str],
    table: pd.DataFrame,
    rows: int,
    findings: Findings,
    sketch: str = "",
) -> str:
    """Return a fit as HTML, with the first of all rows of its summary.

    Args:
        model: the name of the model.
        method: the method with its settings.
        facts: lines below them.
        table: the rows of the summary that are shown.
        rows: the number of all its rows.
        findings: the findings.
        sketch: a small plot, from `sketched`.
    """
    more = rows - len(table)
    note = f"<p>… and {more} more rows in <code>fit.summary()</code></p>" if more > 0 else ""
    return (
        f"<div><b>Fit of {html.escape(model)}</b> <code>{html.escape(method)}</code> "
        f"{'<br>'.join(map(html.escape, facts))}{findings._repr_html_()}"
        f"{sketch}{table.to_html(na_rep=_missing(table))}{note}</div>"
    )


def sketched(lines: NDArray[np.float64], title: str) -> str:
    """Return lines (n, points) as a small SVG plot without axes, with their range in its title.

    >>> sketched(np.array([[0.0, 1.0, 0.5]]), "tau").count("<polyline")
    1
    """
    width, height = SKETCH
    step = max(1, lines.shape[1] // SKETCH_POINTS)
    thinned = lines[: len(COLOURS), ::step]
    finite = thinned[np.isfinite(thinned)]
    if thinned.shape[1] < 2 or not finite.size:
        return ""
    low, high = float(finite.min()), float(finite.max())
    span = high - low or 1.0
    parts = []
    for line, colour in zip(thinned, COLOURS, strict=False):
        x = np.linspace(1, width - 1, len(line))
        y = height - 1 - (np.nan_to_num(line, nan=low) - low) / span * (height - 2)
        points = " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="0.8"/>'
        )
    label = html.escape(f"{title}, from {low:.4g} to {high:.4g}")
    return (
        f'<figure style="margin:4px 0"><svg width="{width}" height="{height}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
        f'<figcaption style="font-size:smaller">{label}</figcaption></figure>'
    )


def _missing(table: pd.DataFrame) -> str:
    """Return what is shown for missing values: rows of scalars and of layers share a table."""
    return "" if "shape" in table.columns else "NaN"
