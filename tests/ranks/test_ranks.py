"""Training by several processes, each on its part of the minibatches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import probdl
from probdl.util.ranks import Ranks, alone, current_ranks
from tests.ranks import jobs

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch has no gloo",
)
ROOT = Path(__file__).parents[2]
LIMIT_S = 300
MEAN = np.linalg.lstsq(jobs.X, jobs.Y, rcond=None)[0]


def run(job, folder, count=2, argument=""):
    """Run a job in processes, as torchrun starts them; return what each wrote, and their codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    common = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.ranks.jobs", job, argument, str(folder)]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **(common if count > 1 else {}), "RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        output = [process.communicate(timeout=LIMIT_S) for process in running]
    finally:
        for process in running:
            process.kill()
    found = [
        json.loads(path.read_text()) if (path := folder / f"{rank}.json").exists() else None
        for rank in range(count)
    ]
    return found, [process.returncode for process in running], output


def test_all_ranks_return_the_same_fit(tmp_path):
    (first, second), codes, output = run("fits", tmp_path / "two")
    assert codes == [0, 0], output
    for name in ("rows", "sampler", "loader", "gan"):
        assert first[name]["digest"] == second[name]["digest"], name
    assert first["rows"]["seed"] == second["rows"]["seed"]
    sd = np.array(first["rows"]["sd"])
    np.testing.assert_allclose(sd, 1 / np.sqrt(600), rtol=0.3)
    for name in ("rows", "sampler", "loader"):
        assert (np.abs(np.array(first[name]["mean"]) - MEAN) < 3 * sd).all(), name
    # The expectation of the loss is that of one process.
    (alone,), _, _ = run("fits", tmp_path / "one", count=1)
    (mean, error), (expected, expected_error) = first["elbo"], alone["elbo"]
    assert abs(mean - expected) < 4 * np.hypot(error, expected_error)
    assert alone["loader"]["digest"] != first["loader"]["digest"]


def test_a_time_limit_ends_all_ranks_at_the_same_step(tmp_path):
    found, codes, output = run("limited", tmp_path / "limited")
    assert codes == [0, 0], output
    assert found[0]["steps"] == found[1]["steps"] > 0
    assert all("time_limit" in each["checks"] for each in found)


def test_a_rank_that_fails_ends_the_others_with_a_reason(tmp_path):
    (first, second), codes, output = run("failing", tmp_path / "failing")
    assert codes == [0, 0], output
    assert "Another process of this training failed" in first["error"]
    assert "this row is bad" in second["error"]


def test_a_killed_training_resumes_with_another_number_of_ranks(tmp_path):
    saved = tmp_path / "checkpoint"
    (first, second), codes, output = run("killed", tmp_path / "killed", argument=str(saved))
    assert second is None
    assert codes[1] == 3
    assert "lost their connection" in first["error"], output
    assert "checkpoint=" in first["error"]
    found, codes, output = run("killed", tmp_path / "three", 3, str(saved))
    assert codes == [0, 0, 0], output
    assert len({each["digest"] for each in found}) == 1
    assert found[0]["resumed"]
    np.testing.assert_allclose(found[0]["mean"], MEAN, atol=0.05)
    (again,), _, _ = run("killed", tmp_path / "one", 1, str(saved))  # all steps are done
    assert again["digest"] == found[0]["digest"]
    refused, _, output = run("refused", tmp_path / "refused", argument=str(saved))
    for each in refused:
        assert "of another run" in each["checkpoint"], output
        assert "batch_size=1: 2 processes train together" in each["rows"]


def test_separate_fits_are_not_divided(tmp_path):
    found, codes, output = run("separate", tmp_path / "separate")
    assert codes == [0, 0], output
    assert found[0] == found[1]


def test_torchrun_needs_no_change_of_a_script(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from tests.ranks.jobs import *\n"
        "fit = probdl.infer(regression, X, Y, method=svi(steps=20))\n"
        "print(f'fit {fit.seed} {digest(fit)}', flush=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("fit ")]
    assert len(lines) == 2, done
    assert len({*lines}) == 1
    assert done.stderr.count("FindingWarning") <= 1  # of the first rank


def test_one_process_trains_alone(monkeypatch):
    assert current_ranks() == Ranks()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert current_ranks() == Ranks()
    with alone():
        monkeypatch.setenv("WORLD_SIZE", "2")
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "0")
        assert current_ranks() == Ranks()
    ranks = Ranks()
    rows = torch.arange(5)
    assert ranks.part(rows) is rows
    assert ranks.of_first(lambda: 3) == 3
    assert ranks.index == ()


def test_the_parts_of_the_ranks_are_the_batch():
    rows = torch.arange(7)
    parts = [Ranks(rank, 3).part(rows) for rank in range(3)]
    assert torch.equal(torch.cat(parts), rows)
    assert [Ranks(rank, 3).part(rows[:2]).tolist() for rank in range(3)] == [[0], [1], [0]]
    assert issubclass(probdl.ProbdlError, Exception)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_work_that_is_not_divided_waits_for_no_other_rank(rank, monkeypatch, recwarn):
    variables = {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    method = probdl.NUTS(draws=20, warmup=50, chains=2)
    fit = probdl.infer(jobs.regression, jobs.X, jobs.Y, method=method)
    assert fit.diagnose()
    assert any(w.category is probdl.FindingWarning for w in recwarn) == (rank == "0")
    whole = probdl.SVI(steps=10)
    probdl.infer(jobs.regression, jobs.X, jobs.Y, method=whole, seed=1)
