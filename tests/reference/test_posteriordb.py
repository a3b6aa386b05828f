"""NUTS against the reference posteriors of posteriordb."""

import arviz as az
import numpy as np
import pytest

import probdl
from probdl.idata import to_idata
from tests.reference.posteriors import POSTERIORS, read, scalars

# Pyro's kernels take milliseconds a gradient, so these five, of at most 10 parameters each.
EAGER = {
    "eight_schools-eight_schools_noncentered": probdl.NUTS(draws=1000, warmup=500, chains=2),
    "arK-arK": probdl.NUTS(draws=800, warmup=400, chains=2),
    "gp_pois_regr-gp_regr": probdl.NUTS(draws=800, warmup=400, chains=2),
    "mesquite-logmesquite": probdl.NUTS(draws=800, warmup=600, chains=2, mass_matrix="dense"),
    "sblrc-blr": probdl.NUTS(draws=800, warmup=400, chains=2),
}


@pytest.mark.parametrize("name", EAGER)
def test_nuts_agrees_with_the_reference(name, shared):
    posterior = POSTERIORS[name]
    data, reference, count = read(shared / "posteriordb", name)
    fit = probdl.infer(posterior.model, *posterior.arguments(data), method=EAGER[name], seed=4)
    draws = scalars(posterior.parameters(fit.draws, data))
    assert set(reference) <= set(draws)
    kept = to_idata({"posterior": {k: draws[k] for k in reference}})
    mcse, sd = az.mcse(kept), {k: draws[k].std() for k in reference}
    for parameter, known in reference.items():
        error = np.hypot(float(mcse[parameter]), known["sd"] / count**0.5)
        assert abs(draws[parameter].mean() - known["mean"]) < 4 * error, parameter
        assert sd[parameter] == pytest.approx(known["sd"], rel=0.1), parameter
