"""Models that catch failures of linear algebra, count their calls, or that torch cannot record."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl import LogDensity
from probdl.compile import choose

Y = np.random.default_rng(0).normal(size=(5, 2))
EYE = torch.eye(2, dtype=torch.float64)


def tried_once(matrix):
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError:
        return torch.linalg.cholesky(matrix + (1.0 - matrix[0, 0]) * EYE)


def tried_in_a_loop(matrix):
    for jitter in (0.0, 0.1, 10.0):
        try:
            return torch.linalg.cholesky(matrix + jitter * EYE)
        except RuntimeError:
            continue
    raise ValueError("no jitter is enough")


def solved(matrix):
    torch.linalg.cholesky(EYE)
    try:
        return torch.linalg.solve(matrix.clamp(min=0.0), EYE)  # singular from 2 on
    except Exception:
        return EYE


def tried_by_a_distribution(matrix):
    try:
        return dist.MultivariateNormal(torch.zeros(2), matrix, validate_args=False).scale_tril
    except RuntimeError:
        return EYE


def raised_again(matrix):
    try:
        return torch.linalg.cholesky(matrix)
    except RuntimeError as error:
        raise error


def never_finite(matrix):
    try:
        return torch.linalg.cholesky(matrix)
    except RuntimeError:
        return EYE * torch.nan


def model_of(factor):
    def model(y):
        x = pyro.sample("x", dist.Normal(1.5, 1.0))
        scale_tril = factor(EYE * (2.0 - x))  # not positive definite beyond x = 2
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=scale_tril), obs=y)

    return model


@pytest.mark.parametrize("factor", [tried_once, tried_in_a_loop, solved, tried_by_a_distribution])
def test_a_model_that_catches_a_failure_runs_in_python(factor):
    density = LogDensity.from_model(model_of(factor), (Y,))
    evaluator, findings = choose(density, "auto", 0)
    beyond = torch.tensor([2.5], dtype=torch.float64)
    value, expected = evaluator.value_and_grad(beyond)[0], density(beyond)
    assert torch.isfinite(expected)
    assert value == expected
    assert [f.check for f in findings] == ["engine"]
    assert "catches a failure" in findings[0].message
    assert "diagonal" in findings[0].remedy


@pytest.mark.parametrize("factor", [torch.linalg.cholesky, raised_again])
def test_a_failure_that_ends_the_model_is_a_density_of_zero(factor):
    density = LogDensity.from_model(model_of(factor), (Y,))
    evaluator, findings = choose(density, "auto", 0)
    beyond = torch.tensor([2.5], dtype=torch.float64)
    assert evaluator.engine == "native"
    assert evaluator.value_and_grad(beyond)[0] == density(beyond) == -torch.inf
    assert not findings


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_that_catch_a_failure_run_in_python(dtype):
    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.level = torch.nn.Parameter(torch.zeros((), dtype=dtype))

        def forward(self, y):
            x = pyro.sample("x", dist.Normal(self.level, 1.0))
            scale_tril = tried_in_a_loop((2.0 - x) * EYE.to(dtype))
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.MultivariateNormal(y.mean(0), scale_tril=scale_tril), obs=y)

    fit = probdl.infer(Model(), Y, method=probdl.SVI(steps=20, guide="normal"), seed=1)
    assert fit.stats["engine"] == "eager"
    assert any("catches a failure" in f.message for f in fit.findings)


@torch.jit.script
def branched(x):
    if bool(x > 4.0):
        x = x * 2
    return x + 4.0


def test_torchscript_that_branches_runs_in_python():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        pyro.sample("y", dist.Normal(branched(a), 1.0).expand([5]).to_event(1), obs=y)

    density = LogDensity.from_model(model, (Y[:, 0],))
    evaluator, findings = choose(density, "auto", 0)
    assert evaluator.engine == "eager"
    assert "cannot be recorded" in findings[0].message
    with pytest.raises(probdl.ModelError, match="cannot be recorded"):
        choose(density, "native", 0)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_steps_of_a_model_that_counts_its_calls_run_in_python():
    class Counting(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, y):
            self.calls += 1
            weight = 0.05 if self.calls <= 300 else 1.0
            with pyro.poutine.scale(scale=weight):
                mean = pyro.sample("mean", dist.Normal(0.0, 0.1))
            pyro.sample("y", dist.Normal(mean, 1.0).expand(y.shape).to_event(1), obs=y)

    y = np.array([3.0, 3.2, 2.9, 3.1])
    method = probdl.SVI(steps=2000, guide="delta", learning_rate=0.05)
    fit = probdl.infer(Counting(), y, method=method, seed=1)
    assert fit.stats["engine"] == "eager"
    (finding,) = (f for f in fit.findings if f.check == "engine")
    assert "'calls'" in finding.message
    expected = y.sum() / (len(y) + 100)  # with the weight of the last steps; 1.36 with the first
    np.testing.assert_allclose(fit.draws["mean"].mean(), expected, rtol=0.05)
