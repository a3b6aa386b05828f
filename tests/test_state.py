"""Global state does not change, also after an exception."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Distribution

import probdl
from probdl.models import normal_normal

DATA = (np.ones(4), np.arange(4.0))


def snapshot():
    store = pyro.get_param_store()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [np.array(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
        "python": random.getstate(),
        "params": {name: (id(p), p.tolist()) for name, p in store._params.items()},
        "dtype": torch.get_default_dtype(),
        "validate": Distribution._validate_args,
        "validate_sample": Distribution._validate_sample,
        "poutine": pyro.settings.get("validate_poutine"),
        "infer": pyro.settings.get("validate_infer"),
        "local": pyro.settings.get("module_local_params"),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(params=[torch.float32, torch.float64])
def unusual_state(request):
    """Set global state to values that differ from all defaults."""
    before = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(request.param)
    torch.set_num_threads(2)
    pyro.get_param_store().clear()
    pyro.param("mine", torch.tensor(3.0))
    pyro.enable_validation(False)
    yield
    pyro.enable_validation(True)
    pyro.get_param_store().clear()
    torch.set_default_dtype(before[0])
    torch.set_num_threads(before[1])


METHODS = [
    "mle",
    "map",
    "laplace",
    probdl.NUTS(draws=5, warmup=5, chains=2),
    probdl.NUTS(draws=5, warmup=5, chains=2, engine="eager"),
    probdl.HMC(5, 5, 2),
    probdl.HMC(5, 5, 2, engine="eager"),
]


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_infer_restores_global_state(unusual_state, method):
    def model(sigma, y):
        pyro.param("shift", torch.tensor(0.5))
        pyro.set_rng_seed(7)  # a model that changes global state
        normal_normal(sigma, y)

    before = snapshot()
    fit = probdl.infer(model, *DATA, method=method, seed=1)
    fit.predict()
    assert fit.idata is not None
    assert snapshot() == before


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_infer_restores_global_state_after_an_exception(unusual_state, error):
    runs = 0

    def model(y):
        nonlocal runs
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        torch.set_num_threads(1)
        runs += 1
        if runs > 30:
            raise error
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    before = snapshot()
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else probdl.ModelError
    with pytest.raises(expected):
        probdl.infer(model, DATA[1], method=probdl.NUTS(engine="eager"), seed=1)
    assert snapshot() == before


def test_the_parameters_of_a_module_do_not_change():
    net = torch.nn.Linear(1, 1)
    weight = net.weight.detach().clone()

    class Regression(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, y=None):
            with pyro.plate("obs", len(x)):
                pyro.sample("y", dist.Normal(self.net(x).squeeze(-1), 1.0), obs=y)

    x = np.arange(5.0)[:, None]
    model = Regression()
    fit = probdl.infer(model, x, 2 * x[:, 0], method="mle", seed=1)
    assert fit.draws["net.weight"].item() == pytest.approx(2.0)
    torch.testing.assert_close(net.weight.detach(), weight)
    assert net.weight.dtype == torch.float32
    np.testing.assert_allclose(fit.predict(np.array([[10.0]]))["y"], 20.0, atol=5.0)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("method", METHODS[2:], ids=str)
def test_the_same_seed_gives_the_same_draws_and_chains_differ(method):
    fits = [probdl.infer(normal_normal, *DATA, method=method, seed=seed) for seed in (1, 1, 2)]
    draws = [fit.draws["mu"] for fit in fits]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.isin(draws[0], draws[2]).any()
    if len(draws[0]) > 1:
        assert not np.isin(draws[0][0], draws[0][1]).any()
    for read in (lambda fit: fit.predict()["y"], lambda fit: fit.log_likelihood()["y"]):
        np.testing.assert_array_equal(read(fits[0]), read(fits[1]))


def test_without_a_seed_fits_differ_and_are_reproducible():
    first, second = (probdl.infer(normal_normal, *DATA, method="laplace") for _ in range(2))
    assert first.seed != second.seed
    again = probdl.infer(normal_normal, *DATA, method="laplace", seed=first.seed)
    np.testing.assert_array_equal(first.draws["mu"], again.draws["mu"])
