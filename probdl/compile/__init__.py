"""Log densities as native code: traced, written as C, compiled, verified, cached."""

from probdl.compile.engine import ENGINES, Evaluator, choose

__all__ = ["ENGINES", "Evaluator", "choose"]
