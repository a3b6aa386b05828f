"""The wait policy: the choice for given times of steps, and results that do not depend on it."""

import numpy as np
import pytest
import torch

import probdl
from probdl.compile.step import Parameters, _threads
from probdl.compile.workload import Workload
from probdl.methods.training.optimizers import ScheduledOptimizer
from probdl.models import VAE
from probdl.util import openmp
from probdl.util.openmp import ACTIVE, ONE_THREAD, PASSIVE, Threads

gnu = pytest.mark.skipif(openmp._gomp() is None, reason="torch has another OpenMP here")


class RecordedPolicy(openmp.WaitPolicy):
    """A policy that records its switches and changes nothing in OpenMP."""

    ways = (ACTIVE, ONE_THREAD, PASSIVE)

    def __init__(self):
        self.switches = 0
        super().__init__()

    def _switch(self, way):
        self.switches += way != self.way
        self.way = way


def run(policy, steps, active, one, passive):
    """Record steps with these times under each way to wait; return the total time."""
    total = 0.0
    for _ in range(steps):
        seconds = {ACTIVE: active, ONE_THREAD: one, PASSIVE: passive}[policy.way]
        policy.record(seconds)
        total += seconds
    return total


def test_waiting_is_active_on_idle_cores():
    policy = RecordedPolicy()
    total = run(policy, 10_000, active=1.0, one=1.8, passive=1.1)
    assert policy.way == ACTIVE
    assert total < 10_000 * 1.01
    assert policy.switches < 30


@pytest.mark.parametrize(("way", "one", "passive"), [(ONE_THREAD, 2.0, 3.0), (PASSIVE, 3.0, 2.0)])
def test_the_fastest_way_is_chosen_on_busy_cores(way, one, passive):
    policy = RecordedPolicy()
    total = run(policy, 5000, active=50.0, one=one, passive=passive)
    assert policy.way == way
    assert total < 5000 * 2.0 * 1.1


def test_comparisons_take_a_small_share_of_the_time():
    policy = RecordedPolicy()
    run(policy, 100, active=350.0, one=8.0, passive=12.0)
    assert run(policy, 5000, active=350.0, one=8.0, passive=12.0) < 5000 * 8.0 * 1.05


def test_short_steps_do_not_switch_unless_they_become_slow():
    policy = RecordedPolicy()
    run(policy, 5000, active=0.5e-3, one=0.4e-3, passive=1e-3)
    assert policy.switches == 0
    run(policy, 500, active=9e-3, one=4e-3, passive=3e-3)
    assert policy.way == PASSIVE


def test_very_slow_steps_are_compared_within_seconds():
    policy = RecordedPolicy()
    assert run(policy, 120, active=0.35, one=5e-3, passive=4e-3) < 2.5
    assert policy.way == PASSIVE


def test_the_policy_follows_changes_of_the_load():
    policy = RecordedPolicy()
    run(policy, 3000, active=1.0, one=1.9, passive=1.1)
    assert run(policy, 1000, active=50.0, one=3.0, passive=2.0) < 1000 * 2.0 * 1.3
    assert policy.way == PASSIVE
    run(policy, 8000, active=1.0, one=1.9, passive=1.1)
    assert policy.way == ACTIVE


@gnu
def test_sleeping_threads_start_and_end():
    library = openmp._gomp()
    with openmp.sleeping_threads(3) as supported:
        assert supported
        assert library.omp_get_max_threads() >= 1
        x = torch.randn(512, 512)
        assert torch.equal(x @ x, x @ x)
    with openmp.sleeping_threads(1), openmp.sleeping_threads(2):
        pass


def test_another_openmp_is_not_changed(monkeypatch):
    monkeypatch.setattr(openmp, "_gomp", lambda: None)
    with openmp.sleeping_threads(3) as supported:
        assert not supported
    with openmp.wait_policy() as policy:
        policy.use(Threads.ALL)
        assert policy.ways == [ACTIVE]
        policy.use(Threads.ANY)
        assert policy.ways == [ACTIVE, ONE_THREAD]


