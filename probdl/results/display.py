"""Text and HTML representations of a fit, for terminals and notebooks."""

from __future__ import annotations

import html

from probdl.findings import Findings
from probdl.util.lazy import pandas as pd

__all__ = ["as_html", "as_text"]

MAX_SUMMARY_ROWS = 20


def as_text(title: str, table: pd.DataFrame, findings: Findings) -> str:
    """Return a fit as text: the title, the first rows of the summary, the findings."""
    lines = table.head(MAX_SUMMARY_ROWS).to_string().splitlines()
    if len(table) > MAX_SUMMARY_ROWS:
        lines.append(f"… and {len(table) - MAX_SUMMARY_ROWS} more rows in fit.summary()")
    return "\n".join([title, *lines, *map(str, findings)])


def as_html(model: str, method: str, facts: str, table: pd.DataFrame, findings: Findings) -> str:
    """Return a fit as HTML."""
    more = len(table) - MAX_SUMMARY_ROWS
    note = f"<p>… and {more} more rows in <code>fit.summary()</code></p>" if more > 0 else ""
    return (
        f"<div><b>Fit of {html.escape(model)}</b> <code>{html.escape(method)}</code> {facts}"
        f"{table.head(MAX_SUMMARY_ROWS).to_html()}{note}{findings._repr_html_()}</div>"
    )
