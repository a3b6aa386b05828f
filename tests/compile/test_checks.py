"""Branches on the values of sites that only check them, and others."""

import logging
import sys
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl import LogDensity
from probdl.compile import choose
from probdl.compile.tracing import checks

LOG = logging.getLogger(__name__)
Y = np.random.default_rng(0).normal(size=20)


def asserted(x):
    assert (x > -2.1).all(), f"x is {x}"
    return x


def raised(x):
    if torch.isnan(x).any() or x.min() < -2.1:
        raise ValueError(f"x is {x.sum():.2f}")
    return x


def raised_in_a_loop(x):
    for _ in range(30):
        x = 0.9 * x
        if not torch.all(x.abs() < 1.89):
            raise RuntimeError(x.tolist())
    return x


def given_to_wishart(x):
    value = dist.Wishart(x.sum() + 8.5, torch.eye(3)).log_prob(2 * torch.eye(3))
    return x + value


def warned(x):
    if (x < -2.1).any():
        warnings.warn(f"x is {x}", UserWarning, stacklevel=1)
    return x.exp()


def raised_with_a_message(x):
    if any(value < -2.1 for value in x):
        message = f"x is {[float(value) for value in x]}"
        raise ValueError(message) from None
    return x


def raised_after_a_message(x):
    if (x < -2.1).any():
        print("x is small")  # noqa: T201
        LOG.error("x is %s", x)
        raise ValueError("x is small")
    return x


def logged(x):
    for value in x:
        if value < -2.1:
            LOG.error("x is %s", value)
    return x


def skewed(x):
    return dist.SineSkewed(dist.VonMises(x, 1.0).to_event(1), 0.2 * x).log_prob(
        torch.tensor([0.2, 0.3])
    )


def raised_after_writes(x):
    out = torch.zeros(30)
    out[0] = x.sum()
    for t in range(1, 30):
        out[t] = 0.9 * out[t - 1].clone() + x[0]
        assert torch.isfinite(out[t])
    assert (out > -24.0).all()
    return out


def nested(x):
    if x[0] > 0:
        if x[0] > 2.1:
            raise ValueError
        x = 2 * x
    return x


def raised_in_the_first_step(x):
    for t in range(3):
        if x[0] < -2.1:
            if t == 0:
                raise ValueError("at the start")
            x = x.clamp(min=-2.1)
        x = 1.2 * x
    return x


def raised_in_other_steps_than_the_middle_one(x):
    for t in range(3):
        if x[0] < -2.1:
            if t != 1:
                raise ValueError("at the start or the end")
            x = x.clamp(min=-2.1)
        x = 0.9 * x
    return x


def raised_by_a_second_branch(x):
    if x[0] > 2.1:
        if x[1] > 0.0:
            raise ValueError("both")
        x = 2 * x
    return x


def raised_by_both(x):
    if x[0] > 2.1 and x[1] > 0.1:
        raise ValueError("both")
    return x


def raised_for_two(x):
    large = 0
    for value in x:
        if value.abs() > 2.1:
            large += 1
    if large > 1:
        raise ValueError("two are large")
    return x


def raised_for_one_pair(x):
    if (x[0] > 2.1, x[1] > 2.1) == (True, False):
        raise ValueError("one is large")
    return x


def exited(x):
    if x[0] > 2.1:
        sys.exit("x is large")
    return x


def exited_by_an_error(x):
    if x[0] > 2.1:
        raise SystemExit("x is large")
    return x


def kept(x, seen=[]):  # noqa: B006
    if x[0] > 2.1:
        seen.append(x)
    assert not seen
    return x


def without_an_end(x):
    count = torch.ones_like(x[0])
    while count != 0 * x[0]:
        count = count - 1
    return x * (1 + count)


def compared_as_a_whole(x):
    if torch.allclose(x, torch.full_like(x, 50.0)):
        raise ValueError(f"x is {x}")
    return x


def larger(x):
    return max(x[0], x[1])


def computed(x):
    return x if x.sum() > 0.0 else 2 * x


def caught(x):
    try:
        return asserted(x)
    except AssertionError:
        return 2 * x


def caught_for_some_values(x):
    try:
        if x[0] > 2.1:
            raise ValueError
    except ValueError:
        if x[1] > -5.0:
            raise
        x = x / 2
    return x


