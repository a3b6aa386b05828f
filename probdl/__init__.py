"""One call from a Pyro program to its posterior.

>>> import numpy as np, pyro, pyro.distributions as dist, probdl
>>> def model(y):
...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
>>> fit = probdl.infer(model, np.array([1.0, 2.0, 3.0]), method="mle", seed=1)
>>> round(fit.draws["mu"].item(), 6)
2.0
"""

from probdl import models, montecarlo, nn
from probdl.compare import compare
from probdl.density import LogDensity
from probdl.diagnostics import Finding, Findings
from probdl.divergence import Divergence, jensen_shannon, optimal_discriminator
from probdl.errors import (
    DataError,
    FindingWarning,
    ModelError,
    ProbdlError,
    SettingError,
    TimeLimitError,
)
from probdl.fit import Fit, LogPredictive
from probdl.health import clear_cache, doctor
from probdl.infer import infer
from probdl.load import load
from probdl.methods import (
    GAN,
    HMC,
    MAP,
    MLE,
    NUTS,
    SVI,
    Importance,
    Laplace,
    Method,
    Metropolis,
    Pathfinder,
)
from probdl.twosample import TwoSample, classifier_test, mmd_test

__all__ = [
    "GAN",
    "HMC",
    "MAP",
    "MLE",
    "NUTS",
    "SVI",
    "DataError",
    "Divergence",
    "Finding",
    "FindingWarning",
    "Findings",
    "Fit",
    "Importance",
    "Laplace",
    "LogDensity",
    "LogPredictive",
    "Method",
    "Metropolis",
    "ModelError",
    "Pathfinder",
    "ProbdlError",
    "SettingError",
    "TimeLimitError",
    "TwoSample",
    "classifier_test",
    "clear_cache",
    "compare",
    "doctor",
    "infer",
    "jensen_shannon",
    "load",
    "mmd_test",
    "models",
    "montecarlo",
    "nn",
    "optimal_discriminator",
]
__version__ = "0.1.0"
