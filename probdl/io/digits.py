"""Summary tables that show as many digits as the standard deviation of a row makes sense of.

ArviZ 1 shows the bounds of an interval with two significant digits, so that an intercept of
119.6 ± 1.0 has the interval from 120 to 120, and ArviZ 0.x shows three decimals, so that one of
0.0001 is 0. The values in the table are not rounded.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from probdl.util.lazy import pandas as pd

__all__ = ["with_digits"]

DIGITS = 3  # significant ones of the standard deviation
PLAIN_MAX = 1e7  # larger values are written with an exponent
COUNTS = ("ess_bulk", "ess_tail", "ess_median", "min_ss")
SPREADS = ("sd", "mad")


def with_digits(frame: Any) -> Any:
    """Return the same table, which is shown with few digits.

    >>> frame = pd.DataFrame({"mean": [119.59, 1e-4], "sd": [1.008, 2e-5], "ess_bulk": [812.3, 9]})
    >>> print(with_digits(frame).to_string(index=False))
         mean        sd ess_bulk
       119.59      1.01      812
    0.0001000 0.0000200        9
    """
    return _table()(frame)


@functools.cache
def _table() -> type:
    """Return the class; pandas is imported when it is first needed."""

    class SummaryTable(pd.DataFrame):  # type: ignore[misc]
        """A table of scalars, one per row, whose columns are those of ``arviz.summary``."""

        @property
        def _constructor(self) -> type:
            return SummaryTable

        def to_string(self, *args: Any, **options: Any) -> Any:
            return self._shown(options).to_string(*args, **options)

        def to_html(self, *args: Any, **options: Any) -> Any:
            return self._shown(options).to_html(*args, **options)

        def to_latex(self, *args: Any, **options: Any) -> Any:
            return self._shown(options).to_latex(*args, **options)

        def to_markdown(self, *args: Any, **options: Any) -> Any:
            return self._shown(options).to_markdown(*args, **options)

        def __repr__(self) -> str:
            limit = pd.get_option("display.max_rows")
            return str(self._shown({}).to_string(max_rows=limit, show_dimensions="truncate"))

        def _repr_html_(self) -> Any:
            return self._shown({})._repr_html_()

        def __reduce__(self) -> tuple[Any, ...]:  # the class has no name that pickle could find
            return with_digits, (pd.DataFrame(self),)

        def _shown(self, options: dict[str, Any]) -> Any:
            """Return a table of texts; of numbers if options say how numbers are written."""
            frame = pd.DataFrame(self)
            if options.get("float_format") or options.get("formatters"):
                return frame
            return _as_texts(frame, options.get("na_rep", "NaN"))

    return SummaryTable


def _as_texts(frame: Any, missing: str) -> Any:
    spread = next((frame[name].to_numpy(float) for name in SPREADS if name in frame), None)
    texts = frame.astype(object)
    for column in frame:
        if frame[column].dtype.kind != "f":
            continue
        values = frame[column].to_numpy(float)
        by = np.full(len(values), np.nan) if spread is None else spread
        texts[column] = [_text(column, x, s, missing) for x, s in zip(values, by, strict=True)]
    return texts


def _text(column: str, value: float, spread: float, missing: str) -> str:
    """Write a value of a row with a standard deviation."""
    if math.isnan(value):
        return missing
    if not math.isfinite(value):
        return str(value)
    if column in COUNTS:
        return str(int(value))
    if column == "r_hat":
        return f"{value:.3f}"
    if column.startswith("mcse"):
        return f"{value:.2g}"
    if not (math.isfinite(spread) and spread > 0):
        return f"{value:.6g}"
    decimals = DIGITS - 1 - math.floor(math.log10(spread))
    if abs(value) > PLAIN_MAX or decimals > DIGITS + 5:
        return f"{value:.{DIGITS + 1}g}"
    return f"{value:.{max(0, decimals)}f}"
