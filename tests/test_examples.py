"""The examples run, and print plausible results."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(p for p in EXAMPLES.glob("*.py") if p.stem != "demo")


def run(name, folder, *arguments, **variables):
    """Run an example in an empty folder, and return its output."""
    environment = os.environ | {
        **variables,
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        capture_output=True, encoding="utf-8", cwd=folder, env=environment, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def numbers(pattern, text):
    return [float(x) for x in re.findall(pattern, text)]


def test_the_examples_are_short():
    assert len(SCRIPTS) == 9
    assert all(len(p.read_text(encoding="utf-8").splitlines()) <= 60 for p in SCRIPTS)


def test_the_demo(tmp_path):
    output = run("demo", tmp_path)
    assert output.splitlines()[0].startswith("Eight schools")
    assert len(list((tmp_path / "output").glob("*.png"))) == 3


def test_estimate(tmp_path):
    mle, map_ = numbers(r"tumours: (-[\d.]+) nats", run("estimate", tmp_path))
    assert -0.3 < mle < map_ < -0.1


def test_bayesian_optimisation(tmp_path):
    found = numbers(r"lowest (-?[\d.]+)", run("bayesian_optimisation", tmp_path))
    assert len(found) == 10
    assert found == sorted(found, reverse=True)
    assert -1.032 <= found[-1] < -0.9  # with 22 random points in one case of three


def test_posterior(tmp_path):
    output = run("posterior", tmp_path)
    assert "no findings" in output
    (inside,) = numbers(r"(\d+)% are inside", output)
    assert 80 <= inside <= 100  # 90 % of 50 cars; two binomial standard errors are 8 %


def test_autoencoder(tmp_path):
    output = run("autoencoder", tmp_path)
    assert numbers(r"classify (\d+)% of", output)[0] > 70  # chance level: 10
    of_digits, of_noise = numbers(r"(-[\d.]+)(?: nats, of noise|\.\n)", output)
    assert of_digits > of_noise + 20


def test_adversarial(tmp_path):
    output = run("adversarial", tmp_path)
    early, late = numbers(r"divergence is ([\d.]+) nats", output)
    assert late < 0.1 < early


def test_from_pyro(tmp_path):
    output = run("from_pyro", tmp_path)
    changed = re.findall(r"^[-+].*$", output, re.M)
    assert 0 < len(changed) <= 12
    means = numbers(r"(?:intercept|slope) (-?[\d.]+) ±", output)
    sds = numbers(r"± ([\d.]+)", output)
    for before, after, sd in zip(means[:2], means[2:], sds[:2], strict=True):
        # Four standard errors; Pyro's 200 draws have an effective sample size of at least 70.
        assert abs(before - after) < 4 * sd / 70**0.5


def test_on_dask(tmp_path):
    pytest.importorskip("distributed", reason="Dask is not installed")
    assert run("on_dask", tmp_path).splitlines()[-1] == "calibrated"


def test_on_torchrun(tmp_path):
    (evidence,) = numbers(r"held-out digits: (-[\d.]+) nats", run("on_torchrun", tmp_path))
    assert -26 < evidence < -18
    assert (tmp_path / "digits-fit" / "fit.json").exists()


def test_on_slurm(tmp_path):
    for chain in range(4):
        run("on_slurm", tmp_path, SLURM_ARRAY_TASK_ID=str(chain))
    output = run("on_slurm", tmp_path, "join")
    assert "Findings: no findings" in output
    (mean,) = numbers(r"mean +(-?[\d.]+)", output)
    assert 5 < mean < 8
