"""The sites of a program: their kinds, shapes, plates and supports."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Transform, constraints, transform_to
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probdl.errors import CheckError, DataError, ModelError, ProbdlError
from probdl.model.bijections import bijection, bijection_to, unconstrained_shape
from probdl.model.callables import owner_module
from probdl.model.dependence import Dependence
from probdl.model.distributions import base_distribution, distribution_name, is_deterministic
from probdl.model.obs_mask import used_elements
from probdl.model.observations import (
    check_observed,
    fill_of,
    scored_elements,
    shares_data,
    vectorized_plates,
)
from probdl.model.program import Program
from probdl.util.isolation import evaluation, isolated
from probdl.util.text import has_controls

__all__ = [
    "Site",
    "Structure",
    "centred_sites",
    "data_plate",
    "data_plates",
    "discover",
    "is_discrete",
    "own_parameter",
    "random_traces",
    "scalar_labels",
]

RETRY_S = 2.0  # after which a model that raised at each random point is not run again
MAX_RANDOM_STARTS = 100  # runs of the program before linear-algebra failures are an error

# What LocScaleReparam can write non-centred.
LOCATION_SCALE = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.AsymmetricLaplace)

Kind = Literal["latent", "discrete", "param", "observed", "factor", "deterministic"]
Term = Literal["pointwise", "joint"]


@dataclass(frozen=True)
class Site:
    """One named statement of a program, as recorded when the program ran on its data."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dims: tuple[str | None, ...]  # the plate along each dimension, if any
    value: Tensor  # the data of an observed site, the current value of a param site
    distribution: str = ""
    count: int = 0  # the number of observations that the site scores
    transform: Transform | None = None  # from R^n; None if the support depends on other sites
    parameter: nn.Parameter | None = None  # the module's own parameter behind a param site
    flat: bool = False  # an improper prior, which cannot be sampled
    # What the site is in the likelihood: terms of single observations, or one of several together.
    # Other factors are terms of the prior.
    term: Term | None = None
    plated: bool = False  # whether it is in a plate
    event_dim: int = 0
    mask: Tensor | None = None  # (*batch, *event) of an observed site; None if no element is masked
    unsummable: str = ""  # why a discrete site cannot be summed out, and what to do instead
    computed: bool = False  # whether an observed value depends on latent sites
    imputed: bool = False  # whether some of its elements are latent values
    centred: bool = False  # a latent site whose scale depends on other latent sites
    # An observed site of counts or classes; a latent one whose values a guide draws.
    is_discrete: bool = False
    given_others: bool | None = None  # of a saved fit: whether its terms are given others of them

    @property
    def is_scored(self) -> Tensor | None:
        """Which observations count in the likelihood, (*batch shape); None if all do."""
        if self.mask is None or not self.event_dim:
            return self.mask
        return self.mask.flatten(-self.event_dim).any(-1)


