"""The messages for the mistakes in `docs/mistakes.md`, and that the page quotes them."""

import functools
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probdl

PAGE = Path(__file__).parents[1] / "docs" / "mistakes.md"
X = np.arange(6.0)
Y = np.array([0.1, 1.2, 1.9, 3.2, 4.1, 4.8])
MISTAKES = {}


def mistake(name, *parts):
    """Register a mistake by name, with parts of the error or findings that it must lead to."""

    def enter(code):
        assert name not in MISTAKES
        MISTAKES[name] = (code, parts)
        return code

    return enter


def infer(model, *args, method="map", **kwargs):
    return probdl.infer(model, *args, method=method, seed=0, progress=False, **kwargs)


def svi(**settings):
    return probdl.SVI(steps=20, **settings)


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    noise = pyro.sample("noise", dist.HalfNormal(5.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    sd = pyro.sample("sd", dist.HalfNormal(1.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


def with_mean(change):
    """Return a model whose likelihood uses a function of the mean."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(change(mu), 1.0), obs=y)

    return model


def of_data(prior, likelihood):
    """Return a model with one latent site `a` and data in a plate."""

    def model(y):
        a = pyro.sample("a", prior)
        with pyro.plate("obs", len(y)):
            pyro.sample("y", likelihood(a), obs=y)

    return model


# -- shapes and plates ----------------------------------------------------------------------


@mistake(
    "data of shape (n, 1) instead of (n,)",
    "data of shape (6, 1) do not match",
    "Common causes are a column of shape",
)
def _():
    infer(line, X, Y[:, None])


@mistake("a plate of the wrong length", "plate 'obs' of size 5")
def _():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", 5):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    infer(model, Y)


@mistake(
    "an observed vector without to_event", "Shape mismatch inside plate('obs')", ".to_event(1)"
)
def _():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    infer(model, Y.reshape(3, 2))


@mistake("a latent vector without to_event", "at site z", ".to_event(1)")
def _():
    def model(y):
        with pyro.plate("obs", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    infer(model, Y)


@mistake("a time index off by one", "batch shape (5,)", "data of shape (6,) do not match")
def _():
    def model(y):
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(rho * y[:-1], 1.0), obs=y)

    infer(model, Y)


@mistake(
    "a plate of fixed length, and predictions for other rows", "Shape mismatch inside plate('obs')"
)
def _():
    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", 6):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    infer(model, X, Y).predict(X[:3])


@mistake("a plate with the length of the observed data", "object of type 'NoneType' has no len()")
def _():
    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    infer(model, X, Y).predict(X)


# -- names and statements -------------------------------------------------------------------


@mistake("two sites with the same name", "Multiple sample sites named 'a'", "a unique name")
def _():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    infer(model, Y)


@mistake("the same name in a loop", "Multiple sample sites named 'y'", "f'y{i}' in a loop")
def _():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for value in y:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=value)

    infer(model, Y)


@mistake("a name that is not a string", "The name of a site is 3. It must be a string")
def _():
    infer(lambda y: pyro.sample(3, dist.Normal(0.0, 1.0)), Y)


@mistake("a torch distribution instead of a Pyro distribution", "pyro.distributions as dist")
def _():
    infer(of_data(dist.Normal(0.0, 1.0), lambda a: torch.distributions.Normal(a, 1.0)), Y)


@mistake("a site inside an `if` on a latent value", "Site 'b' exists in one run", "torch.where()")
def _():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        if a > 0:
            a = a + pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    infer(model, Y)


@mistake("`if` on a latent value", "runs on the eager engine", "Replace `if` on the value of")
def _():
    return infer(with_mean(lambda mu: mu if mu > 0 else 2 * mu), Y)


@mistake("torch.randn in the model", "is random", "Draw random numbers with pyro.sample only")
def _():
    infer(with_mean(lambda mu: mu + torch.randn(())), Y)


@mistake("dist.X(...).sample() instead of pyro.sample", "is random", "dist.Normal(...).sample()")
def _():
    infer(with_mean(lambda mu: mu + dist.Normal(0.0, 1.0).sample()), Y)


@mistake("torch.no_grad in the model", "is wrong for 'mu'", "do not apply torch.no_grad()")
def _():
    def change(mu):
        with torch.no_grad():
            return 2 * mu

    infer(with_mean(change), Y)


@mistake("a latent value converted to a number", "is wrong for 'mu'", ".item()")
def _():
    infer(with_mean(lambda mu: mu.item()), Y)


@mistake("torch.tensor() of latent values", "is wrong for 'mu'", "use torch.stack() to join them")
def _():
    infer(with_mean(lambda mu: torch.tensor([mu, mu])), Y[:2])


@mistake("a NumPy function of a latent value", "Can't call numpy()", "does not compute gradients")
def _():
    infer(with_mean(np.exp), Y)


# -- data -----------------------------------------------------------------------------------


@mistake("missing values", "Argument 'y': 1 of 6 values are NaN", "poutine.mask")
def _():
    infer(line, X, pd.Series([1, None, 2, 3, 4, 5]))


@mistake("a masked array", "is a masked array", "poutine.mask")
def _():
    infer(line, X, np.ma.masked_equal(Y, 1.2))


@mistake("an array of objects", "dtype object", ".astype(float)")
def _():
    infer(line, X, Y.astype(object))


@mistake("a data frame", "would be used 6 times", "df['x'] instead of df[['x']]")
def _():
    infer(line, pd.DataFrame({"x": X}), Y)


@mistake("arithmetic with numbers written as text", "dtype <U", ".astype(float)")
def _():
    infer(line, X.astype(str), Y)


@mistake("arithmetic with texts", "The texts in 'x' became codes", "may be used as numbers")
def _():
    return infer(line, np.array(list("abcabc")), Y)


@mistake("all data in one list", "x a list", "np.asarray()")
def _():
    infer(line, [X, Y])


@mistake("a generator as data", "is a generator, which is exhausted")
def _():
    infer(line, X, (value for value in Y))


@mistake("data without rows", "The data are empty")
def _():
    infer(line, X[:0], Y[:0])


@mistake("a sparse tensor", "is a sparse tensor", "Pass a dense tensor")
def _():
    infer(line, X, torch.as_tensor(Y).to_sparse())


@mistake("labels -1 and 1 for a Bernoulli", "outside the support of Bernoulli", "accepts 0 and 1")
def _():
    infer(of_data(dist.Beta(1.0, 1.0), dist.Bernoulli), np.array([-1, 1, 1]))


@mistake("labels from 1 for a Categorical", "outside the support of Categorical", "index 2 = 3")
def _():
    infer(of_data(dist.Dirichlet(torch.ones(3)), dist.Categorical), np.array([1, 2, 3]))


@mistake("negative counts", "outside the support of Poisson")
def _():
    infer(of_data(dist.Gamma(1.0, 1.0), dist.Poisson), np.array([1, -1]))


@mistake("counts that do not sum to total_count", "must sum to its total_count, 10", "6")
def _():
    prior = dist.Dirichlet(torch.ones(3))
    infer(of_data(prior, functools.partial(dist.Multinomial, 10)), np.array([[1, 2, 3]]))


# -- distributions --------------------------------------------------------------------------


@mistake("a probability outside [0, 1]", "has probs =", "logits= for probabilities")
def _():
    infer(of_data(dist.Normal(0.0, 1.0), lambda a: dist.Bernoulli(a + 3)), np.array([0, 1]))


@mistake("a Cholesky factor as a covariance", "has covariance_matrix =")
def _():
    def likelihood(a):
        return dist.MultivariateNormal(torch.zeros(2), covariance_matrix=a)

    infer(of_data(dist.LKJCholesky(2, 1.0), likelihood), Y.reshape(3, 2))


@mistake("a covariance that is not positive definite", "A matrix operation", "positive definite")
def _():
    def likelihood(a):
        matrix = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
        return dist.MultivariateNormal(a.expand(2), covariance_matrix=matrix)

    infer(of_data(dist.Normal(0.0, 1.0), likelihood), Y.reshape(3, 2))


@mistake("a Wishart prior", "no bijection from R^n to the support of Wishart", "from LKJCholesky")
def _():
    def likelihood(a):
        return dist.MultivariateNormal(torch.zeros(2), precision_matrix=a)

    infer(of_data(dist.Wishart(torch.tensor(3.0), torch.eye(2)), likelihood), Y.reshape(3, 2))


@mistake("a negative scale", "no finite log density", "found invalid values: -1.0")
def _():
    infer(of_data(dist.Normal(0.0, 1.0), lambda a: dist.Normal(a, -1.0)), Y)


@mistake(
    "a scale with a Normal prior",
    "(divergences)",
    "numerical integration of the trajectory failed there",
)
def _():
    likelihood = functools.partial(dist.Normal, 0.0)  # NaN where the scale is below zero
    method = probdl.NUTS(draws=100, warmup=100, chains=2)
    return infer(of_data(dist.Normal(0.0, 1.0), likelihood), Y[:1], method=method)


@mistake("pyro.param without a constraint", "found invalid values: -1.0")
def _():
    def model(y):
        sd = pyro.param("sd", torch.tensor(-1.0))
        pyro.sample("y", dist.Normal(0.0, sd), obs=y)

    infer(model, Y, method="mle")


@mistake("a discrete site with unbounded support", "Poisson is discrete without a finite support")
def _():
    infer(of_data(dist.Poisson(3.0), lambda a: dist.Normal(a, 1.0)), Y)


@mistake("interchangeable components of a mixture", "(multimodal)", "Impose an ordering")
def _():
    def likelihood(a):
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(a, 0.5))

    draws = np.random.default_rng(0).normal(0, 0.5, (2, 30)) + [[-3], [3]]
    prior = dist.Normal(0.0, 10.0).expand([2]).to_event(1)
    method = probdl.NUTS(draws=200, warmup=200, chains=4)
    return infer(of_data(prior, likelihood), draws.ravel(), method=method)


@mistake(
    "a flat prior and no data", "does not appear to depend on the sites", "a prior that is not flat"
)
def _():
    def model():
        pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))

    infer(model, method=probdl.NUTS(draws=20, warmup=20, chains=1))


@mistake("parameters that the data do not identify", "(flat)", "is not identified")
def _():
    def model(y):
        a, b = pyro.param("a", torch.tensor(0.0)), pyro.param("b", torch.tensor(0.0))
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    return infer(model, Y, method="mle")


# -- guides, parameters and networks --------------------------------------------------------


@mistake("a guide with other sites", "differ in their latent sites")
def _():
    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    infer(normal, Y, method=svi(guide=guide))


@mistake("a guide with another support", "outside the support of HalfNormal", "LogNormal or Gamma")
def _():
    def guide(y):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("mu", dist.Normal(loc, 1.0))
        pyro.sample("sd", dist.Normal(loc, 1.0))

    infer(normal, Y, method=svi(guide=guide))


@mistake("a guide with another shape", "Site 'mu' has the shape (2,) in the guide")
def _():
    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))
        pyro.sample("sd", dist.LogNormal(0.0, 1.0))

    infer(normal, Y, method=svi(guide=guide))


@mistake("obs= in the guide", "The guide 'guide' observes the site 'y'")
def _():
    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        pyro.sample("sd", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1), obs=y)

    infer(normal, Y, method=svi(guide=guide))


@mistake("a guide that takes other arguments", "guide(): too many positional arguments")
def _():
    def guide():
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    infer(normal, Y, method=svi(guide=guide))


@mistake("a guide without parameters", "has a parameter, so there is nothing to fit")
def _():
    def guide(y):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("sd", dist.LogNormal(0.0, 1.0))

    infer(normal, Y, method=svi(guide=guide))


@mistake("too high a learning rate", "(loss_not_finite)", "Lower learning_rate")
def _():
    return infer(normal, Y, method=probdl.SVI(steps=200, learning_rate=1e4))


@mistake("a minibatch in a plate of all rows", "all 60 rows of plate 'obs'", "a DataLoader")
def _():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", 60, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    infer(model, Y)


@mistake("parameters from an earlier run", "in Pyro's param store", "pyro.clear_param_store()")
def _():
    def model(y):
        mu = pyro.param("mu", torch.tensor(0.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pyro.get_param_store().scope():
        pyro.param("mu", torch.zeros(3))
        infer(model, Y, method="mle")


@mistake("pyro.param with a sampling method", "(params_held)", "Give them a prior")
def _():
    def model(y):
        sd = pyro.param("sd", torch.tensor(1.0), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(mu, sd), obs=y)

    return infer(model, Y, method="laplace")


class Network(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 1), nn.Dropout(dropout))

    def forward(self, x, y=None):
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(self.layers(x).squeeze(-1), 1.0), obs=y)


@mistake("a network with dropout in training mode", "is random", "call .eval()")
def _():
    infer(Network(dropout=0.5), X[:, None], Y, method="mle")


@mistake("a network whose weights have no prior", "has no site to infer")
def _():
    infer(Network(), X[:, None], Y, method="nuts")


@mistake("a network that is not declared in the model", "(undeclared)", "pyro.module('net', net)")
def _():
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(1.0)
    return infer(with_mean(lambda mu: mu + net(torch.ones(1)).squeeze(-1)), Y)


# -- the call -------------------------------------------------------------------------------


@mistake("the model called instead of passed", "The model is a NoneType, which cannot be called")
def _():
    infer(line(torch.as_tensor(X)), X, Y)


@mistake(
    "data under the wrong argument name", "unexpected keyword argument 'obs'", "line(x, y=None)"
)
def _():
    infer(line, X, obs=Y)


@mistake("too many arguments", "too many positional arguments", "3 positional")
def _():
    infer(line, X, Y, Y)


@mistake("data not passed", "(no_data)", "'y' of 'line' was not given")
def _():
    return infer(line, X)


@mistake("data not passed, with maximum likelihood", "'line' has no observed site")
def _():
    infer(line, X, method="mle")


@mistake(
    "an observed argument without the default None",
    "missing a required argument: 'y'",
    "default None",
)
def _():
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    infer(model, X, Y).predict(X)


@mistake("an argument name that infer() uses", "'seed', which is an argument of infer()")
def _():
    def model(seed):
        pyro.sample("mu", dist.Normal(seed, 1.0))

    infer(model)


@mistake("a misspelt method", "There is no method 'nutz'; did you mean 'nuts'?")
def _():
    infer(line, X, Y, method="nutz")


@mistake("Pyro's name of a setting", "NUTS has no setting 'num_samples'", "called draws")
def _():
    probdl.NUTS(num_samples=1000)


@mistake("a misspelt setting", "SVI has no setting 'learnin_rate'", "Did you mean learning_rate")
def _():
    probdl.SVI(learnin_rate=0.1)


@mistake(
    "a method's setting passed to infer()",
    "num_samples= is a setting of a method",
    "NUTS(draws=...)",
)
def _():
    infer(line, X, Y, method="nuts", num_samples=1000)


@mistake("one short chain", "effective sample size")
def _():
    return infer(normal, Y, method=probdl.NUTS(draws=50, warmup=50, chains=1))


def message_of(code):
    """Return the message of the error, or the findings of the fit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", probdl.FindingWarning)
            fit = code()
    except probdl.ProbdlError as error:
        return str(error)
    assert fit is not None, "neither an error nor a fit"
    return str(fit.diagnose())


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported(name):
    code, parts = MISTAKES[name]
    message = message_of(code)
    for part in parts:
        assert part in message


def test_the_page_lists_each_mistake_and_its_message():
    rows = {}
    for row in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in row.replace("\\|", "¦").strip("|").split(" | ")]
        if row.startswith("| ") and len(cells) == 4:
            rows[cells[0]] = cells[2]
    assert set(MISTAKES) == rows.keys() - {"mistake", "---"}
    for name, (_, parts) in MISTAKES.items():
        shown = re.sub(r"\s+", " ", rows[name])
        for part in parts:
            assert part in shown, name


@pytest.mark.parametrize(
    ("setting", "translated"),
    [
        ("warmup_steps", "warmup"),
        ("num_chains", "chains"),
        ("target_accept_prob", "target_accept"),
        ("max_tree_depth", "max_treedepth"),
    ],
)
def test_pyro_names_of_settings_are_translated(setting, translated):
    with pytest.raises(probdl.SettingError, match=f"Here it is called {translated}"):
        probdl.NUTS(**{setting: 1})
    for name, translated in {"lr": "learning_rate", "num_steps": "steps"}.items():
        with pytest.raises(probdl.SettingError, match=f"Here it is called {translated}"):
            probdl.SVI(**{name: 1})


def test_metropolis_needs_no_gradient():
    fit = infer(
        with_mean(lambda mu: mu.item()),
        Y,
        method=probdl.Metropolis(draws=300, warmup=300, chains=1, thin=2),
    )
    assert abs(fit.draws["mu"].mean() - Y.mean()) < 0.2  # sd 0.41, about 80 effective draws


def test_zero_density_at_all_draws_is_an_error():
    """If the density is zero at all prior draws, there is nothing to resample."""
    with pytest.raises(probdl.ModelError, match="None of 100 draws"):
        infer(normal, Y * 1e300, method=probdl.Importance(num_samples=100))
