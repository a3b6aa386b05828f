"""Long work: its progress on the terminal or in a notebook, and how long it takes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from probdl.util.clock import timed

with warnings.catch_warnings():  # in a notebook without ipywidgets it falls back to text
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

__all__ = ["bar", "shown", "tell"]


@contextmanager
def bar(total: int, description: str, show: bool | None) -> Iterator[Any]:
    """Show a tqdm progress bar while work is done, and time the work under its description.

    Args:
        total: the number of steps.
        description: what is going on.
        show: True or False; None shows it on a terminal and in a notebook only.
    """
    hidden = not shown(show)
    progress = tqdm(total=total, desc=description, disable=hidden, leave=False)
    with timed(description), progress:
        yield progress


def shown(show: bool | None) -> bool:
    """Tell whether to show progress where the user said this."""
    return (sys.stderr.isatty() or "ipykernel" in sys.modules) if show is None else show


def tell(line: str, show: bool | None) -> None:
    """Print one line where progress is shown."""
    if shown(show):
        tqdm.write(line, file=sys.stderr)
