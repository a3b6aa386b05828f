"""The command: fits, output files, messages and exit codes."""

import bz2
import contextlib
import gzip
import importlib.util
import json
import lzma
import os
import signal
import subprocess
import sys
import zipfile

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import probdl
from probdl.command.app import app
from probdl.command.binding import bind
from probdl.command.locate import locate, locate_model
from probdl.command.tabular import read, read_all, read_raw
from probdl.errors import DataError, ModelError

MODEL = """
import pyro
import pyro.distributions as dist


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def required(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def talks(y):
    print("a line of the model")
    normal(y)


class Holder:
    model = staticmethod(line)


number = 3
"""
Y = [1.0, 2.0, 6.0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a file of models and files of data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_models.py").write_text(MODEL)
    (tmp_path / "y.json").write_text(json.dumps({"y": Y}))
    (tmp_path / "xy.csv").write_text("x,y\n1,2.5\n2,3.5\n3,6.5\n4,7.5\n")
    yield tmp_path
    sys.modules.pop("my_models", None)
    sys.modules.pop("_model_my_models", None)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def good(*words):
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


def refused(*words):
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def fitted(*words):
    return json.loads(good("infer", *words, "--json").stdout)


# -- fitting ------------------------------------------------------------------------------------


def test_mle_of_a_normal_mean_is_the_mean(here):
    found = fitted("my_models.py:normal", "--data", "y.json", "--method", "mle", "--seed", 1)
    (row,) = found["summary"]
    assert row["name"] == "mu"
    assert row["estimate"] == pytest.approx(3.0, abs=1e-6)
    assert row["standard_error"] == pytest.approx(3**-0.5, rel=1e-5)
    assert found["seed"] == 1
    assert found["fit"] is None
    assert found["findings"] == []


def test_standard_output_holds_only_the_result(here):
    words = ["infer", "my_models.py:talks", "--data", "y.json", "--method", "mle", "--seed", 1]
    json.loads(good(*words, "--json").stdout)
    plain = good(*words)
    assert "estimate" in plain.stdout
    assert "a line of the model" not in plain.stdout
    lines = plain.stderr.splitlines()
    assert lines[0] == "read y.json: 3 rows, 1 column"
    assert lines[1].startswith("fitting my_models.py:talks by MLE() to y (3,)")
    assert lines[-1].endswith("seed 1; no findings")


def test_quiet_prints_no_messages(here):
    words = ["infer", "my_models.py:normal", "--data", "y.json", "--method", "mle", "--quiet"]
    assert good(*words).stderr == ""


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")  # the ESS of short chains is low
def test_settings_are_passed_to_the_method(here):
    words = ["--data", "y.json", "--method", "nuts", "--seed", 1, "--set", "draws=100"]
    words += ["--set", "warmup=100", "--set", "chains=2", "--set", "mass_matrix=dense"]
    found = fitted("my_models.py:normal", *words)
    assert found["method"] == "NUTS(draws=100, warmup=100, chains=2, mass_matrix='dense')"
    direct = probdl.infer(
        locate("my_models.py:normal"),
        np.array(Y),
        method=probdl.NUTS(draws=100, warmup=100, chains=2, mass_matrix="dense"),
        seed=1,
        progress=False,
    )
    assert found["summary"][0]["mean"] == direct.summary().loc["mu", "mean"]


def test_nan_is_null_in_json(here):
    words = ["my_models.py:normal", "--data", "y.json", "--set", "chains=1", "--seed", 1]
    assert fitted(*words)["summary"][0]["r_hat"] is None  # one chain has no R-hat


def test_strict_exits_with_one_if_a_finding_is_an_error(here):
    (here / "far.py").write_text(
        "import pyro, pyro.distributions as d\n"
        "def model():\n"
        "    x = pyro.sample('x', d.Normal(0.0, 10.0))\n"
        "    pyro.factor('modes', (-50 * (x.abs() - 8) ** 2))\n"
    )
    words = ["infer", "far.py:model", "--seed", 1, "--set", "draws=100", "--set", "warmup=100"]
    assert run(*words).exit_code == 0
    result = run(*words, "--strict", "--json")
    assert result.exit_code == 1
    assert "error" in {f["severity"] for f in json.loads(result.stdout)["findings"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["my_models.py:normal"], "The data do not contain 'y'. The model's arguments: y."),
        (["my_models.py:normal", "--data", "no.csv"], "no.csv does not exist"),
        (["my_models.py:normal", "--data", "my_models.py"], "Data files end in .csv, .tsv"),
        (["my_models.py:line", "--data", "y.json"], "do not contain 'x'"),
        (["my_models.py:nornal", "--data", "y.json"], "did you mean 'normal'?"),
        (["my_model.py:normal", "--data", "y.json"], "Did you mean 'my_models.py'?"),
        (["my_models.py", "--data", "y.json"], "Write file.py:name"),
        (["my_models.py:Holder"], "is a class"),
        (["my_models.py:number"], "is of type int and cannot be called"),
        (["my_models.py:normal", "--data", "y.json", "--method", "nutz"], "did you mean 'nuts'?"),
        (["my_models.py:normal", "--data", "y.json", "--set", "drws=5"], "did you mean 'draws'?"),
        (["my_models.py:normal", "--data", "y.json", "--set", "draws"], "write NAME=VALUE"),
        (
            ["my_models.py:normal", "--data", "y.json", "--set", "draws=-1"],
            "NUTS(draws=-1): draws must be an integer",
        ),
        (["my_models.py:normal", "--data", "y.json", "--seed", "-1"], "seed=-1"),
        (
            ["my_models.py:normal", "--data", "y.json", "--data", "y.json"],
            "another file contains too",
        ),
        (["my_models.py:normal", "--data", "y.json", "--drop", "z"], "contains no 'z', only y"),
        (["my_models.py:normal", "--data", "y.json", "--out", "xy.csv"], "is a file"),
        (["my_models.py:normal", "--data", "y.json", "--out", "."], "other files than a fit"),
        (["my_models.py:normal", "--sed", "1"], "No such option"),
    ],
)
def test_invalid_input_is_refused(here, words, message):
    assert message in refused("infer", *words)


ORDINAL = """
import torch, pyro, pyro.distributions as dist
def ordinal(x, y=None):
    b = pyro.sample('b', dist.Normal(0.0, 1.0))
    with pyro.plate('row', len(x)):
        pyro.sample('y', dist.OrderedLogistic(b * x, torch.tensor([-1.0, 1.0])), obs=y)
"""


