r"""Markov chains, hidden Markov models and state-space models, vectorised over time.

.. math:: p(x_{t+1} | x_1, \dots, x_t) = p(x_{t+1} | x_t)

Given the present state, the next state does not depend on the past (the Markov property).
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
from probdl.model.advice import explained
from probdl.util.lazy import stats
from probdl.util.settings import check_int, check_real

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

ROW_SUM_TOLERANCE = 1e-8  # of a row of probabilities, which must sum to 1
RANK_TOLERANCE = 1e-10  # of singular values
DISTANCE_MIN = 1e-12  # below, powers of the matrix differ from their limit by rounding
MIN_SPECTRAL_GAP = 1e-12  # below which a chain does not mix


# -- models ------------------------------------------------------------------------------------


def markov_chain(states: Tensor, num_states: int, concentration: float = 1.0) -> None:
    r"""A Markov chain over K states with an unknown transition matrix.

    .. math:: P_i \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha), \qquad
        x_{t+1} \sim \mathrm{Categorical}(P_{x_t})

    The posterior of row i is Dirichlet(alpha + counts of transitions from i).

    Args:
        states: the chain, integers from 0 to K - 1, shape (T,).
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
    r"""A hidden Markov model of symbols: a categorical distribution for each hidden state.

    .. math:: z_{t+1} \sim \mathrm{Categorical}(P_{z_t}), \qquad
        y_t \sim \mathrm{Categorical}(E_{z_t})

    The states are summed out in log T parallel steps (a scan of matrix products), so that even a
    long series gives a small graph.

    Args:
        y: the symbols, integers from 0 to ``num_symbols`` - 1, shape (T,).
        num_states: K, the number of hidden states.
        num_symbols: the number of symbols.

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
    r"""A hidden Markov model of real numbers: a normal distribution for each hidden state.

    .. math:: z_{t+1} \sim \mathrm{Categorical}(P_{z_t}), \qquad
        y_t \sim N(\mu_{z_t}, \sigma_{z_t}), \qquad \mu_1 < \mu_2 < \dots

    The means are ordered; otherwise the labels of the states would not be identified.

    Args:
        y: the series, shape (T,).
        num_states: K, the number of hidden states.
        scale: the scale of the priors of means and standard deviations, in units of y.

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
    r"""A local-level model: a hidden random walk with noise, marginalised by the Kalman filter.

    .. math:: x_{t+1} \sim N(x_t, \tau), \qquad y_t \sim N(x_t, \sigma)

    Args:
        y: the series, shape (T,).
        scale: the scale of the priors, in units of y.

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
    r"""An autoregression: each value is a linear function of the previous ones, with noise.

    .. math:: y_t \sim N(\alpha + \sum_k \beta_k y_{t-k}, \sigma)

    Args:
        y: the series, shape (T,); the model conditions on its first ``order`` values.
        order: the number of previous values.
        scale: the scale of the priors, in units of y.

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


# -- properties of transition matrices -------------------------------------------------------------


