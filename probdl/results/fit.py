"""``Fit``: what ``infer`` returns for every method."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import CapabilityError, DataError, ModelError, ProbdlError, SettingError, warn
from probdl.findings import Finding, Findings
from probdl.io.arrays import write_arrays
from probdl.io.folders import folder_path
from probdl.io.idata import (
    dataset,
    dimensions,
    escaped,
    good_k,
    labels,
    loo,
    pareto_k,
    summary,
    to_idata,
    variables,
    with_group,
)
from probdl.io.idata import groups as group_names
from probdl.io.mixing import mcse_mean
from probdl.io.saving import save
from probdl.model import predictive, streaming
from probdl.model.discrete import observations
from probdl.model.elements import Elements, check_labels
from probdl.model.encoding import check_new, check_order
from probdl.model.imputation import imputed_plates
from probdl.model.loader import MissingLoader
from probdl.model.preparing import uses_codes_as_numbers
from probdl.model.program import Program
from probdl.model.sites import Site, Structure, data_plate, discover
from probdl.model.without_model import WithoutModel
from probdl.results import display, table
from probdl.results.causes import by_cause
from probdl.results.classes import (
    OF_CLASSES,
    check_classes,
    classes_of,
    in_one_class,
    name_codes,
    observed_by,
)
from probdl.results.container import (
    as_numpy,
    assemble,
    data_groups,
    of_observed,
    predicted,
    prior_groups,
)
from probdl.results.crossvalidation import CrossValidation, cross_validate
from probdl.results.diagnostics import check_draws
from probdl.results.discrete import draw_discrete
from probdl.results.labels import Labels, labels_at
from probdl.results.loo import check_moment_matching, matched, warn_of_high_k
from probdl.results.masking import nan_masked, put_back, without_masked, zero_masked
from probdl.results.report import write_report
from probdl.util.cached import cached
from probdl.util.isolation import isolated, sheltered
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import xarray as xr
from probdl.util.seeds import stream
from probdl.util.settings import check_flag, check_int
from probdl.util.suggestions import suggest

__all__ = ["Fit", "FittedBy", "LogPredictive", "as_numpy"]

Array = NDArray[Any]

# Entries of `stats` that become ArviZ's sample stats, under ArviZ's names.
_SAMPLE_STATS = (
    "lp",
    "acceptance_rate",
    "diverging",
    "energy",
    "n_steps",
    "step_size",
    "tree_depth",
    "reached_max_treedepth",
)
_PRIOR_DRAWS = 500
_OF_OBSERVED_SITES = {"observed_data", "posterior_predictive", "prior_predictive"}
# Groups of the container that are no attributes of the fit, and where they are.
_GROUPS = {name: f"idata.{name}" for name in ("sample_stats", "observed_data", "constant_data")} | {
    name: f"to_idata(prior=True).{name}" for name in ("prior", "prior_predictive")
}


class FittedBy(Protocol):
    """The part of a method that a fit uses: its name."""

    name: ClassVar[str]


@dataclass(frozen=True)
class LogPredictive:
    """The log posterior predictive density of data, in nats (Eq. 2 as a density).

    Attributes:
        pointwise: log p(y_i | data) by observed site or factor, each with the batch shape.
        total: the sum of all pointwise values, which is the log score of independent predictions.
        joint: log p(y | data) of all observations together; it differs from the sum, since the
            observations share the draws.
        count: the number of observations without the masked ones, whose pointwise value is NaN.
        joint_standard_error: the Monte Carlo standard error of ``joint``, by the delta method; NaN
            of a point estimate. If it is above 0.3, few draws carry the mean over draws, and
            ``joint`` tends to be too low: score fewer observations at a time.
    """

    pointwise: dict[str, Array]
    total: float
    joint: float
    count: int
    joint_standard_error: float = math.nan

    def __repr__(self) -> str:
        count = self.count
        mean = self.total / count if count else math.nan
        known = not math.isnan(self.joint_standard_error)
        error = f" ± {self.joint_standard_error:.2g}" if known else ""
        return (
            f"LogPredictive(total={self.total:.2f}, mean={mean:.4f} over {count} observations, "
            f"joint={self.joint:.2f}{error})"
        )


@dataclass(frozen=True, repr=False)
class Fit:
    """A model fitted to data.

    Some methods return a subclass that can do more: :class:`GuidedFit` and
    :class:`AdversarialFit`.

    Attributes:
        method: the method, with its settings.
        program: the model with its arguments.
        structure: the sites of the model.
        draws: by site name, arrays (chain, draw, *site shape), float64. A point estimate is a
            fit with one draw.
        stats: results that are specific to the method. Sample stats have ArviZ's names and the
            shape (chain, draw).
        seed: the seed that reproduces this fit.
        findings: the findings of the method; ``diagnose()`` adds those of the draws.
        coords: labels of dimensions, by dimension.
        dims: names of dimensions, by site.
        timings: seconds by part: ``"compile"``, ``"sampling"`` …, and ``"total"``, the wall-clock
            time of the whole call of ``infer``, its checks included.
    """

    # For each method that a subclass adds, what it needs; see `__init_subclass__`.
    _capabilities: ClassVar[dict[str, str]] = {}

    method: FittedBy
    program: Program
    structure: Structure
    draws: dict[str, Array]
    stats: dict[str, Any]
    seed: int
    findings: Sequence[Finding] = ()
    coords: Mapping[str, Any] = field(default_factory=dict)
    dims: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return int(next(iter(self.draws.values())).shape[0])

    @property
    def num_draws(self) -> int:
        """Number of draws per chain."""
        return int(next(iter(self.draws.values())).shape[1])

    @property
    def is_point(self) -> bool:
        """Whether this is a point estimate, which has a single draw."""
        return self.num_chains * self.num_draws == 1

    def __init_subclass__(cls, needs: str = "", **options: Any) -> None:
        """Register what a fit must have for the methods that the subclass adds.

        Args:
            needs: a noun and a remedy, for the error of other fits:
                ``"guide; Fit by method='svi'."``.
            options: passed to the superclass.
        """
        super().__init_subclass__(**options)
        if needs:
            added = {name for name, value in vars(cls).items() if callable(value)} - {*dir(Fit)}
            public = [name for name in added if not name.startswith("_")]
            Fit._capabilities.update(dict.fromkeys(public, needs))

    def __getattr__(self, name: str) -> Any:
        """Raise an error that says which fits have this method."""
        if name in Fit._capabilities:
            what, _, remedy = Fit._capabilities[name].partition("; ")
            raise CapabilityError(
                f"A fit by {self.method.name} has no {what}, which {name}() needs. {remedy}"
            )
        if name in _GROUPS:
            raise AttributeError(
                f"A fit has no attribute {name!r}. It is a group of the ArviZ container: "
                f"fit.{_GROUPS[name]}."
            )
        # Python's own error, which may come from inside a property of this name.
        return object.__getattribute__(self, name)

    # -- reading the posterior ------------------------------------------------------------

    def summary(
        self,
        var_names: str | Sequence[str] | None = None,
        *,
        kind: str | None = None,
        ci_prob: float | None = None,
        ci_kind: str | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Return a table with one row per scalar.

        For draws this is ArviZ's table (mean, sd, interval, Monte Carlo standard error, effective
        sample size, R-hat). For a point estimate it has the estimate, its standard error and its
        Wald interval; of a network without standard errors it has one row for each layer, with the
        shape, the mean and the standard deviation of its weights. Arguments and columns are those
        of ArviZ 1, also under ArviZ 0.x.

        Args:
            var_names: the sites; None means all.
            kind: ``"all"``, ``"stats"`` or ``"diagnostics"``, also with ``_median`` at the end.
                None means all, and ``"stats"`` for independent draws, which have no R-hat.
            ci_prob: the probability of the interval; None means 0.89, or as set in ArviZ 1. A
                point estimate has 95% intervals.
            ci_kind: ``"eti"`` (equal tails, the default) or ``"hdi"`` (highest density).
            options: passed to ``arviz.summary``; ``hdi_prob=p`` stands for
                ``ci_prob=p, ci_kind="hdi"``.

        Raises:
            SettingError: there is no such site, or ArviZ rejects an option.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit.summary().index.tolist()
            ['mu']
        """
        given: dict[str, Any] = {"ci_prob": ci_prob, "ci_kind": ci_kind, **options}
        given = {name: value for name, value in given.items() if value is not None}
        if kind is not None:
            given["kind"] = kind
        if given and self.is_point:
            raise SettingError(
                f"summary({', '.join(given)}=) is for fits with draws. A point estimate has its "
                "standard error and interval, whose probability is a setting of the method "
                "(ci_prob=); select sites by var_names=."
            )
        if var_names is not None and "filter_vars" in given:
            given["var_names"] = var_names
        elif var_names is not None:
            names = self._selected([var_names] if isinstance(var_names, str) else var_names)
            if self.is_point:
                return self._point_summary(None, names)
            given["var_names"] = [
                name if name in self._posterior.posterior else escaped(name) for name in names
            ]
        if given and not self.is_point:
            try:
                options = {"kind": self._kind, **given}
                return summary(self._posterior, **options)
            except Exception as error:  # ArviZ checks its arguments late, and in its own ways
                reason = str(error).partition("\n")[0]
                call = ", ".join(f"{name}={value!r}" for name, value in given.items())
                raise SettingError(
                    f"summary({call}) failed in ArviZ: {type(error).__name__}: {reason}. Its "
                    "options are those of arviz.summary."
                ) from error
        return self._full_summary.copy()

    @cached
    def _full_summary(self) -> pd.DataFrame:
        if not self.is_point:
            return summary(self._posterior, kind=self._kind)
        return self._point_summary(None)

    @property
    def _kind(self) -> str:
        return "stats" if self._is_independent else "all"

    def _selected(self, names: Sequence[str]) -> list[str]:
        """Return the sites that these names select, of which ``~name`` leaves one out.

        Raises:
            SettingError: the fit has no such site.
        """
        left_out = [name[1:] for name in names if name.startswith("~")]
        for name in (*left_out, *(name for name in names if not name.startswith("~"))):
            if name not in self.draws:
                raise SettingError(f"The fit has no site {name!r}: {suggest(name, self.draws)}.")
        if left_out:
            return [name for name in self.draws if name not in left_out]
        return list(names)

    def _point_summary(
        self, limit: int | None, names: Collection[str] | None = None
    ) -> pd.DataFrame:
        """Return the first rows of the table of a point estimate; all with None."""
        networks = table.layers(self.structure, self.draws, self.stats)
        hidden = set(networks)
        if names is not None:
            hidden |= {name for name in self.draws if name not in names}
            networks = {name: of for name, of in networks.items() if name in names}
        labels = self._scalar_names(limit, hidden)
        left = None if limit is None else max(0, limit - sum(map(len, labels.values())))
        estimates = {name: self.draws[name][0, 0] for name in labels}
        shown = dict(itertools.islice(networks.items(), left))
        return table.point_rows(estimates, self.stats, labels, shown)

    @cached
    def _summary_head(self) -> tuple[pd.DataFrame, int]:
        """The rows of the summary that are shown, and the number of all rows."""
        limit = display.MAX_SUMMARY_ROWS
        order = self.shown_sites
        scalars = sum(math.prod(a.shape[2:]) for a in self.draws.values())
        if self.is_point:
            networks = table.layers(self.structure, self.draws, self.stats)
            rows = scalars - sum(w.size for w in networks.values()) + len(networks)
            return self._point_summary(limit), rows
        if scalars <= limit:
            sizes = [math.prod(a.shape[2:]) for a in self.draws.values()]
            starts = dict(zip(self.draws, itertools.accumulate([0, *sizes]), strict=False))
            places = [
                starts[name] + i for name in order for i in range(self.draws[name][0, 0].size)
            ]
            return self._full_summary.iloc[places], scalars
        lead = (self.num_chains, self.num_draws)
        networks = table.random_layers(self.structure, self.draws)
        shown = {
            label: self.draws[name].reshape(*lead, -1)[..., i]
            for name, labels in self._scalar_names(limit, set(networks)).items()
            for i, label in enumerate(labels)
        }
        parts = [summary(to_idata({"posterior": shown}), kind=self._kind)] if shown else []
        if networks:
            some = dict(itertools.islice(networks.items(), max(1, limit - len(shown))))
            parts.append(table.layer_rows(some, {n: a.shape[2:] for n, a in some.items()}))
        rows = scalars - sum(math.prod(a.shape[2:]) for a in networks.values()) + len(networks)
        return (parts[0] if len(parts) == 1 else pd.concat(parts)), rows

    def _scalar_names(
        self, limit: int | None = None, without: Collection[str] = ()
    ) -> dict[str, list[str]]:
        """Return ArviZ's names of the first scalars, or of all, by site."""
        found: dict[str, list[str]] = {}
        left, coords = limit, self._labels.coords
        for name in self.draws if limit is None else self.shown_sites:
            array = self.draws[name]
            if name in without or left == 0:
                continue
            dims = self._labels.sites.get(name, [])
            names = table.scalar_names(name, array.shape[2:], dims, coords)
            found[name] = list(itertools.islice(names, left))
            left = None if left is None else left - len(found[name])
        return found

    @property
    def posterior(self) -> Any:
        """The draws as a labelled dataset: the group ``posterior`` of ``idata``.

        ``fit["mu"]`` is its variable ``mu``, an ``xarray.DataArray``.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit["mu"].dims, [*fit.posterior.data_vars]
            (('chain', 'draw'), ['mu'])
        """
        return dataset(self._posterior, "posterior")

    def __getitem__(self, name: str) -> Any:
        """Return the draws of a site as an ``xarray.DataArray``; see :attr:`posterior`."""
        if not isinstance(name, str) or name not in self.draws:
            raise KeyError(f"The fit has no site {name!r}: {suggest(str(name), self.draws)}.")
        held = self.posterior
        return held[name if name in held else escaped(name)]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the sites."""
        return iter(self.draws)

    @cached
    def idata(self) -> Any:
        """The fit as an ArviZ container: ``InferenceData`` (0.x) or ``DataTree`` (1.x).

        Groups: posterior, sample_stats (if the method has any), log_likelihood, log_prior,
        posterior_predictive, observed_data and constant_data. A group that is not available for
        the model, such as the pointwise log likelihood of a hidden Markov model, is omitted with
        a warning. ``to_idata(prior=n)`` adds the prior.

        Masked observations are not in these groups: a site ``y`` with a mask has the dimension
        ``y_observed`` there. A masked element of an observed vector is NaN. A ``pyro.factor`` in a
        plate is a variable of the log likelihood, with one observation for each of its elements.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit.idata.posterior["mu"].dims
            ('chain', 'draw')
        """
        return self.to_idata()

    @sheltered()
    def to_idata(
        self,
        *,
        prior: int | bool = False,
        predictive: bool = True,
        predictions: xr.Dataset | None = None,
    ) -> Any:
        """Return the ArviZ container, optionally with draws from the prior, and predictions.

        Args:
            prior: number of draws from the prior and the prior predictive; True means 500.
            predictive: whether to add the log likelihood and the posterior predictive, which have
                one number per observation and draw.
            predictions: what :meth:`predictions` returned, for the group of this name.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit.to_idata(prior=50).prior["mu"].shape
            (1, 50)
        """
        if not isinstance(prior, bool):
            check_int("to_idata", prior=(prior, 1))
        check_flag("to_idata", predictive=predictive)
        groups: dict[str, Mapping[str, Array]] = {"posterior": self.draws}
        groups["sample_stats"] = {k: self.stats[k] for k in _SAMPLE_STATS if k in self.stats}
        observed = self.whole.of("observed")
        makers = {
            "log_likelihood": self.log_likelihood if self._has_row_scores else dict,
            "log_prior": self.log_prior if self._has_prior else dict,
            "posterior_predictive": self.posterior_predictive if observed else dict,
        }
        for group, make in makers.items() if predictive else ():
            try:
                arrays = make()
            except ProbdlError as error:
                warn(f"The group '{group}' was omitted from idata: {error}")
                continue
            drawn = self.draws if group == "posterior_predictive" else {}
            own = {k: v for k, v in arrays.items() if k not in drawn}
            groups[group] = (
                self._scores_without_masked(own, 2)
                if group == "log_likelihood"
                else of_observed(self.whole.sites, own, 2)
            )
        if prior is not False:
            with isolated(stream(self.seed, "prior")):
                groups |= prior_groups(
                    self.program,
                    self.structure,
                    self.whole,
                    _PRIOR_DRAWS if prior is True else prior,
                )
        if predictions is not None and not hasattr(predictions, "data_vars"):
            raise SettingError(
                f"to_idata(predictions=) takes what predictions() returned, and got a "
                f"{type(predictions).__name__}."
            )
        groups |= data_groups(self.program, self.structure, self.whole)
        return with_group(self._to_idata(groups), "predictions", predictions)

    def _scores_without_masked(self, points: Mapping[str, Array], lead: int) -> dict[str, Array]:
        """Drop masked observations from pointwise log likelihoods."""
        return {
            name: without_masked(self.observations[name], array, lead, event=False)
            for name, array in points.items()
        }

    @cached
    def whole(self) -> Structure:
        """The sites of the model with the data of all rows.

        ``structure`` has those of the first batch if the data came from a DataLoader.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> fit = probdl.infer(normal_normal, np.ones(3), np.zeros(3), method="map", seed=1)
            >>> fit.whole.sites["y"].count
            3
        """
        return streaming.whole(self.program, self.structure)

    @property
    def shown_sites(self) -> list[str]:
        """The names of the sites in the order in which a fit is shown.

        Scalars come first, then vectors, then what is computed from others.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import eight_schools
            >>> fit = probdl.infer(eight_schools, np.ones(3), np.zeros(3), method="map", seed=1)
            >>> fit.shown_sites
            ['mu', 'tau', 'theta_trans', 'theta']
        """
        return sorted(self.draws, key=self._place)

    @cached
    def _posterior(self) -> Any:
        return self._to_idata({"posterior": self.draws})

    @cached
    def observations(self) -> dict[str, Site]:
        """What the pointwise log likelihoods are of, by name: their dimensions, masks and counts.

        Most are sites of ``whole``. Terms that a discrete site ties together have one log
        likelihood, along the plates that are left.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> fit = probdl.infer(normal_normal, np.ones(3), np.zeros(3), method="map", seed=1)
            >>> fit.observations["y"].count
            3
        """
        if not self.structure.of("discrete"):
            return observations(self.whole, {})
        if isinstance(self.program, WithoutModel):
            return self._stored_observations()
        program = self.program.with_arguments(self.program.args, self.program.kwargs)
        with isolated(stream(self.seed, "score")):
            plan = predictive.plan_log_likelihood(program, self.structure, self.tensors())
        return observations(self.whole, plan)

    def _stored_observations(self) -> dict[str, Site]:
        """Return the observations of a saved container; the masks of pooled ones are not saved."""
        dims = dimensions(self.idata, "log_likelihood")
        found = {}
        for name, array in variables(self.idata, "log_likelihood").items():
            site, own, shape = self.structure.sites.get(name), dims[name][2:], array.shape[2:]
            if site is None or (own and not own[0].startswith(f"{name}_observed")):
                site = Site(
                    name, "observed", shape, (*own,), torch.empty(0), count=math.prod(shape)
                )
            found[name] = site
        return found

    def _to_idata(self, groups: Mapping[str, Mapping[str, Array]]) -> Any:
        scores = self.observations if groups.get("log_likelihood") else {}
        stored = isinstance(self.program, WithoutModel)  # then the container has the dimensions
        container = assemble(
            groups,
            self._labels,
            self.structure if {*groups} == {"posterior"} else self.whole,
            scores=scores,
            pooled_dims=self._stored_dims if stored else None,
        )
        for group in _OF_OBSERVED_SITES & {*group_names(container)}:
            name_codes(container[group], self.program, self.structure.of("observed"))
        return container

    def _stored_dims(
        self, pooled: Mapping[str, Site], coords: dict[str, Any]
    ) -> dict[str, list[str | None]]:
        """Return the dimensions of log likelihoods in the saved container; add their labels."""
        names = {dim for site in pooled.values() for dim in site.dims}
        coords |= {n: v for n, v in labels(self.idata).items() if n in names}
        return {name: list(site.dims) for name, site in pooled.items()}

    @cached
    def _labels(self) -> Labels:
        return Labels(self.structure, self.dims, self.coords)

    # -- predicting -----------------------------------------------------------------------

    @sheltered()
    def predict(
        self,
        *args: Any,
        num_samples: int | None = None,
        out: str | os.PathLike[str] | None = None,
        coords: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Draw from the posterior predictive distribution at new arguments (Eq. 2).

        Groups that the fit has seen keep their posterior draws, and new groups are drawn from the
        population. Groups are the elements of a plate; they are matched by label if the fit has
        labels of the plate and ``coords`` has those at the new arguments, and by position
        otherwise, with a warning if their number differs.

        Args:
            args: the model's arguments. Observed ones can be omitted if their default is None;
                observed sites are drawn in any case.
            num_samples: number of rows to draw if no arguments are given; None means as many
                rows as the data have.
            out: a folder for predictions that are larger than the memory. The arrays are written
                there, each as ``<site>.npy``, a few draws at a time, and returned memory-mapped.
            coords: labels at the new arguments by dimension, to be matched with the ``coords`` of
                the fit.
            kwargs: the model's keyword arguments.

        Returns:
            The observed and deterministic sites by name, and sites that exist at these arguments
            only, as arrays (chain, draw, *shape at these arguments). The same call returns the
            same draws.

        Raises:
            ModelError: the model does not run on these arguments.
            SettingError: the predictions do not fit into memory, or cannot be written; or the
                labels do not match the model.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import linear_regression
            >>> x = np.random.default_rng(0).normal(size=(30, 2))
            >>> y = np.random.default_rng(1).normal(size=30)
            >>> fit = probdl.infer(linear_regression, x, y, method="laplace", seed=1)
            >>> fit.predict(np.zeros((5, 2)))["y"].shape
            (1, 1000, 5)
        """
        check_labels("predict", coords)
        if out is not None:
            out = folder_path(out)
        if num_samples is not None:
            check_int("predict", num_samples=(num_samples, 1))
            if args or kwargs or coords:
                raise SettingError(
                    f"num_samples={num_samples!r} cannot be combined with arguments of the model, "
                    "which already determine the number of rows."
                )
            plate, size = data_plate(self.program, self.structure)
            fresh = [plate] if num_samples != size else []
            rows = self._rows(num_samples)
            return self._sample(rows, out, self._elements(self.program, fresh=fresh))
        if not args and not kwargs and not coords:
            if out is not None and self.program.loader is not None:
                raise SettingError(
                    "out= writes predictions at arguments of the model. Pass those of a part of "
                    "the DataLoader's rows, and a folder for each part."
                )
            return self.posterior_predictive() if out is None else self._sample(self.program, out)
        program = self.program
        if args or kwargs:
            program = self._program_at(args, kwargs)
            program.check_finite(exempt=self.program.not_finite())
        return self._sample(program, out, self._elements(program, coords))

    def predictions(
        self,
        *args: Any,
        num_samples: int | None = None,
        coords: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> xr.Dataset:
        """Return the draws of ``predict`` as a labelled ``xarray.Dataset``.

        Dimensions have the names of the plates, as in ``idata``. Rows are labelled by ``coords``,
        and groups those of the fit. ``fit.to_idata(predictions=dataset)`` adds the dataset to the
        container as ArviZ's group ``predictions``.

        Args:
            args: the model's arguments, see :meth:`predict`.
            num_samples: number of rows to draw if no arguments are given.
            coords: labels at these arguments by dimension. Labels of dimensions that have labels in
                the fit are also matched with them.
            kwargs: the model's keyword arguments.

        Returns:
            A dataset with the dimensions (chain, draw, *dimensions of the site) for each site.

        Raises:
            SettingError: there is no such dimension, or it has another length.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import linear_regression
            >>> x = np.random.default_rng(0).normal(size=(30, 2))
            >>> y = np.random.default_rng(1).normal(size=30)
            >>> fit = probdl.infer(linear_regression, x, y, method="laplace", seed=1)
            >>> days = fit.predictions(np.zeros((2, 2)), coords={"obs": ["Mon", "Tue"]})
            >>> days["y"].sel(obs="Tue").dims
            ('chain', 'draw')
        """
        check_labels("predictions", coords)
        given = dict(coords or {})
        program, structure = self._at(args, kwargs)
        matched_labels = {dim: of for dim, of in given.items() if dim in self.coords}
        draws = self.predict(
            *args, num_samples=num_samples, coords=matched_labels or None, **kwargs
        )
        labels = self._labels_at(program, structure, given, fresh=num_samples is not None)
        result = predicted(draws, labels, given, matched_labels)
        name_codes(result, self.program, self.structure.of("observed"))
        return result

    def _labels_at(
        self, program: Program, structure: Structure, given: Mapping[str, Any], *, fresh: bool
    ) -> Labels:
        """Return the names and labels of dimensions of the model at other arguments."""
        coords = dict(self.coords)
        if program is not self.program or fresh:  # the rows are others
            rows = self._elements(self.program).rows
            coords = {dim: of for dim, of in coords.items() if dim not in rows}
            coords |= labels_at(program, self.program, self.dims, self.coords, given)
        return Labels(structure, self.dims, coords | dict(given))

    @property
    def classes(self) -> dict[str, list[Any]]:
        """The classes of each categorical observed site, in the order of ``predict_proba``.

        They are the categories of the data, or the values of the distribution.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import logistic_regression
            >>> x, y = np.linspace(-2, 2, 40)[:, None], np.repeat(["no", "yes"], 20)
            >>> fit = probdl.infer(logistic_regression, x, y, method="laplace", seed=1)
            >>> fit.classes
            {'y': ['no', 'yes']}
        """
        return {
            site.name: classes_of(self.program, site)
            for site in self.structure.of("observed")
            if site.distribution in OF_CLASSES and not site.event_dim
        }

    @sheltered()
    def predict_proba(
        self, *args: Any, coords: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Array]:
        r"""Return the posterior predictive probability of each class (Eq. 2).

        .. math:: p(\tilde y = k | y) = \frac1S \sum_s p(\tilde y = k | \theta_s)

        The average is of probabilities, not of drawn labels, so that it has less noise than
        frequencies of ``predict``.

        Args:
            args: the model's arguments; if none are given, those of the fit. Observed ones are not
                used.
            coords: labels at these arguments, see :meth:`predict`.
            kwargs: the model's keyword arguments.

        Returns:
            By observed site with classes, the probabilities (*batch shape at these arguments,
            classes); the classes are ``fit.classes``.

        Raises:
            ModelError: no observed site has a finite number of classes, or the data of one are
                not an argument of the model with default None.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import logistic_regression
            >>> x = np.linspace(-2, 2, 40)[:, None]
            >>> y = (x[:, 0] > 0).astype(int)
            >>> fit = probdl.infer(logistic_regression, x, y, method="laplace", seed=1)
            >>> fit.predict_proba(np.array([[-2.0], [2.0]]))["y"].argmax(-1)
            array([0, 1])
        """
        check_labels("predict_proba", coords)
        program, structure = self._at(args, kwargs)
        observed = self.structure.of("observed")
        sites = [site for site in observed if site.name in self.classes] or observed
        if not sites:
            raise ModelError("The model observes no site, so there are no classes to predict.")
        if program.loader is None:
            return {site.name: self._proba(program, site, coords) for site in sites}
        parts = [*streaming.parts(program, structure)]
        return {
            site.name: np.concatenate([self._proba(part, site, coords) for part in parts])
            for site in sites
        }

    def _proba(self, program: Program, site: Site, coords: Mapping[str, Any] | None) -> Array:
        """Return the probabilities of the classes of an observed site (*batch shape, classes)."""
        argument = observed_by(self.program, site)
        if argument is None:
            raise ModelError(
                f"The data of site '{site.name}' are no argument of the model, so they cannot "
                "be set to each class. Pass them to the model: def model(x, y=None)."
            )
        elements = self._elements(program, coords)
        scores = [
            self._score(at, discover(at), elements).pointwise[site.name]
            for at in in_one_class(program, site.name, argument)
        ]
        return np.exp(np.stack(scores, -1))

    @sheltered()
    def posterior_predictive(self) -> dict[str, Array]:
        """Draw replicates of the data: ``predict`` at the arguments of the fit.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit.posterior_predictive()["y"].shape
            (1, 1000, 3)
        """
        if stored := self._stored("posterior_predictive"):
            return self._put_back(stored, np.nan)
        return self._sample(self.program)

    @sheltered()
    def discrete(
        self,
        *args: Any,
        num_samples: int | None = None,
        coords: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        r"""Draw the discrete latent sites, which were summed out, from their exact posterior.

        .. math:: z \sim p(z | y, \theta), \qquad \theta \sim p(\theta | y)

        These are the labels of a mixture, the states of a hidden Markov model, or the place of a
        change point. The share of draws in which a site has a value estimates the probability of
        the value.

        Args:
            args: the model's arguments with the observed data; if none are given, those of the
                fit.
            num_samples: number of draws; None means one for each draw of the fit, and 1000 for a
                point estimate.
            coords: labels at these arguments, see :meth:`predict`.
            kwargs: the model's keyword arguments.

        Returns:
            By site name, arrays (chain, draw, *shape); (1, num_samples, *shape) if
            ``num_samples`` is given or the fit is a point estimate.

        Raises:
            ModelError: the model has no discrete latent site, or continuous ones in the data plate.
            SettingError: ``num_samples`` is less than 1, or labels do not match the model.

        Example:
            >>> import torch, pyro, pyro.distributions as dist, probdl
            >>> def mixture(y):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("rows", len(y)):
            ...         label = pyro.sample("label", dist.Bernoulli(0.5))
            ...         pyro.sample("y", dist.Normal(mean + 9 * label, 1.0), obs=y)
            >>> fit = probdl.infer(mixture, torch.tensor([0.0, 9.0, 0.1]), method="laplace", seed=1)
            >>> fit.discrete()["label"].mean((0, 1)).round()
            array([0., 1., 0.])
        """
        check_labels("discrete", coords)
        if num_samples is not None:
            check_int("discrete", num_samples=(num_samples, 1))
        program, structure = self._at(args, kwargs)
        with isolated(stream(self.seed, "discrete")):
            drawn = draw_discrete(
                program, structure, self.tensors(), self._elements(program, coords), num_samples
            )
        arrays = {name: as_numpy(value) for name, value in drawn.items()}
        lead = (1, -1) if num_samples or self.is_point else (self.num_chains, self.num_draws)
        return {name: value.reshape(lead + value.shape[1:]) for name, value in arrays.items()}

    def _stored(self, group: str) -> dict[str, Array]:
        """Return a group of the saved container, if the fit was loaded without model or loader."""
        missing = isinstance(self.program.loader, MissingLoader)
        if not (missing or isinstance(self.program, WithoutModel)):
            return {}
        stored = variables(self.idata, group)
        for name, array in stored.items():
            of_draws = array.shape[:2] == (self.num_chains, self.num_draws)
            if array.dtype.kind not in "biuf" or not of_draws or not array.size:
                raise DataError(
                    f"'{name}' in the group {group} of the fit's container has dtype "
                    f"{array.dtype} and shape {array.shape}, which are not those of "
                    f"{self.num_chains} chains of {self.num_draws} draws. Save the fit again."
                )
        return stored

    def _put_back(
        self, stored: dict[str, Array], fill: float, *, event: bool = True
    ) -> dict[str, Array]:
        """Undo ``_without_masked``; without its loader, a fit does not know what was masked."""
        if self.program.loader is not None:
            return stored
        sites = self.structure.sites if event else self.observations
        try:
            return {n: put_back(sites[n], v, 2, fill, event=event) for n, v in stored.items()}
        except (KeyError, IndexError, ValueError) as error:  # it may be of any origin
            raise DataError(
                f"The container of the fit does not match its sites ({type(error).__name__}: "
                f"{error}). Save the fit again."
            ) from None

    def _elements(
        self,
        program: Program,
        coords: Mapping[str, Any] | None = None,
        *,
        fresh: Sequence[str] = (),
    ) -> Elements:
        """Return how the elements of the model at other arguments match those of this fit."""
        if program is not self.program and program.encodings:
            own = labels_at(program, self.program, self.dims, self.coords, coords or {})
            coords = own | dict(coords or {})
        if program is not self.program:
            fresh = [*fresh, *imputed_plates(self.program, self.structure, program)]
        return Elements(
            self.structure,
            dims=self._labels.sites,
            labels=self.coords,
            new_labels=coords,
            fresh=fresh,
        )

    def _sample(
        self,
        program: Program,
        out: str | os.PathLike[str] | None = None,
        elements: Elements | None = None,
    ) -> dict[str, Array]:
        elements = elements or self._elements(program)
        with isolated(stream(self.seed, "predictive")):
            draws = self.tensors()
            discrete = self.structure.of("discrete")
            common = [s.name for s in discrete if elements.is_shared(s)]
            loaded = self.program.loader is not None  # then there are no groups but the rows
            if common and not loaded:  # drawn given the data, as other sites that rows share
                found = predictive.sample_discrete(self.program, self.structure, draws)
                draws |= {name: found[name] for name in common}
            if out is None:
                given = common if program is self.program and loaded else ()
                sampled = streaming.sample(program, self.structure, draws, elements, given)
                return self._arrays(sampled)
            parts = predictive.sample_parts(program, self.structure, draws, elements)
            return write_arrays(out, parts, (self.num_chains, self.num_draws))

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
            FindingWarning: k-hat is high for some observations.

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
        warn_of_high_k(result, moment_match)
        return result

    @staticmethod
    def _flat(points: Mapping[str, Array], lead: int) -> Array:
        """Join arrays (*lead shape, *batch shape) by site to (*lead shape, observations)."""
        flat = [array.reshape(*array.shape[:lead], -1) for array in points.values()]
        return np.concatenate(flat, -1)

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

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> score = fit.log_predictive(np.ones(2), np.array([1.0, 20.0]))
            >>> bool(score.pointwise["y"][0] > score.pointwise["y"][1])
            True
        """
        check_labels("log_predictive", coords)
        program, structure = self._data_at(args, kwargs)
        if (args or kwargs) and not structure.terms():
            raise ModelError(
                f"The model '{program.name}' observes no site at these arguments, so there is "
                "nothing to score. Pass the observed data too, or use predict()."
            )
        return self._score(program, structure, self._elements(program, coords))

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
        return LogPredictive(
            {name: nan_masked(sites[name], v) for name, v in pointwise.items()},
            math.nan if scored.missing else total,
            float(predictive.log_mean_exp(scored.joint)),
            sum(site.count for site in sites.values())
            + sum(structure.sites[name].count for name in scored.missing),
            self._relative_error(scored.joint),
        )

    def _relative_error(self, log_values: Tensor) -> float:
        """Return the standard error of log(mean(exp(log_values))) over the draws."""
        shape = (self.num_chains, self.num_draws)
        values = np.exp(as_numpy(log_values - log_values.max())).reshape(shape)
        return float(mcse_mean(values)) / float(values.mean())

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

    def tensors(self) -> dict[str, Tensor]:
        """Return the latent and param sites as tensors (chain * draw, *site shape).

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit.tensors()["mu"].shape
            torch.Size([1000])
        """
        count = self.num_chains * self.num_draws
        names = {s.name for s in self.structure.of("latent", "param")}
        held = {
            s.name: s.value.expand((count, *s.shape))
            for s in self.structure.of("param")
            if s.name not in self.draws
        }
        return held | {
            name: torch.from_numpy(np.ascontiguousarray(array)).reshape(count, *array.shape[2:])
            for name, array in self.draws.items()
            if name in names
        }

    def _arrays(self, values: Mapping[str, Tensor]) -> dict[str, Array]:
        lead = (self.num_chains, self.num_draws)
        return {name: as_numpy(v).reshape(lead + v.shape[1:]) for name, v in values.items()}

    @property
    @sheltered()
    def model(self) -> Any:
        """The fitted model: a copy of the user's, with the parameters of this fit."""
        return self.program.model

    def _at(self, args: Any, kwargs: Any) -> tuple[Program, Structure]:
        """Return the program at other arguments, and its sites there."""
        if not args and not kwargs:
            return self.program, self.structure
        program = self._program_at(args, kwargs)
        return program, discover(program)

    def _data_at(self, args: Any, kwargs: Any) -> tuple[Program, Structure]:
        """Return the program at data to be scored, and its sites there.

        Raises:
            DataError: the data have classes that the fit does not know.
        """
        program, structure = self._at(args, kwargs)
        check_classes(self.program, program, self.structure.of("observed"))
        return program, structure

    def _program_at(self, args: Any, kwargs: Any) -> Program:
        """Return the program at other arguments, whose categories fit those of the data.

        Raises:
            DataError: they do not.
        """
        fitted = self.program
        program = fitted.with_arguments(args, kwargs)
        observed = {observed_by(fitted, site) for site in self.structure.of("observed")}

        def is_number(name: str) -> bool:
            return name not in observed and uses_codes_as_numbers(fitted, name, self.structure)

        check_new(fitted.encodings, program.encodings, is_number)
        check_order(fitted.arguments, program.arguments, program.encodings, fitted.encodings)
        return program

    def _rows(self, count: int) -> Program:
        """Return the program on this number of rows, repeating its data."""
        return streaming.first_rows(self.program, self.structure, count)

    # -- saving --------------------------------------------------------------------------

    @sheltered()
    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the fit to a folder; :func:`probdl.load` reads it.

        The folder holds ``idata.nc``, which ArviZ opens directly, ``arrays.safetensors``
        (parameters, stats, the data) and ``fit.json`` (method and settings, seed, versions, the
        location of the model and a hash of its source, a fingerprint of the data, timings).
        Nothing is pickled. If the process is killed or the disk is full, the folder holds either
        the previous fit or this one.

        Args:
            folder: created if it does not exist; a fit in it is replaced.

        Returns:
            The folder.

        Raises:
            SettingError: the folder cannot be written.

        Example:
            >>> import numpy as np, probdl, tempfile
            >>> from probdl.models import normal_normal
            >>> fit = probdl.infer(normal_normal, np.ones(3), np.zeros(3), method="map", seed=1)
            >>> sorted(file.name for file in fit.save(tempfile.mkdtemp()).iterdir())
            ['arrays.safetensors', 'fit.json', 'idata.nc']
        """
        return save(self, folder)

    @sheltered()
    def report(self, file: str | os.PathLike[str]) -> Path:
        """Write a report of the fit: one HTML page that needs no other file and no network.

        It has the findings, the summary, plots (traces, ranks, intervals, the posterior predictive,
        the ELBO of training, the Pareto k-hat of leave-one-out cross-validation), the source of the
        model, the shapes of the data, the settings, timings and versions.

        Args:
            file: the file to write, such as ``"fit.html"``; it is replaced.

        Returns:
            The file.

        Raises:
            SettingError: the file cannot be written.

        Example:
            >>> import numpy as np, probdl, tempfile
            >>> from probdl.models import normal_normal
            >>> fit = probdl.infer(normal_normal, np.ones(3), np.zeros(3), method="map", seed=1)
            >>> fit.report(tempfile.mkdtemp() + "/fit.html").name
            'fit.html'
        """
        return write_report(self, file)

    # -- checking --------------------------------------------------------------------------

    def cross_validate(
        self, k: int = 10, *, workers: int | None = None, progress: bool | None = None
    ) -> CrossValidation:
        r"""Estimate the predictive accuracy for new data by k-fold cross-validation.

        .. math:: \mathrm{elpd} = \sum_i \log p(y_i | y_{-\mathrm{fold}(i)})

        The rows of the data plate are assigned to k folds at random, and the model is fitted to
        the data without each fold in turn. Rows that others depend on, such as the times of a
        series, stay in their places, and their observations do not count in the likelihood.

        Args:
            k: number of folds; the number of rows gives leave-one-out cross-validation.
            workers: number of processes; None means one per core.
            progress: whether to show progress; None means only on a terminal.

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
        return cross_validate(self, k, workers=workers, progress=progress)

    def diagnose(self) -> Findings:
        """Return all findings: what was seen, why it matters, and what to try.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> print(fit.diagnose())
            no findings
        """
        return self._all_findings

    @cached
    def _all_findings(self) -> Findings:
        if self.is_point:
            return Findings(self.findings)
        of_draws = check_draws(
            self._posterior,
            self.num_chains,
            independent=self._is_independent,
            low_rank=self.stats.get("mass_matrix") in ("low_rank", "dense"),
        )
        known = {finding.check for finding in self.findings} & {"heavy_tail"}
        return Findings(by_cause([*self.findings, *(f for f in of_draws if f.check not in known)]))

    @property
    def _is_independent(self) -> bool:
        """Whether the draws are independent, so that they have no R-hat."""
        return bool(getattr(self.method, "draws_are_independent", False))

    def _place(self, name: str) -> tuple[bool, bool]:
        """Return where a site is shown: scalars first, and what is computed from others last."""
        site = self.structure.sites.get(name)
        return (site is not None and site.kind == "deterministic", self.draws[name].ndim > 2)

    @property
    def title(self) -> str:
        """One line that names the model, the method and the size of the fit."""
        sites = self.structure.sites
        computed = {n for n in self.draws if n in sites and sites[n].kind == "deterministic"}
        scalars = sum(math.prod(a.shape[2:]) for n, a in self.draws.items() if n not in computed)
        size = (
            "a point estimate"
            if self.is_point
            else f"{self.num_chains} chain{'s' * (self.num_chains > 1)} of {self.num_draws} draws"
        )
        return f"Fit of '{self.program.name}' by {self.method!r}: {size} of {scalars} scalars"

    def __repr__(self) -> str:
        return display.as_text(self.title, self._facts(), *self._summary_head, self.diagnose())

    def _repr_html_(self) -> str:
        size = "point estimate" if self.is_point else f"{self.num_chains} × {self.num_draws} draws"
        facts = [f"{size}, seed {self.seed}", *self._facts()]
        return display.as_html(
            self.program.name,
            repr(self.method),
            facts,
            *self._summary_head,
            self.diagnose(),
            self._sketch(),
        )

    def _sketch(self) -> str:
        """Return a small plot: the trace of the first scalar in each chain."""
        name = self.shown_sites[0]
        draws = self.draws[name]
        if self.is_point or not draws[0, 0].size:
            return ""
        return display.sketched(draws.reshape(*draws.shape[:2], -1)[..., 0], f"draws of {name}")

    def _facts(self) -> list[str]:
        """Return lines about how the fit was made, for those of training."""
        return []
