"""A Pyro program and its data as a log density on R^d, with its gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    Transform,
)
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probdl.errors import CheckError, ModelError, ProbdlError
from probdl.model.bijections import bijection, unconstrained_shape
from probdl.model.discrete import given_data
from probdl.model.hessian import hessian
from probdl.model.predictive import sample_prior
from probdl.model.program import Program
from probdl.model.sites import (
    Site,
    Structure,
    discover,
    scalar_labels,
)
from probdl.model.starting import checked_values, search
from probdl.model.vectorize import vectorize
from probdl.util.blas import one_torch_thread, threads_for
from probdl.util.isolation import isolated

__all__ = ["Block", "LogDensity"]

T = TypeVar("T")

INITIAL_RADIUS = 2.0  # uniform(-2, 2) on R^d, as in Stan
MAX_INITIAL_TRIES = 100


@dataclass(frozen=True)
class Block:
    """The part of the flat vector that holds one site."""

    site: Site
    start: int
    shape: tuple[int, ...]  # unconstrained

    @property
    def size(self) -> int:
        """The number of coordinates of the site."""
        return math.prod(self.shape)

    @property
    def coordinates(self) -> Literal["plain", "log", "other"]:
        """Whether the coordinates are the values of the site, their logarithms, or neither."""
        transform: Transform | None = self.site.transform
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        parts = transform.parts if isinstance(transform, ComposeTransform) else [transform]
        if not parts:
            return "plain"
        shifted = all(isinstance(part, AffineTransform) for part in parts[1:])
        return "log" if isinstance(parts[0], ExpTransform) and shifted else "other"

    def of(self, z: Tensor) -> Tensor:
        """Return the site's unconstrained value from ``z`` of shape (..., d)."""
        return z[..., self.start : self.start + self.size].reshape(z.shape[:-1] + self.shape)

    @property
    def labels(self) -> list[str]:
        """Labels of the coordinates: ``beta[0]``, ``beta[1]`` …, or ``sigma``."""
        return scalar_labels(self.site.name, self.shape)


class _AtPoint(Messenger):
    """Run a program at one point of R^d, and sum the log Jacobians of the transforms."""

    def __init__(self, density: LogDensity, z: Tensor) -> None:
        super().__init__()
        self.density = density
        self.z = z
        self.values: dict[str, Tensor] = {}
        self.log_jacobian: Tensor | float = 0.0

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        block = self.density.blocks.get(name)
        if msg["is_observed"] or block is None:
            if block is not None or not (
                msg["is_observed"]
                or msg["done"]
                or name in self.density.structure.sites
                or site_is_subsample(msg)
            ):
                self.density.changed(name)
            return
        transform = block.site.transform or bijection(msg["fn"], name)
        u = block.of(self.z)
        value = transform(u)
        if self.density.jacobian:
            self.log_jacobian = self.log_jacobian + transform.log_abs_det_jacobian(u, value).sum()
        msg["value"] = self.values[name] = value

    def _pyro_param(self, msg: Any) -> None:
        site = self.density.structure.sites.get(msg["name"])
        if site is None:
            self.density.changed(msg["name"])
        elif site.name in self.density.blocks:
            msg["value"] = self.values[site.name] = self.density.param(site.name, self.z)
        else:
            msg["value"] = site.value


class _AtValues(_AtPoint):
    """Run a program at values of its sites."""

    def __init__(self, density: LogDensity, values: Mapping[str, Tensor]) -> None:
        super().__init__(density, torch.zeros(density.dim, dtype=torch.float64))
        self.given = values

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]] = self.given[msg["name"]]