def test_classes_have_an_order_and_probabilities(here):
    (here / "ordinal.py").write_text(ORDINAL)
    texts = ["poor", "fair", "good"]
    rows = [f"{i / 15 - 1},{texts[i // 10]}" for i in range(30)]
    (here / "train.csv").write_text("\n".join(["x,y", *rows]))
    (here / "new.csv").write_text("x\n-1.0\n1.0\n")
    fit = ["infer", "ordinal.py:ordinal", "--data", "train.csv", "--seed", 1, "--out", "fit"]
    fit += ["--method", "laplace", "--category", "y=poor,fair,good"]
    result = run(*fit)
    assert result.exit_code == 0
    assert "codes of y: 0 = poor, 1 = fair, 2 = good" in result.stderr
    more = ["--out", "p.csv", "--model", "ordinal.py:ordinal", "--coords", "row=a,b"]
    assert run("predict", "fit", "--data", "new.csv", *more).exit_code == 0
    table = pd.read_csv(here / "p.csv")
    assert table["index"].tolist() == ["a", "b"]
    shares = table[["p[poor]", "p[fair]", "p[good]"]]
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-6)
    assert (shares["p[good]"].diff()[1:] > 0.2).all()
    assert "does not list" in refused(*fit[:-1], "y=poor,fair")


def test_a_report_has_the_source_of_a_named_model(here):
    fit = ["infer", "my_models.py:normal", "--data", "y.json", "--seed", 1, "--out", "fit"]
    assert run(*fit, "--method", "laplace").exit_code == 0
    bare = run("report", "fit", "--out", "bare.html")
    assert "without the source of the model" in bare.stderr
    named = run("report", "fit", "--out", "named.html", "--model", "my_models.py:normal")
    assert named.exit_code == 0
    assert "def normal" in (here / "named.html").read_text()
    assert "def normal" not in (here / "bare.html").read_text()


GROUPED = """
import pyro, pyro.distributions as dist
def grouped(school, count, y=None):
    with pyro.plate('schools', int(count)):
        a = pyro.sample('a', dist.Normal(0.0, 3.0))
    with pyro.plate('row', len(school)):
        pyro.sample('y', dist.Bernoulli(logits=a[school]), obs=y)
"""


def test_probabilities_of_classes_are_of_the_groups_that_labels_name(here):
    (here / "grouped.py").write_text(GROUPED)
    rates = {0: 0.1, 1: 0.9}
    y = [float(i < 20 * rates[s]) for s in (0, 1) for i in range(20)]
    data = {"school": [0] * 20 + [1] * 20, "count": 2, "y": y}
    (here / "train.json").write_text(json.dumps(data))
    (here / "new.json").write_text(json.dumps({"school": [0], "count": 1}))
    fit = ["infer", "grouped.py:grouped", "--data", "train.json", "--seed", 1, "--out", "fit"]
    assert run(*fit, "--method", "laplace", "--coords", "schools=a,b").exit_code == 0
    more = ["--out", "p.csv", "--model", "grouped.py:grouped", "--coords", "schools=b"]
    assert run("predict", "fit", "--data", "new.json", *more).exit_code == 0
    (row,) = pd.read_csv(here / "p.csv").to_dict("records")
    assert row["p[1]"] == pytest.approx(row["mean"], abs=0.05)
    assert row["p[1]"] > 0.7


@pytest.mark.parametrize(
    ("command", "message"),
    [("fit", "Did you mean 'infer'?"), ("summry", "Did you mean 'summary'?"), ("zz", "(infer,")],
)
def test_an_unknown_command_is_refused_with_the_known_ones(command, message):
    assert message in refused(command, "model.py:normal")


def test_an_unexpected_error_has_a_traceback_only_on_request(here, monkeypatch):
    monkeypatch.setattr(probdl, "infer", lambda *_, **__: 1 / 0)
    words = ["infer", "my_models.py:normal", "--data", "y.json"]
    plain = run(*words)
    assert plain.exit_code == 3
    assert (
        "error: ZeroDivisionError: division by zero\nRun `probdl --traceback infer" in plain.stderr
    )
    assert "Traceback" not in plain.stderr
    assert "Traceback" in run("--traceback", *words).stderr


# -- finding models -----------------------------------------------------------------------------


def test_models_are_found_by_file_and_by_module(here):
    assert locate("probdl.models:eight_schools") is probdl.models.eight_schools
    assert locate(f"{here}/my_models.py:Holder.model").__name__ == "line"
    (here / "random.py").write_text("def model(): ...")
    locate("random.py:model")
    import random  # still the module of the standard library

    assert random.random() < 1
    (here / "uses.py").write_text("from my_models import normal as model")
    assert locate_model("uses.py:model").__name__ == "normal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nx = (", "broken.py, line 2: SyntaxError"),
        ("\n\n1 / 0", "broken.py, line 3: ZeroDivisionError"),
        ("import no_such_module", "line 1: ModuleNotFoundError"),
        ("import sys\nsys.exit()", "line 2: the file exits"),
    ],
)
def test_an_error_in_a_model_file_is_reported_with_its_line(here, text, message):
    (here / "broken.py").write_text(text)
    with pytest.raises(ModelError, match=message):
        locate("broken.py:model")
    with pytest.raises(ModelError, match="no_module_there"):
        locate("no_module_there:model")


# -- data ---------------------------------------------------------------------------------------


