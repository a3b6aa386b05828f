"""Fit all models, one process a model: `make bench-honesty`.

Each finished model is stored at once, so that ``--resume`` continues a run that was stopped: it
skips the models that are stored. With ``--models`` and ``--methods`` only those are fitted again;
the other rows are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from benchmarks.honesty.case import METHODS
from benchmarks.honesty.judge import FAILED
from benchmarks.honesty.models import CASES
from benchmarks.honesty.report import summary, write

RESULTS = Path(__file__).parents[1] / "results" / "honesty.json"
BUILD_S = 120.0  # for the imports and the known answer

Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.honesty", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[*CASES], choices=[*CASES], metavar="MODEL")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for each fit")
    parser.add_argument("--resume", action="store_true", help="skip the models that are stored")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def rows_of(model: str, tasks: list[list[Any]], timeout: float) -> Iterator[Row]:
    """Fit one model by methods and seeds; a fit that takes too long fails, and the rest go on."""
    while tasks:
        command = [sys.executable, "-m", "benchmarks.honesty.child", model, json.dumps(tasks)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines: queue.Queue[str | None] = queue.Queue()
            assert process.stdout is not None
            threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
            line = _next(lines, BUILD_S)
            if not line:
                process.kill()
                raise RuntimeError(f"The known answer of '{model}' could not be computed.")
            tasks = json.loads(line)["tasks"]
            while tasks:
                line = _next(lines, timeout)
                method, seed = tasks.pop(0)
                if not line:
                    ended = process.poll() is not None
                    process.kill()
                    why = "the process died" if ended else f"no result in {timeout:g} s"
                    yield {
                        "method": method,
                        "seed": seed,
                        "seconds": timeout,
                        "verdict": FAILED,
                        "wrong": [],
                        "findings": [why],
                    }
                    break
                yield json.loads(line)


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.Queue[str | None], timeout: float) -> str | None:
    try:
        return lines.get(timeout=timeout)
    except queue.Empty:
        return None


def main() -> None:
    if not os.environ.get("PROBDL_SHARED"):
        raise SystemExit("Set PROBDL_SHARED to the folder of reference posteriors.")
    chosen = arguments()
    stored: dict[str, list[Row]] = {}
    if chosen.output.exists():
        stored = json.loads(chosen.output.read_text())["rows"]
    stored = {name: stored[name] for name in CASES if name in stored}
    begun = time.perf_counter()
    for name in chosen.models:
        tasks = [[method, seed] for method in chosen.methods for seed in chosen.seeds]
        old = stored.get(name, [])
        if chosen.resume and old:
            continue
        kept = [row for row in old if [row["method"], row["seed"]] not in tasks]
        new = list(rows_of(name, tasks, chosen.timeout))
        order = {method: i for i, method in enumerate(METHODS)}
        rows = sorted(kept + new, key=lambda row: (order[row["method"]], row["seed"]))
        stored[name] = rows
        content = {"rows": {key: stored[key] for key in CASES if key in stored}}
        chosen.output.parent.mkdir(exist_ok=True)
        chosen.output.write_text(json.dumps(content, indent=1) + "\n")
        write(chosen.output)
        print(f"{time.perf_counter() - begun:6.0f} s  {name}: {summary(new)}", flush=True)
        for row in new:
            if row["verdict"] not in ("right", "told"):
                what = "; ".join(row["wrong"][:3]) or row.get("message", "")[-300:]
                print(f"    {row['method']} {row['seed']}: {row['verdict']}", end=" ")
                print(what, ", ".join(row["findings"]), flush=True)
    print((chosen.output.with_suffix(".md")).read_text())


if __name__ == "__main__":
    main()
