"""What each of several processes that train together runs; it prints its results as JSON."""

import hashlib
import json
import os
import sys
import threading
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import probdl
from probdl import montecarlo
from probdl.methods.training import loop
from probdl.util.clock import expire

RANK = int(os.environ.get("RANK", "0"))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 2))
Y = X @ [1.0, 2.0] + RNG.normal(size=600)


def regression(x, y=None):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ b, s), obs=y)


def digest(fit):
    """Identify the parameters and the draws of a fit."""
    arrays = [*fit.stats["params"].values(), *fit.draws.values()]
    content = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return hashlib.sha256(content).hexdigest()


def svi(**settings):
    settings = {"steps": 1000, "batch_size": 60, "learning_rate": 0.02, **settings}
    return probdl.SVI(**settings)


def fits(_):
    """Fit by all ways to get minibatches, and by a GAN."""
    found = {}
    seed = probdl.infer(regression, X, Y, method=svi(steps=10)).seed
    fit = probdl.infer(regression, X, Y, method=svi(), seed=1)
    found["rows"] = {
        "digest": digest(fit),
        "seed": seed,
        "mean": fit.draws["b"].mean((0, 1)).tolist(),
        "sd": fit.draws["b"].std((0, 1)).tolist(),
    }
    # So slow that the parameters stay where they are.
    still = svi(learning_rate=1e-9, steps=1500, patience=None)
    elbo = probdl.infer(regression, X, Y, method=still, seed=1).stats["elbo"]
    blocks = elbo.reshape(30, -1).mean(1)
    found["elbo"] = [float(blocks.mean()), float(blocks.std(ddof=1) / 30**0.5)]
    data = TensorDataset(torch.tensor(X), torch.tensor(Y))
    if torch.distributed.is_initialized():
        sampler = DistributedSampler(data)
        loader = DataLoader(data, batch_size=30, sampler=sampler)
        fit = probdl.infer(regression, loader, method=svi(batch_size=None), seed=2)
        found["sampler"] = {"digest": digest(fit), "mean": fit.draws["b"].mean((0, 1)).tolist()}
    loader = DataLoader(data, batch_size=60, shuffle=True)
    fit = probdl.infer(regression, loader, method=svi(batch_size=None), seed=2)
    found["loader"] = {"digest": digest(fit), "mean": fit.draws["b"].mean((0, 1)).tolist()}

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    critic = nn.Sequential(nn.Linear(1, 8), nn.LeakyReLU(), nn.Linear(8, 1))

    def generator(x=None, size=1):
        network = pyro.module("net", net)
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.deterministic("x", network(z.float()), event_dim=1)

    method = probdl.GAN(discriminator=critic, steps=150, batch_size=51)
    fit = probdl.infer(generator, X[:, :1].astype(np.float32), method=method, seed=3)
    found["gan"] = {"digest": digest(fit)}
    return found


def limited(_):
    """Fit with a time limit that passes on one rank first."""
    calls = []

    def passed():
        calls.append(1)
        if len(calls) > 50:
            raise expire()

    if RANK == 0:
        loop.check_time_limit = passed
    fit = probdl.infer(regression, X, Y, method=svi(steps=10**6), seed=1, time_limit=1e4)
    return {"steps": len(fit.stats["elbo"]), "checks": [f.check for f in fit.findings]}


def failing(_):
    """Fit a model that fails on one rank."""
    calls = []

    def model(x, y=None):
        calls.append(1)
        if RANK == 1 and len(calls) > 400:
            raise ValueError("this row is bad")
        regression(x, y)

    def guide(x, y=None):
        b = pyro.param("b_loc", torch.zeros(2))
        s = pyro.param("s_loc", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("b", dist.Normal(b, 0.1).to_event(1))
        pyro.sample("s", dist.LogNormal(s.log(), 0.1))

    try:
        probdl.infer(model, X, Y, method=svi(engine="eager", guide=guide), seed=1)
    except probdl.ProbdlError as error:
        return {"error": str(error)}
    return {}


def killed(folder):
    """Fit with a checkpoint; the second rank ends when there is one."""
    path = Path(folder) / "checkpoint.pt"

    def end():
        while not path.exists():
            time.sleep(0.01)
        os._exit(3)

    if RANK == 1 and not path.exists():
        threading.Thread(target=end, daemon=True).start()
    method = svi(steps=4000, checkpoint=folder, every=100)
    resumed = path.exists()
    try:
        fit = probdl.infer(regression, X, Y, method=method, seed=1)
    except probdl.ProbdlError as error:
        return {"error": str(error)}
    mean = fit.draws["b"].mean((0, 1)).tolist()
    return {"digest": digest(fit), "mean": mean, "resumed": resumed}


def refused(folder):
    """Make calls that are refused on all ranks."""
    found = {}
    calls = {
        "checkpoint": svi(steps=77, checkpoint=folder),
        "rows": svi(batch_size=1),
    }
    for name, method in calls.items():
        try:
            probdl.infer(regression, X, Y, method=method, seed=1)
        except probdl.SettingError as error:
            found[name] = str(error)
    return found


def separate(_):
    """Calibrate a method, whose fits are each by one process."""
    warnings.simplefilter("ignore")

    method = svi(steps=200, draws=99)
    found = montecarlo.calibrate(regression, method, (X, Y), simulations=20, seed=1, workers=2)
    return {"table": found.table.to_csv()}


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        result = globals()[sys.argv[1]](sys.argv[2])
    Path(sys.argv[3] + f"/{RANK}.json").write_text(json.dumps(result))
