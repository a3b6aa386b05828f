"""`Fit`: predictions, scores, the ArviZ container, text and HTML."""

import pickle
import subprocess
import sys
from dataclasses import replace

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.reparam import LocScaleReparam
from scipy import stats
from scipy.special import logsumexp

import probdl
from probdl.io.idata import ARVIZ_1, groups, summary, summary_of_many, variables
from probdl.models import linear_regression, normal_normal
from probdl.results import fit as fit_module

RNG = np.random.default_rng(3)
X = RNG.normal(size=(25, 2))
Y = 1.0 + X @ [2.0, -1.0] + RNG.normal(size=25)


@pytest.fixture(scope="module")
def regression():
    return probdl.infer(linear_regression, X, Y, method="laplace", seed=1)


def test_draws_are_arrays_by_chain_and_draw(schools_fit):
    shapes = {name: array.shape for name, array in schools_fit.draws.items()}
    assert shapes == {
        "mu": (2, 200), "tau": (2, 200), "theta_trans": (2, 200, 8), "theta": (2, 200, 8)
    }  # fmt: skip
    assert all(array.dtype == np.float64 for array in schools_fit.draws.values())
    d = schools_fit.draws
    np.testing.assert_allclose(
        d["theta"], d["mu"][..., None] + d["tau"][..., None] * d["theta_trans"]
    )


def test_log_likelihood_of_each_draw(regression):
    points = regression.log_likelihood()["y"]
    d = regression.draws
    mean = d["intercept"][..., None] + d["beta"] @ X.T
    np.testing.assert_allclose(points, stats.norm(mean, d["sigma"][..., None]).logpdf(Y))


def test_log_predictive_averages_densities_pointwise_and_jointly(regression):
    points = regression.log_likelihood()["y"][0]
    scored = regression.log_predictive()
    np.testing.assert_allclose(scored.pointwise["y"], logsumexp(points, 0) - np.log(len(points)))
    assert scored.total == pytest.approx(scored.pointwise["y"].sum())
    assert scored.joint == pytest.approx(logsumexp(points.sum(1)) - np.log(len(points)))
    assert "over 25 observations" in repr(scored)
    again = regression.log_predictive(X, y=Y)
    assert again.joint == pytest.approx(scored.joint)


def test_the_standard_error_of_the_joint_score_is_its_spread_over_seeds():
    sigma, y = np.ones(3), np.array([0.5, -0.5, 0.0])
    method = probdl.Laplace(draws=400)
    scores = [
        probdl.infer(normal_normal, sigma, y, method=method, seed=seed).log_predictive(
            sigma[:1], np.array([1.5])
        )
        for seed in range(40)
    ]
    spread = np.std([score.joint for score in scores], ddof=1)
    error = np.mean([score.joint_standard_error for score in scores])
    assert abs(spread / error - 1) < 4 / 78**0.5  # the spread has relative error 1/sqrt(2 * 39)
    assert f"± {scores[0].joint_standard_error:.2g})" in repr(scores[0])


def test_predictions_at_new_arguments_have_their_shape_and_mean(regression):
    new = np.random.default_rng(4).normal(size=(7, 2))
    predicted = regression.predict(new)["y"]
    assert predicted.shape == (1, 1000, 7)
    d = regression.draws
    mean = (d["intercept"][..., None] + d["beta"] @ new.T)[0]
    error = np.hypot(mean.std(0), d["sigma"].mean()) / 1000**0.5
    assert (abs(predicted[0].mean(0) - mean.mean(0)) < 4 * error).all()
    # Data among the arguments are ignored: observed sites are drawn.
    np.testing.assert_array_equal(regression.predict(new, np.zeros(7))["y"], predicted)


def test_scoring_without_data_is_an_error(regression):
    with pytest.raises(probdl.ModelError, match="observes no site at these arguments"):
        regression.log_predictive(X)