def test_all_file_formats_give_the_same_data(tmp_path):
    table = {"x": np.array([0.1, 1 / 3, 1e-17]), "n": np.array([1, 2, 3])}
    csv, js, npz, nc = (tmp_path / f"data.{end}" for end in ("csv", "json", "npz", "nc"))
    rows = (f"{x!r},{n}" for x, n in zip(table["x"].tolist(), table["n"].tolist(), strict=True))
    csv.write_text("\n".join(["x,n", *rows]))
    js.write_text(json.dumps({k: v.tolist() for k, v in table.items()}))
    np.savez(npz, **table)
    xr.Dataset({k: ("row", v) for k, v in table.items()}).to_netcdf(nc, engine="h5netcdf")
    for path in (csv, js, npz, nc):
        found = read(path)
        assert list(found) == ["x", "n"]
        for name, values in table.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-15)
            assert found[name].dtype.kind == values.dtype.kind
    np.savez(npz, k=np.array(3))
    js.write_text('{"k": 3, "word": "log"}')
    assert read(npz) == {"k": 3}
    assert read(js) == {"k": 3, "word": "log"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x,y\n1,2\n3,\n", "'y' is empty in 1 of 2 rows, first in row 2"),
        ("a.csv", "x,c\n1,red\n3,blue\n", "'c' contains text .row 1: 'red'.* --category"),
        ("a.csv", "x\n1\n2a\n", "'x' contains text .row 2: '2a'"),
        ("a.csv", "", "cannot be read as csv"),
        ("a.json", "[1, 2]", "contains a list"),
        ("a.json", "{", "cannot be read as json"),
        ("a.json", '{"x": [[1], [1, 2]]}', "different lengths"),
        ("a.json", '{"x": [1, null]}', r"no value .null. at index \[1\]"),
        ("a.json", '{"x": ["a"]}', "models need numbers"),
        ("a.json", '{"x": {"y": 1}}', "is an object"),
        ("a.csv", "x,y\n1,2,3\n4,5,6\n", "more cells than its first line has names"),
        ("a.csv", "x,y\n1,2\n4,5,6\n", "cannot be read as csv"),
        ("a.csv", f"x\n1\n{2**70}\n", "'x' contains 1180591620717411303424; integers"),
        ("a.json", f'{{"x": [1, {2**70}]}}', "'x' contains 1180591620717411303424"),
        ("a.json", f'{{"x": {2**70}}}', "'x' contains 1180591620717411303424"),
        ("a.json", '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "cannot be read as json"),
        ("a.npz", "no zip", "cannot be read as npz"),
        ("a.npz", "PK\x03\x04 and no more", "cannot be read as npz"),
        ("a.npz", "", "cannot be read as npz"),
        ("a.nc", "no netcdf", "cannot be read as nc"),
    ],
)
def test_unreadable_data_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read(path)


@pytest.mark.parametrize("position", range(30, 900, 60))
def test_damaged_arrays_are_refused_or_read(tmp_path, position):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.random.default_rng(1).normal(size=100))
    data = path.read_bytes()
    path.write_bytes(data[:position] + bytes([data[position] ^ 85]) + data[position + 1 :])
    with contextlib.suppress(DataError):
        assert read(path)["x"].shape == (100,)


X_AND_Y = {"x": [0.5, 1.25, -3.0], "y": [1, 2, 3]}


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("a.csv", "x,y\n0.5,1\n1.25,2\n-3,3\n", ""),
        ("a.csv", "x;y\n0,5;1\n1,25;2\n-3;3\n", "decimal commas"),
        ("a.csv", "x;y\n0.5;1\n1.25;2\n-3;3\n", "semicolons"),
        ("a.csv", "x;y\n0,5;1\n1,25;2\n-3,0;3\n", "decimal commas"),
        ("a.csv", "SEP=;\nx;y\n0,5;1\n1,25;2\n-3,0;3\n", "decimal commas"),
        ("a.tsv", "x\ty\n0.5\t1\n1.25\t2\n-3\t3\n", "tabs"),
        ("a.txt", "x  y\n0.5  1\n1.25 2\n-3  3\n", "blanks"),
        ("a.csv", "x|y\n0.5|1\n1.25|2\n-3|3\n", "bars"),
        ("a.csv", "x, y\n0.5, 1\n1.25, 2\n-3, 3\n", ""),
        ("a.csv", " x , y \n0.5, 1\n1.25, 2\n-3, 3\n", ""),
        ("a.csv", "# from the lab\n\n# in cm\nx,y\n0.5,1\n1.25,2\n-3,3\n", "2 comment lines"),
        ("a.csv", ",x,y\n0,0.5,1\n1,1.25,2\n2,-3,3\n", "row numbers"),
        ("a.csv", '"","x","y"\n"1",0.5,1\n"2",1.25,2\n"3",-3,3\n', "row numbers"),
        ("a.txt", '"x" "y"\n"1" 0.5 1\n"2" 1.25 2\n"3" -3 3\n', "row names"),
        ("a.txt", '"x" "y"\n"Mazda RX4" 0.5 1\n"Fiat" 1.25 2\n"3" -3 3\n', "row names"),
        ("a.tsv", "x\ty\n1\t0.5\t1\n2\t1.25\t2\n3\t-3\t3\n", "row names"),
        ("a.csv", "x,y\nmine,0.5,1\nyours,1.25,2\nours,-3,3\n", "row names"),
        ("a.txt", "# x y\n5e-1 1\n1.25 2\n-3 3\n", "blanks"),
        ("a.csv", "# by NumPy\n# x,y\n0.5,1\n1.25,2\n-3,3\n", "1 comment line skipped"),
        ("a.csv", "\ufeffx,y\r\n0.5,1\r\n1.25,2\r\n-3,3\r\n", ""),
        ("a.json", '[{"x": 0.5, "y": 1}, {"x": 1.25, "y": 2}, {"x": -3, "y": 3}]', ""),
        ("a.jsonl", '{"x": 0.5, "y": 1}\n{"x": 1.25, "y": 2}\n\n{"x": -3, "y": 3}\n', ""),
    ],
)
def test_tables_are_read_as_people_have_them(tmp_path, name, text, note):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    contents = read_raw([path])
    assert note in contents.lines[0]
    assert "3 rows, 2 columns" in contents.lines[0]
    found = read(path)
    assert list(found) == ["x", "y"]
    for key, values in X_AND_Y.items():
        np.testing.assert_array_equal(found[key], values)
    for ending, opener in (("gz", gzip.open), ("bz2", bz2.open), ("xz", lzma.open)):
        if path.suffix in (".csv", ".tsv", ".txt"):
            packed = tmp_path / f"{name}.{ending}"
            with opener(packed, "wb") as file:
                file.write(path.read_bytes())
            np.testing.assert_array_equal(read(packed)["x"], X_AND_Y["x"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_encodings_are_recognised(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes("größe;y\n0,5;1\n1,25;2\n".encode(encoding))
    np.testing.assert_array_equal(read(path)["größe"], [0.5, 1.25])


def test_arrays_and_tables_in_binary(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(read(tmp_path / "x.npy")["x"], np.arange(6.0).reshape(3, 2))
    np.save(tmp_path / "rows.npy", np.array([(1.0, 2)], dtype=[("x", "f8"), ("y", "i8")]))
    assert list(read(tmp_path / "rows.npy")) == ["x", "y"]
    table = pd.DataFrame(X_AND_Y)
    if importlib.util.find_spec("pyarrow"):
        table.to_parquet(tmp_path / "a.parquet")
        np.testing.assert_array_equal(read(tmp_path / "a.parquet")["x"], X_AND_Y["x"])
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="parquet"):
        read(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x;y\n1.234,5;1\n2,5;2\n", "'x' contains text"),  # thousands: which mark is which?
        ('x,y\n"1,234",1\n"2,500",2\n', "'x' contains text"),
        ("x,y\n0,5,1\n1,25,2\n", "more cells"),
        ("# only a comment\n", "is empty"),
        ("0.5,1\n1.25,2\n", "no column names"),
        ("# in cm\n0.5,1\n1.25,2\n", "no column names"),
        ("x,y\n1,0.5,1\n2,1.25,2\n", "more cells"),  # may be decimal commas
        ("y\n1,5\n2,5\n", "more cells"),
        ("y\n1\n\n3\n", "'y' is empty in 1 of 3 rows, first in row 2"),
        (f"x,y\n{'a' * 200_000},1\n", "contains text"),
        ("x;y\n1.234;0,5\n2.500;0,7\n", "may be a decimal point or separate thousands"),
    ],
)
def test_ambiguous_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read(path)


def test_rows_whose_last_cell_is_missing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('"x","y"\n"1",0.5,\n"2",1.5,\n')
    with pytest.raises(DataError, match="'y' is empty in 2 of 2 rows"):
        read(path)
    np.testing.assert_array_equal(read(path, drop=["y"])["x"], [0.5, 1.5])


def test_an_array_twice_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, value in (("x.npy", 1.0), ("x", 2.0)):
            with archive.open(name, "w") as file:
                np.lib.format.write_array(file, np.array(value))
    with pytest.raises(DataError, match="'x' twice"):
        read(tmp_path / "a.npz")


def test_many_names_in_json_are_read_in_time(tmp_path):
    path = tmp_path / "a.json"
    names = [f'"a{i}": 1' for i in range(100_000)]
    path.write_text(f"{{{', '.join([*names, names[-1]])}}}")
    with pytest.raises(DataError, match="twice"):
        read(path)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_netcdf(tmp_path, seed):
    path = tmp_path / "a.nc"
    engine = "scipy" if seed % 2 else "h5netcdf"
    xr.Dataset({"x": ("obs", np.arange(50.0))}).to_netcdf(path, engine=engine)
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for position in rng.integers(0, len(data), 1 + 10 * (seed % 3)):
        data[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))
    with contextlib.suppress(DataError):
        read(path)


def test_an_array_of_impossible_shape(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }" % 10**30
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(DataError):
        read(tmp_path / "a.npy")


def test_decimal_commas_in_one_column_leave_the_others(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x;y;note\n1.5;0,5;1,2\n2.5;0,25;none\n")
    found = read(path, drop=["note"])
    np.testing.assert_array_equal(found["x"], [1.5, 2.5])
    np.testing.assert_array_equal(found["y"], [0.5, 0.25])


@pytest.mark.parametrize("end", ["csv", "tsv"])
def test_commas_that_may_separate_thousands_are_refused(tmp_path, end):
    path = tmp_path / f"a.{end}"
    path.write_text("x;y\n1,234;2\n12,500;3\n".replace(";", "\t" if end == "tsv" else ";"))
    with pytest.raises(DataError, match="may be a decimal comma or separate thousands"):
        read(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x,y,x\n1,2,5\n"),
        ("a.csv", "x, y ,y\n1,2,5\n"),
        ("a.json", '{"x": [1], "x": [2]}'),
        ("a.jsonl", '{"x": 1, "x": 2}\n'),
    ],
)
def test_a_name_that_occurs_twice_is_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=r"two columns named|twice"):
        read(path)


