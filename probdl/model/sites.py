"""What sites a program has: their kinds, shapes, plates and supports, and whether the data fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import broadcast_shape
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Transform, biject_to, constraints, transform_to
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probdl.errors import DataError, ModelError
from probdl.model.program import (
    Program,
    base_distribution,
    check_finite,
    format_index,
    is_deterministic,
)
from probdl.util.isolation import isolated

__all__ = [
    "Site",
    "Structure",
    "bijection",
    "data_plate",
    "discover",
    "own_parameter",
    "scalar_labels",
    "unconstrained_shape",
]

_TRIES = 100

Kind = Literal["latent", "discrete", "param", "observed", "factor", "deterministic"]


@dataclass(frozen=True)
class Site:
    """One named statement of a program, as it was when the program ran on its data."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dims: tuple[str | None, ...]  # the plate along each dimension, where there is one
    value: Tensor  # the data of an observed site, the present value of a param site
    distribution: str = ""
    count: int = 0  # how many observations the site scores
    transform: Transform | None = None  # from R^n; None where the support depends on other sites
    parameter: nn.Parameter | None = None  # the module's own parameter behind a param site
    flat: bool = False  # an improper prior, which cannot be sampled


@dataclass(frozen=True)
class Structure:
    """All sites of a program in the order in which it meets them, and its depth of plates."""

    sites: dict[str, Site] = field(default_factory=dict)
    plate_depth: int = 0

    def of(self, *kinds: Kind) -> list[Site]:
        """List the sites of these kinds."""
        return [site for site in self.sites.values() if site.kind in kinds]

    def with_values(self, params: Mapping[str, Tensor]) -> Structure:
        """Return the same sites with these values of param sites."""
        sites = {
            site.name: replace(site, value=params[site.name].to(site.value.dtype))
            for site in self.of("param")
            if site.name in params
        }
        return replace(self, sites=self.sites | sites)


def _check_name(name: str) -> None:
    """Refuse names under which ArviZ cannot hold draws, or no file can."""
    if name in ("chain", "draw"):
        raise ModelError(
            f"a site is named '{name}', as ArviZ names a dimension of all draws. Rename it."
        )
    if not name or "\0" in name:
        raise ModelError(f"the name of a site is {name!r}. Give it one of letters.")


class _RandomStart(Messenger):
    """Put each continuous latent site at a uniform(-2, 2) point of its unconstrained space.

    The prior is not sampled: it may be flat, and then it cannot be. What is no statement that
    can be used is refused.
    """

    def _pyro_post_param(self, msg: Any) -> None:
        _check_name(msg["name"])
        start = msg["args"][1] if len(msg["args"]) > 1 else None
        shape = getattr(start, "shape", None)
        sliced = msg["kwargs"].get("event_dim") is not None  # by a plate that takes a subsample
        if shape is not None and msg["value"].shape != shape and not sliced:
            raise ModelError(
                f"param '{msg['name']}' has the shape {tuple(msg['value'].shape)} in Pyro's param "
                f"store, from an earlier run, and starts with {tuple(shape)} in the model. "
                "pyro.clear_param_store() forgets it."
            )

    def _pyro_sample(self, msg: Any) -> None:
        if not isinstance(msg["name"], str):
            raise ModelError(f"the name of a site is {msg['name']!r}; it must be a string.")
        if not site_is_subsample(msg):
            _check_name(msg["name"])
        if not (isinstance(msg["fn"], TorchDistributionMixin) or site_is_subsample(msg)):
            kind = f"{type(msg['fn']).__module__}.{type(msg['fn']).__name__}"
            raise ModelError(
                f"site '{msg['name']}' is drawn from a {kind}. Take a distribution of "
                "pyro.distributions: `import pyro.distributions as dist`."
            )
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        if is_discrete(msg["fn"]):
            return
        transform = bijection(msg["fn"], msg["name"])
        shape = unconstrained_shape(transform, msg["fn"].shape())
        msg["value"] = transform(torch.empty(shape).uniform_(-2.0, 2.0))


def scalar_labels(name: str, shape: Sequence[int]) -> list[str]:
    """Name the scalars of a site.

    >>> scalar_labels("theta", (2,)), scalar_labels("mu", ())
    (['theta[0]', 'theta[1]'], ['mu'])
    """
    if not shape:
        return [name]
    return [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(*shape)]


