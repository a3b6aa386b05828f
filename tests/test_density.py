"""The log density: values, gradients, transforms and starting points."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.distributions import biject_to

import probdl
from probdl import LogDensity, ModelError
from probdl.model import hessian
from probdl.model.bijections import bijection_to
from probdl.models import eight_schools, linear_regression

Y = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scale_model(y):
    mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
    sigma = pyro.sample("sigma", dist.Gamma(2.0, 3.0))
    pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def test_value_is_the_joint_density_with_the_jacobian():
    density = LogDensity.from_model(scale_model, (Y,))
    z = torch.tensor([0.4, -0.3], dtype=torch.float64)
    mu, sigma = z[0], z[1].exp()
    likelihood = dist.Normal(mu, sigma).log_prob(Y).sum()
    prior = dist.Normal(1.0, 2.0).log_prob(mu) + dist.Gamma(2.0, 3.0).log_prob(sigma)
    assert density(z).item() == pytest.approx((likelihood + prior + z[1]).item(), abs=1e-6)
    for options, expected in (
        ({"jacobian": False}, likelihood + prior),
        ({"prior": False, "jacobian": False}, likelihood),
    ):
        other = LogDensity.from_model(scale_model, (Y,), **options)
        assert other(z).item() == pytest.approx(expected.item(), abs=1e-6)


def test_gradient_and_hessian_agree_with_finite_differences(schools):
    density = LogDensity.from_model(eight_schools, schools)
    z = density.initial(generator())
    value, grad = density.value_and_grad(z)
    assert value.dtype == torch.float64
    step = 1e-5
    for i in range(density.dim):
        e = torch.zeros_like(z)
        e[i] = step
        assert grad[i].item() == pytest.approx(
            ((density(z + e) - density(z - e)) / (2 * step)).item(), rel=1e-6, abs=1e-6
        )
        column = (density.value_and_grad(z + e)[1] - density.value_and_grad(z - e)[1]) / (2 * step)
        torch.testing.assert_close(density.hessian(z)[i], column, rtol=1e-5, atol=1e-5)


class NoBatches(torch.autograd.Function):
    """A cube whose gradient reads a number, which torch does not do for many at once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        assert grad.abs().max().item() >= 0
        return grad * NoBatches.apply(x) * 3 / x


def steps_in_place(y):
    x = pyro.sample("x", dist.Normal(torch.zeros(12), 1.0).to_event(1))
    out = torch.zeros(12)
    out[0] = x[0]
    for t in range(1, 12):
        out[t] = torch.tanh(out[t - 1].clone() * x[t]) + x[t]
    pyro.factor("f", -out.pow(4).sum())


def process(y):
    x = pyro.sample("x", dist.LogNormal(torch.zeros(12), 0.3).to_event(1))
    points = torch.linspace(0, 1, 12)
    kernel = torch.exp(-((points[:, None] - points) ** 2) / x) + torch.eye(12)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(12), kernel @ kernel.T), obs=y)


def without_batches(y):
    x = pyro.sample("x", dist.Normal(torch.ones(12), 0.1).to_event(1))
    pyro.factor("f", NoBatches.apply(x).cumsum(0).sin().sum())


@pytest.mark.parametrize("model", [steps_in_place, process, without_batches])
def test_rows_of_a_hessian_at_once_are_those_one_by_one(model, monkeypatch):
    density = LogDensity.from_model(model, (torch.linspace(-1, 1, 12),))
    z = density.initial(generator())
    expected = density.hessian(z)
    monkeypatch.setattr(hessian, "SECONDS", -1.0)
    together, taken = hessian._rows_together, []
    monkeypatch.setattr(
        hessian, "_rows_together", lambda *args: taken.append(together(*args)) or taken[-1]
    )
    for size in (64, 4):
        monkeypatch.setattr(hessian, "ROWS", size)
        torch.testing.assert_close(density.hessian(z), expected, rtol=1e-10, atol=1e-10)
    assert [len(rows) for rows in taken] == [0 if model is without_batches else 9] * 2


def test_batch_equals_one_point_at_a_time(schools):
    density = LogDensity.from_model(eight_schools, schools)
    z = torch.randn(2, 5, density.dim, generator=generator(), dtype=torch.float64)
    one_by_one = torch.stack([density(point) for point in z.reshape(-1, density.dim)])
    torch.testing.assert_close(density.batch(z).reshape(-1), one_by_one)


def mixture(y):
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    with pyro.plate("component", 2):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("obs", len(y)):
        k = pyro.sample("k", dist.Bernoulli(weight))
        pyro.sample("y", dist.Normal(mu[k.long()], 1.0), obs=y)


