"""Ready Pyro programs, one file a family. They are plain Pyro: copy one to start your own."""

from probdl.models.conjugate import beta_binomial, gamma_poisson, normal_normal
from probdl.models.hierarchical import eight_schools
from probdl.models.regression import linear_regression, logistic_regression
from probdl.models.vae import VAE

__all__ = [
    "VAE",
    "beta_binomial",
    "eight_schools",
    "gamma_poisson",
    "linear_regression",
    "logistic_regression",
    "normal_normal",
]
