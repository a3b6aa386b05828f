"""What counts in the likelihood: factors in plates do, masked elements do not."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

import probdl
from probdl.io.idata import ARVIZ_1, groups, loo

LAPLACE = probdl.Laplace(draws=2000)


def elpd(fit):
    """Return ArviZ's sum over all variables of the log likelihood, and their number of points."""
    results = [loo(fit.idata, name) for name in fit.idata.log_likelihood.data_vars]
    if ARVIZ_1:
        return sum(r.elpd for r in results), sum(r.n_data_points for r in results)
    return sum(r["elpd_loo"] for r in results), sum(r["n_data_points"] for r in results)


# -- factors ------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
LIFE = RNG.exponential(4.0, size=120)
TIME, EVENT = np.minimum(LIFE, 5.0), LIFE <= 5.0


def exact_elpd():
    """Return the exact leave-one-out score of exponential times with a Gamma(1, 1) prior."""
    total = 0.0
    for i in range(len(TIME)):
        shape = 1.0 + EVENT.sum() - EVENT[i]
        rate = 1.0 + TIME.sum() - TIME[i]
        total += shape * np.log(rate / (rate + TIME[i]))
        total += np.log(shape / (rate + TIME[i])) if EVENT[i] else 0.0
    return total


def observed(lam, t, event):
    with pyro.plate("events", int(event.sum())):
        pyro.sample("y", dist.Exponential(lam), obs=t[event])


def plate_of_factors(t, event):
    lam = pyro.sample("lam", dist.Gamma(1.0, 1.0))
    observed(lam, t, event)
    with pyro.plate("censored", int((~event).sum())):
        pyro.factor("cens", -lam * t[~event])


def shared_plate(t, event):
    lam = pyro.sample("lam", dist.Gamma(1.0, 1.0))
    with pyro.plate("rows", len(t)):
        with poutine.mask(mask=event):
            pyro.sample("y", dist.Exponential(lam), obs=t)
        with poutine.mask(mask=~event):
            pyro.factor("cens", -lam * t)


def factors_only(t, event):
    lam = pyro.sample("lam", dist.Gamma(1.0, 1.0))
    with pyro.plate("rows", len(t)):
        pyro.factor("cens", event * torch.log(lam) - lam * t)


def without_plates(t, event):
    lam = pyro.sample("lam", dist.Gamma(1.0, 1.0))
    pyro.sample("y", dist.Exponential(lam), obs=t[event])
    pyro.factor("cens", -lam * t[~event])


def loop_of_plates(t, event):
    lam = pyro.sample("lam", dist.Gamma(1.0, 1.0))
    observed(lam, t, event)
    for i in pyro.plate("censored", int((~event).sum())):
        pyro.factor(f"cens{i}", -lam * t[~event][i])


def constant_time(t, event):
    lam = pyro.sample("lam", dist.Gamma(1.0, 1.0))
    observed(lam, t, event)
    with pyro.plate("censored", int((~event).sum())):
        pyro.factor("cens", -lam * 5.0)


@pytest.mark.parametrize(
    "model",
    [plate_of_factors, shared_plate, factors_only, without_plates, loop_of_plates, constant_time],
)
def test_factors_are_observations(model):
    fit = probdl.infer(model, TIME, EVENT, method=LAPLACE, seed=1)
    total, points = elpd(fit)
    assert points == len(TIME)
    assert total == pytest.approx(exact_elpd(), abs=0.15)
    assert set(fit.idata.log_likelihood.data_vars) == set(fit.log_likelihood())
    score = fit.log_predictive()
    assert score.count == len(TIME)
    assert score.total == pytest.approx(sum(np.nansum(v) for v in score.pointwise.values()))
    told = {f.check for f in fit.diagnose()}
    assert ("factor" in told) == (model is without_plates)


