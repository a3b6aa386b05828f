"""Malformed calls, generated from the public signatures: a result or a ProbdlError, and no hang."""

import inspect
import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import probdl
from probdl import montecarlo, nn, plots
from probdl.models import linear_regression, markov, normal_normal, vae
from tests.attack.hostile import FULL, attempt, count

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 2))
Y = X @ [1.0, 2.0] + RNG.normal(size=8)
POINTS = RNG.normal(size=(100, 1))
ONES, ZEROS = np.ones(4), np.zeros(4)
SHORT = probdl.Laplace(draws=50)


class Odd:
    """An object without any of the usual operations."""

    __slots__ = ()

    def __bool__(self):
        raise TypeError("no truth value")

    def __eq__(self, other):
        raise TypeError("no equality")

    __hash__ = None


def fails(*args, **kwargs):
    raise ZeroDivisionError("a function of the user")


BAD = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 10**9 + 1, 10**30, 2**63, -(10**30), 0.0, 0.5, -0.5),
    *(1.5, 1e300, 1e-320, math.nan, math.inf, -math.inf, 1j, Fraction(1, 2)),
    *(
        np.int64(3),
        np.float32(0.5),
        np.bool_(True),
        np.float64("nan"),
        np.array(3),
        np.array([1, 2]),
    ),
    *(np.array(["a"]), np.array([None]), np.zeros((0,)), np.zeros((2, 0, 3)), np.float16(1)),
    *(torch.tensor(2), torch.tensor([1.0, 2.0]), torch.zeros(0), torch.tensor(True)),
    *("", "x", "auto", "nuts", "Adam", "native", "\0", "a" * 1000, "../x", "é", b"bytes", b""),
    *([], [None], [1, 2], [[1], [1, 2]], (), (1,), {}, {"x": 1}, {1: 2}, {"beta": "x"}, set()),
    *(range(3), slice(3), ..., NotImplemented, object(), object, int, Odd(), Odd, fails),
    *(lambda: None, lambda *a, **k: None, lambda x: x, lambda n: (np.zeros(n),), np.mean, print),
    *(torch.nn.Linear(2, 1), torch.nn.Identity(), torch.optim.Adam, torch.optim.LBFGS),
    *(dist.Normal(0.0, 1.0), dist.Categorical(torch.ones(3)), dist.Normal, Path("x"), Path("/")),
    *(pd.DataFrame({"a": [1.0, 2.0]}), pd.Series([1, 2]), pd.Series(["a"]), xr.DataArray([1.0])),
    *(np.datetime64("2020-01-01"), pd.Timestamp("2020"), iter([1, 2]), Exception("x")),
    *(SHORT, probdl.Laplace, probdl.MLE(), normal_normal),
]


@pytest.fixture(scope="module")
def fits():
    def infer(method):
        return probdl.infer(linear_regression, X, Y, method=method, seed=1, progress=False)

    methods = [SHORT, probdl.SVI(steps=50, draws=50), probdl.MAP(starts=1)]
    return [infer(method) for method in methods]


