"""Random malformed input: `infer` must return a correct fit or raise a ProbdlError.

A case is a valid model with valid data, and one or two corruptions of its data, arguments,
statements, settings or labels. Harmless corruptions (a Series instead of an array, float32) must
give the fit of the clean data.
"""

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import probdl
from tests.attack.hostile import no_hang

CASE_TIMEOUT = 300  # seconds; a case takes a few, and more on a busy machine
X = np.array([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0])
DATA = {
    "normal": np.array([-2.1, -0.4, 0.3, 1.3, 1.9, 4.2]),
    "poisson": np.array([0.0, 1.0, 1.0, 2.0, 3.0, 9.0]),
}
METHODS = {
    "mle": probdl.MLE(starts=1),
    "map": probdl.MAP(starts=1),
    "laplace": probdl.Laplace(draws=50, starts=1),
    "importance": probdl.Importance(num_samples=50, draws=20),
    "nuts": probdl.NUTS(draws=20, warmup=20, chains=1),
    "svi": probdl.SVI(steps=20, draws=20, engine="eager"),
}


def likelihood(family, eta):
    if family == "normal":
        return dist.Normal(eta, 1.0)
    return dist.Poisson(torch.exp(eta))


def regression(family):
    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 2.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        with pyro.plate("obs", len(x)):
            pyro.sample("y", likelihood(family, a + b * x), obs=y)

    return model


MODELS = {family: regression(family) for family in DATA}  # shared, so that each compiles once


# -- harmless corruptions of data ---------------------------------------------------------------


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


HARMLESS = {
    "as it is": lambda a: a,
    "float32": lambda a: a.astype(np.float32),
    "float16": lambda a: a.astype(np.float16),
    "long double": lambda a: a.astype(np.longdouble),
    "big endian": lambda a: a.astype(">f8"),
    "tensor": torch.as_tensor,
    "float32 tensor": lambda a: torch.as_tensor(a, dtype=torch.float32),
    "tensor with gradient": lambda a: torch.tensor(a, requires_grad=True),
    "parameter": lambda a: torch.nn.Parameter(torch.tensor(a)),
    "series": pd.Series,
    "series with another index": lambda a: pd.Series(a, index=list("abcdef")),
    "nullable series": lambda a: pd.Series(a, dtype="Float64"),
    "xarray": xarray.DataArray,
    "index": pd.Index,
    "strided": lambda a: np.repeat(a, 2)[::2],
    "reversed twice": lambda a: a[::-1].copy()[::-1],
    "column of a matrix": lambda a: np.stack([a, a], 1)[:, 0],
    "read only": read_only,
    "masked array without a mask": np.ma.masked_array,
}

# -- harmful corruptions of data ----------------------------------------------------------------


def put(value):
    def corrupt(a):
        a = a.astype(np.float64)
        a[2] = value
        return a

    return corrupt


HARMFUL = {
    "nan": put(np.nan),
    "inf": put(np.inf),
    "minus inf": put(-np.inf),
    "huge": put(1e300),
    "tiny": put(1e-300),
    "negative": put(-3.0),
    "fraction": put(0.25),
    "million": put(1e6),
    "all huge": lambda a: a * 1e300,
    "all tiny": lambda a: a * 1e-300,
    "column": lambda a: a[:, None],
    "row": lambda a: a[None],
    "matrix": lambda a: np.stack([a, a]),
    "shorter": lambda a: a[:-1],
    "longer": lambda a: np.append(a, a),
    "single": lambda a: a[:1],
    "empty": lambda a: a[:0],
    "zero-dim": lambda a: np.array(1.0),
    "scalar": lambda a: 1.0,
    "integer": lambda a: 1,
    "bool": lambda a: a > 0,
    "integers": lambda a: a.astype(int),
    "small integers": lambda a: a.astype(np.int8),
    "unsigned": lambda a: np.abs(a).astype(np.uint16),
    "complex": lambda a: a * 1j,
    "complex tensor": lambda a: torch.as_tensor(a * 1j),
    "text": lambda a: "data.csv",
    "texts": lambda a: a.astype(str),
    "bytes": lambda a: b"123456",
    "objects": lambda a: a.astype(object),
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
    "none": lambda a: None,
    "list": list,
    "tuple": tuple,
    "nested lists": lambda a: [[[v]] for v in a],
    "dict": lambda a: {"y": a},
    "nested dict": lambda a: {"y": {"z": a}},
    "set": lambda a: set(a),
    "generator": lambda a: (v for v in a),
    "iterator": iter,
    "range": lambda a: range(6),
    "frame": lambda a: pd.DataFrame({"y": a}),
    "categories": lambda a: pd.Series(list("aabbcc"), dtype="category"),
    "dates": lambda a: np.array(["2024-01-01"] * 6, dtype="M8[D]"),
    "series with a gap": lambda a: pd.Series([1, None, 2, 3, 4, 5], dtype="Int64"),
    "structured": lambda a: np.zeros(6, dtype=[("u", float), ("v", int)]),
    "sparse": lambda a: torch.as_tensor(a).to_sparse(),
    "csr": lambda a: torch.as_tensor(a[None]).to_sparse_csr(),
    "nested tensor": lambda a: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "quantized": lambda a: torch.quantize_per_tensor(torch.zeros(6), 0.1, 0, torch.quint8),
    "meta": lambda a: torch.zeros(6, device="meta"),
    "masked array": lambda a: np.ma.masked_equal(a, a[0]),
    "module": lambda a: torch.nn.Linear(1, 1),
    "function": lambda a: len,
    "class": lambda a: dict,
    "object": lambda a: object(),
}

