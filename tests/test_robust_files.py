"""Damaged folders and malformed files: `load` and the command refuse or read them correctly."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import probdl
from probdl.command.app import app
from probdl.models import normal_normal

FILES = ("fit.json", "idata.nc", "arrays.safetensors")
ALL_CHECKS = list(HealthCheck)
MODEL = """
import pyro, pyro.distributions as dist

def model(x, y=None, power=1):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(slope * x**power, 1.0), obs=y)
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    fit = probdl.infer(normal_normal, np.ones(3), np.arange(3.0), method="map", seed=1)
    return fit.save(tmp_path_factory.mktemp("fits") / "sound")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def truncated(data, where, _):
    return data[: int(where * len(data))]


def flipped(data, where, bit):
    i = int(where * (len(data) - 1))
    return data[:i] + bytes([data[i] ^ (1 << bit)]) + data[i + 1 :]


def lengthened(data, _, bit):
    return data + bytes([bit])


def retyped(data, where, bit):
    """Replace a value of the index by a value of another type."""
    index = json.loads(data) if data[:1] == b"{" else {}
    keys = sorted(index) or ["format"]
    other = (None, 3, "x", [], {}, -1.5, True, [[1]])[bit]
    return json.dumps(index | {keys[int(where * (len(keys) - 1))]: other}).encode()


@settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=ALL_CHECKS)
@given(
    name=st.sampled_from(FILES),
    damage=st.sampled_from([truncated, flipped, lengthened, retyped, None]),
    where=st.floats(0, 0.999),
    bit=st.integers(0, 7),
    other=st.sampled_from(FILES),
)
def test_a_damaged_folder_is_refused_or_read_correctly(
    sound, scratch, name, damage, where, bit, other
):
    folder = scratch / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    data = (folder / name).read_bytes()
    if damage is None:  # replace one file by another
        (folder / name).write_bytes((sound / other).read_bytes())
    else:
        (folder / name).write_bytes(damage(data, where, bit))
    with contextlib.suppress(probdl.DataError):
        fit = probdl.load(folder, model=normal_normal)
        assert fit.draws["mu"].item() == pytest.approx(0.75)
        assert fit.predict(np.ones(2))["y"].shape == (1, 1, 2)


CELLS = st.sampled_from(
    ["1", "2.5", "-3", "0", "", "nan", "inf", "1e400", "word", '"1,2"', "0x1", " 4 ", "true", "é"]
)
NAMES = st.sampled_from(["x", "y", "power", "z", "x[0]", "x_1", "", "X", "x.1"])


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=ALL_CHECKS)
@given(
    names=st.lists(NAMES, min_size=1, max_size=3),
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=4),
    options=st.lists(
        st.sampled_from(
            [
                "--method=map", "--method=mle", "--method=nope", "--set=starts=2", "--set=starts",
                "--set=starts=[1]", "--set=nothing=1", "--seed=3", "--seed=-3", "--time-limit=0",
                "--drop=z", "--drop=y", "--json", "--strict", "--quiet",
            ]
        ),
        max_size=3,
        unique=True,
    ),
)  # fmt: skip
def test_the_command_refuses_malformed_tables_or_fits_them(scratch, names, rows, options):
    model, data = scratch / "model.py", scratch / "data.csv"
    model.write_text(MODEL)
    data.write_text("\n".join([",".join(names), *map(",".join, rows)]) + "\n", encoding="utf-8")
    if not any(option.startswith("--method") for option in options):
        options = ["--method=map", *options]
    run = CliRunner().invoke(app, ["infer", f"{model}:model", f"--data={data}", *options])
    assert run.exit_code in (0, 1, 2), (run.output, run.exception)
    assert "Traceback" not in run.output
    if run.exit_code == 2:
        assert "rror" in run.stderr
    elif "--json" in options:
        (slope,) = [row for row in json.loads(run.stdout)["summary"] if row["name"] == "slope"]
        assert slope["estimate"] is not None


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=True) | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=ALL_CHECKS)
@given(x=VALUES, y=VALUES, power=st.none() | VALUES, whole=st.none() | VALUES)
def test_the_command_refuses_malformed_objects_or_fits_them(scratch, x, y, power, whole):
    model, data = scratch / "model.py", scratch / "data.json"
    model.write_text(MODEL)
    table = {"x": x, "y": y} | ({} if power is None else {"power": power})
    data.write_text(json.dumps(table if whole is None else whole), encoding="utf-8")
    run = CliRunner().invoke(
        app, ["infer", f"{model}:model", f"--data={data}", "--method=map", "--seed=1"]
    )
    assert run.exit_code in (0, 2), (run.output, run.exception)
    assert "Traceback" not in run.output