@pytest.mark.parametrize(
    "header", ["x_1,x_3", "x.1,x.2", "x1,x2", "X_1,X_2", "x_obs,other", "x_1,x[1]"]
)
def test_a_column_that_may_be_meant_for_an_argument_is_not_ignored(here, header):
    (here / "optional.py").write_text(MODEL + "\n\ndef model(x=None, y=None):\n    normal(y)\n")
    (here / "a.csv").write_text(f"{header},y\n1,2,2.5\n2,3,3.5\n")
    assert "no argument" in refused("infer", "optional.py:model", "--data", "a.csv")


def test_a_link_to_a_data_file_has_its_own_name(tmp_path):
    np.save(tmp_path / "blob", np.ones(3))
    (tmp_path / "x.npy").symlink_to(tmp_path / "blob.npy")
    assert list(read(tmp_path / "x.npy")) == ["x"]


def test_malformed_files_are_refused(tmp_path):
    (tmp_path / "f.csv.xz").write_bytes(b"abc")
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    (tmp_path / "a.npz").rename(tmp_path / "d.npy")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x", b"abc")
    for name in ("f.csv.xz", "d.npy", "b.npz"):
        with pytest.raises(DataError):
            read(tmp_path / name)


def test_names_that_two_files_share_matter_only_if_they_are_used(here):
    (here / "a.csv").write_text("id,x\n1,1\n2,2\n")
    (here / "b.csv").write_text("id,y\n1,2.5\n2,3.5\n")
    words = ["infer", "my_models.py:line", "--data", "a.csv", "--data", "b.csv"]
    good(*words, "--method", "mle")
    (here / "b.csv").write_text("x,y\n1,2.5\n2,3.5\n")
    assert "another file contains too" in refused(*words)


def test_unused_columns_are_ignored_with_a_line(here):
    (here / "more.csv").write_text("name,x,y,Note\nanna,1,2.5,\nbert,2,3.5,late\n")
    words = ["infer", "my_models.py:line", "--data", "more.csv", "--method", "mle"]
    result = good(*words)
    assert "ignored name, Note: no arguments of the model (x, y)" in result.stderr
    assert "ignored" not in good(*words, "--quiet").stderr
    (here / "typo.csv").write_text("x,Y\n1,2.5\n2,3.5\n")
    assert "no argument 'Y'" in refused("infer", "my_models.py:line", "--data", "typo.csv")
    (here / "other.csv").write_text("a,b\n1,2.5\n2,3.5\n")
    assert "do not contain 'x'" in refused("infer", "my_models.py:line", "--data", "other.csv")


def test_files_that_claim_much_are_refused(tmp_path):
    header = b"\x93NUMPY\x01\x00v\x00"
    shape = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    claims = header + shape + b" " * (117 - len(shape)) + b"\n" + bytes(16)
    (tmp_path / "a.npy").write_bytes(claims)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", claims)
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file.create_dataset("x", (10**12,), "f8", chunks=(10**6,), compression="gzip")
    for name in ("a.npy", "a.npz", "a.nc"):
        with pytest.raises(DataError):
            read(tmp_path / name)


