"""``Fit``: what ``infer`` returns for every method."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from probdl.errors import CapabilityError, ProbdlError, SettingError, warn
from probdl.findings import Findings
from probdl.io.idata import (
    dataset,
    escaped,
    has_default_interval,
    summary,
    summary_of_many,
    to_idata,
    unescaped,
    with_group,
)
from probdl.io.saving import save
from probdl.results import display, table
from probdl.results.causes import by_cause
from probdl.results.container import data_groups, of_observed, prior_groups
from probdl.results.diagnostics import check_draws
from probdl.results.predictions import PredictingFit
from probdl.results.report import write_report
from probdl.util.cached import cached
from probdl.util.isolation import isolated, sheltered
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import xarray as xr
from probdl.util.seeds import stream
from probdl.util.settings import check_flag, check_int
from probdl.util.suggestions import suggest

__all__ = ["Fit"]

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
MANY_SCALARS = 200  # for which ArviZ's summary takes a second
# Groups of the container that are no attributes of the fit, and where they are.
_GROUPS = {name: f"idata.{name}" for name in ("sample_stats", "observed_data", "constant_data")} | {
    name: f"to_idata(prior=True).{name}" for name in ("prior", "prior_predictive")
}


@dataclass(frozen=True, repr=False)
class Fit(PredictingFit):
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
        if self.is_point:
            return self._point_summary(None)
        scalars = sum(math.prod(a.shape[2:]) for a in self.draws.values())
        if scalars < MANY_SCALARS or not has_default_interval():
            return summary(self._posterior, kind=self._kind)
        return summary_of_many(self.draws, self._scalar_names(), self._kind)

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
        networks = self._layers(shown=limit is not None)
        hidden = set(networks)
        if names is not None:
            hidden |= {name for name in self.draws if name not in names}
            networks = {name: of for name, of in networks.items() if name in names}
        labels = self._scalar_names(limit, hidden)
        left = None if limit is None else max(0, limit - sum(map(len, labels.values())))
        estimates = {name: self.draws[name][0, 0] for name in labels}
        shown = dict(itertools.islice(networks.items(), left))
        return table.point_rows(estimates, self.stats, labels, shown)

    def _layers(self, shown: bool) -> dict[str, Array]:
        """Return the parameters that have a row for each layer, all networks' in what is shown."""
        errors = {} if shown else self.stats.get("standard_error", {})
        return table.layers(self.structure, self.draws, errors)

    @cached
    def _summary_head(self) -> tuple[pd.DataFrame, int]:
        """The rows of the summary that are shown, and the number of all rows."""
        limit = display.MAX_SUMMARY_ROWS
        order = self.shown_sites
        scalars = sum(math.prod(a.shape[2:]) for a in self.draws.values())
        if self.is_point:
            networks = self._layers(shown=True)
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
        for part in parts:
            part.index = [unescaped(label) for label in part.index]
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
        posterior_predictive, observed_data and constant_data. The log likelihood is left out if
        rows have latent sites of their guide, as in a VAE, and the log prior of a point estimate.
        A group that cannot be computed, such as the pointwise log likelihood of a hidden Markov
        model, is left out with a warning. ``to_idata(prior=n)`` adds the prior.

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
        if self.is_point and not hasattr(self.method, "chains"):
            return Findings(self.findings)
        of_draws = check_draws(
            self.draws,
            self.num_chains,
            independent=self._is_independent,
            low_rank=self.stats.get("mass_matrix") in ("low_rank", "dense"),
        )
        # Draws with such weights, of which a few are repeated, say nothing about the tails.
        if {finding.check for finding in self.findings} & {"heavy_tail", "pareto_k"}:
            of_draws = [finding for finding in of_draws if finding.check != "heavy_tail"]
        return Findings(by_cause([*self.findings, *of_draws]))

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
