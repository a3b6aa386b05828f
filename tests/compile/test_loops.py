"""Loops over time: the C code is as long for many steps as for few, and gives the same."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.compile import choose, engine
from probdl.compile.codegen.emit import emit
from probdl.compile.codegen.lengthen import NotAffineError, lengthened_number
from probdl.compile.codegen.periods import Repeat, repeats, rule_of
from probdl.compile.long_series import of_first_steps
from probdl.compile.probe import probe
from probdl.compile.runtime.native_density import NativeDensity
from probdl.compile.tracing.trace import trace
from probdl.compile.verify import verify
from probdl.util.clock import TimeUp, clock

RNG = np.random.default_rng(0)


def normals(name, *shape):
    return pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))


def garch(y):
    a, b = normals("a"), normals("b")
    variance, variances = torch.tensor(1.0), []
    for t in range(len(y)):
        variances.append(variance)
        variance = a**2 + 0.3 * y[t] ** 2 + torch.sigmoid(b) * variance
    with pyro.plate("t", len(y)):
        pyro.sample("y", dist.Normal(0.0, torch.stack(variances).sqrt()), obs=y)


def local_level(y):
    moves, sd = normals("moves", len(y)), normals("sd").exp()
    level, levels = torch.tensor(0.0), []
    for t in range(len(y)):
        level = 0.9 * level + moves[t]
        levels.append(level)
    pyro.sample("y", dist.Normal(torch.stack(levels), sd).to_event(1), obs=y)


def matrix_of_latent_values(y):
    x = normals("x", 3, len(y))
    state, total = torch.zeros(3), torch.tensor(0.0)
    for t in range(len(y)):
        state = torch.tanh(state + x[:, t])
        total = total + state.sum() * y[t]
    pyro.factor("f", total - (x**4).sum())


def overlapping_slices(y):
    x = normals("x", len(y) + 2)
    total = torch.tensor(0.0)
    for t in range(len(y)):
        total = total + (x[t : t + 3] * y[t]).sin().sum() + x[t] * x[t + 1]
    pyro.factor("f", total)


def forward(y):
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3)).expand([3]).to_event(1))
    alpha = torch.zeros(3)
    for t in range(len(y)):
        alpha = torch.logsumexp(alpha[:, None] + rows.log(), 0) + y[t] * torch.arange(3.0)
    pyro.factor("f", torch.logsumexp(alpha, 0))


def sites_in_each_step(y):
    x = torch.tensor(0.0)
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x{t}", dist.Normal(0.9 * x, 1.0))
        pyro.sample(f"y{t}", dist.Normal(x, 0.5), obs=y[t])


def kalman_filter(y):
    q, r = normals("q").exp(), normals("r").exp()
    move, eye = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.eye(2)
    m, p, total = torch.zeros(2), 10 * torch.eye(2), torch.tensor(0.0)
    for t in range(len(y)):
        m, p = move @ m, move @ p @ move.T + q * eye
        s = p[0, 0] + r
        gain = p[:, 0] / s
        total = total + dist.Normal(m[0], s.sqrt()).log_prob(y[t])
        m, p = m + gain * (y[t] - m[0]), p - torch.outer(gain, p[0])
    pyro.factor("f", total)


def two_branches(y):
    a, x, xs = normals("a"), torch.tensor(0.5), []
    for t in range(len(y)):
        x = torch.sin(x + a) if t % 2 else torch.cos(x * a) + y[t]
        xs.append(x)
    pyro.factor("f", torch.stack(xs).sum())


def seasons(y):
    season, a = normals("season", 4), normals("a")
    x = torch.tensor(0.0)
    for t in range(len(y)):
        x = a * x + season[t % 4] * y[t] * (0.1 * t)
    pyro.factor("f", torch.tanh(x))


def a_second_loop_backwards(y):
    a, x, xs = normals("a"), torch.tensor(0.5), []
    for t in range(len(y)):
        x = torch.tanh(a * x + y[t])
        xs.append(x)
    back = torch.tensor(0.0)
    for t in reversed(range(len(y))):
        back = torch.sin(back + xs[t] * xs[(7 * t) % len(y)])
    pyro.factor("f", back)


def lags(y):
    a, b = normals("a"), normals("b")
    xs = [a, b, a * b]
    for t in range(len(y)):
        xs.append(torch.tanh(a * xs[-1] - b * xs[-3] + y[t]))
    pyro.factor("f", torch.stack(xs[3:], 0).square().sum())


def writes_in_place(y):
    a = normals("a")
    x, last = torch.zeros(len(y)), a
    for t in range(len(y)):
        last = torch.sin(0.4 * last * a) + y[t]
        x[t] = last
    pyro.factor("f", x.sum())


def writes_rows(y):
    w, x, out = normals("w", 3), torch.zeros(3), torch.zeros(len(y), 3)
    for t in range(len(y)):
        x = torch.tanh(0.5 * x + w * y[t])
        out[t] = x
    pyro.factor("f", (out * torch.arange(3.0)).sum().sin())


def writes_elements_of_a_matrix(y):
    a, out, x = normals("a", 9), torch.ones(len(y) + 1, 9), torch.tensor(0.1)
    for t in range(len(y)):
        for i in range(9):
            x = torch.sin(x + a[i] * y[t])
            out[-1 - t, i] = x
    pyro.factor("f", out.square().sum() + out[0, 3] * out[-1, 2])


def writes_over_what_it_wrote(y):
    a, out, x = normals("a"), torch.ones(3), torch.tensor(0.1)
    for t in range(len(y)):
        x = torch.cos(x * a + out[(t + 1) % 3] + out[t % 3] * y[t])
        out = out.clone()
        out[t % 3] = x
        out[1] = out[1] + 0.1 * x
    pyro.factor("f", out.sum())


def reads_earlier_versions(y):
    a, out, total = normals("a"), torch.full((len(y),), 0.5), torch.tensor(0.0)
    for t in range(len(y)):
        if t == 3:
            third = out.clone()
        out[t] = torch.sin(a * y[t])
        total = total + out[t // 2] - out[-1] + out[len(y) // 2 :].sum()
    if len(y) > 3:
        third[0] = a**3
        total = total + third.cos().sum() + third[2:].sum()
    pyro.factor("f", total + (out * torch.arange(float(len(y)))).tanh().sum())


def writes_columns_and_rows(y):
    a, out = normals("a", len(y)), torch.zeros(len(y), len(y))
    for t in range(len(y)):
        out[:, t] = a * y[t]
    for t in range(len(y)):
        out[t] = out[t] + a[t] ** 2
    out[0, 0] = a[0] * 3
    pyro.factor("f", out.sin().sum())


def writes_single_precision(y):
    a, out = normals("a"), torch.zeros(len(y), dtype=torch.float32)
    for t in range(len(y)):
        out[t] = y[t] * t
    total = torch.zeros(len(y), dtype=torch.float64)
    for t in range(len(y)):
        total[t] = out[t] * a + 1
    pyro.factor("f", total.sin().sum())


def a_grid_in_place(y):
    w, u, out = normals("w", 8), torch.linspace(0.0, 1.0, 8), torch.zeros(len(y))
    for t in range(len(y)):
        new = u.clone()
        new[1:-1] = u[1:-1] + 0.1 * w[1:-1] * (u[2:] - 2 * u[1:-1] + u[:-2])
        u = new
        out[t] = u.mean() * y[t]
    pyro.factor("f", out.sin().sum())


def arrays_of_each_step(y):
    a, total = normals("a", 4), torch.tensor(0.0)
    for t in range(len(y)):
        total = total + (a * torch.linspace(0, 1 + t, 4) ** 2 * y[t]).tanh().sum()
    pyro.factor("f", total)


def recurrent_network(y):
    w, out, h, hs = normals("w", 4, 5), normals("out", 4), torch.zeros(4), []
    for t in range(len(y)):
        h = torch.tanh(w @ torch.cat([h, y[t : t + 1]]))
        hs.append(h)
    pyro.sample("y", dist.Normal(torch.stack(hs, 1).T @ out, 1.0).to_event(1), obs=y)


def extremes(y):
    a, x, total = normals("a", 12), torch.zeros(12), torch.tensor(0.0)
    for t in range(len(y)):
        best, place = (x + a * y[t]).max(0)
        x = torch.where(x > 0, x.clamp(max=3.0), a) + 0.1 * best
        total = total + best * place
    pyro.factor("f", total)


def first_steps_of_another_kind(y):
    z, a = normals("z", len(y), 5), normals("a", 3, 5)
    xs, total = [], a[0, 0]
    for t in range(len(y)):
        xs.append(torch.sin(z[t] + (a[t] if t < 3 else xs[t % 3])))
        total = total + xs[t].sum()
    pyro.factor("f", total)


def partly_stacked(y):
    x = normals("x", max(len(y), 14))
    s = [x[t : t + 1].sum() for t in range(len(x))]
    pyro.factor("f", (torch.stack(s[: len(s) // 2]) ** 2).sum() + (s[-2] * s[-1]).sin())


def empty_slices(y):
    x, total = normals("x", 4 * len(y) + 2), torch.tensor(0.0)
    for t in range(len(y)):
        total = total + x[4 * t : 4 * t + 2].sum().sin() * x[4 * t + 1 : 4 * t + 1].sum().cos()
    pyro.factor("f", total + (x[2:1] ** 2).sum())


def compartments(y):
    rates, state, total = normals("rates", 10), torch.linspace(0, 1, 10), torch.tensor(0.0)
    for t in range(len(y)):
        flows = [rates[i] * state[i] for i in range(10)]
        state = state + 0.1 * torch.stack([flows[i - 1] - flows[i] for i in range(10)])
        total = total + state[3] * y[t]
    pyro.factor("f", torch.tanh(total))


# With the number of statements of the C code that more steps do not add to.
ROLLED = {
    f.__name__: f
    for f in (
        garch, local_level, matrix_of_latent_values, overlapping_slices, forward,
        sites_in_each_step, kalman_filter, two_branches, seasons, lags, recurrent_network, extremes,
        first_steps_of_another_kind, empty_slices, compartments, writes_in_place, writes_rows,
        a_grid_in_place,
    )
}  # fmt: skip
OTHER = {
    f.__name__: f
    for f in (
        arrays_of_each_step, a_second_loop_backwards, partly_stacked, writes_elements_of_a_matrix,
        writes_over_what_it_wrote, reads_earlier_versions, writes_columns_and_rows,
        writes_single_precision,
    )
}  # fmt: skip


def density_of(model, steps):
    return probdl.LogDensity.from_model(model, (RNG.normal(size=steps),))


@pytest.mark.parametrize("name", [*ROLLED, *OTHER])
@pytest.mark.parametrize("steps", [1, 5, 8, 33])
def test_value_and_gradient_are_those_of_the_model(name, steps):
    density = density_of((ROLLED | OTHER)[name], steps)
    compiled, _ = choose(density, "native", 0)
    assert compiled.engine == "native"
    points = torch.tensor(RNG.normal(size=(4, density.dim)))
    verify(compiled, density, points)


@pytest.mark.parametrize("name", ROLLED)
def test_more_steps_have_no_more_code(name):
    lengths = []
    for steps in (48, 96):
        density = density_of(ROLLED[name], steps)
        traced = trace(density, torch.full((density.dim,), 0.1, dtype=torch.float64))
        lengths.append(emit(traced.density, density.dim).statements)
    assert lengths[0] == lengths[1]


def test_the_code_of_a_sum_over_steps_is_linear_in_its_work():
    def model(y):
        x = normals("x", len(y))
        pyro.factor("f", sum(torch.sin(x[t]) * y[t] for t in range(len(y))))

    work = []
    for steps in (200, 400):
        density = density_of(model, steps)
        traced = trace(density, torch.full((density.dim,), 0.1, dtype=torch.float64))
        work.append(emit(traced.density, density.dim).work)
    assert work[1] <= 2 * max(work[0], 4096)


def test_the_time_limit_ends_tracing_and_writing():
    density = density_of(garch, 100)
    z = torch.full((density.dim,), 0.1, dtype=torch.float64)
    with clock(0.0), pytest.raises(TimeUp):
        trace(density, z)
    traced = trace(density, z)
    with clock(0.0), pytest.raises(TimeUp):
        emit(traced.density, density.dim)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([1, 2, 3], []),
        ([5] * 13, [Repeat(0, 1, 13)]),
        ([*range(9)] * 5, []),
        ([*range(9)] * 6, [Repeat(0, 9, 6)]),
        ([0, *[1, 2, 1, 3] * 6, 4], [Repeat(1, 4, 6)]),
        ([*[1, 2] * 9, 9, *[3] * 17], [Repeat(0, 2, 9), Repeat(19, 1, 17)]),
    ],
)
def test_repeats_of_a_sequence(items, expected):
    assert list(repeats(items)) == expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([4], ([], [4], 0)),
        ([4, 6], ([], [4], 2)),
        ([3, 5, 4], None),
        (["0.5"] * 4, ([], ["0.5"], 0)),
        (["0.5", "0.25"] * 4, ([], ["0.5", "0.25"], 0)),
        ([9, 9, *range(6)], ([9, 9], [0], 1)),
        ([0, 1, 2, 3] * 5 + [0, 1], ([], [0, 1, 2, 3], 0)),
        ([0, 1, 2, 3, 0, 1], None),
    ],
)
def test_rules_of_numbers(numbers, expected):
    assert rule_of(numbers) == expected


def test_many_kinds_of_steps_are_divided_into_few_loops():
    def model(y):
        states = [normals("a"), normals("b")]
        x = torch.tensor(0.0)
        for t in range(len(y)):
            x = torch.sin(x + states[t // 7 % 2] * y[t])
        pyro.factor("f", x)

    density = density_of(model, 700)
    compiled, _ = choose(density, "native", 0)
    verify(compiled, density, torch.tensor(RNG.normal(size=(3, density.dim))))


def test_a_chain_of_100_000_operations_is_checked():
    def model():
        x = z = pyro.sample("x", dist.Normal(0.0, 1.0))
        for _ in range(25_000):
            x = x + 1e-5 * torch.sin(z * x)
        pyro.factor("f", x)

    density = probdl.LogDensity.from_model(model)
    assert probe(density, torch.tensor([0.5], dtype=torch.float64)) == []


def long_garch_of_counts(y, mean, days):
    """Write a loop over an integer argument, with a mean of all data and a table of months."""
    a, b, month = normals("a"), normals("b"), normals("month", 12)
    rate, total = torch.tensor(1.0), torch.tensor(0.0)
    for t in range(1, days):
        rate = a.exp() + 0.3 * y[t - 1] / (1 + y.mean()) + torch.sigmoid(b) * rate
        total = total + dist.Poisson(rate * (month[t % 4] / days).exp()).log_prob(y[t]) + mean[t]
    pyro.factor("f", total)


def long_regression_with_matrices(y, x, distances):
    slopes, drift = normals("slopes", 3), normals("drift")
    sd, level, levels = normals("sd").exp(), torch.tensor(0.0), []
    for t in range(len(y)):
        level = drift * level + x[t] @ slopes + distances[t, 0].sin()
        levels.append(level)
    with pyro.plate("t", len(y)):
        pyro.sample("y", dist.StudentT(4.0, torch.stack(levels), sd), obs=y)


def long_steps_with_sites(y):
    x, step = normals("start"), pyro.sample("step", dist.HalfNormal(1.0))
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x{t}", dist.Normal(0.9 * x, step))
        pyro.sample(f"y{t}", dist.Normal(x, 0.5), obs=y[t])


def long_steps_of_a_hundredth(y):
    """Integrate in steps of 10 / n, which is another number of the model if n = 1000."""
    rate, size = normals("rate"), 10.0 / len(y)
    x, found = torch.tensor(1.0), []
    for _ in range(len(y)):
        x = (x - size * (rate * x - 0.01)).clamp(-math.inf, 9.0)
        found.append(x)
    with pyro.plate("t", len(y)):
        pyro.sample("y", dist.Normal(0.01 * torch.stack(found), 1.0), obs=y)


LONG = {
    "a hundredth": (long_steps_of_a_hundredth, 1000, lambda n: (RNG.normal(size=n),)),
    "garch": (garch, 1000, lambda n: (RNG.normal(size=n),)),
    "counts": (
        long_garch_of_counts,
        603,
        lambda n: (RNG.poisson(3.0, n).astype(float), RNG.normal(size=n), n),
    ),
    "matrices": (
        long_regression_with_matrices,
        1400,
        lambda n: (RNG.normal(size=n), RNG.normal(size=(n, 3)), RNG.normal(size=(n, 2))),
    ),
    "sites": (long_steps_with_sites, 800, lambda n: (RNG.normal(size=n),)),
    **{
        f.__name__: (f, 1400, lambda n: (RNG.normal(size=n),))
        for f in (
            local_level, matrix_of_latent_values, forward, kalman_filter, two_branches, lags,
            recurrent_network, extremes, empty_slices, overlapping_slices, writes_in_place,
            writes_rows, a_grid_in_place,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_the_code_of_a_long_series_is_made_from_its_first_steps(name):
    model, steps, data = LONG[name]
    density = probdl.LogDensity.from_model(model, data(steps))
    for series in of_first_steps(density):
        arrays = series.prepared.arrays(series.density.program.tensors())
        compiled = NativeDensity(series.source, series.density.dim, arrays, 1)
        points = torch.tensor(0.5 * RNG.normal(size=(3, series.density.dim)))
        verify(compiled, series.density, points)


def test_code_made_from_first_steps_is_used_and_reused_for_other_data(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("all steps are traced")

    def model(y):
        garch(y)

    monkeypatch.setattr("probdl.compile.engine.trace", refused)
    for seed in (1, 2):
        y = np.random.default_rng(seed).normal(size=1000)
        density = probdl.LogDensity.from_model(model, (y,))
        compiled, findings = choose(density, "native", 0)
        assert compiled.engine == "native"
        assert not findings
        verify(compiled, density, torch.tensor(RNG.normal(size=(3, density.dim))))


def test_a_later_step_that_branches_on_the_data_is_noticed_for_other_data():
    def model(y):
        step_of_another_kind(y, lambda t: t == 900 and y[t] <= 0)

    y = RNG.normal(size=1000)
    for sign in (1.0, -1.0):
        y[900] = sign
        density = probdl.LogDensity.from_model(model, (y.copy(),))
        compiled, _ = choose(density, "native", 0, trusted=True)
        verify(compiled, density, torch.tensor(RNG.normal(size=(3, density.dim))))


def test_a_model_that_fails_at_some_points_runs():
    def model(y):
        a, x, total = normals("a"), torch.tensor(0.0), torch.tensor(0.0)
        if a.item() == 0.0:
            raise ValueError("zero")
        for t in range(len(y)):
            x = torch.tanh(a * x + y[t])
            total = total + x * x
        pyro.factor("f", total)

    _, findings = choose(density_of(model, 700), "auto", 0)
    assert [finding.check for finding in findings] == ["engine"]


def step_of_another_kind(y, is_other):
    a, x, total = normals("a"), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = torch.cos(a * x + y[t]) if is_other(t) else torch.tanh(a * x + y[t])
        total = total + x * x + 0.1 * x
    pyro.factor("f", total)


def later_step_of_another_kind(y):
    step_of_another_kind(y, lambda t: t == 900)


def later_steps_with_another_number(y):
    a, x, total = normals("a"), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = torch.tanh(a * x + y[t])
        total = total + x * x * (0.1 if t < 600 else 0.2)
    pyro.factor("f", total)


def steps_that_read_the_clock(y):
    a, x, total = normals("a"), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = torch.tanh(a * x + y[t] * math.sin(2 * math.pi * t / 52))
        total = total + x * x
    pyro.factor("f", total)


def steps_that_skip_outliers(y):
    a, x, total = normals("a"), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = torch.tanh(a * x + y[t]) if abs(y[t]) < 3.0 else torch.tanh(a * x)
        total = total + x * x
    pyro.factor("f", total)


def number_of_parts(y):
    """Write a loop over a number of steps that is the square root of the length."""
    a, x, total = normals("a"), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(20 * math.isqrt(len(y))):
        x = torch.tanh(a * x + y[t % 7])
        total = total + x * x
    pyro.factor("f", total)


def later_steps_at_another_place(y):
    """Write steps that take another element, where what is compared may be equal."""
    a, x, total = normals("a", 2), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = 0.5 * x + torch.relu(a[0] if t < 900 else a[1])
        total = total - 0.5 * (x - y[t]) ** 2
    pyro.factor("f", total)


def later_steps_with_another_site(y):
    a, b, x, total = normals("a"), normals("b"), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = 0.5 * x + torch.relu(a if t < 900 else b)
        total = total - 0.5 * (x - y[t]) ** 2
    pyro.factor("f", total)


def a_later_step_with_another_value_of_a_site(y):
    a = normals("a")
    levels, x, total = (a.exp(), (-a).exp()), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = 0.5 * x + torch.relu(levels[t == 950] - 1.0)
        total = total - 0.5 * (x - y[t]) ** 2
    pyro.factor("f", total)


def hidden(x):
    """A function that is zero where it is compared."""
    return torch.relu(x - 4.0)


def steps_with_knots(y, element):
    """Write steps that take elements of a vector of some length, which is no series."""
    a, x, total = normals("a", 30), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = 0.5 * x + hidden(element(a, t)) + y[t]
        total = total - 0.5 * x**2
    pyro.factor("f", total)


def later_steps_at_another_knot(y):
    steps_with_knots(y, lambda a, t: a[t // 400])


def rare_later_steps_at_another_knot(y):
    steps_with_knots(y, lambda a, t: a[29] if t in (500, 613) else a[0])


def later_steps_with_another_part(y):
    steps_with_knots(y, lambda a, t: (a[:2] if t < 900 else a[2:4]).sum())


def rare_later_steps_with_another_site(y):
    a, b = normals("a"), normals("b")
    x, total = torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = torch.tanh(a) * x + 0.1 * y[t]
        total = total + hidden(b if t in (500, 613, 777) else x)
    pyro.factor("f", total)


def later_steps_with_another_part_of_a_few(y):
    a, x, total = normals("a", 3), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = 0.5 * x + hidden((a[:2] if t < 900 else a[1:]).sum()) + y[t]
        total = total - 0.5 * x**2
    pyro.factor("f", total)


@pytest.mark.parametrize(
    "model",
    [
        later_steps_at_another_knot,
        rare_later_steps_at_another_knot,
        later_steps_with_another_part,
        later_steps_with_another_part_of_a_few,
        rare_later_steps_with_another_site,
        later_steps_at_another_place,
        later_steps_with_another_site,
        a_later_step_with_another_value_of_a_site,
        later_step_of_another_kind,
        later_steps_with_another_number,
        steps_that_read_the_clock,
        steps_that_skip_outliers,
        number_of_parts,
        a_second_loop_backwards,
    ],
)
def test_later_steps_of_another_kind_are_traced(model):
    density = density_of(model, 1000)
    for seed in range(4):
        assert engine._of_first_steps(density, seed, 1) is None
    compiled, findings = choose(density, "native", 0)
    assert not findings
    verify(compiled, density, torch.tensor(RNG.normal(size=(3, density.dim), scale=5.0)))


def test_a_gradient_that_a_later_step_cuts_is_an_error():
    def model(y):
        a, x, total = normals("a"), torch.tensor(0.0), torch.tensor(0.0)
        for t in range(len(y)):
            x = torch.tanh(a * x + y[t])
            x = x.detach() if t > 500 else x.clone()
            total = total + x * x
        pyro.factor("f", total)

    with pytest.raises(probdl.ModelError, match="The gradient of the log density"):
        choose(density_of(model, 1000), "auto", 0)


def test_a_random_later_step_is_an_error():
    def model(y):
        a, x, total = normals("a"), torch.tensor(0.0), torch.tensor(0.0)
        for t in range(len(y)):
            x = torch.tanh(a * x + y[t] + (torch.randn(()) if t == 900 else torch.ones(())))
            total = total + x * x
        pyro.factor("f", total)

    with pytest.raises(probdl.ModelError, match="is random"):
        choose(density_of(model, 1000), "auto", 0)


def late_floor(y):
    a = normals("a")
    low = -10.0 if len(y) < 300 else 0.5
    pyro.factor("f", sum_of_steps(y, a) + torch.where(a > low, 0.0, -math.inf))


def late_bound(y):
    a, x, total = normals("a"), torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        bound = 6.0 if t < 300 else 3.0
        x = (a * torch.tanh(x) + y[t].clamp(-0.5, 0.5)).clamp(max=bound)
        total = total - 0.5 * (x - y[t]) ** 2
    pyro.factor("f", total)


def late_scale(y):
    m, level, total = normals("m"), torch.tensor(0.0), torch.tensor(0.0)
    with pyro.plate("t", len(y)):
        e = pyro.sample("e", dist.Normal(0.0, 1.0))
    for t in range(len(y)):
        scale = 1.0 if t < 300 else 0.2
        level = 0.9 * level + e[t]
        total = total - 0.5 * (e[t] / scale) ** 2 - 0.5 * ((y[t] + 1e5 - m - level) / 0.1) ** 2
    pyro.factor("f", total)


def late_effect(y):
    a, b, promotion = normals("a"), normals("b"), torch.zeros(len(y))
    effects = [b * promotion[t] * (1.0 if t < 300 else 2.0) for t in range(len(y))]
    pyro.factor("f", sum_of_steps(y, a, effects))


def work_space_of_an_array_that_grows(y):
    """Place an array of constant size before one that is smaller for few steps."""
    u, v = normals("u", 60, 4), normals("v")
    fixed = u @ torch.ones(4, 80)
    scale = (fixed @ torch.ones(80, 3)).sum() * 1e-5
    total = sum_of_steps(y, v)
    growing = torch.cumsum(y[:, None] * scale * torch.arange(1.0, 21.0), 0)
    pyro.factor("f", total + torch.cumsum(growing, 0).mean() - v * v)


def array_of_constant_size(y):
    held, a = torch.linspace(0.0, 1.0, 300), normals("a")
    effects = [held[min(t, 299)] for t in range(len(y))]
    pyro.factor("f", sum_of_steps(y, a, effects) + (held[: min(len(y), 300)] * a.sin()).sum())


def sum_of_steps(y, a, effects=None):
    x, total = torch.tensor(0.0), torch.tensor(0.0)
    for t in range(len(y)):
        x = torch.tanh(a * x + y[t])
        total = total - 0.5 * (x - y[t] - (effects[t] if effects else 0.0)) ** 2
    return total


@pytest.mark.parametrize(
    "model",
    [
        late_floor, late_bound, late_scale, late_effect, work_space_of_an_array_that_grows,
        array_of_constant_size,
    ],
)  # fmt: skip
def test_what_later_steps_change_is_right(model):
    density = density_of(model, 800)
    compiled, _ = choose(density, "auto", 0)
    points = torch.tensor(4 * RNG.normal(size=(20, density.dim)))
    for point in points:
        value, grad = density.value_and_grad(point)
        found, found_grad = compiled.value_and_grad(point)
        if torch.isfinite(value):
            torch.testing.assert_close((found, found_grad), (value, grad), rtol=1e-9, atol=1e-7)
        else:
            assert not torch.isfinite(found)


def test_numbers_of_long_series():
    assert lengthened_number([7, 7, 7], [3, 4, 6], 100) == 7
    assert lengthened_number([1, 2, 3], [12, 24, 36], 120) == 10
    assert lengthened_number([0.1 / 3, 0.1 / 4, 0.1 / 6], [3, 4, 6], 100) == pytest.approx(0.001)
    assert lengthened_number([0.3, 0.4, 0.6], [3, 4, 6], 100) == pytest.approx(10.0)
    for numbers in ([9, 16, 36], [0.5, 0.6, 0.9], [1, 1.0, 2]):
        with pytest.raises(NotAffineError):
            lengthened_number(numbers, [3, 4, 6], 100)
    with pytest.raises(NotAffineError):  # 100 is not a multiple of 12
        lengthened_number([1, 2, 3], [12, 24, 36], 100)
