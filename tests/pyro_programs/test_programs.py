"""Each program gives the right answer, on the engine that it should."""

import pytest

import probdl
from tests.pyro_programs.programs import PROGRAMS

SVI = {"steps": 2000, "learning_rate": 0.02, "draws": 500}


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name):
    program = PROGRAMS[name]
    method = (
        probdl.NUTS(chains=2, warmup=400, draws=500)
        if program.method == "nuts"
        else probdl.SVI(**SVI | program.settings)
    )
    fit = probdl.infer(program.model, *program.args, method=method, seed=1)
    assert fit.stats["engine"] == program.engine
    program.check(fit)


def test_there_are_enough_and_most_are_native():
    engines = [program.engine for program in PROGRAMS.values()]
    assert len(engines) >= 80
    assert engines.count("native") >= 0.9 * len(engines)
