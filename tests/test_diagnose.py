"""Findings of `diagnose()`: each appears when its check fails, and not otherwise."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import constraints

import probdl
from probdl.models import beta_binomial, linear_regression, normal_normal
from probdl.results import priors
from probdl.results.diagnostics import check_draws

RNG = np.random.default_rng(5)
pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")


def checks(fit):
    return [f.check for f in fit.diagnose()]


def check_draws_of(**sites):
    """Return the findings for draws of four chains, by check."""
    return {f.check: f for f in check_draws(sites, 4)}


def test_independent_draws_have_no_finding():
    assert not check_draws_of(x=RNG.normal(size=(4, 1000)), y=RNG.standard_t(5, size=(4, 1000, 3)))


def test_chains_that_disagree():
    x = RNG.normal(size=(4, 1000)) + np.array([0.0, 0.0, 0.0, 0.7])[:, None]
    finding = check_draws_of(x=x, fine=RNG.normal(size=(4, 1000)))["rhat"]
    assert finding.sites == ("x",)
    assert finding.severity == "warning" or "R-hat" in finding.message


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_draws_for_any_diagnostic(count, recwarn):
    found = check_draws_of(x=RNG.normal(size=(4, count)))
    assert found.keys() == {"too_few_draws"}
    assert found["too_few_draws"].severity == "error"
    assert f"{count} draws per chain are too few" in found["too_few_draws"].message
    assert not [w for w in recwarn if "chains" in str(w.message)]
    assert "too_few_draws" not in check_draws_of(x=RNG.normal(size=(4, 4)))


def test_a_low_effective_sample_size():
    steps = RNG.normal(size=(4, 1000))
    walk = np.zeros_like(steps)
    for t in range(1, 1000):  # autoregression, rho = 0.98: the ESS is 1 % of the draws
        walk[:, t] = 0.98 * walk[:, t - 1] + 0.2 * steps[:, t]
    found = check_draws_of(walk=walk, fine=RNG.normal(size=(4, 1000)))
    assert found["ess"].sites == ("walk",)
    assert "mcse" not in found  # it would report the same problem


def test_an_imprecise_mean_of_draws_whose_ranks_mix():
    # Each chain makes one short excursion. It hardly changes the ESS of the ranks, but determines
    # mean and standard deviation.
    x = RNG.normal(size=(4, 1000))
    for chain in range(4):
        x[chain, 200 * chain + 100 :][:20] += 1e4
    found = check_draws_of(x=x, fine=RNG.normal(size=(4, 1000)))
    assert found.keys() == {"mcse"}
    assert found["mcse"].sites == ("x",)
    assert "above 0.05. The estimate of the mean is imprecise" in found["mcse"].message


SIGMA = np.ones(20)


def test_data_from_the_prior_predictive_have_no_conflict():
    conflicts = 0
    for seed in range(40):  # each data set has a conflict with probability 1 % to 2 %
        rng = np.random.default_rng(seed)
        y = rng.normal(rng.normal(0.0, 1.0), 1.0, size=20)
        fit = probdl.infer(normal_normal, SIGMA, y, method="map", seed=seed)
        conflicts += "prior_conflict" in checks(fit)
    assert conflicts <= 4  # binomial(40, 0.02) exceeds it with probability 0.0005


def test_data_far_from_the_prior_have_a_conflict():
    y = RNG.normal(200.0, 1.0, size=20)
    for method in ("map", "laplace", probdl.NUTS(draws=50, warmup=50, chains=1)):
        fit = probdl.infer(normal_normal, SIGMA, y, method=method, seed=1)
        (finding,) = [f for f in fit.diagnose() if f.check == "prior_conflict"]
        assert finding.severity == "warning"
        assert finding.sites == ("y",)
        assert f"the mean of 'y' is {y.mean():.4g}, above that of all 200" in finding.message
    assert "prior_conflict" not in checks(
        probdl.infer(normal_normal, SIGMA, y, method="mle", seed=1)
    )


def test_data_with_a_large_spread_have_a_conflict_and_with_a_small_one_do_not():
    for scale, conflict in ((30.0, True), (1.0, False), (0.1, False)):
        y = RNG.normal(0.0, scale, size=20)
        y -= y.mean()
        found = checks(probdl.infer(normal_normal, SIGMA, y, method="map", seed=1))
        assert ("prior_conflict" in found) == conflict


def test_conflicts_are_judged_with_fitted_parameters():
    class Rows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = torch.nn.Linear(1, 1)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.network(z), 0.5).to_event(1), obs=x)

        def guide(self, x):
            scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
            slope = pyro.param("slope", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(slope * (x - 20.0), scale).to_event(1))

    def with_param(y):
        level = pyro.param("level", torch.tensor(0.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(level + mu, 1.0), obs=y)

    y = RNG.normal(20.0, 1.0, size=40)
    assert "prior_conflict" not in checks(probdl.infer(with_param, y, method="map", seed=1))
    rows = torch.from_numpy(y[:, None].astype(np.float32))
    method = probdl.SVI(steps=2000, learning_rate=0.1)
    for model in (Rows(), Rows().model):
        fit = probdl.infer(model, rows, method=method, seed=1)
        assert fit.stats["params"]["network.bias"] == pytest.approx(y.mean(), abs=1.0)
        assert "prior_conflict" not in checks(fit)
    held = probdl.infer(with_param, y, method=probdl.NUTS(draws=50, chains=1), seed=1)
    assert "prior_conflict" in checks(held)  # the parameter was held at 0


def test_masked_data_are_no_conflict():
    def model(y, mask, event=False):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            if event:
                fn = dist.Normal(mu, 1.0).expand([2]).to_event(1).mask(mask)
                pyro.sample("y", fn, obs=torch.stack([y, y], -1))
            else:
                with pyro.poutine.mask(mask=mask):
                    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = RNG.normal(size=40)
    mask = torch.arange(40) < 23
    y[23:] = -100.0
    for event in (False, True):
        assert checks(probdl.infer(model, y, mask, event, method="map", seed=1)) == []
        wrong = probdl.infer(model, y + 50.0, mask, event, method="map", seed=1)
        (finding,) = wrong.diagnose()
        assert finding.check == "prior_conflict"
        assert f"{y[:23].mean() + 50:.4g}, above" in finding.message
    nothing = probdl.infer(model, y, mask & False, method="map", seed=1)
    assert "prior_conflict" not in checks(nothing)


def test_sites_of_a_loop_have_one_conflict():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("obs", len(y)):
            pyro.sample(f"y_{i}", dist.Normal(mu, 1.0), obs=y[i])

    y = RNG.normal(200.0, 1.0, size=20)
    (finding,) = probdl.infer(model, y, method="map", seed=1).diagnose()
    assert finding.check == "prior_conflict"
    assert len(finding.sites) == 20
    assert "and 15 more conflict with it as well" in finding.message
    # Of many sites some are outside all draws by chance.
    found = [
        checks(probdl.infer(model, RNG.normal(RNG.normal(), 1.0, 20), method="map", seed=seed))
        for seed in range(20)
    ]
    assert sum("prior_conflict" in of for of in found) <= 3  # binomial(20, 0.02): 0.0006
    y = RNG.normal(0.0, 1.0, size=20)
    y[7] = 30.0
    (finding,) = probdl.infer(model, y, method="map", seed=1).diagnose()
    assert finding.sites == ("y_7",)


def test_conflicts_of_counts():
    trials = np.full(30, 20)
    prior = {"a": 200.0, "b": 200.0}  # p near one half
    fine = probdl.infer(beta_binomial, trials, np.full(30, 10), **prior, method="map", seed=1)
    assert checks(fine) == []
    high = probdl.infer(beta_binomial, trials, np.full(30, 19), **prior, method="map", seed=1)
    assert "prior_conflict" in checks(high)


def test_a_site_about_which_the_data_are_not_informative():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        idle = pyro.sample("idle", dist.Gamma(2.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu + 0.0 * idle, 1.0), obs=y)

    method = probdl.NUTS(draws=500, warmup=300, chains=2)
    y = np.random.default_rng(1).normal(size=30)  # independent of the order of tests
    fit = probdl.infer(model, y, method=method, seed=1)
    (finding,) = [f for f in fit.diagnose() if f.check == "identification"]
    assert finding.severity == "info"
    assert finding.sites == ("idle",)


def test_flat_priors_and_priors_that_cannot_be_sampled_are_not_checked():
    def flat(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def broken(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        matrix = torch.eye(2) * (1.2 + mu.clamp(min=-1.1))
        root = torch.linalg.cholesky(matrix - 0.05 * torch.eye(2))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=root), obs=y)

    method = probdl.Laplace(draws=500)
    assert checks(probdl.infer(flat, np.array(1000.0), method=method, seed=1)) == []
    probdl.infer(broken, np.array([0.5, -0.5]), method=method, seed=1)


def test_a_fit_without_findings_prints_one_line(capsys):
    x = RNG.normal(size=(40, 2))
    y = x @ [1.0, -1.0] + RNG.normal(size=40)
    fit = probdl.infer(linear_regression, x, y, seed=1, progress=True)
    assert fit.diagnose() == ()
    lines = [line for line in capsys.readouterr().err.splitlines() if "no findings" in line]
    assert len(lines) == 1
    assert (
        "Fit of 'linear_regression' by NUTS(): 4 chains of 1000 draws of 4 scalars in" in lines[0]
    )
    probdl.infer(linear_regression, x, y, method="map", seed=1)
    assert capsys.readouterr().err == ""  # not a terminal


@pytest.mark.parametrize("method", ["nuts", "importance"])
def test_a_posterior_without_a_mean_is_reported(method):
    def cauchy():
        pyro.sample("x", dist.Cauchy(0.0, 1.0))

    with pytest.warns(probdl.FindingWarning, match="heavy tail|so it has no mean"):
        fit = probdl.infer(cauchy, method=method, seed=1)
    assert "heavy_tail" in [f.check for f in fit.diagnose()]


@pytest.mark.parametrize("df", [3.0, 10.0])
def test_a_heavy_tail_with_a_variance_is_no_finding(df):
    rng = np.random.default_rng(int(df))
    draws = rng.standard_t(df, size=(4, 1000))
    assert "heavy_tail" not in [f.check for f in check_draws({"x": draws}, 4)]


def test_the_line_of_a_fit_counts_what_is_only_information(capsys):
    y = np.array([1.0, np.nan, 2.0])
    fit = probdl.infer(one_mean, y, method="laplace", missing="mask", seed=1, progress=True)
    assert [f.severity for f in fit.diagnose()] == ["info"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Fit of")]
    assert line.endswith("1 finding: 1 info")


def one_mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_the_test_of_two_samples_is_that_of_scipy():
    for shift in (0.0, 0.1, 0.3):
        a, b = RNG.normal(size=1000), RNG.normal(size=900) + shift
        b[:40] = a[:40]  # ties
        expected = stats.kstwobign.sf((900 * 1000 / 1900) ** 0.5 * stats.ks_2samp(a, b).statistic)
        assert priors._same_distribution_p(a, b) == pytest.approx(expected, rel=1e-9)
    assert np.isnan(priors._same_distribution_p(np.full(20, np.nan), np.full(20, np.nan)))
