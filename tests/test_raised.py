"""Findings that a model with the problem raises, and the same model without it does not."""

import functools
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_median

import probdl
from probdl.methods.adversarial.checks import check_game
from probdl.methods.mcmc.chains import Starts
from probdl.methods.point import optimum
from probdl.models import linear_regression, normal_normal
from probdl.montecarlo import calibrate, expectation

pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 3))
Y = 5 + X @ [3.0, -2.0, 4.0] + RNG.normal(size=100)


def raised(findings):
    return {finding.check for finding in findings}


def fitted(model, *args, method):
    return raised(probdl.infer(model, *args, method=method, seed=1).diagnose())


def funnel(width):
    def model():
        scale = pyro.sample("scale", dist.Normal(0.0, width))
        pyro.sample("x", dist.Normal(torch.zeros(20), (scale / 2).exp()).to_event(1))

    return model


def test_a_funnel_has_energies_that_change_slowly():
    method = probdl.NUTS(draws=500, mass_matrix="diag")
    fit = probdl.infer(funnel(3.0), method=method, seed=1)
    assert "bfmi" in {finding.check for finding in fit.findings}
    # Beside divergences it is a part of what these are reported to lead to.
    (finding,) = [f for f in fit.diagnose() if "The energy changes slowly" in f.message]
    assert finding.check in ("bfmi", "divergences", "stuck_chain")
    assert "bfmi" not in fitted(funnel(0.1), method=method)


def test_an_optimiser_with_too_few_steps_has_not_converged():
    assert "not_converged" in fitted(linear_regression, X, Y, method=probdl.MAP(steps=2))
    assert "not_converged" not in fitted(linear_regression, X, Y, method=probdl.MAP())


def test_a_training_that_ends_early_has_not_converged():
    guide = functools.partial(AutoNormal, init_loc_fn=init_to_median)  # starts as Pyro's does
    slow = probdl.SVI(guide=guide, steps=1000, learning_rate=0.003, schedule="constant")
    assert "not_converged" in fitted(linear_regression, X, Y, method=slow)
    enough = probdl.SVI(steps=4000, learning_rate=0.05)
    assert "not_converged" not in fitted(linear_regression, X, Y, method=enough)


def adam(parameters, lr):
    return torch.optim.Adam(parameters, lr=lr)


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", adam])
@pytest.mark.parametrize("engine", ["native", "eager"])
def test_a_schedule_that_ends_at_zero_does_not_hide_too_few_steps(optimizer, engine):
    guide = functools.partial(AutoNormal, init_loc_fn=init_to_median)
    settings = {"guide": guide, "optimizer": optimizer, "engine": engine}
    slow = probdl.SVI(steps=200, learning_rate=0.01, **settings)
    assert "not_converged" in fitted(linear_regression, X, Y, method=slow)
    enough = probdl.SVI(steps=1500, learning_rate=0.05, **settings)
    assert "not_converged" not in fitted(linear_regression, X, Y, method=enough)


def test_a_trial_of_more_steps_does_not_change_the_fit(monkeypatch):
    guide = functools.partial(AutoNormal, init_loc_fn=init_to_median)
    method = probdl.SVI(guide=guide, steps=250, learning_rate=0.01)
    with pytest.warns(probdl.FindingWarning, match="a trial of 50 more steps"):
        tried = probdl.infer(linear_regression, X, Y, method=method, seed=1)
    stub = "probdl.methods.variational.training.check_convergence"
    monkeypatch.setattr(stub, lambda *_, **__: [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probdl.FindingWarning)
        plain = probdl.infer(linear_regression, X, Y, method=method, seed=1)
    for name, values in plain.draws.items():
        assert (tried.draws[name] == values).all()


@pytest.mark.parametrize(("start", "expected"), [(0.0, {"saddle"}), (0.1, set())])
def test_an_optimiser_that_starts_at_a_saddle_point_stays_there(start, expected):
    def model():
        a = pyro.param("a", torch.tensor(start))
        b = pyro.param("b", torch.tensor(start))
        pyro.factor("f", b**2 - a**2 - b**4)

    assert fitted(model, method=probdl.MLE(starts=1)) == expected


def test_a_maximum_at_the_edge_of_the_support():
    def model(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    assert "boundary" in fitted(model, np.ones(20), method="mle")
    assert "boundary" not in fitted(model, np.repeat([0.0, 1.0], 10), method="mle")


def test_a_model_too_large_for_an_information_matrix(monkeypatch):
    monkeypatch.setattr(optimum, "DENSE_MAX", 4)
    assert "no_information" in fitted(linear_regression, X, Y, method="map")
    assert "no_information" not in fitted(linear_regression, X[:, :2], Y, method="map")


def test_values_that_never_vary():
    def beyond(limit):
        normal = dist.Normal(0.0, 1.0)
        return raised(expectation(lambda x: (x > limit).double(), normal, seed=1).findings)

    assert "no_variation" in beyond(40.0)
    assert "no_variation" not in beyond(1.0)


def test_simulations_whose_fits_fail_are_counted():
    class Flaky(probdl.Laplace):
        def run(self, program, seed, progress):
            if seed % 4 == 0:
                raise probdl.ModelError("This fit failed.")
            return super().run(program, seed, progress)

    def found(method):
        sigma = np.ones(3)
        result = calibrate(normal_normal, method, (sigma, sigma), simulations=60, workers=1, seed=1)
        return raised(result.findings)

    assert "failed_fits" in found(Flaky(draws=100))
    assert "failed_fits" not in found(probdl.Laplace(draws=100))


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [(0.5, 0.5, set()), (0.8, 0.3, {"value_function"}), (0.99, 0.01, {"saturated"})],
)
def test_a_game_is_judged_by_its_last_tenth(real, fake, expected):
    def recorded(d_real, d_fake):
        """Nine tenths of the steps at equilibrium, and then one tenth at these outputs."""
        columns = {"d_real": d_real, "d_fake": d_fake}
        columns["value"] = np.log(d_real) + np.log(1 - d_fake)
        start = {"d_real": 0.5, "d_fake": 0.5, "value": -2 * np.log(2)}
        return {name: np.repeat([start[name], columns[name]], [90, 10]) for name in columns}

    assert raised(check_game("minimax", recorded(real, fake))) == expected


def test_chains_that_begin_where_another_does():
    def find(seed):
        if seed == 3:
            raise probdl.ModelError("There is no finite start.")
        return torch.full((2,), float(seed))

    starts = Starts(find, seed=1)
    assert [starts(seed)[0].item() for seed in (1, 2)] == [1.0, 2.0]
    assert raised(starts.findings()) == set()
    assert starts(3)[0].item() == 1.0
    assert raised(starts.findings()) == {"starts"}
