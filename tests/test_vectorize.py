"""Mapping over draws gives the same results as a loop."""

import importlib
import random
import resource
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import dirichlet

import probdl
from probdl.model import predictive
from probdl.model.program import Program
from probdl.model.sites import discover
from probdl.model.vectorize import _Dirichlet, chunks, vectorize
from probdl.util import isolation
from probdl.util.isolation import evaluation

DRAWS = torch.linspace(0.5, 2.0, 50, dtype=torch.float64)

LOG_PROBS = {
    "normal": lambda d: dist.Normal(d, 1.0).log_prob(torch.arange(3.0)),
    "beta": lambda d: dist.Beta(d, 2.0).log_prob(torch.tensor(0.3)),
    "beta_binomial": lambda d: dist.BetaBinomial(d, d, 10).log_prob(torch.tensor(4.0)),
    "multinomial": lambda d: dist.Multinomial(6, torch.softmax(d * torch.arange(3.0), 0)).log_prob(
        torch.tensor([1.0, 2.0, 3.0])
    ),
    "lkj": lambda d: dist.LKJCholesky(3, d).log_prob(torch.eye(3)),
    "mvn": lambda d: dist.MultivariateNormal(torch.zeros(2), d * torch.eye(2)).log_prob(
        torch.ones(2)
    ),
    "zero_inflated": lambda d: dist.ZeroInflatedPoisson(d, gate=torch.tensor(0.2)).log_prob(
        torch.arange(3.0)
    ),
}


@pytest.mark.parametrize("name", LOG_PROBS)
def test_log_probabilities_equal_those_of_a_loop(name):
    with evaluation(), warnings.catch_warnings():
        warnings.simplefilter("error")  # falling back to the loop is a failure
        mapped = vectorize(LOG_PROBS[name], DRAWS)
        looped = torch.stack([LOG_PROBS[name](d) for d in DRAWS])
    torch.testing.assert_close(mapped, looped)


