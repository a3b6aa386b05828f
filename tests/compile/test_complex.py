"""Complex numbers and Fourier transforms, which torch computes in calls from C code."""

import collections
import os
import signal
import threading

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import complex as pair
from torch import fft, linalg

import probdl
from probdl.compile import choose
from probdl.compile.verify import verify
from tests.compile.test_operations import MASK, MATRIX, WIDE, evaluate, spd

OPERATOR = pair(MATRIX[:6], MATRIX[1:])
CONJUGATE = pair(MATRIX[0], MATRIX[1]).conj()


def hermitian(x):
    """Return a positive definite Hermitian matrix (6, 6) that depends on x."""
    turned = torch.outer(x, x.flip(0))
    return pair(spd(x), turned - turned.T) + 9 * torch.eye(6)


def written(x):
    """Return the squared moduli of what is written to a part of a complex tensor."""
    z = torch.zeros(6, dtype=torch.complex128)
    z[1:3] = pair(x[:2], x[1:3])
    return z.abs() ** 2


# Functions of x (6,) to a real tensor.
FUNCTIONS = {
    "periodogram": lambda x: fft.rfft(x).abs() ** 2,
    "convolution": lambda x: fft.irfft(fft.rfft(x, 12) * fft.rfft(MATRIX[0], 12), 12),
    "phases": lambda x: fft.irfft(fft.rfft(x) * torch.exp(1j * x[:4]), 6),
    "Hermitian transforms": lambda x: fft.hfft(pair(x, x)).sum() + fft.ihfft(x).imag,
    "two dimensions": lambda x: fft.fft2(torch.outer(x, x)).real,
    "several dimensions": lambda x: torch.view_as_real(fft.rfftn(torch.outer(x, x[:3]))),
    "shifted": lambda x: fft.fftshift(fft.fft(x)).imag,
    "short time": lambda x: torch.stft(
        x.repeat(4), 8, 4, window=torch.ones(8, dtype=x.dtype), return_complex=True
    ).abs(),
    "polar": lambda x: torch.polar(x.abs(), x * 2).imag + torch.angle(pair(x, 1 + x**2)),
    "conjugates": lambda x: (pair(x, x**2).conj() * pair(x, x**3)).imag,
    "conjugates of conjugates": lambda x: torch.stack([pair(x, x), pair(x, x).conj()]).prod(0).real,
    "constants": lambda x: ((pair(x, x) @ OPERATOR) * CONJUGATE).real * CONJUGATE.imag,
    "numbers": lambda x: (pair(x, x) * (2 + 1j) / 3 - 1j).abs(),
    "elementary functions": lambda x: (
        (pair(x, x**2).exp() + pair(x, x).sqrt().log().tanh() + pair(x, x).sin() ** 3).real
    ),
    "powers": lambda x: ((x + 2j) ** 1.5).imag + torch.sgn(pair(x, x + 1)).real,
    "running sums": lambda x: pair(x, x**2).cumsum(0).cumprod(0).abs(),
    "means": lambda x: pair(x, x**2).mean().abs() + pair(x, x).real.std(),
    "elements": lambda x: (
        pair(x, x**2)[[0, 2, 2]].abs().sum() * torch.where(MASK, pair(x, x), 1j * x).imag
    ),
    "writes": written,
    "products": lambda x: (pair(spd(x), spd(x)).mH @ OPERATOR).abs(),
    "sums of products": lambda x: torch.einsum("i,ij->j", pair(x, x**2), OPERATOR).real,
    "systems": lambda x: linalg.solve(hermitian(x), pair(x, x)).real,
    "factors": lambda x: linalg.cholesky(hermitian(x)).abs(),
    "systems by factors": lambda x: (
        torch.cholesky_solve(OPERATOR[:, :2], linalg.cholesky(hermitian(x))).real
    ),
    "inverses by factors": lambda x: torch.cholesky_inverse(linalg.cholesky(hermitian(x))).imag,
    "determinants": lambda x: linalg.det(pair(x[:4].reshape(2, 2), x[2:].reshape(2, 2))).real,
    "Hermitian eigenvalues": lambda x: linalg.eigvalsh(hermitian(x)),
    "eigenvalues": lambda x: linalg.eigvals(x[:4].reshape(2, 2) + 3 * MATRIX[:2, :2]).abs(),
    "evolution": lambda x: (linalg.matrix_exp(0.3j * spd(x)) @ pair(x, x)).abs() ** 2,
    "singular values": lambda x: linalg.svdvals(pair(torch.outer(x[:3], x), WIDE[:3, :6] + x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_gradient_agree_with_torch(name):
    density, points = evaluate(FUNCTIONS[name])
    compiled, findings = choose(density, "native", 0)
    assert not findings
    assert verify(compiled, density, points) < 1e-10


def test_the_spectrum_of_an_autoregression_gives_its_coefficient():
    rng = np.random.default_rng(0)
    y = np.zeros(600)
    for t in range(1, 600):
        y[t] = 0.7 * y[t - 1] + rng.normal()

    def whittle(y):
        a = pyro.sample("a", dist.Uniform(-1.0, 1.0))
        periodogram = torch.fft.rfft(y)[1:-1].abs() ** 2 / len(y)
        angle = 2 * np.pi * torch.arange(1, len(periodogram) + 1) / len(y)
        pyro.sample(
            "I", dist.Exponential(1 - 2 * a * angle.cos() + a**2).to_event(1), obs=periodogram
        )

    fit = probdl.infer(whittle, y, method=probdl.NUTS(draws=500, chains=2), seed=1, progress=False)
    assert fit.stats["engine"] == "native"
    a = fit.draws["a"]
    least_squares = y[1:] @ y[:-1] / (y[:-1] @ y[:-1])
    assert a.mean() == pytest.approx(least_squares, abs=0.02)
    assert a.std() == pytest.approx(((1 - 0.7**2) / 600) ** 0.5, rel=0.2)


def test_writes_that_the_graph_cannot_run_are_run_by_the_model():
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        out = torch.zeros(9, 2, 3)[:, 1]
        for t in range(9):
            out = torch.select_scatter(out, x.to(out.dtype), 0, t)
            out[t] = x * 2
        pyro.sample("y", dist.Normal(out.sum(), 1.0), obs=y)

    density = probdl.LogDensity.from_model(model, (torch.tensor(1.0),))
    evaluator, findings = choose(density, "auto", 0)
    assert evaluator.engine == "eager"
    assert [f.check for f in findings] == ["engine"]


def test_writes_that_torch_cannot_follow_are_a_reason_for_the_slow_engine():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z = torch.zeros(6, dtype=torch.complex128)
        z[1:3] = torch.complex(x, x)
        z.real[4] = x[0]
        pyro.factor("f", -z.abs().sum())

    density = probdl.LogDensity.from_model(model)
    evaluator, findings = choose(density, "auto", 0)
    assert evaluator.engine == "eager"
    (finding,) = findings
    assert "writes to views" in finding.message
    assert "torch.stack" in finding.remedy


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x**2)[(x[:1].abs() * 2).long()],
        lambda x: x.gather(0, (x[:1].abs() * 2).long()) ** 2,
        lambda x: torch.zeros(6, dtype=x.dtype).index_put(((x[:1].abs() * 2).long(),), x[1:2]),
        lambda x: torch.zeros(6, dtype=x.dtype).scatter(0, (x[:1].abs() * 2).long(), x[1:2]),
        lambda x: pair(x, x**2)[(x[:1].abs() * 2).long()].abs(),
    ],
    ids=["index", "gather", "index_put", "scatter", "by torch"],
)
def test_the_density_is_not_finite_where_an_index_is_out_of_range(function):
    density, points = evaluate(lambda x: function(x).sum() + x)
    compiled, _ = choose(density, "native", 0)
    inside = points.clone()
    inside[:, 0] = torch.tensor([0.1, -1.3, 2.9, 0.7])
    assert verify(compiled, density, inside, finite=True) < 1e-10
    for first in (3.0, -4.0, 1e6, 1e300):
        point = inside[0].clone()
        point[0] = first
        with pytest.raises(probdl.ModelError, match="out of bounds"):
            density(point)
        value, grad = compiled.value_and_grad(point)
        assert torch.isnan(value) or not torch.isfinite(grad).all()


def test_ctrl_c_while_torch_computes_reaches_the_user(interruptible):
    n = 60
    constant = pair(torch.eye(n, dtype=torch.float64), torch.ones(n, n, dtype=torch.float64))
    density, points = evaluate(lambda x: linalg.eigvals(constant * x[0] + x[1]).abs().sum() + x)
    compiled, _ = choose(density, "native", 0)
    expected = compiled.value_and_grad(points[0])
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        collections.deque(map(compiled.value_and_grad, points[0].expand(10**5, -1)), maxlen=0)
    again = compiled.value_and_grad(points[0])
    for before, after in zip(expected, again, strict=True):
        torch.testing.assert_close(before, after)
