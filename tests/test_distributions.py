"""Distributions that Pyro lacks: densities, draws, gradients, and as sites of a model."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.autograd import gradcheck
from torch.distributions import biject_to

import probdl
import probdl.distributions as pdist
from probdl.distributions.tails import log_cdf, log_ndtr, log_survival

F = torch.float64


def t(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=F)


SQUARE = torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]], dtype=F)

# By name: a function of the parameters, their values, and SciPy's distribution or None.
NUMBERS = {
    "truncated normal": (
        lambda m, s: pdist.Truncated(dist.Normal(m, s), -1.0, 2.0),
        (t(0.5), t(1.5)),
        stats.truncnorm(-1, 1, 0.5, 1.5),
    ),
    "truncated far out": (
        lambda m, s: pdist.Truncated(dist.Normal(m, s), low=9.0),
        (t(0.0), t(1.0)),
        stats.truncnorm(9, np.inf),
    ),
    "truncated below": (
        lambda m: pdist.Truncated(dist.HalfNormal(m), low=1.0, high=3.0),
        (t(2.0),),
        stats.truncnorm(0.5, 1.5, 0, 2.0),
    ),
    "truncated exponential": (
        lambda r: pdist.Truncated(dist.Exponential(r), high=2.0),
        (t(0.7),),
        stats.truncexpon(1.4, 0, 1 / 0.7),
    ),
    "truncated lognormal": (
        lambda m: pdist.Truncated(dist.LogNormal(m, 1.0), low=0.5, high=4.0),
        (t(0.3),),
        None,
    ),
    "truncated logistic": (
        lambda m: pdist.Truncated(dist.Logistic(m, t(1.0)), low=1.0),
        (t(0.0),),
        None,
    ),
    "truncated cauchy": (
        lambda m: pdist.Truncated(dist.Cauchy(m, t(2.0)), low=-1.0, high=5.0),
        (t(0.0),),
        None,
    ),
    "truncated laplace": (
        lambda m: pdist.Truncated(dist.Laplace(m, t(2.0)), low=1.0),
        (t(0.0),),
        stats.expon(1, 2),
    ),
    "truncated weibull": (
        lambda s: pdist.Truncated(dist.Weibull(s, t(1.5)), low=0.5),
        (t(2.0),),
        None,
    ),
    "truncated gumbel": (
        lambda m: pdist.Truncated(dist.Gumbel(m, t(1.0)), high=2.0),
        (t(0.5),),
        None,
    ),
    "truncated gamma": (lambda r: pdist.Truncated(dist.Gamma(t(2.0), r), low=1.0), (t(0.8),), None),
    "inverse gaussian": (
        pdist.InverseGaussian,
        (t(1.5), t(3.0)),
        stats.invgauss(0.5, scale=3.0),
    ),
    "skew normal": (pdist.SkewNormal, (t(0.5), t(2.0), t(-3.0)), stats.skewnorm(-3, 0.5, 2)),
    "generalised pareto": (
        pdist.GeneralizedPareto,
        (t(1.0), t(2.0), t(0.3)),
        stats.genpareto(0.3, 1, 2),
    ),
    "bounded pareto": (
        pdist.GeneralizedPareto,
        (t(1.0), t(2.0), t(-0.4)),
        stats.genpareto(-0.4, 1, 2),
    ),
    "exponential pareto": (
        pdist.GeneralizedPareto,
        (t(0.0), t(2.0), t(1e-9)),
        stats.expon(0, 2),
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    make, params, reference = NUMBERS[name]
    d = make(*params)
    torch.manual_seed(1)
    draws = d.sample([4000])
    assert draws.dtype == F
    assert d.support.check(draws).all()
    low, high = draws.min().item(), draws.max().item()
    x = torch.linspace(low, high, 7, dtype=F)
    if reference is not None:
        np.testing.assert_allclose(d.log_prob(x), reference.logpdf(x), rtol=1e-7, atol=1e-9)
        assert stats.kstest(draws.numpy(), reference.cdf).pvalue > 1e-3
    else:
        share = integrate.quad(lambda v: d.log_prob(t(v)).exp().item(), low, high, limit=200)[0]
        assert share == pytest.approx(1.0, abs=0.01)
        assert (
            stats.kstest(draws.numpy(), lambda v: d.cdf(torch.from_numpy(v)).numpy()).pvalue > 1e-3
        )
    leaves = [p.clone().requires_grad_() for p in params]
    inner = x[1:-1].clone().requires_grad_()
    assert gradcheck(lambda v, *p: make(*p).log_prob(v), (inner, *leaves))
    assert torch.isneginf(d.log_prob(t(-1e6))) or d.log_prob(t(-1e6)) < -50
    for moment, of in (("mean", draws.mean()), ("variance", draws.var())):
        try:
            exact = getattr(d, moment)
        except NotImplementedError:
            continue
        error = (
            draws.std() if moment == "mean" else (draws - draws.mean()).pow(2).std()
        ) / 4000**0.5
        assert abs(of - exact) < 4 * error
    wide = d.expand([3, 2])
    assert wide.sample([5]).shape == (5, 3, 2)
    torch.testing.assert_close(wide.log_prob(x[:2]), d.log_prob(x[:2]).expand(3, 2))


def test_log_ndtr_is_precise_in_both_tails():
    x = torch.cat([torch.linspace(-300, -5, 60), torch.linspace(-5, 37, 200)]).to(F)
    expected = torch.special.log_ndtr(x)
    torch.testing.assert_close(log_ndtr(x), expected, rtol=1e-12, atol=0)
    y = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(log_ndtr(y).sum(), y)
    torch.testing.assert_close(
        grad, torch.exp(-0.5 * x**2 - 0.5 * math.log(2 * math.pi) - expected)
    )


@pytest.mark.parametrize(
    ("base", "reference"),
    [
        (dist.Normal(t(1.0), t(2.0)), stats.norm(1, 2)),
        (dist.Logistic(t(1.0), t(2.0)), stats.logistic(1, 2)),
        (dist.Laplace(t(1.0), t(2.0)), stats.laplace(1, 2)),
        (dist.Cauchy(t(1.0), t(2.0)), stats.cauchy(1, 2)),
        (dist.Exponential(t(0.5)), stats.expon(0, 2)),
        (dist.HalfNormal(t(2.0)), stats.halfnorm(0, 2)),
        (dist.LogNormal(t(1.0), t(2.0)), stats.lognorm(2, scale=math.e)),
        (dist.Weibull(t(2.0), t(1.5)), stats.weibull_min(1.5, scale=2)),
    ],
)
def test_tails(base, reference):
    x = t([0.01, 0.5, 1.0, 3.0, 30.0])
    np.testing.assert_allclose(log_cdf(base, x), reference.logcdf(x), rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(log_survival(base, x), reference.logsf(x), rtol=1e-6, atol=1e-14)


# -- counts ---------------------------------------------------------------------------------------

COUNTS = {
    "poisson": (lambda r: dist.Poisson(r), (t(1.3),)),
    "rare poisson": (lambda r: dist.Poisson(r), (t(1e-3),)),
    "negative binomial": (lambda p: dist.NegativeBinomial(t(2.5), probs=p), (t(0.4),)),
    "gamma poisson": (lambda a: dist.GammaPoisson(a, t(0.8)), (t(1.5),)),
    "geometric": (lambda p: dist.Geometric(p), (t(0.4),)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_hurdles_of_counts(name):
    make, params = COUNTS[name]
    hurdle = lambda *p: pdist.Hurdle(make(*p[:-1]), p[-1])  # noqa: E731
    d, base = hurdle(*params, t(0.3)), make(*params)
    x = torch.arange(200, dtype=F)
    probs = d.log_prob(x).exp()
    assert probs.sum() == pytest.approx(1.0, abs=1e-6)
    assert probs[0] == pytest.approx(0.3)
    ratio = base.log_prob(x[1:6]).exp() / (1 - base.log_prob(t(0.0)).exp())
    torch.testing.assert_close(probs[1:6], 0.7 * ratio, rtol=1e-6, atol=0)
    torch.manual_seed(2)
    draws = d.sample([20_000])
    counts = np.bincount(draws.long().numpy(), minlength=200)
    kept = probs.numpy() * 20_000 > 5
    chi2 = ((counts - probs.numpy() * 20_000) ** 2 / (probs.numpy() * 20_000))[kept].sum()
    assert stats.chi2.sf(chi2, kept.sum()) > 1e-3
    leaves = [p.clone().requires_grad_() for p in (*params, t(0.3))]
    assert gradcheck(lambda *p: hurdle(*p).log_prob(x[:5]), leaves)


def test_hurdles_of_amounts():
    d = pdist.Hurdle(dist.Gamma(t(2.0), t(1.0)), t(0.25))
    assert d.log_prob(t(0.0)).exp() == pytest.approx(0.25)
    assert d.log_prob(t(1.0)) == pytest.approx(math.log(0.75) - 1)
    torch.manual_seed(0)
    draws = d.sample([8000])
    assert (draws == 0).double().mean() == pytest.approx(0.25, abs=0.02)
    assert draws[draws > 0].mean() == pytest.approx(2.0, abs=0.08)


def test_intervals():
    edges = t([-1.0, 0.0, 2.0])
    d = pdist.IntervalCensored(dist.Normal(t(0.5), t(1.0)), edges)
    expected = np.diff([0, *stats.norm(0.5, 1).cdf(edges), 1])
    np.testing.assert_allclose(d.log_prob(torch.arange(4.0)).exp(), expected, rtol=1e-7)
    torch.manual_seed(0)
    counts = np.bincount(d.sample([20_000]).long(), minlength=4)
    assert stats.chisquare(counts, 20_000 * expected).pvalue > 1e-3
    own = pdist.IntervalCensored(dist.Normal(t(0.0), t(1.0)), t([[0.0, 1.0], [30.0, 31.0]]))
    np.testing.assert_allclose(
        own.log_prob(torch.ones(2)), [math.log(0.3413447), stats.norm.logsf(30)], rtol=1e-6
    )


def test_censored_values():
    base = dist.Normal(t(0.0), t(1.0))
    d = pdist.Censored(base, low=-1.0, high=t([1.0, 2.0]))
    x = t([-1.0, 2.0])
    np.testing.assert_allclose(d.log_prob(x), [stats.norm.logcdf(-1), stats.norm.logsf(2)])
    torch.testing.assert_close(d.log_prob(t(0.3)), base.log_prob(t(0.3)).expand(2))
    torch.manual_seed(0)
    draws = d.sample([10_000])
    assert (draws[:, 0] == 1).double().mean() == pytest.approx(stats.norm.sf(1), abs=0.015)
    assert draws.min() == -1


# -- vectors and matrices -------------------------------------------------------------------------


def _is_normal(d, draws, covariance):
    """Check log densities, up to the sum of all, and draws, of a normal vector on a subspace."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-10 * values.max()
    z = (draws - d.mean if hasattr(d, "loc") else draws).numpy() @ vectors[:, kept]
    expected = stats.norm(0, values[kept] ** 0.5).logpdf(z).sum(-1)
    np.testing.assert_allclose(d.log_prob(draws), expected, rtol=1e-6, atol=1e-6)
    assert stats.kstest((z / values[kept] ** 0.5).reshape(-1), "norm").pvalue > 1e-3


