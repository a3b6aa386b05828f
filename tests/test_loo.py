"""Leave-one-out scores against exact ones, and the log prior that ArviZ's sensitivity needs."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import constraints

import probdl
from probdl.io.idata import ARVIZ_1, groups, has_moment_matching, pareto_k, variables

NUTS = probdl.NUTS(draws=1000, warmup=500, chains=4)
SCALE = 0.5
RNG = np.random.default_rng(2)
X = np.c_[np.ones(20), RNG.normal(size=20)]
Y = X @ [1.0, 2.0] + RNG.normal(0, SCALE, 20)
X[7, 1], Y[7] = 4.0, 12.5  # an outlier with high leverage


def line(x, y=None):
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, SCALE), obs=y)


def exact():
    """Return the exact log density of each row given the others."""
    scores = []
    for i in range(len(Y)):
        kept = np.arange(len(Y)) != i
        precision = np.eye(2) / 100 + X[kept].T @ X[kept] / SCALE**2
        mean = np.linalg.solve(precision, X[kept].T @ Y[kept]) / SCALE**2
        variance = SCALE**2 + X[i] @ np.linalg.solve(precision, X[i])
        scores.append(stats.norm.logpdf(Y[i], X[i] @ mean, variance**0.5))
    return np.array(scores)


@pytest.fixture(scope="module")
def fit():
    return probdl.infer(line, X, Y, method=NUTS, seed=1)


def pointwise(result):
    return np.asarray(result.elpd_i if ARVIZ_1 else result.loo_i)


def test_loo_agrees_with_the_exact_scores_except_for_the_outlier(fit):
    with pytest.warns(probdl.FindingWarning, match=r"k-hat is above 0\.7 for \d"):
        result = fit.loo()
    assert pareto_k(result)[7] > 0.7
    others = np.arange(20) != 7
    np.testing.assert_allclose(pointwise(result)[others], exact()[others], atol=0.15)
    assert abs(pointwise(result)[7] - exact()[7]) > 1


@pytest.mark.skipif(not has_moment_matching(), reason="ArviZ 0.x has no loo_moment_match")
def test_moment_matching_agrees_with_the_posterior_without_the_row(fit):
    result = fit.loo(moment_match=True)
    assert (pareto_k(result) < 0.7).all()
    np.testing.assert_allclose(pointwise(result), exact(), atol=0.25)


@pytest.mark.skipif(not has_moment_matching(), reason="ArviZ 0.x has no loo_moment_match")
def test_moment_matching_with_masks_factors_and_positive_sites():
    def model(y, seen, more):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(y)), pyro.poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(mu, sigma), obs=y)
        with pyro.plate("others", len(more)):
            pyro.factor("more", dist.Normal(mu, sigma).log_prob(more))

    rng = np.random.default_rng(0)
    y, more = rng.normal(size=12), np.r_[rng.normal(size=7), 9.0]
    seen = np.arange(12) != 3
    fit = probdl.infer(model, np.where(seen, y, -50.0), seen, more, method=NUTS, seed=1)
    with pytest.warns(probdl.FindingWarning):
        before = fit.loo()
    after = fit.loo(moment_match=True)
    assert before.n_data_points == after.n_data_points == 19
    assert str(after.elpd_i["observation"].values[-1]) == "more[7]"
    mu, sigma = np.meshgrid(np.linspace(-4, 4, 801), np.exp(np.linspace(-2, 3, 801)))
    log_p = stats.norm(0, 10).logpdf(mu) - 0.5 * np.log(sigma) ** 2  # on R^d
    kept = np.r_[y[seen], more[:-1]]
    log_p += sum(stats.norm(mu, sigma).logpdf(value) for value in kept)
    scored = log_p + stats.norm(mu, sigma).logpdf(more[-1])
    known = np.logaddexp.reduce(scored, None) - np.logaddexp.reduce(log_p, None)
    assert float(after.elpd_i[-1]) == pytest.approx(known, abs=0.5)
    assert abs(float(after.elpd_i[-1]) - known) < abs(float(before.elpd_i[-1]) - known)


@pytest.mark.skipif(has_moment_matching(), reason="ArviZ 1 has loo_moment_match")
def test_old_arviz_has_no_moment_matching(fit):
    with pytest.raises(probdl.SettingError, match="has no loo_moment_match"):
        fit.loo(moment_match=True)


def test_terms_are_scored_together():
    def model(y, more):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        with pyro.plate("others", len(more)):
            pyro.factor("more", dist.Normal(mu, 1.0).log_prob(more))

    y = RNG.normal(size=20)
    method = probdl.Laplace(draws=2000)
    both = probdl.infer(model, y[:13], y[13:], method=method, seed=1).loo()
    precision = 1 / 100 + 19
    known = [
        stats.norm.logpdf(y[i], np.delete(y, i).sum() / precision, np.sqrt(1 + 1 / precision))
        for i in range(20)
    ]
    assert both.n_data_points == 20
    np.testing.assert_allclose(pointwise(both), known, atol=0.03)


def test_loo_needs_draws_and_single_observations():
    with pytest.raises(probdl.SettingError, match="needs posterior draws"):
        probdl.infer(line, X, Y, method="mle", seed=1).loo()


# -- the log prior ------------------------------------------------------------------------


def groups_model(y, group):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    with pyro.plate("groups", 4):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.factor("soft", -0.5 * beta.sum() ** 2)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(theta[group] + beta[0], 1.0), obs=y)


def test_the_log_prior_of_each_site():
    group = np.arange(20) % 4
    method = probdl.NUTS(draws=200, warmup=300, chains=2)
    with pytest.warns(probdl.FindingWarning):  # there are few draws
        fit = probdl.infer(groups_model, RNG.normal(size=20), group, method=method, seed=1)
    held = variables(fit.idata, "log_prior")
    draws = fit.draws
    known = {
        "mu": stats.norm(0, 5).logpdf(draws["mu"]),
        "tau": stats.halfnorm(0, 2).logpdf(draws["tau"]),
        "theta": stats.norm(draws["mu"][..., None], draws["tau"][..., None]).logpdf(draws["theta"]),
        "beta": stats.norm(0, 1).logpdf(draws["beta"]).sum(-1),
        "soft": -0.5 * draws["beta"].sum(-1) ** 2,
    }
    assert set(held) == set(known)
    for name, values in known.items():
        np.testing.assert_allclose(held[name], values)
    assert fit.idata.log_prior["theta"].dims == ("chain", "draw", "groups")
    # The log density on R^d is the sum of prior, likelihood and Jacobian.
    total = sum(v.reshape(2, 200, -1).sum(-1) for v in held.values())
    total += fit.log_likelihood()["y"].sum(-1) + np.log(draws["tau"])
    difference = fit.stats["lp"] - total
    np.testing.assert_allclose(difference, difference[0, 0], atol=1e-9)


@pytest.mark.skipif(not ARVIZ_1, reason="ArviZ 0.x has no psense_summary")
def test_arviz_finds_a_strong_prior():
    def model(y, scale):
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu + 0.1 * beta[0], 1.0), obs=y)

    y = RNG.normal(2.0, 1.0, size=10)
    found = {}
    for scale in (0.2, 100.0):
        fit = probdl.infer(model, y, scale, method=NUTS, seed=1)
        found[scale] = az.psense_summary(fit.idata, var_names=["mu"])["prior"].item()
        az.psense_summary(fit.idata, prior_var_names=["mu"])
    assert found[0.2] > 0.05 > found[100.0]


def test_fits_without_a_log_prior():
    mle = probdl.infer(line, X, Y, method="mle", seed=1)
    assert "log_prior" not in groups(mle.idata)
    with pytest.raises(probdl.ModelError, match="no draws of the latent sites"):
        mle.log_prior()

    def mixture(y):
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            theta = pyro.sample("theta", dist.Normal(z, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    fit = probdl.infer(mixture, torch.zeros(4), method="laplace", seed=1)
    with pytest.raises(probdl.ModelError, match="'theta' depends on a discrete site"):
        fit.log_prior()
    with pytest.warns(UserWarning, match="'log_prior' was omitted"):
        assert "log_prior" not in groups(fit.idata)


def test_a_saved_fit_has_its_log_prior(tmp_path, fit):
    fit.save(tmp_path / "fit")
    loaded = probdl.load(tmp_path / "fit")
    np.testing.assert_array_equal(loaded.log_prior()["beta"], fit.log_prior()["beta"])
    with pytest.warns(probdl.FindingWarning):
        assert loaded.loo().n_data_points == 20


def walk(times, y=None):
    with pyro.plate("step", len(times)):
        moves = pyro.sample("moves", dist.Normal(0.0, 1.0))
    with pyro.plate("time", len(times)):
        pyro.sample("y", dist.Normal(moves.cumsum(-1), SCALE), obs=y)


def walk_in_one_plate(times, y=None):
    with pyro.plate("time", len(times)):
        moves = pyro.sample("moves", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(moves.cumsum(-1), SCALE), obs=y)


@pytest.mark.parametrize("model", [walk, walk_in_one_plate], ids=lambda m: m.__name__)
def test_rows_of_a_series_are_held_out_in_their_places(model):
    n = 16
    y = np.cumsum(np.random.default_rng(0).normal(size=n))
    method = probdl.Laplace(draws=8000)  # exact: the posterior is normal
    fit = probdl.infer(model, np.arange(n), y, method=method, seed=1, progress=False)
    found = fit.cross_validate(4, workers=1)
    path = np.tril(np.ones((n, n)))
    covariance = path @ path.T + SCALE**2 * np.eye(n)
    expected = np.empty(n)
    for fold in range(4):
        out, kept = found.folds == fold, found.folds != fold
        gain = np.linalg.solve(covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, out)]).T
        mean = gain @ y[kept]
        variance = np.diag(covariance[np.ix_(out, out)] - gain @ covariance[np.ix_(kept, out)])
        expected[out] = stats.norm.logpdf(y[out], mean, np.sqrt(variance))
    np.testing.assert_allclose(found.pointwise, expected, atol=0.1)


def test_an_autoregression_is_cross_validated_by_its_terms():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("time", len(y) - 1):
            pyro.sample("y", dist.Normal(a * y[:-1], 1.0), obs=y[1:])

    y = np.random.default_rng(0).normal(size=21)
    method = probdl.Laplace(draws=4000)
    fit = probdl.infer(model, y, method=method, seed=1, progress=False)
    found = fit.cross_validate(20, workers=1).pointwise
    expected = []
    for i in range(20):
        kept = np.arange(20) != i
        precision = 1 + (y[:-1][kept] ** 2).sum()
        mean = (y[:-1][kept] * y[1:][kept]).sum() / precision
        sd = np.sqrt(1 + y[i] ** 2 / precision)
        expected.append(stats.norm.logpdf(y[i + 1], y[i] * mean, sd))
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_imputed_gaps_of_an_autoregression_stay_in_cross_validation():
    """The density of a gap is that of its terms, which are no observations to be left out."""
    y = np.random.default_rng(1).normal(size=21)
    y[[6, 12]] = np.nan

    def model(y):
        a = pyro.sample("a", dist.Normal(0.5, 0.3))
        missing = torch.isnan(y)
        with pyro.plate("gaps", int(missing.sum())):
            gap = pyro.sample("gap", dist.ImproperUniform(constraints.real, (), ()))
        full = torch.where(missing, 0.0, y).masked_scatter(missing, gap)
        with pyro.plate("time", len(y) - 1):
            pyro.sample("y", dist.Normal(a * full[:-1], 1.0), obs=full[1:])

    fit = probdl.infer(model, y, seed=1, missing="mask")
    found = fit.cross_validate(2, workers=1)
    grid = np.linspace(-1, 2, 1201)
    prior = stats.norm.logpdf(grid, 0.5, 0.3)
    observed = ~np.isnan(y[1:])
    expected = np.full(20, np.nan)
    for fold in range(2):
        out = (found.folds == fold) & observed
        log_weights = prior + sum(_ar_terms(y, grid, i) for i in np.flatnonzero(observed & ~out))
        weights = np.exp(log_weights - log_weights.max())
        for i in np.flatnonzero(out):
            # The value before is seen, or a gap whose density given a is that of its terms.
            density = np.exp(_ar_terms(y, grid, i))
            expected[i] = np.log((weights * density).sum() / weights.sum())
    together = (found.folds[5] == found.folds[6]) | (found.folds[11] == found.folds[12])
    assert together.any()  # a gap and the next observation are in one fold
    shown = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found.pointwise), ~observed)
    np.testing.assert_allclose(found.pointwise[shown], expected[shown], atol=0.1)


def _ar_terms(y, a, i):
    """Return log p(y[i + 1] | the observation before, a) on a grid, where a gap is summed out."""
    if not np.isnan(y[i]):
        return stats.norm.logpdf(y[i + 1], a * y[i], 1.0)
    # y[i] given y[i - 1] is normal with variance 1.
    return stats.norm.logpdf(y[i + 1], a**2 * y[i - 1], np.sqrt(1 + a**2))


def test_rows_that_the_model_counts_are_held_out_in_their_places():
    def counted(y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("time", len(y)):
            pyro.sample("y", dist.Normal(slope * torch.arange(len(y)), 1.0), obs=y)

    def given(times, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("time", len(times)):
            pyro.sample("y", dist.Normal(slope * times, 1.0), obs=y)

    times = np.arange(24.0)
    y = 0.5 * times + np.random.default_rng(0).normal(size=24)
    method = probdl.Laplace(draws=4000)
    fits = [
        probdl.infer(model, *data, method=method, seed=1, progress=False)
        for model, data in ((counted, (y,)), (given, (times, y)))
    ]
    a, b = (fit.cross_validate(4, workers=1).pointwise for fit in fits)
    np.testing.assert_allclose(a, b, atol=0.03)


def test_one_observation_is_no_leave_one_out():
    def series(y):
        drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
        steps = torch.ones(len(y)).cumsum(-1)
        pyro.sample("y", dist.Normal(drift * steps, 1.0).to_event(1), obs=y)

    fit = probdl.infer(series, np.arange(5.0), method="laplace", seed=1)
    with pytest.warns(probdl.FindingWarning, match="has one observation"):
        fit.loo()
    with pytest.warns(probdl.FindingWarning, match="has one observation"):
        probdl.compare({"a": fit, "b": fit})


def test_a_model_with_a_latent_value_for_each_observation_is_too_flexible_for_loo():
    rng = np.random.default_rng(0)
    y = 10.0**0.5 * rng.normal(size=30)

    def effects(y):
        with pyro.plate("rows", len(y)):
            effect = pyro.sample("effect", dist.Normal(0.0, 3.0))
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)

    fit = probdl.infer(effects, y, method=probdl.NUTS(draws=2000), seed=1)
    with pytest.warns(probdl.FindingWarning, match=r"effective parameters|k-hat") as caught:
        fit.loo()
    assert any("cross_validate" in str(w.message) for w in caught)
    assert not any("moment_match" in str(w.message) for w in caught)