@pytest.mark.filterwarnings("ignore")
def test_fits_are_identical_under_every_wait_policy(monkeypatch):
    x = (torch.rand(256, 28, 28, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    before = torch.get_num_threads()

    def fit():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vae = VAE.mlp((28, 28), latent_dim=20, hidden=400)  # small steps never wait
        method = probdl.SVI(steps=60, batch_size=128, draws=1)
        return probdl.infer(vae, x, method=method, seed=1, progress=False)

    switches, ways, switch = [], set(), openmp.WaitPolicy._switch

    def recorded_switch(self, way):
        switches.append(way)
        ways.update(self.ways)
        switch(self, way)

    record = openmp.WaitPolicy.record

    def record_equal_times(self, seconds):
        record(self, 0.15)  # whatever this machine takes: two steps are a measurement

    monkeypatch.setattr(openmp.WaitPolicy, "_switch", recorded_switch)
    monkeypatch.setattr(openmp.WaitPolicy, "record", record_equal_times)
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(openmp, "COMPARISON_COST", 1e6)
        monkeypatch.setattr(openmp, "COMPARE_AFTER_STEPS", 4)
        monkeypatch.setattr(openmp, "TIMED_STEPS", 2)
        switched = fit()
        assert PASSIVE in switches
        assert set(switches) >= ways - {ACTIVE}  # one thread only where it gives the same
        monkeypatch.setattr(openmp.WaitPolicy, "ways", [ACTIVE])
        unswitched = fit()
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(switched.stats["elbo"], unswitched.stats["elbo"])
    for name, value in unswitched.stats["params"].items():
        np.testing.assert_array_equal(switched.stats["params"][name], value)


def workload(call, *shapes):
    leaves = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    with Workload() as work:
        call(*leaves).sum().backward()
    return work


@pytest.mark.parametrize(
    ("call", "shapes", "multiplications"),
    [
        (torch.matmul, [(8, 3), (3, 5)], 8 * 3 * 5),
        (torch.matmul, [(8, 3), (3,)], 8 * 3),
        (torch.matmul, [(2, 8, 3), (2, 3, 5)], 2 * 8 * 3 * 5),
        (torch.nn.functional.linear, [(8, 3), (5, 3), (5,)], 8 * 3 * 5),
        (torch.vmap(torch.matmul, (0, None)), [(4, 8, 3), (3, 5)], 4 * 8 * 3 * 5),
        (torch.nn.functional.conv2d, [(2, 3, 8, 8), (4, 3, 5, 5)], 2 * 4 * 4 * 4 * 3 * 25),
        (torch.exp, [(8, 3)], 0),
    ],
)
def test_the_multiplications_of_a_step_are_counted(call, shapes, multiplications):
    assert workload(call, *shapes).multiplications == multiplications


@pytest.mark.parametrize(("rows", "parallel"), [(32767, False), (32768, True)])
def test_elementwise_operations_are_parallel_from_the_grain_size_of_torch(rows, parallel):
    assert workload(torch.exp, (rows,)).parallel == parallel
    assert workload(lambda x: x.sum(), (rows,)).parallel == parallel


def _vae(side, hidden):
    torch.manual_seed(0)
    rows = torch.rand(60, side, side, generator=torch.Generator().manual_seed(1))
    return VAE.mlp((side, side), latent_dim=3, hidden=hidden), (rows < 0.3).float()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize(("hidden", "threads"), [(8, 1), (256, 2)])
def test_a_step_of_small_operations_uses_one_thread(monkeypatch, engine, hidden, threads):
    used, step = [], openmp.WaitPolicy.step

    def recorded_step(self):
        used.append(torch.get_num_threads())
        step(self)
        if len(used) == 15:
            raise KeyboardInterrupt

    monkeypatch.setattr(openmp.WaitPolicy, "step", recorded_step)
    monkeypatch.setattr(openmp, "SHORT_STEP_SECONDS", float("inf"))  # no waits, however busy
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        vae, x = _vae(20, hidden)
    torch.set_num_threads(2)
    try:
        method = probdl.SVI(steps=100, batch_size=30, engine=engine)
        probdl.infer(vae, x, method=method, seed=1, progress=False)
        assert used == [threads] * 15
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class _Sum:
    """A step whose gradient depends on the number of threads."""

    threads, engine = Threads.ALL, "eager"

    def __init__(self, depends):
        self.parameters = Parameters([torch.zeros(3)])
        self.depends = depends

    def begin_block(self, size=1, stream=None):
        pass

    def __call__(self, data):
        share = torch.get_num_threads() if self.depends else 1
        for value in self.parameters.values:
            value.grad = torch.full_like(value, 1.0 + 1e-6 * share)
        return 1.0


@pytest.mark.parametrize(
    ("depends", "parallel", "threads"),
    [(True, True, Threads.ALL), (False, True, Threads.ANY), (True, False, Threads.ONE)],
)
def test_one_thread_is_an_option_only_where_it_gives_the_same_bits(depends, parallel, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        step = _Sum(depends)
        assert _threads(step, parallel, step.parameters, [], []) is threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("optimizer", "clip_norm", "elementwise"),
    [("Adam", None, True), ("Adam", 1.0, False), ("ASGD", None, False)],
)
def test_a_clipped_gradient_depends_on_the_sum_over_all(optimizer, clip_norm, elementwise):
    parameters = Parameters([torch.zeros(3)])
    made = ScheduledOptimizer(parameters, ["a"], optimizer, 0.1, "constant", clip_norm, True)
    assert made.elementwise is elementwise