def test_zero_sum_normal():
    d = pdist.ZeroSumNormal(t(1.5), 5)
    torch.manual_seed(0)
    draws = d.sample([2000])
    np.testing.assert_allclose(draws.sum(-1), 0, atol=1e-9)
    _is_normal(d, draws, 1.5**2 * (np.eye(5) - 1 / 5))
    transform = biject_to(d.support)
    z = torch.randn(3, 4, dtype=F)
    x = transform(z)
    torch.testing.assert_close(transform.inv(x), z)
    torch.testing.assert_close(x.norm(dim=-1), z.norm(dim=-1))  # an isometry


def test_icar():
    d = pdist.ICAR(SQUARE, t(0.7))
    torch.manual_seed(0)
    draws = d.sample([2000])
    laplacian = np.diag(SQUARE.sum(1)) - SQUARE.numpy()
    _is_normal(d, draws, 0.49 * np.linalg.pinv(laplacian))
    sparse = pdist.ICAR(SQUARE.to_sparse(), t(0.7))
    torch.testing.assert_close(sparse.log_prob(draws), d.log_prob(draws))


def test_car():
    d = pdist.CAR(t([1.0, 2, 3, 4]), pdist.Adjacency(SQUARE), t(2.0), t(0.9))
    torch.manual_seed(0)
    draws = d.sample([2000])
    precision = 2 * (np.diag(SQUARE.sum(1)) - 0.9 * SQUARE.numpy())
    _is_normal(d, draws, np.linalg.inv(precision))


