"""Value and gradient of functions of each operation, in C and in torch."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import probdl
from probdl.compile import choose
from probdl.compile.codegen import operations
from probdl.compile.codegen.emit import emit
from probdl.compile.codegen.own import cholesky_backward
from probdl.compile.runtime.native_density import NativeDensity
from probdl.compile.tracing.trace import trace
from probdl.compile.verify import verify

RNG = np.random.default_rng(0)
MATRIX = torch.tensor(RNG.normal(size=(7, 6)))
WIDE = torch.tensor(RNG.normal(size=(6, 40)))
INDEX = torch.tensor([0, 2, 5, 2, -1])
MASK = torch.tensor([True, False, True, True, False, False])


def spd(x):
    """Return a positive definite matrix (6, 6) that depends on x."""
    return torch.outer(x, x) + torch.diag(1 + x**2)


# Functions of x (6,) to a tensor, whose elements are then weighted and summed.
FUNCTIONS = {
    "arithmetic": lambda x: (x + 2) * x / (1 + x**2) - 3 - (1 - x) + 2 / (3 + x.square()),
    "scaled sums": lambda x: torch.add(x, x * 2, alpha=3) - torch.sub(x, 1, alpha=2),
    "powers": lambda x: torch.stack([x**2, x**3, (1 + x**2) ** 0.5, (2 + x**2) ** -1.5, 2.0**x]),
    "power of two tensors": lambda x: (1 + x**2) ** (x / 3),
    "exponentials": lambda x: x.exp() + x.expm1() + (1 + x**2).log() + (x**2).log1p() + x.exp2(),
    "other logarithms": lambda x: (1 + x**2).log2() + (1 + x**2).log10(),
    "trigonometry": lambda x: x.sin() + x.cos() + (x / 4).tan() + torch.atan2(x, 1 + x**2),
    "inverse trigonometry": lambda x: (x / 4).asin() + (x / 4).acos() + x.atan(),
    "hyperbolic": lambda x: x.sinh() + x.cosh() + x.tanh() + x.asinh() + (x / 4).atanh(),
    "error functions": lambda x: x.erf() + x.erfc(),
    "gamma functions": lambda x: torch.lgamma(1 + x**2) + torch.lgamma(x * 1.01 + 0.123),
    "beta function": lambda x: torch.distributions.Beta(1 + x**2, 2.0).log_prob(torch.tensor(0.3)),
    "rounding": lambda x: (3 * x).floor() * x + (3 * x).ceil() * x + (3 * x).trunc() * x,
    "signs": lambda x: x.abs() + x.sign() * x**2,
    "comparisons": lambda x: torch.where((x > 0) & (x <= 1), x**2, torch.where(x < -1, x, x**3)),
    "logic": lambda x: torch.where(~(x > 0) | (x.abs() > 1.5) ^ (x > 1), x, x**2),
    "limits": lambda x: x.clamp(-1, 1) + x.clamp(min=0.5) * x + torch.maximum(x, x**2),
    "masked": lambda x: (x**2).masked_fill(MASK, 3.0) + torch.where(MASK, x, 0.0),
    "sigmoids": lambda x: torch.sigmoid(x) + F.logsigmoid(x) + F.softplus(x) + F.silu(x),
    "activations": lambda x: F.relu(x) + F.elu(x) + F.gelu(x) + F.leaky_relu(x) + F.hardtanh(x),
    "entropy": lambda x: torch.xlogy(x**2, x**2) + torch.special.entr(x**2),
    "remainder": lambda x: torch.remainder(x, 0.7) * x,
    "rsqrt": lambda x: torch.rsqrt(1 + x**2) + torch.reciprocal(2 + x**2),
    # shapes
    "views": lambda x: x.reshape(2, 3).T[1:, :] + x.view(3, 2)[:2] * x[::3],
    "broadcasting": lambda x: x[:, None] * x + x[:3, None, None],
    "flip and roll": lambda x: x.flip(0) * x + x.roll(2) * x**2,
    "cat and stack": lambda x: torch.cat([x, x[1:] ** 2]).sum() * torch.stack([x, x.exp()], 1),
    "pad": lambda x: F.pad(x, (1, 2), value=0.5) * torch.arange(9.0) + F.pad(x, (-1, 4)) * 2,
    "split": lambda x: torch.prod(torch.stack(x.split(2)), 0) + torch.stack(x.unbind()[:2]),
    "triangles": lambda x: torch.tril(torch.outer(x, x)) + torch.triu(torch.outer(x, x), 2),
    "diagonals": lambda x: torch.diag(x).sum(0) * x + torch.diagonal(torch.outer(x, x), 1).sum(),
    "repeat": lambda x: x.repeat(2, 3) * torch.arange(18.0),
    "in place": lambda x: (x * 1).add_(2).mul_(x).masked_fill_(MASK, 0.0),
    "written slices": lambda x: _written_slices(x),
    # reductions
    "sums": lambda x: torch.outer(x, x).sum(0) + torch.outer(x, x**2).sum(1) + x.sum(),
    "sums over several dims": lambda x: (x[:, None, None] * x[:, None] * x).sum((0, 2)),
    "means": lambda x: torch.outer(x, x).mean(1) + x.mean() + x.var() + x.std(),
    "products": lambda x: x.prod() + torch.outer(x, x[:3]).prod(1),
    "extremes": lambda x: x.max() * x.min() + torch.outer(x, x.exp()).amax(0),
    "extremes with places": lambda x: torch.outer(x, x.exp()).max(1)[0],
    "log-sum-exp": lambda x: torch.logsumexp(torch.outer(x, x), 1) + torch.logsumexp(x, 0),
    "softmax of nothing": lambda x: (
        torch.softmax(x.sum() * torch.zeros(2, 0), -1).sum()
        + torch.log_softmax(torch.zeros(0, 2) * x.sum(), 0).sum()
        + x.sum()
    ),
    "softmax": lambda x: torch.softmax(x, 0) * torch.log_softmax(torch.outer(x, x), 1),
    "extremes of few": lambda x: torch.outer(x, x[:3]).max(1)[0] * x + x.view(3, 2).min(1)[0].sum(),
    "reductions of few": lambda x: (
        torch.outer(x, x[:3]).sum(1) * x.view(2, 3).amax(0, keepdim=True).sum()
        + x.view(3, 2).prod(1)[0]
        + torch.outer(x, x[:3]).amin(1) * (x.view(2, 3) > 0).any(0).sum()
        * (x.view(3, 2) < 9).all(1, keepdim=True)[0]
    ),
    "reductions of many": lambda x: (
        (wide := torch.outer(x, x @ WIDE)).sum(1) * wide.amax(1) * wide.amin(1, keepdim=True)
        + wide.T.sum(0) * (1 + wide / 9).prod(1) + wide.max(1)[0] * wide.T.min(0)[0]
        + (wide > 0).any(1) * x + (wide < 99).all(1) * x
    ),
    "cumulative": lambda x: x.cumsum(0) * x + torch.outer(x, x).cumsum(1)[0] + x.cumprod(0),
    "norms": lambda x: x.norm() + torch.outer(x, x).norm(dim=1),
    "long sums": lambda x: (x @ WIDE).exp().sum() + ((x @ WIDE) ** 2).mean(),
    # indices
    "gather": lambda x: x[INDEX] ** 2 + torch.gather(x, 0, INDEX[:2]).sum(),
    "gather in a matrix": lambda x: torch.outer(x, x)[INDEX, INDEX.flip(0)],
    "rows": lambda x: torch.outer(x, x)[INDEX] * x + torch.outer(x, x)[:, INDEX].sum(),
    "mask index": lambda x: x[MASK] ** 2,
    "scatter": lambda x: torch.zeros(6).scatter(0, INDEX[:3], x[:3] ** 2) * x,
    "one by one": lambda x: torch.stack([x[i] * x[5 - i] for i in range(6)]).cumsum(0),
    # linear algebra
    "products of matrices": lambda x: (MATRIX @ x).exp().mean() * MATRIX.T @ (MATRIX @ x),
    "matrix times matrix": lambda x: (torch.outer(x, x) @ WIDE)[:, :4] @ MATRIX[:4, :],
    "batches of small matrices": lambda x: torch.bmm(
        torch.outer(x, x[:4]).view(6, 2, 2), MATRIX.reshape(-1)[:24].view(6, 2, 2)
    ),
    "batches of larger matrices": lambda x: torch.bmm(
        (x @ WIDE).view(2, 2, 10), (x.exp() @ WIDE).view(2, 10, 2)
    ),
    "data of few columns": lambda x: (
        (WIDE.T[:, :3] @ x[:3]).exp() * WIDE.T[:, 4] + (WIDE.T[:, :3] * x[3]).sum(1)
        + WIDE.T[:, :3].contiguous().reshape(-1)[:40] * x[5]
    ),
    "a number where a mask is": lambda x: _masked(x).exp() * x,
    "orders of memory": lambda x: (
        (x[:, None] * x[:2].exp()) * torch.outer(x[:2], x).T + MATRIX.T[:, :2]
    ),
    "batches of matrices": lambda x: torch.bmm(x[:, None, None] * MATRIX[:6, None], MATRIX[None].mT
                                               .expand(6, 6, 7)).sum(1),
    "dot": lambda x: torch.dot(x, x**2),
    "linear layer": lambda x: F.linear(torch.tanh(F.linear(x[None], MATRIX)), MATRIX.T, x),
    "cholesky": lambda x: torch.linalg.cholesky(spd(x)),
    "solve": lambda x: torch.linalg.solve_triangular(
        torch.linalg.cholesky(spd(x)), WIDE[:, :3] * x[:, None], upper=False
    ),
    "solve from the right": lambda x: torch.linalg.solve_triangular(
        torch.linalg.cholesky(spd(x)).mT, x[None] * MATRIX, upper=True, left=False
    ),
    "cholesky solve": lambda x: torch.cholesky_solve(x[:, None], torch.linalg.cholesky(spd(x))),
    "inverse": lambda x: torch.cholesky_inverse(torch.linalg.cholesky(spd(x))),
    "inverse hyperbolic cosine": lambda x: (2 + x**2).acosh(),
    "remainders towards zero": lambda x: torch.fmod(7 * x, 2) * x,
    "rounding to integers": lambda x: (3 * x).round() * x,
    "infinities": lambda x: torch.where(torch.isinf(x), 0.0, x),
    "negations": lambda x: torch.where(torch.logical_not(x > 0), x, 2 * x)
    * torch.logical_xor(x > 0, x > 1),
    "one-sided limits": lambda x: torch.clamp_min(x, 0.1) + torch.clamp_max(x, 0.2),
    "written diagonals": lambda x: torch.diagonal_scatter(torch.outer(x, x), x**3),
    "lengths": lambda x: torch.hypot(x, 1 + x**2) + torch.copysign(x, -1 - x**2),
    "bessel functions": lambda x: torch.special.i0(x) + torch.special.i1(x) * torch.special.i0e(x),
    "scaled bessel functions": lambda x: torch.special.i1e(x) + torch.i0(x**2),
    "inverse error functions": lambda x: (x / 4).erfinv() + torch.special.ndtri(torch.sigmoid(x)),
    "tails of the normal": lambda x: torch.special.erfcx(x) + torch.special.log_ndtr(3 * x),
    "incomplete gamma functions": lambda x: (
        torch.special.gammainc(torch.tensor(2.5), x**2 + 0.1)
        + torch.special.gammaincc(torch.tensor(0.5), x**2 + 0.1)
    ),
    "derivatives of gamma functions": lambda x: (
        torch.digamma(x**2 + 0.1) + torch.polygamma(1, x + 0.123) + torch.polygamma(2, x**2 + 0.1)
    ),
    "windows": lambda x: x.unfold(0, 3, 1).sum(-1) * x[:4],
    "scattered sums": lambda x: torch.zeros(3, dtype=x.dtype).scatter_add(
        0, torch.tensor([0, 2, 2, 1, 0, 2]), x**2
    ),
    "scattered, a slice": lambda x: (x * 2).index_add(0, torch.tensor([0, 3]), x[:2] ** 2),
    "distances": lambda x: torch.exp(-((x[:, None] - x) ** 2) / (1 + x[0] ** 2)),
}  # fmt: skip


def _masked(x):
    y = x * 2
    y[(x > 0.1) & MASK] = 0.5
    return y


def _written_slices(x):
    out = torch.zeros(3, 6, dtype=x.dtype)
    out[0] = x
    out[1, 2:4] = x[:2] ** 2
    out[:, 5] += x[:3]
    return out


def evaluate(function):
    """Return a log density that is a weighted sum of a function's elements, and test points."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        result = function(x)
        weights = torch.arange(1.0, result.numel() + 1, dtype=torch.float64).reshape(result.shape)
        pyro.factor("f", (result * weights.sin()).sum())

    density = probdl.LogDensity.from_model(model)
    points = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return density, points


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_gradient_agree_with_torch(name):
    density, points = evaluate(FUNCTIONS[name])
    compiled, _ = choose(density, "native", 0)
    assert compiled.engine == "native"
    assert verify(compiled, density, points) < 1e-11


