"""Speed of the native engine: `make bench-engine`.

Writes results/engine.json and results/engine.md. Every comparison is a ratio of two times measured
in the same run on the same machine. Start-up costs are measured in subprocesses.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc import nuts as pyro_nuts

import probdl
from benchmarks.models import NAMED, references
from benchmarks.peers.gradients import called
from probdl.compile import choose
from probdl.compile.runtime.native_density import NativeDensity
from probdl.models import normal_normal

RESULTS = Path(__file__).parent / "results"
CHAINS, DRAWS, WARMUP = 4, 1000, 1000


def seconds(call: Callable[[], Any], calls: int, repeats: int = 5) -> float:
    """Return the seconds per call, the minimum over several rounds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def raw(compiled: NativeDensity, z: torch.Tensor) -> Callable[[], Any]:
    """Return a function that calls the compiled C function through ctypes."""
    return called(compiled.address, compiled.user, z.numpy().copy())


def measure(model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """Time building the native engine, and value and gradient on both engines."""
    density = probdl.LogDensity.from_model(model, args)
    start = time.perf_counter()
    compiled, _ = choose(density, "native", 0)
    made = time.perf_counter() - start
    z = density.initial(torch.Generator().manual_seed(1))
    eager = seconds(lambda: density.value_and_grad(z), 5, 3)
    native = seconds(raw(compiled, z), 2000)
    return {
        "dim": density.dim,
        "make_s": made,
        "eager_us": eager * 1e6,
        "native_us": native * 1e6,
        "ratio": eager / native,
    }


def gradients() -> list[dict[str, Any]]:
    """Time value and gradient of each model on both engines."""
    rows = []
    for name, model, args in [*((name, *of) for name, of in NAMED.items()), *references()]:
        rows.append({"model": name, **measure(model, args)})
        print(rows[-1], flush=True)
    return rows


def smallest_call() -> float:
    """Return the microseconds per call of a minimal density."""

    def model():
        pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))

    density = probdl.LogDensity.from_model(model)
    compiled, _ = choose(density, "native", 0)
    return seconds(raw(compiled, torch.zeros(1).double()), 20000) * 1e6


def against_pyro() -> list[dict[str, Any]]:
    """Time NUTS: Pyro with jit_compile=True, without its compilation, and probdl."""
    rows = []
    for name in list(NAMED)[:3]:
        model, args = NAMED[name]
        method = probdl.NUTS(draws=DRAWS, warmup=WARMUP, chains=CHAINS)
        probdl.infer(model, *args, method=method, seed=0)
        start = time.perf_counter()
        fit = probdl.infer(model, *args, method=method, seed=1)
        ours = time.perf_counter() - start
        assert fit.stats["engine"] == "native"
        tensors = [torch.as_tensor(a) for a in args]
        tensors = [t.float() if t.is_floating_point() else t for t in tensors]
        stamps: list[float] = []
        count = 300
        pyro.set_rng_seed(0)
        mcmc = MCMC(
            pyro_nuts.NUTS(model, jit_compile=True, ignore_jit_warnings=True),
            num_samples=count,
            warmup_steps=count,
            num_chains=1,
            disable_progbar=True,
            hook_fn=lambda *_, s=stamps: s.append(time.perf_counter()),
        )
        mcmc.run(*tensors)
        # The first transitions include the compilation; the rest mixes warm-up and draws as before.
        skipped = 20
        taken = (stamps[-1] - stamps[skipped]) / (len(stamps) - 1 - skipped)
        theirs = taken * CHAINS * (DRAWS + WARMUP)
        rows.append({"model": name, "pyro_s": theirs, "ours_s": ours, "ratio": theirs / ours})
        print(rows[-1], flush=True)
    return rows


def child(code: str, cache: str) -> dict[str, Any]:
    """Run code in a new process; return the JSON object that it prints last."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PROBDL_CACHE": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


FIRST = """
import json, time, numpy as np, probdl
from benchmarks.models import SCHOOLS
from probdl.methods.mcmc import nutpie_adapter
from probdl.models import eight_schools
sigma, y = SCHOOLS
sampling = []
run = nutpie_adapter.run
def timed(*args, **kwargs):
    start = time.perf_counter()
    result = run(*args, **kwargs)
    sampling.append(time.perf_counter() - start)
    return result
nutpie_adapter.run = timed
times = []
for shift in (0.0, 1.0):
    start = time.perf_counter()
    probdl.infer(eight_schools, sigma, y + shift, seed=1)
    times.append(time.perf_counter() - start)
print(json.dumps({"first": times[0], "later": times[1:], "sampling": sampling}))
"""


def latencies() -> dict[str, Any]:
    """Time the first fit, the second fit, and the first fit in a new process with a full cache.

    Each is measured several times in new processes. Python's garbage collector occasionally scans
    all objects that torch has loaded, which takes 0.15 s, so the maximum is reported as well as
    the median.
    """
    seen: dict[str, list[float]] = {"first_s": [], "cached_first_s": [], "second_s": []}
    for _ in range(5):
        with tempfile.TemporaryDirectory() as cache:
            cold = child(FIRST, cache)
            warm = child(FIRST, cache)
        seen["first_s"].append(cold["first"])
        seen["cached_first_s"].append(warm["first"])
        seen["second_s"] += [run["later"][0] - run["sampling"][1] for run in (cold, warm)]
    return {name: [statistics.median(times), max(times)] for name, times in seen.items()}


CHAIN = """
import json, sys, time, torch, probdl
from benchmarks.models import NAMED
model, args = NAMED["logistic regression, 500 x 20"]
from probdl.compile import choose
from probdl.methods.mcmc import nutpie_adapter
from probdl.methods.mcmc.chains import random_start
density = probdl.LogDensity.from_model(model, args)
evaluator, _ = choose(density, "native", 0, threads={chains})
begin = lambda seed: random_start(density, evaluator, seed)
options = dict(warmup=1000, chains={chains}, target_accept=0.8, max_treedepth=10,
               mass_matrix="diag", seed={seed}, progress=False)