def test_a_scalar_distribution_over_an_array_predicts_the_array():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = probdl.infer(model, Y, method="laplace", seed=1)
    replicates = fit.posterior_predictive()["y"]
    assert replicates.shape == (1, 1000, 25)
    assert abs(np.corrcoef(replicates[0].T)[0, 1]) < 0.2  # independent given mu


def test_a_site_of_another_shape_is_drawn_from_its_prior_with_a_warning(schools_fit):
    with pytest.warns(UserWarning, match="'theta_trans' .* was sampled from its prior"):
        new = schools_fit.predict(np.ones(3))
    assert new["theta"].shape == (2, 200, 3)
    # Given the posterior draws of mu and tau, which are kept, theta is Normal(mu, tau).
    d = schools_fit.draws
    spread = (new["theta"][..., 0] - d["mu"]) / d["tau"]
    assert abs(spread.mean()) < 4 / 400**0.5
    assert spread.std() == pytest.approx(1.0, abs=4 / 800**0.5)


def test_mixture_predictions_and_scores_sum_over_the_components():
    rng = np.random.default_rng(5)
    y = np.r_[rng.normal(-4.0, 1.0, 30), rng.normal(4.0, 1.0, 90)]

    def model(y):
        weight = pyro.sample("weight", dist.Beta(1.0, 1.0))
        mu = pyro.sample("mu", dist.Normal(torch.tensor([-4.0, 4.0]), 1.0).to_event(1))
        with pyro.plate("obs", len(y)):
            k = pyro.sample("k", dist.Bernoulli(weight))
            pyro.sample("y", dist.Normal(mu[k.long()], 1.0), obs=y)

    fit = probdl.infer(model, y, method="laplace", seed=1)
    weight, mu = fit.draws["weight"][0, :, None], fit.draws["mu"][0]
    density = (1 - weight) * stats.norm(mu[:, :1], 1).pdf(y)
    density = density + weight * stats.norm(mu[:, 1:], 1).pdf(y)
    np.testing.assert_allclose(fit.log_likelihood()["y"][0], np.log(density))
    positive = np.where(mu[:, 1:] > 0, weight, 1 - weight)  # the mode may have either order
    share = (fit.predict()["y"] > 0).mean()
    assert abs(share - positive.mean()) < 4 * np.hypot(weight.std(), 0.5 / 120**0.5) / 1000**0.5


def test_a_discrete_site_shared_by_all_data_keeps_its_posterior():
    rng = np.random.default_rng(6)
    y = np.r_[rng.normal(-2.0, 1.0, 12), rng.normal(3.0, 1.0, 20)]

    def change_point(y):
        before = pyro.sample("before", dist.Normal(0.0, 5.0))
        after = pyro.sample("after", dist.Normal(0.0, 5.0))
        at = pyro.sample("at", dist.Categorical(torch.ones(len(y))))
        mean = torch.where(torch.arange(len(y)) < at, before, after)
        with pyro.plate("time", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = probdl.infer(change_point, y, method="laplace", seed=1)
    mean = fit.predict()["y"].mean((0, 1))
    assert (mean[:11] < -1).all()
    assert (mean[13:] > 2).all()
    # The observations depend on one another through `at`, so there is only a joint score.
    with pytest.raises(probdl.ModelError, match="observations depend on one another"):
        fit.log_likelihood()
    by_hand = [
        logsumexp([
            stats.norm(np.where(np.arange(32) < at, a, b), 1).logpdf(y).sum() - np.log(32)
            for at in range(32)
        ])
        for a, b in zip(fit.draws["before"][0, :50], fit.draws["after"][0, :50], strict=True)
    ]  # fmt: skip
    whole = probdl.model.predictive.log_likelihood(fit.program, fit.structure, fit.tensors()).joint
    np.testing.assert_allclose(whole[:50], by_hand)
    with pytest.warns(UserWarning, match="group 'log_likelihood' was omitted"):
        assert "posterior_predictive" in fit.idata


def test_masked_observations_do_not_count():
    def model(y, seen):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(y)), pyro.poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    seen = np.arange(25) < 10
    fit = probdl.infer(model, Y, seen, method="mle", seed=1)
    assert fit.draws["mu"].item() == pytest.approx(Y[:10].mean(), abs=1e-6)
    assert fit.stats["num_observations"] == 10
    assert (fit.log_likelihood()["y"][0, 0, 10:] == 0).all()


