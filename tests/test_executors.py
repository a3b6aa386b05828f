"""Fits on executors: equal to those of one process, also where workers end."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import cloudpickle
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.montecarlo import calibrate, study
from probdl.util import executors, parallel
from probdl.util.executors import on_executor

pytestmark = [
    pytest.mark.filterwarnings("ignore::probdl.FindingWarning"),
]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
Y = X @ [1.0, -1.0] + RNG.normal(size=40)
# Processes of a server without threads: a fork beside threads may inherit a lock that is held.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["probdl.montecarlo", "probdl.methods.laplace"])


def regression(x, y):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


@pytest.fixture(scope="module")
def pool():
    """Two processes that inherit nothing."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


def test_a_calibration_on_processes_equals_one_here(pool):
    settings = {"simulations": 40, "num_draws": 19, "seed": 3}
    method = probdl.Laplace(draws=25)
    here = calibrate(regression, method, (X, Y), workers=1, **settings)
    there = calibrate(regression, method, (X, Y), executor=pool, **settings)
    np.testing.assert_array_equal(here.ranks, there.ranks)


@pytest.mark.parametrize("method", ["mle", probdl.NUTS(draws=30, warmup=50, chains=1)])
def test_a_study_on_processes_equals_one_here(pool, method):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    settings = {"sizes": [4, 16], "replicates": 12, "seed": 1}
    here = study(model, method, {"mu": 2.0}, workers=1, **settings)
    there = study(model, method, {"mu": 2.0}, executor=pool, **settings)
    for name in ("bias", "variance"):
        np.testing.assert_array_equal(here[name], there[name])


def test_a_cross_validation_on_processes_or_threads_equals_one_here(pool):
    fit = probdl.infer(regression, X, Y, method="laplace", seed=1)
    here = fit.cross_validate(5, workers=1)
    np.testing.assert_array_equal(here.pointwise, fit.cross_validate(5, executor=pool).pointwise)
    with ThreadPoolExecutor(2) as threads:
        there = fit.cross_validate(5, executor=threads)
    np.testing.assert_array_equal(here.pointwise, there.pointwise)


def results(executor, work, count=20):
    items = [np.arange(i) for i in range(count)]
    return dict(on_executor(executor, work, items, range(count), str))


def test_large_work_travels_only_to_workers_that_lack_it(monkeypatch):
    monkeypatch.setattr(executors, "SMALL_BYTES", 0)
    sent = []
    original = executors._run
    monkeypatch.setattr(
        executors, "_run", lambda *call: sent.append(call[1] is not None) or original(*call)
    )
    with ThreadPoolExecutor(1) as threads:
        assert results(threads, lambda i, x: i + len(x)) == {i: 2 * i for i in range(20)}
    assert 1 <= sum(sent) <= executors.CALLS


def test_parts_of_a_large_array_travel_without_the_rest():
    sent, works = [], []

    class Counting(ThreadPoolExecutor):
        def submit(self, fn, *args):
            works.append(len(args[1]))
            sent.append(len(args[2]))
            return super().submit(fn, *args)

    rows = torch.zeros(100, 10_000)
    first = rows[0]
    with Counting(1) as threads:
        found = dict(
            on_executor(
                threads, lambda i, x: len(x[0]) + len(first), [(r,) for r in rows], range(100), str
            )
        )
    assert found == dict.fromkeys(range(100), 20_000)
    assert sum(sent) < 1.1 * 100 * 10_000 * 4
    assert max(works) < 1.1 * 10_000 * 4


class Fresh:
    """Runs each call in a separate process, which may end."""

    def submit(self, fn, *args):
        executor = ProcessPoolExecutor(1, SERVER)
        future = executor.submit(fn, *args)
        executor.shutdown(wait=False)
        return future


def _ends_once(folder):
    """Return work that ends its worker at the first attempt at two tasks."""

    def work(i, x):
        mark = folder / f"{i}"
        if i in (3, 7) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return len(x)

    return work


def test_a_task_whose_worker_ended_is_sent_again(tmp_path):
    assert results(Fresh(), _ends_once(tmp_path), 10) == {i: i for i in range(10)}


def ends_at(which):
    """Return work that ends its worker at some tasks."""

    def work(i, x):
        if i in which:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(x)

    return work


def test_a_task_that_ends_every_worker_is_lost_alone():
    found = results(Fresh(), ends_at([3]), 6)
    assert "task 3 ended 3 times" in found.pop(3)
    assert found == {i: i for i in (0, 1, 2, 4, 5)}


def test_a_task_that_ends_its_worker_before_any_other_is_done_is_lost_alone():
    def work(i, x):
        if i == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3)
        return i

    found = results(Fresh(), work, 3)
    assert "task 0 ended 3 times" in found.pop(0)
    assert found == {1: 1, 2: 2}


