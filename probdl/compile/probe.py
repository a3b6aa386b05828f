"""Whether a log density is what methods take it for: a function, with a gradient, of its sites.

Four slips in a model go through without a sound, and give numbers that mean nothing: it draws at
random outside its sites; a gradient is cut on its way; a distribution gets arguments that are none
and computes all the same; a network takes part whose weights no one has declared. They are looked
for at one point, before the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.model.density import LogDensity

__all__ = ["probe"]

STEPS = (1e-4, 1e-5)  # of the differences that a gradient is compared with
SAME = 1e-9  # relative; rounding in sums that run in another order
GRADIENT_SAME = 1e-3


def probe(density: LogDensity, z: Tensor, *, gradient: bool = True) -> list[Finding]:
    """Look for slips in a model at a point (d,) where its density is finite.

    Args:
        density: the log density of the model.
        z: the point.
        gradient: whether the gradient matters.

    Raises:
        ModelError: the density is random, its gradient is not its slope, or a distribution has
            arguments that it cannot have.
    """
    name = density.program.name
    value = _value(density, z)
    if abs(_value(density, z) - value) > SAME * (1 + abs(value)):
        raise ModelError(
            f"the log density of the model '{name}' is random: at the same values of its sites it "
            "came out different. Draw at random by pyro.sample alone, not by torch.randn, "
            "np.random or dist.Normal(...).sample(), and call .eval() on a network with dropout."
        )
    if bad := density.at(z, _bad_argument):
        raise ModelError(
            f"the model '{name}': {bad}, and there the distribution computes a density all the "
            "same, which means nothing. Keep the argument in its range: a prior with that support, "
            "or torch.exp() for scales and rates, logits= for probabilities."
        )
    if gradient:
        _check_gradient(density, z)
    return _undeclared(density, z)


def _value(density: LogDensity, z: Tensor) -> float:
    with torch.no_grad():
        return density(z).item()


def _bad_argument(trace: Trace) -> str:
    """Say which distribution has an argument outside its range; none is ''."""
    nodes: dict[str, Any] = trace.nodes  # type: ignore[assignment]
    for site, node in nodes.items():
        if node["type"] != "sample":
            continue
        for fn in _parts(node["fn"]):
            for name, constraint in getattr(fn, "arg_constraints", {}).items():
                if constraints.is_dependent(constraint) or not _given(fn, name):
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


def _parts(fn: Any) -> Iterator[Any]:
    """List a distribution and those it is made of."""
    yield fn
    for name in ("base_dist", "_mixture_distribution", "_component_distribution"):
        if (part := getattr(fn, name, None)) is not None:
            yield from _parts(part)


def _given(fn: Any, name: str) -> bool:
    """Tell whether a distribution was given this argument, and does not derive it."""
    return name in vars(fn) or not isinstance(
        getattr(type(fn), name, None), (lazy_property, property)
    )


def _check_gradient(density: LogDensity, z: Tensor) -> None:
    """Compare the gradient with slopes: along one direction, and where that differs, by site."""
    _, grad = density.value_and_grad(z)
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    noise = 1e-12 * (1 + abs(_value(density, z))) / STEPS[1]

    def differs(along: Tensor, tolerance: float) -> tuple[float, float] | None:
        told = float(grad @ along)
        slopes = [
            (_value(density, z + h * along) - _value(density, z - h * along)) / (2 * h)
            for h in STEPS
        ]
        error = 100 * (abs(slopes[0] - slopes[1]) + noise) + tolerance * abs(slopes[0])
        return (told, slopes[0]) if abs(slopes[0] - told) > error else None

    if differs(along, SAME) is None:
        return
    wrong = []
    for site, block in density.blocks.items():
        part = torch.zeros_like(z)
        part[block.start : block.start + block.size] = 1.0
        if (found := differs(part * along, GRADIENT_SAME)) is not None:
            wrong.append((site, *found))
    if not wrong:
        return
    site, told, slope = wrong[0]
    sites = ", ".join(repr(site) for site, *_ in wrong[:5])
    raise ModelError(
        f"the gradient of the log density of the model '{density.program.name}' is cut for "
        f"{sites}: torch computes {told:.4g} where the density rises by {slope:.4g}. Inside the "
        "model leave out torch.no_grad(), .detach(), .item(), float(), NumPy and torch.tensor() on "
        "the values of sites (torch.stack() joins them), or fit by method='metropolis', which "
        "needs no gradient."
    )


def _undeclared(density: LogDensity, z: Tensor) -> list[Finding]:
    """Tell of trainable tensors that the density depends on, and that are no sites."""
    with torch.enable_grad():
        value = density(z.detach().requires_grad_())
    seen, left, shapes = set(), [value.grad_fn], []
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and isinstance(leaf, torch.nn.Parameter):
            shapes.append(tuple(leaf.shape))
        left.extend(following for following, _ in node.next_functions)
    if not shapes:
        return []
    shown = ", ".join(map(str, shapes[:5])) + (" …" if len(shapes) > 5 else "")
    return [
        Finding(
            "warning",
            "undeclared",
            f"the model '{density.program.name}' uses {len(shapes)} trainable parameters that are "
            f"no sites of it (of shape {shown}), so they stay at their present values.",
            "Declare the network by pyro.module('net', net), make the model a module that holds "
            "it, or give its weights priors by probdl.nn.bayesian(net). If they are to stay, "
            "net.requires_grad_(False) says so.",
        )
    ]