def test_a_factor_is_part_of_the_density_and_not_an_observation():
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("prior", -0.5 * mu**2)
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = probdl.infer(model, np.ones(3), method="laplace", seed=1)
    assert fit.stats["mode"][0] == pytest.approx(0.75)
    assert set(fit.log_likelihood()) == {"y"}
    assert set(fit.idata.observed_data.data_vars) == {"y"}


def test_idata_has_the_groups_and_the_plates_as_dims(schools_fit, schools):
    idata = schools_fit.idata
    expected = {"posterior", "sample_stats", "log_likelihood", "log_prior", "posterior_predictive",
              "observed_data", "constant_data"}  # fmt: skip
    assert expected <= set(groups(idata))
    assert idata.posterior["theta"].dims == ("chain", "draw", "school")
    assert idata.log_likelihood["y"].dims == ("chain", "draw", "school")
    assert idata.observed_data["y"].dims == ("school",)
    assert idata.constant_data["sigma"].dims == ("school",)
    assert list(idata.posterior["school"].values) == list("ABCDEFGH")
    np.testing.assert_array_equal(idata.observed_data["y"], schools[1])
    assert idata.posterior["theta"].sel(school="C").shape == (2, 200)


def test_arviz_works_on_idata_directly(schools_fit, schools, tmp_path):
    other = probdl.infer(normal_normal, *schools, scale=5.0, method="laplace", seed=1)
    assert "theta[A]" in az.summary(schools_fit.idata).index
    loo = az.loo(schools_fit.idata)
    assert np.isfinite(loo.elpd if ARVIZ_1 else loo.elpd_loo)
    table = az.compare({"pooled": other.idata, "partial": schools_fit.idata})
    assert set(table.index) == {"pooled", "partial"}
    assert az.plot_trace(schools_fit.idata, var_names=["mu", "tau"]) is not None
    assert (az.plot_ppc_dist if ARVIZ_1 else az.plot_ppc)(schools_fit.idata) is not None
    path = tmp_path / "fit.nc"
    schools_fit.idata.to_netcdf(str(path), engine="h5netcdf")
    read = az.from_netcdf(str(path), engine="h5netcdf")
    np.testing.assert_array_equal(read.posterior["theta"], schools_fit.draws["theta"])


def test_idata_with_draws_from_the_prior(schools_fit):
    idata = schools_fit.to_idata(prior=4000)
    prior = idata.prior
    assert prior["theta"].shape == (1, 4000, 8)
    assert idata.prior_predictive["y"].shape == (1, 4000, 8)
    assert abs(float(prior["mu"].mean())) < 4 * 5 / 4000**0.5
    assert float(prior["mu"].std()) == pytest.approx(5.0, rel=4 / 8000**0.5)
    assert float(prior["tau"].median()) == pytest.approx(5.0, rel=0.15)  # of a HalfCauchy(5)


def test_a_dimension_with_the_name_of_an_argument_keeps_it():
    def model(y):
        with pyro.plate("y", len(y)):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)

    fit = probdl.infer(model, Y, method="laplace", seed=1)
    assert fit.idata.posterior["mu"].dims == ("chain", "draw", "y")
    assert fit.idata.observed_data["obs"].dims == ("y",)


