"""Ready-made models, one file per family, in plain Pyro: copy one as a start for your own."""

from probdl.models import markov
from probdl.models.conjugate import beta_binomial, gamma_poisson, normal_normal
from probdl.models.hierarchical import eight_schools
from probdl.models.markov import categorical_hmm, gaussian_hmm, markov_chain, state_space
from probdl.models.regression import linear_regression, logistic_regression
from probdl.models.vae import VAE

__all__ = [
    "VAE",
    "beta_binomial",
    "categorical_hmm",
    "eight_schools",
    "gamma_poisson",
    "gaussian_hmm",
    "linear_regression",
    "logistic_regression",
    "markov",
    "markov_chain",
    "normal_normal",
    "state_space",
]
