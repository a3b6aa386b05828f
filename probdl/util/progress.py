"""Progress bars and messages on the terminal or in a notebook."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from probdl.util.clock import timed

with warnings.catch_warnings():  # without ipywidgets, tqdm warns and falls back to text
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

__all__ = ["bar", "is_shown", "print_line"]

_inside: ContextVar[bool] = ContextVar("inside", default=False)  # of another bar


@contextmanager
def bar(total: int, description: str, show: bool | None) -> Iterator[Any]:
    """Show a tqdm progress bar, and time the context under the description.

    A bar inside another one, also one that is not shown, is not shown.

    Args:
        total: the number of steps.
        description: the label of the bar, and the name of this part in the timings.
        show: True or False; None shows the bar on a terminal and in a notebook only.
    """
    shown = is_shown(show) and not _inside.get()
    progress = tqdm(total=total, desc=description, disable=not shown, leave=False)
    token = _inside.set(True)
    try:
        with timed(description), progress:
            yield progress
    finally:
        _inside.reset(token)


def is_shown(show: bool | None) -> bool:
    """Return whether to show progress: as asked, or None on a terminal and in a notebook only."""
    if sys.stderr is None:  # of a process without a console
        return False
    return (sys.stderr.isatty() or _in_notebook()) if show is None else show


def _in_notebook() -> bool:
    """Return whether a kernel of Jupyter runs this code; libraries may import IPython elsewhere."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_shell is not None and hasattr(get_shell(), "kernel")


def print_line(line: str, show: bool | None) -> None:
    """Print one line to standard error, if progress is shown."""
    if is_shown(show):
        tqdm.write(line, file=sys.stderr)
