"""Scores of a fit: log likelihoods, and how well it predicts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import DataError, FindingWarning, ModelError, SettingError, warn
from probdl.findings import PARETO_K_MAX
from probdl.io.idata import good_k, loo, pareto_k, to_idata
from probdl.io.mixing import mcse_mean
from probdl.io.pareto import psis
from probdl.model import predictive, streaming
from probdl.model.discrete import observations
from probdl.model.elements import Elements, check_labels
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.results.container import as_numpy
from probdl.results.crossvalidation import CrossValidation, cross_validate
from probdl.results.lagged import sites_given_others
from probdl.results.loo import (
    check_moment_matching,
    matched,
    warn_of_high_k,
    warn_of_one_observation,
)
from probdl.results.masking import nan_masked, without_masked, zero_masked
from probdl.results.state import FitState
from probdl.util.isolation import isolated, sheltered
from probdl.util.seeds import stream
from probdl.util.settings import check_flag

__all__ = ["JointScore", "LogPredictive", "ScoredFit"]

Array = NDArray[Any]


class JointScore(NamedTuple):
    """The log density of several observations together, and its Monte Carlo standard error.

    The error is by the delta method; NaN of a point estimate. It is inf if so few draws carry the
    mean over draws (Pareto k-hat above 0.7) that no error is known: the value tends to be too low.
    Score fewer observations at a time.
    """

    value: float
    standard_error: float

    def __str__(self) -> str:
        if math.isnan(self.standard_error):
            return f"{self.value:.2f}"
        if math.isinf(self.standard_error):
            return f"{self.value:.2f}, unreliable"
        return f"{self.value:.2f} ± {self.standard_error:.2g}"


@dataclass(frozen=True)
class LogPredictive:
    """The log posterior predictive density of data, in nats (Eq. 2 as a density).

    Attributes:
        pointwise: log p(y_i | data) by observed site or factor, each with the batch shape.
        total: the sum of all pointwise values, which is the log score of independent predictions.
        joint: log p(y | data) of all observations together; it differs from the sum, since the
            observations share the draws.
        count: the number of observations without the masked ones, whose pointwise value is NaN.
        joint_standard_error: the Monte Carlo standard error of ``joint``, see ``JointScore``.
        joints: the joint scores of the observations of each site alone, such as those of a
            forecast, without the past.
        pareto_k: the Pareto k-hat of each row if latent sites of the row were integrated out by
            importance sampling; None otherwise.
    """

    pointwise: dict[str, Array]
    total: float
    joint: float
    count: int
    joint_standard_error: float = math.nan
    joints: dict[str, JointScore] = field(default_factory=dict)
    pareto_k: Array | None = None

    def __repr__(self) -> str:
        count = self.count
        mean = self.total / count if count else math.nan
        joint = JointScore(self.joint, self.joint_standard_error)
        sites = {f"joints[{name!r}]": of for name, of in self.joints.items()}
        shown = {"joint": joint} | (sites if len(sites) > 1 else {})
        joints = ", ".join(f"{name}={of}" for name, of in shown.items())
        return (
            f"LogPredictive(total={self.total:.2f}, mean={mean:.4f} over {count} observations, "
            f"{joints})"
        )


@dataclass(frozen=True, repr=False)
class ScoredFit(FitState):
    """A fit with the log densities of its data and its draws, see ``Fit``."""

    def _scores_without_masked(self, points: Mapping[str, Array], lead: int) -> dict[str, Array]:
        """Drop masked observations from pointwise log likelihoods."""
        return {
            name: without_masked(self.observations[name], array, lead, event=False)
            for name, array in points.items()
        }

    @sheltered()
    def log_likelihood(self) -> dict[str, Array]:
        """Return the pointwise log likelihood, in nats, (chain, draw, *batch shape) by site.

        The sites are the observed ones, and each ``pyro.factor`` in a plate. Masked observations
        have the log likelihood 0; ``idata`` leaves them out.

        Raises:
            ModelError: there is no log likelihood of single observations.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit.log_likelihood()["y"].shape
            (1, 1000, 3)
        """
        if stored := self._stored("log_likelihood"):
            return self._put_back(stored, 0.0, event=False)
        with isolated(stream(self.seed, "score")):
            scored = streaming.log_likelihood(self.program, self.structure, self.tensors())
        self._require(scored.missing)
        points = self._arrays(scored.points)
        if not scored.plan:
            return points
        return {name: zero_masked(self.observations[name], v) for name, v in points.items()}

    @sheltered()
    def log_prior(self) -> dict[str, Array]:
        """Return the log density of the prior, in nats, (chain, draw, *batch shape) by site.

        The sites are the latent ones, each given the others, and each ``pyro.factor`` that is no
        term of the likelihood. ``az.psense_summary(fit.idata)`` of ArviZ 1 uses it; pass it
        ``prior_var_names`` to leave out the sites of groups, such as ``theta_trans`` below.

        Raises:
            ModelError: the fit has no draws of some latent sites, or a prior depends on a discrete
                site.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import eight_schools
            >>> sigma, y = np.full(3, 10.0), np.array([1.0, 20.0, 3.0])
            >>> method = probdl.Laplace(draws=100)
            >>> fit = probdl.infer(eight_schools, sigma, y, method=method, seed=1)
            >>> {name: array.shape for name, array in fit.log_prior().items()}
            {'mu': (1, 100), 'tau': (1, 100), 'theta_trans': (1, 100, 3)}
        """
        if stored := self._stored("log_prior"):
            return stored
        if not self._has_prior:
            raise ModelError(
                "The fit has no draws of the latent sites of the model, so there is no log prior."
            )
        program = self.program.with_arguments(self.program.args, self.program.kwargs)
        with isolated(stream(self.seed, "score")):
            return self._arrays(predictive.log_prior(program, self.structure, self.tensors()))

    @property
    def _has_prior(self) -> bool:
        """Whether the fit has several draws of all latent sites."""
        latent = {s.name for s in self.structure.of("latent")}
        return bool(latent) and latent <= set(self.draws) and not self.is_point

    @sheltered()
    def loo(self, *, moment_match: bool = False) -> Any:
        r"""Estimate the predictive accuracy by Pareto-smoothed leave-one-out cross-validation.

        .. math:: \mathrm{elpd}_{loo} = \sum_i \log p(y_i | y_{-i})

        This is ``az.loo`` of all terms of the likelihood together, observed sites and factors.
        Where a term is given other observations, as :math:`p(y_t | y_{t-1})` is in an
        autoregression, the term is left out, and the observation stays a predictor of the next one.

        Args:
            moment_match: whether to shift and scale the draws for observations with a high Pareto
                k-hat (``az.loo_moment_match`` of ArviZ 1), which evaluates the density and the
                likelihood at up to 30 moved copies of the draws for each of them.

        Returns:
            ArviZ's ``ELPDData``, with pointwise values.

        Raises:
            ModelError: there is no log likelihood of single observations.
            SettingError: the fit is a point estimate, or moment matching is not available.

        Warns:
            FindingWarning: k-hat is high for some observations, or there is only one.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> int(fit.loo().n_data_points)
            3

        Source: Vehtari, Gelman and Gabry, "Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC" (2017); Paananen, Piironen, Bürkner and Vehtari, "Implicitly
        adaptive importance sampling" (2021).
        """
        if self.is_point:
            raise SettingError(
                f"This fit is a point estimate by {self.method.name}, but PSIS-LOO needs posterior "
                "draws. Use fit.cross_validate() or another method."
            )
        check_flag("loo", moment_match=moment_match)
        if moment_match:
            check_moment_matching(self.program)
        points = self._scores_without_masked(self.log_likelihood(), 2)
        if not points:
            raise DataError("The fit has no log likelihood of single observations.")
        groups: dict[str, Mapping[str, Array]] = {"posterior": self.draws}
        if len(points) == 1:
            ((name, _),) = points.items()
            container = self._to_idata(groups | {"log_likelihood": points})
        else:
            name = "observations"
            labels = [
                f"{site}[{', '.join(map(str, i))}]" if i else site
                for site, array in points.items()
                for i in np.ndindex(*array.shape[2:])
            ]
            joined = {name: self._flat(points, 2)}
            container = to_idata(
                groups | {"log_likelihood": joined},
                dims={name: ["observation"]},
                coords={"observation": labels},
            )
        result = loo(container, name)
        if moment_match and (pareto_k(result) > good_k(result)).any():
            result = matched(
                self.program,
                self.structure,
                self.tensors(),
                lambda terms: self._flat(self._scores_without_masked(terms, 1), 1),
                container,
                name,
                result,
            )
        warn_of_one_observation(result)
        warn_of_high_k(result, moment_match)
        return result

    @sheltered()
    def log_predictive(
        self, *args: Any, coords: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> LogPredictive:
        r"""Return the log posterior predictive density of data (Eq. 2 as a density).

        .. math:: \log p(\tilde y | y) = \log \frac1S \sum_s p(\tilde y | \theta_s)

        If a guide draws latent sites of each row, as that of a VAE, they are integrated out by
        importance sampling with 100 draws from it, see ``log_evidence``; ``pointwise`` then has one
        value for each row, under the name of the data plate.

        Args:
            args: the model's arguments with the observed data; if none are given, those of the
                fit.
            coords: labels at these arguments, see :meth:`predict`.
            kwargs: the model's keyword arguments.

        Raises:
            ModelError: the model does not run on these arguments, or observes nothing there.

        Warns:
            FindingWarning: few draws carry the joint score.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> score = fit.log_predictive(np.ones(2), np.array([1.0, 20.0]))
            >>> bool(score.pointwise["y"][0] > score.pointwise["y"][1])
            True
        """
        coords = check_labels("log_predictive", coords)
        program, structure = self._data_at(args, kwargs)
        if (args or kwargs) and not structure.terms():
            raise ModelError(
                f"The model '{program.name}' observes no site at these arguments, so there is "
                "nothing to score. Pass the observed data too, or use predict()."
            )
        score = self._score(program, structure, self._elements(program, coords))
        self._check_score(score)
        return score

    def _given_others(self) -> list[str]:
        """List the observed sites whose terms are given other observations, see ``compare``."""
        if self.program.loader is not None:
            return []
        names = [site.name for site in self.structure.terms()]
        given = sites_given_others(self, names)
        return [name for name in names if name in given]

    def _check_score(self, score: LogPredictive) -> None:
        """Warn of scores that few draws carry."""
        each = {f"joints[{n!r}]": of for n, of in score.joints.items()}
        unknown = [n for n, of in each.items() if math.isinf(of.standard_error)]
        new = [f"joints[{n!r}]" for n in score.joints if n not in self.structure.sites]
        if math.isinf(score.joint_standard_error):
            unknown.insert(0, "joint")
        # What is scored at new sites, such as a forecast, is not the past, which the fit has seen.
        if unknown and (not new or {*new} & {*unknown}):
            others = ["total", "pointwise", *(n for n in each if n not in unknown)]
            warn(
                f"Few draws carry {' and '.join(unknown)}, the score of all observations together "
                f"(Pareto k-hat above {PARETO_K_MAX}), so it is uncertain and tends to be too low; "
                f"{', '.join(others)} are not affected. Score fewer observations at a time, or use "
                "more draws.",
                FindingWarning,
            )

    def _score(self, program: Program, structure: Structure, elements: Elements) -> LogPredictive:
        with isolated(stream(self.seed, "score")):
            scored = streaming.log_likelihood(program, structure, self.tensors(), elements)
        structure = structure if program.loader is None else self.whole
        sites = observations(structure, scored.plan)
        pointwise = {
            k: zero_masked(sites[k], as_numpy(predictive.log_mean_exp(v)))
            for k, v in scored.points.items()
        }
        total = sum(float(v.sum()) for v in pointwise.values())
        joint = self._joint(scored.joint)
        joints = {n: self._joint(v.reshape(len(v), -1).sum(1)) for n, v in scored.points.items()}
        return LogPredictive(
            {name: nan_masked(sites[name], v) for name, v in pointwise.items()},
            math.nan if scored.missing else total,
            joint.value,
            sum(site.count for site in sites.values())
            + sum(structure.sites[name].count for name in scored.missing),
            joint.standard_error,
            joints,
        )

    def _joint(self, log_values: Tensor) -> JointScore:
        """Return log(mean(exp(log_values))) over the draws."""
        shape = (self.num_chains, self.num_draws)
        values = np.exp(as_numpy(log_values - log_values.max())).reshape(shape)
        error = float(mcse_mean(values)) / float(values.mean())
        if not self.is_point and psis(as_numpy(log_values))[1] > PARETO_K_MAX:
            error = math.inf
        return JointScore(float(predictive.log_mean_exp(log_values)), error)

    @property
    def _has_row_scores(self) -> bool:
        """Whether there is a log likelihood of rows given the draws."""
        return bool(self.structure.terms())

    def _require(self, missing: Collection[str]) -> None:
        """Raise an error that says why terms have no log likelihood of single observations."""
        if joint := [s.name for s in self.structure.terms("joint")]:
            raise ModelError(
                f"{', '.join(map(repr, joint))}: a factor outside all plates is one number, so "
                "there is no log likelihood of single observations. Put it in a pyro.plate, with "
                "one element for each observation, or use log_predictive().joint."
            )
        if missing:
            raise ModelError(
                f"{', '.join(map(repr, missing))}: the observations depend on one another through "
                "a discrete site, so there is no pointwise log likelihood. Use "
                "log_predictive().joint, which scores them together."
            )

    def cross_validate(
        self,
        k: int = 10,
        *,
        workers: int | None = None,
        executor: Any = None,
        progress: bool | None = None,
    ) -> CrossValidation:
        r"""Estimate the predictive accuracy for new data by k-fold cross-validation.

        .. math:: \mathrm{elpd} = \sum_i \log p(y_i | y_{-\mathrm{fold}(i)})

        The rows of the data plate are assigned to k folds at random, and the model is fitted to
        the data without each fold in turn. Rows that others depend on, such as the times of a
        series, stay in their places, and their observations do not count in the likelihood; those
        of an autoregression remain predictors of later ones, as in ``loo``.

        Args:
            k: number of folds; the number of rows gives leave-one-out cross-validation.
            workers: number of processes; None means one per core.
            executor: runs the fits in the place of processes of this machine: a
                ``concurrent.futures.Executor``, or a Dask ``Client``. The results are the same.
            progress: whether to show progress; None means only on a terminal and in a notebook.

        Raises:
            SettingError: k is not between 2 and the number of rows.
            ModelError: the model has no data plate, or a fit fails.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> type(fit.cross_validate(3, workers=1)).__name__
            'CrossValidation'
        """
        return cross_validate(self, k, workers=workers, executor=executor, progress=progress)