def test_wishart():
    scale = t([[1.0, 0.0], [0.4, 1.2]])
    d = pdist.Wishart(t(5.0), scale)
    reference = stats.wishart(5, (scale @ scale.T).numpy())
    torch.manual_seed(0)
    draws = d.sample([3000])
    np.testing.assert_allclose(
        d.log_prob(draws[:5]), [reference.logpdf(x.numpy()) for x in draws[:5]], rtol=1e-8
    )
    error = draws.std(0) / 3000**0.5
    assert ((draws.mean(0) - d.mean).abs() < 4 * error).all()
    transform = biject_to(d.support)
    z = torch.randn(3, dtype=F)
    torch.testing.assert_close(transform.inv(transform(z)), z)
    rows, columns = torch.tril_indices(2, 2)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[rows, columns], z)
    torch.testing.assert_close(
        transform.log_abs_det_jacobian(z, transform(z)), jacobian.det().abs().log()
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda x, s: pdist.ZeroSumNormal(s, 4).log_prob(x - x.mean()),
        lambda x, s: pdist.ICAR(SQUARE, s).log_prob(x - x.mean()),
        lambda x, s: pdist.CAR(x, SQUARE, s, t(0.5)).log_prob(x * s),
        lambda x, s: pdist.Wishart(3 + s, torch.eye(2, dtype=F)).log_prob(
            torch.outer(x[:2], x[:2]) + torch.eye(2, dtype=F)
        ),
    ],
)
def test_gradients_of_vectors(make):
    x = t([0.3, -1.0, 0.5, 2.0]).requires_grad_()
    assert gradcheck(make, (x, t(0.8).requires_grad_()))


