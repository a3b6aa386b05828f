"""Diagnostics of many scalars at once, against ArviZ's."""

import subprocess
import sys
import warnings

import arviz as az
import numpy as np
import pytest
from scipy import stats

from probdl.io import idata, mixing

RNG = np.random.default_rng(0)
FIGURES = {
    "rhat": (mixing.rhat, lambda data: az.rhat(data)),
    "ess of the bulk": (mixing.ess_bulk, lambda data: az.ess(data, method="bulk")),
    "ess of the tail": (
        lambda x: mixing.ess_tail(x, idata.tail_probs()),
        lambda data: az.ess(data, method="tail"),
    ),
    "mcse": (mixing.mcse_mean, lambda data: az.mcse(data, method="mean")),
}


def autoregression(chains, draws, scalars, coefficient):
    x = RNG.normal(size=(chains, draws, scalars))
    for t in range(1, draws):
        x[:, t] += coefficient * x[:, t - 1]
    return x


def with_values(x, **places):
    """Return draws in which some scalars have other values."""
    x = x.copy()
    x[..., 0] = 1.5
    x[0, :, 1] += 3.0
    x[..., 2] = np.round(x[..., 2])
    x[..., 3] = (x[..., 3] > 0).astype(float) * 0.3
    x[0, 0, 4] = np.nan
    x[0, 1, 5] = np.inf
    x[1:, :, 6] = 0.0
    x[..., 7] *= 1e-20
    x[..., 8] *= 1e200
    x[..., 9] = 0.0  # two chains at each of two values, so that the folded part is constant
    x[: len(x) // 2, :, 9] = 1.0
    x[..., 10] = x[..., 9]
    x[0, 5, 10], x[-1, 7, 10] = 0.0, 1.0
    return x


DRAWS = {
    "independent": autoregression(4, 200, 30, 0.0),
    "slow": autoregression(4, 200, 30, 0.9),
    "very slow": autoregression(2, 300, 30, 0.999),
    "alternating": autoregression(4, 200, 30, -0.8),
    "odd numbers": autoregression(3, 101, 30, 0.5),
    "one chain": autoregression(1, 500, 30, 0.5),
    "four draws": autoregression(4, 4, 200, 0.0),
    "few draws": autoregression(2, 7, 200, 0.3),
    "eight draws": autoregression(2, 8, 200, -0.9),
    "special values": with_values(autoregression(4, 150, 12, 0.3)),
    "a matrix": autoregression(2, 50, 12, 0.3).reshape(2, 50, 3, 4),
    "integers": RNG.poisson(2.0, size=(4, 100, 20)).astype(float),
}


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("case", DRAWS)
def test_figures_are_those_of_arviz(case, figure):
    draws = DRAWS[case]
    ours, theirs = FIGURES[figure]
    container = idata.to_idata({"posterior": {"x": draws}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = theirs(container)
    expected = np.asarray((result.dataset if idata.ARVIZ_1 else result)["x"].values)
    if figure == "rhat" and draws.shape[0] == 1:
        assert np.isnan(ours(draws)).all()
        return
    np.testing.assert_allclose(ours(draws), expected, rtol=1e-10)


def test_the_bfmi_is_that_of_arviz():
    energy = autoregression(3, 500, 1, 0.3)[..., 0] + [[0.0], [5.0], [1e6]]
    if idata.ARVIZ_1:
        expected = az.bfmi(az.from_dict({"sample_stats": {"energy": energy}}))["energy"].values
    else:
        expected = az.bfmi(energy)
    np.testing.assert_allclose(mixing.bfmi(energy), expected, rtol=1e-9)


def test_parts_of_bounded_size_give_the_same(monkeypatch):
    draws = DRAWS["slow"]
    whole = mixing.ess_bulk(draws)
    monkeypatch.setattr(mixing, "MAX_NUMBERS", 4 * 200 * 7)
    np.testing.assert_array_equal(mixing.ess_bulk(draws), whole)


def test_too_few_draws_have_no_figures():
    assert np.isnan(mixing.ess_bulk(np.zeros((4, 3, 2)))).all()
    assert mixing.rhat(np.zeros((4, 10, 0))).shape == (0,)


@pytest.mark.parametrize("case", DRAWS)
def test_all_figures_together_are_the_single_ones(case):
    draws, probs = DRAWS[case], idata.tail_probs()
    together = mixing.mixing(draws, probs)
    single = mixing.rhat(draws), mixing.ess_bulk(draws), mixing.ess_tail(draws, probs)
    for ours, other in zip(together[:4], [*single, mixing.mcse_mean(draws)], strict=True):
        np.testing.assert_array_equal(ours, other)


def test_a_part_of_very_many_draws_settles_what_is_clear(monkeypatch):
    draws = autoregression(2, 8000, 60, 0.0)
    draws[..., 20:40] = autoregression(2, 8000, 20, 0.99)
    draws[0, :, 40:50] += 1.0
    draws[0, 1, 50] = np.nan
    exact = mixing.mixing(draws, idata.tail_probs())
    monkeypatch.setattr(mixing, "SCREENED_NUMBERS", 1000)
    monkeypatch.setattr(mixing, "SCREENED_DRAWS", 2000)
    screened = mixing.mixing(draws, idata.tail_probs(), (1.01, 200.0))
    bad = [exact.rhat > 1.01, exact.ess_bulk < 200, exact.ess_tail < 200]
    bad += [exact.mcse_mean > 200**-0.5 * exact.sd]
    for ours, true, is_bad in zip(screened[:4], exact[:4], bad, strict=True):
        assert is_bad.any()
        np.testing.assert_allclose(ours[is_bad], true[is_bad], rtol=1e-10)
        assert np.isnan(ours[50])
        assert (ours[:20] != true[:20]).mean() > 0.5
    for ours, true in zip(mixing.mixing(draws, idata.tail_probs()), exact, strict=True):
        np.testing.assert_array_equal(ours, true)


@pytest.mark.skipif(not idata.ARVIZ_1, reason="ArviZ 0.x has no setting for the tails")
def test_the_tails_are_those_of_arviz_without_its_import(monkeypatch):
    az.rcParams["stats.ci_prob"]  # imports it
    assert idata.tail_probs() == pytest.approx((0.11, 0.89))
    before = idata.tail_probs()
    monkeypatch.delitem(sys.modules, "arviz")
    assert idata.tail_probs() == before


def test_normal_scores_are_those_of_mean_ranks():
    x = RNG.normal(size=(200, 6))
    x[:, 1] = x[:, 1].round()  # ties
    x[:, 2] = 3.0
    x[:5, 3] = np.inf
    x[:50, 4] = -np.inf
    x[:, 5] = np.abs(x[:, 0] - np.median(x[:, 0]))  # two ties
    shares = (stats.rankdata(x, axis=0) - 3 / 8) / (len(x) - 2 * 3 / 8 + 1)
    scores = mixing._Order.of(np.ascontiguousarray(x.T.reshape(6, 2, 100))).normal_scores
    np.testing.assert_allclose(scores.reshape(6, 200).T, stats.norm.ppf(shares), rtol=1e-12)


# Each of these takes from a third of a second to a second to import, as long as a small fit.
METHODS = ["'nuts'", "'svi'", "'laplace'", "'pathfinder'", "'map'", "'importance'"]
METHODS += [f"probdl.SVI(guide='normal', steps=200, batch_size={size})" for size in (None, 4)]
SLOW = ("arviz", "arviz_stats", "matplotlib", "scipy.stats", "sympy", "torch._dynamo", "xarray")


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_does_not_import_slow_libraries(method):
    # SVI's own guide is a torch.distributions.MultivariateNormal, which imports SymPy.
    slow = [name for name in SLOW if not (name == "sympy" and method == "'svi'")]
    code = (
        "import sys, numpy as np, probdl, pyro, pyro.distributions as dist, torch\n"
        "def model(y):\n"
        "    mu = pyro.sample('mu', dist.Normal(0.0, 5.0))\n"
        "    sigma = pyro.sample('sigma', dist.HalfNormal(2.0))\n"
        "    with pyro.plate('effects', 2):\n"
        "        theta = pyro.sample('theta', dist.Normal(mu, 1.0))\n"
        "    with pyro.plate('rows', len(y)):\n"
        "        pyro.sample('y', dist.Normal(theta.sum(), sigma), obs=y)\n"
        f"probdl.infer(model, np.arange(8.0), method={method}, seed=1)\n"
        f"slow = [name for name in {slow} if name in sys.modules]\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
