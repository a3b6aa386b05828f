"""Row passes: value and gradient, which do not depend on the number of threads."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.compile import choose
from probdl.compile.codegen.emit import emit
from probdl.compile.tracing.trace import trace
from probdl.compile.verify import verify
from probdl.models import logistic_regression

RNG = np.random.default_rng(0)
N = 30_000
X = RNG.normal(size=(N, 7))
GROUP = RNG.integers(0, 9, N)
Y = X @ RNG.normal(size=7) + RNG.normal(size=N)


def normal(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def standardised(x, y):
    """A model that needs a total over all rows before the next pass."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    mean = x @ beta
    mean = (mean - mean.mean()) / mean.std()
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def network(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[-1], 3), 1.0).to_event(2))
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    v = pyro.sample("v", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w + b) @ v, 1.0), obs=y)


def softmax(x, k):
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[-1], 4), 1.0).to_event(2))
    with pyro.plate("obs", len(x)):
        pyro.sample("k", dist.Categorical(logits=x @ w), obs=k)


def grouped(x, group, y):
    with pyro.plate("group", 9):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(a[group] + x.sum(-1), sigma), obs=y)


def rows_in_columns(x, y):
    """A model of transposed data, whose rows are not the first dimension."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[0]), 1.0).to_event(1))
    mean = beta @ x + (x * beta[:, None]).square().sum(0)
    with pyro.plate("obs", x.shape[1]):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def mixture(x, y):
    """A model with results, besides totals, that statements outside the pass read."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    weight = pyro.sample("weight", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("obs", len(y)):
        k = pyro.sample("k", dist.Categorical(weight), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)


CASES = {
    "normal": (normal, (X, Y)),
    "logistic": (logistic_regression, (X, (Y > 0).astype(float))),
    "standardised": (standardised, (X, Y)),
    "network": (network, (X, Y)),
    "softmax": (softmax, (X, RNG.integers(0, 4, N))),
    "grouped": (grouped, (X, GROUP, Y)),
    "rows in columns": (rows_in_columns, (X.T.copy(), Y)),
    "columns in memory": (normal, (torch.tensor(X.T.copy()).T, torch.tensor(Y))),
    "mixture": (mixture, (X, Y)),
    "rows that no block divides": (normal, (X[:20_011], Y[:20_011])),
    "as many predictors as fill a block": (normal, (RNG.normal(size=(300, 900)), Y[:300])),
}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_agree_with_the_model(case, two_threads):
    model, args = CASES[case]
    density = probdl.LogDensity.from_model(model, args)
    generator = torch.Generator().manual_seed(1)
    points = torch.stack([density.initial(generator) for _ in range(3)])
    assert "over_rows((Rows)" in emit(trace(density, points[0]).density, density.dim).text
    shared, _ = choose(density, "native", 0)  # also verifies
    verify(shared, density, points)
    alone, _ = choose(density, "native", 0, threads=2)
    for z in points:
        for one, other in zip(shared.value_and_grad(z), alone.value_and_grad(z), strict=True):
            assert torch.equal(one, other)  # bitwise


def test_small_data_use_no_row_pass():
    density = probdl.LogDensity.from_model(normal, (X[:500], Y[:500]))
    z = density.initial(torch.Generator().manual_seed(1))
    assert "over_rows((Rows)" not in emit(trace(density, z).density, density.dim).text


def test_concurrent_chains(two_threads):
    fit = probdl.infer(normal, X, Y, method=probdl.NUTS(draws=200, warmup=200, chains=4), seed=1)
    exact = np.linalg.lstsq(X, Y, rcond=None)[0]
    assert np.abs(fit.draws["beta"].mean((0, 1)) - exact).max() < 5 / N**0.5
    assert fit.stats["engine"] == "native"