def test_discrete_sites_are_summed_out():
    density = LogDensity.from_model(mixture, (Y,))
    z = density.initial(generator())
    values = density.constrain(z)
    weight, mu = values["weight"], values["mu"]
    likelihood = torch.logaddexp(
        torch.log(1 - weight) + dist.Normal(mu[0], 1.0).log_prob(Y),
        torch.log(weight) + dist.Normal(mu[1], 1.0).log_prob(Y),
    ).sum()
    prior = dist.Beta(2.0, 2.0).log_prob(weight) + dist.Normal(0.0, 3.0).log_prob(mu).sum()
    jacobian = torch.log(weight * (1 - weight))
    assert density(z).item() == pytest.approx((likelihood + prior + jacobian).item())
    torch.testing.assert_close(density.batch(torch.stack([z, z + 1]))[0], density(z))


def hidden_chain(y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    state = torch.tensor(0)
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{t}", dist.Categorical(p[state]))
        pyro.sample(f"y_{t}", dist.Normal(mu[state], 1.0), obs=y[t])


def test_hidden_markov_chain_equals_the_forward_algorithm():
    density = LogDensity.from_model(hidden_chain, (Y,), prior=False, jacobian=False)
    z = density.initial(generator(2))
    values = density.constrain(z)
    forward = torch.log(values["p"][0])
    for t, y in enumerate(Y):
        if t:
            forward = torch.logsumexp(forward[:, None] + torch.log(values["p"]), 0)
        forward = forward + dist.Normal(values["mu"], 1.0).log_prob(y)
    assert density(z).item() == pytest.approx(torch.logsumexp(forward, 0).item())


def many_supports():
    pyro.sample("real", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    pyro.sample("positive", dist.HalfCauchy(1.0))
    pyro.sample("interval", dist.Uniform(-1.0, 3.0))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(4)))
    pyro.sample("cholesky", dist.LKJCholesky(3, 2.0))
    pyro.sample("ordered", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    pyro.sample("b", dist.Uniform(0.0, 1.0 - a))
    pyro.deterministic("sum", a + 1)


def test_constrain_and_unconstrain_are_inverse_on_every_support():
    density = LogDensity.from_model(many_supports)
    z = torch.randn(3, 4, density.dim, generator=generator(), dtype=torch.float64)
    values = density.constrain(z, deterministic=True)
    assert values["real"].shape == (3, 4, 2, 3)
    assert values["cholesky"].shape == (3, 4, 3, 3)
    assert (values["b"] < 1 - values["a"]).all()
    torch.testing.assert_close(values["sum"], values["a"] + 1)
    torch.testing.assert_close(values["simplex"].sum(-1), torch.ones(3, 4).double())
    torch.testing.assert_close(density.unconstrain(values), z)


@pytest.mark.parametrize("size", [2, 5, 60])
def test_factors_of_correlations_are_accurate_at_any_size(size):
    # torch subtracts squares of a row from one, which leaves no digits in a row of 60.
    count = size * (size - 1) // 2
    x = torch.rand(count, dtype=torch.float64, generator=generator()) * 4 - 2
    transform = bijection_to(dist.LKJCholesky(size).support)
    y = transform(x)
    torch.testing.assert_close(transform.inv(y), x, rtol=1e-12, atol=1e-12)
    row, column = np.tril_indices(size, -1)
    expected = -((row - column + 1) * np.log(np.cosh(x.numpy()))).sum()
    assert transform.log_abs_det_jacobian(x, y).item() == pytest.approx(expected, rel=1e-13)
    if size <= 5:
        jacobian = torch.autograd.functional.jacobian(lambda u: transform(u)[row, column], x)
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "support",
    [
        constraints.simplex,
        constraints.corr_cholesky,
        dist.LKJ(3).support,
        constraints.independent(constraints.corr_cholesky, 1),
        constraints.stack([constraints.corr_cholesky] * 2),
    ],
    ids=lambda s: type(s).__name__,
)
def test_bijections_equal_those_of_torch(support):
    ours, theirs = bijection_to(support), biject_to(support)
    x = torch.randn(2, 3, dtype=torch.float64, generator=generator())
    y = ours(x)
    torch.testing.assert_close(y, theirs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.inv(y), x)
    torch.testing.assert_close(ours.log_abs_det_jacobian(x, y), theirs.log_abs_det_jacobian(x, y))


@pytest.mark.parametrize("far", [50.0, 300.0])
def test_bijections_reach_as_close_to_an_edge_as_numbers_near_zero(far):
    # torch's leave 2e-16 of a simplex, and 1e-8 of a diagonal.
    z = torch.tensor([far, -far], dtype=torch.float64)
    simplex = bijection_to(constraints.simplex)
    x = simplex(z)
    assert x[1].item() == pytest.approx(2 * math.exp(-far) * math.exp(-far), rel=1e-12)
    assert x[2].item() == pytest.approx(2 * math.exp(-far), rel=1e-12)
    torch.testing.assert_close(simplex.inv(x), z)
    factor = bijection_to(constraints.corr_cholesky)
    x = factor(z[:1])
    assert x[1].tolist() == pytest.approx([1.0, 2 * math.exp(-far)], rel=1e-12)
    torch.testing.assert_close(factor.inv(x), z[:1])