def test_drop_applies_to_all_files(tmp_path):
    (tmp_path / "a.csv").write_text("x,id\n1,one\n")
    (tmp_path / "b.csv").write_text("y,id\n2,two\n")
    (tmp_path / "c.csv").write_text("z\n3\n")
    paths = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
    assert [*read_all(paths, drop=["id"])] == ["x", "y", "z"]
    with pytest.raises(DataError, match="contain no 'ID', only x, id, y, z"):
        read_all(paths, drop=["id", "ID"])


def test_columns_are_bound_by_name():
    def model(x, y=None, *, scale=1.0):
        raise NotImplementedError

    bound = bind(model, {"scale": 2.0, "x": 1})
    assert (bound.args, bound.kwargs) == ((1,), {"scale": 2.0})
    with pytest.raises(DataError, match=r"no argument 'z'.*arguments: x, y, scale. .*data: x, z"):
        bind(model, {"x": 1, "z": 2})
    with pytest.raises(DataError, match="do not contain 'x'"):
        bind(model, {})
    assert bind(model, {}, optional=["x"]).args == (None,)

    def open_model(x, **more):
        raise NotImplementedError

    assert bind(open_model, {"x": 1, "z": 2}).kwargs == {"z": 2}


def test_numbered_columns_are_joined_into_a_matrix():
    def model(x, y):
        raise NotImplementedError

    y, one, two = np.zeros(3), np.ones(3), np.full(3, 2.0)
    for names in (("x[0]", "x[1]"), ("x_0", "x_1"), ("x_1", "x_2"), ("x[1]", "x[2]")):
        bound = bind(model, {names[1]: two, "y": y, names[0]: one})
        np.testing.assert_array_equal(bound.args[0], np.column_stack([one, two]))
    with pytest.raises(DataError, match="do not contain 'x'"):
        bind(model, {"x_0": one, "x_2": two, "y": y})  # x_1 is missing


# -- saved fits ---------------------------------------------------------------------------------


@pytest.fixture
def saved(here):
    """A saved fit by Laplace."""
    words = ["my_models.py:line", "--data", "xy.csv", "--method", "laplace", "--seed", 1]
    return here, fitted(*words, "--out", "fits/line")


def test_a_saved_fit_is_read(saved):
    _, found = saved
    assert found["fit"] == "fits/line"
    read_back = json.loads(good("summary", "fits/line", "--json").stdout)
    assert read_back["summary"] == found["summary"]
    assert "slope" in good("summary", "fits/line").stdout
    assert "slope" in good("summary", "fits/line", "--site", "slope").stdout
    assert "did you mean 'slope'" in refused("summary", "fits/line", "--site", "slop")
    diagnosed = json.loads(good("diagnose", "fits/line", "--strict", "--json").stdout)
    assert diagnosed["findings"] == found["findings"]


def test_predictions_at_new_data(saved):
    here, _ = saved
    (here / "new.csv").write_text("x\n0\n10\n")
    good("predict", "fits/line", "--data", "new.csv", "--out", "p.nc", "--trust")
    with xr.open_dataset("p.nc", group="predictions") as predictions:
        y = predictions["y"].load()
    assert y.dims == ("chain", "draw", "obs")
    assert y.shape == (1, 1000, 2)
    posterior = (2.5 + 7 + 19.5 + 30) / (30 + 1 / 100)  # posterior mean of the slope
    sd = np.sqrt(1 + 100 / (30 + 1 / 100))
    assert float(y[0, :, 1].mean()) == pytest.approx(10 * posterior, abs=5 * sd / 1000**0.5)
    good("predict", "fits/line", "--out", "p.npz", "--model", "my_models.py:line")
    assert np.load("p.npz")["y"].shape == (1, 1000, 4)
    good("predict", "fits/line", "--data", "new.csv", "--out", "p.csv", "--trust")
    table = pd.read_csv("p.csv")
    assert [*table.columns] == ["site", "index", "mean", "sd", "q5.5", "q50", "q94.5"]
    assert table["mean"][1] == pytest.approx(float(y[0, :, 1].mean()))
    good("predict", "fits/line", "--data", "new.csv", "--out", "p.csv", "--trust", "--draws")
    assert pd.read_csv("p.csv")["value"].to_numpy() == pytest.approx(y.values.ravel())
    assert "is for .csv files" in refused(
        "predict", "fits/line", "--out", "p.npz", "--trust", "--draws"
    )
    assert "written to .csv, .nc or .npz" in refused("predict", "fits/line", "--out", "p.txt")
    (here / "my_models.py").rename("moved.py")
    assert "--model file.py:name" in refused("predict", "fits/line", "--out", "p.nc", "--trust")
    good("predict", "fits/line", "--out", "p.nc", "--model", "moved.py:line")


def test_predictions_of_a_point_estimate_have_a_distribution(here):
    """The same x has the same mean; the spread is that of the likelihood, 1."""
    fitted("my_models.py:line", "--data", "xy.csv", "--method", "map", "--out", "fit", "--seed", 1)
    (here / "new.csv").write_text("x\n1\n1\n")
    good("predict", "fit", "--data", "new.csv", "--out", "p.csv", "--trust")
    table = pd.read_csv("p.csv")
    slope = json.loads(good("summary", "fit", "--json").stdout)["summary"][0]["estimate"]
    np.testing.assert_allclose(table["mean"], slope, atol=4 / 1000**0.5)
    np.testing.assert_allclose(table["sd"], 1.0, atol=4 / 2000**0.5)


def test_numbers_may_be_categories(here):
    (here / "groups.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def model(g, y=None):\n"
        "    with pyro.plate('g', int(g.max()) + 1):\n"
        "        a = pyro.sample('a', dist.Normal(0.0, 10.0))\n"
        "    with pyro.plate('row', len(g)):\n"
        "        pyro.sample('y', dist.Normal(a[g], 1.0), obs=y)\n"
    )
    (here / "g.csv").write_text("g,y\n10,1\n20,5\n10,1\n20,5\n")
    words = ["groups.py:model", "--data", "g.csv", "--category", "g", "--method", "laplace"]
    found = fitted(*words, "--out", "fit")
    assert [row["name"] for row in found["summary"]] == ["a[10]", "a[20]"]
    (here / "new.csv").write_text("g\n20\n30\n")
    good("predict", "fit", "--data", "new.csv", "--out", "p.csv", "--model", "groups.py:model")
    table = pd.read_csv("p.csv")
    assert table["mean"][0] == pytest.approx(5, abs=0.3)
    assert table["sd"][1] > 8  # a new group