def caught_in_later_steps(x):
    total = 0 * x
    for k in (0, 1):
        try:
            if x[k] > 2.1:
                raise ValueError
            total = total + x
        except ValueError:
            if k == 0:
                raise
    return total


def caught_by_a_caller(x):
    for k in (0, 1):
        try:
            raised_for(x[k])
        except ValueError:
            if k == 0:
                raise
    return x


def raised_for(value):
    if value > 2.1:
        raise ValueError


def recorded_as_a_warning(x):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if x[0] > 2.1:
            warnings.warn("x is large", stacklevel=1)
    return x / 2 if seen else x


def failed_by_accident(x):
    if (x < -2.1).any():
        x = x + torch.nonzero(x < -2.1)[0]
    return x


def raised_by_a_function(x):
    if (x < -2.1).any():
        x = x + int("not a number" if x.sum() > -2.2 else 1)
    return x


def read(x):
    return x if x[0].item() > -2.1 else -x


def remembered(x):
    if (x < -2.1).any():
        x = x * 1.0
    return x


CHECKS = (
    asserted,
    raised,
    raised_in_a_loop,
    raised_with_a_message,
    raised_after_a_message,
    raised_after_writes,
    given_to_wishart,
    warned,
    logged,
    skewed,
)
OTHERS = (
    nested,
    raised_in_the_first_step,
    raised_in_other_steps_than_the_middle_one,
    raised_by_a_second_branch,
    raised_by_both,
    raised_for_two,
    raised_for_one_pair,
    exited,
    exited_by_an_error,
    kept,
    computed,
    caught,
    caught_for_some_values,
    caught_in_later_steps,
    caught_by_a_caller,
    recorded_as_a_warning,
    failed_by_accident,
    raised_by_a_function,
    read,
    remembered,
    without_an_end,
    larger,
    compared_as_a_whole,
)


def density_of(function):
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(function(x).sum(), 1.0).expand([20]).to_event(1), obs=y)

    return LogDensity.from_model(model, (Y,))


POINTS = torch.tensor([[0.2, 0.4], [-0.3, 0.9], [1.2, -1.4], [0.1, -2.6], [-2.7, -3.0]]).double()


@pytest.mark.parametrize("function", CHECKS, ids=lambda f: f.__name__)
def test_a_check_is_compiled(function):
    density = density_of(function)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no warning of a value that is not there
        compiled, _ = choose(density, "native", 0)
    failed = 0
    for point in POINTS:
        found = compiled.value_and_grad(point)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = density.value_and_grad(point)
        failed += bool(expected[0] == -torch.inf)
        if expected[0] == -torch.inf:
            assert found[0] == -torch.inf
        else:
            torch.testing.assert_close(found, expected)
    raising = (asserted, raised, raised_in_a_loop, raised_with_a_message, raised_after_a_message)
    assert failed == (2 if function in raising else function is raised_after_writes)


@pytest.mark.parametrize("function", OTHERS, ids=lambda f: f.__name__)
def test_a_branch_that_computes_is_not(function):
    _, findings = choose(density_of(function), "auto", 0)
    assert "control flow in Python depends on the value of a site" in findings[0].message


def test_a_check_of_degrees_of_freedom_is_no_density():
    compiled, _ = choose(density_of(given_to_wishart), "native", 0)
    assert compiled(torch.tensor([-3.0, -3.6], dtype=torch.float64)) == -torch.inf
    assert torch.isfinite(compiled(torch.tensor([-3.0, -3.4], dtype=torch.float64)))


def test_too_many_checks_cost_too_much():
    def many(x):
        code = "\n".join(f"assert x[0] < {i + 10}" for i in range(checks.MAX_BRANCHES + 1))
        exec(code, {"x": x})
        return x

    _, findings = choose(density_of(many), "auto", 0)
    assert findings[0].check == "engine"