def test_workers_that_can_do_nothing_are_named():
    with pytest.raises(probdl.ModelError, match="lack a package"):
        results(Fresh(), ends_at(range(10)), 10)


def test_a_pool_that_breaks_keeps_what_is_done():
    with ProcessPoolExecutor(1, SERVER) as one:
        found = results(one, ends_at([60]), 100)
    assert list(found) == list(range(100))
    assert found[0] == 0
    assert "takes no more work" in found[60]
    assert "takes no more work" in found[99]
    with (
        ProcessPoolExecutor(1, SERVER) as one,
        pytest.raises(probdl.ModelError, match="takes no more work"),
    ):
        results(one, ends_at([0]), 100)


def test_a_lost_fit_of_a_calibration_is_a_failed_one():
    def model(x, y):
        if y.sum() > 14 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        regression(x, y)

    settings = {"simulations": 24, "num_draws": 19, "seed": 3}
    found = calibrate(model, "laplace", (X, Y), executor=Fresh(), **settings)
    assert 0 < found.failed <= 4
    assert found.ranks.sizes["simulation"] == 24 - found.failed
    (finding,) = (f for f in found.findings if f.check == "failed_fits")
    assert "ended 3 times" in finding.message


def test_an_error_on_a_worker_is_raised_here_with_its_place(pool):
    def work(i, x):
        raise KeyError(f"in task {i}")

    with pytest.raises(KeyError, match="in task") as caught:
        results(pool, work, 1)
    assert "in work" in "".join(caught.value.__notes__)

    def refuses(i, x):
        raise probdl.DataError("The data are wrong.")

    with pytest.raises(probdl.DataError, match="are wrong") as caught:
        results(pool, refuses, 1)
    assert not hasattr(caught.value, "__notes__")


def test_an_exit_on_a_worker_does_not_end_this_process(pool):
    def work(i, x):
        raise SystemExit(3)

    with pytest.raises(probdl.ModelError, match="SystemExit on a worker: 3"):
        results(pool, work, 1)


def test_an_executor_that_is_closed_is_named():
    with ThreadPoolExecutor(1) as closed:
        pass
    with pytest.raises(probdl.ModelError, match=r"RuntimeError.*Pass one that is running"):
        results(closed, lambda i, x: i, 3)


class Answering:
    """An executor in this thread whose futures have other results, or announce theirs twice."""

    def __init__(self, change):
        self._change = change

    def submit(self, fn, *args):
        future = Future()
        future.set_result(self._change(fn(*args)))
        return future


@pytest.mark.parametrize("answer", [None, 3, b"x", (1, 2)])
def test_an_executor_that_returns_something_else_is_named(answer):
    with pytest.raises(probdl.ModelError, match=r"executor returned .* instead of the result"):
        results(Answering(lambda _: answer), lambda i, _: i, count=3)


def test_an_executor_that_returns_the_results_of_other_calls_is_named():
    seen = []
    with pytest.raises(probdl.ModelError, match="result of another call"):
        results(Answering(lambda x: seen.append(x) or seen[0]), lambda i, _: i, count=3)


def test_a_result_that_is_announced_twice_counts_once():
    class Twice(ThreadPoolExecutor):
        def submit(self, fn, *args):
            future = super().submit(fn, *args)
            added = future.add_done_callback
            future.add_done_callback = lambda call: (added(call), added(call))
            return future

    with Twice(1) as threads:
        assert results(threads, lambda i, _: i, count=5) == {i: i for i in range(5)}


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x, y=None):
        pyro.module("net", self)  # Pyro gives its parameters attributes that cannot be pickled
        with pyro.plate("rows", len(x)):
            mean = self.linear(x.float()).squeeze(-1)
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_a_network_in_pyros_store_travels(pool):
    fit = probdl.infer(Line(), X, Y, method=probdl.SVI(steps=50), seed=1)
    here = fit.cross_validate(4, workers=1)
    np.testing.assert_array_equal(here.pointwise, fit.cross_validate(4, executor=pool).pointwise)


def test_parameters_keep_their_kind_and_other_attributes():
    parameter = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    value = torch.zeros(2, requires_grad=True)
    for tensor in (parameter, value):
        tensor.unconstrained, tensor.note = weakref.ref(tensor), "kept"
    found = cloudpickle.loads(executors._pickled([parameter, value, parameter]))
    assert found[0] is found[2]
    assert type(found[0]) is torch.nn.Parameter
    assert (found[0].requires_grad, found[1].requires_grad) == (False, True)
    assert (found[0].note, found[1].note) == ("kept", "kept")
    assert found[0].tolist() == [1.0] * 3


