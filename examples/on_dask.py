"""Simulation-based calibration on a Dask cluster: is NUTS right for this model?

    python examples/on_dask.py                       # a cluster of two processes on this machine
    python examples/on_dask.py tcp://scheduler:8786  # the workers of a scheduler

Start a scheduler by ``dask scheduler``, and workers on any machines that have the same packages by
``dask worker tcp://scheduler:8786 --nworkers auto --nthreads 1``.
"""

import sys

import numpy as np
import pyro
import pyro.distributions as dist
from dask.distributed import Client, LocalCluster

import probdl
from probdl.montecarlo import calibrate


def model(dose, deaths):
    """Draw the deaths of five animals at each dose, by a logistic curve."""
    level = pyro.sample("level", dist.Normal(0.0, 1.5))
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    with pyro.plate("group", len(dose)):
        pyro.sample("deaths", dist.Binomial(5, logits=level + slope * dose), obs=deaths)


def main(address):
    """Calibrate NUTS on a cluster."""
    local = LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    with local, Client(address or local) as client:
        dose = np.array([-0.9, -0.3, -0.1, 0.7])
        method = probdl.NUTS(chains=1, draws=400, warmup=400)
        found = calibrate(model, method, (dose, np.zeros(4)), seed=1, executor=client)
    print(found)
    print("calibrated" if found.calibrated else "not calibrated")


if __name__ == "__main__":  # the processes of a LocalCluster import this file
    main(sys.argv[1] if len(sys.argv) > 1 else None)