def generator(x=None):
    pyro.module("net", net := torch.nn.Linear(1, 1))
    with pyro.plate("rows", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.deterministic("x", net(z), event_dim=1)


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory):
    """Run in a temporary folder, where settings such as checkpoint="x" write."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    yield
    os.chdir(before)


def square(x):
    return x**2


METHODS = [
    *(probdl.NUTS, probdl.HMC, probdl.Metropolis, probdl.MLE, probdl.MAP, probdl.Laplace),
    *(probdl.Pathfinder, probdl.Importance, probdl.SVI, probdl.GAN),
]
# Short runs, where the settings that are not replaced decide how long one takes.
SETTINGS = {
    "draws": 30,
    "warmup": 20,
    "chains": 1,
    "starts": 1,
    "steps": 30,
    "paths": 1,
    "num_samples": 50,
}


def functions(fits, tmp_path):
    """The public functions, each with a valid call."""
    laplace, svi, point = fits
    samples = np.random.default_rng(0).normal(size=(30, 1))
    normal = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    chain = np.array([[0.9, 0.1], [0.2, 0.8]])
    return [
        (probdl.infer, {"model": linear_regression, "x": X, "y": Y, "method": SHORT, "seed": 1}
            | {"coords": {}, "dims": {}, "progress": False, "time_limit": 60.0}),
        (probdl.load, {"folder": tmp_path / "fit", "model": linear_regression, "method": None}),
        (probdl.compare, {"fits": {"a": laplace, "b": laplace}, "refit": False, "workers": 1}
            | {"progress": False}),
        (montecarlo.expectation, {"fn": square, "source": dist.Normal(0.0, 1.0)}
            | {"num_samples": 200, "tol": None, "sampling": "random", "control": None}
            | {"proposal": None, "normalised": True, "seed": 1, "progress": False}),
        (montecarlo.study, {"model": normal_normal, "method": "mle", "truth": {"mu": 0.0}}
            | {"sizes": [3], "replicates": 2, "arguments": lambda n: (np.ones(n), np.ones(n))}
            | {"generator": None, "interval_prob": 0.9, "seed": 1, "workers": 1}
            | {"progress": False}),
        (montecarlo.calibrate, {"model": normal_normal, "method": probdl.Laplace(draws=25)}
            | {"arguments": (ONES, ZEROS), "simulations": 20, "num_draws": 9, "seed": 1}
            | {"workers": 1, "progress": False}),
        (probdl.classifier_test, {"x": samples, "y": samples, "classifier": None, "steps": 5}
            | {"seed": 1}),
        (probdl.mmd_test, {"x": samples, "y": samples, "bandwidth": None, "permutations": 20}
            | {"max_rows": 20, "seed": 1}),
        (probdl.jensen_shannon, {"p_data": normal, "p_model": normal, "num_samples": 200}
            | {"seed": 1}),
        (probdl.optimal_discriminator, {"p_data": normal, "p_model": normal}),
        (laplace.predict, {"x": X[:2], "num_samples": None, "out": None, "coords": None}),
        (svi.predict, {"x": X[:2], "out": None, "coords": None}),
        (point.predict, {"num_samples": 5, "out": None, "coords": None}),
        (laplace.log_predictive, {"x": X[:2], "y": Y[:2], "coords": None}),
        (laplace.cross_validate, {"k": 2, "workers": 1, "progress": False}),
        (laplace.to_idata, {"prior": 5, "predictive": True}),
        (laplace.loo, {"moment_match": False}),
        (laplace.save, {"folder": tmp_path / "saved"}),
        (laplace.summary, {"var_names": ["beta"], "hdi_prob": 0.9, "round_to": 2}),
        (laplace.discrete, {"num_samples": 3}),
        (nn.MLP, {"sizes": [2, 3, 1], "activation": torch.nn.Tanh}),
        (nn.bayesian, {"module": torch.nn.Linear(2, 1), "prior": 1.0}),
        (nn.lipschitz_bound, {"module": torch.nn.Linear(2, 1)}),
        (vae.VAE.mlp, {"shape": (3,), "latent_dim": 2, "hidden": [4]}),
        (markov.simulate_chain, {"transition": chain, "steps": 5, "num_chains": 2}),
        (markov.mixing_time, {"transition": chain, "distance": 0.1}),
        (markov.stationary, {"transition": chain}),
        (plots.plot_fit, {"fit": laplace, "kind": "trace", "sites": None}),
    ]  # fmt: skip


def call(function, valid, replaced, fits):
    """Call a function with some arguments replaced."""
    kwargs = valid | replaced
    parameters = inspect.signature(function).parameters
    positional = [n for n, p in parameters.items() if n in kwargs and p.kind is p.POSITIONAL_ONLY]
    args = [kwargs.pop(name) for name in positional]
    result = attempt(function, *args, **kwargs)
    count("call", result)


MANY = HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large
quick = settings(deadline=None, derandomize=True, database=None, suppress_health_check=MANY)
values = st.sampled_from(range(len(BAD))).map(BAD.__getitem__)


@settings(quick, max_examples=1200 if FULL else 150)
@given(st.sampled_from(METHODS), st.data())
def test_settings(fits, method, data):
    names = [p for p in inspect.signature(method.__init__).parameters if p != "self"]
    short = {k: v for k, v in SETTINGS.items() if k in names}
    if method is probdl.GAN:
        short = {"discriminator": torch.nn.Linear(1, 1), "steps": 30}
    wrong = data.draw(st.dictionaries(st.sampled_from(names), values, min_size=1, max_size=2))
    made = attempt(method, **(short | wrong))
    count("call", made)
    if isinstance(made, probdl.ProbdlError):
        return
    repr(made)
    if work(made) < 1e4:
        arguments = {"method": made, "seed": 1, "progress": False, "time_limit": 20}
        data = (generator, POINTS) if method is probdl.GAN else (linear_regression, X, Y)
        attempt(probdl.infer, *data, **arguments)


def work(method):
    """Return the largest of the settings that say how much is to be done."""
    names = (*SETTINGS, "epochs", "num_particles", "thin", "max_treedepth", "every")
    return max(float(getattr(method, name, 0) or 0) for name in names)


@settings(quick, max_examples=1300 if FULL else 150)
@given(st.integers(0, 27), st.data())
def test_functions(fits, tmp_path_factory, which, data):
    folder = tmp_path_factory.mktemp("calls")
    fits[0].save(folder / "fit")
    targets = functions(fits, folder)
    assert len(targets) == 28
    function, valid = targets[which]
    wrong = data.draw(
        st.dictionaries(st.sampled_from(sorted(valid)), values, min_size=1, max_size=2)
    )
    for name in ("out", "folder"):  # no test writes elsewhere
        if isinstance(wrong.get(name), (str, Path)) and "\0" not in str(wrong[name]):
            wrong[name] = folder / str(wrong[name]).replace("/", "_").replace("..", "_")[:50]
    call(function, valid, wrong, fits)
