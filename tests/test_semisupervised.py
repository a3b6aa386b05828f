"""Guides of labelled and unlabelled rows, and discrete sites with known answers."""

import itertools
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scipy import stats
from torch import nn

import probdl
from probdl.util.isolation import evaluation

NO_TRAINING = probdl.SVI(steps=10, learning_rate=1e-12)
PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
CENTRES = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
SLOPES = torch.tensor([1.0, 0.5, 0.8], dtype=torch.float64)
NOISE = 0.6


def label_logits(x):
    """Return inexact logits of q(y|x)."""
    return torch.stack([-0.5 * x, 0.3 * torch.ones_like(x), 0.4 * x], -1)


def shift():
    """Return the only parameter, which is not trained and 0."""
    return pyro.param("shift", torch.tensor(0.0))


def code_parameters(x, y):
    """Return the location of q(z|x, y) and its scale."""
    return 0.3 * x + 0.1 * y, 0.9 + 0.1 * y


class Mixture(nn.Module):
    """M2 of Kingma et al.: y ~ p, z ~ N(0, 1), x ~ N(c_y + s_y z, NOISE²), in one dimension."""

    def __init__(self, one_hot=False, marked=True):
        super().__init__()
        self.one_hot = one_hot
        self.label = dist.OneHotCategorical if one_hot else dist.Categorical
        if marked:
            self.guide = config_enumerate(self.guide)

    def index(self, y):
        return (y * torch.arange(3.0)).sum(-1).long() if self.one_hot else y

    def model(self, x=None, y=None):
        with pyro.plate("data", 4 if x is None else len(x)):
            y = self.index(pyro.sample("y", self.label(PRIOR), obs=y))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(CENTRES[y] + SLOPES[y] * z, NOISE), obs=x)

    def guide(self, x=None, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", self.label(logits=label_logits(x)))
            y = self.index(y).to(x.dtype)
            pyro.sample("z", dist.Normal(*code_parameters(x + shift(), y)))


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(3)
    y = rng.choice(3, 12, p=PRIOR.numpy())
    z = rng.normal(size=12)
    return torch.from_numpy(
        CENTRES.numpy()[y] + SLOPES.numpy()[y] * z + NOISE * rng.normal(size=12)
    )


def gaussian(x, y):
    """Return E_q(z|x,y)[log p(x|y,z)] and KL(q(z|x,y) || N(0, 1)), in closed form."""
    loc, scale = code_parameters(x, y)
    gap = (x - CENTRES[y] - SLOPES[y] * loc) ** 2 + (SLOPES[y] * scale) ** 2
    reconstruction = -0.5 * np.log(2 * np.pi * NOISE**2) - gap / (2 * NOISE**2)
    kl = 0.5 * (scale**2 + loc**2 - 1) - np.log(scale)
    return reconstruction, kl


def exact_terms(x):
    q = label_logits(x).softmax(-1)
    parts = [gaussian(x, y) for y in range(3)]
    reconstruction = sum(q[:, y] * parts[y][0] for y in range(3))
    kl = sum(q[:, y] * (parts[y][1] + (q[:, y] / PRIOR[y]).log()) for y in range(3))
    return q.numpy(), reconstruction.numpy(), kl.numpy()


def exact_evidence(x):
    scale = np.sqrt(SLOPES.numpy() ** 2 + NOISE**2)
    return np.log((PRIOR.numpy() * stats.norm.pdf(x.numpy()[:, None], CENTRES, scale)).sum(1))


@pytest.mark.parametrize(
    ("one_hot", "marked"), list(itertools.product([False, True], [False, True]))
)
def test_the_elbo_of_a_guide_with_labels(x, one_hot, marked):
    fit = probdl.infer(Mixture(one_hot, marked), x, method=NO_TRAINING, seed=1)
    q, reconstruction, kl = exact_terms(x)
    elbo = fit.elbo(num_samples=1000)
    assert abs(elbo.total - (reconstruction - kl).sum()) < 4 * elbo.standard_error
    if marked:  # without draws of labels, the KL terms have no error
        np.testing.assert_allclose(elbo.kl, kl, rtol=1e-6)
    np.testing.assert_allclose(elbo.reconstruction, reconstruction, atol=1.0)
    evidence = fit.log_evidence(num_samples=2000)
    gap = np.abs(evidence.pointwise - exact_evidence(x))
    np.testing.assert_array_less(gap, 4.5 * evidence.standard_error + 1e-9)
    codes = fit.encode()
    np.testing.assert_allclose(codes["y"], q, rtol=1e-6)
    means = sum(q[:, y] * code_parameters(x, y)[0].numpy() for y in range(3))
    np.testing.assert_allclose(codes["z"], means, atol=1e-6 if marked else 0.1)
    labels = fit.encode(num_samples=400)["y"]
    shares = labels.mean(0) if one_hot else (labels[..., None] == np.arange(3)).mean(0)
    np.testing.assert_allclose(shares, q, atol=0.12)


def test_decoding_with_and_without_labels(x):
    fit = probdl.infer(Mixture(), x, method=NO_TRAINING, seed=1)
    z, y = np.array([0.5, -1.0, 0.2]), np.array([0, 2, 1])
    means = CENTRES.numpy() + SLOPES.numpy() * z[:, None]
    np.testing.assert_allclose(fit.decode({"z": z, "y": y})["x"], means[range(3), y])
    np.testing.assert_allclose(fit.decode({"z": z})["x"], means @ PRIOR.numpy())
    q, *_ = exact_terms(x)
    codes = np.stack([code_parameters(x, k)[0].numpy() for k in range(3)], -1)
    expected = (q * (CENTRES.numpy() + SLOPES.numpy() * codes)).sum(-1)
    np.testing.assert_allclose(fit.reconstruct()["x"], expected, rtol=1e-6)
    with pytest.raises(probdl.SettingError, match="'y' have values outside the support"):
        fit.decode({"z": z, "y": np.array([0, 3, 1])})
    with pytest.raises(probdl.SettingError, match="needs codes of site 'z'"):
        fit.decode({"y": y})


def test_labelled_rows_are_scored_with_their_labels(x):
    fit = probdl.infer(Mixture(), x, method=NO_TRAINING, seed=1)
    y = torch.arange(12) % 3
    elbo = fit.elbo(x, y, num_samples=1000)
    parts = [gaussian(x, k) for k in range(3)]
    pick = lambda of: np.stack([part[of].numpy() for part in parts], -1)[range(12), y]  # noqa: E731
    np.testing.assert_allclose(elbo.kl, pick(1), rtol=1e-6)
    total = (pick(0) - pick(1)).sum() + np.log(PRIOR.numpy())[y].sum()
    assert abs(elbo.total - total) < 4 * elbo.standard_error
    assert set(fit.encode(x, y)) == {"z"}


def two_plates(x, y, u):
    """Score labelled rows x and unlabelled rows u."""
    with pyro.plate("labelled", len(x)):
        y = pyro.sample("y", dist.Categorical(PRIOR), obs=y)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(CENTRES[y] + SLOPES[y] * z, NOISE), obs=x)
    with pyro.plate("unlabelled", len(u)):
        y = pyro.sample("yu", dist.Categorical(PRIOR))
        z = pyro.sample("zu", dist.Normal(0.0, 1.0))
        pyro.sample("u", dist.Normal(CENTRES[y] + SLOPES[y] * z, NOISE), obs=u)