SAMPLERS = {
    "normal": (lambda d: dist.Normal(d, 1.0), lambda d: d),
    "exponential": (dist.Exponential, lambda d: 1 / d),
    "gamma": (lambda d: dist.Gamma(d, 2.0), lambda d: d / 2),
    "beta": (lambda d: dist.Beta(d, 2.0), lambda d: d / (d + 2)),
    "poisson": (dist.Poisson, lambda d: d),
    "binomial": (lambda d: dist.Binomial(5, d / 3), lambda d: 5 * d / 3),
    "bernoulli": (lambda d: dist.Bernoulli(d / 3), lambda d: d / 3),
    "negative_binomial": (lambda d: dist.NegativeBinomial(d, torch.tensor(0.5)), lambda d: d),
    "student": (lambda d: dist.StudentT(9.0, d, 1.0), lambda d: d),
    "dirichlet": (lambda d: dist.Dirichlet(torch.stack([d, d])), lambda d: 0.5 + 0 * d),
    "multinomial": (lambda d: dist.Multinomial(4, torch.ones(2) / 2), lambda d: 2 + 0 * d),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_differ_between_draws_and_have_the_right_mean(name):
    make, mean = SAMPLERS[name]
    draws = DRAWS.repeat(200)
    torch.manual_seed(0)
    with evaluation(), warnings.catch_warnings():
        warnings.simplefilter("error")
        x = vectorize(lambda d: make(d).sample(), draws).double()
        variance = torch.stack([make(d).variance.double() for d in DRAWS]).mean(0)
    expected = mean(draws).reshape((-1,) + (1,) * (x.ndim - 1))
    error = (variance / len(draws)).sqrt()
    assert ((x - expected).mean(0).abs() < 4 * error).all()
    assert (x[1:] != x[:-1]).any()


def test_a_value_written_in_place_is_read_back():
    def fn(d):
        noise = torch.empty(3)
        noise.normal_()  # the result of the call is not used
        return noise + d

    torch.manual_seed(0)
    x = vectorize(fn, DRAWS.repeat(100)) - DRAWS.repeat(100)[:, None]
    assert len(x.unique()) > 0.99 * x.numel()
    assert abs(x.mean().item()) < 4 / x.numel() ** 0.5
    assert x.std().item() == pytest.approx(1.0, abs=0.03)


def test_control_flow_on_a_value_runs_draw_by_draw_with_a_warning():
    def fn(d):
        return d if d > 1 else -d

    with pytest.warns(UserWarning, match="once per draw, which is slow"):
        x = vectorize(fn, DRAWS)
    torch.testing.assert_close(x, torch.where(DRAWS > 1, DRAWS, -DRAWS))


READS = {
    "if": lambda d: 100 + 0 * d if d > 1 else -d,
    "item": lambda d: torch.tensor(100.0) if d.item() > 1 else -d,
    "float": lambda d: torch.tensor(float(d) ** 2),
    "int": lambda d: torch.tensor([3.0, 5.0, 7.0][int(d)]),
    "index": lambda d: torch.tensor([3.0, 5.0, 7.0][d.long()]),
    "numpy": lambda d: torch.tensor(100.0) if d.detach().numpy() > 1 else -d,
    "array": lambda d: torch.as_tensor(np.exp(np.asarray(d))),
    "tolist": lambda d: torch.tensor(sum(torch.stack([d, d]).tolist())),
    "data": lambda d: torch.tensor(100.0) if d.data > 1 else -d,
    "tensor": lambda d: torch.tensor([d, 1.0]),
    "as_tensor": lambda d: torch.as_tensor([[d], [1.0]]),
    "new_tensor": lambda d: d.new_tensor([d, 1.0]),
    "Tensor": lambda d: torch.Tensor([d, 1.0]).double(),
    "from_numpy": lambda d: torch.from_numpy(np.atleast_1d(d.numpy())) * 2,
    "dlpack": lambda d: torch.tensor(float(np.from_dlpack(d))),
    "repr": lambda d: torch.tensor(float(repr(d)[7:].split(",")[0].rstrip(")"))),
    "bool": lambda d: torch.tensor(bool(d > 1)),
    "equal": lambda d: torch.tensor(torch.equal(d, d.round())),
    "shape": lambda d: torch.tensor(len(torch.stack([d, 2 * d]).nonzero()[d > 1 :])),
    "mask": lambda d: torch.tensor(len(torch.stack([d, 2 * d])[torch.stack([d, 2 * d]) > 1])),
    "max": lambda d: max(d, torch.tensor(1.0)),
}


@pytest.mark.filterwarnings("ignore:The model cannot be evaluated for all draws")
@pytest.mark.parametrize("name", READS)
def test_code_that_reads_the_value_of_a_draw_runs_draw_by_draw(name):
    with evaluation():
        mapped = vectorize(READS[name], DRAWS)
        looped = torch.stack([READS[name](d) for d in DRAWS])
    torch.testing.assert_close(mapped, looped)


def test_a_value_written_through_a_view_is_read_draw_by_draw():
    def fn(d):
        z = torch.zeros(2)
        z[0] = d
        return 100 + 0 * d if z[0] > 1 else -d

    with evaluation(), pytest.warns(UserWarning, match="once per draw"):
        x = vectorize(fn, DRAWS)
    torch.testing.assert_close(x, torch.where(DRAWS > 1, 100.0, -DRAWS))


def _written(write):
    def fn(d):
        x = torch.zeros(6, 4)
        write(x, d)
        return x

    return fn


WRITES = {
    "select": lambda x, d: x.__setitem__((..., 0), d),
    "select a vector": lambda x, d: x.__setitem__((..., -1), d * torch.arange(6)),
    "row": lambda x, d: x.__setitem__(2, d * torch.arange(4)),
    "slice to -1": lambda x, d: x.__setitem__((..., slice(1, -1)), d * torch.arange(2)),
    "steps": lambda x, d: x.__setitem__(slice(None, None, 2), d),
    "tail": lambda x, d: x.__setitem__(slice(-3, None), d),
    "beyond the end": lambda x, d: x.__setitem__(slice(2, 100), d),
    "empty": lambda x, d: x.__setitem__(slice(5, 3), d),
    "block": lambda x, d: x[2:5, 1:3].copy_(d * torch.ones(3, 2)),
    "transposed": lambda x, d: x.T[0].copy_(d * torch.ones(6)),
    "diagonal": lambda x, d: x[:4].diagonal().copy_(d * torch.ones(4)),
    "positions": lambda x, d: x.__setitem__((slice(None), torch.tensor([0, 2])), d),
    "mask": lambda x, d: x.__setitem__((slice(None), torch.arange(4) > 1), d * torch.ones(6, 2)),
    "add": lambda x, d: x[..., 0].add_(d),
    "twice": lambda x, d: (x[1:3].add_(1).mul_(d), x[0].add_(d)),
    "an integer": lambda x, d: x.__setitem__(0, (2 * d).long()),
    "loop": lambda x, d: [x.__setitem__(t, 0.5 * x[t - 1] + d) for t in range(1, 6)],
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_to_parts_of_a_tensor_are_mapped(name):
    fn = _written(WRITES[name])
    with evaluation(), warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = vectorize(fn, DRAWS)
        looped = torch.stack([fn(d) for d in DRAWS])
    torch.testing.assert_close(mapped, looped)


@pytest.mark.parametrize("family", ["sliced", "ordered"])
def test_the_memory_of_a_site_filled_by_slices_is_proportional_to_the_draws(family):
    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("n", len(x)):
            if family == "ordered":
                pyro.sample("y", dist.OrderedLogistic(b * x, c.exp().cumsum(-1)), obs=y)
                return
            p = torch.zeros(len(x), 4)
            p[..., 0] = torch.sigmoid(b * x)
            p[..., 1:] = torch.softmax(c, -1) * (1 - p[..., :1])
            pyro.sample("y", dist.Categorical(p), obs=y)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, generator=generator, dtype=torch.float64)
    program = Program(model, (x, torch.arange(20) % 4))
    structure = discover(program)
    draws = {
        "b": torch.randn(3000, generator=generator, dtype=torch.float64),
        "c": torch.randn((3000, 3), generator=generator, dtype=torch.float64),
    }
    before = peak_memory()
    points = predictive.log_likelihood(program, structure, draws).points
    predictive.sample(program, structure, draws)
    assert peak_memory() - before < 300 * 2**20  # 5 GB, when it was a square
    for i in (0, 1234):
        one = {name: value[i : i + 1] for name, value in draws.items()}
        single = predictive.log_likelihood(program, structure, one).points
        torch.testing.assert_close(points["y"][i], single["y"][0])


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def test_functions_of_integers_keep_their_precision():
    def fn(d):
        with evaluation():
            n = (1.0 * torch.zeros(1)).normal_()  # in place, so the operations are recorded
            return d + torch.lgamma(torch.tensor(11)) + 0 * n

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = vectorize(fn, DRAWS)
    np.testing.assert_allclose(x[:, 0], DRAWS + np.log(3628800.0), rtol=1e-14)


TABLE = torch.arange(24.0).reshape(2, 3, 4)
AT = {
    "first": lambda i: TABLE[i],
    "last": lambda i: TABLE[..., i],
    "middle": lambda i: TABLE[:, i],
    "after a number": lambda i: TABLE[1, i, 1:3],
    "two": lambda i: TABLE[i, i],
    "two around": lambda i: TABLE[i, :, i],
    "new dimension": lambda i: TABLE[None, i, ..., None],
    "after an ellipsis": lambda i: TABLE[..., i, 1:],
    "two after an ellipsis": lambda i: TABLE[..., i, i],
    "negative": lambda i: TABLE[i - 2],
    "write": lambda i: (x := TABLE.clone(), x.__setitem__(i, 7.0))[0],
    "write a row": lambda i: (x := TABLE.clone(), x.__setitem__(i - 2, TABLE[0] * 2))[0],
}


@pytest.mark.parametrize("name", AT)
@pytest.mark.parametrize("recorded", [False, True])
def test_scalar_tensors_as_positions_are_mapped(name, recorded):
    def fn(i):
        noise = 0.0
        if recorded:  # a write in place
            z = 1.0 * torch.zeros(2)
            z[0] = i
            noise = 0 * z.sum()
        return AT[name](i) + noise

    positions = torch.tensor([0, 1, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = vectorize(fn, positions)
    torch.testing.assert_close(mapped, torch.stack([fn(i) for i in positions]))


def written_in_a_loop(d):
    x, last = torch.zeros(5), d
    for t in range(5):
        last = torch.sin(last * d)
        x[t] = last
    return x


def added_to_ones(d):
    x = torch.ones(2, 3)
    x[:, 1] += d
    return x * torch.full((3,), 2.0).mul_(d)


def starting_from_a_table(d):
    x, state = torch.eye(3), torch.tensor([0.0, 1.0])
    x[0, 0] = state[1] = d
    table = TABLE.clone()
    table[0, 1] = d
    return x.sum() + state.sum() + table


@pytest.mark.parametrize("fn", [written_in_a_loop, added_to_ones, starting_from_a_table])
def test_writes_to_new_memory_need_no_recording(fn, monkeypatch):
    monkeypatch.delattr("probdl.model.vectorize._plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = vectorize(fn, DRAWS)
    torch.testing.assert_close(mapped, torch.stack([fn(d) for d in DRAWS]))


@pytest.mark.parametrize("name", ["beta", "dirichlet", "student", "exponential", "gamma"])
def test_samplers_need_no_recording(name, monkeypatch):
    monkeypatch.delattr("probdl.model.vectorize._plain")
    distribution, mean = SAMPLERS[name]
    rate = torch.full((20_000,), 1.5, dtype=torch.float64)
    with isolation.isolated(0), evaluation(), warnings.catch_warnings():
        warnings.simplefilter("error")
        x = vectorize(lambda d: distribution(d).sample(), rate).reshape(len(rate), -1)[:, 0]
    assert len(x.unique()) > 0.99 * len(x)
    assert abs(x.mean() - mean(rate)[0]) < 4 * x.std() / len(x) ** 0.5
    serial = torch.corrcoef(torch.stack([x[1:], x[:-1]]))[0, 1]
    assert abs(serial) < 4 / len(x) ** 0.5


def test_the_gradient_of_dirichlet_draws_is_left_alone():
    concentration = torch.ones(3, requires_grad=True)
    with _Dirichlet.in_place():
        x = dist.Dirichlet(concentration).rsample()
    (grad,) = torch.autograd.grad(x[0], concentration)
    assert grad.abs().sum() > 0
    assert dirichlet._Dirichlet is _Dirichlet.original is not None


def test_a_long_loop_is_evaluated_in_large_chunks():
    def loop(d):
        for _ in range(3000):
            d = torch.sin(d)
        return d * torch.ones(2**16)

    def matrix(d):
        return (d * torch.ones(2**8, 2**8)) @ torch.ones(2**8, 2**8)

    for fn, expected in ((loop, 200), (matrix, 16)):
        sizes = [len(part) for part in chunks(fn, torch.ones(200))]
        assert sizes[0] == pytest.approx(expected, rel=0.1)


def test_where_and_indexing_by_a_draw_run_for_all_draws_at_once():
    table = torch.tensor([3.0, 5.0, 7.0])
    fn = lambda d: torch.where(d > 1, table[d.long()], -d)  # noqa: E731
    with evaluation(), warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = vectorize(fn, DRAWS)
    torch.testing.assert_close(mapped, torch.stack([fn(d) for d in DRAWS]))


@pytest.mark.filterwarnings("ignore:The model cannot be evaluated for all draws")
@pytest.mark.parametrize(
    "coin",
    [
        lambda: torch.rand(()) > 0.5,
        lambda: dist.Normal(0.0, 1.0).sample().item() > 0,
        lambda: torch.randn(2).numpy()[0] > 0,
        lambda: torch.empty(1).exponential_() > np.log(2),
        lambda: np.random.rand() > 0.5,  # noqa: NPY002
        lambda: random.random() > 0.5,
    ],
)
def test_each_draw_takes_the_branch_of_its_own_random_number(coin):
    isolation.seed_all(0)
    x = vectorize(lambda d: d + 1.0 if coin() else d - 1.0, torch.zeros(400))
    assert abs(x.mean().item()) < 4 / 400**0.5


def test_random_numbers_of_numpy_differ_between_draws():
    with pytest.warns(UserWarning, match="random numbers with NumPy or Python"):
        x = vectorize(lambda d: d + np.random.normal(), torch.zeros(50))  # noqa: NPY002
    assert len(x.unique()) == 50


@pytest.mark.filterwarnings("ignore:The model cannot be evaluated for all draws")
def test_results_of_different_shapes_are_an_error():
    with pytest.raises(probdl.ModelError, match="differ between draws"):
        vectorize(lambda d: {"a": d} if d > 1 else {"b": d}, DRAWS)


def test_a_single_draw_and_a_nested_result():
    x = vectorize(lambda d: {"a": d["x"] * 2, "b": torch.ones(2)}, {"x": torch.ones(1, 3)})
    assert x["a"].shape == (1, 3)
    assert x["b"].shape == (1, 2)


def test_large_results_are_computed_in_chunks_and_are_the_same(monkeypatch):
    vectorize_module = importlib.import_module("probdl.model.vectorize")
    draws = torch.randn(50, generator=torch.Generator().manual_seed(0))
    fn = lambda d: {"y": d * torch.arange(10.0), "z": (d + torch.arange(10.0)).sum()}  # noqa: E731
    whole = vectorize(fn, draws)
    monkeypatch.setattr(vectorize_module, "MAX_NUMBERS_PER_CHUNK", 200)
    parts = list(vectorize_module.chunks(fn, draws))
    assert len(parts) > 5
    again = vectorize(fn, draws)
    assert torch.equal(whole["y"], again["y"])
    assert torch.equal(whole["z"], again["z"])


def test_chunks_draw_different_random_numbers(monkeypatch):
    vectorize_module = importlib.import_module("probdl.model.vectorize")
    monkeypatch.setattr(vectorize_module, "MAX_NUMBERS_PER_CHUNK", 300)
    drawn = vectorize(lambda d: d + torch.randn(20), torch.zeros(40))
    assert drawn.unique().numel() == 800


def test_a_result_larger_than_the_memory_is_an_error(monkeypatch):
    vectorize_module = importlib.import_module("probdl.model.vectorize")
    monkeypatch.setattr(vectorize_module, "MAX_NUMBERS_PER_CHUNK", 2000)
    monkeypatch.setattr(vectorize_module, "machine_memory", lambda unknown: 1000.0)
    with pytest.raises(probdl.SettingError, match=r"100 draws of .* MiB each.*out=folder"):
        vectorize(lambda d: d + torch.zeros(100), torch.zeros(100))


def test_counts_that_are_the_same_for_all_draws_print_no_warning(capfd):
    seeds, germinated = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([3.0, 4.0, 9.0])

    def model(seeds, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("plate", len(seeds)):
            pyro.sample("y", dist.Binomial(seeds, logits=a), obs=y)

    fit = probdl.infer(model, seeds, germinated, method="laplace", seed=1, progress=False)
    mean = fit.predict()["y"].mean((0, 1)) / seeds.numpy()
    expected = (1 / (1 + np.exp(-fit.draws["a"]))).mean()
    np.testing.assert_allclose(mean, expected, atol=4 * 0.5 / np.sqrt(10 * 1000))
    fit.to_idata(prior=50)
    assert capfd.readouterr().err == ""
