"""Time programs of Pyro's users beside Pyro itself: `make bench-pyro`.

Each program of tests/pyro_programs/programs is fitted by both with the same work: one chain of 500
warm-up and 500 kept draws, or 2,000 steps of SVI with the same guide. Each fit has a process of its
own, and compiles its code from nothing; the time is that of the whole call. The order alternates.
Writes benchmarks/results/pyro_programs.md and .json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.processes import result_of
from tests.pyro_programs.programs import PROGRAMS, Program

RESULTS = Path(__file__).parent / "results"
DRAWS, STEPS = 500, 2000
SECONDS = 180  # for one fit


def with_probdl(program: Program) -> str:
    """Fit a program by probdl; return the engine."""
    import probdl

    if program.method == "nuts":
        method: Any = probdl.NUTS(chains=1, warmup=DRAWS, draws=DRAWS)
    else:
        method = probdl.SVI(**program.settings | {"steps": STEPS, "draws": 100})
    fit = probdl.infer(program.model, *program.args, method=method, seed=1, progress=False)
    return str(fit.stats["engine"])


def with_pyro(program: Program) -> str:
    """Fit a program by Pyro."""
    import pyro
    from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
    from pyro.infer.autoguide import AutoNormal
    from pyro.optim import Adam
    from pyro.poutine.util import site_is_subsample

    pyro.set_rng_seed(1)
    pyro.clear_param_store()
    args = [x.float() if getattr(x, "is_floating_point", bool)() else x for x in program.args]
    if program.method == "nuts":
        chain = MCMC(
            NUTS(program.model), num_samples=DRAWS, warmup_steps=DRAWS, disable_progbar=True
        )
        chain.run(*args)
        return ""
    guide: Any = program.settings.get("guide", "normal")
    if isinstance(guide, str):
        guide = AutoNormal(program.model)
    elif isinstance(guide, type) or getattr(guide, "__name__", "") == "<lambda>":
        guide = guide(program.model)
    trace: Any = pyro.poutine.trace(pyro.poutine.block(program.model, hide_types=["param"]))
    nodes = trace.get_trace(*args).nodes.values()
    sampled = [n for n in nodes if n["type"] == "sample" and not site_is_subsample(n)]
    latent = [n for n in sampled if not n["is_observed"]]
    discrete = any(n["fn"].support.is_discrete for n in latent)
    elbo: Any = Trace_ELBO()
    if discrete and any(n["infer"].get("enumerate") for n in latent):
        elbo = TraceEnum_ELBO(max_plate_nesting=2)
    elif discrete:
        elbo = (
            TraceGraph_ELBO() if program.engine == "eager" else TraceEnum_ELBO(max_plate_nesting=2)
        )
    svi = SVI(program.model, guide, Adam({"lr": 0.01}), elbo)
    for _ in range(STEPS):
        svi.step(*args)
    return ""


def _timed(run: Any, program: Program, results: Any) -> None:
    os.environ["PROBDL_CACHE"] = tempfile.mkdtemp()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    try:
        said = run(program)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        results.put((said.splitlines()[0][:80], None))
    else:
        results.put((said, time.perf_counter() - start))


def measured(run: Any, program: Program) -> tuple[str, float | None]:
    """Run a fit in a separate process; return what it says, and seconds."""
    return result_of(_timed, run, program, seconds=SECONDS) or (f"more than {SECONDS} s", None)


def main() -> None:
    import probdl
    from probdl.models import normal_normal

    # What is imported at the first fit of a process is not a part of the comparison.
    ones = [1.0, 1.0]
    import numpy as np

    for method in ("nuts", probdl.SVI(steps=100)):
        probdl.infer(normal_normal, np.array(ones), np.array(ones), method=method, seed=1)
    names = sys.argv[1:]
    rows = []
    for i, (name, program) in enumerate(PROGRAMS.items()):
        if names and name not in names:
            continue
        order = (with_probdl, with_pyro) if i % 2 else (with_pyro, with_probdl)
        found = {run: measured(run, program) for run in order}
        (engine, ours), (said, theirs) = found[with_probdl], found[with_pyro]
        rows.append(
            {"name": name, "method": program.method, "engine": engine, "probdl": ours}
            | {"pyro": theirs, "said": said}
        )
        ratio = f"{theirs / ours:7.1f}" if ours and theirs else "      -"
        print(f"{name:36} {program.method:5} {engine:8} {ours} {theirs} {ratio} {said}", flush=True)
    write(rows, partial=bool(names))


def write(rows: list[dict[str, Any]], *, partial: bool) -> None:
    """Write the table, and print its summary."""
    lines = [
        "# Programs of Pyro's users",
        "",
        f"Seconds of the whole call, code compiled from nothing: one chain of {DRAWS} warm-up and",
        f"{DRAWS} kept draws, or {STEPS} steps of SVI with the same guide. Measured by",
        "`make bench-pyro`.",
        "",
    ]
    for method in ("nuts", "svi"):
        ratios = [
            (row["pyro"] or SECONDS) / row["probdl"]
            for row in rows
            if row["method"] == method and row["probdl"] and (row["pyro"] or "more" in row["said"])
        ]
        if ratios:
            slower = sum(ratio < 1 for ratio in ratios)
            lines.append(
                f"- {method}: median ratio {statistics.median(ratios):.1f}, least "
                f"{min(ratios):.2f}; slower than Pyro in {slower} of {len(ratios)}."
            )
    native = sum(row["engine"] == "native" for row in rows)
    lines.append(f"- native code: {native} of {len(rows)}.")
    lines += ["", "| program | method | engine | probdl | Pyro | Pyro / probdl |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        ours, theirs = row["probdl"], row["pyro"]
        ratio = f"{theirs / ours:.1f}" if ours and theirs else ""
        cells = (
            row["name"],
            row["method"],
            row["engine"],
            "" if ours is None else f"{ours:.2f}",
            row["said"] if theirs is None else f"{theirs:.2f}",
            ratio,
        )
        lines.append(f"| {' | '.join(cells)} |")
    print("\n".join(line for line in lines if line.startswith("- ")))
    if not partial:
        (RESULTS / "pyro_programs.md").write_text("\n".join(lines) + "\n")
        (RESULTS / "pyro_programs.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
