r"""Markov chains and hidden Markov models, vectorised over time.

.. math:: p(x_{t+1} | x_1, \dots, x_t) = p(x_{t+1} | x_t)

All of the past that matters for the next state is the present one (the Markov property).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import SettingError
from probdl.util.lazy import stats

__all__ = [
    "autoregression",
    "categorical_hmm",
    "gaussian_hmm",
    "markov_chain",
    "markov_property",
    "mixing_time",
    "simulate_chain",
    "spectral_gap",
    "state_space",
    "stationary",
]

_ROWS = 1e-8  # by how much a row of probabilities may miss 1


# -- programs ----------------------------------------------------------------------------------


def markov_chain(states: Tensor, num_states: int, concentration: float = 1.0) -> None:
    r"""A chain over K states with an unknown transition matrix.

    .. math:: P_i \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha), \qquad
        x_{t+1} \sim \mathrm{Categorical}(P_{x_t})

    The posterior of row i is Dirichlet(alpha + counts of transitions from i).

    Args:
        states: the chain, whole numbers from 0 to K - 1, shape (T,).
        num_states: K.
        concentration: alpha.

    >>> import numpy as np, probdl
    >>> chain = np.array([0, 1, 1, 0, 1, 1, 1, 0])
    >>> fit = probdl.infer(markov_chain, chain, 2, method="mle", seed=1)
    >>> fit.draws["transition"][0, 0, 1].round(4)        # from state 1: 2 of 5 to 0
    array([0.4, 0.6])
    """
    with pyro.plate("from", num_states):
        prior = dist.Dirichlet(torch.full((num_states,), concentration))
        transition = pyro.sample("transition", prior)
    with pyro.plate("step", len(states) - 1):
        pyro.sample("next", dist.Categorical(transition[states[:-1]]), obs=states[1:])


def categorical_hmm(y: Tensor, num_states: int, num_symbols: int) -> None:
    r"""A hidden Markov model of symbols: hidden states z, and a symbol drawn by each.

    .. math:: z_{t+1} \sim \mathrm{Categorical}(P_{z_t}), \qquad
        y_t \sim \mathrm{Categorical}(E_{z_t})

    The states are summed out in log T parallel steps (a scan of matrix products), so that the
    program is a small graph however long the series.

    Args:
        y: the symbols, whole numbers from 0 to ``num_symbols`` - 1, shape (T,).
        num_states: K hidden states.
        num_symbols: how many symbols there are.

    >>> import torch, pyro
    >>> program = pyro.poutine.trace(categorical_hmm)
    >>> program.get_trace(torch.tensor([0, 1, 1]), 2, 2).nodes["emission"]["value"].shape
    torch.Size([2, 2])

    Source: Särkkä and García-Fernández, "Temporal parallelization of Bayesian smoothers" (2021).
    """
    initial, transition = _hidden_chain(num_states)
    with pyro.plate("state", num_states):
        emission = pyro.sample("emission", dist.Dirichlet(torch.ones(num_symbols)))
    hmm = dist.DiscreteHMM(initial.log(), transition.log(), dist.Categorical(emission))
    pyro.sample("y", hmm, obs=y)


def gaussian_hmm(y: Tensor, num_states: int, scale: float = 10.0) -> None:
    r"""A hidden Markov model of numbers: a normal distribution for each hidden state.

    .. math:: z_{t+1} \sim \mathrm{Categorical}(P_{z_t}), \qquad
        y_t \sim N(\mu_{z_t}, \sigma_{z_t}), \qquad \mu_1 < \mu_2 < \dots

    The means are in order, without which the states could change names.

    Args:
        y: the series, shape (T,).
        num_states: K hidden states.
        scale: of the priors of means and standard deviations, in units of y.

    >>> import torch, pyro
    >>> program = pyro.poutine.trace(gaussian_hmm)
    >>> program.get_trace(torch.zeros(3), 2).nodes["mean"]["value"].shape
    torch.Size([2])

    Source: Rabiner, "A tutorial on hidden Markov models" (1989).
    """
    initial, transition = _hidden_chain(num_states)
    first = pyro.sample("first_mean", dist.Normal(0.0, scale))
    with pyro.plate("gap", num_states - 1):
        gaps = pyro.sample("gap_of_means", dist.HalfNormal(scale))
    mean = pyro.deterministic("mean", torch.cat([first[None], first + gaps.cumsum(0)]))
    with pyro.plate("state", num_states):
        sd = pyro.sample("sd", dist.HalfNormal(scale))
    hmm = dist.DiscreteHMM(initial.log(), transition.log(), dist.Normal(mean, sd))
    pyro.sample("y", hmm, obs=y)


def _hidden_chain(num_states: int) -> tuple[Tensor, Tensor]:
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(num_states)))
    with pyro.plate("from", num_states):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(num_states)))
    return initial, transition


def state_space(y: Tensor, scale: float = 10.0) -> None:
    r"""A local level: a hidden random walk, observed with noise; summed out by Kalman's filter.

    .. math:: x_{t+1} \sim N(x_t, \tau), \qquad y_t \sim N(x_t, \sigma)

    Args:
        y: the series, shape (T,).
        scale: of the priors, in units of y.

    >>> import torch, pyro
    >>> _ = pyro.poutine.trace(state_space).get_trace(torch.zeros(5))

    Source: Durbin and Koopman, *Time Series Analysis by State Space Methods* (2012), chapter 2.
    """
    sigma = pyro.sample("sigma", dist.HalfNormal(scale))
    tau = pyro.sample("tau", dist.HalfNormal(scale))
    one = torch.ones(1, 1)
    hmm = dist.GaussianHMM(
        dist.MultivariateNormal(torch.zeros(1), scale**2 * one),
        one,
        dist.MultivariateNormal(torch.zeros(1), tau**2 * one),
        one,
        dist.MultivariateNormal(torch.zeros(1), sigma**2 * one),
        duration=len(y),
    )
    pyro.sample("y", hmm, obs=y[:, None])


def autoregression(y: Tensor, order: int = 1, scale: float = 1.0) -> None:
    r"""A Markov chain of numbers: each a linear function of the ones before, with noise.

    .. math:: y_t \sim N(\alpha + \sum_k \beta_k y_{t-k}, \sigma)

    Args:
        y: the series, shape (T,); its first ``order`` values are given.
        order: how many values before count.
        scale: of the priors, in units of y.

    >>> import torch, pyro
    >>> _ = pyro.poutine.trace(autoregression).get_trace(torch.zeros(5))
    """
    alpha = pyro.sample("alpha", dist.Normal(0.0, scale))
    with pyro.plate("lag", order):
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(scale))
    past = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], 1)
    with pyro.plate("time", len(y) - order):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[order:])


# -- what a transition matrix says ---------------------------------------------------------------


def _matrix(transition: Any) -> NDArray[np.float64]:
    matrix = np.asarray(transition, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise SettingError(f"a transition matrix is square, and this has the shape {matrix.shape}.")
    sums = matrix.sum(1)
    if not (np.isfinite(matrix).all() and (matrix >= 0).all() and abs(sums - 1).max() <= _ROWS):
        bad = int(np.argmax(~np.isfinite(sums) | (matrix < 0).any(1) | (abs(sums - 1) > _ROWS)))
        raise SettingError(
            f"row {bad} of the transition matrix, {matrix[bad]}, is not a distribution: its "
            "entries must be at least 0 and sum to 1."
        )
    return matrix


def stationary(transition: Any) -> NDArray[np.float64]:
    r"""Return the stationary distribution: pi P = pi.

    Args:
        transition: P, (K, K), whose rows are distributions.

    Raises:
        SettingError: P is no transition matrix, or there are several such distributions.

    >>> stationary([[0.9, 0.1], [0.3, 0.7]]).round(4)
    array([0.75, 0.25])

    Source: Norris, *Markov Chains* (1997), section 1.7.
    """
    matrix = _matrix(transition)
    size = len(matrix)
    equations = np.concatenate([matrix.T - np.eye(size), np.ones((1, size))])
    if np.linalg.matrix_rank(matrix.T - np.eye(size), tol=1e-10) < size - 1:
        raise SettingError(
            "the chain has several stationary distributions: it falls into parts that it never "
            "leaves. Look at each part by itself."
        )
    right = np.zeros(size + 1)
    right[-1] = 1.0
    found = np.linalg.lstsq(equations, right, rcond=None)[0]
    return np.clip(found, 0.0, None) / np.clip(found, 0.0, None).sum()


def spectral_gap(transition: Any) -> float:
    r"""Return the absolute spectral gap: 1 - |λ₂|, with λ₂ the second largest eigenvalue.

    It is 0 for a chain that never settles: one that falls into parts, or goes round in a period.

    >>> round(spectral_gap([[0.9, 0.1], [0.3, 0.7]]), 4)           # eigenvalues 1 and 0.6
    0.4

    Source: Levin and Peres, *Markov Chains and Mixing Times* (2017), chapter 12.
    """
    moduli = np.sort(np.abs(np.linalg.eigvals(_matrix(transition))))[::-1]
    return max(0.0, float(1.0 - moduli[1])) if len(moduli) > 1 else 1.0


def mixing_time(transition: Any, distance: float = 0.25) -> int:
    r"""Return after how many steps the chain is near its stationary distribution.

    .. math:: t_{mix} = \min\{t : \max_i \tfrac12 \sum_j |P^t_{ij} - \pi_j| \le \epsilon\}

    Args:
        transition: P, (K, K).
        distance: epsilon, in total variation.

    Raises:
        SettingError: the chain never comes near: its spectral gap is 0.

    >>> mixing_time([[0.9, 0.1], [0.3, 0.7]])
    3

    Source: Levin and Peres, *Markov Chains and Mixing Times* (2017), section 4.5.
    """
    matrix = _matrix(transition)
    if not 0 < distance < 1:
        raise SettingError(f"distance={distance} must be between 0 and 1.")
    if spectral_gap(matrix) < 1e-12:
        raise SettingError(
            "the chain never comes near a stationary distribution: its spectral gap is 0, since it "
            "falls into parts or goes round in a period."
        )
    target = stationary(matrix)

    def far(power: NDArray[np.float64]) -> bool:
        return bool(np.abs(power - target).sum(1).max() / 2 > distance)

    if not far(np.eye(len(matrix))):
        return 0
    # The distance falls with t: double until near, then halve the last stretch.
    powers = [matrix]
    while far(powers[-1]):
        powers.append(powers[-1] @ powers[-1])
    if len(powers) == 1:
        return 1
    steps, reached = 2 ** (len(powers) - 2), powers[-2]
    for k in range(len(powers) - 3, -1, -1):
        ahead = reached @ powers[k]
        if far(ahead):
            steps, reached = steps + 2**k, ahead
    return steps + 1


def simulate_chain(
    transition: Any, steps: int, *, initial: Any = None, num_chains: int = 1, seed: int = 0
) -> NDArray[np.int64]:
    """Simulate chains: (num_chains, steps), states from 0.

    Args:
        transition: P, (K, K).
        steps: how many states each chain has.
        initial: the distribution of the first, (K,); None takes the stationary one.
        num_chains: how many chains.
        seed: of the draws.

    >>> simulate_chain([[0.0, 1.0], [1.0, 0.0]], 5, initial=[1.0, 0.0]).tolist()
    [[0, 1, 0, 1, 0]]
    """
    matrix = _matrix(transition)
    if steps < 1 or num_chains < 1:
        raise SettingError(f"steps={steps} and num_chains={num_chains} must be at least 1.")
    first = stationary(matrix) if initial is None else _matrix([initial] * len(matrix))[0]
    rng = np.random.default_rng(seed)
    levels = np.cumsum(matrix, 1)
    levels[:, -1] = 1.0  # whatever rounding left of it
    states = np.empty((num_chains, steps), np.int64)
    states[:, 0] = np.searchsorted(np.append(np.cumsum(first)[:-1], 1.0), rng.random(num_chains))
    for t in range(1, steps):
        u = rng.random(num_chains)
        states[:, t] = (u[:, None] >= levels[states[:, t - 1]]).sum(1)
    return states


def markov_property(states: Any, num_states: int | None = None) -> float:
    r"""Test whether the state before the present one says anything about the next.

    .. math:: G = 2 \sum_{hij} n_{hij} \log\frac{n_{hij}\, n_{\cdot i \cdot}}{n_{hi\cdot}\,
        n_{\cdot ij}} \sim \chi^2_{K (K-1)^2}

    is the likelihood ratio of chains of order two and one, with n the counts of triples.

    Args:
        states: one chain (T,), or several (chains, T).
        num_states: K; None takes the largest state.

    Returns:
        The p-value: small where the chain remembers more than its present state.

    Raises:
        SettingError: the chain is shorter than three states, or its states are no whole numbers.

    >>> chain = simulate_chain([[0.9, 0.1], [0.3, 0.7]], 2000, seed=1)
    >>> markov_property(chain) > 0.01, markov_property(np.repeat(chain, 2)) < 0.01
    (True, True)

    Source: Anderson and Goodman, "Statistical inference about Markov chains" (1957).
    """
    array = np.atleast_2d(np.asarray(states))
    if array.shape[1] < 3 or not np.issubdtype(array.dtype, np.integer) or array.min() < 0:
        raise SettingError("a chain is at least three states, whole numbers from 0.")
    size = num_states or int(array.max()) + 1
    triples = np.zeros((size, size, size))
    np.add.at(triples, (array[:, :-2], array[:, 1:-1], array[:, 2:]), 1)
    pairs, given, present = triples.sum(2), triples.sum(0), triples.sum((0, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = triples * np.log(
            triples * present[None, :, None] / (pairs[:, :, None] * given[None])
        )
    statistic = 2 * float(np.nansum(terms))
    # Rows and columns that never came up are no parameters.
    freedom = sum(
        max(int((pairs[:, i] > 0).sum()) - 1, 0) * max(int((given[i] > 0).sum()) - 1, 0)
        for i in range(size)
    )
    return float(stats.chi2.sf(statistic, freedom)) if freedom else math.nan
