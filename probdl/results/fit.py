"""``Fit``: what ``infer`` returns, whatever the method."""

from __future__ import annotations

import copy
import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import ModelError, ProbdlError, SettingError, warn
from probdl.findings import Finding, Findings
from probdl.io.arrays import write_arrays
from probdl.io.idata import summary, to_idata, unclashed, variables
from probdl.io.saving import save
from probdl.model import predictive
from probdl.model.program import Program, WithoutModel
from probdl.model.sites import Structure, data_plate, discover
from probdl.results import latent
from probdl.results.crossvalidation import CrossValidation, cross_validate
from probdl.results.diagnostics import check_draws
from probdl.results.divergence import Divergence, estimate_divergence
from probdl.results.latent import Elbo, LogEvidence, Proposal
from probdl.util.cached import cached
from probdl.util.isolation import isolated, sheltered
from probdl.util.lazy import pandas as pd
from probdl.util.seeds import stream

__all__ = ["Fit", "LogPredictive"]

Array = NDArray[Any]

# Sample stats under ArviZ's names; whatever else a method tells stays in `stats` alone.
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


@dataclass(frozen=True)
class LogPredictive:
    """The log posterior predictive density of data, in nats (Eq. 2 as a density).

    Attributes:
        pointwise: log p(y_i | data) by observed site, each of the site's batch shape.
        total: the sum of all pointwise values: the log score for independent predictions.
        joint: log p(y | data), all of y together; not the sum, since the draws are shared.
    """

    pointwise: dict[str, Array]
    total: float
    joint: float

    def __repr__(self) -> str:
        count = sum(a.size for a in self.pointwise.values())
        mean = self.total / count if count else math.nan
        return (
            f"LogPredictive(total={self.total:.2f}, mean={mean:.4f} over {count} observations, "
            f"joint={self.joint:.2f})"
        )


