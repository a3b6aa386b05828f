"""The wheel, built from the source distribution, works without the repository."""

import os
import site
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import warnings
import numpy as np, pyro, pyro.distributions as dist, torch, probdl
from probdl.models import VAE, normal_normal

warnings.simplefilter("ignore")
assert {repository!r} not in probdl.__file__, probdl.__file__
data = np.ones(4), np.arange(4.0)
nuts = probdl.infer(normal_normal, *data, seed=1)
assert nuts.stats["engine"] == "native"
assert abs(nuts.draws["mu"].mean() - 1.2) < 0.1
svi = probdl.infer(normal_normal, *data, method=probdl.SVI(steps=500), seed=1)
assert svi.stats["engine"] == "native"
walk = probdl.infer(normal_normal, *data, method=probdl.Metropolis(draws=200), seed=1)
assert walk.stats["engine"] == "native"


def generator(x=None, size=1):
    pyro.module("net", net)
    with pyro.plate("rows", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.deterministic("x", net(z), event_dim=1)


net = torch.nn.Linear(1, 1)


method = probdl.GAN(torch.nn.Linear(1, 1), steps=10, batch_size=20)
gan = probdl.infer(generator, torch.randn(50, 1), method=method, seed=1)
assert np.isfinite(gan.predict(5)["x"]).all()
print("passed")
"""


def python(*words, cwd, env=None, interpreter=sys.executable):
    done = subprocess.run(
        [str(interpreter), *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    python("-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    assert (unpacked / "tests" / "conftest.py").is_file()
    python("-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=unpacked)
    return next(folder.glob("*.whl"))


def test_the_wheel_contains_files_that_are_not_python(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    other = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "probdl").rglob("*")
        if (p.is_file() and p.suffix in (".c", ".h", ".pyi", ".typed")) or p.name == "py.typed"
    }
    assert {"probdl/py.typed", "probdl/compile/codegen/prelude.h"} <= other
    assert other <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


def test_it_works_without_the_repository(wheel, tmp_path):
    """Use a new environment that sees the installed packages, but not this repository."""
    home = tmp_path / "environment"
    python("-m", "venv", "--without-pip", home, cwd=tmp_path)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    with zipfile.ZipFile(wheel) as archive:  # installs a pure Python wheel
        archive.extractall(own)
    shared = [sysconfig.get_path("purelib"), *site.getsitepackages()]
    (own / "shared.pth").write_text("\n".join(dict.fromkeys(shared)))
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    env["PROBDL_CACHE"] = str(tmp_path / "cache")
    call = {"cwd": tmp_path, "env": env, "interpreter": home / "bin" / "python"}
    if os.name == "nt":
        call["interpreter"] = home / "Scripts" / "python.exe"
    output = python("-c", SCRIPT.format(repository=str(ROOT)), **call)
    assert output.splitlines()[-1] == "passed"
    assert "theta[A]" in python("-m", "probdl", "demo", "--quiet", **call)
