"""Monte Carlo: expectations, what estimators do over repeated data, and calibration."""

from probdl.montecarlo.calibration import Calibration, calibrate
from probdl.montecarlo.expectation import Expectation, expectation
from probdl.montecarlo.study import study

__all__ = ["Calibration", "Expectation", "calibrate", "expectation", "study"]
