"""Training steps on a busy machine, and start-up time: `make bench-busy`.

One process per core runs an endless loop. Idle and busy runs alternate because the machine may run
other work; results are medians of ratios within a round. Writes results/busy.json and busy.md. Run
it on an otherwise idle machine.
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
RUN_SECONDS = 3.0  # measured part of each run
WARMUP_SECONDS = 2.0  # seconds of warm-up, in which WaitPolicy chooses how threads wait
LOOP = "while True: pass"


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Keep all cores busy inside the context."""
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
    """Keep torch's default OpenMP wait policy and number of threads inside the context."""
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
    """Train a variational autoencoder; return the seconds per step."""
    vae, x = images(hidden, side)
    return steps_of(vae, x, lambda n: probdl.SVI(steps=n, batch_size=128, draws=1))


def gan(hidden: int, side: int) -> float:
    """Train a generator of images; return the seconds per step."""
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
    """Train for a few seconds; return the seconds per step, without set-up and warm-up."""
    ended: list[float] = []
    step = openmp.WaitPolicy.step

    def noted(self: openmp.WaitPolicy) -> None:
        step(self)
        ended.append(time.perf_counter())
        if ended[-1] - ended[0] > WARMUP_SECONDS + RUN_SECONDS:
            raise KeyboardInterrupt

    openmp.WaitPolicy.step = noted  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            probdl.infer(model, x, method=method(10**5), seed=1, progress=False)
    finally:
        openmp.WaitPolicy.step = step  # type: ignore[method-assign]
    counted = [at for at in ended if at - ended[0] > WARMUP_SECONDS]
    return (counted[-1] - counted[0]) / (len(counted) - 1)


TASKS: dict[str, Callable[[], float]] = {
    "SVI, 784-400-20, batch 128": lambda: svi(400, 28),
    "SVI, 144-128-20, batch 128": lambda: svi(128, 12),
    "SVI, 64-32-20, batch 128": lambda: svi(32, 8),
    "GAN, 20-400-784, batch 128": lambda: gan(400, 28),
    "GAN, 20-32-64, batch 128": lambda: gan(32, 8),
}


def steps() -> dict[str, Any]:
    """Time steps on idle and busy cores, with probdl's and with torch's default wait policy."""
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
    """Fit a logistic regression by NUTS; return the sum of the draws of its coefficients."""
    generator = torch.Generator().manual_seed(0)
    # The dtype is explicit because a fit in another thread may change torch's default dtype.
    x = torch.randn(500, 20, generator=generator, dtype=torch.float64)
    uniform = torch.rand(500, generator=generator, dtype=torch.float64)
    y = (uniform < torch.sigmoid(x[:, 0])).double()
    method = probdl.NUTS(draws=4000, warmup=1000, mass_matrix="diag")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = probdl.infer(logistic, x, y, method=method, seed=seed, progress=False)
    return float(fit.draws["beta"].sum())


def threads() -> dict[str, Any]:
    """Time two simultaneous fits in two threads and in two processes."""
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
            rounds += [row] if number else []  # the first round compiles and imports
    return {"rounds": rounds}


def startup() -> dict[str, Any]:
    """Time imports in new processes, one after the other."""
    codes = {
        "import torch, pyro": "import torch, pyro",
        "import probdl, then torch and pyro": "import probdl, torch, pyro",
        "import probdl, and all its names": "import probdl, torch, pyro\n"
        "for name in dir(probdl): getattr(probdl, name)",
        "probdl --help": "from probdl.command.app import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass",
    }
    rows = [{name: started(code) for name, code in codes.items()} for _ in range(2 * ROUNDS + 1)]
    return {"rounds": rows[1:]}  # the first round reads from the disk


def ratio(rows: list[dict[str, float]], of: str, to: str) -> float:
    return statistics.median(row[of] / row[to] for row in rows)


def write(results: dict[str, Any]) -> None:
    lines = [
        "# Training steps on a busy machine, and start-up time",
        "",
        "Measured by `make bench-busy`. *Busy* means that one process per core runs an endless "
        "loop. The table gives the time of a training step on idle cores, and ratios to it within "
        f"the same round: medians of {ROUNDS} rounds, {RUN_SECONDS:g} s per run after a warm-up of "
        f"{WARMUP_SECONDS:g} s, with torch {torch.__version__.split('+')[0]} on {os.cpu_count()} "
        "cores. "
        "*Unmodified* is torch with its default OpenMP settings, under which waiting threads spin.",
        "",
        "| training step | idle, ms | idle / idle, unmodified | busy / idle "
        "| busy, unmodified / idle |",
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
        lines += ["", "| start-up | time relative to `import torch, pyro` |", "| --- | --- |"]
        lines += [f"| {name} | {ratio(rows, name, 'import torch, pyro'):.2f} |" for name in rows[0]]
    if "threads" in results:
        rows = results["threads"]["rounds"]
        lines += [
            "",
            "Two simultaneous NUTS fits (logistic regression, 500 × 20; 4 chains with 1000 warm-up "
            "iterations and 4000 draws): time in two threads / time in two processes = "
            f"{ratio(rows, 'threads', 'processes'):.2f}. The draws are identical.",
        ]
    (RESULTS / "busy.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    run("busy", {"startup": startup, "threads": threads, "steps": steps}, write)
