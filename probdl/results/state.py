"""What all parts of a fit share: the model with its data, its sites, and the draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probdl.errors import DataError
from probdl.findings import Finding
from probdl.io.idata import dimensions, labels, variables
from probdl.io.idata import groups as group_names
from probdl.model import predictive, streaming
from probdl.model.callables import owner_module
from probdl.model.discrete import observations
from probdl.model.elements import Elements
from probdl.model.encoding import check_new, check_order
from probdl.model.imputation import imputed_plates
from probdl.model.loader import MissingLoader
from probdl.model.preparing import uses_codes_as_numbers
from probdl.model.program import Program
from probdl.model.sites import Site, Structure, discover
from probdl.model.without_model import WithoutModel
from probdl.results.classes import check_classes, name_codes, observed_by
from probdl.results.container import as_numpy, assemble
from probdl.results.labels import Labels, labels_at
from probdl.results.masking import put_back
from probdl.util.cached import cached
from probdl.util.isolation import isolated, sheltered
from probdl.util.seeds import stream

__all__ = ["FitState", "FittedBy"]

Array = NDArray[Any]

_OF_OBSERVED_SITES = {"observed_data", "posterior_predictive", "prior_predictive"}


class FittedBy(Protocol):
    """The part of a method that a fit uses: its name."""

    name: ClassVar[str]


@dataclass(frozen=True, repr=False)
class FitState:
    """The state of a fit, see ``Fit``, at the arguments of the fit and at others."""

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
    def idata(self) -> Any:
        """The ArviZ container."""
        raise NotImplementedError

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
        if program is not self.program and coords:
            coords = self._of_fit(program, coords)
        if program is not self.program:
            fresh = [*fresh, *imputed_plates(self.program, self.structure, program)]
        return Elements(
            self.structure,
            dims=self._labels.sites,
            labels=self.coords,
            new_labels=coords,
            fresh=fresh,
        )

    @staticmethod
    def _flat(points: Mapping[str, Array], lead: int) -> Array:
        """Join arrays (*lead shape, *batch shape) by site to (*lead shape, observations)."""
        flat = [array.reshape(*array.shape[:lead], -1) for array in points.values()]
        return np.concatenate(flat, -1)

    def _of_fit(self, program: Program, coords: Mapping[str, Any]) -> dict[str, Any]:
        """Return labels without those of dimensions that only other arguments have."""
        unknown = [dim for dim in coords if dim not in {**self._labels.sizes, **self.coords}]
        now = Labels(discover(program), self.dims, {}).sizes if unknown else {}
        return {dim: of for dim, of in coords.items() if dim not in unknown or dim not in now}

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
        if isinstance(self.program.given, nn.Module):
            return owner_module(self.program.model)
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
