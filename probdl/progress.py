"""Progress of long work on the terminal or in a notebook, and quiet everywhere else."""

from __future__ import annotations

import sys
import warnings
from typing import Any

with warnings.catch_warnings():  # in a notebook without ipywidgets it falls back to text
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

__all__ = ["bar", "shown"]


def bar(total: int, description: str, show: bool | None) -> Any:
    """Return a tqdm progress bar.

    Args:
        total: the number of steps.
        description: what is going on.
        show: True or False; None shows it on a terminal and in a notebook only.
    """
    return tqdm(total=total, desc=description, disable=not shown(show), leave=False)


def shown(show: bool | None) -> bool:
    """Tell whether to show progress where the user said this."""
    return (sys.stderr.isatty() or "ipykernel" in sys.modules) if show is None else show