def test_a_fit_beyond_a_check_has_a_finding():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x > 2.3:
            raise ValueError(f"x is {x}")
        pyro.sample("y", dist.Normal(x, 1.0).expand([20]).to_event(1), obs=y)

    with pytest.warns(probdl.FindingWarning):
        fit = probdl.infer(model, Y + 4, method=probdl.NUTS(draws=200, warmup=200), seed=0)
    assert fit.stats["engine"] == "native"
    assert fit.draws["x"].max() <= 2.3
    assert any(finding.check == "divergences" for finding in fit.findings)
    inside = probdl.infer(model, Y, method=probdl.MAP(), seed=0)
    assert float(inside.draws["x"].squeeze()) == pytest.approx(Y.sum() / 21)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method",
    [
        "map",
        "laplace",
        "pathfinder",
        probdl.NUTS(draws=300),
        probdl.NUTS(draws=50, warmup=50, chains=1, engine="eager"),
        probdl.Metropolis(draws=300, warmup=300),
    ],
    ids=str,
)
def test_a_check_that_fails_for_half_of_the_prior_is_an_edge_of_the_posterior(method):
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        assert x > 0
        pyro.sample("y", dist.Normal(x, 1.0).expand([20]).to_event(1), obs=y)

    fit = probdl.infer(model, Y + 1, method=method, seed=0)
    mean, sd = (Y + 1).sum() / 21, 21**-0.5
    assert float(fit.draws["x"].mean()) == pytest.approx(mean, abs=sd)


@pytest.mark.parametrize("method", [probdl.Laplace(), probdl.SVI(steps=200)], ids=str)
def test_draws_beyond_a_check_have_a_finding(method):
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        assert x < 1.2
        pyro.sample("y", dist.Normal(x, 1.0).expand([20]).to_event(1), obs=y)

    with pytest.warns(probdl.FindingWarning, match="where the posterior has no density"):
        fit = probdl.infer(model, Y + 1, method=method, seed=0)
    assert "zero_density" in {f.check for f in fit.findings}
    assert fit.draws["x"].max() > 1.2


@pytest.mark.parametrize("method", ["map", "nuts", "svi", "importance"])
def test_an_error_that_the_model_always_raises_is_its_own(method):
    def model(y):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        raise ValueError("three columns are needed")

    with pytest.raises(probdl.ModelError, match=r"three columns are needed.*raises this error"):
        probdl.infer(model, Y, method=method, seed=0)


def test_the_same_fit_with_and_without_a_check():
    def model(y, check):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if check:
            assert x < 100
        pyro.sample("y", dist.Normal(x, 1.0).expand([20]).to_event(1), obs=y)

    method = probdl.NUTS(draws=50, warmup=100, chains=1)
    fits = [probdl.infer(model, Y, check, method=method, seed=0) for check in (False, True)]
    np.testing.assert_array_equal(*(fit.draws["x"] for fit in fits))


def test_random_numbers_do_not_make_a_branch_a_check():
    # The two sides are the same at draws that differ in sign.
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        width = 1.0 if mu > 0 else 2.0
        pyro.sample("y", dist.Normal(mu, width).expand([20]).to_event(1), obs=y)

    for seed in range(4):
        with pytest.warns(probdl.FindingWarning, match="steps run on the eager engine"):
            fit = probdl.infer(model, Y, method=probdl.SVI(steps=5, draws=30), seed=seed)
        assert fit.stats["engine"] == "eager"


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_check_is_compiled_under_a_time_limit():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        assert x < 100
        pyro.sample("y", dist.Normal(x, 1.0).expand([20]).to_event(1), obs=y)

    method = probdl.NUTS(draws=20, warmup=20, chains=1)
    fit = probdl.infer(model, Y, method=method, seed=0, time_limit=600)
    assert fit.stats["engine"] == "native"


def test_steps_of_svi_with_a_check_are_compiled():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        assert torch.isfinite(mu)
        pyro.sample("y", dist.Normal(mu, 1.0).expand([20]).to_event(1), obs=y)

    fit = probdl.infer(model, Y, method=probdl.SVI(steps=300), seed=0)
    assert fit.stats["engine"] == "native"
    assert fit.draws["mu"].mean() == pytest.approx(Y.sum() / 21, abs=0.1)


def test_nothing_is_printed_of_a_value_that_is_not_there(capsys, caplog):
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x > 3:
            print("x is large")  # noqa: T201
        if x > 4:
            print("x is larger")  # noqa: T201
            LOG.error("x is %s", x)
            raise ValueError
        pyro.sample("y", dist.Normal(x, 1.0).expand([20]).to_event(1), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(LogDensity.from_model(model, (Y,)), "native", 0)
    assert not capsys.readouterr().out
    assert not caplog.records
