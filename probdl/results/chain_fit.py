"""A fit by Markov chains whose state is known, so that they can go on."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from probdl.errors import SettingError, TimeLimitError
from probdl.results.fit import Fit
from probdl.results.of_model import model_findings
from probdl.util.blas import one_blas_thread
from probdl.util.clock import TimeUp, clock
from probdl.util.isolation import isolated
from probdl.util.settings import check_int, check_progress, is_real

__all__ = ["ChainFit"]


@dataclass(frozen=True, repr=False)
class ChainFit(Fit, needs="Markov chain that could go on; Use method='nuts'."):
    """A fit by NUTS, see ``Fit``."""

    def extend(
        self, draws: int = 1000, *, time_limit: float | None = None, progress: bool | None = None
    ) -> ChainFit:
        """Return a fit with more draws, as if the chains had not stopped.

        The chains go on from their last draw, with the step size and the metric of their warm-up,
        in this process or in another one, after ``load`` with the model. The result is equal, bit
        for bit, to that of one run with all draws on the same machine; this fit stays as it is.

        Args:
            draws: the number of further draws of each chain.
            time_limit: seconds after which the draws so far are returned; None means no limit.
            progress: whether to show progress; None means only on a terminal and in a notebook.

        Returns:
            The fit, with findings on all of its draws.

        Raises:
            SettingError: an argument is out of range, or the chains have no state to go on from.
            ModelError: the fit has no model, or it cannot be compiled on this machine.
            TimeLimitError: there was no further draw before the time limit.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> method = probdl.NUTS(sampler="native", draws=200)
            >>> fit = probdl.infer(normal_normal, sigma, y, method=method, seed=1)
            >>> fit.extend(300).draws["mu"].shape
            (4, 500)
        """
        check_int("extend", draws=(draws, 1))
        check_progress("extend", progress)
        if time_limit is not None and not (is_real(time_limit) and time_limit > 0):
            raise SettingError(f"time_limit={time_limit!r} must be a positive number of seconds.")
        if not self.stats.get("chain_states"):
            raise SettingError(
                "The chains of this fit have no state to go on from. Fit by "
                "NUTS(sampler='native'), on the native engine."
            )
        method: Any = self.method
        started = time.perf_counter()
        with clock(time_limit) as own:
            try:
                with isolated(self.seed), one_blas_thread():
                    longer = method.extend(self, draws, progress)
            except TimeUp:
                raise TimeLimitError(
                    f"The time limit of {time_limit} s passed before there was a further draw."
                ) from None
        longer = replace(longer, coords=self.coords, dims=self.dims)
        longer.findings.extend(model_findings(longer, self.program, self.coords))
        for part in (self.timings, own.timings):
            for name, seconds in part.items():
                longer.timings[name] = longer.timings.get(name, 0.0) + seconds
        longer.timings["total"] += time.perf_counter() - started
        return longer  # type: ignore[no-any-return]
