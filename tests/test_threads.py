"""Results do not depend on threads, event loops, grad modes, handlers and default devices."""

import asyncio
import os
import random
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import Distribution

import probdl
from probdl.util.lock import SuspendableLock

X = np.linspace(0.0, 1.0, 20)
Y = 2.0 * X + np.random.default_rng(0).normal(size=20)


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    noise = pyro.sample("noise", dist.HalfNormal(5.0))
    shift = pyro.param("shift", torch.tensor(0.5))
    with pyro.plate("obs", len(x)):
        return pyro.sample("y", dist.Normal(slope * x + 0 * shift, noise), obs=y)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        with torch.no_grad():
            self.net.weight.fill_(0.5)
            self.net.bias.fill_(0.1)

    def forward(self, x, y=None):
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(self.net(x[:, None]).squeeze(-1), 1.0), obs=y)


class Generator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        with torch.no_grad():
            self.net.weight.fill_(0.5)
            self.net.bias.fill_(0.1)

    def forward(self, x=None, size=1):
        with pyro.plate("rows", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.deterministic("x", self.net(z), event_dim=1)


def gan():
    """Return a function that trains a small GAN and returns samples from it."""
    discriminator = Net().net
    generator, method = Generator(), probdl.GAN(discriminator, steps=10, batch_size=10)
    data = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)

    def train(_=None):
        fit = probdl.infer(generator, data, method=method, seed=1, progress=False)
        return fit.predict(7)["x"]

    return train


METHODS = {
    "nuts": probdl.NUTS(draws=50, warmup=50, chains=2),
    "nuts, eager": probdl.NUTS(draws=5, warmup=5, chains=2, engine="eager"),
    "nuts, pathfinder": probdl.NUTS(draws=50, warmup=50, chains=2, init="pathfinder"),
    "hmc": probdl.HMC(draws=10, warmup=10, chains=2),
    "metropolis": probdl.Metropolis(draws=50, warmup=50, chains=2),
    "metropolis, eager": probdl.Metropolis(draws=5, warmup=5, thin=1, chains=2, engine="eager"),
    "pathfinder": probdl.Pathfinder(draws=50),
    "importance": probdl.Importance(draws=50, num_samples=200),
    "laplace": probdl.Laplace(draws=50),
    "map": probdl.MAP(),
    "mle": probdl.MLE(),
    "svi": probdl.SVI(steps=60, draws=50),
    "svi, eager": probdl.SVI(steps=20, draws=50, engine="eager"),
}


pytestmark = pytest.mark.filterwarnings("ignore")  # of short runs


def fit(method, seed, model=line):
    return probdl.infer(model, X, Y, method=method, seed=seed)


def state():
    store = pyro.get_param_store()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [np.array(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
        "python": random.getstate(),
        "store": {name: value.tolist() for name, value in store._params.items()},
        "dtype": torch.get_default_dtype(),
        "validate": (Distribution._validate_args, Distribution._validate_sample),
        "settings": pyro.settings.get(),
        "handlers": list(poutine.runtime._PYRO_STACK),
        "plates": list(poutine.runtime._DIM_ALLOCATOR._stack),
        "threads": torch.get_num_threads(),
        "filters": [f for f in warnings.filters if f[2] is Warning],
    }


@pytest.fixture(autouse=True)
def untouched():
    """Check that each test leaves the global state unchanged."""
    before = state()
    yield
    assert state() == before


def same(found, expected):
    assert found.draws.keys() == expected.draws.keys()
    for name, draws in expected.draws.items():
        np.testing.assert_array_equal(found.draws[name], draws)


# -- threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_eight_threads_get_the_results_of_one(name):
    method = METHODS[name]
    expected = [fit(method, seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: fit(method, i % 4), range(8)))
    for i, one in enumerate(found):
        same(one, expected[i % 4])


def test_different_methods_in_threads_at_once():
    kinds = list(METHODS)
    expected = {name: fit(METHODS[name], 3) for name in kinds}
    with torch.random.fork_rng(devices=[]):
        net = Net()
    trained = fit("mle", 1, net).draws["net.weight"]

    with ThreadPoolExecutor(8) as pool:
        weights = [pool.submit(fit, "mle", 1, net) for _ in range(2)]
        found = {name: pool.submit(fit, METHODS[name], 3) for name in kinds}
        for name in kinds:
            same(found[name].result(), expected[name])
        for weight in weights:
            np.testing.assert_array_equal(weight.result().draws["net.weight"], trained)


def test_a_fit_can_be_read_in_threads(tmp_path):
    known = fit(METHODS["nuts"], 1)
    known.save(tmp_path / "fit")
    reads = {
        "predict": lambda f: f.predict(X)["y"],
        "log_likelihood": lambda f: f.log_likelihood()["y"],
        "idata": lambda f: f.to_idata().posterior_predictive["y"].values,
        "prior": lambda f: f.to_idata(prior=20).prior["slope"].values,
        "summary": lambda f: f.summary().to_numpy(),
        "score": lambda f: np.array(f.log_predictive(X, Y).total),
        "load": lambda f: probdl.load(tmp_path / "fit", model=line).predict(X)["y"],
        "fit": lambda f: fit(METHODS["laplace"], 1).draws["slope"],
    }
    expected = {name: read(known) for name, read in reads.items()}
    with ThreadPoolExecutor(8) as pool:
        found = [(name, pool.submit(reads[name], known)) for name in [*reads] * 3]
        for name, result in found:
            np.testing.assert_array_equal(result.result(), expected[name])


def test_event_loops_can_await_fits_in_threads():
    async def all_of_them():
        jobs = (asyncio.to_thread(fit, METHODS["nuts"], seed) for seed in (1, 2, 1))
        return await asyncio.gather(*jobs)

    first, other, again = asyncio.run(all_of_them())
    same(first, again)
    same(other, fit(METHODS["nuts"], 2))


def test_an_error_in_one_thread_does_not_affect_the_others():
    def broken(x, y):
        raise RuntimeError("no such luck")

    def run(i):
        try:
            return fit(METHODS["map"], 1, broken if i % 2 else line)
        except probdl.ModelError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(8)))
    assert all("no such luck" in found[i] for i in range(1, 8, 2))
    for i in range(0, 8, 2):
        same(found[i], fit(METHODS["map"], 1))