def _checked_matrix(transition: Any) -> NDArray[np.float64]:
    """Return a transition matrix as an array, or raise SettingError."""
    matrix = np.asarray(transition, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise SettingError(
            f"The transition matrix has shape {matrix.shape}. It must be square, (K, K)."
        )
    sums = matrix.sum(1)
    wrong_sum = abs(sums - 1) > ROW_SUM_TOLERANCE
    invalid = ~np.isfinite(sums) | (matrix < 0).any(1) | wrong_sum
    if invalid.any():
        row = int(np.argmax(invalid))
        raise SettingError(
            f"Row {row} of the transition matrix, {matrix[row]}, is not a distribution: its "
            "entries must be at least 0 and sum to 1."
        )
    return matrix


@explained("stationary()")
def stationary(transition: Any) -> NDArray[np.float64]:
    r"""Return the stationary distribution: pi P = pi.

    Args:
        transition: P, (K, K), whose rows are distributions.

    Raises:
        SettingError: P is not a transition matrix, or the distribution is not unique.

    >>> stationary([[0.9, 0.1], [0.3, 0.7]]).round(4)
    array([0.75, 0.25])

    Source: Norris, *Markov Chains* (1997), section 1.7.
    """
    matrix = _checked_matrix(transition)
    size = len(matrix)
    equations = np.concatenate([matrix.T - np.eye(size), np.ones((1, size))])
    if np.linalg.matrix_rank(matrix.T - np.eye(size), tol=RANK_TOLERANCE) < size - 1:
        raise SettingError(
            "The stationary distribution is not unique: the chain has more than one closed "
            "communicating class. Analyse each class separately."
        )
    right = np.zeros(size + 1)
    right[-1] = 1.0
    solution = np.clip(np.linalg.lstsq(equations, right, rcond=None)[0], 0.0, None)
    return solution / solution.sum()


@explained("spectral_gap()")
def spectral_gap(transition: Any) -> float:
    r"""Return the absolute spectral gap: 1 - |λ₂|, with λ₂ the second largest eigenvalue.

    It is 0 for a chain that does not converge: one that is reducible or periodic.

    Args:
        transition: P, (K, K).

    >>> round(spectral_gap([[0.9, 0.1], [0.3, 0.7]]), 4)           # eigenvalues 1 and 0.6
    0.4

    Source: Levin and Peres, *Markov Chains and Mixing Times* (2017), chapter 12.
    """
    moduli = np.sort(np.abs(np.linalg.eigvals(_checked_matrix(transition))))[::-1]
    return max(0.0, float(1.0 - moduli[1])) if len(moduli) > 1 else 1.0


@explained("mixing_time()")
def mixing_time(transition: Any, distance: float = 0.25) -> int:
    r"""Return the number of steps until the chain is close to its stationary distribution.

    .. math:: t_{mix} = \min\{t : \max_i \tfrac12 \sum_j |P^t_{ij} - \pi_j| \le \epsilon\}

    Args:
        transition: P, (K, K).
        distance: epsilon, in total variation.

    Raises:
        SettingError: the chain does not converge (its spectral gap is 0), or ``distance`` is
            not between 0 and 1.

    >>> mixing_time([[0.9, 0.1], [0.3, 0.7]])
    3

    Source: Levin and Peres, *Markov Chains and Mixing Times* (2017), section 4.5.
    """
    matrix = _checked_matrix(transition)
    check_real("mixing_time", distance=(distance, DISTANCE_MIN, 1))
    if spectral_gap(matrix) < MIN_SPECTRAL_GAP:
        raise SettingError(
            "The chain does not converge to a stationary distribution: its spectral gap is 0, "
            "because it is reducible or periodic. Use an irreducible, aperiodic chain."
        )
    target = stationary(matrix)

    def far(power: NDArray[np.float64]) -> bool:
        return bool(np.abs(power - target).sum(1).max() / 2 > distance)

    if not far(np.eye(len(matrix))):
        return 0
    # The distance decreases with t: double t until it is small enough, then bisect.
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


@explained("simulate_chain()")
def simulate_chain(
    transition: Any, steps: int, *, initial: Any = None, num_chains: int = 1, seed: int = 0
) -> NDArray[np.int64]:
    """Simulate Markov chains.

    Args:
        transition: P, (K, K).
        steps: the number of states of each chain.
        initial: the distribution of the first state, (K,); None uses the stationary distribution.
        num_chains: the number of chains.
        seed: the random seed.

    Returns:
        The states, integers from 0 to K - 1, shape (num_chains, steps).

    Raises:
        SettingError: a setting is out of range, or P is not a transition matrix.

    >>> simulate_chain([[0.0, 1.0], [1.0, 0.0]], 5, initial=[1.0, 0.0]).tolist()
    [[0, 1, 0, 1, 0]]
    """
    matrix = _checked_matrix(transition)
    check_int("simulate_chain", steps=(steps, 1), num_chains=(num_chains, 1))
    first = stationary(matrix) if initial is None else _checked_matrix([initial] * len(matrix))[0]
    rng = np.random.default_rng(seed)
    levels = np.cumsum(matrix, 1)
    levels[:, -1] = 1.0  # exactly, in spite of rounding
    states = np.empty((num_chains, steps), np.int64)
    states[:, 0] = np.searchsorted(np.append(np.cumsum(first)[:-1], 1.0), rng.random(num_chains))
    for t in range(1, steps):
        u = rng.random(num_chains)
        states[:, t] = (u[:, None] >= levels[states[:, t - 1]]).sum(1)
    return states


@explained("markov_property()")
def markov_property(states: Any, num_states: int | None = None) -> float:
    r"""Test whether the next state depends on the previous state, given the present one.

    .. math:: G = 2 \sum_{hij} n_{hij} \log\frac{n_{hij}\, n_{\cdot i \cdot}}{n_{hi\cdot}\,
        n_{\cdot ij}} \sim \chi^2_{K (K-1)^2}

    is the likelihood-ratio statistic of chains of order two and one, where n are the counts of
    triples.

    Args:
        states: one chain (T,), or several (chains, T).
        num_states: K; None uses the largest state plus one.

    Returns:
        The p-value, which is small if the next state depends on more than the present one.

    Raises:
        SettingError: the chain has fewer than three states, or they are not integers.

    >>> chain = simulate_chain([[0.9, 0.1], [0.3, 0.7]], 2000, seed=1)
    >>> markov_property(chain) > 0.01, markov_property(np.repeat(chain, 2)) < 0.01
    (True, True)

    Source: Anderson and Goodman, "Statistical inference about Markov chains" (1957).
    """
    array = np.atleast_2d(np.asarray(states))
    if array.shape[1] < 3 or not np.issubdtype(array.dtype, np.integer) or array.min() < 0:
        raise SettingError(
            f"states has shape {array.shape} and dtype {array.dtype}. A chain must have at least "
            "three states, which are integers of at least 0."
        )
    size = num_states or int(array.max()) + 1
    triples = np.zeros((size, size, size))
    np.add.at(triples, (array[:, :-2], array[:, 1:-1], array[:, 2:]), 1)
    pairs, given, present = triples.sum(2), triples.sum(0), triples.sum((0, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = triples * np.log(
            triples * present[None, :, None] / (pairs[:, :, None] * given[None])
        )
    statistic = 2 * float(np.nansum(terms))
    # Only pairs that occur contribute parameters.
    freedom = sum(
        max(int((pairs[:, i] > 0).sum()) - 1, 0) * max(int((given[i] > 0).sum()) - 1, 0)
        for i in range(size)
    )
    return float(stats.chi2.sf(statistic, freedom)) if freedom else math.nan
