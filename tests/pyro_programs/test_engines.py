"""Programs that Pyro's examples contain, and the engine that their steps run on."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoDelta
from torch import nn
from torch.distributions import constraints
from torch.nn.utils.rnn import pack_padded_sequence

import probdl


def chain(y, lengths):
    """A hidden Markov chain over ragged sequences: a loop over the longest of them."""
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    with pyro.plate("sequences", len(y), dim=-1):
        x = 0
        for t in pyro.markov(range(lengths.max())):
            with poutine.mask(mask=t < lengths):
                x = pyro.sample(f"x{t}", dist.Categorical(transition[x]))
                pyro.sample(f"y{t}", dist.Normal(4.0 * x, 1.0), obs=y[:, t])


SERIES = torch.tensor([[0.0, 4, 4, 0], [4, 4, 4, 4], [0, 0, 4, 9]])
LENGTHS = torch.tensor([4, 4, 3])


def test_a_loop_over_lengths_is_compiled():
    method = probdl.SVI(guide="delta", steps=1000)
    fit = probdl.infer(chain, SERIES, LENGTHS, method=method, seed=1)
    assert fit.stats["engine"] == "native"
    estimate = probdl.infer(chain, SERIES, LENGTHS, method="map", seed=1)
    np.testing.assert_allclose(fit.draws["transition"], estimate.draws["transition"], atol=0.02)


class Emission(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def model(self, y, lengths):
        pyro.module("emission", self)
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        with pyro.plate("sequences", len(y), dim=-1):
            x = torch.tensor(0)
            for t in pyro.markov(range(lengths.max())):
                with poutine.mask(mask=t < lengths):
                    x = pyro.sample(f"x{t}", dist.Categorical(transition[x]))
                    mean = self.net(x[..., None].float())[..., 0]
                    pyro.sample(f"y{t}", dist.Normal(mean, 1.0), obs=y[:, t])


def test_a_loop_over_lengths_with_a_network_is_a_graph():
    torch.manual_seed(0)
    method = probdl.SVI(
        guide=AutoDelta(poutine.block(Emission().model, expose=["transition"])),
        steps=600,
        learning_rate=0.05,
    )
    fit = probdl.infer(Emission().model, SERIES, LENGTHS, method=method, seed=1)
    assert fit.stats["engine"] == "graph"
    assert fit.stats["elbo"][-100:].mean() > fit.stats["elbo"][0] + 10


class Annealed(nn.Module):
    """Ragged sequences whose mean is a network's output; one latent site is not used."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, y, lengths):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        return self.likelihood(y, lengths, self.net(torch.ones(1, dtype=y.dtype)))

    @staticmethod
    def likelihood(y, lengths, loc):
        with pyro.plate("sequences", len(y), dim=-1):
            for t in range(lengths.max()):
                with poutine.mask(mask=t < lengths):
                    pyro.sample(f"y{t}", dist.Normal(loc, 1.0), obs=y[:, t])


def annealed(y, lengths):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    Annealed.likelihood(y, lengths, pyro.param("net", torch.zeros(1)))


@pytest.mark.parametrize(("model", "engine"), [(annealed, "native"), (Annealed(), "graph")])
def test_a_loop_over_lengths_with_annealing(model, engine):
    method = probdl.SVI(steps=1500, learning_rate=0.05, kl_annealing=100, guide="normal")
    fit = probdl.infer(model, SERIES, LENGTHS, method=method, seed=1)
    assert fit.stats["engine"] == engine
    mean = sum(float(v.sum()) for name, v in fit.stats["params"].items() if "net" in name)
    assert mean == pytest.approx(28 / 11, abs=0.05)


def test_a_loop_over_the_values_of_a_minibatch_is_eager_and_names_the_line():
    def model(y, counts):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(y)):
            for t in range(counts.max()):
                with poutine.mask(mask=t < counts):
                    pyro.sample(f"y{t}", dist.Normal(mu, 1.0), obs=y[:, t])

    y, counts = torch.ones(6, 2), torch.tensor([2, 2, 1, 1, 1, 1])
    method = probdl.SVI(steps=20, batch_size=2)
    with pytest.warns(probdl.FindingWarning, match=r"test_engines\.py:\d+, `for t in range"):
        probdl.infer(model, y, counts, method=method, seed=1)