def is_discrete(fn: Any) -> bool:
    """Tell whether a distribution's support is discrete."""
    return bool(fn.support.is_discrete)


def bijection(fn: Any, name: str) -> Transform:
    """Return the bijection from R^n to the support of a latent site's distribution."""
    try:
        return biject_to(fn.support)
    except NotImplementedError:
        raise ModelError(
            f"site '{name}': the support of {type(base_distribution(fn)).__name__} has no "
            f"bijection from R^n in torch ({fn.support}). Write the site through one that has: a "
            "covariance as LKJCholesky times scales, a point on a sphere as a normalised normal."
        ) from None


def unconstrained_shape(transform: Transform, shape: Sequence[int]) -> torch.Size:
    """Return the shape of a point of R^n that becomes a value of a shape."""
    if transform.domain.event_dim == 0 == transform.codomain.event_dim:
        return torch.Size(shape)  # so says torch too, but it imports SymPy for it, half a second
    return transform.inverse_shape(torch.Size(shape))


def discover(program: Program) -> Structure:
    """Run a program twice, from two random points, and return what stays the same.

    Raises ModelError where the two runs disagree on the sites, or a site cannot be used, and
    DataError where the observed data are not finite, not in the support, or of a shape that
    does not fit the plates.
    """
    with isolated(0):
        return _discover(program)


def _discover(program: Program) -> Structure:
    program.check_finite()
    traces = list(itertools.islice(_traces(program), 2))
    first, second = ({s.name: s for s in _sites(program, trace)} for trace in traces)
    _check_same(program, first, second)
    for site in first.values():
        if site.kind in ("observed", "factor"):
            _check_observed(program, traces[0].nodes[site.name], traces[1].nodes[site.name])
    return Structure(
        {name: _without_moving_transform(site, second[name]) for name, site in first.items()},
        max((-f.dim for n in traces[0].nodes.values() for f in _frames(n)), default=0),
    )


def _traces(program: Program) -> Iterator[Trace]:
    """Run the program from random points; those where its linear algebra fails do not count."""
    failure = None
    for seed in range(_TRIES):
        with isolated(seed):
            try:
                trace = program.run(_identity, _RandomStart())
            except LinAlgError as error:
                failure = error
                continue
        yield trace
    raise ModelError(
        f"the linear algebra of the model '{program.name}' failed at {_TRIES} random starts: "
        f"{str(failure).splitlines()[0]} Check that its matrices are positive definite; a small "
        "number on the diagonal (1e-6) helps one that is so only just."
    )


def _identity(trace: Trace) -> Trace:
    return trace


def _sites(program: Program, trace: Trace) -> Iterable[Site]:
    covered: set[int] = set()
    nodes: dict[str, Any] = trace.nodes  # type: ignore[assignment]
    for name, node in nodes.items():
        if node["type"] == "param":
            constraint = node["kwargs"].get("constraint")
            site = _param_site(name, node["value"], constraint, program.dtype, own_parameter(node))
            covered.update((id(node["value"]), id(site.parameter)))
            yield site
        elif node["type"] == "sample" and site_is_subsample(node):
            plate = node["fn"]
            if plate.subsample_size is not None and plate.subsample_size < plate.size:
                raise ModelError(
                    f"plate '{name}' takes a random subsample of {plate.subsample_size} of "
                    f"{plate.size}, which makes the log density random. Leave out "
                    "subsample_size; SVI(batch_size=...) takes minibatches of the whole."
                )
        elif node["type"] == "sample":
            yield _sample_site(name, node)
    # A plain nn.Module makes no param statements; its trainable parameters are sites all the same.
    if isinstance(program.model, nn.Module) and not isinstance(program.model, PyroModule):
        for name, parameter in program.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in covered:
                yield _param_site(name, parameter, None, program.dtype, parameter)


def own_parameter(node: Any) -> nn.Parameter | None:
    """Return the module's own parameter behind a param statement, where there is one.

    The param store may hold a copy of it, in another dtype, that the module does not read.
    """
    for value in (*node["args"][1:2], node["value"]):
        if isinstance(value, nn.Parameter):
            return value
    return None


def _param_site(
    name: str,
    value: Tensor,
    constraint: Any,
    dtype: torch.dtype,
    parameter: nn.Parameter | None,
) -> Site:
    constraint = constraint or constraints.real
    try:
        transform = biject_to(constraint)
    except NotImplementedError:
        transform = transform_to(constraint)
    return Site(
        name,
        "param",
        tuple(value.shape),
        (None,) * value.ndim,
        value.detach().to(dtype),
        transform=transform,
        parameter=parameter,
    )


