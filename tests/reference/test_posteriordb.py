"""NUTS on the native engine against all 13 reference posteriors of posteriordb."""

import warnings

import arviz as az
import numpy as np
import pytest

import probdl
from probdl.io.idata import to_idata
from tests.reference.files import read, scalars
from tests.reference.posteriors import POSTERIORS

NUTS = probdl.NUTS(draws=2000, warmup=1000, chains=4, engine="native")


@pytest.mark.parametrize("name", POSTERIORS)
def test_nuts_agrees_with_the_reference(name, shared):
    posterior = POSTERIORS[name]
    data, reference, count = read(shared / "posteriordb", name)
    with warnings.catch_warnings():  # a few divergences do not affect the comparison
        warnings.simplefilter("ignore", probdl.FindingWarning)
        fit = probdl.infer(posterior.model, *posterior.arguments(data), method=NUTS, seed=4)
    draws = scalars(posterior.parameters(fit.draws, data))
    assert set(reference) <= set(draws)
    kept = to_idata({"posterior": {k: draws[k] for k in reference}})
    mcse = az.mcse(kept)
    for parameter, known in reference.items():
        error = np.hypot(float(mcse[parameter]), known["sd"] / count**0.5)
        assert abs(draws[parameter].mean() - known["mean"]) < 4 * error, parameter
        assert draws[parameter].std() == pytest.approx(known["sd"], rel=0.1), parameter


def test_the_eager_engine_agrees_with_the_reference(shared):
    name = "eight_schools-eight_schools_noncentered"
    data, reference, count = read(shared / "posteriordb", name)
    warnings.simplefilter("ignore", probdl.FindingWarning)  # a short run
    method = probdl.NUTS(draws=300, warmup=200, chains=2, engine="eager")
    fit = probdl.infer(
        POSTERIORS[name].model, *POSTERIORS[name].arguments(data), method=method, seed=4
    )
    draws = scalars(fit.draws)
    mcse = az.mcse(to_idata({"posterior": {k: draws[k] for k in reference}}))
    for parameter, known in reference.items():
        error = np.hypot(float(mcse[parameter]), known["sd"] / count**0.5)
        assert abs(draws[parameter].mean() - known["mean"]) < 4 * error, parameter