def mixture(y):
    with pyro.plate("components", 2):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("n", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def responsibilities(y):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    probs = pyro.param("probs", torch.ones(len(y), 2) / 2, constraint=constraints.simplex)
    with pyro.plate("components", 2):
        pyro.sample("mu", dist.Normal(loc, scale))
    with pyro.plate("n", len(y)):
        pyro.sample("z", dist.Categorical(probs))


def test_a_guide_of_categories_is_compiled():
    """Expectations over the values of a guide's discrete sites have no control flow."""
    torch.manual_seed(0)
    y = torch.cat([torch.randn(20) - 4, torch.randn(20) + 4])
    method = probdl.SVI(guide=responsibilities, steps=1500, learning_rate=0.03)
    fit = probdl.infer(mixture, y, method=method, seed=1)
    assert fit.stats["engine"] == "graph"
    means = [y[:20].mean() * 20 / (20 + 0.04), y[20:].mean() * 20 / (20 + 0.04)]
    np.testing.assert_allclose(fit.stats["params"]["loc"], means, atol=0.1)
    np.testing.assert_allclose(fit.stats["params"]["scale"], 20.04**-0.5, rtol=0.25)
    np.testing.assert_allclose(fit.stats["params"]["probs"][:20, 0], 1.0, atol=0.05)


def test_an_index_that_is_a_sampled_number_is_compiled():
    def model(y):
        mu = pyro.param("mu", torch.tensor([-1.0, 1.0]))
        for i, each in enumerate(y):
            z = pyro.sample(f"z{i}", dist.Categorical(torch.ones(2) / 2))
            pyro.sample(f"y{i}", dist.Normal(mu[z], 1.0), obs=each)

    def guide(y):
        for i in range(len(y)):
            probs = pyro.param(f"p{i}", torch.ones(2) / 2, constraint=constraints.simplex)
            pyro.sample(f"z{i}", dist.Categorical(probs))

    y = torch.tensor([-3.0, -3.2, 3.0, 3.2])
    method = probdl.SVI(guide=guide, steps=2000, learning_rate=0.05)
    fit = probdl.infer(model, y, method=method, seed=1)
    assert fit.stats["engine"] == "graph"
    np.testing.assert_allclose(np.sort(fit.stats["params"]["mu"]), [-3.1, 3.1], atol=0.1)


@pytest.mark.parametrize("index", ["x[z]", "x[1, z]", "x[..., z]", "x[1:, z, 0]", "x[z, z]"])
def test_an_index_with_a_number_is_recorded(index):
    from probdl.model.recorder import record

    x = torch.arange(24.0).reshape(3, 4, 2)
    fn = eval(f"lambda x, z: {index}")
    graph = record(fn, [x, torch.tensor(0)]).function()
    for z in (0, 1, -1):
        torch.testing.assert_close(graph(x, torch.tensor(z)), fn(x, torch.tensor(z)))


def test_random_starts_of_parameters_keep_the_native_engine():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        loc = pyro.param("loc", torch.randn(()))
        scale = pyro.param("scale", torch.rand(()) * 0.1, constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    method = probdl.SVI(guide=guide, steps=3000)
    fit = probdl.infer(model, torch.ones(3), method=method, seed=1)
    assert fit.stats["engine"] == "native"
    assert fit.draws["mu"].mean() == pytest.approx(0.75, abs=0.06)
    assert fit.draws["mu"].std() == pytest.approx(0.5, rel=0.1)


def test_buffers_that_stay_the_same_keep_the_native_engine():
    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.register_buffer("zero", torch.tensor(0.0))

        def forward(self, x, y=None):
            slope = pyro.sample("slope", dist.Normal(self.zero, 1))
            with pyro.plate("data", len(x), len(x)):
                return pyro.sample("obs", dist.Normal(slope * x, 1.0), obs=y)

    x = torch.tensor([1.0, 2.0])
    method = probdl.SVI(guide="normal", steps=2000)
    fit = probdl.infer(Model(), x, 2 * x, method=method, seed=1)
    assert fit.stats["engine"] == "native"
    assert fit.draws["slope"].mean() == pytest.approx(10 / 6, abs=0.06)


def test_a_check_for_nan_is_no_control_flow():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(False))
        logp = -0.5 * (z - 2.0) ** 2
        pyro.util.warn_if_nan(logp)
        pyro.factor("logp", logp)

    fit = probdl.infer(model, method="laplace", seed=1)
    assert fit.stats["engine"] == "native"
    assert fit.draws["z"].mean() == pytest.approx(2.0, abs=0.15)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(2, 3, batch_first=True)
        self.out = nn.Linear(3, 2)

    def model(self, x, packed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).expand([len(x), 4]).to_event(1), obs=x[:, :, 0])

    def guide(self, x, packed):
        pyro.module("guide", self)
        _, hidden = self.rnn(packed)
        loc, scale = self.out(hidden[0]).split(1, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def test_packed_sequences_are_data():
    torch.manual_seed(0)
    x = torch.randn(5, 4, 2)
    packed = pack_padded_sequence(x, torch.tensor([4, 4, 3, 3, 2]), batch_first=True)
    net = Recurrent()
    method = probdl.SVI(guide=net.guide, steps=200)
    fit = probdl.infer(net.model, x, packed, method=method, seed=1)
    assert np.isfinite(fit.stats["elbo"]).all()


def test_an_easy_guide_has_plates_of_the_present_data():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    class Guide(EasyGuide):
        def guide(self, y):
            self.map_estimate("mu")
            group = self.group(match="z")
            with self.plate("data", len(y)):
                loc = pyro.param("loc", torch.zeros(6, 1))
                scale = pyro.param("scale", torch.ones(6, 1), constraint=constraints.positive)
                group.sample("zs", dist.Normal(loc, scale).to_event(1))

    y = torch.tensor([1.0, 2, 3, 2, 1, 3])
    method = probdl.SVI(guide=Guide(model), steps=2000, learning_rate=0.02)
    fit = probdl.infer(model, y, method=method, seed=1)
    assert fit.stats["params"]["scale"] == pytest.approx(0.5**0.5, rel=0.15)


def test_a_simplex_of_one_category():
    def model(y):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(1)))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu * p.sum(), 1.0), obs=y)

    fit = probdl.infer(model, torch.ones(4), method=probdl.SVI(guide="delta", steps=500), seed=1)
    assert fit.draws["mu"].item() == pytest.approx(0.8, abs=1e-3)


