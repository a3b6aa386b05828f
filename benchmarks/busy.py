"""Steps of networks with other work on the machine, and start-up: `make bench-busy`.

As many processes as there are cores do nothing but loop. Idle and busy runs alternate, since the
machine may have other guests; the figures are medians of ratios within a round. Writes
results/busy.json and busy.md. Run it with nothing else on the machine.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import probdl
from benchmarks.parts import RESULTS, run
from probdl.models import VAE
from probdl.nn import MLP
from probdl.util import openmp

ROUNDS = 3
SECONDS = 3.0  # of each run
BEFORE = 2.0  # seconds before, in which it is found out how threads should wait
LOOP = "while True: pass"


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Keep all cores busy."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextlib.contextmanager
def waiting_awake() -> Iterator[None]:
    """Leave OpenMP as torch has it, and its number of threads."""
    gnu, use = openmp._gomp, openmp.WaitPolicy.use
    openmp._gomp = lambda: None
    openmp.WaitPolicy.use = lambda self, parallel: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        openmp._gomp = gnu
        openmp.WaitPolicy.use = use  # type: ignore[method-assign]


def images(hidden: int, side: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    x = (torch.rand(2048, side, side) < 0.3).float()
    return VAE.mlp((side, side), latent_dim=20, hidden=hidden), x


def svi(hidden: int, side: int) -> float:
    """Train a variational autoencoder; return the seconds of a step."""
    vae, x = images(hidden, side)
    return steps_of(vae, x, lambda n: probdl.SVI(steps=n, batch_size=128, draws=1))


def gan(hidden: int, side: int) -> float:
    """Train a generator of images; return the seconds of a step."""
    torch.manual_seed(0)
    generator = MLP([20, hidden, side * side], activation=nn.ReLU)
    discriminator = MLP([side * side, hidden, 1], activation=nn.ReLU)
    x = torch.rand(2048, side * side)

    def model(x: Any = None, size: int = 1) -> None:
        pyro.module("generator", generator)
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            pyro.deterministic("x", generator(z), event_dim=1)

    return steps_of(model, x, lambda n: probdl.GAN(discriminator, steps=n, batch_size=128))


def steps_of(model: Any, x: Any, method: Callable[[int], Any]) -> float:
    """Train for some seconds; return those of a step, what happens once left out."""
    ended: list[float] = []
    step = openmp.WaitPolicy.step

    def noted(self: openmp.WaitPolicy) -> None:
        step(self)
        ended.append(time.perf_counter())
        if ended[-1] - ended[0] > BEFORE + SECONDS:
            raise KeyboardInterrupt

    openmp.WaitPolicy.step = noted  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            probdl.infer(model, x, method=method(10**5), seed=1, progress=False)
    finally:
        openmp.WaitPolicy.step = step  # type: ignore[method-assign]
    counted = [at for at in ended if at - ended[0] > BEFORE]
    return (counted[-1] - counted[0]) / (len(counted) - 1)


TASKS: dict[str, Callable[[], float]] = {
    "SVI, 784-400-20, batch 128": lambda: svi(400, 28),
    "SVI, 144-128-20, batch 128": lambda: svi(128, 12),
    "SVI, 64-32-20, batch 128": lambda: svi(32, 8),
    "GAN, 20-400-784, batch 128": lambda: gan(400, 28),
    "GAN, 20-32-64, batch 128": lambda: gan(32, 8),
}


def steps() -> dict[str, Any]:
    """Time steps, idle and busy, as they are and with OpenMP left alone."""
    found = {}
    for name, task in TASKS.items():
        rounds = []
        for _ in range(ROUNDS):
            row = {"idle": task()}
            with waiting_awake():
                row["idle, left alone"] = task()
            with busy():
                row["busy"] = task()
                with waiting_awake():
                    row["busy, left alone"] = task()
            rounds.append(row)
            print(name, row, flush=True)
        found[name] = rounds
    return found


def started(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def logistic(x: Any, y: Any = None) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def sampled(seed: int) -> float:
    """Fit a logistic regression by NUTS; return something of it."""
    generator = torch.Generator().manual_seed(0)
    # With a dtype: torch's default is that of whichever thread is inside a fit.
    x = torch.randn(500, 20, generator=generator, dtype=torch.float64)
    uniform = torch.rand(500, generator=generator, dtype=torch.float64)
    y = (uniform < torch.sigmoid(x[:, 0])).double()
    method = probdl.NUTS(draws=4000, warmup=1000, mass_matrix="diag")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = probdl.infer(logistic, x, y, method=method, seed=seed, progress=False)
    return float(fit.draws["beta"].sum())


def threads() -> dict[str, Any]:
    """Fit twice at once, by two threads and by two processes."""
    rounds = []
    with (
        ThreadPoolExecutor(2) as own,
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as other,
    ):
        for number in range(2 * ROUNDS + 1):
            row, found = {}, []
            for name, pool in (("threads", own), ("processes", other)):
                start = time.perf_counter()
                found.append(list(pool.map(sampled, [1, 2])))
                row[name] = time.perf_counter() - start
            assert found[0] == found[1]
            rounds += [row] if number else []  # the first one compiles, and loads what is needed
    return {"rounds": rounds}


def startup() -> dict[str, Any]:
    """Time imports in new processes, in turn."""
    codes = {
        "import torch, pyro": "import torch, pyro",
        "import probdl, then torch and pyro": "import probdl, torch, pyro",
        "import probdl, and all its names": "import probdl, torch, pyro\n"
        "for name in dir(probdl): getattr(probdl, name)",
        "probdl --help": "from probdl.command.app import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass",
    }
    rows = [{name: started(code) for name, code in codes.items()} for _ in range(2 * ROUNDS + 1)]
    return {"rounds": rows[1:]}  # the first one reads from the disk


def ratio(rows: list[dict[str, float]], of: str, to: str) -> float:
    return statistics.median(row[of] / row[to] for row in rows)


def write(results: dict[str, Any]) -> None:
    lines = [
        "# With other work on the machine",
        "",
        "`make bench-busy`. As many processes as cores do nothing but loop. A step's time, as a "
        f"ratio of that on idle cores in the same round; medians of {ROUNDS} rounds, "
        f"{SECONDS:g} s each after {BEFORE:g} s, torch {torch.__version__.split('+')[0]}, "
        f"{os.cpu_count()} cores. "
        '"Left alone" is torch as it is, whose threads spin while they wait.',
        "",
        "| steps of | idle, ms | idle / left alone | busy / idle | busy, left alone / idle |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, rows in results.get("steps", {}).items():
        idle = statistics.median(row["idle"] for row in rows) * 1e3
        lines.append(
            f"| {name} | {idle:.2f} | {ratio(rows, 'idle', 'idle, left alone'):.2f} | "
            f"{ratio(rows, 'busy', 'idle'):.1f} | {ratio(rows, 'busy, left alone', 'idle'):.1f} |"
        )
    if "startup" in results:
        rows = results["startup"]["rounds"]
        lines += ["", "| start-up | ratio to `import torch, pyro` |", "| --- | --- |"]
        lines += [f"| {name} | {ratio(rows, name, 'import torch, pyro'):.2f} |" for name in rows[0]]
    if "threads" in results:
        rows = results["threads"]["rounds"]
        lines += [
            "",
            "Two fits at once by NUTS (logistic regression, 500 × 20, 4 chains of 1000 + 4000), "
            f"two threads / two processes: {ratio(rows, 'threads', 'processes'):.2f}, with the "
            "same draws.",
        ]
    (RESULTS / "busy.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    run("busy", {"startup": startup, "threads": threads, "steps": steps}, write)