@dataclass(frozen=True, repr=False)
class Fit:
    """A model fitted to data by some method.

    Attributes:
        method: the method, with its settings.
        draws: by site name, arrays (chain, draw, *site shape), float64. A point estimate is a
            fit with one draw.
        stats: what the method alone can tell; sample stats bear ArviZ's names and have the
            shape (chain, draw).
        seed: the seed that repeats this fit.
        proposal: the guide as it was trained, of methods that have one.
        timings: how long the parts took, in seconds: ``"compile"``, ``"sampling"``, ``"total"`` …
    """

    method: Any
    program: Program
    structure: Structure
    draws: dict[str, Array]
    stats: dict[str, Any]
    seed: int
    findings: Sequence[Finding] = ()
    coords: Mapping[str, Any] = field(default_factory=dict)
    dims: Mapping[str, Sequence[str]] = field(default_factory=dict)
    proposal: Proposal | None = None
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_chains(self) -> int:
        """How many chains the draws come in."""
        return int(next(iter(self.draws.values())).shape[0])

    @property
    def num_draws(self) -> int:
        """How many draws each chain has."""
        return int(next(iter(self.draws.values())).shape[1])

    @property
    def is_point(self) -> bool:
        """Whether this is a point estimate: one draw, with standard errors in ``stats``."""
        return self.num_chains * self.num_draws == 1

    # -- reading the posterior ------------------------------------------------------------

    def summary(self, **options: Any) -> pd.DataFrame:
        """Return a table with one row for each scalar.

        Of draws it is ArviZ's (mean, sd, interval, Monte Carlo standard error, effective sample
        size, R-hat), and ``options`` are those of ``arviz.summary``. Of a point estimate it is
        the estimate with its standard error and Wald interval.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit.summary().index.tolist()
            ['mu']
        """
        if not self.is_point:
            return summary(self._posterior, **options)
        labels, columns = self._labels(), ["estimate", "standard_error", "ci_low", "ci_high"]
        sources = [{k: v[0, 0] for k, v in self.draws.items()}] + [
            self.stats.get(column, {}) for column in columns[1:]
        ]
        table = {
            column: np.concatenate(
                [
                    np.broadcast_to(source.get(name, np.nan), self.draws[name].shape[2:]).ravel()
                    for name in self.draws
                ]
            )
            for column, source in zip(columns, sources, strict=True)
        }
        return pd.DataFrame(table, index=[label for of in labels.values() for label in of])

    def _labels(self) -> dict[str, list[str]]:
        """Name each scalar as ArviZ does: ``theta[Choate]``, ``beta[0, 1]``."""
        labels = {}
        for name, array in self.draws.items():
            shape = array.shape[2:]
            dims = self._dims.get(name, [])
            axes = [
                list(self.coords.get(dims[i] or "", range(n)) if i < len(dims) else range(n))
                for i, n in enumerate(shape)
            ]
            labels[name] = [
                f"{name}[{', '.join(str(axes[i][j]) for i, j in enumerate(index))}]"
                if shape
                else name
                for index in np.ndindex(*shape)
            ]
        return labels

    @cached
    def idata(self) -> Any:
        """The fit as an ArviZ container: ``InferenceData`` (0.x) or ``DataTree`` (1.x).

        Groups: posterior, sample_stats (of methods that have some), log_likelihood,
        posterior_predictive, observed_data and constant_data. The group that a model cannot
        give (a pointwise log likelihood where a hidden chain ties the data together) is left
        out with a warning. ``to_idata(prior=n)`` adds the prior.

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
    def to_idata(self, *, prior: int | bool = False, predictive: bool = True) -> Any:
        """Make the ArviZ container; with ``prior`` draws of the prior and its predictive.

        Args:
            prior: how many draws; True means 500.
            predictive: whether to add the log likelihood and the posterior predictive, which have
                a number for each observation and draw.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit.to_idata(prior=50).prior["mu"].shape
            (1, 50)
        """
        groups: dict[str, Mapping[str, Array]] = {"posterior": self.draws}
        groups["sample_stats"] = {k: self.stats[k] for k in _SAMPLE_STATS if k in self.stats}
        observed = self.structure.of("observed")
        makers = {
            "log_likelihood": self.log_likelihood,
            "posterior_predictive": self.posterior_predictive,
        }
        for group, make in makers.items() if observed and predictive else ():
            try:
                arrays = make()
            except ProbdlError as error:
                warn(f"idata has no group {group}: {error}")
                continue
            groups[group] = {k: v for k, v in arrays.items() if k not in self.draws}
        if prior:
            groups |= self._prior(_PRIOR_DRAWS if prior is True else prior)
        groups["observed_data"] = {s.name: _numpy(s.value) for s in observed}
        constant = dict(self.program.named_data())
        groups["constant_data"] = {
            k: _numpy(v)
            for k, v in constant.items()
            if not any(v.shape == s.value.shape and torch.equal(v, s.value) for s in observed)
        }
        return self._to_idata(groups)

    def _prior(self, count: int) -> dict[str, dict[str, Array]]:
        with isolated(stream(self.seed, "prior")):
            values = predictive.sample_prior(self.program, self.structure, count)
        arrays = {name: _numpy(value)[None] for name, value in values.items()}
        names = {s.name for s in self.structure.of("observed")}
        return {
            "prior": {k: v for k, v in arrays.items() if k not in names},
            "prior_predictive": {k: v for k, v in arrays.items() if k in names},
        }

    @cached
    def _posterior(self) -> Any:
        return self._to_idata({"posterior": self.draws})

    def _to_idata(self, groups: Mapping[str, Mapping[str, Array]]) -> Any:
        return to_idata(groups, dims=self._dims, coords=self.coords)

    @cached
    def _dims(self) -> dict[str, list[str | None]]:
        dims: dict[str, Sequence[str | None]] = {
            s.name: s.dims for s in self.structure.sites.values()
        }
        # An argument with the length of a plate runs along it, as far as anyone can tell.
        plates: dict[int, set[str]] = {}
        for site in self.structure.of("observed"):
            for dim, size in zip(site.dims, site.shape, strict=True):
                if dim is not None:
                    plates.setdefault(size, set()).add(dim)
        for name, value in self.program.named_data():
            if name not in dims and value.ndim and len(plates.get(len(value), ())) == 1:
                dims[name] = (*plates[len(value)],) + (None,) * (value.ndim - 1)
        names = [*dims, *(name for name, _ in self.program.named_data())]
        return unclashed(dims, names) | {k: list(v) for k, v in self.dims.items()}

    # -- predicting -----------------------------------------------------------------------

    @sheltered()
    def predict(
        self,
        *args: Any,
        num_samples: int | None = None,
        out: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Draw from the posterior predictive distribution at new arguments (Eq. 2).

        Args:
            args: the model's arguments, without the observed ones (they have the default None),
                or with any: observed sites are drawn anew. Of a fit by GAN, the number of
                samples may be the one argument.
            num_samples: without arguments, how many rows of data to draw; None means as many as
                the data have.
            out: a folder; the arrays are written there, each as ``<site>.npy``, a few draws at a
                time, and returned memory-mapped: predictions that are larger than the memory.
            kwargs: the model's keyword arguments.

        Returns:
            By name, the sites that were observed and the deterministic ones, as arrays
            (chain, draw, *shape at these arguments). The same call gives the same draws.

        Raises:
            ModelError: the model does not run on these arguments.
            SettingError: the predictions do not fit into memory, or cannot be written.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import linear_regression
            >>> x = np.random.default_rng(0).normal(size=(30, 2))
            >>> y = np.random.default_rng(1).normal(size=30)
            >>> fit = probdl.infer(linear_regression, x, y, method="laplace", seed=1)
            >>> fit.predict(np.zeros((5, 2)))["y"].shape
            (1, 1000, 5)
        """
        if self.method.name == "gan" and len(args) == 1 and isinstance(args[0], int):
            num_samples, args = args[0], ()
        if num_samples is not None:
            if args or kwargs or num_samples < 1:
                raise SettingError(
                    f"num_samples={num_samples!r} says how many rows to draw, at least 1, in the "
                    "place of the model's arguments; give one or the other."
                )
            return self._sample(self._rows(num_samples), out)
        if not args and not kwargs:
            return self.posterior_predictive() if out is None else self._sample(self.program, out)
        program = self.program.with_arguments(args, kwargs)
        program.check_finite()
        return self._sample(program, out)

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
            return stored
        return self._sample(self.program)

    def _stored(self, group: str) -> dict[str, Array]:
        """Return a group of the container that a fit without its model was loaded with."""
        if not isinstance(self.program, WithoutModel):
            return {}
        return variables(self.idata, group)

    def _sample(
        self, program: Program, out: str | os.PathLike[str] | None = None
    ) -> dict[str, Array]:
        with isolated(stream(self.seed, "predictive")):
            draws = self.tensors()
            common = [s.name for s in self.structure.of("discrete") if not any(s.dims)]
            if common:  # one for all the data, so it keeps what the data told of it
                found = predictive.sample_discrete(self.program, self.structure, draws)
                draws |= {name: found[name] for name in common}
            if out is None:
                return self._arrays(predictive.sample(program, self.structure, draws))
            parts = predictive.sample_parts(program, self.structure, draws)
            return write_arrays(out, parts, (self.num_chains, self.num_draws))

    @sheltered()
    def log_likelihood(self) -> dict[str, Array]:
        """Return the pointwise log likelihood, in nats, (chain, draw, *batch shape) by site.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> fit.log_likelihood()["y"].shape
            (1, 1000, 3)
        """
        if self._local:
            raise ModelError(
                f"the latent sites {', '.join(map(repr, self._local))} belong to one row of the "
                "data each, and are integrated over by fit.log_evidence()."
            )
        if stored := self._stored("log_likelihood"):
            return stored
        with isolated(stream(self.seed, "score")):
            points, _ = predictive.log_likelihood(self.program, self.structure, self.tensors())
        self._require(points)
        return self._arrays(points)

    @sheltered()
    def log_predictive(self, *args: Any, **kwargs: Any) -> LogPredictive:
        r"""Return the log posterior predictive density of data (Eq. 2 as a density).

        .. math:: \log p(\tilde y | y) = \log \frac1S \sum_s p(\tilde y | \theta_s)

        Args:
            args: the model's arguments with the observed data; none means those of the fit.
            kwargs: the model's keyword arguments.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> sigma, y = np.ones(3), np.array([1.0, 2.0, 3.0])
            >>> fit = probdl.infer(normal_normal, sigma, y, method="laplace", seed=1)
            >>> score = fit.log_predictive(np.ones(2), np.array([1.0, 20.0]))
            >>> bool(score.pointwise["y"][0] > score.pointwise["y"][1])
            True
        """
        program, structure = self._at(args, kwargs)
        if (args or kwargs) and not structure.of("observed", "factor"):
            raise ModelError(
                f"the model '{program.name}' observes no site on these arguments, so there is "
                "nothing to score. Pass the observed data too, or use predict()."
            )
        with isolated(stream(self.seed, "score")):
            if self._local:
                guide, count = self._guide, _EVIDENCE_DRAWS
                evidence = latent.log_evidence(program, structure, guide, count, progress=False)
                plate = data_plate(program, structure)[0]
                return LogPredictive({plate: evidence.pointwise}, evidence.total, evidence.total)
            points, joint = predictive.log_likelihood(program, structure, self.tensors())
        pointwise = {k: _numpy(predictive.log_mean_exp(v)) for k, v in points.items()}
        total = sum(float(v.sum()) for v in pointwise.values())
        return LogPredictive(
            pointwise,
            total if len(pointwise) == len(structure.of("observed")) else math.nan,
            float(predictive.log_mean_exp(joint)),
        )

    def _require(self, points: Mapping[str, Tensor]) -> None:
        missing = [s.name for s in self.structure.of("observed") if s.name not in points]
        if missing:
            raise ModelError(
                f"{', '.join(map(repr, missing))}: a discrete site ties the observations "
                "together, so that none has a log likelihood of its own. log_predictive().joint "
                "scores them together."
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return the latent and param sites with one leading dimension for all draws.

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
        return {name: _numpy(v).reshape(lead + v.shape[1:]) for name, v in values.items()}

    # -- latent variables of rows, through a guide -------------------------------------------

    @sheltered()
    def elbo(self, *args: Any, num_samples: int = 100, **kwargs: Any) -> Elbo:
        r"""Return the evidence lower bound of data, split in two (Eqs. 20 to 22).

        .. math:: E_q[\log p(x_i|z_i)] - KL(q(z_i|x_i) \| p(z_i)) \le \log p(x_i)

        Args:
            args: the model's arguments with the data; none means those of the fit.
            num_samples: how many draws of the latent sites estimate it. KL terms between
                distributions for which torch knows them are exact.
            kwargs: the model's keyword arguments.

        Raises:
            ModelError: the fit has no guide (it is not by SVI), or the model no data plate.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.elbo(x).pointwise.shape
            (32,)
        """
        program, structure = self._at(args, kwargs)
        with isolated(stream(self.seed, "elbo")):
            return latent.elbo(program, structure, self._guide, num_samples)

    @sheltered()
    def log_evidence(
        self, *args: Any, num_samples: int = 1000, progress: bool | None = None, **kwargs: Any
    ) -> LogEvidence:
        r"""Estimate log p(x) by importance sampling from the guide (Eqs. 16 to 19).

        .. math:: \log p(x) \approx \log \frac1K \sum_k p(x, z_k) / q(z_k|x)

        It is the importance-weighted bound: too low on average, by less the larger K is.

        Args:
            args: the model's arguments with the data; none means those of the fit.
            num_samples: K, how many draws of the latent sites.
            progress: whether to show progress; None shows it on a terminal.
            kwargs: the model's keyword arguments.

        Returns:
            The log evidence of each row with its standard error and Pareto k-hat; one number
            for all the data where rows share latent sites.

        Raises:
            ModelError: the fit has no guide.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.log_evidence(x, num_samples=50).pointwise.shape
            (32,)

        Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016).
        """
        program, structure = self._at(args, kwargs)
        with isolated(stream(self.seed, "evidence")):
            return latent.log_evidence(program, structure, self._guide, num_samples, progress)

    @sheltered()
    def encode(self, *args: Any, num_samples: int | None = None, **kwargs: Any) -> dict[str, Array]:
        """Return what the guide makes of data: q(z|x).

        Args:
            args: the model's arguments with the data; none means those of the fit.
            num_samples: None returns means, (rows, *shape); a number as many draws of each.
            kwargs: the model's keyword arguments.

        Raises:
            ModelError: the fit has no guide, or no latent site belongs to rows of the data.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.encode(x)["z"].shape, fit.encode(x, num_samples=5)["z"].shape
            ((32, 2), (5, 32, 2))
        """
        self._require_local("encode")
        program, _ = self._at(args, kwargs)
        with isolated(stream(self.seed, "encode")):
            codes = latent.encode(program, self._guide, num_samples)
        return {name: _numpy(value) for name, value in codes.items()}

    @sheltered()
    def decode(self, codes: Mapping[str, Any] | Any, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Return the mean of the observed sites given latent ones: E[x|z].

        Args:
            codes: by site name, values (rows, *shape); or the array itself of an only site.
            args: the model's arguments; those of the fit, as many rows of them, if none.
            kwargs: the model's keyword arguments.

        Raises:
            ModelError: no latent site belongs to rows of the data.
            SettingError: the codes are of another shape than the site.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.decode(torch.zeros(3, 2))["x"].shape
            (3, 8, 8)
        """
        self._require_local("decode")
        if not isinstance(codes, Mapping):
            codes = {self._local[0]: codes}
        dtype = self.program.dtype
        tensors = {name: torch.as_tensor(value).to(dtype) for name, value in codes.items()}
        for name in self._local:
            shape = self.structure.sites[name].shape[1:]
            if name not in tensors or tensors[name].shape[1:] != shape or not tensors[name].ndim:
                got = tuple(tensors[name].shape) if name in tensors else "none"
                raise SettingError(
                    f"decode() needs codes of site '{name}' with the shape (rows, "
                    f"{', '.join(map(str, shape))}), and got {got}."
                )
        rows = len(tensors[self._local[0]])
        program = self.program.with_arguments(args, kwargs) if args or kwargs else self._rows(rows)
        return {
            name: _numpy(value)
            for name, value in latent.decode(program, self.structure, self._guide, tensors).items()
        }

    @sheltered()
    def reconstruct(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Return data as the model sees them: decoded from the mean of their codes.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.reconstruct(x[:4])["x"].shape
            (4, 8, 8)
        """
        return self.decode(self.encode(*args, **kwargs), *args, **kwargs)

    @sheltered()
    def divergence(self, x: Any, *, steps: int = 2000) -> Divergence:
        r"""Estimate how far draws of the model are from data: Jensen-Shannon (Eqs. 8 to 14).

        .. math:: JS \ge (V + \log 4) / 2

        with V the value function of a discriminator trained afresh on half of the data and as
        many draws, and judged on data that it has not seen.

        Args:
            x: data (n, *shape), at least 40 rows, best such as the model was not fitted to.
            steps: how many steps of training the discriminator gets at most.

        Raises:
            ModelError: the fit is not by GAN.

        Example:
            >>> import torch, pyro, pyro.distributions as dist, probdl
            >>> generator = torch.nn.Linear(1, 1)
            >>> def model(x=None, size=1):
            ...     pyro.module("generator", generator)
            ...     with pyro.plate("data", len(x) if x is not None else size):
            ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            ...         pyro.deterministic("x", generator(z), event_dim=1)
            >>> method = probdl.GAN(discriminator=probdl.nn.MLP([1, 8, 1]), steps=200)
            >>> fit = probdl.infer(model, torch.randn(500, 1), method=method, seed=1)
            >>> 0 <= fit.divergence(torch.randn(200, 1), steps=50).value <= 0.6932
            True

        Source: Goodfellow et al., "Generative adversarial nets" (2014), theorem 1.
        """
        if self.method.name != "gan":
            raise ModelError(
                f"a fit by {self.method.name} has no discriminator. estimate_divergence() of "
                "probdl.results.divergence takes two samples and any discriminator."
            )
        real = torch.as_tensor(np.asarray(x)).to(self.program.dtype)
        fake = torch.as_tensor(self.predict(num_samples=len(real))[self.stats["site"]])
        fake = fake.reshape(real.shape)
        seed = stream(self.seed, "divergence")
        opponent = copy.deepcopy(self.method.discriminator).to(real.dtype)
        return estimate_divergence(real, fake, opponent, steps=steps, seed=seed)

    @property
    @sheltered()
    def model(self) -> Any:
        """The model as fitted: a copy of the caller's, with the parameters of this fit."""
        return self.program.model

    @property
    def _guide(self) -> Proposal:
        if self.proposal is None:
            raise ModelError(
                f"the guide of this fit by {self.method.name}, which this needs, was not loaded: "
                "probdl.load(folder, model=..., method=...)."
                if self.method.name in ("svi", "importance")
                else f"a fit by {self.method.name} has no guide, which this needs. Fit by "
                "method='svi'."
            )
        return self.proposal

    @property
    def _local(self) -> tuple[str, ...]:
        return self.proposal.local if self.proposal is not None else ()

    def _require_local(self, what: str) -> None:
        if not self._guide.local:
            raise ModelError(
                f"{what}() is of latent sites that belong to one row of the data each, and the "
                f"model '{self.program.name}' has none: put one into the data plate, with a guide "
                "that computes it from the data."
            )

    def _at(self, args: Any, kwargs: Any) -> tuple[Program, Structure]:
        """Return the program at other arguments, with the sites that it has there."""
        if not args and not kwargs:
            return self.program, self.structure
        program = self.program.with_arguments(args, kwargs)
        return program, discover(program)

    def _rows(self, count: int) -> Program:
        """Return the program on as many rows of its data, over and over."""
        size = data_plate(self.program, self.structure)[1]
        rows = torch.arange(count) % size
        return self.program.with_tensors(
            [t[rows] if t.ndim and len(t) == size else t for t in self.program.tensors()]
        )

    # -- keeping --------------------------------------------------------------------------

    @sheltered()
    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the fit to a folder; :func:`probdl.load` reads it.

        The folder then holds ``idata.nc``, which ArviZ opens by itself, ``arrays.safetensors``
        (parameters, stats, the data) and ``fit.json`` (method and settings, seed, versions, where
        the model comes from and a hash of its source, a fingerprint of the data, timings). Nothing
        is pickled. A kill at any moment, or a full disk, leaves the fit that was there before, or
        this one.

        Args:
            folder: made where it is not there; a fit in it is replaced.

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

    # -- judging --------------------------------------------------------------------------

    def cross_validate(
        self, k: int = 10, *, workers: int | None = None, progress: bool | None = None
    ) -> CrossValidation:
        r"""Estimate how well the model predicts new data, by k-fold cross-validation.

        .. math:: \mathrm{elpd} = \sum_i \log p(y_i | y_{-\mathrm{fold}(i)})

        The rows of the data plate are put into k folds at random, and the method fits the data
        without each of them.

        Args:
            k: how many folds; as many as rows leaves one out at a time.
            workers: how many processes; None is one for each core.
            progress: whether to show progress; None shows it on a terminal.

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
            no findings: all checks passed
        """
        return self._all_findings

    @cached
    def _all_findings(self) -> Findings:
        if self.is_point:
            return Findings(self.findings)
        return Findings([*self.findings, *check_draws(self._posterior, self.num_chains)])

    @property
    def title(self) -> str:
        """What this is, in one line."""
        scalars = sum(math.prod(a.shape[2:]) for a in self.draws.values())
        size = (
            "a point estimate"
            if self.is_point
            else f"{self.num_chains} chain{'s' * (self.num_chains > 1)} of {self.num_draws} draws"
        )
        return f"Fit of '{self.program.name}' by {self.method!r}: {size} of {scalars} scalars"

    def __repr__(self) -> str:
        table = self.summary()
        lines = table.head(_ROWS).to_string().splitlines()
        if len(table) > _ROWS:
            lines.append(f"… and {len(table) - _ROWS} more rows in fit.summary()")
        return "\n".join([self.title, *lines, *map(str, self.diagnose())])

    def _repr_html_(self) -> str:
        table = self.summary()
        more = len(table) - _ROWS
        size = "point estimate" if self.is_point else f"{self.num_chains} × {self.num_draws} draws"
        return (
            f"<div><b>Fit of {html.escape(self.program.name)}</b> "
            f"<code>{html.escape(repr(self.method))}</code> {size}, seed {self.seed}"
            f"{table.head(_ROWS).to_html()}"
            f"{f'<p>… and {more} more rows in <code>fit.summary()</code></p>' if more > 0 else ''}"
            f"{self.diagnose()._repr_html_()}</div>"
        )


_ROWS = 20
_EVIDENCE_DRAWS = 100  # of the latent sites of each row, for a score


def _numpy(x: Tensor) -> Array:
    return np.asarray(x.detach().resolve_conj().cpu().numpy())