def test_a_fork_while_another_thread_holds_the_lock_can_work():
    code = """if True:
        import os, threading, numpy as np, probdl
        from probdl.models import normal_normal
        from probdl.util.lock import GLOBAL_LOCK
        fit = lambda: probdl.infer(normal_normal, np.ones(3), np.ones(3), method="mle", seed=1)
        fit()
        held, go = threading.Event(), threading.Event()
        def hold():
            with GLOBAL_LOCK:
                held.set()
                go.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        if (child := os.fork()) == 0:
            fit()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        go.set()
        thread.join()
    """
    if not hasattr(__import__("os"), "fork"):
        pytest.skip("this platform has no fork")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)


def test_a_lock_is_suspended_and_resumed():
    lock = SuspendableLock()
    with lock, lock:
        depth = lock.suspend()
        assert not lock.held
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(
                lambda: lock.__enter__().held and lock.__exit__(None, None, None) is None
            ).result()
        lock.resume(depth)
        assert lock.depth == 2
    assert not lock.held


# -- modes --------------------------------------------------------------------------------------

MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad off": lambda: torch.set_grad_enabled(False),
}


def test_adversarial_training_in_threads_modes_and_devices():
    with torch.random.fork_rng(devices=[]):
        train = gan()  # the weights of its networks come from the global generator
    expected = train()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(train, range(4)):
            np.testing.assert_array_equal(found, expected)
    for mode in (*MODES.values(), lambda: torch.device("meta")):
        with mode():
            np.testing.assert_array_equal(train(), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", METHODS)
def test_grad_modes_do_not_change_results(name, mode):
    expected = fit(METHODS[name], 1)
    with MODES[mode]():
        found = fit(METHODS[name], 1)
        predicted, likelihood = found.predict(X)["y"], found.log_likelihood()["y"]
        assert not torch.is_grad_enabled()
    same(found, expected)
    np.testing.assert_array_equal(predicted, expected.predict(X)["y"])
    np.testing.assert_array_equal(likelihood, expected.log_likelihood()["y"])


def test_data_and_networks_made_in_inference_mode():
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        x, y = torch.tensor(X), torch.tensor(Y)
        net = Net()
    assert x.is_inference()
    for model, method in ((line, "map"), (net, "mle"), (net, probdl.SVI(steps=20))):
        found = probdl.infer(model, x, y, method=method, seed=1)
        with torch.random.fork_rng(devices=[]):
            plain = Net() if model is net else model
        same(found, probdl.infer(plain, X, Y, method=method, seed=1))


def test_the_density_itself_in_inference_mode():
    density = probdl.LogDensity.from_model(line, (X, Y))
    z = torch.zeros(2).double()
    value, grad = density.value_and_grad(z)
    hessian = density.hessian(z)
    with torch.inference_mode():
        again, grad_again = density.value_and_grad(torch.zeros(2).double())
        assert torch.equal(density.hessian(torch.zeros(2).double()), hessian)
    assert again == value
    assert torch.equal(grad, grad_again)


# -- handlers -----------------------------------------------------------------------------------

HANDLERS = {
    "trace": lambda run: poutine.trace(run).get_trace(),
    "condition": lambda run: poutine.condition(run, {"slope": torch.tensor(7.0)})(),
    "seed": lambda run: poutine.seed(run, 3)(),
    "block": lambda run: poutine.block(run)(),
    "scale": lambda run: poutine.scale(run, scale=5.0)(),
    "mask": lambda run: poutine.mask(run, mask=False)(),
    "enum": lambda run: poutine.enum(run, first_available_dim=-2)(),
    "replay": lambda run: poutine.replay(run, params={"shift": torch.tensor(9.0)})(),
}


@pytest.mark.parametrize("name", ["nuts", "map", "svi", "importance"])
@pytest.mark.parametrize("handler", HANDLERS)
def test_handlers_around_infer_do_not_affect_its_model(handler, name):
    expected = fit(METHODS[name], 1)
    found = []

    def run():
        found.append(fit(METHODS[name], 1))
        found[0].predict(X)

    HANDLERS[handler](run)
    same(found[0], expected)


def test_plates_and_models_around_infer_do_not_affect_its_model():
    expected = fit(METHODS["laplace"], 1)
    with pyro.plate("outer", 3), pyro.plate("obs", 2):
        same(fit(METHODS["laplace"], 1), expected)
    found = []

    def outer(x, y):
        found.append(fit(METHODS["map"], 1))
        slope = found[-1].draws["slope"].item()
        mu = pyro.sample("mu", dist.Normal(slope, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand(y.shape).to_event(1), obs=y)

    result = fit(METHODS["map"], 1, outer)
    same(found[0], fit(METHODS["map"], 1))
    slope = found[0].draws["slope"].item()
    assert result.draws["mu"].item() == pytest.approx((slope + Y.sum()) / 21)


def test_a_density_as_a_factor_of_another_model():
    density = probdl.LogDensity.from_model(line, (X, Y))

    def outer():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("inner", density(z.double()))

    with torch.random.fork_rng(devices=[]):
        trace = poutine.trace(outer).get_trace()
    assert set(trace.nodes) == {"_INPUT", "z", "inner", "_RETURN"}
    value = density(trace.nodes["z"]["value"].double())
    assert trace.nodes["inner"]["fn"].log_factor.item() == pytest.approx(value.item())


# -- devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_another_default_device_does_not_change_results(name):
    expected = fit(METHODS[name], 1)
    reads = (
        lambda f: f.predict(X)["y"],
        lambda f: f.log_likelihood()["y"],
        lambda f: np.array(f.log_predictive(X, Y).total),
    )
    before = [read(expected) for read in reads]
    torch.set_default_device("meta")
    try:
        found = fit(METHODS[name], 1)
        after = [read(found) for read in reads]
        again = [read(expected) for read in reads]
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    same(found, expected)
    for values in (after, again):
        for got, wanted in zip(values, before, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_a_device_set_by_a_context():
    expected = fit(METHODS["laplace"], 1)
    with torch.device("meta"):
        same(fit(METHODS["laplace"], 1), expected)
        density = probdl.LogDensity.from_model(line, (X, Y))
        value, grad = density.value_and_grad(torch.zeros(2, device="cpu").double())
    assert value.device.type == grad.device.type == "cpu"


# -- exit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["refused", "interrupted", "time is up"])
def test_the_process_exits_normally_after_a_failed_run(ends):
    code = textwrap.dedent(
        f"""
        import signal, threading, os, time
        import pyro, pyro.distributions as dist, torch, probdl
        from torch.distributions import constraints
        ends = {ends!r}

        def improper():
            pyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))

        def slow(y):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("n", len(y)):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        y, long = torch.zeros(10**6), probdl.NUTS(warmup=200_000)

        try:
            if ends == "refused":
                probdl.infer(improper, seed=1, progress=False)
            elif ends == "interrupted":
                timer = threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGINT))
                timer.start()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                probdl.infer(slow, y, seed=1, progress=False, method=long)
            else:
                probdl.infer(slow, y, seed=1, time_limit=4.0, method=long)
        except (probdl.ModelError, KeyboardInterrupt, probdl.TimeLimitError) as error:
            print(type(error).__name__)
        """
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        known = {"refused": "ModelError", "interrupted": "KeyboardInterrupt"}
        assert done.stdout.strip() == known.get(ends, "TimeLimitError"), done.stderr


def test_a_warning_points_to_the_line_of_the_call():
    def groups(count):
        with pyro.plate("group", count):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))

    result = probdl.infer(groups, 3, method="laplace", seed=1)
    with pytest.warns(UserWarning, match="'group' has 4 elements at these arguments") as seen:
        result.predict(4)
    assert seen[0].filename == __file__


def test_twosample_tests_and_anomaly_detection():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    y = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    expected = probdl.classifier_test(x, y, seed=1), fit(METHODS["svi"], 1)
    modes = (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.device("meta"),
        torch.inference_mode(),
        torch.autograd.set_detect_anomaly(True),
    )
    for mode in modes:
        with mode:
            assert probdl.classifier_test(x, y, seed=1) == expected[0]
            same(fit(METHODS["svi"], 1), expected[1])


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this platform has no fork")
def test_a_fork_in_the_middle_of_another_threads_fit_starts_clean():
    code = """if True:
        import os, threading, pyro, torch
        from probdl.util.isolation import evaluation, isolated
        pyro.param("mine", torch.tensor(3.0))
        inside, go = threading.Event(), threading.Event()
        def hold():
            with isolated(1), evaluation():
                inside.set()
                go.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        inside.wait()
        if (child := os.fork()) == 0:
            assert torch.get_default_dtype() == torch.float32
            assert not pyro.settings.get("module_local_params")
            with isolated(2):
                pass
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        go.set()
        thread.join()
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)


def test_a_cached_property_read_by_a_model_in_another_thread():
    """One thread reads a property under the lock; another takes the lock to compute a property."""
    earlier = [fit(METHODS["laplace"], seed) for seed in range(8)]

    def model(x, y):
        float(earlier[0].summary()["mean"].iloc[0])
        line(x, y)

    def read(i):
        return earlier[i].summary().to_numpy() if i else fit(METHODS["map"], 1, model).draws

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, [0, 1, 2, 3, 0, 4, 5, 6, 7, 0]))


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this platform has no fork")
@pytest.mark.parametrize("method", ["svi", "laplace"])
def test_a_forked_process_can_fit(method):
    """A fork has no threads of GNU OpenMP, so waiting for them would never end."""
    code = f"""if True:
        import os, numpy as np, pyro, pyro.distributions as dist, torch, probdl
        def model(x, y):
            s = pyro.sample("s", dist.Normal(0.0, 10.0))
            with pyro.plate("obs", len(x)):
                pyro.sample("y", dist.Normal(s * x, 1.0), obs=y)
        x = np.random.default_rng(0).normal(size=100)
        fit = lambda seed: probdl.infer(model, x, 2 * x, method={method!r}, seed=seed)
        torch.set_num_threads(2)
        large = torch.randn(10**6)
        large + large
        fit(1).predict()
        if (child := os.fork()) == 0:
            fit(2).predict()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)


def test_linear_algebra_that_is_loaded_late_runs_on_one_thread_too():
    """SciPy's library is imported when it is needed, also within the limit."""
    code = """if True:
        import sys
        import numpy, threadpoolctl
        from probdl.util.blas import one_blas_thread
        from probdl.util.lazy import linalg

        def threads():
            found = threadpoolctl.threadpool_info()
            return [of["num_threads"] for of in found if of["user_api"] == "blas"]

        if "scipy.linalg" in sys.modules:
            sys.exit("SciPy is loaded already")
        before = threads()
        with one_blas_thread():
            with one_blas_thread():
                first = threads()
                linalg.cholesky(numpy.eye(2))
                print(first, threads())
            print(threads())
        print(threads()[: len(before)] == before, threads())
        one_blas_thread()
        print(threads())
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    during, outer, after, stays = done.stdout.splitlines()
    assert set(during) <= set("[1, ]")  # one thread each
    assert set(outer) <= set("[1, ]")
    assert after.startswith("True")
    assert "1" not in after.removeprefix("True")
    assert set(stays) <= set("[1, ]")


def test_a_first_fit_does_not_import_scipy():
    code = """if True:
        import sys
        import numpy as np, probdl
        from probdl.models import eight_schools
        probdl.infer(eight_schools, np.ones(3), np.arange(3.0), seed=1)
        print(*sorted(name for name in sys.modules if name.startswith("scipy.")))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
