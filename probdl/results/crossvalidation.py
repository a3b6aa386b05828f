r"""Cross-validation by refitting without single rows or folds of the data.

.. math:: \mathrm{elpd} = \sum_i \log p(y_i | y_{-i})
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import ModelError, ProbdlError, SettingError
from probdl.model import predictive
from probdl.model.elements import Elements
from probdl.model.program import Program
from probdl.model.sites import Site, data_plate, discover
from probdl.results.diagnostics import require_complete
from probdl.results.latent import Proposal, encode, log_evidence
from probdl.util.isolation import isolated
from probdl.util.parallel import parallel_map
from probdl.util.seeds import stream
from probdl.util.settings import check_int, check_progress, check_workers

__all__ = ["CrossValidation", "cross_validate", "score_held_out"]

Array = NDArray[np.float64]

EVIDENCE_DRAWS = 1000  # of the latent sites of each held-out row, as in log_evidence()


@dataclass(frozen=True)
class CrossValidation:
    """The expected log predictive density of new data, by cross-validation.

    Attributes:
        elpd: the sum of ``pointwise`` without NaN, in nats.
        standard_error: the standard error of the sum.
        pointwise: the log predictive density of each row given the other folds, (rows,), float64;
            NaN for a masked row, which does not count.
        folds: the number of each row's fold, (rows,), int64.
    """

    elpd: float
    standard_error: float
    pointwise: Array
    folds: NDArray[np.int64]

    def __repr__(self) -> str:
        return (
            f"CrossValidation(elpd={self.elpd:.2f} ± {self.standard_error:.2g}, "
            f"{(~np.isnan(self.pointwise)).sum()} rows in {self.folds.max() + 1} folds)"
        )


def score_held_out(
    fit: Any,
    groups: Sequence[Any],
    *,
    workers: int | None,
    executor: Any = None,
    progress: bool | None,
) -> list[Array]:
    """Return the log predictive densities of groups of rows, each from a fit without the group.

    Data of the same shapes use the same compiled code, so groups of one size compile once.

    Args:
        fit: a fit by any method.
        groups: for each group, the indices of its rows along the data plate.
        workers: number of processes; None means one per core.
        executor: runs the fits in their place.
        progress: whether to show progress; None means only on a terminal and in a notebook.

    Returns:
        An array (rows,) for each group, in nats; an interruption leaves fewer groups.

    Raises:
        ModelError: the model has no data plate, or a fit fails.
    """
    program, structure = fit.program, fit.structure
    _check_all_data(program)
    plate, size = data_plate(program, structure)
    tied = _are_tied(fit, plate, size)
    imputed = {
        site.name: ~site.is_scored
        for site in structure.of("observed")
        if site.imputed and site.is_scored is not None
    }

    def program_at(rows: Any) -> Program:
        return _at_rows(program, rows, size)

    # The folds are other runs than the one that its checkpoint, if any, belongs to.
    method, fit_seed = fit.method, fit.seed
    if getattr(method, "checkpoint", None) is not None:
        method = replace(method, checkpoint=None)

    def score_group(number: int, group: Any) -> Array | str:
        """Return the scores of a group, or why there are none."""
        rows = np.asarray(group)
        kept = np.setdiff1d(np.arange(size), rows)
        seed = stream(fit_seed, "fold", number)
        try:
            with isolated(seed):
                rest = (
                    program.without_rows(plate, rows, size, imputed) if tied else program_at(kept)
                )
                refit = method.run(rest, seed, False)
                require_complete(refit.findings)
                held_out = program if tied else program_at(rows)
                proposal: Proposal | None = getattr(refit, "proposal", None)
                if proposal is not None and proposal.local:
                    return _evidence_of_rows(held_out, proposal, len(rows), tied)
                elements = Elements(refit.structure, fresh=[] if tied else [plate])
                scored = predictive.log_likelihood(
                    held_out, discover(held_out), refit.tensors(), elements, quiet=True
                )
        except ProbdlError as error:
            return str(error)
        if scored.missing:
            return "there is no log likelihood of single rows"
        total = np.zeros(len(rows))
        for name, log_likelihood in scored.points.items():
            mean = predictive.log_mean_exp(log_likelihood)
            pooled = scored.plan.get(name)
            if pooled and not pooled.whole and pooled.plates:
                if plate not in pooled.plates:
                    return f"discrete sites tie rows of the plate '{plate}' together"
                mean = mean.movedim(pooled.plates.index(plate), 0)
            if mean.ndim < 1 or len(mean) != (size if tied else len(rows)):
                return f"a term of the likelihood does not run along the plate '{plate}'"
            mean = mean[torch.as_tensor(rows)] if tied else mean
            total += mean.reshape(len(rows), -1).sum(1).numpy()
        return total

    results = parallel_map(
        score_group,
        groups,
        workers=workers,
        executor=executor,
        description="refitting",
        progress=progress,
    )
    scores = []
    for number, result in enumerate(results):
        if isinstance(result, str):
            raise ModelError(
                f"The fit without group {number} of the rows failed: {result.removesuffix('.')}."
            )
        scores.append(result)
    return scores


def _evidence_of_rows(held_out: Program, proposal: Proposal, count: int, tied: bool) -> Array | str:
    """Return the log evidence of held-out rows, over whose latent sites the guide integrates."""
    if tied:
        names = ", ".join(map(repr, proposal.local))
        return (
            f"the rows depend on one another, and the guide would compute {names} from the rows "
            "that are held out. Fit by method='nuts'"
        )
    evidence = log_evidence(
        held_out, discover(held_out), proposal, EVIDENCE_DRAWS, progress=False
    ).pointwise
    if evidence.size != count:
        return "its rows share latent sites, so there is no evidence of single rows"
    return np.asarray(evidence, np.float64)


def _at_rows(program: Program, rows: Any, size: int) -> Program:
    """Return a program on some rows of its data, in arguments that have as many rows."""
    index = torch.as_tensor(np.asarray(rows))
    tensors = program.tensors()
    return program.with_tensors([t[index] if t.ndim and len(t) == size else t for t in tensors])


def _are_tied(fit: Any, plate: str, size: int) -> bool:
    """Return whether rows must stay in their places, as the times of a series.

    They must if no argument has them as its rows; if the model has other latent sites on fewer
    rows; if the likelihood of other rows changes when the first is removed, as it does where the
    model counts them; or if the latent values of one row change the likelihood of others.
    """
    program, structure = fit.program, fit.structure
    if not any(t.ndim and len(t) == size for t in program.tensors()):
        return True
    rest = _at_rows(program, np.arange(1, size), size)
    try:
        fewer = discover(rest).sites
    except ProbdlError:
        return True
    for site in structure.of("latent"):
        other = fewer.get(site.name)
        if other is None or _without(site, plate) != _without(other, plate):
            return True
    local = [s for s in structure.of("latent") if plate in s.dims]
    draw = {name: value[:1] for name, value in fit.tensors().items()}
    proposal: Proposal | None = getattr(fit, "proposal", None)
    if proposal is not None and proposal.local:
        with isolated(stream(fit.seed, "codes")):
            draw |= encode(program, structure, proposal, 1)
    if _changes_others(fit, rest, draw, local, plate, size):
        return True
    return bool(local) and size > 2 and _affects_others(fit, draw, local, plate, size)


def _without(site: Site, plate: str) -> list[int]:
    """Return the shape of a site without the dimension of a plate."""
    return [n for dim, n in zip(site.dims, site.shape, strict=True) if dim != plate]


def _changes_others(
    fit: Any,
    rest: Program,
    whole: Mapping[str, Tensor],
    local: Sequence[Site],
    plate: str,
    size: int,
) -> bool:
    """Return whether the rows after the first have another likelihood without it."""
    fewer = dict(whole)
    for site in local:
        if site.name in whole:
            fewer[site.name] = whole[site.name].narrow(site.dims.index(plate) + 1, 1, size - 1)
    try:
        with isolated(stream(fit.seed, "remove")):
            of_all = predictive.log_likelihood(fit.program, fit.structure, whole, quiet=True)
            of_rest = predictive.log_likelihood(rest, discover(rest), fewer, quiet=True)
    except ProbdlError:
        return True
    for name, value in of_all.points.items():
        axes = [d for d, n in enumerate(value.shape[1:], 1) if n == size]
        if not axes or name not in of_rest.points:
            continue
        expected = value.narrow(axes[0], 1, size - 1)
        found = of_rest.points[name]
        if found.shape == expected.shape and not torch.allclose(
            found, expected, rtol=1e-9, atol=1e-9, equal_nan=True
        ):
            return True
    return False


def _affects_others(
    fit: Any, draws: Mapping[str, Tensor], local: Sequence[Site], plate: str, size: int
) -> bool:
    """Return whether exchanging the latent values of two rows changes those of other rows."""
    two = [0, size // 2]  # not neighbours, whose exchange leaves running sums after them
    order = torch.arange(size)
    order[two] = order[two[::-1]]
    exchanged = dict(draws)
    for site in local:
        axis = site.dims.index(plate) + 1  # after the draws
        if site.name in draws:
            exchanged[site.name] = draws[site.name].index_select(axis, order)
    with isolated(stream(fit.seed, "exchange")):
        before, after = (
            predictive.log_likelihood(fit.program, fit.structure, values, quiet=True).points
            for values in (draws, exchanged)
        )
    others = torch.ones(size, dtype=torch.bool)
    others[two] = False
    for name, value in before.items():
        axes = [d for d, n in enumerate(value.shape[1:], 1) if n == size]
        if not axes:
            continue
        one, other = (x.movedim(axes[0], 0)[others] for x in (value, after[name]))
        if not torch.allclose(one, other, rtol=1e-9, atol=1e-9, equal_nan=True):
            return True
    return False


def _check_all_data(program: Program) -> None:
    if program.loader is not None:
        raise SettingError(
            "Refitting without single rows needs all the data at once, but they came from a "
            "DataLoader. Fit the data themselves, with batch_size=."
        )


def cross_validate(
    fit: Any,
    k: int,
    *,
    workers: int | None = None,
    executor: Any = None,
    progress: bool | None = None,
) -> CrossValidation:
    """Cross-validate a fit with k random folds; see ``Fit.cross_validate``."""
    check_int("cross_validate", k=(k, 2))
    check_workers("cross_validate", workers, executor)
    check_progress("cross_validate", progress)
    _check_all_data(fit.program)
    _, size = data_plate(fit.program, fit.structure)
    if not 2 <= k <= size:
        raise SettingError(
            f"k={k} folds are not possible: k must be between 2 and the number of rows, {size}."
        )
    order = np.random.default_rng(stream(fit.seed, "folds")).permutation(size)
    groups = [np.sort(part) for part in np.array_split(order, k)]
    scores = score_held_out(fit, groups, workers=workers, executor=executor, progress=progress)
    if len(scores) < k:
        raise KeyboardInterrupt
    pointwise, folds = np.empty(size), np.empty(size, np.int64)
    for number, (rows, group_scores) in enumerate(zip(groups, scores, strict=True)):
        pointwise[rows], folds[rows] = group_scores, number
    scored = np.zeros(size, bool)
    for site in fit.structure.terms():
        kept = site.is_scored
        scored |= True if kept is None else kept.reshape(size, -1).any(1).numpy()
    error = math.sqrt(scored.sum()) * float(pointwise[scored].std(ddof=1))
    elpd = float(pointwise[scored].sum())
    return CrossValidation(elpd, error, np.where(scored, pointwise, np.nan), folds)
