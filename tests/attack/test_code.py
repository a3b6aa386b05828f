"""A folder of a fit makes no code run, unless the user trusts it; then only what was fitted."""

import functools
import hashlib
import inspect
import os
import shutil
import sys
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from pyro import poutine
from pyro.infer import config_enumerate
from typer.testing import CliRunner

import probdl
from probdl.command.app import app
from tests.attack.hostile import rewrite

MODEL = """
import pyro, pyro.distributions as dist
from os import system

def model(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
"""


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "models.py").write_text(MODEL)
    (tmp_path / "xy.csv").write_text("x,y\n1,2.5\n2,3.5\n3,6.5\n4,7.5\n")
    words = ["infer", "models.py:model", "--data", "xy.csv", "--method", "laplace", "--out", "fit"]
    assert run(*words).exit_code == 0
    shutil.copytree("fit", "again")
    (tmp_path / "models.py").write_text(MODEL + "\nopen('imported', 'w').close()\n")
    sys.modules.pop("models", None)
    yield tmp_path / "fit"
    sys.modules.pop("models", None)


COMMANDS = [
    ("predict", "fit", "--out", "p.npz"),
    ("compare", "fit", "again", "--refit"),
    ("summary", "fit"),
    ("diagnose", "fit"),
    ("plot", "fit", "forest", "--out", "f.png"),
]


@pytest.mark.parametrize("words", COMMANDS)
def test_without_trust_nothing_is_imported(folder, words):
    result = run(*words)
    assert result.exit_code == (2 if words[0] in ("predict", "compare") else 0), result.output
    assert not (folder.parent / "imported").exists()
    if result.exit_code:
        assert "--model file.py:name" in result.output
        assert "--trust" in result.output


@pytest.mark.parametrize("words", COMMANDS[:2])
def test_with_trust_the_unchanged_model_runs(folder, words):
    result = run(*words, "--trust")
    assert result.exit_code == 0, result.output
    assert (folder.parent / "imported").exists()


def names_of_others(folder):
    here = str(folder.parent / "models.py")
    return {
        "a function of the standard library": (os.__file__, "os.system"),
        "another function that the file imports": (here, "models.system"),
        "a method": (here, "models.model.__call__"),
        "an attribute of a module": (here, "models.pyro.clear_param_store"),
        "a function of the package": (probdl.doctor.__code__.co_filename, "probdl.doctor.doctor"),
        "no name": (here, ""),
        "a name with an expression": (here, "models.model()"),
        "a missing file": ("/nonexistent/models.py", "models.model"),
        "a device": ("/dev/zero", "zero.model"),
        "a device by a link": (str(folder.parent / "zero.py"), "zero.model"),
        "a folder": (str(folder.parent), "models.model"),
        "no Python": (str(folder.parent / "xy.csv"), "xy.model"),
    }


@pytest.mark.parametrize("which", range(12))
@pytest.mark.parametrize("trust", [False, True])
def test_another_function_is_never_called(folder, which, trust, monkeypatch):
    (folder.parent / "zero.py").symlink_to("/dev/zero")
    file, name = [*names_of_others(folder).values()][which]
    called = []
    monkeypatch.setattr(os, "system", called.append)

    def change(index):
        index["model"] |= {"file": file, "qualname": name, "object": name.partition(".")[2]}
        index["data"]["arguments"] = {"dict": [["command", "echo"]]}

    rewrite(folder, change)
    result = run("predict", "fit", "--out", "p.npz", *(["--trust"] if trust else []))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not called
    assert not (folder.parent / "imported").exists()


def test_a_changed_model_is_not_trusted(folder):
    path = folder.parent / "models.py"
    path.write_text(path.read_text().replace("10.0", "11.0"))
    result = run("predict", "fit", "--out", "p.npz", "--trust")
    assert result.exit_code == 2
    assert "changed" in result.output
    assert not (folder.parent / "imported").exists()


def test_a_loaded_method_writes_no_checkpoint(folder, tmp_path):
    def change(index):
        index["method"] = {
            "name": "svi",
            "shown": "SVI()",
            "settings": {"steps": 100, "checkpoint": str(tmp_path / "elsewhere")},
        }

    rewrite(folder, change)
    fit = probdl.load(folder)
    assert fit.method.checkpoint is None
    assert not (tmp_path / "elsewhere").exists()
    assert np.isfinite(fit.draws["slope"]).all()


