"""Run the suite on several Pythons with several releases: `make test-matrix`.

Each row is a Python, what its environment is constrained by, and what is asked for beside.
``python tests/matrix.py NAME ...`` runs some of the rows; the others stay as they were. Writes
docs/compatibility.md, and benchmarks/results/matrix.json, which that is made from.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
HELD = ROOT / "benchmarks" / "results" / "matrix.json"
PAGE = ROOT / "docs" / "compatibility.md"
PACKAGES = ("torch", "pyro-ppl", "arviz", "nutpie", "numpy", "pandas", "xarray")
COUNTS = re.compile(r"(\d+) (passed|failed|error)")


class Row(NamedTuple):
    python: str
    constraints: str
    beside: tuple[str, ...] = ()  # requirements in the place of constraints; names are free


_FREE = ("sympy", "networkx", "fsspec", "filelock", "typing_extensions")  # as torch wants them
ROWS = {
    "3.11": Row("python3.11", "constraints.txt"),
    "3.11, oldest torch": Row("python3.11", "constraints.txt", ("torch==2.4.1", *_FREE)),
    "3.12": Row("python3.12", "constraints-3.12.txt"),
    "3.13": Row("python3.13", "constraints-3.12.txt"),
}


def environment(name: str, row: Row) -> Path:
    """Make the environment of a row; return its interpreter."""
    folder = ROOT / f".venv-matrix-{re.sub('[^0-9a-z.]+', '-', name)}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([row.python, "-m", "venv", str(folder)], check=True)
    asked = {re.split("[=<>]", requirement)[0].lower() for requirement in row.beside}
    lines = (ROOT / row.constraints).read_text().splitlines()
    kept = [line for line in lines if line.split("=")[0].lower() not in asked]
    constraints = folder / "constraints.txt"
    pinned = [requirement for requirement in row.beside if "=" in requirement]
    constraints.write_text("\n".join([*kept, *pinned]) + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    subprocess.run([*map(str, install), "--editable", f"{ROOT}[dev]"], check=True)
    return python


def tested(python: Path) -> dict[str, int]:
    """Run the suite; return how many tests passed and failed."""
    done = subprocess.run(
        [str(python), "-m", "pytest", "-n", "2", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    print(done.stdout[-2000:], flush=True)
    counts = {"passed": 0, "failed": 0}
    for number, what in COUNTS.findall(done.stdout.splitlines()[-1]):
        counts["passed" if what == "passed" else "failed"] += int(number)
    return counts


def versions(python: Path) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json, platform; "
        f"print(json.dumps({{p: m.version(p) for p in {PACKAGES}}} | "
        "{'Python': platform.python_version()}))"
    )
    return json.loads(subprocess.check_output([str(python), "-c", code], text=True))


def write(held: dict[str, dict[str, object]]) -> None:
    """Write the page from what was found."""
    lines = [
        "# Tested versions",
        "",
        "The results of the complete test suite on Linux (x86-64), run by `make test-matrix`.",
        "pyproject.toml allows torch 2.4 or later. A row is the suite of its day; what failed then",
        "(with torch 2.4.1 the words of an error and the engine of a model) is fixed.",
        "",
        f"| Python | {' | '.join(PACKAGES)} | passed | failed | on |",
        "| " + " | ".join(["---"] * (len(PACKAGES) + 4)) + " |",
    ]
    for name in sorted(held):
        row = held[name]
        found: dict[str, str] = row["versions"]  # type: ignore[assignment]
        cells = [found["Python"], *(found[p].split("+")[0] for p in PACKAGES)]
        lines.append(f"| {' | '.join(cells)} | {row['passed']} | {row['failed']} | {row['on']} |")
    lines += [
        "",
        "ArviZ 1 needs Python 3.12; the newest release for Python 3.11 is 0.23. `fit.idata` is an",
        "`xarray.DataTree` with ArviZ 1, and an `InferenceData` with 0.23.",
    ]
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    held = json.loads(HELD.read_text()) if HELD.exists() else {}
    for name in sys.argv[1:] or ROWS:
        python = environment(name, ROWS[name])
        found = {"versions": versions(python), "on": str(datetime.date.today())}
        held[name] = found | tested(python)
        HELD.write_text(json.dumps(held, indent=1) + "\n")
        print(name, held[name], flush=True)
    write(held)


if __name__ == "__main__":
    main()
