"""Diagnostic checks of adversarial training: saturation, the value function, and coverage."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from probdl.findings import COVERED_MIN, SATURATED_MIN, VALUE_DISTANCE, Finding
from probdl.model.recorder import ControlFlowError, record
from probdl.results.fit import Fit

__all__ = [
    "COVERAGE_ROWS_MAX",
    "check_coverage",
    "check_game",
    "returns_probabilities",
    "suggest_loss",
]

VALUE_AT_EQUILIBRIUM = -math.log(4.0)  # where the discriminator cannot separate draws from data
NEIGHBOURS = 5
PROBED_ROWS = 64
COVERAGE_ROWS_MAX = 1000  # distances between all pairs of rows are computed
LARGE_SCALES = (1e2, 1e4)  # of inputs at which a sigmoid of logits is 0 or 1
LOSSES_WITHOUT_PROBABILITIES = ("wasserstein", "hinge")

_PROBABILITIES = {"sigmoid", "hardsigmoid", "_softmax", "softmax", "log_sigmoid_forward"}
_PASSED_THROUGH = {
    "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten", "select", "slice",
    "clone", "clamp", "_to_copy", "permute", "transpose", "t",
}  # fmt: skip


def suggest_loss(loss: str) -> str:
    """Return advice to use another loss, or '' if the loss is one of those already."""
    return "" if loss in LOSSES_WITHOUT_PROBABILITIES else "Use loss='wasserstein' or 'hinge'."


def check_game(loss: str, recorded: Mapping[str, NDArray[np.float64]]) -> list[Finding]:
    """Check the discriminator's outputs and the value function in the last tenth of the steps.

    Args:
        loss: name of the loss.
        recorded: by name, the values recorded at each step.
    """
    if loss in LOSSES_WITHOUT_PROBABILITIES:
        return []
    count = max(1, len(recorded["value"]) // 10)
    real, fake, value = (
        float(recorded[name][-count:].mean()) if len(recorded[name]) else math.nan
        for name in ("d_real", "d_fake", "value")
    )
    if real - fake > SATURATED_MIN:
        effect = (
            "the generator has almost no gradient"
            if loss == "minimax"
            else "its output gives the generator little useful information"
        )
        return [
            Finding(
                "warning",
                "saturated",
                f"The discriminator is saturated: D(x) is {real:.3f} and D(G(z)) is {fake:.3f} at "
                f"the end. It separates draws from data almost perfectly, so {effect}.",
                "Use loss='wasserstein' or 'hinge', a smaller discriminator, or a lower "
                "discriminator_learning_rate.",
            )
        ]
    if abs(value - VALUE_AT_EQUILIBRIUM) > VALUE_DISTANCE:
        return [
            Finding(
                "warning",
                "value_function",
                f"The value function is {value:.3f} at the end. It is -2 log 2 = "
                f"{VALUE_AT_EQUILIBRIUM:.3f} if draws and data have the same distribution.",
                "Train for longer, and check fit.divergence(x) on held-out data.",
            )
        ]
    return []


def check_coverage(fit: Fit, data: Tensor, site: str, loss: str) -> list[Finding]:
    """Check for data that no draw is near: coverage (Naeem et al., 2020).

    A row of data is covered if a draw is nearer to it than its k-th neighbour among the data. With
    as many draws from the distribution of the data, an expected share of 1 - 2^-k is covered.

    Args:
        fit: the fit, from which draws are made.
        data: the data (n, *shape of a row).
        site: name of the site that is drawn.
        loss: name of the loss.
    """
    count = min(len(data), COVERAGE_ROWS_MAX)
    if count < 10 * NEIGHBOURS:
        return []
    real = data[torch.randperm(len(data))[:count]].reshape(count, -1).to(torch.float64)
    drawn = torch.as_tensor(fit.predict(num_samples=count)[site]).reshape(count, -1).to(real.dtype)
    radius = torch.cdist(real, real).kthvalue(NEIGHBOURS + 1, dim=1).values
    covered = float((torch.cdist(real, drawn).min(1).values <= radius).double().mean())
    if covered >= COVERED_MIN:
        return []
    remedy = f"{suggest_loss(loss)} A larger batch_size or longer training may also help."
    return [
        Finding(
            "warning",
            "mode_collapse",
            f"Only {covered:.0%} of the data have a draw in their neighbourhood "
            f"({1 - 2.0**-NEIGHBOURS:.0%} would be expected if draws and data had the same "
            "distribution): the generator misses parts of the data, or its draws do not resemble "
            "the data.",
            remedy.lstrip(),
        )
    ]


def returns_probabilities(discriminator: nn.Module, x: Tensor) -> bool:
    """Return whether a discriminator ends in a sigmoid, a softmax, or a function like them.

    Its last operation is known from a recording. Any other function of this kind is 0 or 1 at large
    inputs, where logits are large.

    Args:
        discriminator: the module; it is left as it is.
        x: some data (n, *shape).
    """
    module = copy.deepcopy(discriminator).eval()  # running statistics would change
    x = x[:PROBED_ROWS]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return _ends_in_sigmoid(module, x) or _saturates_like_a_sigmoid(module, x)
        except Exception:  # training raises the error, with an explanation
            return False


def _ends_in_sigmoid(module: nn.Module, x: Tensor) -> bool:
    try:
        node = next(iter(reversed(record(module, [x]).graph.nodes))).args[0]
    except ControlFlowError:
        return False
    while isinstance(node, fx.Node) and _is(node, _PASSED_THROUGH):
        node = node.args[0]
    return isinstance(node, fx.Node) and _is(node, _PROBABILITIES)


def _is(node: fx.Node, operations: set[str]) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return packet is not None and packet.__name__ in operations


def _saturates_like_a_sigmoid(module: nn.Module, x: Tensor) -> bool:
    centred = x - x.mean(0) + torch.randn_like(x)
    found = torch.cat(
        [module(sign * scale * centred).reshape(-1) for scale in LARGE_SCALES for sign in (1, -1)]
    )
    at_bounds = torch.minimum(found.abs(), (found - 1).abs()) < 1e-3
    inside = bool(((found >= 0) & (found <= 1)).all())
    return inside and bool((found > 0.5).any()) and float(at_bounds.double().mean()) > 0.9
