"""``GuidedFit``: a fit with a guide, by SVI or importance sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.errors import FindingWarning, ModelError, SettingError, warn
from probdl.findings import PARETO_K_MAX
from probdl.model.elements import Elements
from probdl.model.program import Program
from probdl.model.sites import Structure, data_plates
from probdl.results import display, latent
from probdl.results.container import as_numpy
from probdl.results.fit import Fit
from probdl.results.latent import Elbo, LogEvidence, Proposal
from probdl.results.scores import JointScore, LogPredictive
from probdl.util.isolation import isolated, sheltered
from probdl.util.seeds import stream

__all__ = ["GuidedFit"]

Array = NDArray[Any]

SCORE_DRAWS = 100  # of the latent sites of each row, in log_predictive()
FEW_ROWS = 0.05  # share of rows above a limit of k-hat, which is noisy, that is reported


@dataclass(frozen=True, repr=False)
class GuidedFit(Fit, needs="guide; Fit by method='svi'."):
    """A fit with a guide: what ``SVI`` and ``Importance`` return.

    Attributes:
        proposal: the trained guide, or the prior; None if the fit was loaded without it.
    """

    proposal: Proposal | None = None

    def _facts(self) -> list[str]:
        elbo = np.asarray(self.stats.get("elbo", ()))
        if not len(elbo):
            return []
        last = elbo[-max(1, len(elbo) // 20) :]
        per_row = "; fit.elbo(x) and fit.log_evidence(x) score new data" if self._has_rows else ""
        facts = [f"{len(elbo)} steps, ELBO {last.mean():.6g} nats in the last {len(last)}{per_row}"]
        if "validation_elbo" in self.stats:
            steps = np.asarray(self.stats["validation_steps"])
            kept = max(int(np.searchsorted(steps, self.stats["best_step"], "right")) - 1, 0)
            facts.append(f"held-out ELBO {self.stats['validation_elbo'][kept]:.6g} nats per row")
        return facts

    def _sketch(self) -> str:
        elbo = np.asarray(self.stats.get("elbo", ()), dtype=np.float64)
        if len(elbo) < 20:
            return super()._sketch()
        block = max(1, len(elbo) // display.SKETCH_POINTS)
        smooth = elbo[: len(elbo) // block * block].reshape(-1, block).mean(1)
        return display.sketched(smooth[None, len(smooth) // 20 :], "ELBO of the steps (nats)")

    @property
    def _has_rows(self) -> bool:
        """Whether the guide has latent sites of single rows, as that of a VAE."""
        return self.proposal is not None and bool(self.proposal.local)

    @sheltered()
    def elbo(self, *args: Any, num_samples: int = 100, **kwargs: Any) -> Elbo:
        r"""Return the evidence lower bound of data and its two terms (Eqs. 20 to 22).

        .. math:: E_q[\log p(x_i|z_i)] - KL(q(z_i|x_i) \| p(z_i)) \le \log p(x_i)

        Discrete sites that only the model has are summed out, and those that the guide enumerates
        (``pyro.infer.config_enumerate``) are summed over under q. Of several data plates, such as
        labelled and unlabelled rows, the rows follow one another.

        Args:
            args: the model's arguments with the data; if none are given, those of the fit.
            num_samples: number of draws of the latent sites. KL terms that torch knows in closed
                form are exact.
            kwargs: the model's keyword arguments.

        Raises:
            ModelError: the guide was not loaded, the model has no data plate, or all rows share a
                discrete site that is summed out.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.elbo(x).pointwise.shape
            (32,)
        """
        program, structure = self._data_at(args, kwargs)
        with isolated(stream(self.seed, "elbo")):
            return latent.elbo(program, structure, self._loaded_guide, num_samples)

    @sheltered()
    def log_evidence(
        self, *args: Any, num_samples: int = 1000, progress: bool | None = None, **kwargs: Any
    ) -> LogEvidence:
        r"""Estimate log p(x) by importance sampling from the guide (Eqs. 16 to 19).

        .. math:: \log p(x) \approx \log \frac1K \sum_k p(x, z_k) / q(z_k|x)

        This is the importance-weighted bound. It is biased downwards, less so for larger K.

        Args:
            args: the model's arguments with the data; if none are given, those of the fit.
            num_samples: K, the number of draws of the latent sites.
            progress: whether to show progress; None means only on a terminal and in a notebook.
            kwargs: the model's keyword arguments.

        Returns:
            The log evidence of each row with its standard error and Pareto k-hat; a single
            number for all data if rows share latent sites.

        Raises:
            ModelError: the guide was not loaded.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.log_evidence(x, num_samples=50).pointwise.shape
            (32,)

        Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016).
        """
        program, structure = self._data_at(args, kwargs)
        with isolated(stream(self.seed, "evidence")):
            return latent.log_evidence(
                program, structure, self._loaded_guide, num_samples, progress
            )

    @sheltered()
    def encode(self, *args: Any, num_samples: int | None = None, **kwargs: Any) -> dict[str, Array]:
        """Return the mean of q(z|x), the guide's distribution of the latent sites, or draws of it.

        Of labels y ~ Categorical these are the probabilities q(y|x), (rows, classes). The means of
        other sites are averaged over y exactly if the guide enumerates it
        (``pyro.infer.config_enumerate``).

        Args:
            args: the model's arguments with the data; if none are given, those of the fit.
            num_samples: None returns means, (rows, *shape); a number returns that number of draws,
                (num_samples, rows, *shape).
            kwargs: the model's keyword arguments.

        Raises:
            ModelError: the guide was not loaded, or no latent site lies in a data plate.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.encode(x)["z"].shape, fit.encode(x, num_samples=5)["z"].shape
            ((32, 2), (5, 32, 2))
        """
        self._require_local("encode")
        program, structure = self._at(args, kwargs)
        with isolated(stream(self.seed, "encode")):
            codes = latent.encode(program, structure, self._loaded_guide, num_samples)
        return {name: as_numpy(value) for name, value in codes.items()}

    @sheltered()
    def decode(self, codes: Mapping[str, Any] | Any, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Return the mean of the observed sites given latent ones: E[x|z].

        Args:
            codes: values (rows, *shape) by site name; an array if there is only one site. Discrete
                sites may be left out: they are summed out, given the other codes.
            args: the model's arguments; if none are given, those of the fit, with as many rows as
                the codes have.
            kwargs: the model's keyword arguments.

        Raises:
            ModelError: the guide was not loaded, or no latent site lies in a data plate.
            SettingError: the shape of the codes differs from that of the site.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.decode(torch.zeros(3, 2))["x"].shape
            (3, 8, 8)
        """
        self._require_local("decode")
        structure = self.structure
        required = [n for n in self._local if structure.sites[n].kind == "latent"]
        if not isinstance(codes, Mapping):
            codes = {(required or self._local)[0]: codes}
        tensors = {name: self._code(name, value) for name, value in codes.items()}
        missing = [name for name in required or self._local if name not in tensors]
        rows = {len(value) for value in tensors.values()}
        if missing or not rows:
            raise SettingError(
                f"decode() needs codes of site {', '.join(map(repr, missing))}, but got codes of "
                f"{', '.join(map(repr, tensors)) or 'none'}. Pass a dict with codes by site name."
            )
        if args or kwargs:
            program = self.program.with_arguments(args, kwargs)
        elif len(rows) > 1 or len(data_plates(structure)) > 1:
            program = self.program
        else:
            program = self._rows(rows.pop())
        with isolated(stream(self.seed, "decode")):
            means = latent.decode(program, structure, self._loaded_guide, tensors)
        return {name: as_numpy(value) for name, value in means.items()}

    def _code(self, name: str, value: Any) -> torch.Tensor:
        """Return codes of a site as a tensor (rows, *shape)."""
        site = self.structure.sites.get(name)
        if site is None or name not in self._local:
            raise SettingError(
                f"decode() got codes of '{name}', which is not a latent site in the data plate. "
                f"These are {', '.join(map(repr, self._local))}."
            )
        shape = site.shape[1:]
        tensor = torch.as_tensor(value).to(site.value.dtype)
        if not tensor.ndim or tensor.shape[1:] != shape:
            raise SettingError(
                f"decode() needs codes of site '{name}' with the shape "
                f"({', '.join(map(str, ('rows', *shape)))}), but got {tuple(tensor.shape)}."
            )
        return tensor

    @sheltered()
    def reconstruct(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Return the reconstruction of data: decoded from the mean of their codes.

        With discrete sites in the guide it is the mean over their values under q(y|x).

        Args:
            args: the model's arguments with the data; if none are given, those of the fit.
            kwargs: the model's keyword arguments.

        Example:
            >>> import torch, probdl
            >>> x = (torch.rand(32, 8, 8) < 0.5).float()
            >>> vae = probdl.models.VAE.mlp((8, 8), latent_dim=2, hidden=16)
            >>> fit = probdl.infer(vae, x, method=probdl.SVI(steps=100, batch_size=16), seed=1)
            >>> fit.reconstruct(x[:4])["x"].shape
            (4, 8, 8)
        """
        self._require_local("reconstruct")
        program, structure = self._at(args, kwargs)
        if not structure.of("discrete"):
            return self.decode(self.encode(*args, **kwargs), *args, **kwargs)
        with isolated(stream(self.seed, "reconstruct")):
            means = latent.reconstruct(program, structure, self._loaded_guide)
        return {name: as_numpy(value) for name, value in means.items()}

    @sheltered()
    def log_likelihood(self) -> dict[str, Array]:
        """Return the pointwise log likelihood, see :meth:`Fit.log_likelihood`.

        Raises:
            ModelError: latent sites lie in the data plate.

        Example:
            >>> import numpy as np, probdl
            >>> from probdl.models import normal_normal
            >>> method = probdl.SVI(steps=200)
            >>> fit = probdl.infer(normal_normal, np.ones(3), np.zeros(3), method=method, seed=1)
            >>> fit.log_likelihood()["y"].shape
            (1, 1000, 3)
        """
        if self._local:
            raise ModelError(
                f"The latent sites {', '.join(map(repr, self._local))} lie in the data plate, so "
                "there is no log likelihood given the shared sites alone. Use fit.log_evidence(), "
                "which integrates over them."
            )
        return super().log_likelihood()

    @property
    def _has_row_scores(self) -> bool:
        return super()._has_row_scores and not self._local

    def _score(self, program: Program, structure: Structure, elements: Elements) -> LogPredictive:
        if not self._local:
            return super()._score(program, structure, elements)
        with isolated(stream(self.seed, "score")):
            evidence = latent.log_evidence(
                program, structure, self._loaded_guide, SCORE_DRAWS, progress=False
            )
        ends = np.cumsum(list(evidence.rows.values()))[:-1]
        parts = np.split(evidence.pointwise, ends) if evidence.rows else []
        pointwise = dict(zip(evidence.rows, parts, strict=True))
        points = evidence.pointwise.size
        error = float(np.sqrt(np.square(evidence.standard_error).sum()))
        of_part = np.split(np.square(evidence.standard_error), ends) if evidence.rows else []
        joints = {
            name: JointScore(float(values.sum()), float(np.sqrt(squares.sum())))
            for (name, values), squares in zip(pointwise.items(), of_part, strict=True)
        }
        found = LogPredictive(
            pointwise, evidence.total, evidence.total, points, error, joints, evidence.pareto_k
        )
        if self._uncovered(found) == 0:
            return found
        unknown = {name: JointScore(of.value, math.inf) for name, of in joints.items()}
        return replace(found, joint_standard_error=math.inf, joints=unknown)

    @staticmethod
    def _uncovered(score: LogPredictive) -> int:
        """Return the number of rows whose posterior the guide does not cover; 0 for a few."""
        assert score.pareto_k is not None
        bad = int((score.pareto_k > PARETO_K_MAX).sum())
        return bad if bad > FEW_ROWS * score.pareto_k.size else 0

    def _check_score(self, score: LogPredictive) -> None:
        if score.pareto_k is None:
            super()._check_score(score)
        elif bad := self._uncovered(score):
            warn(
                f"The guide does not cover the posterior of the latent sites of {bad} of "
                f"{score.pareto_k.size} rows (Pareto k-hat above {PARETO_K_MAX}), so with "
                f"{SCORE_DRAWS} draws a row the scores are lower bounds, which may be far too low. "
                "fit.log_evidence(..., num_samples=10_000) is closer; a richer guide or longer "
                "training is closer still.",
                FindingWarning,
            )

    @property
    def _loaded_guide(self) -> Proposal:
        if self.proposal is None:
            raise ModelError(
                f"The guide of this fit by {self.method.name} was not loaded. Load the fit with "
                "its model and method: probdl.load(folder, model=..., method=...)."
            )
        return self.proposal

    @property
    def _local(self) -> tuple[str, ...]:
        """The latent sites in the data plate."""
        return self.proposal.local if self.proposal is not None else ()

    def _require_local(self, what: str) -> None:
        if not self._loaded_guide.local:
            raise ModelError(
                f"{what}() needs a latent site in the data plate, and the model "
                f"'{self.program.name}' has none. Put one there, with a guide that computes it "
                "from the data."
            )