def test_an_error_in_a_step_names_the_line_of_the_guide():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(mu + z, 1.0), obs=y)

    def guide(y):
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        loc = torch.dot(z, torch.ones(3).to(z)) + pyro.param("loc", torch.tensor(0.0))
        pyro.sample("mu", dist.Normal(loc, 1.0))

    with pytest.raises(probdl.ModelError, match=r"test_engines\.py:\d+, `loc = torch\.dot"):
        probdl.infer(model, torch.ones(3), method=probdl.SVI(guide=guide, steps=10), seed=1)


def test_a_comparison_of_the_same_computation_is_no_control_flow():
    """GPyTorch asks whether two inputs of a kernel are equal, after scaling both."""

    def model(x, y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        a, b = x / scale, x / scale
        gap = (a[:, None] - b) ** 2
        if torch.equal(a, b):
            gap = gap + 0.1 * torch.eye(len(x))
        root = torch.linalg.cholesky(torch.exp(-gap) + torch.eye(len(x)))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale_tril=root), obs=y)

    x = torch.linspace(0.0, 3.0, 8)
    fit = probdl.infer(model, x, torch.sin(2 * x), method="map", seed=1)
    assert fit.stats["engine"] == "native"
    eager = probdl.infer(model, x, torch.sin(2 * x), method=probdl.MAP(engine="eager"), seed=1)
    assert fit.draws["scale"].item() == pytest.approx(eager.draws["scale"].item(), rel=1e-4)


def test_a_comparison_of_values_that_differ_is_control_flow():
    from probdl.model.recorder import ControlFlowError, record

    x = torch.ones(2)
    with pytest.raises(ControlFlowError):
        record(lambda x: x if torch.equal(x * 1.0, x + 0.0) else -x, [x])
    with pytest.raises(ControlFlowError):
        record(lambda x: x if torch.equal(torch.rand(2) * x, torch.rand(2) * x) else -x, [x])


def test_a_copy_of_constants_is_recorded():
    from probdl.model.recorder import record

    held = torch.arange(3.0)

    def fn(x):
        other = copy.deepcopy(held)
        other += 1
        return x * other

    graph = record(fn, [torch.ones(3)]).function()
    torch.testing.assert_close(graph(torch.full((3,), 2.0)), torch.tensor([2.0, 4.0, 6.0]))


def test_what_a_program_does_if_a_factorisation_fails_is_control_flow():
    """If the compiled density left the branch out, s would be positive in silence."""

    def model(y):
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        root, info = torch.linalg.cholesky_ex(torch.eye(2) * (torch.tanh(s) + 0.5))
        if torch.any(info):
            root = torch.eye(2)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=root), obs=y)

    method = probdl.Metropolis(init={"s": 1.0}, draws=300, warmup=100, chains=1)
    with pytest.warns(probdl.FindingWarning, match="eager engine"):
        fit = probdl.infer(model, torch.tensor([1.0, 0.5]), method=method, seed=1)
    assert fit.draws["s"].min() < -0.6


def test_values_are_written_into_tensors_that_the_model_makes():
    held = torch.tensor([0.0, 0.0])

    def model(y):
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        made, copied = torch.tensor([0.0, 0.0]), copy.deepcopy(held)
        made[1], copied[0] = s, s
        made += 0.5 * s - 0.5 * s
        pyro.sample("y", dist.Normal((made + copied).sum(), 1.0), obs=y)

    fit = probdl.infer(model, torch.tensor(3.0), method="map", seed=1)
    assert fit.draws["s"].item() == pytest.approx(6 / 5)  # y ~ N(2 s, 1)
    assert fit.stats["engine"] == "native"
    assert not held.any()


def test_gpytorch_may_ask_whether_a_factorisation_failed():
    """Its function, which adds jitter then, is known by the name of its module."""
    library = {"__name__": "linear_operator.utils.cholesky", "torch": torch}
    exec(
        "def safe_cholesky(matrix):\n"
        "    root, info = torch.linalg.cholesky_ex(matrix)\n"
        "    if torch.any(info):\n"
        "        raise ValueError('jitter')\n"
        "    return root\n",
        library,
    )

    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(1, 1)  # parameters are replaced by a further mode of torch

        def forward(self, y):
            s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
            root = library["safe_cholesky"](s * torch.eye(2) + 1.0)
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=root), obs=y)

    fit = probdl.infer(Model(), torch.tensor([1.0, 0.5]), method="laplace", seed=1)
    assert fit.stats["engine"] == "native"
