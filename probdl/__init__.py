"""Bayesian inference and maximum likelihood for Pyro models, in one call.

>>> import numpy as np, pyro, pyro.distributions as dist, probdl
>>> def model(y):
...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
>>> fit = probdl.infer(model, np.array([1.0, 2.0, 3.0]), method="mle", seed=1)
>>> round(fit.draws["mu"].item(), 6)
2.0
"""

# The public names are listed in __init__.pyi and imported on first use, so that commands such as
# `probdl --help` run without importing torch.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
