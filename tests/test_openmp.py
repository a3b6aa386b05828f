"""How threads wait: what is chosen at given times of steps, and that no bit depends on it."""

import numpy as np
import pytest
import torch

import probdl
from probdl.compile.workload import Workload
from probdl.models import VAE
from probdl.util import openmp

gnu = pytest.mark.skipif(openmp._gomp() is None, reason="torch has another OpenMP here")


class Recorded(openmp.Waits):
    """Chooses without switching anything, at times that are made up."""

    def __init__(self):
        self.switches = 0
        super().__init__()
        self.close()
        self.usable, self.switches = True, 0

    def _switch(self, asleep):
        self.asleep = asleep
        self.switches += 1


def run(watch, steps, awake, asleep):
    """Take steps that take so long in either way; return the total time."""
    total = 0.0
    for _ in range(steps):
        seconds = asleep if watch.asleep else awake
        watch.note(seconds)
        total += seconds
    return total


def test_idle_cores_are_waited_for_awake():
    watch = Recorded()
    total = run(watch, 10_000, awake=1.0, asleep=1.1)
    assert not watch.asleep
    assert total < 10_000 * 1.005
    assert watch.switches < 20


def test_busy_cores_are_waited_for_asleep():
    watch = Recorded()
    total = run(watch, 5000, awake=50.0, asleep=2.0)
    assert watch.asleep
    assert total < 5000 * 2.0 * 1.1


def test_short_steps_are_left_alone_unless_they_become_slow():
    watch = Recorded()
    run(watch, 5000, awake=0.5e-3, asleep=1e-3)
    assert watch.switches == 0
    run(watch, 500, awake=9e-3, asleep=3e-3)
    assert watch.asleep


def test_very_slow_steps_are_compared_after_seconds():
    watch = Recorded()
    assert run(watch, 6, awake=0.35, asleep=4e-3) < 2.0
    assert watch.asleep


def test_load_that_comes_and_goes_is_seen():
    watch = Recorded()
    run(watch, 3000, awake=1.0, asleep=1.1)
    assert run(watch, 1000, awake=50.0, asleep=2.0) < 1000 * 2.0 * 1.3
    assert watch.asleep
    run(watch, 8000, awake=1.0, asleep=1.1)
    assert not watch.asleep


@gnu
def test_threads_that_sleep_come_and_go():
    library = openmp._gomp()
    with openmp.sleepers(3) as there:
        assert there
        assert library.omp_get_max_threads() >= 1
        x = torch.randn(512, 512)
        assert torch.equal(x @ x, x @ x)
    with openmp.sleepers(1), openmp.sleepers(2):
        pass


def test_another_openmp_is_left_alone(monkeypatch):
    monkeypatch.setattr(openmp, "_gomp", lambda: None)
    with openmp.sleepers(3) as there:
        assert not there
    with openmp.waits() as watch:
        watch.step()
        assert not watch.usable


@pytest.mark.filterwarnings("ignore")
def test_no_bit_of_a_fit_depends_on_how_threads_wait(monkeypatch):
    x = (torch.rand(64, 20, 20, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    before = torch.get_num_threads()

    def fit():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vae = VAE.mlp((20, 20), latent_dim=3, hidden=64)
        method = probdl.SVI(steps=60, batch_size=32, draws=2)
        return probdl.infer(vae, x, method=method, seed=1, progress=False)

    torch.set_num_threads(2)
    try:
        for name, value in (("STAY", 4), ("WINDOW", 2), ("SHORT", 0.0)):
            monkeypatch.setattr(openmp, name, value)
        often = fit()
        monkeypatch.setattr(openmp, "_gomp", lambda: None)
        never = fit()
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(often.stats["elbo"], never.stats["elbo"])
    for name, value in never.stats["params"].items():
        np.testing.assert_array_equal(often.stats["params"][name], value)


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
def test_the_work_of_a_step_is_counted(call, shapes, multiplications):
    assert workload(call, *shapes).multiplications == multiplications


@pytest.mark.parametrize(("rows", "parallel"), [(32767, False), (32768, True)])
def test_torch_divides_long_rows_from_its_own_size_on(rows, parallel):
    assert workload(torch.exp, (rows,)).parallel == parallel
    assert workload(lambda x: x.sum(), (rows,)).parallel == parallel


def _vae(side, hidden):
    torch.manual_seed(0)
    rows = torch.rand(60, side, side, generator=torch.Generator().manual_seed(1))
    return VAE.mlp((side, side), latent_dim=3, hidden=hidden), (rows < 0.3).float()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize(("hidden", "threads"), [(8, 1), (256, 2)])
def test_a_step_of_small_operations_takes_one_thread(monkeypatch, engine, hidden, threads):
    used, step = [], openmp.Waits.step

    def noted(self):
        used.append(torch.get_num_threads())
        step(self)
        if len(used) == 15:
            raise KeyboardInterrupt

    monkeypatch.setattr(openmp.Waits, "step", noted)
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