# -- corruptions of the call and of the model -----------------------------------------------

CALLS = {
    "no data": lambda x, y: ((), {}),
    "one argument": lambda x, y: ((x,), {}),
    "swapped": lambda x, y: ((y, x), {}),
    "three arguments": lambda x, y: ((x, y, y), {}),
    "another name": lambda x, y: ((x,), {"obs": y}),
    "twice": lambda x, y: ((x, y), {"y": y}),
    "a list of all": lambda x, y: (([x, y],), {}),
    "bad seed": lambda x, y: ((x, y), {"seed": "one"}),
    "negative seed": lambda x, y: ((x, y), {"seed": -1}),
    "huge seed": lambda x, y: ((x, y), {"seed": 2**70}),
    "array as seed": lambda x, y: ((x, y), {"seed": y}),
    "largest seed": lambda x, y: ((x, y), {"seed": 2**63 - 1}),
    "setting": lambda x, y: ((x, y), {"draws": 10}),
    "Pyro's setting": lambda x, y: ((x, y), {"num_samples": 10}),
    "no method": lambda x, y: ((x, y), {"method": None}),
    "unknown method": lambda x, y: ((x, y), {"method": "gibbs"}),
    "another class": lambda x, y: ((x, y), {"method": dict}),
    "base class": lambda x, y: ((x, y), {"method": probdl.methods.Method}),
    "list of methods": lambda x, y: ((x, y), {"method": ["nuts"]}),
    "coords of another length": lambda x, y: ((x, y), {"coords": {"obs": [1]}}),
    "coords a number": lambda x, y: ((x, y), {"coords": 3}),
    "labels a number": lambda x, y: ((x, y), {"coords": {"obs": 3}}),
    "dims a list": lambda x, y: ((x, y), {"dims": ["obs"]}),
    "dims unknown": lambda x, y: ((x, y), {"dims": {"z": ["obs"]}}),
    "dims a number": lambda x, y: ((x, y), {"dims": {"y": 3}}),
    "too many dims": lambda x, y: ((x, y), {"dims": {"y": ["obs", "more"]}}),
    "odd progress": lambda x, y: ((x, y), {"progress": "yes"}),
}


def statement(prior, scale=1.0, name="a", loc=lambda a: a, plate=True):
    """Return a model with one latent site and the given statements."""

    def model(x, y=None):
        a = pyro.sample(name, prior())
        if plate:
            with pyro.plate("obs", len(x)):
                pyro.sample("y", dist.Normal(loc(a), scale), obs=y)
        else:
            pyro.sample("y", dist.Normal(loc(a), scale), obs=y)

    return model


def normal():
    return dist.Normal(0.0, 1.0)


def raising(error):
    def model(x, y=None):
        pyro.sample("a", normal())
        raise error

    return model


def duplicated(x, y=None):
    pyro.sample("a", normal())
    pyro.sample("a", normal())


def named_like_the_plate(x, y=None):
    a = pyro.sample("obs", normal())
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)


def two_plates(x, y=None):
    a = pyro.sample("a", normal())
    with pyro.plate("obs", len(x)), pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)


def generating(x, y=None):
    yield pyro.sample("a", normal())


