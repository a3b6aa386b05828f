"""Monte Carlo: expectations, simulation studies of estimators, and calibration of methods."""

from probdl.montecarlo.calibration import Calibration, calibrate
from probdl.montecarlo.expectation import Expectation, expectation
from probdl.montecarlo.study import study

__all__ = ["Calibration", "Expectation", "calibrate", "expectation", "study"]
