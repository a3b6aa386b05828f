"""Several processes at once: loads during saves, workers that die, and more chains than memory."""

import os
import signal

import numpy as np
import pytest

import probdl
from probdl.models import normal_normal
from probdl.util.parallel import parallel_map
from tests.attack.hostile import FULL, no_hang

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
LOADS = 200 if FULL else 40


def test_a_load_during_saves_returns_one_fit(tmp_path):
    data = [np.zeros(2000), np.ones(2000)]
    fits = [
        probdl.infer(normal_normal, np.ones(2000), y, method="map", seed=i)
        for i, y in enumerate(data)
    ]
    fits[0].save(tmp_path)
    writers = []
    for fit in fits:
        if (child := os.fork()) == 0:
            while True:
                fit.save(tmp_path)
        writers.append(child)
    try:
        seeds = set()
        with no_hang(600):
            for _ in range(LOADS):
                fit = probdl.load(tmp_path)
                seed = fit.seed
                assert fit.program.arguments["y"].eq(seed).all()
                assert (fit.idata.observed_data["y"].values == seed).all()
                assert fit.draws["mu"].item() == pytest.approx(seed, abs=0.01)
                seeds.add(seed)
    finally:
        for child in writers:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert seeds == {0, 1}


def test_a_worker_that_dies_is_an_error_and_no_hang():
    parent = os.getpid()

    def work(index, _):
        if os.getpid() != parent and index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    with no_hang(), pytest.raises(probdl.ModelError, match=r"signal 9.*workers=1"):
        parallel_map(work, range(8), workers=2, progress=False)
    assert parallel_map(lambda i, _: i, range(8), workers=3, progress=False) == list(range(8))


def test_errors_of_workers_reach_the_user():
    def work(index, _):
        if index == 5:
            raise probdl.DataError("task 5")
        return (lambda: None) if index == 6 else index

    with no_hang(), pytest.raises(probdl.DataError, match="task 5"):
        parallel_map(work, range(6), workers=2, progress=False)
    with no_hang(), pytest.raises(probdl.ModelError, match="cannot be sent"):
        parallel_map(lambda i, _: lambda: i, range(6), workers=2, progress=False)


ABSURD = [
    *(probdl.NUTS(draws=1, warmup=1, chains=10**7), probdl.HMC(draws=1, warmup=1, chains=10**7)),
    *(probdl.Laplace(draws=10**9), probdl.Pathfinder(draws=10**9, paths=100)),
    *(probdl.NUTS(draws=10**9), probdl.Metropolis(draws=10**9)),
    probdl.Importance(num_samples=10**9, draws=10**9),
]


@pytest.mark.parametrize("method", ABSURD, ids=repr)
def test_more_than_the_memory_holds_is_refused(method):
    import pyro
    import pyro.distributions as dist

    def wide():
        with pyro.plate("rows", 100):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with no_hang(), pytest.raises(probdl.SettingError, match="GiB of memory"):
        probdl.infer(wide, method=method, seed=1)


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [
        (probdl.MAP, "starts", 10**30),
        (probdl.Laplace, "starts", 10**10),
        (probdl.SVI, "steps", 10**12),
        (probdl.SVI, "num_particles", 10**30),
        (probdl.NUTS, "max_treedepth", 10**30),
        (probdl.Pathfinder, "paths", 2**70),
    ],
)
def test_more_work_than_anybody_has_time_for_is_refused(method, setting, value):
    with pytest.raises(probdl.SettingError, match="must be at most"):
        method(**{setting: value})


def test_numbers_of_numpy_become_numbers_of_python():
    method = probdl.SVI(batch_size=np.int64(3), learning_rate=np.float32(0.5), steps=np.int32(50))
    assert type(method.batch_size) is int
    assert type(method.learning_rate) is float
    assert repr(method) == "SVI(steps=50, batch_size=3, learning_rate=0.5)"
    fit = probdl.infer(normal_normal, np.ones(9), np.ones(9), method=method, seed=1)
    assert np.isfinite(fit.draws["mu"]).all()