def param(value, **options):
    def model(x, y=None):
        a = pyro.param("a", value, **options)
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    return model


def cut(change):
    return statement(normal, loc=change)


def without_gradient(a):
    with torch.no_grad():
        return 2 * a


STATEMENTS = {
    "no statement": lambda x, y=None: None,
    "returns text": lambda x, y=None: "text",
    "returns a distribution": lambda x, y=None: normal(),
    "generator": generating,
    "name a number": statement(normal, name=3),
    "name a tuple": statement(normal, name=("a", 1)),
    "name none": statement(normal, name=None),
    "name empty": statement(normal, name=""),
    "name odd": statement(normal, name="a/b [0] é"),
    "duplicated": duplicated,
    "plate's name": named_like_the_plate,
    "plate twice": two_plates,
    "no plate": statement(normal, plate=False),
    "zero scale": statement(normal, scale=0.0),
    "negative scale": statement(normal, scale=-1.0),
    "nan scale": statement(normal, scale=float("nan")),
    "text scale": statement(normal, scale="one"),
    "prior nan": statement(lambda: dist.Normal(float("nan"), 1.0)),
    "prior negative scale": statement(lambda: dist.Normal(0.0, -1.0)),
    "prior infinite": statement(lambda: dist.Normal(0.0, float("inf"))),
    "prior degenerate": statement(lambda: dist.Normal(0.0, 1e-300)),
    "prior negative shape": statement(lambda: dist.Gamma(-1.0, 1.0)),
    "prior empty interval": statement(lambda: dist.Uniform(1.0, 0.0)),
    "prior of torch": statement(lambda: torch.distributions.Normal(0.0, 1.0)),
    "prior a number": statement(lambda: 3.0),
    "prior a function": statement(lambda: len),
    "prior none": statement(lambda: None),
    "prior infinite and discrete": statement(lambda: dist.Poisson(2.0)),
    "prior discrete": statement(lambda: dist.Bernoulli(0.5)),
    "prior a point": statement(lambda: dist.Delta(torch.tensor(1.0))),
    "prior flat": statement(lambda: dist.ImproperUniform(dist.constraints.real, (), ())),
    "prior of no size": statement(lambda: dist.Normal(torch.zeros(0), 1.0).to_event(1)),
    "prior Wishart": statement(lambda: dist.Wishart(torch.tensor(3.0), torch.eye(2))),
    "prior Cauchy": statement(lambda: dist.Cauchy(0.0, 1.0)),
    "vector without to_event": statement(lambda: dist.Normal(torch.zeros(3), 1.0)),
    "random": cut(lambda a: a + torch.randn(())),
    "random by numpy": cut(lambda a: a + np.random.normal()),  # noqa: NPY002
    "no_grad": cut(without_gradient),
    "detached": cut(lambda a: a.detach() * 2),
    "item": cut(lambda a: a.item()),
    "numpy": cut(np.exp),
    "control flow": cut(lambda a: a if a > 0 else 2 * a),
    "division by zero": cut(lambda a: a / 0.0),
    "log of what is negative": cut(lambda a: torch.log(a)),
    "overflow": cut(lambda a: torch.exp(1000 * a)),
    "raises ValueError": raising(ValueError("no")),
    "raises KeyError": raising(KeyError("no")),
    "raises StopIteration": raising(StopIteration()),
    "raises AssertionError": raising(AssertionError()),
    "raises RecursionError": raising(RecursionError("too deep")),
    "raises MemoryError": raising(MemoryError()),
    "raises without text": raising(RuntimeError()),
    "param a number": param(1.0),
    "param integer": param(torch.tensor(1)),
    "param nan": param(torch.tensor(float("nan"))),
    "param empty": param(torch.zeros(0)),
    "param outside": param(torch.tensor(-1.0), constraint=dist.constraints.positive),
    "not a model": 3,
    "none": None,
    "text": "model",
    "class": dict,
    "builtin": print,
    "method of a class": dict.update,
    "module without forward": torch.nn.Module(),
}

