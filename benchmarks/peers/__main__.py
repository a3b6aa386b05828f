"""Run every system on every task: ``python -m benchmarks.peers [TASK ...]``.

Each run has its own process and cache; probdl runs a second time in a new process with the filled
cache. Needs PROBDL_SHARED; the peers are installed in a separate environment. Writes
results/peers.json, peers.md and peers.png. Tasks that are not named keep their results. If
PROBDL_BENCH_SYSTEMS is set, systems that it does not name keep theirs.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts import RESULTS, run
from benchmarks.peers.judge import judge
from benchmarks.peers.report import write
from benchmarks.peers.systems import ROOT, SYSTEMS, interpreter
from benchmarks.peers.tasks import TASKS, load

CHOSEN = os.environ.get("PROBDL_BENCH_SYSTEMS", "").split()
TIMEOUT_S, PYRO_TIMEOUT_S = 600, 120


class TooLongError(RuntimeError):
    """A process did not finish in time."""


def measure(task: str) -> dict[str, Any]:
    """Run all systems on a task; the result of a failed system is its error."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, **load(task).data())
        rows = _held(task)
        for system in CHOSEN or SYSTEMS:
            rows[system] = _row(system, task, data, Path(folder) / system)
            print(task, system, rows[system], flush=True)
    return rows


def _held(task: str) -> dict[str, Any]:
    """Return the stored results of the systems that are not run now."""
    held = RESULTS / "peers.json"
    rows = json.loads(held.read_text()).get(task, {}) if CHOSEN and held.exists() else {}
    return {system: row for system, row in rows.items() if system not in CHOSEN}


def _row(system: str, task: str, data: Path, folder: Path) -> dict[str, Any]:
    cache = folder / "cache"
    cache.mkdir(parents=True)
    try:
        if system == "pyro":
            return _pyro(task, data, folder, cache)
        row = _child(system, task, data, folder / "first", cache)
        row["runs"] = []
        for file in sorted((folder / "first").glob("draws_*.npz")):
            with np.load(file) as held:
                row["runs"].append(judge(task, dict(held)))
        if system == "probdl":
            again = _child(system, task, data, folder / "again", cache, "--once")
            row["cached_first_s"] = again["first_s"]
    except (RuntimeError, ValueError, OSError) as error:
        return {"error": str(error)}
    return row


def _pyro(task: str, data: Path, folder: Path, cache: Path) -> dict[str, Any]:
    """Run Pyro with its compiler, or without it if compiling a long loop takes too long."""
    try:
        return _child("pyro", task, data, folder / "first", cache, timeout=PYRO_TIMEOUT_S)
    except TooLongError:
        return _child("pyro", task, data, folder / "eager", cache, "--eager")


def _child(
    system: str,
    task: str,
    data: Path,
    out: Path,
    cache: Path,
    *options: str,
    timeout: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Run one process to completion and return its timings."""
    out.mkdir()
    arguments = [system, task, str(data), str(out), *options]
    try:
        done = subprocess.run(
            [interpreter(system), "-m", "benchmarks.peers.child", *arguments],
            cwd=ROOT,
            env=os.environ | _caches(cache),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise RuntimeError("not installed") from None
    except subprocess.TimeoutExpired:
        raise TooLongError(f"not done after {timeout} s") from None
    if done.returncode:
        last = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        raise RuntimeError(f"exit status {done.returncode}: {last[:300]}")
    return json.loads((out / "timings.json").read_text())


def _caches(folder: Path) -> dict[str, str]:
    """Return environment variables that set the cache folder of each system with a cache."""
    return {
        "PROBDL_CACHE": str(folder / "probdl"),
        "XDG_CACHE_HOME": str(folder),  # httpstan
        "PYTENSOR_FLAGS": f"base_compiledir={folder / 'pytensor'}",
        "NUMBA_CACHE_DIR": str(folder / "numba"),
    }


if __name__ == "__main__":
    run("peers", {task: partial(measure, task) for task in TASKS}, write)