def test_what_cannot_be_pickled_is_named(pool):
    lock = threading.Lock()
    with pytest.raises(probdl.ModelError, match="cannot be sent to workers"):
        results(pool, lambda i, x: lock, 3)
    with pytest.raises(probdl.ModelError, match="result cannot be sent"):
        results(pool, lambda i, x: threading.Lock(), 3)


def test_ctrl_c_cancels_what_waits_and_keeps_what_is_done(interruptible):
    done = []

    def work(i, x):
        done.append(i)
        if i == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return i

    with ThreadPoolExecutor(1) as threads:
        found = probdl.util.parallel.parallel_map(
            work, list(range(100_000)), executor=threads, progress=False
        )
    assert found == list(range(len(found)))
    assert 1 <= len(found) < 100_000
    assert len(done) < 100_000


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"executor": 4}, "executor.*Executor or a Dask Client"),
        ({"executor": ThreadPoolExecutor}, "executor.*Executor or a Dask Client"),
        ({"executor": ThreadPoolExecutor(1), "workers": 2}, "cannot be combined"),
    ],
)
def test_wrong_executors_are_named(settings, match):
    with pytest.raises(probdl.SettingError, match=match):
        calibrate(regression, "laplace", (X, Y), **settings)


def test_dask_and_loky_run_fits(tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    loky = pytest.importorskip("loky", reason="loky is not installed")
    fit = probdl.infer(regression, X, Y, method="laplace", seed=1)
    here = fit.cross_validate(5, workers=1)
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = fit.cross_validate(5, executor=client)
        fourth = fit.cross_validate(5, executor=client.get_executor())
        assert results(client, _ends_once(tmp_path), 10) == {i: i for i in range(10)}
    np.testing.assert_array_equal(here.pointwise, fourth.pointwise)
    with loky.get_reusable_executor(2) as processes:
        third = fit.cross_validate(5, executor=processes)
    np.testing.assert_array_equal(here.pointwise, third.pointwise)
    np.testing.assert_array_equal(here.pointwise, there.pointwise)


METHODS = [
    functools.partial(probdl.NUTS, sampler="native", draws=60, warmup=60),
    functools.partial(probdl.HMC, draws=30, warmup=30, chains=2),
    functools.partial(probdl.Metropolis, draws=50, warmup=50, chains=3),
    functools.partial(probdl.Metropolis, draws=20, warmup=20, chains=2, engine="eager"),
    functools.partial(probdl.Pathfinder, draws=200, paths=3),
]


@pytest.mark.parametrize("method", METHODS)
def test_chains_and_paths_on_workers_equal_those_here(pool, method):
    here = probdl.infer(regression, X, Y, method=method(), seed=1)
    with ThreadPoolExecutor(2) as threads:
        for executor in (pool, threads):
            there = probdl.infer(regression, X, Y, method=method(executor=executor), seed=1)
            assert there.method == method()  # the fit does not hold the executor
            assert [f.check for f in there.findings] == [f.check for f in here.findings]
            np.testing.assert_array_equal(there.draws["b"], here.draws["b"])
            np.testing.assert_array_equal(there.stats["lp"], here.stats["lp"])


def test_chains_of_workers_are_extended_here(pool):
    method = probdl.NUTS(draws=60, warmup=60, chains=2)
    whole = probdl.infer(regression, X, Y, method=replace(method, draws=100), seed=1)
    part = probdl.infer(regression, X, Y, method=replace(method, executor=pool), seed=1)
    np.testing.assert_array_equal(part.extend(draws=40).draws["b"], whole.draws["b"])


def _end():
    os.kill(os.getpid(), signal.SIGKILL)


class ThirdEnds(Fresh):
    """Ends each worker of the third call, and of those that send it again."""

    calls = 0

    def submit(self, fn, *args):
        self.calls += 1
        if self.calls in (3, 5, 6):
            return super().submit(_end)
        return super().submit(fn, *args)


def test_a_chain_whose_worker_ends_is_left_out():
    method = probdl.NUTS(draws=60, warmup=60)
    whole = probdl.infer(regression, X, Y, method=method, seed=1)
    fit = probdl.infer(regression, X, Y, method=replace(method, executor=ThirdEnds()), seed=1)
    (finding,) = (f for f in fit.findings if f.check == "chain_failed")
    assert "chain 2" in finding.message
    np.testing.assert_array_equal(fit.draws["b"], whole.draws["b"][[0, 1, 3]])


def test_an_error_of_a_chain_on_a_worker_is_that_of_all():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if multiprocessing.current_process().name != "MainProcess":
            raise ValueError("not there")
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    method = probdl.HMC(draws=30, warmup=30, chains=2, executor=Fresh())
    with pytest.raises(probdl.ModelError, match="not there") as caught:
        probdl.infer(model, torch.tensor(1.0), method=method, seed=1)
    assert "All chains failed" not in f"{caught.value}"


@pytest.mark.parametrize("method", METHODS[:3])
def test_ctrl_c_keeps_the_chains_that_are_complete(interruptible, method):
    class Interrupts(ThreadPoolExecutor):
        calls = 0

        def submit(self, fn, *args):
            self.calls += 1
            if self.calls == 2:  # never done
                timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
                timer.start()
                return Future()
            return super().submit(fn, *args)

    whole = probdl.infer(regression, X, Y, method=method(), seed=1)
    with Interrupts(1) as executor:
        fit = probdl.infer(regression, X, Y, method=method(executor=executor), seed=1)
    assert "interrupted" in [f.check for f in fit.findings]
    kept = [i for i in range(whole.num_chains) if i != 1]
    np.testing.assert_array_equal(fit.draws["b"], whole.draws["b"][kept])


def test_a_time_limit_ends_the_wait_for_chains():
    class Never(ThreadPoolExecutor):
        def submit(self, fn, *args):
            return Future()

    method = probdl.HMC(executor=Never(1))
    with pytest.raises(probdl.TimeLimitError, match="time limit of 1"):
        probdl.infer(regression, X, Y, method=method, seed=1, time_limit=1.0)


@pytest.mark.parametrize("setting", [{"until": probdl.Until(ess=100)}, {"callback": print}])
def test_settings_of_this_process_are_refused_beside_an_executor(setting):
    with pytest.raises(probdl.SettingError, match="cannot be combined with"):
        probdl.NUTS(executor=ThreadPoolExecutor(1), **setting)


def test_an_executor_needs_the_sampler_in_c():
    with pytest.raises(probdl.SettingError, match="executor needs sampler='native'"):
        probdl.NUTS(executor=ThreadPoolExecutor(1), sampler="nutpie")


def test_forks_do_not_use_the_executor_of_their_parent():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    method = probdl.Pathfinder(executor=ThreadPoolExecutor(1))
    with pytest.raises(probdl.SettingError, match="cannot be used by processes that workers="):
        study(model, method, {"mu": 2.0}, sizes=[4, 8], replicates=4, workers=2, seed=1)


SCRIPT = """
import numpy as np, pyro, pyro.distributions as dist
import probdl.util.parallel
from probdl.montecarlo import study

print("the script runs")
probdl.util.parallel.can_fork = lambda: False

def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

def found(workers):
    return study(model, "mle", {"mu": 2.0}, sizes=[4], replicates=12, seed=1, workers=workers)

np.testing.assert_array_equal(found(2)["estimate"], found(1)["estimate"])
"""


def test_without_forks_new_processes_do_not_run_the_script_again(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", tmp_path / "script.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the script runs\n"


def test_without_forks_short_work_is_done_here(monkeypatch):
    monkeypatch.setattr(parallel, "can_fork", lambda: False)
    assert set(parallel.parallel_map(lambda i, x: os.getpid(), range(20))) == {os.getpid()}


def test_without_forks_ctrl_c_ends_the_processes(interruptible, monkeypatch):
    monkeypatch.setattr(parallel, "can_fork", lambda: False)
    before = multiprocessing.active_children()

    def work(i, x):
        if i == 2:
            os.kill(x, signal.SIGINT)
            time.sleep(600)
        return i

    found = parallel.parallel_map(work, [os.getpid()] * 5, workers=2)
    assert found in ([0], [0, 1])
    assert [p for p in multiprocessing.active_children() if p not in before and p.is_alive()] == []


def test_without_forks_processes_of_others_go_on(monkeypatch):
    monkeypatch.setattr(parallel, "can_fork", lambda: False)
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    submit = parallel._SpawnedPool.submit

    def submit_beside_another(*args, **kwargs):
        if other.pid is None:
            other.start()
        return submit(*args, **kwargs)

    monkeypatch.setattr(parallel._SpawnedPool, "submit", submit_beside_another)
    try:
        assert parallel.parallel_map(lambda i, x: i, range(4), workers=2) == [0, 1, 2, 3]
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


def test_without_forks_a_process_that_ends_costs_its_tasks(monkeypatch):
    monkeypatch.setattr(parallel, "can_fork", lambda: False)
    with pytest.raises(probdl.ModelError, match=r"takes no more work.*may have run out of memory"):
        parallel.parallel_map(ends_at(range(1, 5)), [()] * 5, workers=2)
