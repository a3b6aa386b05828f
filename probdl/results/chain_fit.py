"""A fit by Markov chains whose state is known, so that they can go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from probdl.errors import DataError, SettingError, TimeLimitError
from probdl.model.fingerprint import fingerprint
from probdl.results.fit import Fit
from probdl.results.of_model import model_findings
from probdl.util.blas import one_blas_thread
from probdl.util.clock import TimeUp, clock
from probdl.util.isolation import isolated
from probdl.util.settings import check_int, check_limit, check_progress

__all__ = ["ChainFit", "concat"]


@dataclass(frozen=True, repr=False)
class ChainFit(Fit, needs="Markov chain that could go on; Use method='nuts'."):
    """A fit by NUTS, see ``Fit``, whose chains can go on.

    Example:
        >>> import numpy as np, probdl
        >>> from probdl.models import normal_normal
        >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
        >>> method = probdl.NUTS(draws=100)
        >>> fit = probdl.infer(normal_normal, sigma, y, method=method, seed=1)
        >>> type(fit).__name__, fit.extend(100).num_draws
        ('ChainFit', 200)
    """

    def extend(
        self, draws: int = 1000, *, time_limit: float | None = None, progress: bool | None = None
    ) -> ChainFit:
        """Return a fit with more draws, as if the chains had not stopped.

        The chains go on from their last draw, with the step size and the metric of their warm-up,
        in this process or in another one, after ``load`` with the model. The result is equal, bit
        for bit, to that of one run with all draws on the same machine, if this fit has at least
        100 draws of each chain (with fewer, chains at a lesser mode were not run again); this fit
        stays as it is.

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
            >>> method = probdl.NUTS(draws=200)
            >>> fit = probdl.infer(normal_normal, sigma, y, method=method, seed=1)
            >>> fit.extend(300).draws["mu"].shape
            (4, 500)
        """
        check_int("extend", draws=(draws, 1))
        states = self.stats.get("chain_states")
        check_progress("extend", progress)
        check_limit(time_limit)
        if not isinstance(states, list) or len(states) != self.num_chains:
            raise SettingError(
                "The chains of this fit have no state to go on from. Fit by NUTS, with its own "
                "sampler and compiled code."
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
        spent = own.timings | {"total": time.perf_counter() - started}
        return _completed(longer, [self], spent)


def concat(fits: Sequence[ChainFit]) -> ChainFit:
    """Join the chains of fits by NUTS to the same data, such as those of separate jobs.

    With ``NUTS(chain_ids=[i])`` and one seed for all, the result is that of one
    run with all chains, bit for bit, unless a chain was run again there from where others were.

    Args:
        fits: the fits, in the order of their chains.

    Raises:
        SettingError: the fits have other settings, or the same chains.
        DataError: the models or the data differ.

    Example:
        >>> import numpy as np, probdl
        >>> from probdl.models import normal_normal
        >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
        >>> parts = [
        ...     probdl.infer(
        ...         normal_normal, sigma, y, seed=1,
        ...         method=probdl.NUTS(draws=100, chains=2, chain_ids=[i]),
        ...     )
        ...     for i in range(2)
        ... ]
        >>> probdl.concat(parts).draws["mu"].shape
        (2, 100)
    """
    listed = isinstance(fits, (list, tuple))
    if not listed or not fits or not all(isinstance(fit, ChainFit) for fit in fits):
        raise SettingError("concat() takes a list of fits by NUTS.")
    first = fits[0]
    for i, fit in enumerate(fits[1:], 1):
        _check_alike(first, fit, i)
    ids = [i for fit in fits for i in _ids(fit)]
    one_seed = len({fit.seed for fit in fits}) == 1
    if one_seed and len({*ids}) < len(ids):
        raise SettingError(
            "The fits have the same seed and some of the same chains, which would count twice. "
            "Pass other seeds, or other chain_ids."
        )
    own: Any = first.method
    method = replace(own, chains=len(ids), chain_ids=None)
    if one_seed and len(ids) < own.chains:  # some are missing
        method = replace(own, chain_ids=ids)
    with isolated(first.seed), one_blas_thread():
        joined = method.join(fits)
    return _completed(joined, fits, {})


def _ids(fit: ChainFit) -> Sequence[int]:
    method: Any = fit.method
    return method.chain_ids if method.chain_ids is not None else range(fit.num_chains)


def _check_alike(first: ChainFit, fit: ChainFit, i: int) -> None:
    if fingerprint(first.program.tensors()) != fingerprint(fit.program.tensors()):
        raise DataError(f"Fit {i} is of other data than the first.")
    sites = [{s.name: (s.kind, s.shape) for s in f.structure.sites.values()} for f in (first, fit)]
    if sites[0] != sites[1]:
        raise DataError(f"The model of fit {i} has other sites than that of the first.")
    methods: list[Any] = [first.method, fit.method]
    a, b = (replace(method, chain_ids=None) for method in methods)
    if a != b:
        raise SettingError(f"Fit {i} is by {b!r}, and the first by {a!r}.")
    if first.num_draws != fit.num_draws or [*first.stats] != [*fit.stats]:
        raise SettingError(
            f"Fit {i} has {fit.num_draws} draws per chain, and the first {first.num_draws}."
        )


def _completed(fit: Any, parts: Sequence[ChainFit], spent: dict[str, float]) -> ChainFit:
    """Return a fit with the labels, timings and findings of the model that ``infer`` adds."""
    first = parts[0]
    fit = replace(fit, coords=first.coords, dims=first.dims)
    fit.findings.extend(model_findings(fit, first.program, first.coords))
    for part in (*(of.timings for of in parts), spent):
        for name, seconds in part.items():
            fit.timings[name] = fit.timings.get(name, 0.0) + seconds
    return fit  # type: ignore[no-any-return]