def _sample_site(name: str, node: Any) -> Site:
    fn, value = node["fn"], node["value"]
    kind: Kind
    transform = None
    if is_deterministic(node):
        kind = "deterministic"
    elif node["is_observed"]:
        kind = "factor" if isinstance(base_distribution(fn), dist.Unit) else "observed"
    elif is_discrete(fn):
        kind = "discrete"
        if not fn.has_enumerate_support:
            raise ModelError(
                f"site '{name}': {_name(fn)} is discrete without a finite support, so it cannot be "
                "summed out exactly. Sum it out by hand (a Poisson rate with a gamma prior is a "
                "negative binomial), bound it (Categorical, Binomial), or make it continuous."
            )
    else:
        kind, transform = "latent", bijection(fn, name)
    shape = tuple(value.shape)
    event = fn.event_dim
    if kind == "deterministic" and event == len(shape):  # Pyro's default, which says nothing
        event = 0
    dims: list[str | None] = [None] * len(shape)
    for frame in _frames(node):
        axis = len(shape) - event + frame.dim
        if axis >= 0 and shape[axis] == frame.size:
            dims[axis] = frame.name
    count = 0
    if kind in ("observed", "factor"):
        batch = value.shape[: value.ndim - event] if kind == "observed" else torch.Size()
        count = _count(node, batch)
    return Site(
        name,
        kind,
        shape,
        tuple(dims),
        value.detach(),
        _name(fn),
        count,
        transform,
        flat=isinstance(base_distribution(fn), dist.ImproperUniform),
    )


def _name(fn: Any) -> str:
    return type(base_distribution(fn)).__name__


def _frames(node: Any) -> list[Any]:
    """List the vectorised plates around a site."""
    return [f for f in node.get("cond_indep_stack", ()) if f.vectorized]


def _unmasked(node: Any) -> Tensor:
    """Return the mask of a site: that of ``poutine.mask`` and those of its distribution."""
    masks = [node["mask"]]
    fn = node["fn"]
    while hasattr(fn, "base_dist"):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    result = torch.tensor(True)
    for mask in masks:
        if mask is not None:
            result = result & torch.as_tensor(mask)
    return result


def _count(node: Any, batch: torch.Size) -> int:
    mask = _unmasked(node)
    try:
        return int(mask.expand(broadcast_shape(batch, mask.shape, node["fn"].batch_shape)).sum())
    except (RuntimeError, ValueError):  # data that do not fit, of which _check_observed tells more
        return 0


def _check_same(program: Program, first: dict[str, Site], second: dict[str, Site]) -> None:
    for name in {**first, **second}:
        a, b = first.get(name), second.get(name)
        if a is None or b is None:
            raise ModelError(
                f"site '{name}' is met in one run of the model '{program.name}' and not in "
                "another. The sites of a model must not depend on random choices or on the values "
                "of other sites: use a mixture or torch.where() instead of `if`."
            )
        if a.kind != b.kind:
            raise ModelError(
                f"site '{name}' is {a.kind} in one run of the model '{program.name}' and {b.kind} "
                "in another. Whether `obs` is given must depend only on the model's arguments."
            )
        if a.shape != b.shape:
            raise ModelError(
                f"site '{name}' has the shape {a.shape} in one run of the model '{program.name}' "
                f"and {b.shape} in another. Shapes must depend only on the model's arguments."
            )


def _without_moving_transform(site: Site, other: Site) -> Site:
    """Drop the transform of a latent site whose support moves with the values of other sites."""
    if site.kind != "latent" or site.transform is None or other.transform is None:
        return site
    z = torch.zeros(unconstrained_shape(site.transform, site.shape), dtype=torch.float64)
    if torch.equal(site.transform(z), other.transform(z)):
        return site
    return replace(site, transform=None)


