"""Compilation of log densities and training steps to native code. See README.md for the stages."""

from probdl.compile.engine import ENGINES, Evaluator, choose

__all__ = ["ENGINES", "Evaluator", "choose"]