def test_observed_arguments_may_be_missing_from_new_data(here):
    words = ["my_models.py:required", "--data", "xy.csv", "--method", "mle", "--seed", 1]
    fitted(*words, "--out", "fit")
    (here / "new.json").write_text('{"x": [1.0, 2.0, 3.0, 4.0, 5.0]}')
    result = good("predict", "fit", "--data", "new.json", "--out", "p.nc", "--json", "--trust")
    assert json.loads(result.stdout)["variables"]["y"] == {
        "chain": 1,
        "draw": 1000,
        "obs": 5,
    }
    (here / "none.json").write_text('{"y": [1.0]}')
    assert "do not contain 'x'" in refused(
        "predict", "fit", "--data", "none.json", "--out", "p.nc", "--trust"
    )


def test_a_column_with_the_name_of_an_argument_of_infer(here):
    (here / "open.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def model(y, **rest):\n"
        "    pyro.sample('y', dist.Normal(pyro.sample('mu', dist.Normal(0., 1.)), 1.), obs=y)\n"
    )
    for name in ("seed", "method", "time_limit", "progress", "model", "coords"):
        (here / "table.json").write_text(json.dumps({"y": 1.0, name: 3}))
        words = ["open.py:model", "--data", "table.json", "--method", "laplace"]
        message = refused("infer", *words)
        assert f"The data contain '{name}', which is an argument of infer() itself" in message
        assert f"--drop {name}" in message
        good("infer", *words, "--drop", name)


def test_coordinates_are_read_if_an_argument_has_their_name(here):
    y = xr.DataArray([2.5, 3.5, 6.5], dims="x", coords={"x": [1.0, 2.0, 3.0]}, name="y")
    y.to_dataset().to_netcdf(here / "xy.nc", engine="h5netcdf")
    words = ["--data", "xy.nc", "--method", "mle", "--seed", 1]
    (row,) = fitted("my_models.py:line", *words)["summary"]
    assert row["estimate"] == pytest.approx(29 / 14, rel=1e-4)
    good("infer", "my_models.py:normal", *words)  # has no argument x


def test_output_files_are_checked_before_the_work(saved):
    here, _ = saved
    (here / "folder.png").mkdir()
    for words, message in (
        (["plot", "fits/line", "trace", "--out", "a.xyz"], "plots are written to"),
        (["plot", "fits/line", "trace", "--out", "folder.png"], "is a folder"),
        (["demo", "--out", "a"], "plots are written to"),
        (["predict", "nowhere", "--out", "a.txt"], "predictions are written to .csv, .nc or"),
    ):
        assert message in refused(*words)
    good("predict", "fits/line", "--out", "new/folder/p.npz", "--trust")
    good("plot", "fits/line", "forest", "--out", "new/folder/too/a.pdf", "--quiet")
    assert (here / "new/folder/too/a.pdf").exists()


def test_outputs_replace_no_inputs_and_follow_no_links(saved):
    here, _ = saved
    (here / "new.nc").write_bytes(b"")
    xr.Dataset({"x": ("obs", [0.0, 10.0])}).to_netcdf("new.nc", engine="h5netcdf")
    before = (here / "new.nc").read_bytes()
    predict = ["predict", "fits/line", "--data", "new.nc", "--trust", "--out"]
    assert "one of the files of --data" in refused(*predict, "new.nc")
    assert (here / "new.nc").read_bytes() == before
    assert "is a file of a fit" in refused(*predict, "fits/line/idata.nc")
    (here / "victim.nc").write_text("important")
    (here / "link.nc").symlink_to("victim.nc")
    good(*predict, "link.nc")
    assert (here / "victim.nc").read_text() == "important"
    assert not (here / "link.nc").is_symlink()
    assert not list(here.glob(".*link*"))


@pytest.mark.usefixtures("here")
def test_a_folder_that_cannot_be_created_is_refused_before_the_fit():
    words = ["infer", "my_models.py:line", "--data", "xy.csv"]
    assert "cannot be created" in refused(*words, "--out", "/proc/fit")


