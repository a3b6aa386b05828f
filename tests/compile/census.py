"""Every distribution of Pyro, and functions of torch, as models: which of them are native.

An expression is of ``x``, a latent vector of 20 numbers. ``python -m tests.compile.census`` writes
docs/operations.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

import probdl
from probdl.compile.codegen.emit import emit
from probdl.compile.engine import choose
from probdl.compile.tracing.trace import trace
from probdl.errors import ProbdlError

VERSION = f"torch {'.'.join(torch.__version__.split('.')[:2])}"
PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
IN_C, BY_TORCH, NOT_NATIVE = "in C", "by torch, called from native code", "not native"
NO_GRADIENT = "no gradient in torch or Pyro itself"


def real(x, *shape):
    """Return the first elements in a shape; a scalar without one."""
    return x[: torch.Size(shape).numel()].reshape(shape) if shape else x[0]


def positive(x, *shape):
    return real(x, *shape).exp()


def share(x, *shape):
    return torch.sigmoid(real(x, *shape))


def matrix(x, n=3):
    return real(x, n, n) + 2 * torch.eye(n)


def definite(x, n=3):
    return real(x, n, n) @ real(x, n, n).mT + torch.eye(n)


def factor(x, n=3):
    return torch.linalg.cholesky(definite(x, n))


def normal(x, n):
    return dist.MultivariateNormal(real(x, n), scale_tril=factor(x, n))


def data(*shape):
    return torch.sin(torch.arange(1.0, 1 + torch.Size(shape).numel()) * 1.7).reshape(shape)


REAL, SHARE, COUNT = "[2.0, 3.0, 5.0]", "[0.2, 0.3, 0.5]", "[1.0, 5.0, 9.0]"
BITS, INDEX, PLACE = "[1.0, 0.0, 1.0]", "[0, 1, 2]", "[0.0, 1.0, 0.0]"
HMM = "normal(x, 2), real(x, 2, 2), normal(x, 2), real(x, 2, 1), normal(x, 1)"
DISTRIBUTIONS = {  # the arguments, and a value
    "AffineBeta": ("positive(x, 3), positive(x, 3) + 1, 0.0, 2.0", SHARE),
    "AsymmetricLaplace": ("real(x, 3), positive(x, 3), positive(x, 3)", REAL),
    "AVFMultivariateNormal": ("real(x, 3), factor(x), torch.ones(2, 1, 3)", REAL),
    "Bernoulli": ("share(x, 3)", BITS),
    "Beta": ("positive(x, 3), positive(x, 3) + 1", SHARE),
    "BetaBinomial": ("positive(x, 3), positive(x, 3) + 1, 10", COUNT),
    "Binomial": ("10, share(x, 3)", COUNT),
    "Categorical": ("logits=real(x, 3, 3)", INDEX),
    "Cauchy": ("real(x, 3), positive(x, 3)", REAL),
    "Chi2": ("positive(x, 3)", REAL),
    "CoalescentTimes": ("torch.tensor([0.0, 0.1, 0.2]), positive(x)", "[-1.0, -2.0]"),
    "ContinuousBernoulli": ("share(x, 3)", SHARE),
    "Delta": ("real(x, 3)", "real(x, 3)"),
    "Dirichlet": ("positive(x, 3)", SHARE),
    "DirichletMultinomial": ("positive(x, 3), 10", "[2.0, 3.0, 5.0]"),
    "DiscreteHMM": (
        "real(x, 3), real(x, 3, 3), dist.Normal(real(x, 3), 1.0), duration=5",
        "data(5)",
    ),
    "Empirical": ("torch.tensor([1.0, 2.0, 3.0]), real(x, 3)", "2.0"),
    "Exponential": ("positive(x, 3)", REAL),
    "ExtendedBetaBinomial": ("positive(x, 3), positive(x, 3), torch.tensor(10.0)", COUNT),
    "ExtendedBinomial": ("torch.tensor(10.0), share(x, 3)", COUNT),
    "FisherSnedecor": ("positive(x, 3), positive(x, 3) + 1", REAL),
    "FoldedDistribution": ("dist.Normal(real(x, 3), positive(x, 3))", REAL),
    "Gamma": ("positive(x, 3), positive(x, 3)", REAL),
    "GammaGaussianHMM": (f"dist.Gamma(positive(x), positive(x)), {HMM}, duration=5", "data(5, 1)"),
    "GammaPoisson": ("positive(x, 3), positive(x, 3)", REAL),
    "GaussianHMM": (f"{HMM}, duration=5", "data(5, 1)"),
    "GaussianMRF": ("normal(x, 2), normal(x, 4), normal(x, 3)", "data(4, 1)"),
    "GaussianScaleMixture": ("positive(x, 2), real(x, 3), positive(x, 3)", "data(2)"),
    "Geometric": ("share(x, 3)", REAL),
    "Gumbel": ("real(x, 3), positive(x, 3)", REAL),
    "HalfCauchy": ("positive(x, 3)", REAL),
    "HalfNormal": ("positive(x, 3)", REAL),
    "InverseGamma": ("positive(x, 3), positive(x, 3)", REAL),
    "Kumaraswamy": ("positive(x, 3), positive(x, 3)", SHARE),
    "Laplace": ("real(x, 3), positive(x, 3)", REAL),
    "LKJ": ("3, positive(x)", "torch.eye(3)"),
    "LKJCholesky": ("3, positive(x)", "torch.eye(3)"),
    "Logistic": ("real(x, 3), positive(x, 3)", REAL),
    "LogisticNormal": ("real(x, 2), positive(x, 2)", SHARE),
    "LogNormal": ("real(x, 3), positive(x, 3)", REAL),
    "LogNormalNegativeBinomial": ("positive(x), real(x, 3), positive(x, 3)", REAL),
    "LowRankMultivariateNormal": ("real(x, 3), real(x, 3, 2), positive(x, 3)", REAL),
    "MaskedMixture": (
        "torch.tensor([True, False, True]), dist.Normal(real(x, 3), 1.0), "
        "dist.Laplace(real(x, 3), 1.0)",
        REAL,
    ),
    "MixtureOfDiagNormals": ("real(x, 2, 3), positive(x, 2, 3), real(x, 2)", REAL),
    "MixtureOfDiagNormalsSharedCovariance": ("real(x, 2, 3), positive(x, 3), real(x, 2)", REAL),
    "MixtureSameFamily": (
        "dist.Categorical(logits=real(x, 3)), dist.Normal(real(x, 3), positive(x, 3))",
        REAL,
    ),
    "Multinomial": ("10, logits=real(x, 3)", REAL),
    "MultivariateNormal": ("real(x, 3), definite(x)", REAL),
    "MultivariateStudentT": ("positive(x), real(x, 3), factor(x)", REAL),
    "NanMaskedMultivariateNormal": ("real(x, 3), definite(x)", "[0.2, float('nan'), 0.5]"),
    "NanMaskedNormal": ("real(x, 3), positive(x, 3)", "[0.2, float('nan'), 0.5]"),
    "NegativeBinomial": ("positive(x, 3), share(x, 3)", REAL),
    "Normal": ("real(x, 3), positive(x, 3)", REAL),
    "OMTMultivariateNormal": ("real(x, 3), factor(x)", REAL),
    "OneHotCategorical": ("logits=real(x, 3)", PLACE),
    "OrderedLogistic": ("real(x, 3), torch.stack([x[4], x[4] + x[5].exp()])", INDEX),
    "Pareto": ("positive(x, 3) * 0.1, positive(x, 3)", "[20.0, 30.0, 50.0]"),
    "Poisson": ("positive(x, 3)", REAL),
    "ProjectedNormal": ("real(x, 3)", PLACE),
    "RelaxedBernoulli": ("torch.tensor(0.5), probs=share(x, 3)", SHARE),
    "RelaxedBernoulliStraightThrough": ("torch.tensor(0.5), probs=share(x, 3)", BITS),
    "RelaxedOneHotCategorical": ("torch.tensor(0.5), logits=real(x, 3)", SHARE),
    "SineBivariateVonMises": (
        "real(x), real(x), positive(x), positive(x), correlation=positive(x) * 0.1",
        "[0.2, 0.3]",
    ),
    "SineSkewed": (
        "dist.VonMises(real(x, 1), positive(x, 1)).to_event(1), torch.tanh(real(x, 1)) * 0.5",
        "[0.2]",
    ),
    "SkewLogistic": ("real(x, 3), positive(x, 3), positive(x, 3)", REAL),
    "SoftAsymmetricLaplace": ("real(x, 3), positive(x, 3), positive(x, 3)", REAL),
    "SoftLaplace": ("real(x, 3), positive(x, 3)", REAL),
    "SpanningTree": ("real(x, 3)", "[[0, 1], [1, 2]]"),
    "StableWithLogProb": (
        "1.5 + 0.1 * share(x), torch.tanh(real(x)) * 0.5, positive(x), real(x)",
        "0.3",
    ),
    "StudentT": ("positive(x, 3), real(x, 3), positive(x, 3)", REAL),
    "TransformedDistribution": (
        "dist.Normal(real(x, 3), 1.0), [dist.transforms.SigmoidTransform()]",
        SHARE,
    ),
    "TruncatedPolyaGamma": ("torch.zeros(3)", SHARE),
    "Uniform": ("-positive(x, 3), positive(x, 3) + 5", REAL),
    "Unit": ("real(x)", "torch.empty(0)"),
    "VonMises": ("real(x, 3), positive(x, 3)", SHARE),
    "VonMises3D": ("real(x, 3)", "[1.0, 0.0, 0.0]"),
    "Weibull": ("positive(x, 3), positive(x, 3)", REAL),
    "Wishart": ("torch.tensor(5.0) + positive(x), scale_tril=factor(x)", "torch.eye(3)"),
    "ZeroInflatedNegativeBinomial": ("positive(x, 3), probs=share(x, 3), gate=share(x, 3)", COUNT),
    "ZeroInflatedPoisson": ("positive(x, 3), gate=share(x, 3)", COUNT),
}
WITHOUT = {  # bases and wrappers of the others, and those without a log density or a gradient
    *(
        "Distribution",
        "ExpandedDistribution",
        "ExponentialFamily",
        "ImproperUniform",
        "Independent",
    ),
    *("IndependentHMM", "LinearHMM", "MaskedDistribution", "Rejector", "Stable"),
    *("TorchDistribution", "ZeroInflatedDistribution", "OneOneMatching", "OneTwoMatching"),
    *("OneHotCategoricalStraightThrough", "RelaxedOneHotCategoricalStraightThrough"),
    *("CoalescentTimesWithRate", "GeneralizedPareto", "GroupedNormalNormal", "LKJCorrCholesky"),
}

SPECIAL = (
    *("bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "digamma", "entr", "erf", "erfc"),
    *("erfcx", "erfinv", "exp2", "expit", "expm1", "gammaln", "i0", "i0e", "i1", "i1e"),
    *("log1p", "log_ndtr", "logit", "ndtr", "ndtri", "psi", "sinc", "modified_bessel_i0"),
    *("modified_bessel_i1", "modified_bessel_k0", "modified_bessel_k1"),
)
FUNCTIONS = {
    **{f"special.{name}": f"torch.special.{name}(share(x, 3))" for name in SPECIAL},
    "special.gammainc": "torch.special.gammainc(torch.tensor(2.0), share(x, 3))",
    "special.gammaincc": "torch.special.gammaincc(torch.tensor(2.0), share(x, 3))",
    "special.multigammaln": "torch.special.multigammaln(share(x, 3) + 3, 3)",
    "special.polygamma": "torch.special.polygamma(1, share(x, 3))",
    "special.xlog1py": "torch.special.xlog1py(share(x, 3), share(x, 3))",
    "special.xlogy": "torch.special.xlogy(share(x, 3), share(x, 3))",
    "special.softmax": "torch.special.softmax(x, 0)",
    "special.log_softmax": "torch.special.log_softmax(x, 0)",
    "special.logsumexp": "torch.special.logsumexp(x, 0)",
    "linalg.det": "torch.linalg.det(matrix(x))",
    "linalg.slogdet": "torch.linalg.slogdet(matrix(x))[1]",
    "linalg.inv": "torch.linalg.inv(matrix(x))",
    "linalg.pinv": "torch.linalg.pinv(matrix(x))",
    "linalg.solve": "torch.linalg.solve(matrix(x), x[:6].reshape(3, 2))",
    "linalg.solve_triangular": (
        "torch.linalg.solve_triangular(definite(x).tril(), x[:3, None], upper=False)"
    ),
    "linalg.cholesky": "torch.linalg.cholesky(definite(x))",
    "linalg.eigh": "torch.linalg.eigh(definite(x))[0]",
    "linalg.eigvalsh": "torch.linalg.eigvalsh(definite(x))",
    "linalg.svd": "torch.linalg.svd(matrix(x))[1]",
    "linalg.svdvals": "torch.linalg.svdvals(matrix(x))",
    "linalg.qr": "torch.linalg.qr(matrix(x))[1]",
    "linalg.lu": "torch.linalg.lu(matrix(x))[2]",
    "linalg.lstsq": "torch.linalg.lstsq(matrix(x), x[:3, None])[0]",
    "linalg.matrix_exp": "torch.linalg.matrix_exp(matrix(x))",
    "linalg.matrix_power": "torch.linalg.matrix_power(matrix(x), 3)",
    "linalg.norm": "torch.linalg.norm(x)",
    "linalg.vector_norm": "torch.linalg.vector_norm(x, 3)",
    "linalg.matrix_norm": "torch.linalg.matrix_norm(matrix(x))",
    "linalg.cross": "torch.linalg.cross(x[:3], x[3:6])",
    "linalg.multi_dot": "torch.linalg.multi_dot([matrix(x), matrix(x), matrix(x)])",
    "linalg.vander": "torch.linalg.vander(x[:3])",
    "linalg.vecdot": "torch.linalg.vecdot(x[:3], x[3:6])",
    "linalg.diagonal": "torch.linalg.diagonal(matrix(x))",
    "sort": "x.sort()[0]",
    "topk": "x.topk(3)[0]",
    "median": "x.median()",
    "quantile": "x.quantile(0.3)",
    "cummax": "x.cummax(0)[0]",
    "cummin": "x.cummin(0)[0]",
    "logcumsumexp": "x.logcumsumexp(0)",
    "cumprod": "share(x, 3).cumprod(0)",
    "hypot": "torch.hypot(x[:3], x[3:6])",
    "atan2": "torch.atan2(x[:3], x[3:6])",
    "fft.rfft": "torch.fft.rfft(x).abs()",
    "fft.irfft": "torch.fft.irfft(torch.fft.rfft(x), 20)",
    "fft.fft2": "torch.fft.fft2(matrix(x)).real",
    "stft": "torch.stft(x, 8, 4, window=torch.ones(8), return_complex=True).abs()",
    "linalg.eigvals": "torch.linalg.eigvals(matrix(x)).abs()",
    "polar": "torch.polar(x[:3].abs(), x[3:6]).real",
    "complex": "torch.complex(x[:3], x[3:6]).abs()",
    "conv1d": "torch.nn.functional.conv1d(x[None, None], x[None, None, :3])",
    "conv2d": "torch.nn.functional.conv2d(x[:16].reshape(1, 1, 4, 4), x[:4].reshape(1, 1, 2, 2))",
    "max_pool1d": "torch.nn.functional.max_pool1d(x[None], 2)",
    "avg_pool1d": "torch.nn.functional.avg_pool1d(x[None], 2)",
    "layer_norm": "torch.nn.functional.layer_norm(x, (20,))",
    "gelu": "torch.nn.functional.gelu(x)",
    "silu": "torch.nn.functional.silu(x)",
    "softplus": "torch.nn.functional.softplus(x)",
    "scaled_dot_product_attention": (
        "torch.nn.functional.scaled_dot_product_attention(*[matrix(x)[None]] * 3)"
    ),
    "embedding": "torch.nn.functional.embedding(torch.tensor([0, 2]), matrix(x))",
    "searchsorted": "torch.searchsorted(torch.arange(3.0), share(x, 3)) * x[:3]",
    "nonzero": "x[(torch.arange(20) > 3).nonzero()[:, 0]]",
    "index_put": "torch.zeros(20).index_put((torch.arange(5),), x[:5])",
    "index_add": "torch.zeros(5).index_add(0, torch.arange(20) % 5, x)",
    "scatter_add": "torch.zeros(5).scatter_add(0, torch.arange(20) % 5, x)",
    "scatter_reduce": "torch.zeros(5).scatter_reduce(0, torch.arange(20) % 5, x, 'amax')",
    "as_strided": "x.as_strided((3, 3), (4, 1))",
    "masked_select": "x.masked_select(torch.arange(20) > 4)",
    "repeat_interleave": "x.repeat_interleave(2)",
    "cdist": "torch.cdist(x[:6].reshape(3, 2), x[6:12].reshape(3, 2))",
    "einsum": "torch.einsum('ij,jk->ik', matrix(x), matrix(x))",
    "kron": "torch.kron(matrix(x), matrix(x))",
    "var_mean": "torch.var_mean(x)[0]",
}


def model_of(expression, value=None, *, density):
    """Return a model with the log density, or the weighted elements, of an expression."""
    names = {name: globals()[name] for name in ("real", "positive", "share", "matrix")}
    names |= {name: globals()[name] for name in ("definite", "factor", "normal", "data")}
    names |= {"torch": torch, "dist": dist}

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(20), 1.0).to_event(1))
        found = eval(expression, names | {"x": x})
        if density:
            torch.manual_seed(0)
            at = found.sample() if value is None else eval(value, names | {"x": x})
            found = found.log_prob(at if isinstance(at, torch.Tensor) else torch.tensor(at))
        weights = torch.linspace(1.0, 2.0, found.numel()).reshape(found.shape)
        pyro.factor("f", (found * weights).sum())

    return model


def form_of(model):
    """Return how a model runs, and what torch is called for or why it is not native."""
    try:
        density = probdl.LogDensity.from_model(model)
        choose(density, "native", 0)
        point = density.initial(torch.Generator().manual_seed(0))
        source = emit(trace(density, point).density, density.dim)
    except ProbdlError as error:
        without = "for gradient computation" in str(error) or "is wrong for" in str(error)
        return (NO_GRADIENT if without else NOT_NATIVE), str(error)
    calls = sorted({str(call.op).removeprefix("aten.") for call in source.calls})
    return (BY_TORCH, ", ".join(calls)) if calls else (IN_C, "")


def census():
    """Return the form of each distribution and of each function, by name."""
    models = {
        f"dist.{name}": model_of(f"dist.{name}({arguments})", value, density=True)
        for name, (arguments, value) in DISTRIBUTIONS.items()
    }
    models |= {f"torch.{name}": model_of(of, density=False) for name, of in FUNCTIONS.items()}
    return {name: form_of(model) for name, model in models.items()}


def page(found):
    """Return docs/operations.md."""
    lines = ["# What is native", "", INTRODUCTION, "", f"With {VERSION}:", ""]
    for title, start in (("Distributions", "dist."), ("Functions of torch", "torch.")):
        of = {
            name.removeprefix(start): form for name, form in found.items() if name.startswith(start)
        }
        forms = [form for form, _ in of.values() if form != NO_GRADIENT]
        native = len(forms) - forms.count(NOT_NATIVE)
        lines += [f"## {title}", "", f"Native are {native} of {len(forms)} with a gradient.", ""]
        lines += ["| how | which |", "| --- | --- |"]
        for how in (IN_C, BY_TORCH, NOT_NATIVE, NO_GRADIENT):
            names = ", ".join(f"`{name}`" for name, (form, _) in of.items() if form == how)
            lines += [f"| {how} | {names} |"] if names else []
        lines.append("")
    return "\n".join(lines)


INTRODUCTION = (
    "Each of these was traced with its gradient, compiled, and compared with torch, in a model "
    "whose\nparameters depend on a latent vector. What torch does for native code takes some 20 µs "
    "a call."
)

if __name__ == "__main__":
    PAGE.write_text(page(census()), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}\n")
