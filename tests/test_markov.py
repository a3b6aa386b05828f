"""Markov chains and hidden Markov models against linear algebra and brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

import probdl
from probdl.model.density import LogDensity
from probdl.models import categorical_hmm, gaussian_hmm, markov_chain, state_space
from probdl.models.markov import (
    autoregression,
    markov_property,
    mixing_time,
    simulate_chain,
    spectral_gap,
    stationary,
)

P = np.array([[0.8, 0.15, 0.05], [0.3, 0.5, 0.2], [0.1, 0.3, 0.6]])


def test_the_stationary_distribution_is_invariant():
    pi = stationary(P)
    np.testing.assert_allclose(pi @ P, pi, atol=1e-12)
    assert pi.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(np.linalg.matrix_power(P, 200)[0], pi, atol=1e-10)


def test_the_spectral_gap_follows_from_the_eigenvalues():
    moduli = np.sort(np.abs(np.linalg.eigvals(P)))
    assert spectral_gap(P) == pytest.approx(1 - moduli[-2])
    assert spectral_gap([[0.0, 1.0], [1.0, 0.0]]) == 0.0  # periodic
    assert spectral_gap(np.eye(2)) == 0.0  # reducible


def test_the_mixing_time_is_the_first_time_below_the_distance():
    pi = stationary(P)
    for distance in (0.25, 0.05, 1e-6):
        t = mixing_time(P, distance)

        def far(steps):
            return np.abs(np.linalg.matrix_power(P, steps) - pi).sum(1).max() / 2

        assert far(t) <= distance < far(t - 1)
        # (Levin and Peres, theorem 12.5): (1 / gap - 1) log(1 / 2 eps) <= t for reversible chains
    slow = np.array([[0.999, 0.001], [0.001, 0.999]])
    assert mixing_time(slow) == math.ceil(math.log(0.5) / math.log(0.998))


def test_simulated_chains_have_the_transitions_and_the_stationary_distribution():
    chains = simulate_chain(P, 400, num_chains=500, seed=1)
    counts = np.zeros((3, 3))
    np.add.at(counts, (chains[:, :-1], chains[:, 1:]), 1)
    rows = counts.sum(1, keepdims=True)
    error = np.sqrt(P * (1 - P) / rows)
    assert np.all(np.abs(counts / rows - P) < 4 * error)
    first, last = (np.bincount(chains[:, t], minlength=3) / 500 for t in (0, -1))
    pi = stationary(P)
    for share in (first, last):
        assert np.all(np.abs(share - pi) < 4 * np.sqrt(pi * (1 - pi) / 500))
    np.testing.assert_array_equal(chains, simulate_chain(P, 400, num_chains=500, seed=1))


def test_the_markov_property_holds_for_a_chain_and_fails_for_one_with_memory():
    p_values = [markov_property(simulate_chain(P, 500, seed=i)) for i in range(200)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    rng = np.random.default_rng(0)
    states = [0, 1]
    for _ in range(1000):  # repeats the state of two steps before with probability 0.7 or more
        states.append(states[-2] if rng.random() < 0.7 else int(rng.integers(2)))
    assert markov_property(np.array(states)) < 1e-6


def test_the_posterior_of_a_transition_matrix_is_conjugate():
    chain = simulate_chain(P, 300, seed=2)[0]
    counts = np.zeros((3, 3))
    np.add.at(counts, (chain[:-1], chain[1:]), 1)
    fit = probdl.infer(markov_chain, chain, 3, method="nuts", seed=1)
    assert fit.stats["engine"] == "native"
    draws = fit.draws["transition"].reshape(-1, 3, 3)
    alpha = 1 + counts
    mean = alpha / alpha.sum(1, keepdims=True)
    sd = np.sqrt(mean * (1 - mean) / (alpha.sum(1, keepdims=True) + 1))
    assert np.all(np.abs(draws.mean(0) - mean) < 4 * sd / np.sqrt(1000))


def brute_force(initial, transition, score):
    """Sum over all paths: score (T, K) is the log likelihood of each observation by state."""
    length, size = score.shape
    terms = []
    for path in itertools.product(range(size), repeat=length):
        term = np.log(initial[path[0]])  # Pyro's chain moves before the first observation
        total = 0.0
        for start in range(size):
            total += initial[start] * transition[start, path[0]]
        term = np.log(total) + score[0, path[0]]
        for t in range(1, length):
            term += np.log(transition[path[t - 1], path[t]]) + score[t, path[t]]
        terms.append(term)
    return np.logaddexp.reduce(terms)


def test_hidden_chains_are_summed_out_exactly():
    rng = np.random.default_rng(3)
    initial, transition = rng.dirichlet(np.ones(2)), rng.dirichlet(np.ones(2), size=2)
    emission = rng.dirichlet(np.ones(3), size=2)
    symbols = np.array([0, 2, 1, 1, 0, 2])
    density = LogDensity.from_model(categorical_hmm, (symbols, 2, 3), prior=False, jacobian=False)
    z = density.unconstrain({"initial": initial, "transition": transition, "emission": emission})
    expected = brute_force(initial, transition, np.log(emission[:, symbols]).T)
    assert float(density(z)) == pytest.approx(expected, rel=1e-9)

    y = rng.normal(size=5)
    mean, sd = np.array([-1.0, 1.5]), np.array([0.5, 1.2])
    density = LogDensity.from_model(gaussian_hmm, (y, 2), prior=False, jacobian=False)
    values = {"initial": initial, "transition": transition, "first_mean": -1.0,
              "gap_of_means": np.array([2.5]), "sd": sd}  # fmt: skip
    score = stats.norm.logpdf(y[:, None], mean, sd)
    expected = brute_force(initial, transition, score)
    assert float(density(density.unconstrain(values))) == pytest.approx(expected, rel=1e-9)


def test_a_state_space_model_equals_the_exact_likelihood():
    y, sigma, tau = np.random.default_rng(4).normal(size=6), 0.7, 0.4
    density = LogDensity.from_model(state_space, (y,), prior=False, jacobian=False)
    found = float(density(density.unconstrain({"sigma": sigma, "tau": tau})))
    times = np.arange(1, 7)
    covariance = 100.0 + tau**2 * np.minimum.outer(times, times) + sigma**2 * np.eye(6)
    expected = stats.multivariate_normal(np.zeros(6), covariance).logpdf(y)
    assert found == pytest.approx(expected, rel=1e-8)


def test_a_long_hidden_chain_compiles_to_a_small_graph():
    """400 steps run natively, and the parameters that made the data are found again."""
    rng = np.random.default_rng(5)
    transition = np.array([[0.95, 0.05], [0.1, 0.9]])
    states = simulate_chain(transition, 400, seed=5)[0]
    y = rng.normal(np.array([-2.0, 2.0])[states], 1.0)
    method = probdl.NUTS(draws=300, warmup=300, chains=2)
    fit = probdl.infer(gaussian_hmm, y, 2, method=method, seed=1)
    assert fit.stats["engine"] == "native"
    for name, truth in (("mean", [-2.0, 2.0]), ("sd", [1.0, 1.0])):
        draws = fit.draws[name].reshape(-1, 2)
        assert np.all(np.abs(draws.mean(0) - truth) < 4 * draws.std(0))
    draws = fit.draws["transition"].reshape(-1, 2, 2)
    assert np.all(np.abs(draws.mean(0) - transition) < 4 * draws.std(0))


def test_an_autoregression_equals_least_squares():
    rng = np.random.default_rng(6)
    y = np.zeros(300)
    for t in range(2, 300):
        y[t] = 0.5 + 0.6 * y[t - 1] - 0.3 * y[t - 2] + rng.normal()
    fit = probdl.infer(autoregression, y, 2, method="mle", seed=1)
    design = np.stack([np.ones(298), y[1:-1], y[:-2]], 1)
    known = np.linalg.lstsq(design, y[2:], rcond=None)[0]
    np.testing.assert_allclose(fit.draws["alpha"].item(), known[0], rtol=1e-6)
    np.testing.assert_allclose(fit.draws["beta"][0, 0], known[1:], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stationary(np.ones((2, 3))), "must be square"),
        (lambda: stationary([[0.5, 0.5], [0.5, 0.6]]), "Row 1 of the transition matrix"),
        (lambda: stationary([[1.5, -0.5], [0.5, 0.5]]), "Row 0"),
        (lambda: stationary(np.eye(2)), "stationary distribution is not unique"),
        (lambda: mixing_time([[0.0, 1.0], [1.0, 0.0]]), "does not converge"),
        (lambda: mixing_time(P, 2.0), "above 1e-12 and below 1"),
        (lambda: simulate_chain(P, 0), "at least 1"),
        (lambda: markov_property(np.array([0.5, 0.2, 0.1])), "integers"),
    ],
)
def test_invalid_input_is_an_error(call, message):
    with pytest.raises(probdl.SettingError, match=message):
        call()
