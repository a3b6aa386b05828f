"""Programs as Pyro's users write them, with data, what is fitted, and the right answer.

``tests/pyro_programs/test_programs.py`` fits each; ``benchmarks/pyro_programs.py`` times each
beside Pyro.
"""

from tests.pyro_programs.programs import discrete, idioms, networks, regressions, series
from tests.pyro_programs.programs.registry import PROGRAMS, Program

__all__ = ["PROGRAMS", "Program", "discrete", "idioms", "networks", "regressions", "series"]
