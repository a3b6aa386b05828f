"""The modules that imports and commands load, as a measure of their start-up time."""

import dataclasses
import inspect
import json
import subprocess
import sys

import pytest

from probdl.command.catalogue import catalogue
from probdl.methods import METHODS

HEAVY = {"arviz", "arviz_stats", "matplotlib", "xarray", "pandas", "h5netcdf", "h5py", "scipy"}
HEAVY |= {"nutpie", "typer", "IPython", "sklearn"}
LOADED = "import json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def loaded(code):
    """Run code in a new process, and return the packages loaded at the end."""
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", f"import sys\n{code}\n{LOADED}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_probdl_loads_no_heavy_package_besides_torch_and_pyro():
    bare = loaded("import torch, pyro")
    assert not (loaded("import torch, pyro, probdl") - bare) & HEAVY
    every = "import torch, pyro, probdl\nfor name in dir(probdl): getattr(probdl, name)"
    assert not (loaded(every) - bare) & HEAVY


def test_a_point_estimate_loads_no_packages_for_tables_or_plots():
    code = (
        "import numpy as np, probdl\n"
        "from probdl.models import normal_normal\n"
        "probdl.infer(normal_normal, np.ones(3), np.ones(3), method='mle', seed=1)"
    )
    assert not loaded(code) & (HEAVY - {"scipy"})


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["infer", "--help"], 0),
        (["--version"], 0),
        (["methods"], 0),
        (["methods", "nuts"], 0),
        (["methods", "--json"], 0),
        ([], 2),
        (["nosuch"], 2),
        (["infer"], 2),
        (["infer", "nothing.py:model"], 2),
        (["infer", "m.py:model", "--method", "nutz"], 2),
        (["infer", "m.py:model", "--set", "drows=3"], 2),
        (["infer", "m.py:model", "--seed", "x"], 2),
        (["plot", "folder", "tracee", "--out", "x.png"], 2),
        (["plot", "folder", "trace", "--out", "x.txt"], 2),
        (["predict", "folder", "--out", "x.txt"], 2),
    ],
)
def test_help_and_input_errors_do_not_load_torch(words, status):
    code = (
        "from probdl.command.app import app\n"
        "try:\n"
        f"    app({words!r})\n"
        "except SystemExit as error:\n"
        f"    assert error.code == {status}, error.code"
    )
    assert not loaded(code) & {"torch", "pyro"}


def test_the_catalogue_agrees_with_the_methods():
    listed = catalogue()
    assert listed.keys() == METHODS.keys()
    for name, cls in METHODS.items():
        assert listed[name].doc == inspect.getdoc(cls)
        fields = {f.name: f.default for f in dataclasses.fields(cls)}
        assert listed[name].settings.keys() == fields.keys()
        for setting, default in fields.items():
            shown = listed[name].settings[setting]
            assert shown == default or (callable(default) and isinstance(shown, str))


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "probdl", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("probdl ")