def test_work_space_larger_than_the_stack_limit():
    def function(x):
        wide = torch.outer(x, torch.linspace(0, 1, 5000, dtype=x.dtype))
        return torch.tanh(wide.sum(0) + wide.cumsum(0)).logsumexp(1)

    density, points = evaluate(function)
    compiled, _ = choose(density, "native", 0)
    assert verify(compiled, density, points) < 1e-11


def test_a_long_loop_over_single_numbers():
    def function(x):
        state, total = x[0], x[1] * 0
        for t in range(600):
            state = torch.tanh(state * x[2] + x[t % 6] * 0.1)
            total = total + state**2
        return total

    density, points = evaluate(function)
    compiled, _ = choose(density, "native", 0)
    assert verify(compiled, density, points) < 1e-9


def _floats_into_integers(x):
    out = torch.zeros(6, dtype=torch.long)
    out[:] = 3 * x
    return out * x


def _random(x):
    out = torch.zeros(6, dtype=x.dtype)
    out[1:3] = x[:2]
    return out + torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=x.dtype) * x


# Edge cases, found by fuzzing.
EDGE_CASES = {
    "mean of nothing": lambda x: torch.outer(x[:0], x).mean(1).sum() * x,
    "alpha by position": lambda x: torch.rsub(x, 1, alpha=-2),
    "exact quotients": lambda x: torch.floor(_count(x) * 49 / 49) * x,
    "exact remainders": lambda x: ((_count(x) * 49) % 49 + (_count(x) * 49) // 49) * x,
    "remainder of floats": lambda x: torch.remainder((x > -100) * 1.0, 0.1) * x,
    "remainder of negatives": lambda x: torch.remainder(x, -0.7) * torch.remainder(-x, 0.3),
    "quotient of floats": lambda x: torch.floor_divide((x > -100) * 1.0, 0.1) * x,
    "quotient, towards zero": lambda x: torch.div(x * 7, 2, rounding_mode="trunc") * x,
    "any and all of one": lambda x: (x[:1].any() * 1.0 + (x[:1] * 3).all()) * x,
    "sign of infinity": lambda x: torch.sign(torch.where(x > -9, math.inf, x)) * x,
    "floats into integers": _floats_into_integers,
    "strides over a view": lambda x: (x * 1)[1:].as_strided((2,), (1,), 2) * x[:2],
    "truth values times numbers": lambda x: (x > 0) * x + ((x > 0) & (x < 1)).sum() * x,
}
REFUSED = {
    "rounding to decimals": lambda x: torch.round(x, decimals=1) * x,
    "sums of truth values": lambda x: ((x > -9) + (x > -8)) * x,
    "bytes": lambda x: ((x > 0).byte() - 1) * x,
    "overlapping strides over a view": lambda x: (x * 1)[1:].as_strided((2, 2), (1, 1)) ** 2,
    "bits": lambda x: (x.detach().view(torch.int64) > 2**62).double() + x,
    "random numbers": _random,
}


def _count(x):
    return (x > -100).cumsum(0)


@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_cases_agree_with_torch(name):
    density, points = evaluate(EDGE_CASES[name])
    compiled, _ = choose(density, "native", 0)
    assert verify(compiled, density, points) < 1e-11


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_an_exact_c_form_are_refused(name):
    density, _ = evaluate(REFUSED[name])
    with pytest.raises(probdl.ModelError, match="cannot run on the native engine"):
        choose(density, "native", 0)


# Computed by torch, in a call from the C code.
CALLED = {
    "sorted": lambda x: x.sort().values * x + x.argsort() * x,
    "largest": lambda x: x.topk(3).values * x[:3] + x.median() + x.kthvalue(2).values,
    "running extremes": lambda x: x.cummax(0).values + x.cummin(0).values * x,
    "running sums of exponentials": lambda x: x.logcumsumexp(0),
    "eigenvalues": lambda x: torch.linalg.eigh(spd(x)).eigenvalues,
    "singular values": lambda x: torch.linalg.svdvals(spd(x) + torch.outer(x, x**2)),
    "systems": lambda x: torch.linalg.solve(spd(x) + torch.diag(x[:5], 1), x),
    "determinants": lambda x: torch.stack([torch.logdet(spd(x)), torch.linalg.det(spd(x))]),
    "inverses": lambda x: torch.linalg.inv(spd(x)),
    "orthogonal factors": lambda x: torch.linalg.qr(spd(x)).R,
    "matrix exponential": lambda x: torch.linalg.matrix_exp(torch.outer(x, x) / 4),
    "places": lambda x: torch.searchsorted(torch.arange(3.0), x.detach()) * x,
    "convolution": lambda x: F.conv1d(x[None, None], x[:3][None, None]),
    "convolution of data": lambda x: F.conv1d(torch.ones(1, 1, 9), x[:3][None, None]) ** 2,
    "layer norm": lambda x: F.layer_norm(x, (6,)) * x,
    "distances": lambda x: torch.cdist(x.reshape(3, 2), MATRIX[:, :2].to(x.dtype)),
    "the same twice": lambda x: x.sort().values + (2 * x).sort().values,
    "nothing": lambda x: x[:0].sort().values.sum() + x,
}


# torch has no derivatives of these, so that the checks before a fit refuse them.
special = torch.special
WITHOUT_DERIVATIVE = {
    "bessel_j": lambda x: special.bessel_j0(x) + special.bessel_j1(x),
    "bessel_y": lambda x: special.bessel_y0(x**2 + 0.1) + special.bessel_y1(x**2 + 0.1),
    "modified_bessel_i": lambda x: special.modified_bessel_i0(x) + special.modified_bessel_i1(x),
    "modified_bessel_k": lambda x: (
        special.modified_bessel_k0(x**2 + 0.1) + special.modified_bessel_k1(x**2 + 0.1)
    ),
    "scaled_modified_bessel_k": lambda x: (
        special.scaled_modified_bessel_k0(x**2 + 0.1)
        + special.scaled_modified_bessel_k1(x**2 + 0.1)
    ),
    "zeta": lambda x: special.zeta(torch.tensor(2.5), x**2 + 0.1),
}


@pytest.mark.parametrize("name", WITHOUT_DERIVATIVE)
def test_functions_without_a_derivative(name):
    density, points = evaluate(lambda x: WITHOUT_DERIVATIVE[name](x.detach()) * x)
    traced = trace(density, points[0])
    arrays = traced.arrays(density.program.tensors())
    compiled = NativeDensity(emit(traced.density, density.dim), density.dim, arrays, 1)
    assert verify(compiled, density, points) < 1e-7  # torch's y0 and y1 have eight digits


@pytest.mark.parametrize("name", CALLED)
def test_operations_without_a_c_form_are_computed_by_torch(name):
    density, points = evaluate(CALLED[name])
    compiled, findings = choose(density, "native", 0)
    assert compiled.engine == "native"
    assert not findings
    assert verify(compiled, density, points) < 1e-10


def test_calls_of_torch_from_several_chains():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 5.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu.sort().values[torch.arange(len(y)) % 3], 1.0), obs=y)

    y = torch.tensor([-4.0, 0.0, 4.0]).repeat(20) + torch.tensor(RNG.normal(size=60)) * 0.1
    method = probdl.NUTS(chains=4, warmup=300, draws=300)
    fit = probdl.infer(model, y, method=method, seed=1, progress=False)
    ordered = np.sort(fit.draws["mu"], -1).mean((0, 1))
    np.testing.assert_allclose(ordered, [-4, 0, 4], atol=0.15)