LIBRARIES = {
    "the standard library": (shutil.__file__, "move", shutil.move),
    "an installed package": (np.lib.format.__file__, "open_memmap", np.lib.format.open_memmap),
}


@pytest.mark.parametrize("which", LIBRARIES)
def test_the_right_checksum_of_a_function_of_a_library_is_no_trust(folder, which):
    file, name, function = LIBRARIES[which]
    (folder.parent / "victim").write_text("precious")

    def change(index):
        source = inspect.getsource(inspect.unwrap(function))
        digest = hashlib.sha256(source.encode()).hexdigest()
        index["model"] |= {"file": file, "object": name, "source_sha256": digest, "whole": True}
        index["data"]["arguments"] = {"dict": [["src", "victim"], ["dst", "stolen"]]}

    rewrite(folder, change)
    result = run("predict", "fit", "--out", "p.npz", "--trust")
    assert result.exit_code == 2, result.output
    assert "library" in result.output
    assert (folder.parent / "victim").exists()


SOURCES = {
    "windows": MODEL.replace("\n", "\r\n").encode(),
    "byte order mark": b"\xef\xbb\xbf" + MODEL.encode(),
    "latin-1": ("# -*- coding: latin-1 -*-\n# größe" + MODEL).encode("latin-1"),
    "form feed": MODEL.replace("def model", "\f\ndef model").encode(),
    "comment inside at the end": (MODEL + "    # the end\n").encode(),
    "under an if": b"if True:\n" + b"".join(
        b"    " + line + b"\n" for line in MODEL.encode().split(b"\n")
    ),
    "decorated": MODEL.replace("def model", "import functools\n@functools.cache\ndef f(): ...\n"
        "\ndef same(f): return f\n\n@same\ndef model").encode(),
}  # fmt: skip


@pytest.mark.parametrize("which", SOURCES)
def test_an_unchanged_model_is_trusted_however_it_is_written(tmp_path, monkeypatch, which):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = tmp_path / "v1.2"
    package.mkdir()
    (package / "model.v2.py").write_bytes(SOURCES[which])
    (tmp_path / "xy.csv").write_text("x,y\n1,2.5\n2,3.5\n3,6.5\n4,7.5\n")
    words = ["--data", "xy.csv", "--method", "laplace", "--out", "fit"]
    result = run("infer", "v1.2/model.v2.py:model", *words)
    assert result.exit_code == 0, result.output
    result = run("predict", "fit", "--out", "p.npz", "--trust")
    assert result.exit_code == 0, result.output


def test_a_model_in_a_package_is_imported_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = tmp_path / "trusted_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("SCALE = 10.0\n")
    text = MODEL.replace("10.0", "SCALE")
    (package / "inner.py").write_text("from .parts import SCALE\n" + text)
    (tmp_path / "xy.csv").write_text("x,y\n1,2.5\n2,3.5\n3,6.5\n4,7.5\n")
    words = ["--data", "xy.csv", "--method", "laplace", "--out", "fit"]
    assert run("infer", "trusted_package.inner:model", *words).exit_code == 0
    result = run("predict", "fit", "--out", "p.npz", "--trust")
    assert result.exit_code == 0, result.output


def base(x, y=None, k=1.0):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(k * slope * x, 1.0), obs=y)


def other(x, y=None, k=1.0):
    slope = pyro.sample("slope", dist.Normal(0.0, 0.5))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(k * slope * x, 1.0), obs=y)


WRAPPERS = {
    "partial": lambda f: functools.partial(f, k=2.0),
    "scale": lambda f: poutine.scale(f, scale=0.5),
    "enumerated": config_enumerate,
    "both": lambda f: functools.partial(config_enumerate(f), k=2.0),
}


@pytest.mark.parametrize("which", WRAPPERS)
def test_a_wrapped_model_is_known_by_what_is_inside(tmp_path, which):
    wrap = WRAPPERS[which]
    x = np.arange(4.0)
    probdl.infer(wrap(base), x, 2 * x, method="map", seed=1).save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probdl.load(tmp_path, model=wrap(base))
    with pytest.warns(UserWarning, match="has changed"):
        probdl.load(tmp_path, model=wrap(other))
    result = run("predict", tmp_path, "--out", tmp_path / "p.npz", "--trust")
    assert result.exit_code == 2
    assert "--model" in result.output
