"""Ctrl-C at any moment of any long call: a result that says so, or KeyboardInterrupt; no hang."""

import json
import os
import random
import subprocess
import sys

import pytest

from tests.attack.hostile import LIMIT_S, count, no_hang, some

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Children of a process that has imported and compiled everything are interrupted. A call is long
# enough to be met, whatever the machine; one that ends by itself counts as interrupted too late.
INTERRUPTED = r"""
import json, os, signal, sys, time, warnings
import numpy as np, probdl
from probdl import montecarlo
from probdl.models import linear_regression, normal_normal

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
x = rng.normal(size=(30, 2)); y = x @ [1.0, 2.0] + rng.normal(size=30)
fit = probdl.infer(linear_regression, x, y, method="laplace", seed=1)
nuts = probdl.infer(linear_regression, x, y, seed=1, method=probdl.NUTS(draws=50, warmup=50))
many = np.tile(x, (300, 1)), np.tile(y, 300)
folds = probdl.NUTS(draws=20_000, warmup=2000)
long = probdl.infer(linear_regression, x, y, seed=1, method=probdl.NUTS(draws=20_000, warmup=2000))
arguments = (np.ones(4), np.zeros(4))

def infer(method):
    return lambda: probdl.infer(linear_regression, x, y, method=method, seed=1)

CALLS = {
    "nuts": infer(probdl.NUTS(draws=10**6)),
    "nuts in warm-up": infer(probdl.NUTS(warmup=10**6, draws=10)),
    "nuts, eager": infer(probdl.NUTS(draws=10**5, engine="eager", chains=1, warmup=50)),
    "hmc": infer(probdl.HMC(draws=10**6)),
    "hmc in warm-up": infer(probdl.HMC(warmup=10**6)),
    "metropolis": infer(probdl.Metropolis(draws=10**6)),
    "metropolis in warm-up": infer(probdl.Metropolis(warmup=10**6)),
    "map": infer(probdl.MAP(starts=10**5)),
    "laplace": infer(probdl.Laplace(starts=10**5)),
    "pathfinder": infer(probdl.Pathfinder(paths=10**5)),
    "importance": infer(probdl.Importance(num_samples=10**7)),
    "svi": infer(probdl.SVI(steps=10**7)),
    "predict": lambda: nuts.predict(np.tile(x, (20_000, 1))),
    "log predictive": lambda: long.log_predictive(*many),
    "cross-validation": lambda: long.cross_validate(5, workers=1),
    "cross-validation, 2 processes": lambda: long.cross_validate(5, workers=2),
    "study": lambda: montecarlo.study(
        linear_regression, folds, sizes=[50], replicates=1000, workers=1, seed=1,
        arguments=lambda n: (np.ones((n, 2)), np.ones(n)),
        truth={"intercept": 0.0, "beta": 1.0, "sigma": 1.0}),
    "calibrate": lambda: montecarlo.calibrate(
        normal_normal, folds, arguments, simulations=1000, workers=1),
    "calibrate, 2 processes": lambda: montecarlo.calibrate(
        normal_normal, folds, arguments, simulations=1000, workers=2),
}

def outcome(call):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.stdout.write(f"{os.getpid()}\n"); sys.stdout.flush()
        result = call()
    except KeyboardInterrupt:
        return "interrupt"
    except probdl.ProbdlError as error:
        return f"refused: {error}" if "interrupted" in str(error) else f"ERROR {error!r}"
    except BaseException as error:
        import traceback
        return "RAW " + "".join(traceback.format_exception(error)[-3:])
    if hasattr(result, "diagnose"):
        found = [f.check for f in result.diagnose()]
    else:
        found = getattr(result, "attrs", {}).get("findings", {})
    return "result, interrupted" if "interrupted" in found else "result"

print("ready", flush=True)
for line in sys.stdin:
    name = json.loads(line)
    if (child := os.fork()) == 0:
        text = outcome(CALLS[name])
        import multiprocessing
        left = len(multiprocessing.active_children())
        print(json.dumps([text, left]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
CALLS = [
    *("nuts", "nuts in warm-up", "nuts, eager", "hmc", "hmc in warm-up", "metropolis"),
    *("metropolis in warm-up", "map", "laplace", "pathfinder", "importance", "svi", "predict"),
    *("log predictive", "cross-validation", "cross-validation, 2 processes", "study"),
    *("calibrate", "calibrate, 2 processes"),
]


@pytest.fixture(scope="module")
def process():
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    ) as running:
        assert running.stdout.readline() == "ready\n"
        yield running
        running.kill()


@pytest.mark.parametrize("moment", some(range(5)))
@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c(process, call, moment):
    import signal
    import time

    wait = random.Random(f"{call} {moment}").choice([0.0, 0.02, 0.1, 0.3, 1.0])
    process.stdin.write(json.dumps(call) + "\n")
    process.stdin.flush()
    child = int(process.stdout.readline())  # when the call begins
    try:
        with no_hang(5 * LIMIT_S):
            time.sleep(wait)
            os.kill(child, signal.SIGINT)
            text, left = json.loads(process.stdout.readline())
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    count("interrupt", text)
    assert text in ("interrupt", "result, interrupted") or text.startswith("refused"), text
    assert left == 0
