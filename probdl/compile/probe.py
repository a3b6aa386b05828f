"""Checks that a log density is a deterministic, differentiable function of its sites.

Four mistakes in a model raise no error but make the results meaningless: random numbers outside
of sample sites; a gradient that is lost in a detached tensor; invalid arguments of a distribution;
and a network whose weights are not declared as sites. They are checked at one point before a fit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property
from torch.overrides import TorchFunctionMode

from probdl.compile.shortening import on_few_rows
from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.model.density import LogDensity
from probdl.util.calls import call_leaves
from probdl.util.isolation import generator_states

__all__ = ["check_gradient", "probe"]

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]

DIFFERENCE_STEPS = (1e-4, 1e-5)  # of the finite differences that a gradient is compared with
VALUE_TOLERANCE = 1e-9  # relative; sums in another order are rounded differently
GRADIENT_TOLERANCE = 1e-3  # relative
NEARER = 0.1  # a point at which the gradient is compared if that is not precise at another
RANDOM_EVALUATIONS = (
    30  # if a model draws random numbers, which may change nothing (an initial value)
)


def probe(
    density: LogDensity,
    z: Tensor,
    *,
    gradient: bool = True,
    value_and_grad: Evaluate | None = None,
    part: tuple[LogDensity, Tensor] | None = None,
) -> list[Finding]:
    """Check a model for mistakes at a point where its density is finite.

    Args:
        density: the log density of the model.
        z: the point, (d,).
        gradient: whether the method needs the gradient.
        value_and_grad: evaluates the model, or remembers what it was at the point.
        part: the density of a part of the data, and a point, at which to check what depends on the
            code of the model and not on the data.

    Raises:
        ModelError: the density is random, its gradient differs from finite differences, or an
            argument of a distribution is invalid.
    """
    name = density.program.name
    if bad := density.at(z, _bad_argument):
        raise ModelError(
            f"The model '{name}': {bad}. The distribution still computes a density there, but a "
            "meaningless one. Keep the argument in its range: use a prior with that support, "
            "torch.exp() for scales and rates, or logits= for probabilities."
        )
    few, z_few = part or (on_few_rows(density, z), z)
    if few is not density:
        density, z, value_and_grad = few, z_few, None
    at_z, grad = (value_and_grad or density.value_and_grad)(z)
    value = at_z.item()
    before = generator_states()
    with torch.enable_grad(), _SeenParameters() as seen:
        again = density(z.detach().requires_grad_())
    others = [again.item()]
    if generator_states() != before:
        others += [_value(density, z) for _ in range(RANDOM_EVALUATIONS - 1)]
    if any(abs(other - value) > VALUE_TOLERANCE * (1 + abs(value)) for other in others):
        raise ModelError(
            f"The log density of the model '{name}' is random: two evaluations at the same values "
            "of its sites differ. Draw random numbers with pyro.sample only, not with torch.randn, "
            "np.random or dist.Normal(...).sample(), and call .eval() on a network with dropout."
        )
    if gradient:
        value_of = functools.partial(_value, density)
        if not _check_slopes(density, z, value, grad, value_of):
            _check_nearer(density, z, density.value_and_grad, value_of)
    return _undeclared_parameters(density, again, list(seen.found.values()))


def _value(density: LogDensity, z: Tensor) -> float:
    with torch.no_grad():
        return density(z).item()


def _bad_argument(trace: Trace) -> str:
    """Return a message on the first argument of a distribution outside its range, or ''."""
    nodes: dict[str, Any] = trace.nodes  # type: ignore[assignment]
    for site, node in nodes.items():
        if node["type"] != "sample":
            continue
        for fn in _components(node["fn"]):
            for name, constraint in getattr(fn, "arg_constraints", {}).items():
                if constraints.is_dependent(constraint) or not _is_passed(fn, name):
                    continue
                value = getattr(fn, name)
                if not isinstance(value, Tensor):
                    continue
                inside = constraint.check(value)
                if not inside.all():
                    event = value.shape[inside.ndim :]
                    first = value.expand(inside.shape + event)[~inside][0].tolist()
                    return (
                        f"site '{site}' ~ {type(fn).__name__} has {name} = {first}, which is not "
                        f"in {constraint}"
                    )
    return ""


def _components(fn: Any) -> Iterator[Any]:
    """Yield a distribution and the distributions that it is composed of."""
    yield fn
    for name in ("base_dist", "_mixture_distribution", "_component_distribution"):
        if (part := getattr(fn, name, None)) is not None:
            yield from _components(part)


def _is_passed(fn: Any, name: str) -> bool:
    """Return whether an argument was passed to the distribution, rather than derived by it."""
    return name in vars(fn) or not isinstance(
        getattr(type(fn), name, None), (lazy_property, property)
    )


def check_gradient(density: LogDensity, z: Tensor, value_and_grad: Evaluate) -> None:
    """Compare the gradient of a density by compiled code with finite differences of its values.

    Raises:
        ModelError: they differ.
    """

    def value_of(z: Tensor) -> float:
        return value_and_grad(z)[0].item()

    value, grad = value_and_grad(z)
    if not _check_slopes(density, z, value.item(), grad, value_of):
        _check_nearer(density, z, value_and_grad, value_of)


def _check_nearer(
    density: LogDensity, z: Tensor, value_and_grad: Evaluate, value_of: Callable[[Tensor], float]
) -> None:
    """Check the gradient nearer to the origin: far from it, loops over time may be chaotic."""
    value, grad = value_and_grad(NEARER * z)
    if torch.isfinite(value) and torch.isfinite(grad).all():
        _check_slopes(density, NEARER * z, value.item(), grad, value_of)


def _check_slopes(
    density: LogDensity,
    z: Tensor,
    value: float,
    grad: Tensor,
    value_of: Callable[[Tensor], float],
) -> bool:
    """Compare the gradient with finite differences: in one direction, then for each site.

    Returns:
        Whether the finite differences are precise enough to see a wrong gradient.

    Raises:
        ModelError: the gradient is wrong.
    """
    clear = True
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    noise = 1e-12 * (1 + abs(value)) / DIFFERENCE_STEPS[1]

    def slope_along(along: Tensor, step: float) -> float:
        ahead, behind = value_of(z + step * along), value_of(z - step * along)
        return (ahead - behind) / (2 * step)

    def difference(along: Tensor, tolerance: float) -> tuple[float, float] | None:
        computed = float(grad @ along)
        coarse, fine = DIFFERENCE_STEPS
        found = slope_along(along, coarse)
        error = 100 * noise + tolerance * abs(found)
        if abs(found - computed) > error:
            rough = 100 * abs(found - slope_along(along, fine))
            nonlocal clear
            clear = clear and not rough > GRADIENT_TOLERANCE * abs(found)
            error += rough
        return (computed, found) if abs(found - computed) > error else None

    if difference(direction, VALUE_TOLERANCE) is None:
        return clear
    wrong = []
    for site, block in density.blocks.items():
        part = torch.zeros_like(z)
        part[block.start : block.start + block.size] = 1.0
        if (found := difference(part * direction, GRADIENT_TOLERANCE)) is not None:
            wrong.append((site, *found))
    if not wrong:
        return clear
    _, computed, slope = wrong[0]
    sites = ", ".join(repr(site) for site, *_ in wrong[:5])
    raise ModelError(
        f"The gradient of the log density of the model '{density.program.name}' is wrong for "
        f"{sites}: the directional derivative is {computed:.4g} by autograd and {slope:.4g} by "
        "finite differences. Inside the model, do not apply torch.no_grad(), .detach(), .item(), "
        "float(), NumPy or torch.tensor() to the values of sites; use torch.stack() to join them. "
        "Alternatively, use method='metropolis', which needs no gradient."
    )


class _SeenParameters(TorchFunctionMode):
    """Collect the trainable parameters that functions of torch receive.

    Walking through the graph of autograd in Python finds them too, but torch then frees a long
    graph recursively, which overflows the stack.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, torch.nn.Parameter] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        for x in call_leaves(args, kwargs):
            if isinstance(x, torch.nn.Parameter) and x.requires_grad:
                self.found[id(x)] = x
        return func(*args, **(kwargs or {}))


def _undeclared_parameters(
    density: LogDensity, value: Tensor, parameters: list[torch.nn.Parameter]
) -> list[Finding]:
    """Report trainable tensors that the value of a density depends on but that are not sites."""
    if not parameters or not value.requires_grad:
        return []
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    shapes = [tuple(p.shape) for p, grad in zip(parameters, grads, strict=True) if grad is not None]
    if not shapes:
        return []
    shown = ", ".join(map(str, shapes[:5])) + (" …" if len(shapes) > 5 else "")
    if len(shapes) == 1:
        uses, stay = (
            f"a trainable parameter that is not a site (of shape {shown})",
            "it stays at its",
        )
    else:
        uses = f"{len(shapes)} trainable parameters that are not sites (of shapes {shown})"
        stay = "they stay at their"
    return [
        Finding(
            "warning",
            "undeclared",
            f"The model '{density.program.name}' uses {uses}, so {stay} current "
            f"{'value' if len(shapes) == 1 else 'values'}.",
            "Declare the network with pyro.module('net', net), make the model a module that holds "
            "it, or give its weights priors with probdl.nn.bayesian(net). To keep them fixed, call "
            "net.requires_grad_(False).",
        )
    ]
