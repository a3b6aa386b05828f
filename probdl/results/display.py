"""Text and HTML representations of a fit, for terminals and notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence

from probdl.findings import Findings
from probdl.util.lazy import pandas as pd

__all__ = ["as_html", "as_text"]

MAX_SUMMARY_ROWS = 20


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
) -> str:
    """Return a fit as HTML, with the first of all rows of its summary."""
    more = rows - len(table)
    note = f"<p>… and {more} more rows in <code>fit.summary()</code></p>" if more > 0 else ""
    return (
        f"<div><b>Fit of {html.escape(model)}</b> <code>{html.escape(method)}</code> "
        f"{'<br>'.join(map(html.escape, facts))}{findings._repr_html_()}"
        f"{table.to_html(na_rep=_missing(table))}{note}</div>"
    )


def _missing(table: pd.DataFrame) -> str:
    """Return what is shown for missing values: rows of scalars and of layers share a table."""
    return "" if "shape" in table.columns else "NaN"
