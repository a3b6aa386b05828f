"""Discriminators and the Jensen-Shannon divergence against numerical quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import distributions as dist

import probdl
from probdl.nn import MLP
from probdl.results.divergence import estimate_divergence


def quadrature(a, b, sa=1.0, sb=1.0):
    p, q = stats.norm(a, sa), stats.norm(b, sb)

    def integrand(t):
        m = np.logaddexp(p.logpdf(t), q.logpdf(t)) - np.log(2)
        return 0.5 * (p.pdf(t) * (p.logpdf(t) - m) + q.pdf(t) * (q.logpdf(t) - m))

    return integrate.quad(integrand, -30, 30, limit=200)[0]


@pytest.mark.parametrize(("a", "b", "sb"), [(0.0, 1.0, 1.0), (-2.0, 2.0, 1.0), (0.0, 0.5, 2.0)])
def test_simulation_agrees_with_quadrature(a, b, sb):
    found = probdl.jensen_shannon(dist.Normal(a, 1.0), dist.Normal(b, sb), seed=1)
    assert found.standard_error > 0
    assert abs(found.value - quadrature(a, b, 1.0, sb)) < 4 * found.standard_error
    assert found.exact


def test_the_optimal_discriminator_is_a_ratio_of_densities():
    p, q = dist.Normal(0.0, 1.0), dist.Normal(1.0, 2.0)
    t = torch.linspace(-4, 4, 9)
    expected = p.log_prob(t).exp() / (p.log_prob(t).exp() + q.log_prob(t).exp())
    torch.testing.assert_close(probdl.optimal_discriminator(p, q)(t), expected)


def test_equal_densities_give_one_half_and_minus_log_four_exactly():
    p, q = dist.Normal(0.3, 1.2), dist.Normal(0.3, 1.2)
    assert (probdl.optimal_discriminator(p, q)(torch.randn(50)) == 0.5).all()
    found = probdl.jensen_shannon(p, q)
    assert found.value_function == -2 * math.log(2)
    assert found.value == found.standard_error == 0.0


def test_a_trained_discriminator_gives_a_nearly_tight_lower_bound():
    torch.manual_seed(0)
    real, fake = torch.randn(8000, 1), 1.5 + torch.randn(8000, 1)
    found = estimate_divergence(real, fake, MLP([1, 16, 1]), seed=1)
    exact = quadrature(0.0, 1.5)
    assert found.value < exact + 4 * found.standard_error
    assert found.value > exact - 4 * found.standard_error - 0.01


def test_the_estimate_stays_between_zero_and_log_two():
    torch.manual_seed(0)
    same = estimate_divergence(torch.randn(400, 3), torch.randn(400, 3), MLP([3, 64, 1]), seed=1)
    assert 0.0 <= same.value < 0.03
    apart = estimate_divergence(torch.randn(400, 1), torch.randn(400, 1) + 50, MLP([1, 8, 1]))
    assert 0.6 < apart.value <= math.log(2)
    if same.raw < 0:
        assert "raw" in repr(same)
    with pytest.raises(probdl.SettingError, match="at least 40"):
        estimate_divergence(torch.randn(10, 1), torch.randn(400, 1), MLP([1, 8, 1]))
    fit = probdl.infer(probdl.models.normal_normal, np.ones(2), np.ones(2), method="map", seed=1)
    with pytest.raises(probdl.ModelError, match="has no discriminator"):
        fit.divergence(np.ones((50, 1)))
