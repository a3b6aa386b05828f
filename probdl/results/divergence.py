r"""Discriminators, and the divergence between two distributions that they measure.

.. math::
    V(D, G) = E_{x \sim p}[\log D(x)] + E_{x \sim q}[\log(1 - D(x))],  \qquad
    D^*(x) = \frac{p(x)}{p(x) + q(x)} \qquad\text{(Eqs. 6 and 7)}

At the best discriminator V is -log 4 + 2 JS(p, q), twice the Jensen-Shannon divergence above its
least value, which it has where p and q are the same (Eqs. 8 to 14). Any other discriminator gives
a lower V, and so a lower bound of the divergence.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from probdl.errors import SettingError
from probdl.util.isolation import isolated, sheltered

__all__ = [
    "Divergence",
    "estimate_divergence",
    "jensen_shannon",
    "learn_apart",
    "optimal_discriminator",
]

_LOG_4 = math.log(4.0)
_CHECKS = 25  # steps between looks at the validation set
_PATIENCE = 20  # looks without an improvement that end the training


@dataclass(frozen=True)
class Divergence:
    """An estimate of the Jensen-Shannon divergence, in nats.

    Attributes:
        value: the estimate, between 0 and log 2.
        standard_error: its Monte Carlo standard error.
        value_function: V at the discriminator, which is -log 4 where the two are the same.
        raw: (V + log 4) / 2 as it came out; below 0 means that the discriminator does worse on
            data it has not seen than one that always says 1/2, so ``value`` is 0.
        exact: whether the discriminator is the best one; else this is a lower bound.
    """

    value: float
    standard_error: float
    value_function: float
    raw: float
    exact: bool

    def __repr__(self) -> str:
        bound = "" if self.exact else ", a lower bound"
        clipped = f", raw {self.raw:.4f}" if self.raw < 0 else ""
        return f"Divergence({self.value:.4f} ± {self.standard_error:.2g} nats{bound}{clipped})"


def optimal_discriminator(p_data: Any, p_model: Any) -> Callable[[Tensor], Tensor]:
    r"""Return the best discriminator between two known densities (Eq. 7).

    .. math:: D^*(x) = \frac{p_{data}(x)}{p_{data}(x) + p_{model}(x)}

    Args:
        p_data: the distribution of the data; it has ``log_prob``.
        p_model: that of the model.

    >>> import torch, pyro.distributions as dist
    >>> optimal_discriminator(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0))(torch.zeros(2))
    tensor([0.5000, 0.5000])

    Source: Goodfellow et al., "Generative adversarial nets" (2014), proposition 1.
    """
    return lambda x: torch.sigmoid(p_data.log_prob(x) - p_model.log_prob(x))


@sheltered()
def jensen_shannon(
    p_data: Any, p_model: Any, num_samples: int = 100_000, seed: int = 0
) -> Divergence:
    """Estimate the divergence of two known densities by simulation, at the best discriminator.

    Args:
        p_data: a distribution with ``sample`` and ``log_prob``.
        p_model: the other.
        num_samples: how many draws of each.
        seed: of the draws.

    >>> import pyro.distributions as dist
    >>> same = jensen_shannon(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0), num_samples=100)
    >>> same.value, same.value_function == -2 * math.log(2)
    (0.0, True)
    """
    if num_samples < 2:
        raise SettingError(f"num_samples={num_samples} must be at least 2.")
    with isolated(seed):
        x, g = p_data.sample((num_samples,)), p_model.sample((num_samples,))
    logits = [p_data.log_prob(v) - p_model.log_prob(v) for v in (x, g)]
    return _divergence(*(t.to(torch.float64) for t in logits), exact=True)


def _divergence(of_data: Tensor, of_model: Tensor, *, exact: bool = False) -> Divergence:
    """Compute the estimate from the logits of a discriminator."""
    real, fake = logsigmoid(of_data), logsigmoid(-of_model)
    value = float(real.mean()) + float(fake.mean())
    error = math.sqrt(float(real.var()) / len(real) + float(fake.var()) / len(fake)) / 2
    raw = (value + _LOG_4) / 2
    return Divergence(min(max(raw, 0.0), math.log(2.0)), error, value, raw, exact)


def estimate_divergence(
    real: Tensor, fake: Tensor, discriminator: nn.Module, *, steps: int = 2000, seed: int = 0
) -> Divergence:
    """Estimate the divergence of two samples by a discriminator trained afresh.

    The discriminator is judged on a quarter of each sample, which it has not seen.

    Args:
        real: data (n, *shape).
        fake: draws of the model (m, *shape).
        discriminator: maps (n, *shape) to logits (n,) or (n, 1); a copy, its weights drawn anew.
        steps: how many steps of training at most.
        seed: of all that is random.

    Raises:
        SettingError: there are fewer than 40 rows of one.
    """
    if min(len(real), len(fake)) < 40:
        raise SettingError(
            f"a divergence is estimated from at least 40 rows of each, and there are {len(real)} "
            f"and {len(fake)}."
        )
    with isolated(seed):
        return _divergence(*learn_apart(real, fake, copy.deepcopy(discriminator), steps=steps))


def learn_apart(x: Tensor, g: Tensor, net: nn.Module, *, steps: int) -> tuple[Tensor, Tensor]:
    """Train a discriminator on three quarters of two samples; return its logits on the rest.

    It learns from the first half, and stops where the next quarter says that it no longer gains.
    Where nothing that it learned tells the samples apart, all logits are 0: D = 1/2.

    Args:
        x: rows (n, *shape) that it should call real.
        g: rows (m, *shape) that it should not.
        net: maps (n, *shape) to logits (n,) or (n, 1); its weights are drawn anew, and trained.
        steps: how many steps of training at most.
    """
    net.train()
    for layer in net.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
    parts = []
    for sample in (x, g):
        mixed = sample[torch.randperm(len(sample))]
        cuts = [len(sample) // 2, len(sample) // 4]
        parts.append(mixed.split([*cuts, len(sample) - sum(cuts)]))
    (train_x, check_x, test_x), (train_g, check_g, test_g) = parts
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    # At the start it must know nothing: a wild guess would be worse than saying 1/2.
    best: tuple[float, dict[str, Tensor] | None] = (-_LOG_4, None)
    idle, size = 0, min(128, len(train_x), len(train_g))
    for step in range(1, steps + 1):
        real = train_x[torch.randint(len(train_x), (size,))]
        fake = train_g[torch.randint(len(train_g), (size,))]
        adam.zero_grad()
        loss = -logsigmoid(net(real)).mean() - logsigmoid(-net(fake)).mean()
        loss.backward()
        adam.step()
        if step % _CHECKS:
            continue
        value = _divergence(_logits(net, check_x), _logits(net, check_g)).value_function
        idle += 1
        if value > best[0]:
            state = {k: v.clone() for k, v in net.state_dict().items()}
            best, idle = (value, state), 0
        if idle >= _PATIENCE:
            break
    if best[1] is None:
        return torch.zeros(len(test_x)), torch.zeros(len(test_g))
    net.load_state_dict(best[1])
    return _logits(net, test_x), _logits(net, test_g)


def _logits(net: nn.Module, x: Tensor) -> Tensor:
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(part).reshape(-1) for part in x.split(1000)])
    net.train()
    return logits