def _check_observed(program: Program, node: Any, other: Any) -> None:
    """Check the data of a site: finite, of a shape that fits the plates, and in the support."""
    name, fn, value = node["name"], node["fn"], node["value"]
    if isinstance(base_distribution(fn), dist.Unit):
        return
    check_finite(value, f"site '{name}', the observed data")
    source = next((n for n, t in program.named_data() if _shares_data(t, value)), None)
    hint = f"Check the observed data{f' passed as {source!r}' if source else ''}."
    batch = value.shape[: value.ndim - fn.event_dim]
    plates = ", ".join(f"plate '{f.name}' of size {f.size}" for f in _frames(node)) or "no plate"
    try:
        both = broadcast_shape(batch, fn.batch_shape)
        event_fits = value.shape[value.ndim - fn.event_dim :] == fn.event_shape or isinstance(
            base_distribution(fn), HiddenMarkovModel
        )  # those take series of any length where their parameters do not vary in time
    except ValueError:
        both, event_fits = None, True
    if both is None or both not in (batch, fn.batch_shape) or not event_fits:
        raise DataError(
            f"site '{name}': the observed data of shape {tuple(value.shape)} do not fit the "
            f"distribution {_name(fn)} of batch shape {tuple(fn.batch_shape)} and event shape "
            f"{tuple(fn.event_shape)} ({plates}). {hint} A column of shape (n, 1) where (n,) is "
            "meant, or a plate of another length, is the usual cause."
        )
    _check_totals(name, base_distribution(fn), value, hint)
    supports = [_elementwise(node["fn"].support) for node in (node, other)]
    try:
        inside, again = (support.check(value) for support, _ in supports)
    except NotImplementedError:  # a distribution that does not state its support
        return
    mask = _unmasked(node)
    mask = mask.reshape(mask.shape + (1,) * supports[0][1]) if mask.ndim else mask
    # A support that moves with the latent sites, as in Uniform(0, theta), proves nothing here.
    outside = ~inside & ~again & mask
    if not outside.any() or not _same_support(fn.support, other["fn"].support):
        return
    if isinstance(base_distribution(fn), dist.Bernoulli):
        hint += (
            " A Bernoulli takes 0 and 1: scale and binarise images, or use ContinuousBernoulli "
            "for values between."
        )
    index = tuple(outside.nonzero()[0].tolist())
    event = value.shape[value.ndim - fn.event_dim + supports[0][1] :]
    example = value.expand(broadcast_shape(value.shape, outside.shape + event))[index]
    shown = example.item() if example.numel() == 1 else example.tolist()
    at = f"index {format_index(index)} = {shown}" if index else f"{shown}"
    raise DataError(
        f"site '{name}': {int(outside.sum())} of {outside.numel()} values are outside the support "
        f"of {_name(fn)} (first: {at}). {hint}"
    )


def _check_totals(name: str, fn: Any, value: Tensor, hint: str) -> None:
    """Check that counts add up to the number of trials, which the support leaves open."""
    if not isinstance(fn, dist.Multinomial):
        return
    totals = value.sum(-1)
    if (totals != fn.total_count).any():
        raise DataError(
            f"site '{name}': the counts of a Multinomial add up to its total_count, "
            f"{fn.total_count}, and here to {sorted(set(totals.reshape(-1).tolist()))[:5]}. {hint}"
        )


def _elementwise(support: Any) -> tuple[Any, int]:
    """Return the support of single elements, and how many event dimensions that takes off."""
    taken = 0
    while isinstance(support, constraints.independent):
        taken += support.reinterpreted_batch_ndims
        support = support.base_constraint
    return support, taken


def _shares_data(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b.to(a.dtype)))


def _same_support(a: Any, b: Any) -> bool:
    """Tell whether two constraints, met in two runs, are the same set."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same_support, a, b))
    if isinstance(a, constraints.Constraint):
        return _same_support(list(vars(a).values()), list(vars(b).values()))
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)


def data_plate(program: Program, structure: Structure) -> tuple[str, int]:
    """Find the plate along which the observed data run, in their first dimension.

    Raises:
        ModelError: there is none, or the observed sites do not share it.
    """
    observed = structure.of("observed") or structure.of("deterministic")
    plates = {s.name: (s.dims[0], s.shape[0]) if s.shape else (None, 0) for s in observed}
    found = set(plates.values())
    if len(found) == 1:
        plate, size = found.pop()
        if plate is not None:
            return plate, size
    sites = ", ".join(f"'{name}' in {plate or 'none'}" for name, (plate, _) in plates.items())
    raise ModelError(
        f"the model '{program.name}' has no data plate: minibatches are rows of a pyro.plate that "
        "all observed sites share in their first dimension, and it has "
        f"{sites or 'no observed site'}. Put them into `with pyro.plate('data', len(x)):`."
    )