def test_the_joint_score_holds_the_factors():
    fit = probdl.infer(plate_of_factors, TIME, EVENT, method="laplace", seed=1)
    # The exact log evidence of a Gamma(1, 1) prior given the posterior draws' mean density.
    lam = fit.draws["lam"].ravel()
    known = EVENT.sum() * np.log(lam) - lam * TIME.sum()
    joint = np.logaddexp.reduce(known) - np.log(len(lam))
    assert fit.log_predictive().joint == pytest.approx(joint, rel=1e-9)
    mle = probdl.infer(plate_of_factors, TIME, EVENT, method="mle", seed=1)
    assert mle.stats["num_observations"] == len(TIME)
    assert mle.draws["lam"].item() == pytest.approx(EVENT.sum() / TIME.sum(), rel=1e-5)
    rate = EVENT.sum() / TIME.sum()
    known = EVENT.sum() * np.log(rate) - rate * TIME.sum()
    assert mle.stats["log_likelihood"] == pytest.approx(known)


def test_a_factor_that_sums_up_observations_has_no_pointwise_value():
    def model(t, event):
        lam = pyro.sample("lam", dist.Gamma(1.0, 1.0))
        observed(lam, t, event)
        pyro.factor("cens", -lam * t[~event].sum())

    fit = probdl.infer(model, TIME, EVENT, method="laplace", seed=1)
    assert [f.check for f in fit.diagnose()] == ["factor"]
    with pytest.raises(probdl.ModelError, match="'cens': a factor outside all plates is one"):
        fit.log_likelihood()
    with pytest.warns(UserWarning, match="'log_likelihood' was omitted"):
        assert "log_likelihood" not in groups(fit.idata)
    lam = fit.draws["lam"].ravel()
    known = EVENT.sum() * np.log(lam) - lam * TIME.sum()
    assert fit.log_predictive().joint == pytest.approx(
        np.logaddexp.reduce(known) - np.log(len(lam))
    )
    assert np.isnan(fit.log_predictive().total)


def test_factors_of_the_prior_are_not_observations():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("soft", -0.5 * mu**2)
        with pyro.plate("groups", 3):
            a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
            pyro.factor("prior", -0.5 * (a - mu) ** 2)
        with pyro.plate("rows", 30):
            pyro.sample("y", dist.Normal(a.repeat(10), 1.0), obs=y)

    fit = probdl.infer(model, RNG.normal(size=30), method="laplace", seed=1)
    assert set(fit.log_likelihood()) == {"y"}
    assert not fit.diagnose()


def test_a_plate_of_latent_sites_may_hold_their_likelihood():
    def schools(sigma, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("school", len(sigma)):
            theta = pyro.sample("theta", dist.Normal(mu, 5.0))
            pyro.factor("lik", dist.Normal(theta, sigma).log_prob(y))

    sigma, y = np.full(8, 10.0), RNG.normal(0, 12, 8)
    fit = probdl.infer(schools, sigma, y, method="laplace", seed=1)
    theta = fit.draws["theta"]
    np.testing.assert_allclose(fit.log_likelihood()["lik"], stats.norm(theta, 10).logpdf(y))
    assert fit.idata.log_likelihood["lik"].dims == ("chain", "draw", "school")
    assert "posterior_predictive" not in groups(fit.idata)
    assert "observed_data" not in groups(fit.idata)


def test_compare_refuses_a_likelihood_with_factors():
    fit = probdl.infer(plate_of_factors, TIME, EVENT, method="laplace", seed=1)
    with pytest.raises(probdl.SettingError, match="observed site 'y', factor site 'cens'"):
        probdl.compare({"a": fit, "b": fit})


def test_cross_validation_counts_the_factors():
    small = slice(0, 40)
    args = TIME[small], EVENT[small]
    method = probdl.NUTS(draws=500, warmup=300, chains=2)
    fits = [
        probdl.infer(model, *args, method=method, seed=1) for model in (shared_plate, factors_only)
    ]
    a, b = (fit.cross_validate(4, workers=1) for fit in fits)
    assert a.elpd == pytest.approx(b.elpd, abs=0.1)
    with pytest.raises(probdl.ModelError):  # the factors have another plate
        probdl.infer(plate_of_factors, *args, method=method, seed=1).cross_validate(4, workers=1)


def test_factors_of_a_mixture_are_scored_with_it():
    def model(y, far):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(3 * k, 1.0), obs=y)
        with pyro.plate("others", len(far)):
            pyro.factor("far", torch.log(p) * far)

    y = RNG.normal(size=12)
    fit = probdl.infer(model, y, np.ones(5), method="laplace", seed=1)
    p = fit.draws["p"]
    points = fit.log_likelihood()
    np.testing.assert_allclose(points["far"], np.log(p)[..., None] * np.ones(5))
    density = (1 - p[..., None]) * stats.norm.pdf(y) + p[..., None] * stats.norm(3).pdf(y)
    np.testing.assert_allclose(points["y"], np.log(density))


