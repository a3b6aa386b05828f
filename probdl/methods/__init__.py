"""Inference methods, one per file. A new method needs its file, and an import here."""

from probdl.methods.adversarial.gan import GAN
from probdl.methods.approximate.importance import Importance
from probdl.methods.approximate.laplace import Laplace
from probdl.methods.approximate.pathfinder import Pathfinder
from probdl.methods.base import METHODS, Method, resolve
from probdl.methods.mcmc.metropolis import Metropolis
from probdl.methods.mcmc.nuts import HMC, NUTS
from probdl.methods.mcmc.watching import Until
from probdl.methods.point.map import MAP
from probdl.methods.point.mle import MLE
from probdl.methods.variational.svi import SVI

__all__ = [
    "GAN",
    "HMC",
    "MAP",
    "METHODS",
    "MLE",
    "NUTS",
    "SVI",
    "Importance",
    "Laplace",
    "Method",
    "Metropolis",
    "Pathfinder",
    "Until",
    "resolve",
]