SETTINGS = [
    lambda bad: probdl.NUTS(draws=bad),
    lambda bad: probdl.NUTS(chains=bad),
    lambda bad: probdl.NUTS(target_accept=bad),
    lambda bad: probdl.NUTS(mass_matrix=bad),
    lambda bad: probdl.NUTS(init=bad),
    lambda bad: probdl.MLE(starts=bad),
    lambda bad: probdl.MAP(ci_prob=bad),
    lambda bad: probdl.Laplace(draws=bad),
    lambda bad: probdl.Importance(num_samples=bad),
    lambda bad: probdl.SVI(steps=bad if bad is not None else 0),
    lambda bad: probdl.SVI(learning_rate=bad),
    lambda bad: probdl.SVI(elbo=bad),
    lambda bad: probdl.SVI(schedule=bad),
    lambda bad: probdl.Pathfinder(paths=bad),
    lambda bad: probdl.Metropolis(draws=bad),
]
BAD = [-1, 0.0, float("nan"), float("inf"), "many", None, [], {}, True, 1j, object(), torch.ones(2)]


def attempt(model, args, kwargs):
    """Return the fit, or None if `infer` raises a ProbdlError."""
    options = {"seed": 0, "progress": False} | kwargs
    with no_hang(CASE_TIMEOUT), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = probdl.infer(model, *args, **options)
        except probdl.ProbdlError:
            return None
        has_finding = any(f.severity != "info" for f in fit.diagnose())
        for name, draws in fit.draws.items():
            assert np.isfinite(draws).all() or has_finding, f"{name}: {draws}"
        return fit


@pytest.fixture(scope="module")
def clean():
    """The fits of the clean data by family and method."""
    return {
        (family, name): attempt(MODELS[family], (X, DATA[family]), {"method": method})
        for family in DATA
        for name, method in METHODS.items()
        if name != "nuts" or family == "normal"
    }


quick = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
families = st.sampled_from(["normal", "poisson"])
methods = st.sampled_from(sorted(METHODS))


@settings(quick, max_examples=60)
@given(st.sampled_from(sorted(HARMLESS)), st.sampled_from(sorted(HARMLESS)), families, methods)
def test_data_of_another_kind_give_the_same_fit(clean, kind_x, kind_y, family, method):
    if (family, method) not in clean:
        method = "map"
    args = HARMLESS[kind_x](X), HARMLESS[kind_y](DATA[family])
    fit = attempt(MODELS[family], args, {"method": METHODS[method]})
    assert fit is not None
    for name, draws in clean[family, method].draws.items():
        if method == "nuts":  # rounding makes chains diverge from each other
            assert np.abs(fit.draws[name].mean() - draws.mean()) < 1.0
        else:
            rough = "16" in kind_x + kind_y or "32" in kind_x + kind_y
            assert np.allclose(fit.draws[name], draws, atol=0.05 if rough else 1e-6)


@settings(quick, max_examples=120)
@given(st.sampled_from(sorted(HARMFUL)), st.sampled_from("xy"), families, methods, st.data())
def test_malformed_data(kind, where, family, method, data):
    x, y = X, DATA[family]
    if where == "x":
        x = HARMFUL[kind](x)
        if data.draw(st.booleans()):
            y = HARMFUL[data.draw(st.sampled_from(sorted(HARMFUL)))](y)
    else:
        y = HARMFUL[kind](y)
    attempt(MODELS[family], (x, y), {"method": METHODS[method]})


@settings(quick, max_examples=60)
@given(st.sampled_from(sorted(CALLS)), st.sampled_from(sorted(HARMFUL)), st.booleans(), methods)
def test_malformed_calls(call, kind, both, method):
    y = HARMFUL[kind](DATA["normal"]) if both else DATA["normal"]
    args, kwargs = CALLS[call](X, y)
    attempt(MODELS["normal"], args, {"method": METHODS[method]} | kwargs)


@pytest.mark.parametrize("kind", STATEMENTS)
def test_malformed_models(kind):
    for method in ("map", "importance", "svi"):
        attempt(STATEMENTS[kind], (X, DATA["normal"]), {"method": METHODS[method]})


@settings(quick, max_examples=120)
@given(st.sampled_from(SETTINGS), st.sampled_from(BAD))
def test_malformed_settings(make, bad):
    with pytest.raises(probdl.SettingError):
        make(bad)


def test_a_process_without_standard_error_can_fit():
    code = (
        "import sys; sys.stderr = None\n"
        "import numpy as np, probdl\n"
        "from probdl.models import normal_normal\n"
        "fit = probdl.infer(normal_normal, np.ones(3), np.zeros(3), method='nuts', seed=1)\n"
        "data = np.ones(3), np.zeros(3)\n"
        "probdl.infer(normal_normal, *data, method='svi', seed=1, progress=True)\n"
        "print(fit.num_draws)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1:] == ["1000"], done.stdout