# -- masks --------------------------------------------------------------------------------

Y = RNG.normal(2.0, 1.0, size=40)
SEEN = np.arange(40) % 7 != 0
SEEN[30:] = False
FILLED = np.where(SEEN, Y, -100.0)


def masked_by_handler(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def masked_distribution(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0).mask(seen), obs=y)


def without_a_plate(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).mask(seen), obs=y)


def half_masked_twice(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    first = torch.arange(len(y)) < 30
    with pyro.plate("rows", len(y)), poutine.mask(mask=seen | ~first), poutine.mask(mask=first):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize(
    "model", [masked_by_handler, masked_distribution, without_a_plate, half_masked_twice]
)
def test_masked_observations_are_not_in_the_groups(model):
    fit = probdl.infer(model, FILLED, SEEN, method=LAPLACE, seed=1)
    alone = probdl.infer(masked_by_handler, Y[SEEN], SEEN[SEEN], method=LAPLACE, seed=1)
    count = SEEN.sum()
    assert not fit.diagnose()  # the fillers would conflict with the prior
    total, points = elpd(fit)
    assert points == count
    assert total == pytest.approx(elpd(alone)[0], abs=0.05)
    container = fit.to_idata(prior=20)
    np.testing.assert_array_equal(container.observed_data["y"], Y[SEEN])
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive"):
        assert container[group]["y"].shape[-1] == count
        assert container[group]["y"].dims[-1] == "y_observed"
    np.testing.assert_array_equal(container.observed_data["y_observed"], np.flatnonzero(SEEN))
    # Arrays of the rows keep all rows: predictions fill the gaps.
    points = fit.log_likelihood()["y"]
    assert points.shape[-1] == 40
    assert (points[..., ~SEEN] == 0).all()
    assert fit.predict()["y"].shape[-1] == 40
    assert fit.log_predictive().count == count


def test_labels_follow_the_observations_that_are_left():
    names = [f"row {i}" for i in range(40)]
    fit = probdl.infer(
        masked_by_handler, FILLED, SEEN, method="laplace", seed=1, coords={"rows": names}
    )
    kept = fit.idata.log_likelihood["y"].coords["y_observed"].values
    assert list(kept) == [n for n, seen in zip(names, SEEN, strict=True) if seen]


def panel(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(y), dim=-2), pyro.plate("columns", 3), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def masked_vectors(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0).mask(seen).to_event(1), obs=y)


def test_masks_of_a_table():
    y = RNG.normal(1.0, 1.0, size=(12, 3))
    seen = RNG.random((12, 3)) < 0.6
    filled = np.where(seen, y, -100.0)
    fit = probdl.infer(panel, filled, seen, method=LAPLACE, seed=1)
    assert elpd(fit)[1] == seen.sum()
    np.testing.assert_array_equal(fit.idata.observed_data["y"], y[seen])
    mean = np.where(seen, y, 0).sum(0) / (seen.sum(0) + 0.01)
    np.testing.assert_allclose(fit.draws["mu"].mean((0, 1)), mean, atol=0.15)