@dataclass(frozen=True)
class Structure:
    """All sites of a program in execution order, the depth of its plates, and their sizes."""

    sites: dict[str, Site] = field(default_factory=dict)
    plate_depth: int = 0
    declared: dict[str, int] = field(default_factory=dict)  # sizes of plates that hold fewer rows

    def of(self, *kinds: Kind) -> list[Site]:
        """List the sites of these kinds."""
        return [site for site in self.sites.values() if site.kind in kinds]

    def module_parameters(self, values: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Map a module's own parameters to given values by site, or to the fixed ones."""
        return {
            site.parameter: values.get(site.name, site.value)
            for site in self.of("param")
            if site.parameter is not None
        }

    def count_values(self, *kinds: Kind) -> int:
        """Return the number of values that the sites of these kinds hold together."""
        return sum(math.prod(site.shape) for site in self.of(*kinds))

    def terms(self, *terms: Term) -> list[Site]:
        """List the sites that are terms of the likelihood; all, or those of these types."""
        return [s for s in self.sites.values() if s.term and s.term in (terms or (s.term,))]

    def check_summable(self) -> None:
        """Raise ModelError for a discrete site that cannot be summed out."""
        for site in self.of("discrete"):
            if site.unsummable:
                raise ModelError(site.unsummable)

    def with_sampled(self, names: Collection[str]) -> Structure:
        """Return the same sites, with discrete ones as latent sites that a guide samples."""
        sampled = {
            site.name: replace(site, kind="latent", is_discrete=True)
            for site in self.of("discrete")
            if site.name in names
        }
        return replace(self, sites=self.sites | sampled)

    def with_values(self, params: Mapping[str, Tensor]) -> Structure:
        """Return the same sites with new values of param sites."""
        sites = {
            site.name: replace(site, value=params[site.name].to(site.value.dtype))
            for site in self.of("param")
            if site.name in params
        }
        return replace(self, sites=self.sites | sites)


def _check_name(name: str) -> None:
    """Raise ModelError for a site name that ArviZ or netCDF files cannot hold."""
    if name in ("chain", "draw"):
        raise ModelError(
            f"A site is named '{name}', which is the name of a dimension in ArviZ. Rename the site."
        )
    if name in ("", ".") or has_controls(name):
        raise ModelError(f"The name of a site is {name!r}. Use a name of printable characters.")


class _RandomStart(Messenger):
    """Set each continuous latent site to a uniform(-2, 2) point of its unconstrained space.

    The prior is not sampled, because it may be improper. Invalid statements raise ModelError.
    """

    def _pyro_post_param(self, msg: Any) -> None:
        _check_name(msg["name"])
        start = msg["args"][1] if len(msg["args"]) > 1 else None
        shape = getattr(start, "shape", None)
        sliced = msg["kwargs"].get("event_dim") is not None  # a plate may subsample the parameter
        if shape is not None and msg["value"].shape != shape and not sliced:
            raise ModelError(
                f"Param '{msg['name']}' has shape {tuple(msg['value'].shape)} in Pyro's param "
                f"store, from an earlier run, but its initial value in the model has shape "
                f"{tuple(shape)}. Call pyro.clear_param_store() first."
            )

    def _pyro_sample(self, msg: Any) -> None:
        if not isinstance(msg["name"], str):
            raise ModelError(f"The name of a site is {msg['name']!r}. It must be a string.")
        if not site_is_subsample(msg):
            _check_name(msg["name"])
        if not (isinstance(msg["fn"], TorchDistributionMixin) or site_is_subsample(msg)):
            kind = f"{type(msg['fn']).__module__}.{type(msg['fn']).__name__}"
            raise ModelError(
                f"Site '{msg['name']}' has a distribution of type {kind}. Use a distribution from "
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
    """Return a label for each scalar of a site.

    >>> scalar_labels("theta", (2,)), scalar_labels("mu", ())
    (['theta[0]', 'theta[1]'], ['mu'])
    """
    if not shape:
        return [name]
    return [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(*shape)]


def is_discrete(fn: Any) -> bool:
    """Return whether the support of a distribution is discrete."""
    return bool(fn.support.is_discrete)


def discover(program: Program) -> Structure:
    """Run a program twice, at two random points, and return the sites on which both runs agree.

    Raises:
        ModelError: the two runs have different sites, or a site cannot be used.
        DataError: the observed data are not finite, outside the support, or of a shape that does
            not match the plates.
    """
    with isolated(0):
        return _discover(program)


def _discover(program: Program) -> Structure:
    traces = _two_traces(program)
    first, second = ({s.name: s for s in _sites(program, trace)} for trace in traces)
    _check_same(program, first, second)
    for site in first.values():
        if site.kind in ("observed", "factor"):
            check_observed(program, traces[0].nodes[site.name], traces[1].nodes[site.name])
    terms = _terms(program, first, traces[0])
    return Structure(
        {
            name: _without_imputed(
                program,
                replace(
                    _without_moving_transform(site, second[name]),
                    term=terms.get(name),
                    mask=_masked_in_both(site, second[name]),
                    computed=site.kind == "observed"
                    and not shares_data(site.value, second[name].value),
                    centred=site.kind == "latent" and _scale_varies(name, traces),
                ),
                second[name],
            )
            for name, site in first.items()
        },
        max((-f.dim for n in traces[0].nodes.values() for f in vectorized_plates(n)), default=0),
        {
            f.name: f.full_size
            for n in traces[0].nodes.values()
            for f in vectorized_plates(n)
            if f.full_size is not None and f.full_size != f.size
        },
    )


def _two_traces(program: Program) -> list[Trace]:
    """Return traces at two random points, without NaN that the model masks.

    Raises:
        DataError: the log density is not finite, and an argument holds NaN or infinite values.
    """
    traces = list(itertools.islice(random_traces(program), 2))
    observed = [node for node in traces[0].nodes.values() if node.get("is_observed")]
    several = program.loader is not None  # later batches may contain NaN if the first does not
    found = {
        str(node["name"]): fill_of(node, always=several, masked=program.masks_missing)
        for node in observed
        if not site_is_subsample(node)
    }
    if fills := {name: fill for name, fill in found.items() if fill is not None}:
        program.fills.update(fills)
        traces = list(itertools.islice(random_traces(program), 2))
    if not (program.used or program.minibatch or program.subsampled):
        used, again = (used_elements(trace) for trace in traces)
        program.used.update(
            {n: used[n] for n in used if n in again and torch.equal(used[n], again[n])}
        )
        if program.used:
            traces = list(itertools.islice(random_traces(program), 2))
    if program.masks_missing and program.fills:
        _check_fills(program)
    if program.not_finite() and not any(_is_possible(program, trace) for trace in traces):
        program.check_finite(_observed_arguments(program, observed))
    return traces


def _check_fills(program: Program) -> None:
    """Check that what stands for missing observations has no influence on other sites.

    Raises:
        DataError: a site is computed from the missing values of another.
    """
    runs = []
    for change in (0.0, 1.0):  # other values in the place of the missing ones
        other = copy.copy(program)
        other.fills = {name: fill + change for name, fill in program.fills.items()}
        with isolated(0), evaluation(dtype=program.dtype), torch.no_grad():
            run = next(random_traces(other))
            with program.precision.enforced(), contextlib.suppress(RuntimeError, ValueError):
                run.compute_log_prob()
        runs.append(run)
    first, second = runs
    for name, node in first.nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        mine, others = (n.nodes[name].get("log_prob") for n in runs)
        same = mine is None or others is None or _equal(mine, others)
        values = node["value"], second.nodes[name]["value"]
        if not same or (is_deterministic(node) and not _equal(*values)):
            missing = ", ".join(map(repr, program.fills))
            raise DataError(
                f"Site '{name}' is computed from the missing values of {missing}, so they cannot "
                "be left out. Give them a distribution: a latent site in their place, or leave out "
                "these rows."
            )


def _equal(value: Any, other: Any) -> bool:
    """Return whether two values are the same; NaN has another cause, which is reported later."""
    first, second = torch.as_tensor(value), torch.as_tensor(other)
    return first.shape == second.shape and torch.equal(first.nan_to_num(), second.nan_to_num())


def _observed_arguments(program: Program, observed: Iterable[Any]) -> list[str]:
    """Return the arguments whose missing values may be those of observed sites that are masked."""
    if not program.masks_missing:
        return []
    values = [np.asarray(node["value"]) for node in observed]
    data = [(name, np.asarray(tensor)) for name, tensor in program.named_data()]
    return [n for n, of in data if any(np.array_equal(of, v, equal_nan=True) for v in values)]


def _is_possible(program: Program, trace: Trace) -> bool:
    """Return whether the log density of a run is finite; True if it cannot be computed."""
    with evaluation(dtype=program.dtype), program.precision.enforced(), torch.no_grad():
        try:
            return math.isfinite(float(trace.log_prob_sum()))
        except (RuntimeError, ValueError):  # shapes do not match, which is reported later
            return True


def _masked_in_both(site: Site, other: Site) -> Tensor | None:
    """Return the mask of a site without the elements that latent values mask."""
    if site.mask is None or other.mask is None:
        return None
    return site.mask | other.mask


def _scale_varies(name: str, traces: Sequence[Trace]) -> bool:
    """Return whether the distribution of a site has another scale at another random point."""
    of = [base_distribution(trace.nodes[name]["fn"]) for trace in traces]
    if all(isinstance(fn, dist.MultivariateNormal) for fn in of):
        first, second = (fn.scale_tril for fn in of)
    elif all(isinstance(fn, LOCATION_SCALE) for fn in of):
        first, second = (fn.scale for fn in of)
    else:
        return False
    return first.shape != second.shape or not torch.equal(first, second)


def centred_sites(structure: Structure) -> list[Site]:
    """List the latent sites whose scale is another latent site: centred effects of groups."""
    return [site for site in structure.of("latent") if site.centred]


def _without_imputed(program: Program, site: Site, other: Site) -> Site:
    """Return an observed site in which elements that are latent values do not count as observed.

    They differ between two runs, and the others are those of an argument. What is computed from
    latent values and the argument together, such as a shifted observation, is an observation.
    """
    if not site.computed or site.value.shape != other.value.shape:
        return site
    known = site.value == other.value
    if known.all() or not known.any():
        return site
    if not (known | _is_latent(program, site, known)).all():
        return site
    mask = known if site.mask is None else known & site.mask
    events = mask.flatten(-site.event_dim).any(-1) if site.event_dim else mask
    return replace(site, mask=mask, count=int(events.sum()), imputed=True)


def _is_latent(program: Program, site: Site, known: Tensor) -> Tensor:
    """Return which elements of observed data do not depend on the arguments with the others."""
    counted = known if site.mask is None else known & site.mask
    given = torch.zeros_like(known)  # elements that depend on these arguments
    for i, value in enumerate(program.tensors()):
        if value.dtype != torch.bool:
            moved = _moved(program, site, i, value)
            if moved is not None and (moved & counted).any():
                given = given | moved
    explained = bool(counted.any()) and bool(given[counted].all())
    return ~given if explained else torch.zeros_like(known)


def _moved(program: Program, site: Site, i: int, value: Tensor) -> Tensor | None:
    """Return which elements of observed data depend on a tensor; None if the model needs it."""
    tensors = program.tensors()
    change = torch.ones_like(value)
    if value.is_floating_point():  # other amounts for each element, which no standardising removes
        ramp = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
        change = 0.5 * (1 + value.abs()) * ramp
    found = []
    for changed in (value, value + change):
        tensors[i] = changed
        try:
            with isolated(0):
                trace = next(random_traces(program.with_tensors(tensors)))
        except ProbdlError:  # such as an index, which is now out of range
            return None
        found.append(torch.as_tensor(trace.nodes[site.name]["value"]))
    first, second = found
    return first != second if first.shape == second.shape == site.value.shape else None


def _terms(program: Program, sites: Mapping[str, Site], trace: Trace) -> dict[str, Term]:
    """Find the terms of the likelihood: the observed sites, and factors.

    A factor in a plate is a term, as is a factor that is computed from the data. But if others are
    computed from them, a factor that is not, in a plate of latent sites, belongs to their prior. If
    there is no term, all factors are terms.
    """
    terms: dict[str, Term] = {s.name: "pointwise" for s in sites.values() if s.kind == "observed"}
    factors = [s.name for s in sites.values() if s.kind == "factor"]
    if not factors:
        return terms
    nodes: Any = trace.nodes

    def plates(name: str) -> set[str]:
        return {frame.name for frame in nodes[name]["cond_indep_stack"]}

    latent = {p for s in sites.values() if s.kind in ("latent", "discrete") for p in plates(s.name)}
    dependent = _computed_from_data(program, [*terms, *factors])
    for name in factors:
        if name in dependent or (plates(name) and not (dependent and plates(name) & latent)):
            terms[name] = "pointwise"
    if any(sites[name].count > 1 for name in terms):  # then one number may be a sum of several
        for name in factors:
            if name in terms and not plates(name) and not nodes[name]["fn"].batch_shape:
                terms[name] = "joint"
    return terms or dict.fromkeys(factors, "pointwise")


def _computed_from_data(program: Program, names: Sequence[str]) -> set[str]:
    """Return which observed sites and factors depend on the tensors among the arguments."""
    with Dependence(program.tensors()) as dependence:
        nodes: Any = next(random_traces(program)).nodes
    return {
        name
        for name in names
        if dependence.covers(
            nodes[name]["value"], getattr(base_distribution(nodes[name]["fn"]), "log_factor", None)
        )
    }


def random_traces(program: Program) -> Iterator[Trace]:
    """Yield traces at random points, skipping those where linear algebra or a check fails."""
    failure: Exception | None = None
    failed, began = 0, time.monotonic()
    for seed in range(MAX_RANDOM_STARTS):
        with isolated(seed):
            try:
                trace = program.run(lambda trace: trace, _RandomStart())
            except (LinAlgError, CheckError) as error:
                failure, failed = error, failed + 1
                late = failed == seed + 1 and time.monotonic() - began > RETRY_S
                if late and isinstance(error, CheckError):  # it may fail everywhere
                    break
                continue
        yield trace
    if isinstance(failure, CheckError):
        raise failure
    raise ModelError(
        f"A matrix operation in the model '{program.name}' failed at {failed} of "
        f"{MAX_RANDOM_STARTS} random starting points: {str(failure).splitlines()[0]} Check that "
        "its matrices are positive definite; add a small number (1e-6) to the diagonal of a matrix "
        "that is nearly singular."
    )


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
            partial = plate.subsample_size is not None and plate.subsample_size < plate.size
            if partial and not program.minibatch:
                raise ModelError(
                    f"Plate '{name}' takes a random subsample of {plate.subsample_size} of "
                    f"{plate.size}, which makes the log density random. Remove subsample_size; "
                    "for minibatches, use SVI(batch_size=...)."
                )
        elif node["type"] == "sample":
            yield _sample_site(name, node)
    # A plain nn.Module makes no param statements, but its trainable parameters are sites as well.
    module = None if isinstance(program.model, types.MethodType) else owner_module(program.model)
    if module is not None and not isinstance(module, PyroModule):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in covered:
                yield _param_site(name, parameter, None, program.dtype, parameter)


def own_parameter(node: Any) -> nn.Parameter | None:
    """Return the module's own parameter behind a param statement, or None.

    The param store may hold a copy in another dtype, which the module does not read.
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
        transform = bijection_to(constraint)
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
    else:
        kind, transform = "latent", bijection(fn, name)
    shape = tuple(value.shape)
    event = fn.event_dim
    if kind == "deterministic" and event == len(shape):  # Pyro's default, not the user's choice
        event = 0
    dims: list[str | None] = [None] * len(shape)
    for frame in vectorized_plates(node):
        axis = len(shape) - event + frame.dim
        if axis >= 0 and shape[axis] == frame.size:
            dims[axis] = frame.name
    count, mask = 0, None
    if kind in ("observed", "factor"):
        event = event if kind == "observed" else 0
        try:
            mask = scored_elements(node)
            rows = mask.flatten(-event).any(-1) if event else mask
            count = int(rows.sum())
        except (RuntimeError, ValueError):  # mismatched shapes, which check_observed reports
            pass
    return Site(
        name,
        kind,
        shape,
        tuple(dims),
        value.detach(),
        distribution_name(fn),
        count,
        transform,
        flat=isinstance(base_distribution(fn), dist.ImproperUniform),
        plated=bool(node["cond_indep_stack"]),
        event_dim=event,
        unsummable=_why_not_summed(name, fn) if kind == "discrete" else "",
        mask=None if mask is None or mask.all() else mask.clone(),
        is_discrete=kind == "observed" and is_discrete(fn),
    )


def _why_not_summed(name: str, fn: Any) -> str:
    """Return why the values of a discrete site cannot be listed, or '' if they can."""
    if fn.has_enumerate_support:
        return ""
    kind = distribution_name(fn)
    if base_distribution(fn).has_enumerate_support:
        return (
            f"Site '{name}': several {kind} values in one event, as by to_event(1), cannot be "
            "summed out one by one. Put them in a pyro.plate instead, or pass a guide that samples "
            "the site, with method='svi'."
        )
    return (
        f"Site '{name}': {kind} is discrete without a finite support, so it cannot be summed out "
        "exactly. Marginalise it analytically (a Poisson with a gamma rate is a negative "
        "binomial), use a distribution with finite support (Categorical, Binomial), or a "
        "continuous one, or pass a guide that samples the site, with method='svi'."
    )


def _check_same(program: Program, first: dict[str, Site], second: dict[str, Site]) -> None:
    for name in {**first, **second}:
        a, b = first.get(name), second.get(name)
        if a is None or b is None:
            raise ModelError(
                f"Site '{name}' exists in one run of the model '{program.name}' but not in "
                "another. The sites of a model must not depend on random choices or on the values "
                "of other sites: use a mixture or torch.where() instead of `if`."
            )
        if a.kind != b.kind:
            raise ModelError(
                f"Site '{name}' is {a.kind} in one run of the model '{program.name}' and {b.kind} "
                "in another. Whether `obs` is given must depend only on the model's arguments."
            )
        if a.shape != b.shape:
            raise ModelError(
                f"Site '{name}' has shape {a.shape} in one run of the model '{program.name}' "
                f"and {b.shape} in another. Shapes must depend only on the model's arguments."
            )


def _without_moving_transform(site: Site, other: Site) -> Site:
    """Drop the transform of a latent site whose support depends on the values of other sites."""
    if site.kind != "latent" or site.transform is None or other.transform is None:
        return site
    z = torch.zeros(unconstrained_shape(site.transform, site.shape), dtype=torch.float64)
    if torch.equal(site.transform(z), other.transform(z)):
        return site
    return replace(site, transform=None)


def data_plates(structure: Structure) -> dict[str, int]:
    """Return the sizes of the plates along the first dimensions of the observed sites, by name.

    A model of labelled and unlabelled rows, for example, has two.
    """
    observed = structure.of("observed") or structure.of("deterministic")
    return {s.dims[0]: s.shape[0] for s in observed if s.shape and s.dims[0] is not None}


def data_plate(program: Program, structure: Structure) -> tuple[str, int]:
    """Return the name and size of the plate along the first dimension of the observed data.

    Raises:
        ModelError: there is no such plate, or the observed sites do not share it.
    """
    observed = structure.of("observed") or structure.terms() or structure.of("deterministic")
    plates = {s.name: (s.dims[0], s.shape[0]) if s.shape else (None, 0) for s in observed}
    found = set(plates.values())
    if len(found) == 1:
        plate, size = found.pop()
        if plate is not None:
            return plate, size
    sites = ", ".join(f"'{name}' in {plate or 'none'}" for name, (plate, _) in plates.items())
    raise ModelError(
        f"The model '{program.name}' has no data plate: minibatches are rows of a pyro.plate that "
        f"all observed sites share in their first dimension. Found: {sites or 'no observed site'}. "
        "Put the observed sites in `with pyro.plate('data', len(x)):`."
    )
