r"""The Jensen-Shannon divergence between two distributions, estimated with a discriminator.

.. math::
    V(D, G) = E_{x \sim p}[\log D(x)] + E_{x \sim q}[\log(1 - D(x))],  \qquad
    D^*(x) = \frac{p(x)}{p(x) + q(x)} \qquad\text{(Eqs. 6 and 7)}

At the optimal discriminator, V = -log 4 + 2 JS(p, q), where JS is the Jensen-Shannon divergence
(Eqs. 8 to 14). Any other discriminator has a lower V, and so gives a lower bound of the divergence.
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
from probdl.model.advice import explained
from probdl.util.isolation import isolated, sheltered
from probdl.util.settings import check_int, check_seed, setting_error

__all__ = [
    "Divergence",
    "estimate_divergence",
    "jensen_shannon",
    "optimal_discriminator",
    "train_discriminator",
]

LOG_4 = math.log(4.0)
STEPS_PER_VALIDATION = 25
PATIENCE = 20  # validations without an improvement until training stops
MIN_ROWS = 40  # of each sample


@dataclass(frozen=True)
class Divergence:
    """An estimate of the Jensen-Shannon divergence, in nats.

    Attributes:
        value: the estimate, ``raw`` limited to the range from 0 to log 2.
        standard_error: the Monte Carlo standard error of ``raw``.
        value_function: V at the discriminator; -log 4 if the distributions are equal.
        raw: (V + log 4) / 2. If it is negative, the discriminator does worse on held-out data than
            the constant D = 1/2.
        exact: whether the discriminator is the optimal one; otherwise the estimate is of a lower
            bound.
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
    r"""Return the optimal discriminator between two known densities (Eq. 7).

    .. math:: D^*(x) = \frac{p_{data}(x)}{p_{data}(x) + p_{model}(x)}

    Args:
        p_data: the distribution of the data, with a method ``log_prob``.
        p_model: the distribution of the model, likewise.

    Returns:
        D* as a function of a tensor x.

    >>> import torch, pyro.distributions as dist
    >>> optimal_discriminator(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0))(torch.zeros(2))
    tensor([0.5000, 0.5000])

    Source: Goodfellow et al., "Generative adversarial nets" (2014), proposition 1.
    """
    _check_densities("optimal_discriminator", p_data=p_data, p_model=p_model)
    return lambda x: torch.sigmoid(p_data.log_prob(x) - p_model.log_prob(x))


def _check_densities(owner: str, **densities: Any) -> None:
    """Check that two distributions have densities, of the same shape."""
    for name, density in densities.items():
        if isinstance(density, type) or not hasattr(density, "log_prob"):
            rule = "must be a distribution, such as pyro.distributions.Normal(0.0, 1.0)"
            raise setting_error(owner, name, density, rule)
    shapes = {getattr(density, "event_shape", None) for density in densities.values()}
    if len(shapes) > 1:
        raise SettingError(f"{owner}(): the distributions have events of the shapes {shapes}.")


@sheltered()
@explained("jensen_shannon()")
def jensen_shannon(
    p_data: Any, p_model: Any, num_samples: int = 100_000, seed: int = 0
) -> Divergence:
    """Estimate the divergence of two known densities by simulation.

    The optimal discriminator is used, so the estimate is not only a lower bound.

    Args:
        p_data: a distribution with methods ``sample`` and ``log_prob``.
        p_model: the other distribution, likewise.
        num_samples: number of draws from each.
        seed: the seed for the draws.

    Raises:
        SettingError: ``num_samples`` is below 2, or a distribution is none or of another shape.

    >>> import pyro.distributions as dist
    >>> same = jensen_shannon(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0), num_samples=100)
    >>> same.value, same.value_function == -2 * math.log(2)
    (0.0, True)
    """
    check_int("jensen_shannon", num_samples=(num_samples, 2))
    check_seed("jensen_shannon", seed)
    _check_densities("jensen_shannon", p_data=p_data, p_model=p_model)
    with isolated(seed):
        x, g = p_data.sample((num_samples,)), p_model.sample((num_samples,))
    logits = [p_data.log_prob(v) - p_model.log_prob(v) for v in (x, g)]
    return _from_logits(*(t.to(torch.float64) for t in logits), exact=True)


