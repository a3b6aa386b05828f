"""Inference methods, one a file. To add one is to add a file, and a line here."""

from probdl.methods.base import METHODS, Method, resolve
from probdl.methods.gan import GAN
from probdl.methods.importance import Importance
from probdl.methods.laplace import Laplace
from probdl.methods.map import MAP
from probdl.methods.metropolis import Metropolis
from probdl.methods.mle import MLE
from probdl.methods.nuts import HMC, NUTS
from probdl.methods.pathfinder import Pathfinder
from probdl.methods.svi import SVI

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
    "resolve",
]