class _Unconstrain(Messenger):
    """Run a program at given values, and record the unconstrained value of each latent site."""

    def __init__(self, density: LogDensity, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.density = density
        self.values = values
        self.unconstrained: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.density.blocks and not msg["is_observed"]:
            msg["value"] = self.values[name]
            self.unconstrained[name] = bijection(msg["fn"], name).inv(self.values[name])


class LogDensity:
    r"""The log density of a model at its data, on R^d.

    .. math:: \log p(z) = \log p(x(z), y) + \log |\det \partial x / \partial z|

    where z in R^d is the flat vector of all free sites, x(z) are their values in the supports of
    their distributions, and y is the data. Discrete latent sites with a finite support are summed
    out exactly. All computations are in float64.

    Create one with :meth:`from_model`. Calling it returns the value at one point as a scalar
    tensor with gradient.

    >>> import pyro, torch, pyro.distributions as dist
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> density = LogDensity.from_model(model, (torch.tensor(0.0),))
    >>> density.dim
    1
    >>> round(density(torch.zeros(1)).item(), 4)      # -log(2 pi)
    -1.8379
    """

    engine = "eager"

    def __init__(
        self,
        program: Program,
        structure: Structure,
        *,
        prior: bool = True,
        jacobian: bool = True,
        params: bool = False,
    ) -> None:
        structure.check_summable()
        if drawn := [s.name for s in structure.of("latent") if s.is_discrete]:
            raise ModelError(f"Site '{drawn[0]}' is discrete, so there is no density on R^d.")
        self.program = program
        self.structure = structure
        self.prior = prior
        self.jacobian = jacobian
        self.blocks: dict[str, Block] = {}
        self.given: dict[str, Tensor] = {}
        self.dim = 0
        for site in structure.of("latent", "param") if params else structure.of("latent"):
            shape = tuple(self._transform_shape(site))
            self.blocks[site.name] = block = Block(site, self.dim, shape)
            self.dim += block.size
        if not self.blocks:
            raise ModelError(
                f"The model '{program.name}' has no site to infer: no latent pyro.sample site"
                f"{', pyro.param or module parameter' if params else ''}. Sites without `obs=` "
                "are latent; fit a model that has parameters only with method='mle' or 'map'."
            )
        self._dropped = set() if prior else {s.name for s in structure.of("latent")}
        self._handlers: list[Callable[..., Any]] = []
        self._evaluator: TraceEinsumEvaluator | None = None
        if structure.of("discrete"):
            self._enumerate()

    @classmethod
    def from_model(
        cls,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        prior: bool = True,
        jacobian: bool = True,
        params: bool = False,
    ) -> LogDensity:
        """Return the log density of a Pyro program and its data on R^d.

        Args:
            model: a Pyro program, a callable or an ``nn.Module``.
            args: the positional arguments, which hold the data.
            kwargs: the keyword arguments.
            prior: whether to include the log densities of the latent sites. False gives the
                likelihood, with the latent sites as plain parameters.
            jacobian: whether to include the log Jacobian of the transforms. False gives the
                density of the constrained values as a function of the unconstrained ones.
            params: whether ``pyro.param`` sites and module parameters are free as well; otherwise
                they are fixed at their current values.

        Raises:
            ModelError: the model does not run on the arguments, its sites depend on
                random choices, a discrete site cannot be summed out, or no site is free.
            DataError: the data are not finite, or outside the support of their site.
        """
        program = Program(model, args, kwargs)
        return cls(program, discover(program), prior=prior, jacobian=jacobian, params=params)

    def with_tensors(self, tensors: Sequence[Tensor]) -> LogDensity:
        """Return the same density on other data, in the order of ``Program.tensors``."""
        other = copy.copy(self)
        other.program = self.program.with_tensors(tensors)
        return other

    def starting_at(self, values: Mapping[str, Any]) -> LogDensity:
        """Return the same density, whose starting points have given values of some sites.

        Args:
            values: by site name, a number, array or tensor of the shape of the site, inside its
                support. A scalar stands for all elements.

        Raises:
            SettingError: there is no such site, or a value does not fit it.
        """
        other = copy.copy(self)
        sites = {name: block.site for name, block in self.blocks.items()}
        other.given = checked_values(sites, values)
        return other

    @staticmethod
    def _transform_shape(site: Site) -> torch.Size:
        if site.transform is None:  # the support is an interval, whose transform keeps the shape
            return torch.Size(site.shape)
        return unconstrained_shape(site.transform, site.shape)

    def _enumerate(self) -> None:
        """Set up the exact sum over discrete sites, by Pyro's parallel enumeration."""
        first = -1 - self.structure.plate_depth
        self._handlers = [
            lambda model: poutine.enum(config_enumerate(model), first_available_dim=first)
        ]

        def evaluator(trace: Trace) -> TraceEinsumEvaluator:
            for name in self._dropped:
                trace.remove_node(name)
            with pyro.validation_enabled(True):  # reports a missing plate
                return TraceEinsumEvaluator(trace, True, self.structure.plate_depth)

        try:
            self._evaluator = self.run(evaluator, _AtPoint(self, torch.zeros(self.dim).double()))
        except ModelError as error:
            names = ", ".join(f"'{site.name}'" for site in self.structure.of("discrete"))
            raise ModelError(
                f"{error} The discrete sites {names} are summed out by parallel enumeration: their "
                "values get further dimensions on the left. Write the model so that it broadcasts "
                "there: (x * z).sum(-1) instead of torch.dot(x, z), and x[..., i] instead of x[i]."
            ) from None

    def changed(self, name: str) -> None:
        """Raise ModelError: a site differs from the first run of the model."""
        raise ModelError(
            f"Site '{name}' did not exist, or was of another kind, in the first run of the model "
            f"'{self.program.name}'. The sites of a model, and whether they are observed, must not "
            "depend on random choices or on the values of other sites."
        )

    def param(self, name: str, z: Tensor) -> Tensor:
        """Return the value of a param site at the point z."""
        block = self.blocks[name]
        assert block.site.transform is not None
        return block.site.transform(block.of(z))

    def run(
        self,
        read: Callable[[Trace], T],
        at: _AtPoint,
        *,
        enumerated: bool = True,
        outside: Sequence[Callable[..., Any]] = (),
        validate: bool = False,
    ) -> T:
        """Run the program at a point, and read its trace."""
        parameters = {}
        for site in self.structure.of("param"):
            if site.parameter is None:
                continue
            if site.name in self.blocks:
                parameters[site.parameter] = self.param(site.name, at.z)
            else:  # fixed, possibly at a value trained in another copy of the module
                parameters[site.parameter] = site.value
        handlers = self._handlers if enumerated else []
        messengers: list[Any] = [*handlers, at, *outside]
        return self.program.run(read, *messengers, parameters=parameters, validate=validate)

    def at(self, z: Tensor, read: Callable[[Trace], T]) -> T:
        """Run the program at a point (d,), with discrete sites sampled, and read its trace."""
        return self.run(read, _AtPoint(self, z), enumerated=False)

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate the log density at ``z`` of shape (d,), in nats, as a scalar tensor.

        A failure of linear algebra (a matrix that is not positive definite), or of a check of the
        model (``assert scale > 0``), gives -inf, a density of zero.
        """
        try:
            value = self._value(z)
        except CheckError:
            value = z.new_tensor(-math.inf)
        return value + 0.0 * z.sum()  # which has a gradient, whatever the model depends on

    def _value(self, z: Tensor) -> Tensor:
        at = _AtPoint(self, z)
        value = self._score(at) + at.log_jacobian
        return value if isinstance(value, Tensor) else z.new_tensor(value)

    def of_values(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the log density of values of the sites (n, *site shape), without Jacobians: (n,).

        At an edge of the support, rounding may move values on their way to R^d and back.
        """
        zero = torch.zeros((), dtype=torch.float64)
        given = {name: values[name].to(zero.dtype) for name in self.blocks}
        found: Tensor = vectorize(lambda draw: zero + self._score(_AtValues(self, draw)), given)
        return found

    def _score(self, at: _AtPoint) -> Tensor | float:
        def score(trace: Trace) -> Tensor | float:
            for name, block in self.blocks.items():
                if block.site.kind == "latent" and name not in at.values:
                    self.changed(name)
            for name in self._dropped:
                trace.remove_node(name)
            if self._evaluator is None:
                return trace.log_prob_sum()
            return self._evaluator.log_prob(trace)

        try:
            return self.run(score, at)
        except LinAlgError:
            return -math.inf

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density at ``z`` (d,) and its gradient (d,), both detached."""
        with torch.inference_mode(False), torch.enable_grad():
            z = z.detach().to(torch.float64).clone().requires_grad_()
            try:
                value = self._value(z)
            except CheckError:
                return z.new_tensor(-math.inf), torch.zeros_like(z)
            try:
                grad = _gradient(value, z)
            except RuntimeError as error:
                raise self.program.explain(error) from None
        return value.detach(), grad

    def differentiated(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same at a point that requires a gradient, with the errors of torch."""
        value = self._value(z)
        return value, _gradient(value, z)

    def hessian(self, z: Tensor) -> Tensor:
        """Return the matrix of second derivatives (d, d) at ``z`` (d,)."""
        threads = nullcontext() if self.program.is_large else one_torch_thread()
        with threads:
            return hessian(self, z, max((x.numel() for x in self.program.tensors()), default=0))

    def batch(self, z: Tensor) -> Tensor:
        """Evaluate the log density at each of ``z`` (..., d) in one pass; shape (...)."""
        flat = z.detach().to(torch.float64).reshape(-1, self.dim)
        return vectorize(self, flat).reshape(z.shape[:-1])

    @property
    def unconstrained_mask(self) -> Tensor:
        """A mask (d,) of the coordinates whose sites have support R^n and no transform."""
        return torch.tensor(
            [
                block.coordinates == "plain"
                for block in self.blocks.values()
                for _ in range(block.size)
            ]
        )

    @property
    def labels(self) -> list[str]:
        """Labels of the d coordinates, for messages: ``mu``, ``theta[0]``, ``theta[1]`` …."""
        return [label for block in self.blocks.values() for label in block.labels]

    def constrain(self, z: Tensor, *, deterministic: bool = False) -> dict[str, Tensor]:
        """Map points of R^d to the values of the sites, for all draws in one pass.

        Args:
            z: points, shape (..., d).
            deterministic: whether to compute the ``pyro.deterministic`` sites as well.

        Returns:
            By site name, tensors of shape (..., *site shape), float64.
        """
        z = z.detach().to(torch.float64)
        values: dict[str, Tensor] = {}
        dependent = any(b.site.transform is None for b in self.blocks.values())
        if dependent or (deterministic and self.structure.of("deterministic")):
            flat = vectorize(lambda point: self.values(point), z.reshape(-1, self.dim))
            values = {k: v.reshape(z.shape[:-1] + v.shape[1:]) for k, v in flat.items()}
        with threads_for(z.numel()):
            for name, block in self.blocks.items():
                if block.site.transform is not None:
                    values[name] = block.site.transform(block.of(z))
        keep = {*self.blocks, *(values if deterministic else ())}
        return {name: values[name] for name in self.structure.sites if name in keep}

    def log_jacobian(self, z: Tensor) -> Tensor:
        """Return log |det dx/dz| of points (..., d), for all in one pass; shape (...)."""
        lead = z.shape[:-1]
        if all(block.site.transform is not None for block in self.blocks.values()):
            total = torch.zeros(lead, dtype=torch.float64)
            for block in self.blocks.values():
                transform: Any = block.site.transform
                u = block.of(z)
                terms = transform.log_abs_det_jacobian(u, transform(u))
                total = total + terms.reshape(lead + (-1,)).sum(-1)
            return total

        def one(point: Tensor) -> Tensor:
            at = _AtPoint(self, point)
            self.run(lambda _: None, at, enumerated=False)
            return at.log_jacobian + 0.0 * point.sum()

        return vectorize(one, z.reshape(-1, self.dim)).reshape(lead)

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """Return the free and the deterministic sites at one point ``z`` (d,), with gradients."""
        at = _AtPoint(self, z)
        names = {s.name for s in self.structure.of("deterministic")}

        def read(trace: Trace) -> dict[str, Tensor]:
            nodes: Any = trace.nodes
            return {name: nodes[name]["value"] for name in nodes if name in names}

        # Each site has one value. Sites that depend on discrete ones need their posterior draws.
        outside = [given_data(self.structure)] if names and self.structure.of("discrete") else []
        values = self.run(read, at, enumerated=False, outside=outside)
        values |= at.values
        for name, block in self.blocks.items():  # a module's own parameters make no statements
            if block.site.kind == "param":
                values.setdefault(name, self.param(name, z))
        return {name: values[name] for name in self.structure.sites if name in values}

    def unconstrain(self, values: Mapping[str, Any]) -> Tensor:
        """Map values of the sites, each (..., *site shape), back to points (..., d) of R^d."""
        missing = [name for name in self.blocks if name not in values]
        if missing:
            raise ModelError(
                f"Values of the sites {missing} are missing. Pass a value for each free site."
            )
        tensors = {name: torch.as_tensor(values[name], dtype=torch.float64) for name in self.blocks}
        name, block = next(iter(self.blocks.items()))
        lead = tensors[name].shape[: tensors[name].ndim - len(block.site.shape)]
        inverse: dict[str, Tensor] = {}
        if any(b.site.transform is None for b in self.blocks.values()):

            def run(draw: dict[str, Tensor]) -> dict[str, Tensor]:
                at = _Unconstrain(self, draw)
                return self.program.run(lambda _: at.unconstrained, at)

            flat = {k: v.reshape((-1,) + self.blocks[k].site.shape) for k, v in tensors.items()}
            inverse = {k: v.reshape(lead + v.shape[1:]) for k, v in vectorize(run, flat).items()}
        for name, block in self.blocks.items():
            if block.site.transform is not None:
                inverse[name] = block.site.transform.inv(tensors[name])
        return torch.cat([inverse[name].reshape(lead + (-1,)) for name in self.blocks], -1)

    def initial(
        self,
        generator: torch.Generator,
        *,
        jitter: bool = False,
        mirror: bool = False,
        value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Draw a starting point (d,), uniform(-2, 2) on R^d, at which the density is finite.

        This is Stan's rule, with up to 100 tries. If all fail, a search moves sites until all terms
        of the density are finite. Param sites start at their current values, which the user chose
        (the initialization of a network), and the sites of ``starting_at`` at the values given.

        Args:
            generator: the random number generator.
            jitter: whether to move param sites and given values randomly by up to 0.2.
            mirror: whether to return the mirror image of the point, about 0, that the same
                generator gives otherwise; such a pair more often lies at two different modes.
            value_and_grad: a faster evaluation of this density, if there is one.

        Raises:
            ModelError: no point with a finite density and gradient was found. The message lists the
                sites responsible, with their values.
        """
        evaluate = value_and_grad or self.value_and_grad
        for _ in range(MAX_INITIAL_TRIES):
            z = self._random_point(generator, jitter, -1.0 if mirror else 1.0)
            value, grad = evaluate(z)
            if torch.isfinite(value) and torch.isfinite(grad).all():
                return z
            if not jitter and not self._random_blocks:
                break
        found = search(
            z, [slice(b.start, b.start + b.size) for b in self._random_blocks], self._bad
        )
        if found is not None:
            value, grad = evaluate(found)
            if torch.isfinite(value) and torch.isfinite(grad).all():
                return found
        raise ModelError(self._explain_bad_start(z, grad))

    def initial_of_prior(
        self,
        generator: torch.Generator,
        value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Draw a starting point (d,) from the prior; as ``initial`` does if there is no such draw.

        Group effects of a prior draw differ as their scale says. Equal ones, far from where the
        data pull them, are often drawn together, and their scale to zero.

        Args:
            generator: the random number generator.
            value_and_grad: a faster evaluation of this density, if there is one.
        """
        z = self.initial(generator, value_and_grad=value_and_grad)
        seed = int(torch.randint(2**32, (), generator=generator))
        try:
            with isolated(seed):
                drawn = sample_prior(self.program, self.structure, 1)
            values = {name: drawn[name][0] for name in self.blocks if name in drawn}
            start = self.unconstrain(self.constrain(z) | values | self.given)
        except (ProbdlError, LinAlgError):  # an improper prior, or one that cannot be sampled
            return z
        value, grad = (value_and_grad or self.value_and_grad)(start)
        return start if torch.isfinite(value) and torch.isfinite(grad).all() else z

    @property
    def _random_blocks(self) -> list[Block]:
        """The sites whose starting values are random."""
        return [
            block
            for name, block in self.blocks.items()
            if block.site.kind != "param" and name not in self.given
        ]

    def _random_point(self, generator: torch.Generator, jitter: bool, sign: float) -> Tensor:
        """Draw a point (d,) of the distribution of starting points, times a sign."""
        z = torch.empty(self.dim, dtype=torch.float64)
        moved = torch.ones(self.dim, dtype=torch.bool)
        for block in self.blocks.values():
            part = z[block.start : block.start + block.size]
            if block.site.kind == "param":
                assert block.site.transform is not None
                part.copy_(block.site.transform.inv(block.site.value).reshape(-1))
            else:
                part.uniform_(-INITIAL_RADIUS, INITIAL_RADIUS, generator=generator).mul_(sign)
        for block in self._random_blocks:
            moved[block.start : block.start + block.size] = False
        if self.given:
            there = self.unconstrain(self.constrain(z) | self.given)
            for name in self.given:
                block = self.blocks[name]
                given = slice(block.start, block.start + block.size)
                z[given] = there[given]
        if jitter:
            # A number times a mask would have the caller's default dtype.
            z[moved] += 0.2 * torch.empty_like(z).uniform_(-1, 1, generator=generator)[moved]
        return z

    def _bad(self, z: Tensor) -> float:
        """Count the elements of log densities at ``z`` (d,) that are not finite."""

        def count(trace: Trace) -> int:
            nodes: Any = trace.nodes
            scored = [
                nodes[site.name]
                for site in self.structure.of("latent", "observed", "factor")
                if site.name not in self._dropped
            ]
            return sum(
                int((~torch.isfinite(node["fn"].log_prob(node["value"]))).sum()) for node in scored
            )

        try:
            return self.run(count, _AtPoint(self, z))
        except (LinAlgError, ModelError):
            return math.inf

    def _explain_bad_start(self, z: Tensor, grad: Tensor) -> str:
        at = _AtPoint(self, z)
        blamed: list[str] = []

        def blame(trace: Trace) -> None:
            for site in self.structure.of("latent", "observed", "factor"):
                node: Any = trace.nodes[site.name]
                log_prob = node["fn"].log_prob(node["value"])
                bad = ~torch.isfinite(log_prob)
                if bad.any():
                    first = log_prob[bad].reshape(-1)[0].item()
                    blamed.append(
                        f"  site '{site.name}' ~ {site.distribution}: log probability {first} at "
                        f"{int(bad.sum())} of {bad.numel()} elements, value {_short(node['value'])}"
                    )

        try:
            self.run(blame, at)
        except LinAlgError as error:
            blamed.append(f"  linear algebra failed: {str(error).splitlines()[0]}")
        if not blamed:
            labels = [
                label for label, g in zip(self.labels, grad, strict=True) if not math.isfinite(g)
            ]
            blamed.append(f"  the gradient is not finite along {', '.join(labels[:8])}")
        tried = ", ".join(f"{name} = {_short(value)}" for name, value in at.values.items())
        try:  # Pyro's validation may name an invalid argument of a distribution
            self.run(lambda trace: trace.log_prob_sum(), _AtPoint(self, z), validate=True)
            advice = ""
        except (ProbdlError, LinAlgError) as error:
            advice = f"\n{error}"
        return (
            f"The model '{self.program.name}' has no finite log density at any of "
            f"{MAX_INITIAL_TRIES} random starts, uniform(-2, 2) on R^d, nor near them. At the last "
            "one "
            f"({tried}):\n"
            + "\n".join(blamed)
            + "\nCheck that the data are in the support for all values of the sites, and that "
            "scales and rates are positive, or give values from which the search can start: "
            "init={'site': value}." + advice
        )


def _gradient(value: Tensor, z: Tensor) -> Tensor:
    """Return a gradient, which is zero where the value does not depend on the point."""
    if not value.requires_grad:
        return torch.zeros_like(z)
    return torch.autograd.grad(value, z, materialize_grads=True)[0]


def _short(x: Tensor) -> str:
    flat = [f"{v:.4g}" for v in x.detach().reshape(-1)[:4].tolist()]
    more = ", …" if x.numel() > 4 else ""
    return flat[0] if x.ndim == 0 else f"[{', '.join(flat)}{more}]"
