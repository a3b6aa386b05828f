"""Pareto-smoothed importance sampling gives ArviZ's figures."""

import arviz as az
import numpy as np
import pytest

from probdl.io.pareto import psis

RNG = np.random.default_rng(2)
COUNT = 10_000  # of which both generations of ArviZ take 300 as the tail
RATIOS = {
    "light": -0.3 * RNG.normal(size=COUNT) ** 2,
    "of a normal": RNG.normal(size=COUNT),
    "heavy": RNG.exponential(size=COUNT) * 0.8,
    "very heavy": RNG.exponential(size=COUNT) * 1.5,
    "no variance": RNG.normal(size=COUNT) * 1e-6,
    "far from 0": RNG.normal(size=COUNT) - 1e5,
    "over hundreds": RNG.normal(size=COUNT) * 200,
    "some zero weights": np.where(RNG.random(COUNT) < 0.3, -np.inf, RNG.normal(size=COUNT)),
}


def arviz(log_ratios):
    if az.__version__.startswith("0."):
        return az.psislw(log_ratios)
    from arviz_stats.base import array_stats

    return array_stats.psislw(-log_ratios)


@pytest.mark.parametrize("name", RATIOS)
def test_the_figures_are_those_of_arviz(name):
    log_weights, k = psis(RATIOS[name])
    with np.errstate(all="ignore"):
        expected, expected_k = arviz(RATIOS[name])
    assert k == pytest.approx(float(expected_k), abs=1e-9)
    np.testing.assert_allclose(log_weights, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [50, 100, 226, 1000])
def test_tails_of_few_draws_are_nearly_those_of_arviz(count):
    log_ratios = RNG.exponential(size=count) * 0.5
    log_weights, k = psis(log_ratios)
    expected, expected_k = arviz(log_ratios)
    # ArviZ 0 rounds the number of draws in the tail up, ArviZ 1 down.
    assert k == pytest.approx(float(expected_k), abs=0.1)
    assert np.abs(np.exp(log_weights) - np.exp(expected)).sum() < 0.05


def test_smoothed_weights_estimate_a_mean():
    x = RNG.normal(size=100_000)
    log_weights, k = psis(-0.5 * (x - 1) ** 2 + 0.5 * x**2)
    assert 0 < k < 0.5
    assert np.exp(log_weights).sum() == pytest.approx(1.0)
    error = (np.exp(2 * log_weights) @ (x - 1) ** 2) ** 0.5
    assert np.exp(log_weights) @ x == pytest.approx(1.0, abs=4 * error)


def test_the_shape_of_a_pareto_distribution():
    for shape in (0.3, 0.6, 0.9):
        k = psis(RNG.exponential(size=1_000_000) * shape)[1]
        assert k == pytest.approx(shape, abs=4 * (1 + shape) / 3000**0.5)


def test_ratios_without_a_tail():
    assert psis(np.zeros(100))[1] == -np.inf
    assert psis(np.full(100, -3e5))[1] == -np.inf
    log_weights, k = psis(np.arange(10.0))  # too few for a tail
    assert k == np.inf
    assert np.exp(log_weights).sum() == pytest.approx(1.0)
    log_weights, k = psis(np.repeat([0.0, 1.0], 500))
    assert k == np.inf
    np.testing.assert_allclose(np.exp(log_weights[500:]), np.e / (500 * (1 + np.e)))