@pytest.mark.parametrize("rows", [12, 3])
def test_masks_inside_of_an_event(rows):
    y = RNG.normal(1.0, 1.0, size=(rows, 3))
    seen = np.ones((rows, 3), bool)
    seen[0] = False  # a row without data
    seen[1, 2] = False  # a gap in a row
    filled = np.where(seen, y, -100.0)
    fit = probdl.infer(masked_vectors, filled, seen, method=LAPLACE, seed=1)
    assert not [f for f in fit.diagnose() if f.check == "prior_conflict"]
    assert elpd(fit)[1] == rows - 1
    data = fit.idata.observed_data["y"].values
    assert data.shape == (rows - 1, 3)
    assert np.isnan(data[0, 2])
    assert np.nansum(data) == pytest.approx(y[seen].sum())
    mean = np.where(seen, y, 0).sum(0) / (seen.sum(0) + 0.01)
    np.testing.assert_allclose(fit.draws["mu"].mean((0, 1)), mean, atol=0.15)


def test_values_outside_the_support_may_be_masked():
    def model(y, seen):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(p).expand([3, 3]).mask(seen).to_event(1), obs=y)

    y, seen = torch.ones(3, 3), torch.ones(3, 3, dtype=torch.bool)
    y[0], seen[0] = -1.0, False
    with pytest.warns(probdl.FindingWarning, match="edge of the support"):
        fit = probdl.infer(model, y, seen, method="mle", seed=1)
    assert fit.stats["num_observations"] == 2
    y[1, 1] = -1.0
    with pytest.raises(probdl.DataError, match=r"1 of 9 values are outside .* index \(1, 1\)"):
        probdl.infer(model, y, seen, method="mle", seed=1)


def test_a_mask_that_depends_on_a_draw_drops_nothing():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)), poutine.mask(mask=mu > 0):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.warns(probdl.FindingWarning):  # there are few draws
        fit = probdl.infer(model, Y[:5], method=probdl.Metropolis(draws=50, warmup=50), seed=1)
    assert fit.idata.log_likelihood["y"].shape[-1] == 5


def test_obs_mask_counts_the_observed_rows():
    def model(y, seen):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)

    method = probdl.SVI(steps=2000, draws=400)
    fit = probdl.infer(model, FILLED, SEEN, method=method, seed=1)
    assert elpd(fit)[1] == SEEN.sum()
    np.testing.assert_array_equal(fit.idata.observed_data["y_observed"], Y[SEEN])


def test_comparison_and_cross_validation_count_rows_that_are_left():
    fits = {
        name: probdl.infer(masked_by_handler, FILLED * scale, SEEN, method=LAPLACE, seed=1)
        for name, scale in {"a": 1.0, "b": 1.0}.items()
    }
    table = probdl.compare(fits)
    assert table.loc["a", "elpd"] == pytest.approx(elpd(fits["a"])[0])
    result = fits["a"].cross_validate(5, workers=1)
    values = result.pointwise[SEEN]
    assert np.isnan(result.pointwise[~SEEN]).all()
    assert f"{int(SEEN.sum())} rows" in repr(result)
    assert result.standard_error == pytest.approx(np.sqrt(SEEN.sum()) * values.std(ddof=1))


def test_a_saved_fit_keeps_the_mask(tmp_path):
    fit = probdl.infer(masked_by_handler, FILLED, SEEN, method="laplace", seed=1)
    fit.save(tmp_path / "fit")
    for model in (None, masked_by_handler):
        loaded = probdl.load(tmp_path / "fit", model=model)
        np.testing.assert_array_equal(loaded.log_likelihood()["y"], fit.log_likelihood()["y"])
        drawn = loaded.posterior_predictive()["y"]
        np.testing.assert_array_equal(drawn[..., SEEN], fit.posterior_predictive()["y"][..., SEEN])
        assert elpd(loaded)[1] == SEEN.sum()