@config_enumerate
def two_plates_guide(x, y, u):
    with pyro.plate("labelled", len(x)):
        pyro.sample("z", dist.Normal(*code_parameters(x + shift(), y.to(x.dtype))))
    with pyro.plate("unlabelled", len(u)):
        y = pyro.sample("yu", dist.Categorical(logits=label_logits(u)))
        pyro.sample("zu", dist.Normal(*code_parameters(u, y.to(u.dtype))))


def test_labelled_and_unlabelled_rows_in_two_plates(x):
    labels = torch.tensor([0, 1, 2, 0, 1])
    method = probdl.SVI(guide=two_plates_guide, steps=10, learning_rate=1e-12)
    start = time.perf_counter()
    fit = probdl.infer(two_plates, x[:5], labels, x, method=method, seed=1)
    assert "pareto_k" not in fit.stats  # no weights of 17 local sites, taken for shared ones
    assert time.perf_counter() - start < 60
    elbo = fit.elbo(num_samples=1000)
    assert elbo.rows == {"labelled": 5, "unlabelled": 12}
    q, reconstruction, kl = exact_terms(x)
    np.testing.assert_allclose(elbo.kl[5:], kl, rtol=1e-6)
    parts = [gaussian(x[:5], k) for k in range(3)]
    pick = lambda of: np.stack([part[of].numpy() for part in parts], -1)[range(5), labels]  # noqa: E731
    np.testing.assert_allclose(elbo.kl[:5], pick(1), rtol=1e-6)
    total = (reconstruction - kl).sum() + (pick(0) - pick(1)).sum()
    total += np.log(PRIOR.numpy())[labels].sum()
    assert abs(elbo.total - total) < 4 * elbo.standard_error
    codes = fit.encode()
    np.testing.assert_allclose(codes["yu"], q, rtol=1e-6)
    assert codes["z"].shape == (5,)
    evidence = fit.log_evidence(num_samples=2000)
    gap = np.abs(evidence.pointwise[5:] - exact_evidence(x))
    np.testing.assert_array_less(gap, 4.5 * evidence.standard_error[5:] + 1e-9)
    score = fit.log_predictive(x[:5], labels, x)
    assert {name: len(rows) for name, rows in score.pointwise.items()} == elbo.rows
    assert fit.reconstruct()["u"].shape == (12,)
    assert fit.decode({"z": np.zeros(5), "zu": np.zeros(12)})["u"].shape == (12,)
    with pytest.raises(probdl.SettingError, match="as many rows"):
        fit.decode({"z": np.zeros(5), "zu": np.zeros(7)})