def test_a_failure_in_torch_is_a_density_that_is_not_finite():
    def model():
        x = pyro.sample("x", dist.Normal(torch.ones(2), 1.0).to_event(1))
        pyro.factor("f", torch.linalg.inv(torch.diag(x)).diagonal().sum())

    density = probdl.LogDensity.from_model(model)
    compiled, _ = choose(density, "native", 0)
    value, _ = compiled.value_and_grad(torch.zeros(2, dtype=torch.float64))
    assert not math.isfinite(value)


# Recorded only by certain versions of torch, or in the steps of SVI; tested by their other forms.
# That of large matrices is tested in test_large_matrices.py.
OTHER_FORMS = {
    cholesky_backward.default.overloadpacket,
    torch.ops.aten._neg_view,  # of complex tensors
    torch.ops.aten._to_copy,
    torch.ops.aten._unsafe_index,
    torch.ops.aten._unsafe_index_put,
    torch.ops.aten.as_strided,
    torch.ops.aten.as_strided_scatter,
    torch.ops.aten.diagonal_backward,
    torch.ops.aten.scalar_tensor,
    torch.ops.aten.square,
}


def test_each_operation_with_a_c_form_is_in_a_function_here():
    recorded = set()
    for function in {**FUNCTIONS, **EDGE_CASES, **WITHOUT_DERIVATIVE}.values():
        density, points = evaluate(function)
        graph = trace(density, points[0]).density
        recorded |= {getattr(n.target, "overloadpacket", n.target) for n in graph.nodes}
    known = {*operations.POINTWISE, *operations.REDUCTIONS, *operations.RULES}
    known = {getattr(operation, "overloadpacket", operation) for operation in known}
    missing = known - recorded - OTHER_FORMS
    assert not missing, "add a function; see docs/developer/adding-an-operation.md"
