"""Matrices that BLAS and LAPACK compute: value and gradient in C and in torch."""

import math
import threading

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.compile import choose
from probdl.compile.codegen import own
from probdl.compile.codegen.emit import emit
from probdl.compile.codegen.operations import matrices
from probdl.compile.runtime import library
from probdl.compile.runtime.lapack import lapack
from probdl.compile.runtime.native_density import NativeDensity
from probdl.compile.tracing.cholesky import MIN_SIZE
from probdl.compile.tracing.trace import trace
from probdl.compile.verify import verify
from probdl.util import blas

RNG = np.random.default_rng(0)
SIZES = [16, 24, 25, 31, 32, 33, 49, 50, 100, 130]  # around all limits, odd halves included


def spd(x, n):
    """Return a positive definite matrix (n, n) that depends on x (4,)."""
    at = torch.linspace(0, 1, n, dtype=torch.float64)
    waves = torch.stack([torch.sin(3 * at + x[i]) for i in range(3)])
    return waves.T @ waves + torch.diag(1 + x[3] ** 2 + at)


def density_of(function):
    """Return the density of weighted elements of a function of x (4,), and five points."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        value = function(x)
        weights = torch.linspace(-1, 1, value.numel(), dtype=torch.float64).reshape(value.shape)
        pyro.factor("f", (weights * value).sum())

    density = probdl.LogDensity.from_model(model)
    return density, torch.tensor(RNG.normal(size=(5, 4)))


def large(x, rows, columns):
    """Return a matrix (rows, columns) that depends on x (4,)."""
    grid = torch.linspace(-1, 1, rows * columns, dtype=torch.float64).reshape(rows, columns)
    return torch.tanh(grid * x[0] + x[1]) + grid**2 * x[2] + x[3]


FUNCTIONS = {
    **{f"factor of {n}": lambda x, n=n: torch.linalg.cholesky(spd(x, n)) for n in SIZES},
    "upper factor": lambda x: torch.linalg.cholesky(spd(x, 40)).mT.contiguous(),
    "factor of a transposed matrix": lambda x: torch.linalg.cholesky(spd(x, 40).mT),
    "factors of a batch": lambda x: torch.linalg.cholesky(
        torch.stack([spd(x, 35), spd(x * 0.5, 35)])
    ),
    "a batch of equal matrices": lambda x: torch.linalg.cholesky(spd(x, 35).expand(3, 35, 35)),
    "with an option": lambda x: torch.linalg.cholesky(spd(x, 33), upper=False),
    "with an error code": lambda x: torch.linalg.cholesky_ex(spd(x, 33)).L,
    "used twice": lambda x: (lambda f: f @ f.mT + f)(torch.linalg.cholesky(spd(x, 40))),
    "solve a vector": lambda x: torch.linalg.solve_triangular(
        torch.linalg.cholesky(spd(x, 40)), large(x, 40, 1), upper=False
    ),
    "solve a matrix": lambda x: torch.linalg.solve_triangular(
        torch.linalg.cholesky(spd(x, 40)), large(x, 40, 7), upper=False
    ),
    "solve with the transpose": lambda x: torch.linalg.solve_triangular(
        torch.linalg.cholesky(spd(x, 40)).mT, large(x, 40, 7), upper=True
    ),
    "solve from the right": lambda x: torch.linalg.solve_triangular(
        torch.linalg.cholesky(spd(x, 40)), large(x, 7, 40), upper=False, left=False
    ),
    "solve from the right with the transpose": lambda x: torch.linalg.solve_triangular(
        torch.linalg.cholesky(spd(x, 40)).mT, large(x, 7, 40), upper=True, left=False
    ),
    "solve with a unit diagonal": lambda x: torch.linalg.solve_triangular(
        spd(x, 40) / 40, large(x, 40, 3), upper=True, unitriangular=True
    ),
    "solve many with one factor": lambda x: torch.linalg.solve_triangular(
        torch.linalg.cholesky(spd(x, 40)), large(x, 120, 3).reshape(3, 40, 3), upper=False
    ),
    "cholesky solve": lambda x: torch.cholesky_solve(
        large(x, 40, 2), torch.linalg.cholesky(spd(x, 40))
    ),
    "inverse": lambda x: torch.cholesky_inverse(torch.linalg.cholesky(spd(x, 40))),
    "triangles": lambda x: large(x, 40, 30).tril(3) - large(x, 40, 30).triu(-5),
    "far triangles": lambda x: large(x, 6, 9).tril(-20) + large(x, 6, 9).triu(-20),
    "product": lambda x: large(x, 50, 40) @ large(x, 40, 45),
    "product of transposes": lambda x: large(x, 40, 50).T @ large(x, 45, 40).T,
    "product with itself": lambda x: large(x, 60, 40) @ large(x, 60, 40).T,
    "product of slices": lambda x: large(x, 90, 80)[::2, 5:55] @ large(x, 60, 90)[3:53, ::2],
    "product of a column that is repeated": lambda x: (
        large(x, 50, 1).expand(50, 45) @ large(x, 45, 40)
    ),
    "products of a batch": lambda x: (
        large(x, 150, 45).reshape(3, 50, 45) @ large(x, 135, 40).reshape(3, 45, 40)
    ),
    "product with one matrix": lambda x: large(x, 150, 45).reshape(3, 50, 45) @ large(x, 45, 40),
    "multivariate normal": lambda x: dist.MultivariateNormal(
        torch.zeros(60), covariance_matrix=spd(x, 60)
    ).log_prob(large(x, 60, 1)[:, 0]),
    "by a precision matrix": lambda x: dist.MultivariateNormal(
        torch.zeros(40), precision_matrix=spd(x, 40)
    ).log_prob(large(x, 40, 1)[:, 0]),
    "low-rank normal": lambda x: dist.LowRankMultivariateNormal(
        torch.zeros(60), large(x, 60, 3), 1 + large(x, 60, 1)[:, 0] ** 2
    ).log_prob(large(x, 60, 1)[:, 0]),
    "an identity of 300": lambda x: (torch.eye(300) * x[0]).sum(0)[:5],
    "an identity that is not square": lambda x: torch.eye(300, 280)[:, :4] @ x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_gradient_agree_with_torch(name):
    density, points = density_of(FUNCTIONS[name])
    compiled, _ = choose(density, "native", 0)
    assert compiled.engine == "native"
    assert verify(compiled, density, points) < 1e-9


def test_the_gradient_of_a_factor_is_that_of_torch():
    for shape in ((5, 5), (2, 7, 7)):
        matrix = torch.tensor(RNG.normal(size=shape))
        matrix = (matrix @ matrix.mT + torch.eye(shape[-1])).requires_grad_()
        factor = torch.linalg.cholesky(matrix)
        given = torch.tensor(RNG.normal(size=shape))
        (expected,) = torch.autograd.grad(factor, matrix, given)
        torch.testing.assert_close(own.cholesky_backward(factor.detach(), given), expected)


def source_of(function):
    density, points = density_of(function)
    return emit(trace(density, points[0]).density, 4)


def test_small_matrices_stay_loops():
    small = source_of(lambda x: torch.linalg.cholesky(spd(x, MIN_SIZE - 1)))
    assert not small.uses_lapack
    assert "use_lapack" not in small.text
    factor = source_of(lambda x: torch.linalg.cholesky(spd(x, matrices.MIN_FACTOR)))
    assert factor.uses_lapack
    assert "cholesky_gradient(" in factor.text.partition("static void part0")[2]


def gaussian_process(x, y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    distance = (x[:, None] - x) / scale
    cov = torch.exp(-0.5 * distance**2) + noise * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=cov), obs=y)


def test_a_matrix_that_is_not_positive_definite_has_density_zero():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        cov = torch.eye(50) + x * torch.ones(50, 50)  # indefinite for x < -1/50
        pyro.sample(
            "y", dist.MultivariateNormal(torch.zeros(50), covariance_matrix=cov), obs=torch.ones(50)
        )

    density = probdl.LogDensity.from_model(model)
    traced = trace(density, torch.tensor([0.5], dtype=torch.float64))
    compiled = NativeDensity(emit(traced.density, 1), 1, traced.arrays([]), 1)
    assert torch.isfinite(compiled.value_and_grad(torch.tensor([0.5]))[0])
    assert compiled.value_and_grad(torch.tensor([-0.5]))[0] == -math.inf


def test_threads_share_a_density_with_large_matrices():
    x = np.linspace(0, 5, 150)
    density = probdl.LogDensity.from_model(gaussian_process, (x, np.sin(x)))
    compiled, _ = choose(density, "native", 0, threads=4)
    points = [torch.tensor([0.1 * i, -1.0], dtype=torch.float64) for i in range(8)]
    expected = [compiled.value_and_grad(point)[1] for point in points]
    found = {}

    def work(i):
        found[i] = [compiled.value_and_grad(points[i])[1] for _ in range(30)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, grads in found.items():
        assert all(torch.equal(grad, expected[i]) for grad in grads)


def test_a_gaussian_process_of_300_points_is_fitted():
    x = np.linspace(0, 10, 300)
    y = np.sin(x) + 0.3 * RNG.normal(size=300)
    fit = probdl.infer(gaussian_process, x, y, method="laplace", seed=1)
    assert fit.stats["engine"] == "native"
    assert fit.draws["noise"].mean() == pytest.approx(0.09, abs=0.03)  # 4 standard errors


def test_without_the_functions_of_scipy_another_engine_is_used(monkeypatch, tmp_path):
    def missing():
        raise ImportError("scipy.linalg.cython_blas does not export dgemm")

    monkeypatch.setenv("PROBDL_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "lapack", missing)
    x = np.linspace(0, 5, 60)
    density = probdl.LogDensity.from_model(gaussian_process, (x, np.sin(x)))
    evaluator, findings = choose(density, "auto", 0)
    assert evaluator.engine != "native"
    assert "does not export dgemm" in findings[-1].message


@pytest.mark.parametrize("kernels", ["Haswell", "SkylakeX"])
def test_the_doctor_says_if_blas_does_not_use_the_processor(monkeypatch, kernels):
    found = [
        {"user_api": "blas", "internal_api": "openblas", "version": "0.3", "architecture": kernels}
        | {"filepath": f"site-packages/{of}.libs/libscipy_openblas.so"}
        for of in ("scipy", "numpy")
    ]

    class Libraries:
        def info(self):
            return found

    monkeypatch.setattr(blas, "ThreadpoolController", Libraries)
    monkeypatch.setattr(blas, "_has_avx512", lambda: True)
    blas._libraries.cache_clear()
    text = blas.blas_kernels()
    blas._libraries.cache_clear()
    assert f"kernels for {kernels}" in text
    assert ("OPENBLAS_CORETYPE" in text) == (kernels == "Haswell")


def test_the_addresses_are_those_of_scipy():
    table = lapack()
    assert all(getattr(table, name) for name, _ in table._fields_)


def test_a_covariance_that_decays_to_nothing_agrees_with_torch_and_leaves_small_numbers():
    x = torch.linspace(0, 10, 120, dtype=torch.float64)

    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        cov = torch.exp(-0.5 * ((x[:, None] - x) / scale) ** 2) + 0.1 * torch.eye(120)
        zero = torch.zeros(120, dtype=torch.float64)
        pyro.sample("y", dist.MultivariateNormal(zero, cov), obs=torch.sin(x))

    density = probdl.LogDensity.from_model(model)
    compiled, _ = choose(density, "native", 0)
    for log_scale in (-2.0, -1.5, 0.0):  # entries below 2.2e-308 in the first two
        z = torch.tensor([log_scale], dtype=torch.float64)
        value, gradient = density.value_and_grad(z)
        found = compiled.value_and_grad(z)
        np.testing.assert_allclose(found[0], value, rtol=1e-10)
        np.testing.assert_allclose(found[1], gradient, rtol=1e-8)
    assert (np.full(8, 1e-308) * 0.5 > 0).all()  # still numbers for the caller


def test_a_large_factor_of_correlations_agrees_with_the_model():
    density = probdl.LogDensity.from_model(lambda: pyro.sample("factor", dist.LKJCholesky(40, 2.0)))
    choose(density, "native", 0)  # raises where the two disagree