def test_a_component_that_only_the_model_has_is_summed_out(x):
    """z ~ mixture of two normals: the model sums over its component, and the guide has z only."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(4 * c - 2, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x + shift(), 0.6))

    method = probdl.SVI(guide=guide, steps=10, learning_rate=1e-12)
    fit = probdl.infer(model, x, method=method, seed=1)
    elbo, evidence = fit.elbo(num_samples=4000), fit.log_evidence(num_samples=4000)
    scale = np.sqrt(1 + NOISE**2)
    exact = np.log(0.7 * stats.norm.pdf(x, -2.0, scale) + 0.3 * stats.norm.pdf(x, 2.0, scale))
    gap = np.abs(evidence.pointwise - exact)
    np.testing.assert_array_less(gap, 4.5 * evidence.standard_error)
    # E_q[log p(x|z)] in closed form, and KL(q(z) || p(z)) by quadrature
    loc = 0.8 * x.numpy()
    grid = loc[:, None] + 0.6 * np.linspace(-8, 8, 2001)
    density = stats.norm.pdf(grid, loc[:, None], 0.6)
    prior = 0.7 * stats.norm.pdf(grid, -2.0) + 0.3 * stats.norm.pdf(grid, 2.0)
    kl = (density * (np.log(density) - np.log(prior))).sum(1) * 0.6 * 16 / 2000
    reconstruction = stats.norm.logpdf(x, loc, NOISE) - 0.5 * 0.36 / NOISE**2
    assert abs(elbo.total - (reconstruction - kl).sum()) < 4 * elbo.standard_error
    np.testing.assert_allclose(elbo.kl, kl, atol=0.15)
    assert set(fit.encode()) == {"z"}


def test_labels_alone_are_local_sites(x):
    """A mixture whose guide has labels and nothing else: all is exact."""

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(PRIOR))
            pyro.sample("x", dist.Normal(CENTRES[y], 1.0), obs=x)

    @config_enumerate
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=label_logits(x + shift())))

    method = probdl.SVI(guide=guide, steps=10, learning_rate=1e-12)
    fit = probdl.infer(model, x, method=method, seed=1)
    q = label_logits(x).softmax(-1).numpy()
    log_joint = stats.norm.logpdf(x.numpy()[:, None], CENTRES, 1.0) + np.log(PRIOR.numpy())
    np.testing.assert_allclose(fit.encode()["y"], q)
    np.testing.assert_allclose(fit.elbo().pointwise, (q * (log_joint - np.log(q))).sum(1))
    np.testing.assert_allclose(
        fit.log_evidence(num_samples=30).pointwise, np.logaddexp.reduce(log_joint, 1)
    )
    np.testing.assert_allclose(fit.reconstruct()["x"], q @ CENTRES.numpy())


def test_a_discrete_site_that_all_rows_share_is_not_split():
    def model(x):
        c = pyro.sample("c", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(4 * c - 2, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x + shift(), 0.6))

    x = torch.tensor([1.0, 2.0, 1.5])
    method = probdl.SVI(guide=guide, steps=10, learning_rate=1e-12)
    fit = probdl.infer(model, x, method=method, seed=1)
    with pytest.raises(probdl.ModelError, match=r"'c' .* shared by the rows"):
        fit.elbo()
    scale = np.eye(3) * (1 + NOISE**2)
    terms = [
        np.log(w) + stats.multivariate_normal([m] * 3, scale).logpdf(x)
        for w, m in ((0.7, -2.0), (0.3, 2.0))
    ]
    evidence = fit.log_evidence(num_samples=4000)
    assert abs(evidence.total - np.logaddexp(*terms)) < 4.5 * float(evidence.standard_error)


def nested(x):
    """Rows with repeated measurements, each with its own outlier flag; a shared label."""
    w = pyro.sample("w", dist.Categorical(PRIOR))
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x), dim=-2):
        y = pyro.sample("y", dist.Bernoulli(0.3))
        c = pyro.sample("c", dist.Bernoulli(0.4))  # only in the model
        z = pyro.sample("z", dist.Normal(mu + y + 0.5 * c, 1.0))
        with pyro.plate("repeats", x.shape[1], dim=-1):
            o = pyro.sample("o", dist.Bernoulli(0.1))  # only in the model
            pyro.sample("x", dist.Normal(z + 0.2 * w, 0.5 + 2.0 * o), obs=x)


@config_enumerate
def nested_guide(x):
    w = pyro.sample("w", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    pyro.sample("mu", dist.Normal(shift() + 0.1 * w, 0.5))
    with pyro.plate("rows", len(x), dim=-2):
        mean = x.mean(1, keepdim=True)
        y = pyro.sample("y", dist.Bernoulli(logits=mean - 0.2 * w))
        pyro.sample("z", dist.Normal(0.8 * mean + 0.1 * y, 0.4))


def chain(x):
    """Rows that are hidden Markov chains, with a code for each row."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        state = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(x.shape[1])):
            rate = torch.tensor([0.2, 0.7], dtype=x.dtype)[state]
            state = pyro.sample(f"s{t}", dist.Bernoulli(rate)).long()
            pyro.sample(f"x{t}", dist.Normal(z + 2.0 * state, 1.0), obs=x[:, t])


def chain_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x.mean(1) + shift(), 0.5))


@pytest.mark.parametrize(
    ("model", "guide", "depth"), [(nested, nested_guide, 2), (chain, chain_guide, 1)]
)
def test_the_elbo_agrees_with_the_estimator_of_pyro(model, guide, depth):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3)))
    method = probdl.SVI(guide=guide, steps=10, learning_rate=1e-12)
    fit = probdl.infer(model, x, method=method, seed=1)
    elbo = fit.elbo(num_samples=2000)
    assert elbo.pointwise.shape == (4,)
    pyro.clear_param_store()
    torch.manual_seed(0)
    estimator = TraceEnum_ELBO(max_plate_nesting=depth)
    with evaluation(dtype=torch.float64):
        estimates = [-estimator.loss(config_enumerate(model), guide, x) for _ in range(300)]
    error = np.hypot(np.std(estimates) / 300**0.5, elbo.standard_error)
    assert abs(elbo.total - np.mean(estimates)) < 4 * error
    pyro.clear_param_store()
    codes = fit.encode()
    assert all(np.isfinite(code).all() for code in codes.values())