@pytest.mark.usefixtures("here")
def test_results_are_shown_if_they_cannot_be_saved(monkeypatch):
    def save(fit, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(probdl.Fit, "save", save)
    result = run("infer", "my_models.py:line", "--data", "xy.csv", "--method", "map", "--out", "f")
    assert result.exit_code != 0
    assert "slope" in result.stdout
    assert "No space left" in result.stderr


def test_every_command_can_be_quiet(saved):
    for words in (["summary", "fits/line"], ["diagnose", "fits/line"], ["methods"], ["doctor"]):
        assert good(*words, "--quiet").stderr == ""


def test_unusual_site_names(here):
    (here / "odd.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def model(y):\n"
        "    mu = pyro.sample('a/b', dist.Normal(0.0, 1.0).expand([2]).to_event(1))\n"
        "    pyro.sample('file', dist.Normal(mu.sum(), 1.0), obs=y)\n"
    )
    (here / "one.json").write_text('{"y": 1.0}')
    words = ["odd.py:model", "--data", "one.json", "--method", "laplace", "--seed", 1]
    fitted(*words, "--out", "fit")
    good("predict", "fit", "--out", "p.npz", "--trust")
    assert np.load("p.npz")["file"].shape == (1, 1000)
    for kind in ("trace", "pair"):
        good("plot", "fit", kind, "--site", "a/b", "--out", "p.png")
    assert "a/b" in refused("plot", "fit", "trace", "--site", "a", "--out", "p.png")


@pytest.mark.usefixtures("saved")
def test_fits_are_compared():
    words = ["my_models.py:line", "--data", "xy.csv", "--method", "importance", "--seed", 1]
    fitted(*words, "--out", "fits/weighted")
    result = good("compare", "fits/line", "fits/weighted", "--json")
    rows = json.loads(result.stdout)["comparison"]
    assert {row["name"] for row in rows} == {"line", "weighted"}
    assert "at least two fits" in refused("compare", "fits/line")


def test_plots_are_drawn(saved):
    for kind in ("trace", "forest", "ppc"):
        good("plot", "fits/line", kind, "--out", f"{kind}.png")
        image = plt.imread(f"{kind}.png")
        assert image.shape[0] > 200
        assert image.std() > 0.01
        plt.close("all")
    for words, message in (
        (["forrest"], "did you mean 'forest'?"),
        (["energy"], "no data for the plot 'energy'"),
        (["pair"], "2 to 12 scalars"),
        (["trace", "--site", "slop"], "did you mean 'slope'?"),
    ):
        assert message in refused("plot", "fits/line", *words, "--out", "no.png")
    assert not os.path.exists("no.png")


def test_the_elbo_of_training_is_drawn(here):
    words = ["my_models.py:line", "--data", "xy.csv", "--method", "svi", "--set", "steps=200"]
    fitted(*words, "--seed", 1, "--out", "fit")
    good("plot", "fit", "elbo", "--out", "elbo.png")
    assert plt.imread("elbo.png").shape[1] > 500


def test_a_point_estimate_has_no_draws_to_plot(here):
    words = ["my_models.py:normal", "--data", "y.json", "--method", "mle", "--seed", 1]
    fitted(*words, "--out", "fit")
    assert "point estimate by mle" in refused("plot", "fit", "trace", "--out", "no.png")


def test_a_folder_without_a_fit_is_refused(here):
    for words in (["summary"], ["diagnose"], ["predict", "--out", "p.nc"]):
        refused(words[0], "nothing", *words[1:])


# -- other commands -----------------------------------------------------------------------------


def test_version():
    assert good("--version").stdout == f"probdl {probdl.__version__}\n"


def test_methods_are_listed():
    listed = json.loads(good("methods", "--json").stdout)["methods"]
    by_name = {row["name"]: row for row in listed}
    assert by_name["nuts"]["settings"]["draws"] == 1000
    assert by_name["nuts"]["description"] == probdl.NUTS.__doc__.splitlines()[0]
    assert "mle: Maximum likelihood estimation.\n  starts=4" in good("methods").stdout
    assert "target_accept" in good("methods", "nuts").stdout
    assert "did you mean 'nuts'?" in refused("methods", "nust")


def test_doctor_prints_its_report():
    assert "native engine" in good("doctor").stdout
    assert "C compiler" in json.loads(good("doctor", "--json").stdout)["lines"]


def test_demo(tmp_path):
    found = json.loads(good("demo", "--json", "--out", tmp_path / "demo.png").stdout)
    assert list(found["summary"]) == ["mle", "map", "laplace", "nuts"]
    effects = {r["name"]: r["estimate"] for r in found["summary"]["mle"]}
    assert effects["theta[A]"] == pytest.approx(28.0, abs=1e-3)  # no pooling
    assert plt.imread(found["plot"]).shape[1] > 500


# -- Ctrl-C -------------------------------------------------------------------------------------


def test_a_model_that_exits_is_an_error(here):
    (here / "exits.py").write_text("import sys\n\ndef model(y):\n    sys.exit(7)\n")
    assert "sys.exit(7)" in refused("infer", "exits.py:model", "--data", "y.json")


@pytest.mark.parametrize("value", ["-" * 100_000 + "1", "[" * 100_000, "9" * 10_000, "{1: [}"])
def test_a_malformed_setting_is_refused(here, value):
    words = ["infer", "my_models.py:normal", "--data", "y.json", "--method", "map"]
    assert "starts" in refused(*words, "--set", f"starts={value}")


def test_control_c_before_there_are_results(here):
    (here / "slow.py").write_text("raise KeyboardInterrupt")
    result = run("infer", "slow.py:model")
    assert result.exit_code == 130
    assert result.stderr == "interrupted: no results yet, nothing was saved\n"


SLOW = """
import sys

calls = 0


def counted(y):
    global calls
    calls += 1
    if calls == 500:  # many draws are finished
        print("now", file=sys.stderr, flush=True)
    normal(y)
"""


def test_control_c_keeps_the_draws_so_far(here):
    """Use a real process, a real signal and the real exit code."""
    (here / "slow.py").write_text(MODEL + SLOW)
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from probdl.command.app import app; app(prog_name='probdl')"
    words = ["infer", "slow.py:counted", "--data", "y.json", "--out", "fit", "--seed", "1"]
    words += ["--set", "engine=eager", "--set", "chains=1", "--set", "warmup=10"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, "--set", "draws=1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    while (line := process.stderr.readline()) != "now\n":
        assert line, process.wait()  # the process ended too early
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=600)
    assert process.returncode == 0, messages
    assert "(interrupted)" in messages
    assert 0 < probdl.load("fit").num_draws < 1_000_000


def test_categories_labels_and_missing_observations(here):
    (here / "firms.py").write_text(
        "import pyro, pyro.distributions as d\n"
        "def model(firm, x, y=None):\n"
        "    with pyro.plate('firm', int(firm.max()) + 1):\n"
        "        a = pyro.sample('a', d.Normal(0.0, 1.0))\n"
        "    with pyro.plate('rows', len(x)):\n"
        "        pyro.sample('y', d.Normal(a[firm] + x, 1.0), obs=y)\n"
    )
    rows = [f"{'abc'[i % 3]},{i},{'' if i == 4 else i + i % 3}" for i in range(9)]
    (here / "firms.csv").write_text("\n".join(["firm,x,y", *rows]) + "\n")
    words = ["firms.py:model", "--data", "firms.csv", "--method", "laplace", "--seed", 1]
    assert "--category" in refused("infer", *words)
    words += ["--category", "firm"]
    assert "--missing mask" in refused("infer", *words)
    assert "contain no 'town'" in refused("infer", *words, "--category", "town")
    words += ["--missing", "mask"]
    assert "no dimension" in refused("infer", *words, "--coords", "town=a,b")
    assert "write NAME=A,B" in refused("infer", *words, "--coords", "town")
    report = fitted(*words, "--coords", f"rows={','.join(map(str, range(9)))}", "--out", "fit")
    assert "missing" in [f["check"] for f in report["findings"]]
    assert [row["name"] for row in report["summary"]] == ["a[a]", "a[b]", "a[c]"]
    (here / "new.csv").write_text("firm,x\nc,0\nz,0\n")
    good("predict", "fit", "--data", "new.csv", "--out", "p.csv", "--trust")
    means = pd.read_csv("p.csv")["mean"]
    assert means[0] == pytest.approx(1.5, abs=0.3)  # 3 observations of 2, and the prior
    assert means[1] == pytest.approx(0.0, abs=0.3)


def test_predictions_at_data_that_the_model_imputes(here):
    (here / "gaps.py").write_text(
        "import pyro, pyro.distributions as d, torch\n"
        "def model(y):\n"
        "    gap = torch.isnan(y)\n"
        "    with pyro.plate('gap', int(gap.sum())):\n"
        "        z = pyro.sample('z', d.Normal(0.0, 2.0).mask(False))\n"
        "    full = y.clone()\n"
        "    full[gap] = z\n"
        "    slope = pyro.sample('slope', d.Normal(0.0, 1.0))\n"
        "    pyro.sample('y', d.Normal(slope * full[:-1], 1.0).to_event(1), obs=full[1:])\n"
    )
    (here / "gaps.csv").write_text("y\n" + "\n".join(["1", "2", "", "1", "0", "2", "1"]) + "\n")
    y = np.array([1.0, 2.0, np.nan, 1.0, 0.0, 2.0, 1.0])
    space = {}
    exec((here / "gaps.py").read_text(), space)
    fit = probdl.infer(space["model"], y, method=probdl.NUTS(draws=100, warmup=100), seed=1)
    fit.save(here / "gapfit")
    good("predict", "gapfit", "--data", "gaps.csv", "--out", "p.csv", "--model", "gaps.py:model")
    assert len(pd.read_csv("p.csv")) == 6


def test_a_report_of_a_saved_fit(saved):
    here, _ = saved
    good("report", "fits/line", "--out", "line.html")
    page = (here / "line.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 3
    assert "reports are written to" in refused("report", "fits/line", "--out", "line.txt")


def test_categories_are_as_they_are_written(here):
    (here / "codes.py").write_text(
        "import pyro, pyro.distributions as d\n"
        "def model(code, y=None):\n"
        "    with pyro.plate('code', int(code.max()) + 1):\n"
        "        a = pyro.sample('a', d.Normal(0.0, 10.0))\n"
        "    with pyro.plate('rows', len(code)):\n"
        "        pyro.sample('y', d.Normal(a[code], 1.0), obs=y)\n"
    )
    rows = [f"{code},{i}" for i, code in enumerate(["007", "7", "NA", "1.10", "1.1"])]
    (here / "codes.csv").write_text("\n".join(["code,y", *rows]) + "\n")
    words = ["codes.py:model", "--data", "codes.csv", "--category", "code", "--method", "laplace"]
    found = fitted(*words, "--seed", 1)["summary"]
    assert {row["name"] for row in found} == {"a[007]", "a[7]", "a[NA]", "a[1.10]", "a[1.1]"}


def test_a_misspelt_column_of_text_is_named(here):
    (here / "towns.csv").write_text("Town,y\na,1\nb,2\na,3\n")
    (here / "towns.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def model(town, y):\n"
        "    with pyro.plate('town', int(town.max()) + 1):\n"
        "        effect = pyro.sample('effect', dist.Normal(0.0, 1.0))\n"
        "    with pyro.plate('row', len(y)):\n"
        "        pyro.sample('y', dist.Normal(effect[town], 1.0), obs=y)\n"
    )
    words = ["infer", "towns.py:model", "--data", "towns.csv", "--method", "laplace"]
    assert "'Town' (did you mean 'town'?)" in refused(*words)


def test_plots_of_other_groups_name_what_they_show(saved):
    assert "shows 'y', and not 'slope'" in refused(
        "plot", "fits/line", "ppc", "--site", "slope", "--out", "p.png"
    )
    assert "choose one of ('y')" not in refused(
        "plot", "fits/line", "ppc", "--site", "q", "--out", "p.png"
    )


def test_a_column_that_only_rhymes_with_an_argument_is_ignored(here):
    (here / "series.csv").write_text("date,rate,y\na,1,1\nb,2,2\nc,1,3\n")
    (here / "series.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def model(y, later=None):\n"
        "    mu = pyro.sample('mu', dist.Normal(0.0, 1.0))\n"
        "    with pyro.plate('row', len(y)):\n"
        "        pyro.sample('y', dist.Normal(mu, 1.0), obs=y)\n"
    )
    done = good("infer", "series.py:model", "--data", "series.csv", "--method", "laplace")
    assert "ignored date, rate" in done.stderr


def test_null_is_a_missing_observation_in_both_forms_of_json(here):
    (here / "lists.json").write_text('{"y": [1.0, null, 2.0]}')
    (here / "rows.json").write_text('[{"y": 1.0}, {"y": null}, {"y": 2.0}]')
    words = ["my_models.py:normal", "--method", "laplace", "--seed", 1]
    found = [
        fitted(*words, "--data", file, "--missing", "mask")["summary"]
        for file in ("lists.json", "rows.json")
    ]
    assert found[0] == found[1]
    assert "--missing mask" in refused("infer", *words, "--data", "lists.json")


def test_a_helper_of_two_models_in_a_file_has_not_changed(here):
    (here / "both.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def twice(x): return 2 * x\n"
        "def one(y):\n"
        "    mu = pyro.sample('mu', dist.Normal(0.0, 1.0))\n"
        "    with pyro.plate('row', len(y)):\n"
        "        pyro.sample('y', dist.Normal(twice(mu), 1.0), obs=y)\n"
        "def two(y):\n"
        "    mu = pyro.sample('mu', dist.Normal(0.0, 3.0))\n"
        "    with pyro.plate('row', len(y)):\n"
        "        pyro.sample('y', dist.Normal(twice(mu), 2.0), obs=y)\n"
    )
    (here / "numbers.csv").write_text("y\n1\n2\n4\n")
    for name in ("one", "two"):
        words = [f"both.py:{name}", "--data", "numbers.csv", "--method", "laplace", "--seed", 1]
        fitted(*words, "--out", f"fits/{name}")
    done = good("compare", "fits/one", "fits/two", "--refit", "--trust")
    assert "has changed" not in done.stderr


def test_predictions_have_dates_as_dates(here):
    (here / "dated.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def dated(y=None):\n"
        "    m = pyro.sample('m', dist.Normal(0.0, 5.0))\n"
        "    with pyro.plate('month', 2):\n"
        "        pyro.sample('y', dist.Normal(m, 1.0), obs=y)\n"
    )
    model = locate_model("dated.py:dated")
    months = np.array(["2020-01-01", "2020-02-01"], "datetime64[ns]")
    fit = probdl.infer(model, np.ones(2), method="laplace", seed=1, coords={"month": months})
    fit.save("dated")
    np.savez("new.npz", y=np.ones(2))
    words = "--model", "dated.py:dated", "--data", "new.npz", "--out", "p.csv"
    assert run("predict", "dated", *words).exit_code == 0
    assert "2020-02-01" in (here / "p.csv").read_text().splitlines()[2]