def test_dims_and_coords_label_event_dimensions():
    def model(x, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ beta, 1.0).to_event(1), obs=y)

    fit = probdl.infer(
        model, X, Y, method="map", seed=1, dims={"beta": ["slope"]}, coords={"slope": ["a", "b"]}
    )
    assert fit.idata.posterior["beta"].dims == ("chain", "draw", "slope")
    assert list(fit.summary().index) == ["beta[a]", "beta[b]"]


def test_a_point_estimate_is_a_fit_with_one_draw():
    fit = probdl.infer(linear_regression, X, Y, method="mle", seed=1)
    assert fit.is_point
    assert fit.idata.posterior["beta"].shape == (1, 1, 2)
    assert fit.predict(X[:3])["y"].shape == (1, 1, 3)
    assert fit.log_predictive().joint == pytest.approx(fit.stats["log_likelihood"])


def test_text_and_html_show_the_model_the_method_and_the_summary(schools_fit):
    text = repr(schools_fit)
    assert text.startswith("Fit of 'eight_schools' by NUTS(draws=200,")
    assert "2 chains of 200 draws of 10 scalars" in text  # theta is computed from the others
    assert "theta[H]" in text
    page = schools_fit._repr_html_()
    assert "<table" in page
    assert page.count("<polyline") == 2  # the trace of each chain
    assert "eight_schools" in page
    point = probdl.infer(linear_regression, X, Y, method="map", seed=1)
    assert "a point estimate" in repr(point)
    assert "standard_error" in point._repr_html_()
    rng = np.random.default_rng(7)
    data = rng.normal(size=(50, 30)), rng.normal(size=50)
    many = probdl.infer(linear_regression, *data, method="map", seed=1)
    assert "… and 12 more rows in fit.summary()" in repr(many)


def test_only_the_rows_that_are_shown_are_computed(monkeypatch):
    def model(y):
        with pyro.plate("group", 60):
            theta = pyro.sample("theta", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + theta.sum(), 1.0), obs=y)

    labels = [f"g{i}" for i in range(60)]
    fit = probdl.infer(model, 1.0, method="laplace", seed=1, coords={"group": labels})
    computed = []

    def counted(idata, **options):
        computed.append(sum(v.size // 1000 for v in variables(idata, "posterior").values()))
        return summary(idata, **options)

    def counted_many(draws, labels, kind):
        computed.append(sum(map(len, labels.values())))
        return summary_of_many(draws, labels, kind)

    monkeypatch.setattr(fit_module, "summary", counted)
    monkeypatch.setattr(fit_module, "summary_of_many", counted_many)
    shown = repr(fit)
    assert shown.splitlines()[-21].startswith("mu ")  # scalars come first
    assert "theta[g3, 3]" in shown
    assert "theta[g3, 4]" not in shown
    assert "… and 281 more rows in fit.summary()" in shown
    assert repr(fit) == shown
    assert "281 more rows" in fit._repr_html_()
    assert computed == [20]
    table = fit.summary()
    assert len(table) == 301
    assert computed == [20, 301]
    assert fit.summary().equals(table)
    assert computed == [20, 301]
    shown = ["mu", *table.index[:19]]
    assert shown == list(fit._summary_head[0].index)
    np.testing.assert_allclose(table.loc[shown], fit._summary_head[0])
    table["mean"] = 0.0  # a copy
    assert not fit.summary().equals(table)


@pytest.mark.parametrize("kind", ["stats", "stats_median"])
def test_a_summary_shows_the_digits_that_the_spread_gives(kind):
    """ArviZ 1 shows an intercept of 119.6 ± 1 with the interval from 120 to 120."""
    y = 119.6 + np.random.default_rng(0).normal(size=40)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(100.0, 50.0))
        pyro.deterministic("small", 1e-5 * mean)
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = probdl.infer(model, y, method="laplace", seed=1)
    table = fit.summary(kind=kind)
    for shown in (repr(table), str(table), table.to_string(), table.iloc[:1].to_string()):
        words = next(line.split() for line in shown.splitlines() if line.startswith("mean "))
        low, high = (float(word) for word in words[-2:])
        assert [low, high] == pytest.approx([*table.iloc[0, -2:]], abs=0.001)
        assert low < table.iloc[0, 0] < high
    assert f"{table.iloc[1, 0]:.8f}" in table.to_html()  # about 0.0012, with an sd of 2e-6
    np.testing.assert_allclose(table.iloc[0, 0], y.mean(), atol=0.1)
    assert table["eti89_lb"].dtype == float
    assert repr(pickle.loads(pickle.dumps(table))) == repr(table)
    assert "119." in repr(fit)


def test_networks_are_summarised_by_layer(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1))

    def model(x, y):
        net = pyro.module("net", network)
        level = pyro.param("level", torch.tensor(0.5))
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(net(x)[:, 0] + level, 1.0), obs=y)

    x = torch.randn(50, 3)
    fit = probdl.infer(model, x, x[:, 0], method=probdl.SVI(steps=20), seed=1)
    table = fit.summary()
    weight = fit.draws["net$$$0.weight"]
    assert "net.0.weight" in table.index
    assert table.loc["net.0.weight", "shape"] == "(30, 3)"
    assert table.loc["net.0.weight", "mean"] == pytest.approx(weight.mean())
    assert table.loc["net.0.weight", "sd"] == pytest.approx(weight.std())
    assert table.loc["level", "estimate"] == fit.draws["level"].item()
    assert {"net.0.bias", "net.2.weight", "net.2.bias[0]"} <= set(table.index)
    assert len(table) == 5
    assert "(30, 3)" in repr(fit)
    assert "more rows" not in repr(fit)
    assert "<td>(30, 3)</td>" in fit._repr_html_()
    fit.save(tmp_path / "fit")
    assert probdl.load(tmp_path / "fit").summary().equals(table)
    # Few weights with standard errors are shown one by one.
    small = probdl.infer(linear_module, x, x[:, 0], method="mle", seed=1).summary()
    assert "linear.weight[0, 2]" in small.index
    assert np.isfinite(small["standard_error"]).all()


