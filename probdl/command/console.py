"""What a command says: its result on standard output, as text or JSON, the rest on stderr."""

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

__all__ = ["aside", "counted", "finding_records", "records", "say", "show", "table_text"]

_ROWS = 40  # of a table for the eye; JSON has them all


def say(line: str, quiet: bool) -> None:
    """Write a line to standard error, or say nothing."""
    if not quiet:
        print(line, file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def aside(quiet: bool, *unsaid: type[Warning]) -> Iterator[None]:
    """Keep standard output free: what a model prints, and warnings, go to standard error.

    Args:
        quiet: whether to leave warnings out.
        unsaid: warnings to leave out in any case.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # of libraries to programmers
        if not quiet:
            warnings.simplefilter("always", UserWarning)
        for category in unsaid:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = lambda message, *_args, **_kwargs: say(f"warning: {message}", False)
        yield


def show(as_json: bool, text: Any, **result: Any) -> None:
    """Write a result to standard output.

    Args:
        as_json: whether a machine reads it.
        text: for people.
        result: for machines. NaN and infinite numbers become null, which JSON has none for.
    """
    if as_json:
        print(json.dumps(_plain(result), indent=2, ensure_ascii=False))  # noqa: T201
    else:
        print(table_text(text) if hasattr(text, "to_string") else text)  # noqa: T201


def table_text(table: pd.DataFrame) -> str:
    """Return the first rows of a table as text."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = [table.head(_ROWS).to_string(line_width=width)]
    if len(table) > _ROWS:
        lines.append(f"… and {len(table) - _ROWS} more rows, which --json prints")
    return "\n".join(lines)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, each with its label as ``name``."""
    return [
        {"name": str(label), **{str(k): v for k, v in row.items()}}
        for label, row in table.to_dict("index").items()
    ]


def finding_records(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return findings as plain values."""
    return [asdict(finding) for finding in findings]


def counted(findings: Iterable[Finding]) -> str:
    """Say how many findings there are of each severity.

    >>> counted([Finding("error", "rhat", "…"), Finding("error", "ess", "…")])
    '2 findings: 2 error'
    """
    severities = [f.severity for f in findings]
    if not severities:
        return "no findings"
    parts = [f"{severities.count(s)} {s}" for s in dict.fromkeys(severities)]
    return f"{len(severities)} finding{'s' * (len(severities) > 1)}: {', '.join(parts)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