# -- as sites of a model --------------------------------------------------------------------------


def _data(y):
    return pyro.plate("n", len(y))


def truncated(y):
    mu = pyro.sample("mu", pdist.Truncated(dist.Normal(0.0, 5.0), low=-10.0))
    with _data(y):
        pyro.sample("y", pdist.Truncated(dist.Normal(mu, 1.0), low=0.0), obs=y)


def censored(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    with _data(y):
        pyro.sample("y", pdist.Censored(dist.Exponential(rate), high=2.0), obs=y)


def grouped(y):
    mu = pyro.sample("mu", pdist.SkewNormal(0.0, 2.0, 1.0))
    with _data(y):
        edges = torch.tensor([-1.0, 0.0, 1.0])
        pyro.sample("y", pdist.IntervalCensored(dist.Normal(mu, 1.0), edges), obs=y)


def passage(y):
    mu = pyro.sample("mu", pdist.InverseGaussian(2.0, 4.0))
    with _data(y):
        pyro.sample("y", pdist.InverseGaussian(mu, 3.0), obs=y)


def exceedances(y):
    k = pyro.sample("k", dist.Normal(0.0, 0.3))
    s = pyro.sample("s", pdist.GeneralizedPareto(0.0, 1.0, 0.2))
    with _data(y):
        pyro.sample("y", pdist.GeneralizedPareto(0.0, s, k), obs=y)


def hurdle(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
    with _data(y):
        pyro.sample("y", pdist.Hurdle(dist.Poisson(rate), gate), obs=y)


def effects(y):
    a = pyro.sample("a", pdist.ZeroSumNormal(torch.tensor(1.0), 4))
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with _data(y):
        pyro.sample("y", dist.Normal(mu + a[torch.arange(len(y)) % 4], 1.0), obs=y)


ADJACENCY = pdist.Adjacency(SQUARE)


def areas(y):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    a = pyro.sample("a", pdist.ICAR(ADJACENCY, sigma))
    b = pyro.sample("b", pdist.CAR(torch.zeros(4), ADJACENCY, torch.tensor(4.0), torch.tensor(0.5)))
    with _data(y):
        pyro.sample("y", dist.Normal((a + b)[torch.arange(len(y)) % 4], 1.0), obs=y)


def precision(y):
    matrix = pyro.sample("matrix", pdist.Wishart(torch.tensor(4.0), torch.eye(2)))
    with _data(y):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), precision_matrix=matrix), obs=y)