def test_the_weights_of_a_bayesian_network_are_shown_by_layer():
    def model(x, y):
        weight = pyro.sample("net.weight", dist.Normal(torch.zeros(30), 1.0).to_event(1))
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)

    rng = np.random.default_rng(0)
    fit = probdl.infer(model, rng.normal(size=(60, 30)), rng.normal(size=60), method="map", seed=1)
    assert "(30,)" in repr(fit)
    assert "net.weight[3]" not in repr(fit)
    assert "more rows" not in repr(fit)
    assert fit.summary().loc["net.weight[3]", "standard_error"] > 0


class LinearModule(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x, y=None):
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(self.linear(x)[:, 0], 1.0), obs=y)


linear_module = LinearModule()


def test_findings_are_readable():
    finding = probdl.Finding("warning", "ess", "Few <draws>.", "Draw more.")
    findings = probdl.Findings([probdl.Finding("info", "early_stopping", "b"), finding])
    assert findings[0] is finding  # the most severe first
    assert str(findings) == "warning (ess): Few <draws>. Draw more.\ninfo (early_stopping): b"
    assert "Few &lt;draws&gt;." in findings._repr_html_()
    assert "no findings" in str(probdl.Findings())


def test_a_model_without_data_is_sampled_from_its_prior():
    method = probdl.NUTS(draws=300, warmup=200, chains=2)
    fit = probdl.infer(normal_normal, np.ones(8), scale=5.0, method=method, seed=2)
    assert fit.draws["y"].shape == (2, 300, 8)  # not given, so it is latent too
    error = float(az.mcse(fit.idata, var_names="mu")["mu"])
    assert abs(fit.draws["mu"].mean()) < 4 * error


