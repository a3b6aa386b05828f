"""Run one system on one task in a separate process.

``python -m benchmarks.peers.child SYSTEM TASK DATA.npz OUT_FOLDER [--once | --eager]``, from the
root of the repository; ``--eager`` runs Pyro without its compiler. Writes timings.json, and the
draws of each run by parameter as draws_0.npz, draws_1.npz and so on.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.systems import PACKAGES
from benchmarks.peers.tasks import load

REPEATS = 3
ENOUGH_S = 60.0  # no repeat after the first starts later than this


def sampled(system: Any, task: Any, data: dict[str, np.ndarray], out: Path, once: bool) -> Any:
    """Time a first call, and later calls with other seeds that use the compiled code."""
    sample = system.start(task, data)
    sampling_s, later_s, gradients, first_s, compile_s = [], [], [], 0.0, None
    begin = 0.0
    for run in range(1 if once else 1 + REPEATS):
        if run > 1 and time.perf_counter() - begin > ENOUGH_S:
            break
        start = time.perf_counter()
        found = sample(run + 1)
        seconds = time.perf_counter() - start
        gradients.append(found.gradients)
        if run == 0:
            first_s, compile_s = seconds, found.compile_s
            begin = time.perf_counter()
        else:
            later_s.append(seconds)
            sampling_s.append(seconds if found.sampling_s is None else found.sampling_s)
        parameters = {k: v.astype(np.float64) for k, v in task.parameters(found.draws).items()}
        np.savez(out / f"draws_{run}.npz", **parameters)
    if compile_s is None and sampling_s:
        compile_s = max(first_s - float(np.median(sampling_s)), 0.0)
    return {
        "first_s": first_s,
        "sampling_s": sampling_s,
        "later_s": later_s,
        "compile_s": compile_s,
        "gradients": gradients,
    }


def peak_mib() -> float:
    """Return the peak memory in MiB of this process or of any process that it started."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(w).ru_maxrss for w in who) / 1024


def main(name: str, task_name: str, file: str, folder: str, *options: str) -> None:
    task, out = load(task_name), Path(folder)
    with np.load(file) as held:
        data = dict(held)
    system = importlib.import_module(f"benchmarks.peers.systems.{name}")
    if name == "pyro":
        result = system.cost(task, data, jit="--eager" not in options)
    else:
        result = sampled(system, task, data, out, "--once" in options)
    result["peak_mib"] = peak_mib()
    result["versions"] = {package: version(package) for package in PACKAGES[name]}
    (out / "timings.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
