"""Inference methods, one a file. To add one is to add a file, and a line here."""

from probdl.methods.base import METHODS, Method, resolve
from probdl.methods.laplace import Laplace
from probdl.methods.map import MAP
from probdl.methods.mle import MLE
from probdl.methods.nuts import HMC, NUTS

__all__ = ["HMC", "MAP", "METHODS", "MLE", "NUTS", "Laplace", "Method", "resolve"]