MODELS = {
    truncated: t([0.2, 0.5, 1.0, 1.4]),
    censored: t([0.3, 1.0, 2.0, 2.0]),
    grouped: t([0.0, 1.0, 2.0, 3.0, 3.0]),
    passage: t([0.5, 1.5, 2.0]),
    exceedances: t([0.3, 1.0, 2.5, 0.2]),
    hurdle: t([0.0, 0.0, 1.0, 4.0]),
    effects: t([1.0, 2.0, 3.0, 4.0, 1.5, 2.5, 2.0, 4.0]),
    areas: t([1.0, 0.5, -0.5, -1.0]),
    precision: t([[1.0, 0.5], [0.2, 0.1], [-1.0, -1.2]]),
}


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_sites_of_a_model(model):
    """NUTS runs native, and agrees with importance sampling from the prior."""
    y = MODELS[model]
    fit = probdl.infer(model, y, method=probdl.NUTS(draws=1500), seed=1)
    assert fit.stats["engine"] == "native"
    prior = probdl.infer(model, y, method=probdl.Importance(num_samples=40_000), seed=2)
    name = next(iter(fit.draws))
    a, b = fit.draws[name], prior.draws[name]
    sd, ess = b.std((0, 1)), min(prior.stats["ess"], 3000.0)
    assert np.all(np.abs(a.mean((0, 1)) - b.mean((0, 1))) < 4.5 * sd * (ess**-0.5 + 2000**-0.5))
    np.testing.assert_allclose(a.std((0, 1)), sd, rtol=0.25)
    assert fit.predict()["y"].shape[2:] == tuple(y.shape)
    assert np.isfinite(fit.log_likelihood()["y"]).all()
    assert np.isfinite(float(fit.loo().elpd if hasattr(fit.loo(), "elpd") else fit.loo().elpd_loo))
    assert fit.to_idata(prior=True)["prior_predictive"]["y"].shape[2:] == tuple(y.shape)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("model", [truncated, effects, areas, precision], ids=lambda m: m.__name__)
def test_sites_of_a_guide(model):
    y = MODELS[model]
    fit = probdl.infer(model, y, method=probdl.SVI(steps=3000), seed=1)
    assert fit.stats["engine"] == "native"
    nuts = probdl.infer(model, y, method=probdl.NUTS(draws=4000), seed=1)
    name = next(iter(fit.draws))
    sd = nuts.draws[name].std((0, 1))
    assert np.all(np.abs(fit.draws[name].mean((0, 1)) - nuts.draws[name].mean((0, 1))) < 0.5 * sd)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pdist.Truncated(dist.Normal(0.0, 1.0)), "needs a limit"),
        (lambda: pdist.Truncated(dist.Normal(0.0, 1.0), 2.0, 1.0), "low must be smaller"),
        (lambda: pdist.Truncated(dist.StudentT(3.0), 0.0), "cdf of StudentT"),
        (lambda: pdist.Truncated(dist.Poisson(3.0), 0.0), "Poisson is discrete"),
        (lambda: pdist.Censored(dist.Dirichlet(torch.ones(2)), 0.0), "single numbers"),
        (
            lambda: pdist.IntervalCensored(dist.Normal(0.0, 1.0), torch.tensor([1.0, 1.0])),
            "increase",
        ),
        (lambda: pdist.IntervalCensored(dist.Normal(0.0, 1.0), torch.tensor(1.0)), "a vector"),
        (lambda: pdist.Hurdle(dist.Normal(0.0, 1.0), 0.5), "counts or positive"),
        (lambda: pdist.ZeroSumNormal(1.0, 1), "at least 2"),
        (lambda: pdist.ICAR(torch.ones(2, 3)), "square"),
        (lambda: pdist.ICAR(torch.tensor([[0.0, 1.0], [0.0, 0.0]])), "symmetric"),
        (lambda: pdist.ICAR(torch.eye(2)), "diagonal"),
        (lambda: pdist.ICAR(torch.zeros(2, 2)), r"areas \[0, 1\] have no neighbours"),
        (
            lambda: pdist.ICAR(torch.block_diag(*[1 - torch.eye(2)] * 2)),
            "not all connected",
        ),
        (lambda: pdist.Wishart(0.5, torch.eye(2)), "df must be above 1"),
    ],
)
def test_mistakes_are_errors(make, message):
    with pytest.raises(probdl.ModelError, match=message):
        make()


