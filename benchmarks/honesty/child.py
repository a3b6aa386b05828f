"""Fit one model: ``python -m benchmarks.honesty.child MODEL [[METHOD, SEED], ...]``.

Writes one line of JSON to standard output before the first fit, and one for each fit.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
from typing import Any

import probdl
from benchmarks.honesty.case import Case
from benchmarks.honesty.judge import FAILED, TOLD, judge
from benchmarks.honesty.models import CASES
from probdl.methods import METHODS


def fit_once(case: Case, method: str, seed: int) -> dict[str, Any]:
    """Fit a model, and judge the fit."""
    row: dict[str, Any] = {"method": method, "seed": seed}
    start = time.perf_counter()
    try:
        settings = METHODS[method](**case.settings.get(method, {}))
        fit = probdl.infer(case.model, *case.arguments, method=settings, seed=seed, progress=False)
        row["seconds"] = time.perf_counter() - start
        judgement = judge(case, method, fit)
    except probdl.ProbdlError as error:
        name, message = type(error).__name__, str(error)
        row |= {"verdict": TOLD, "wrong": [], "findings": [name], "message": message}
    except Exception as error:  # what a user must never see
        trace = traceback.format_exception(error)[-3:]
        message = "".join(trace)
        row |= {"verdict": FAILED, "wrong": [], "findings": [repr(error)], "message": message}
    else:
        row |= {
            "verdict": judgement.verdict,
            "wrong": judgement.wrong,
            "findings": judgement.findings,
        }
    row.setdefault("seconds", time.perf_counter() - start)
    return row | {"seconds": round(row["seconds"], 3)}


def main() -> None:
    warnings.simplefilter("ignore")
    out, sys.stdout = sys.stdout, sys.stderr  # what models print is not a result
    name, tasks = sys.argv[1], json.loads(sys.argv[2])
    case = CASES[name].build()
    applicable = [[m, s] for m, s in tasks if case.answer(m) is not None]
    print(json.dumps({"tasks": applicable}), file=out, flush=True)
    for method, seed in applicable:
        print(json.dumps(fit_once(case, method, seed)), file=out, flush=True)


if __name__ == "__main__":
    main()