nutpie_adapter.run(density.dim, evaluator, begin, draws=100, **options)
while time.time() < {at}:
    pass
start = time.perf_counter()
chains = nutpie_adapter.run(density.dim, evaluator, begin, draws=20000, **options)
taken = time.perf_counter() - start
print(json.dumps({{"s": taken, "gradients": int(chains.stats["n_steps"].sum())}}))
"""


def two_chains() -> dict[str, float]:
    """Time two chains in one process and in two processes, in seconds per gradient and core."""
    rates: dict[str, list[float]] = {"one": [], "two": []}
    with tempfile.TemporaryDirectory() as cache:
        child(CHAIN.format(chains=1, seed=0, at=0), cache)
        for round_ in range(3):
            one = child(CHAIN.format(chains=2, seed=round_, at=0), cache)
            rates["one"].append(one["s"] * 2 / one["gradients"])
            at = time.time() + 12  # both processes have finished their imports by then
            processes = [
                subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-c",
                     CHAIN.format(chains=1, seed=10 * round_ + i, at=at)],
                    env={**os.environ, "PROBDL_CACHE": cache}, stdout=subprocess.PIPE, text=True,
                )
                for i in range(2)
            ]  # fmt: skip
            said = [json.loads(p.communicate()[0].splitlines()[-1]) for p in processes]
            rates["two"].append(statistics.mean(s["s"] / s["gradients"] for s in said))
    one, two = min(rates["one"]), min(rates["two"])
    return {"one_process_us": one * 1e6, "two_processes_us": two * 1e6, "ratio": one / two}


def memory() -> dict[str, float]:
    """Measure the memory growth over 1,000 fits of a small model."""
    method = probdl.NUTS(draws=100, warmup=100, chains=2)
    sigma, y = np.ones(4), np.arange(4.0)

    def fits(count: int) -> float:
        for i in range(count):
            probdl.infer(normal_normal, sigma, y + i % 7, method=method, seed=i)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = fits(100)
    start = time.perf_counter()
    after = fits(1000)
    return {"growth_mb": after - before, "fit_ms": time.perf_counter() - start}


def main() -> None:
    """Run all measurements and write the results."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = gradients()
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "pyro": pyro.__version__},
        "gradients": rows,
        "median_ratio": statistics.median(r["ratio"] for r in rows),
        "smallest_call_us": smallest_call(),
        "nuts": against_pyro(),
        "latencies": latencies(),
        "two_chains": two_chains(),
        "memory": memory(),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engine.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(result)
    (RESULTS / "engine.md").write_text(text)
    print(text)


def table(r: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    late, chains, memory_ = r["latencies"], r["two_chains"], r["memory"]
    slowest = min(row["ratio"] for row in r["nuts"])
    lines = [
        "# The native engine",
        "",
        f"Made by `make bench-engine` on {r['machine']}; "
        + ", ".join(f"{k} {v}" for k, v in r["versions"].items())
        + ". Absolute times hold for this machine only; ratios transfer better to other machines.",
        "",
        "| quantity | measured |",
        "| --- | --- |",
        f"| value + gradient, eager / native, median of {len(r['gradients'])} models "
        f"| {r['median_ratio']:.0f} |",
        f"| one call of a minimal density, from Python | {r['smallest_call_us']:.2f} µs |",
        f"| NUTS, Pyro with `jit_compile=True` / probdl, smallest ratio of {len(r['nuts'])} models "
        f"| {slowest:.0f} |",
        "| first fit of eight schools, from the call to the draws: median (maximum) of 5 "
        f"| {late['first_s'][0]:.2f} s ({late['first_s'][1]:.2f}) |",
        "| second fit, new data of the same shape, without the sampling itself: median (maximum) "
        f"of 10 | {late['second_s'][0]:.2f} s ({late['second_s'][1]:.2f}) |",
        "| first fit in a new process with a full cache: median (maximum) of 5 "
        f"| {late['cached_first_s'][0]:.2f} s ({late['cached_first_s'][1]:.2f}) |",
        f"| time of 2 chains in one process / in two processes | {chains['ratio']:.2f} |",
        f"| memory growth over 1,000 fits | {memory_['growth_mb']:.1f} MB |",
        "",
        "## Value and gradient",
        "",
        "*Build* is the time for tracing, compiling and verifying, with the existing cache.",
        "",
        "| model | d | build, s | eager, µs | native, µs | eager / native |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {g['model']} | {g['dim']} | {g['make_s']:.2f} | {g['eager_us']:.0f} "
            f"| {g['native_us']:.2f} | {g['ratio']:.0f} |"
            for g in r["gradients"]
        ),
        "",
        f"## NUTS: {CHAINS} chains, {WARMUP} warm-up iterations and {DRAWS} draws each",
        "",
        "Pyro's time is extrapolated from one chain with 300 warm-up iterations and 300 draws, "
        "without compilation, to the same number of transitions with sequential chains. "
        "probdl's time is that of the whole call of `infer`, including all checks.",
        "",
        "| model | Pyro, s | probdl, s | Pyro / probdl |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {n['model']} | {n['pyro_s']:.0f} | {n['ours_s']:.2f} | {n['ratio']:.0f} |"
            for n in r["nuts"]
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