def _from_logits(data_logits: Tensor, model_logits: Tensor, *, exact: bool = False) -> Divergence:
    """Compute the estimate from the logits of a discriminator."""
    real, fake = logsigmoid(data_logits), logsigmoid(-model_logits)
    value = float(real.mean()) + float(fake.mean())
    error = math.sqrt(float(real.var()) / len(real) + float(fake.var()) / len(fake)) / 2
    raw = (value + LOG_4) / 2
    return Divergence(min(max(raw, 0.0), math.log(2.0)), error, value, raw, exact)


def estimate_divergence(
    real: Tensor, fake: Tensor, discriminator: nn.Module, *, steps: int = 2000, seed: int = 0
) -> Divergence:
    """Estimate the divergence of two samples with a newly trained discriminator.

    The discriminator is evaluated on a held-out quarter of each sample.

    Args:
        real: data (n, *shape).
        fake: draws from the model (m, *shape).
        discriminator: a module from (n, *shape) to logits (n,) or (n, 1); a copy with new weights
            is trained.
        steps: the maximum number of training steps.
        seed: the seed for splits, weights and training.

    Raises:
        SettingError: a sample has fewer than 40 rows.
    """
    if min(len(real), len(fake)) < MIN_ROWS:
        raise SettingError(
            f"The samples have {len(real)} and {len(fake)} rows; an estimate of the divergence "
            f"needs at least {MIN_ROWS} of each."
        )
    with isolated(seed):
        discriminator = copy.deepcopy(discriminator)
        return _from_logits(*train_discriminator(real, fake, discriminator, steps=steps))


def train_discriminator(
    real: Tensor, fake: Tensor, net: nn.Module, *, steps: int
) -> tuple[Tensor, Tensor]:
    """Train a discriminator on three quarters of two samples; return its logits on the rest.

    Half of each sample is for training, and a quarter for early stopping. If the discriminator is
    never better than the constant D = 1/2, all logits are 0.

    Args:
        real: rows (n, *shape) of class 1.
        fake: rows (m, *shape) of class 0.
        net: a module from (n, *shape) to logits (n,) or (n, 1). Its weights are reset, and trained
            in place.
        steps: the maximum number of training steps.

    Returns:
        The logits of the held-out rows of ``real`` and of ``fake``.
    """
    net.train()
    for layer in net.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
    splits = []
    for sample in (real, fake):
        shuffled = sample[torch.randperm(len(sample))]
        sizes = [len(sample) // 2, len(sample) // 4]
        splits.append(shuffled.split([*sizes, len(sample) - sum(sizes)]))
    (train_real, val_real, test_real), (train_fake, val_fake, test_fake) = splits
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    best_value, best_state = -LOG_4, None  # V of the constant D = 1/2
    without_gain, batch_size = 0, min(128, len(train_real), len(train_fake))
    for step in range(1, steps + 1):
        real_batch = train_real[torch.randint(len(train_real), (batch_size,))]
        fake_batch = train_fake[torch.randint(len(train_fake), (batch_size,))]
        adam.zero_grad()
        loss = -logsigmoid(net(real_batch)).mean() - logsigmoid(-net(fake_batch)).mean()
        loss.backward()
        adam.step()
        if step % STEPS_PER_VALIDATION:
            continue
        value = _from_logits(_logits(net, val_real), _logits(net, val_fake)).value_function
        without_gain += 1
        if value > best_value:
            best_value, without_gain = value, 0
            best_state = {k: v.clone() for k, v in net.state_dict().items()}
        if without_gain >= PATIENCE:
            break
    if best_state is None:
        return torch.zeros(len(test_real)), torch.zeros(len(test_fake))
    net.load_state_dict(best_state)
    return _logits(net, test_real), _logits(net, test_fake)


def _logits(net: nn.Module, x: Tensor) -> Tensor:
    """Return the logits (n,) of rows in evaluation mode; leave the network in training mode."""
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(part).reshape(-1) for part in x.split(1000)])
    net.train()
    return logits