def test_jacobian_of_a_support_that_depends_on_a_site_is_that_of_its_interval():
    density = LogDensity.from_model(many_supports)
    z = density.initial(generator(1))
    a = density.constrain(z)["a"]
    block = density.blocks["b"]
    support = constraints.interval(0.0, 1 - a)
    transform = biject_to(support)
    u = block.of(z)
    without = LogDensity.from_model(many_supports, jacobian=False)
    expected = transform.log_abs_det_jacobian(u, transform(u))
    for name, fixed in density.blocks.items():
        if name != "b":
            x = fixed.site.transform(fixed.of(z))
            expected = expected + fixed.site.transform.log_abs_det_jacobian(fixed.of(z), x).sum()
    assert (density(z) - without(z)).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("model", [many_supports, scale_model])
def test_the_log_jacobian_of_many_points_is_what_the_density_adds(model):
    data = () if model is many_supports else (Y,)
    density = LogDensity.from_model(model, data)
    without = LogDensity.from_model(model, data, jacobian=False)
    z = torch.stack([density.initial(generator(i)) for i in range(6)]).reshape(2, 3, -1)
    found = density.log_jacobian(z)
    assert found.shape == (2, 3)
    for point, value in zip(z.reshape(6, -1), found.reshape(6), strict=True):
        expected = density(point) - without(point)
        assert value.item() == pytest.approx(expected.item(), abs=1e-9)


def test_flat_priors_contribute_zero():
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    density = LogDensity.from_model(model, (Y,), jacobian=False)
    z = torch.tensor([0.4, -0.3], dtype=torch.float64)
    expected = dist.Normal(0.4, math.exp(-0.3)).log_prob(Y).sum()
    assert density(z).item() == pytest.approx(expected.item())


def test_starts_are_uniform_within_two():
    density = LogDensity.from_model(linear_regression, (torch.zeros(3, 40), torch.zeros(3)))
    z = torch.stack([density.initial(generator(i)) for i in range(20)])
    assert z.abs().max() <= 2
    # 840 uniform(-2, 2) numbers: mean 0 ± 4 standard errors of 1.155 / sqrt(840)
    assert abs(z.mean().item()) < 4 * 2 / math.sqrt(3 * z.numel())
    assert z.std().item() == pytest.approx(2 / math.sqrt(3), rel=0.1)


def test_an_error_without_finite_start_names_the_sites_and_their_values():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Uniform(mu, mu + 1), obs=y)

    density = LogDensity.from_model(model, (torch.tensor([1e6]),))
    with pytest.raises(ModelError) as error:
        density.initial(generator())
    message = str(error.value)
    assert "100 random starts" in message
    assert "site 'y' ~ Uniform: log probability -inf" in message
    assert "value 1e+06" in message or "[1e+06]" in message
    assert "mu = " in message


def test_a_matrix_that_is_not_positive_definite_has_no_density():
    def model():
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
        cov = torch.stack([torch.stack([torch.ones(()), rho]), torch.stack([rho, torch.ones(())])])
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), cov), obs=torch.zeros(2))

    density = LogDensity.from_model(model)
    value, grad = density.value_and_grad(torch.tensor([3.0]))
    assert value == -math.inf
    assert torch.isfinite(density(torch.tensor([0.5]).double()))
    assert grad.shape == (1,)


def test_arguments_are_cast_without_changing_the_originals():
    x = torch.randn(5, 2, generator=generator())
    y = np.arange(5, dtype=np.float32)
    density = LogDensity.from_model(linear_regression, (x, y))
    assert density(torch.zeros(density.dim)).dtype == torch.float64
    assert x.dtype == torch.float32
    assert y.dtype == np.float32


def test_labels_name_every_coordinate():
    density = LogDensity.from_model(linear_regression, (torch.zeros(3, 2), torch.zeros(3)))
    assert density.labels == ["intercept", "beta[0]", "beta[1]", "sigma"]


@pytest.mark.parametrize("product", ["einsum", "bmm", "matmul"])
def test_float32_data_in_a_closure_are_promoted_to_float64(product):
    x = torch.linspace(0, 1, 12).reshape(6, 2)  # float32, and not an argument
    y = torch.arange(6.0)

    def model(y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        mean = {
            "einsum": lambda: torch.einsum("ij,j->i", x, beta),
            "bmm": lambda: torch.bmm(x[None], beta[None, :, None]).reshape(-1),
            "matmul": lambda: x @ beta,
        }[product]()
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = probdl.infer(model, y, method="laplace", seed=1)
    wide = x.double()
    exact = torch.linalg.solve(wide.T @ wide + torch.eye(2) / 100, wide.T @ y.double())
    np.testing.assert_allclose(fit.stats["mode"], exact, atol=1e-5)
