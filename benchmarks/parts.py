"""Run all parts of a benchmark, or only those named on the command line."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

import probdl

RESULTS = Path(__file__).parent / "results"


def run(
    name: str, parts: Mapping[str, Callable[[], Any]], write: Callable[[dict[str, Any]], None]
) -> None:
    """Run parts, store their results in results/NAME.json, and write and print NAME.md.

    Parts that are not run keep their stored results.
    """
    mpl.use("Agg")
    warnings.simplefilter("ignore", probdl.FindingWarning)
    RESULTS.mkdir(exist_ok=True)
    held = RESULTS / f"{name}.json"
    results = json.loads(held.read_text()) if held.exists() else {}
    for part in sys.argv[1:] or parts:
        results[part] = parts[part]()
        print(part, results[part], flush=True)
        held.write_text(json.dumps(results, indent=1) + "\n")
    write(results)
    print((RESULTS / f"{name}.md").read_text())
