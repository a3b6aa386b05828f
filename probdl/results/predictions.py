"""Predictions of a fit (Eq. 2)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.errors import ModelError, SettingError, warn
from probdl.io.arrays import write_arrays
from probdl.io.folders import folder_path
from probdl.model import predictive, streaming
from probdl.model.elements import Elements, check_labels
from probdl.model.program import Program
from probdl.model.sites import Site, Structure, data_plate, discover
from probdl.results.classes import OF_CLASSES, classes_of, in_one_class, name_codes, observed_by
from probdl.results.container import as_numpy, predicted, with_integers
from probdl.results.discrete import draw_discrete
from probdl.results.labels import Labels, check_dims, labels_at
from probdl.results.scores import ScoredFit
from probdl.util.isolation import isolated, sheltered
from probdl.util.lazy import xarray as xr
from probdl.util.seeds import stream
from probdl.util.settings import check_int

__all__ = ["PredictingFit"]

Array = NDArray[Any]


@dataclass(frozen=True, repr=False)
class PredictingFit(ScoredFit):
    """A fit with draws of observed sites, and the probabilities of classes, see ``Fit``."""

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
            only, as arrays (chain, draw, *shape at these arguments); counts and classes are
            integers. The same call returns the same draws. A point estimate has one draw, and so
            one draw of the data.

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
        coords = check_labels("predict", coords)
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
        dims: Mapping[str, Sequence[str]] | None = None,
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
            dims: names of dimensions by site, such as of a forecast, which the fit does not have.
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
        coords = check_labels("predictions", coords)
        given = dict(coords or {})
        program, structure = self._at(args, kwargs)
        dims = {} if dims is None else dims
        check_dims(structure, {name: site.shape for name, site in structure.sites.items()}, dims)
        matched_labels = {dim: of for dim, of in given.items() if dim in self.coords}
        draws = self.predict(
            *args, num_samples=num_samples, coords=matched_labels or None, **kwargs
        )
        fresh = num_samples is not None
        labels = self._labels_at(program, structure, given, {**self.dims, **dims}, fresh=fresh)
        result = predicted(draws, labels, given, matched_labels)
        name_codes(result, self.program, self.structure.of("observed"))
        return result

    def _labels_at(
        self,
        program: Program,
        structure: Structure,
        given: Mapping[str, Any],
        dims: Mapping[str, Sequence[str | None]],
        *,
        fresh: bool,
    ) -> Labels:
        """Return the names and labels of dimensions of the model at other arguments."""
        sizes = Labels(structure, dims, {}).sizes
        coords = {d: of for d, of in self.coords.items() if sizes.get(d, len(of)) == len(of)}
        if fresh or not self._has_rows_of_fit(program):
            rows = self._elements(self.program).rows
            coords = {dim: of for dim, of in coords.items() if dim not in rows}
            coords |= labels_at(program, self.program, dims, self.coords, given)
        return Labels(structure, dims, coords | dict(given))

    def _has_rows_of_fit(self, program: Program) -> bool:
        """Return whether arguments are the data of the fit, such as with another horizon."""
        if program is self.program:
            return True
        own = dict(self.program.named_data())
        pairs = [(own[name], now) for name, now in program.named_data() if name in own]
        return bool(pairs) and all(
            before.shape == now.shape
            and torch.equal(before.double().nan_to_num(), now.double().nan_to_num())
            for before, now in pairs
        )

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
        coords = check_labels("predict_proba", coords)
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
            self._warn_of_masked(stored)
            return self._put_back(stored, np.nan)
        return self._sample(self.program)

    def _warn_of_masked(self, stored: Mapping[str, Array]) -> None:
        """Warn that a container has no predictions of observations that were left out."""
        if self.program.loader is not None:  # what was masked is not known, and not put back
            return
        sites = [self.structure.sites[n] for n in stored if n in self.structure.sites]
        masked = {s.name: int((~s.mask).sum()) for s in sites if s.mask is not None}
        for name, count in masked.items():
            if count:
                warn(
                    f"{count} elements of '{name}' were left out of the fit, and the saved fit has "
                    "no predictions of them, so they are NaN. Load it with its model to predict "
                    "them: probdl.load(folder, model=...)."
                )

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
        coords = check_labels("discrete", coords)
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
                return with_integers(self.structure.sites, self._arrays(sampled))
            parts = predictive.sample_parts(program, self.structure, draws, elements)
            return write_arrays(out, parts, (self.num_chains, self.num_draws))
