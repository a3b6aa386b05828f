"""Fit the models of Pyro's examples, from a checkout of Pyro; count those that run.

``python -m benchmarks.pyro_examples CHECKOUT [NAME ...]`` loads each file as it is, and calls
``infer`` with its model, its guide and small synthetic data. Modules for plots and downloads that
are not installed are replaced by stand-ins. Writes benchmarks/results/pyro_examples.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.processes import result_of
from benchmarks.pyro_examples.cases import CASES, Case

PAGE = Path(__file__).parents[1] / "results" / "pyro_examples.md"
SECONDS = 300
STANDING_IN = (
    "visdom",
    "wget",
    "seaborn",
    "horovod",
    "lightning",
    "lightning.pytorch",
    "torchvision",
    "torchvision.datasets",
    "torchvision.transforms",
    "anndata",
)
WITHOUT_MODEL = {
    "contrib/funsor/hmm.py": "the models of hmm.py for another backend",
    "contrib/oed": "design of experiments, with its own estimators",
    "rsa": "programs that call inference inside the model",
    "einsum.py": "timing of tensor products",
    "minipyro.py": "its model is inside of main()",
    "smcfilter.py": "a particle filter, which has no density",
    "vae/vae_comparison.py": "the model of vae.py",
}


class _StandIn(types.ModuleType):
    """A module whose names are classes that do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (mock.MagicMock,), {})


def load(checkout: Path, path: str) -> Any:
    """Import an example file, with the files beside it."""
    file = checkout / "examples" / path
    for folder in (file.parent, checkout / "examples"):
        sys.path.insert(0, str(folder))
    stands_in = []
    for name in STANDING_IN:
        root = name.partition(".")[0]
        if root not in sys.modules and importlib.util.find_spec(root) is None:
            stands_in.append(name)
    for name in stands_in:
        sys.modules[name] = module = _StandIn(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    logging.disable(logging.INFO)
    spec = importlib.util.spec_from_file_location(f"example_{file.stem.replace('-', '_')}", file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def fit(case: Case, checkout: Path, results: Any) -> None:
    """Run one case and put what came of it."""
    import matplotlib

    matplotlib.use("Agg")
    found: dict[str, Any] = {"engine": "", "remark": ""}
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            run = case.make(load(checkout, case.path))
            import probdl

            start = time.perf_counter()
            done = probdl.infer(
                run.model, *run.args, method=run.method, seed=1, progress=False, **run.kwargs
            )
        found["engine"] = done.stats.get("engine", "")
        found["remark"] = ", ".join(sorted({f.check for f in done.diagnose()}))
        found["ok"] = True
    except BaseException as error:
        found["ok"] = False
        found["remark"] = f"{type(error).__name__}: {error}"
    results.put(found | {"seconds": time.perf_counter() - start})


def measured(case: Case, checkout: Path) -> dict[str, Any]:
    """Run a case in a separate process."""
    late = {"ok": False, "engine": "", "seconds": float(SECONDS), "remark": "no result in time"}
    return result_of(fit, case, checkout, seconds=SECONDS) or late


def main() -> None:
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "examples").is_dir():
        raise SystemExit("usage: python -m benchmarks.pyro_examples CHECKOUT [NAME ...]")
    checkout, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    rows = []
    for case in CASES:
        if names and not any(name in f"{case.path} {case.name}" for name in names):
            continue
        found = measured(case, checkout)
        rows.append((case, found))
        state = "ok  " if found["ok"] else "FAIL"
        print(
            f"{state} {case.path:36} {case.name:32} {found['engine']:8} "
            f"{found['seconds']:6.1f} s  {found['remark'][:400]!r}",
            flush=True,
        )
    good = sum(found["ok"] for _, found in rows)
    print(f"{good} of {len(rows)} models run unmodified")
    if not names:
        write(rows, good)


def write(rows: list[tuple[Case, dict[str, Any]]], good: int) -> None:
    """Write the page."""
    lines = [
        "# Pyro's own examples",
        "",
        f"{good} of {len(rows)} models of Pyro's examples run unmodified: the files are imported",
        "as they are, and `probdl.infer` gets their model, their guide and small synthetic data.",
        "Measured by `python -m benchmarks.pyro_examples CHECKOUT`, with a checkout of Pyro.",
        "",
        "| example | model | engine | seconds | findings, or the error |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case, found in rows:
        remark = found["remark"].replace("|", "\\|").split("\n")[0][:200]
        engine = found["engine"] if found["ok"] else "**fails**"
        cells = (case.path, case.name, engine, f"{found['seconds']:.1f}", remark)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Not run:", ""]
    lines += [f"- `{path}`: {why}" for path, why in WITHOUT_MODEL.items()]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
