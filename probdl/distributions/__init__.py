"""Distributions for Pyro programs that Pyro lacks.

They are plain Pyro distributions: ``import probdl.distributions as pdist`` beside
``pyro.distributions``, for latent and observed sites, with every method and in Pyro itself.
"""

from probdl.distributions.censored import Censored, IntervalCensored
from probdl.distributions.continuous import GeneralizedPareto, InverseGaussian, SkewNormal
from probdl.distributions.hurdle import Hurdle
from probdl.distributions.spatial import CAR, ICAR, Adjacency
from probdl.distributions.truncated import Truncated
from probdl.distributions.wishart import Wishart
from probdl.distributions.zero_sum import ZeroSumNormal

__all__ = [
    "CAR",
    "ICAR",
    "Adjacency",
    "Censored",
    "GeneralizedPareto",
    "Hurdle",
    "IntervalCensored",
    "InverseGaussian",
    "SkewNormal",
    "Truncated",
    "Wishart",
    "ZeroSumNormal",
]