def test_a_gamma_with_a_free_concentration_is_an_error():
    def model(y):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        with _data(y):
            pyro.sample("y", pdist.Truncated(dist.Gamma(a, 1.0), low=1.0), obs=y)

    with pytest.raises(probdl.ModelError, match="no gradient of the cdf of Gamma"):
        probdl.infer(model, t([2.0, 3.0]), seed=1)


INF, ONE = math.inf, t(1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda r: pdist.Censored(dist.Exponential(r), high=t([INF, 3.0])).log_prob(t([1.0, 3.0])),
        lambda r: pdist.Censored(dist.LogNormal(r, ONE), t([0.0, 0.5])).log_prob(t([1.0, 0.5])),
        lambda r: pdist.Truncated(dist.Weibull(r, t(1.5)), 0.0, 2.0).log_prob(t([0.5, 1.5])),
        lambda r: pdist.Truncated(dist.HalfNormal(r), 0.0, 2.0).log_prob(t([0.5, 1.5])),
        lambda r: pdist.Truncated(dist.Normal(r, ONE), t([-INF, 0.0]), t([2.0, INF])).log_prob(ONE),
        lambda r: pdist.IntervalCensored(dist.Exponential(r), t([0.0, 1.0])).log_prob(ONE),
        lambda r: pdist.IntervalCensored(dist.Normal(r, ONE), t([-INF, 1.0])).log_prob(ONE),
        lambda r: pdist.GeneralizedPareto(t(0.0), r, t(-0.5)).cdf(t([0.5, 9.0])),
    ],
)
def test_limits_at_the_end_of_the_support_have_gradients(make):
    assert gradcheck(make, (t(0.8).requires_grad_(),))


@pytest.mark.parametrize(
    ("base", "low", "mean"),
    [
        (dist.Exponential(t(1.0)), 40.0, 41.0),
        (dist.Logistic(t(0.0), t(1.0)), 40.0, 41.0),
        (dist.Laplace(t(0.0), t(1.0)), 40.0, 41.0),
        (dist.Gumbel(t(0.0), t(1.0)), 40.0, 41.0),
        (dist.Gamma(t(1.0), t(1.0)), 40.0, 41.0),
        (pdist.GeneralizedPareto(t(0.0), t(1.0), t(0.0)), 80.0, 81.0),
    ],
)
def test_draws_far_out(base, low, mean):
    """All of these have an exponential tail, so the excess over the limit has the mean 1."""
    torch.manual_seed(0)
    d = pdist.Truncated(base, low=low)
    draws = d.sample([2000])
    assert draws.mean() == pytest.approx(mean, abs=4 / 2000**0.5)
    assert d.cdf(t(low + math.log(2))) == pytest.approx(0.5, abs=1e-6)
    assert pdist.Censored(base, high=low + 1).log_prob(t(low + 1)) == pytest.approx(
        -low - 1, rel=0.02
    )
