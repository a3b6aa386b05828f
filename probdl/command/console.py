"""Output of the commands: results on standard output, as text or JSON; messages on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from probdl.findings import Finding
from probdl.util.lazy import pandas as pd

__all__ = [
    "count_findings",
    "finding_records",
    "log",
    "output_to_stderr",
    "print_result",
    "printable",
    "records",
    "table_text",
]

MAX_TABLE_ROWS = 40  # printed as text; JSON holds all rows


def log(line: str, quiet: bool) -> None:
    """Write a line to standard error, unless ``quiet``."""
    if not quiet:
        print(printable(line), file=sys.stderr, flush=True)  # noqa: T201


def printable(text: str) -> str:
    r"""Return a text without control characters, which may come from a file and command terminals.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def output_to_stderr(quiet: bool, *ignored: type[Warning]) -> Iterator[None]:
    """Redirect the output of models, and warnings, from standard output to standard error.

    Args:
        quiet: whether to suppress all warnings.
        ignored: warnings to suppress in any case.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # such as the deprecation warnings of libraries
        if not quiet:
            warnings.simplefilter("always", UserWarning)
        for category in ignored:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = lambda message, *_args, **_kwargs: log(f"warning: {message}", False)
        yield


def print_result(as_json: bool, text: Any, **result: Any) -> None:
    """Print a result to standard output.

    Args:
        as_json: whether to print ``result`` as JSON instead of ``text``.
        text: a string, or a table to print as text.
        result: the values for JSON. NaN and infinite numbers become null.
    """
    if as_json:
        print(json.dumps(_to_json(result), indent=2, ensure_ascii=False))  # noqa: T201
    else:
        shown = table_text(text) if hasattr(text, "to_string") else str(text)
        print(printable(shown))  # noqa: T201


def table_text(table: pd.DataFrame) -> str:
    """Return the first rows of a table as text."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = [table.head(MAX_TABLE_ROWS).to_string(line_width=width)]
    if len(table) > MAX_TABLE_ROWS:
        lines.append(f"… and {len(table) - MAX_TABLE_ROWS} more rows; --json prints all")
    return "\n".join(lines)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dicts, with the row label under ``name``."""
    return [
        {"name": str(label), **{str(k): v for k, v in row.items()}}
        for label, row in table.to_dict("index").items()
    ]


def finding_records(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return findings as dicts."""
    return [asdict(finding) for finding in findings]


def count_findings(findings: Iterable[Finding]) -> str:
    """Return the number of findings of each severity as text.

    >>> count_findings([Finding("error", "rhat", "…"), Finding("warning", "ess", "…")])
    '2 findings: 1 error, 1 warning'
    """
    severities = [f.severity for f in findings]
    if not severities:
        return "no findings"
    parts = [f"{severities.count(s)} {s}" for s in dict.fromkeys(severities)]
    return f"{len(severities)} finding{'s' * (len(severities) > 1)}: {', '.join(parts)}"


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):  # half characters cannot be encoded
        return value.encode(errors="backslashreplace").decode()
    return value if value is None or isinstance(value, (bool, int, float)) else repr(value)