def test_predictions_in_files_equal_those_in_memory(regression, tmp_path):
    new = np.random.default_rng(4).normal(size=(7, 2))
    written = regression.predict(new, out=tmp_path / "predictions")
    assert isinstance(written["y"], np.memmap)
    np.testing.assert_array_equal(written["y"], regression.predict(new)["y"])
    np.testing.assert_array_equal(np.load(tmp_path / "predictions" / "y.npy"), written["y"])
    before = np.array(written["y"])
    regression.predict(new[:1], out=tmp_path / "predictions")  # leaves the first result as it is
    np.testing.assert_array_equal(written["y"], before)
    (tmp_path / "file").write_text("x")
    with pytest.raises(probdl.SettingError, match="could not be written to"):
        regression.predict(new, out=tmp_path / "file")


PREDICT_TO_FILES = """
import resource, sys, numpy as np, probdl
from probdl.models import linear_regression
x = np.random.default_rng(0).normal(size=(50, 3))
y = np.random.default_rng(2).normal(size=50)
fit = probdl.infer(linear_regression, x, y, method=probdl.Laplace(draws=2000), seed=1)
rows = np.random.default_rng(1).normal(size=(10_000, 3))
fit.predict(rows[:10], out=sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = fit.predict(rows, out=sys.argv[1])["y"].nbytes
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(size / 2**20, (after - before) / 2**10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
def test_predictions_to_files_use_bounded_memory(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PREDICT_TO_FILES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    size, grown = map(float, run.stdout.split())
    assert size > 150  # MiB of predictions
    assert grown < 1000  # a part of 256 MiB, and copies of it


def test_a_reparameterised_site_is_latent_and_not_observed(schools):
    def centred(sigma, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", len(sigma)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    model = pyro.poutine.reparam(centred, config={"theta": LocScaleReparam(0.0)})
    method = probdl.NUTS(draws=300, warmup=300, chains=2)
    fit = probdl.infer(model, *schools, method=method, seed=1)
    d = fit.draws
    np.testing.assert_allclose(
        d["theta"], d["mu"][..., None] + d["tau"][..., None] * d["theta_decentered"]
    )
    assert list(fit.idata.observed_data) == ["y"]
    assert list(fit.idata.log_likelihood) == ["y"]


def test_an_error_inside_a_property_of_a_fit_is_not_replaced(regression, monkeypatch):
    fit = regression
    broken = property(lambda self: self.no_such_thing)
    monkeypatch.setattr(probdl.Fit, "title", broken)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = fit.title
    with pytest.raises(AttributeError, match="'Fit' object has no attribute 'titel'"):
        _ = fit.titel


def test_a_subclass_of_a_user_adds_no_method_to_the_errors_of_others():
    class Mine(probdl.Fit):
        def quantify(self):
            pass

    assert "quantify" not in probdl.Fit._capabilities


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning", "ignore::RuntimeWarning")
def test_the_summary_of_many_scalars_is_that_of_arviz(monkeypatch):
    def model(y):
        pyro.sample("a/b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        days, kinds = pyro.plate("day", 4, dim=-2), pyro.plate("kind", 2, dim=-1)
        with days, kinds:
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.deterministic("count", (level > 0).sum())
        pyro.deterministic("constant", torch.ones(2))
        pyro.sample("y", dist.Normal(level.sum(), 1.0), obs=y)

    coords = {
        "day": np.arange("2024-01-01", "2024-01-05", dtype="datetime64[D]"),
        "kind": ["p/r", "q"],
    }
    for method in (probdl.NUTS(draws=300, warmup=300, chains=2), "laplace"):
        fit = probdl.infer(model, torch.tensor(1.0), method=method, seed=1, coords=coords)
        expected = fit.summary()
        again = replace(fit)
        monkeypatch.setattr("probdl.results.fit.MANY_SCALARS", 1)
        found = again.summary()
        monkeypatch.undo()
        assert [*found.index] == [*expected.index]
        assert [*found.columns] == [*expected.columns]
        np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=1e-6)
        assert found.to_string() == expected.to_string()
        assert type(found) is type(expected)
