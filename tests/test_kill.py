"""After a kill at any moment, a folder holds the old or the new content, and loads."""

import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import probdl
from probdl.methods.training.checkpoint import Checkpoint
from tests.attack.hostile import FULL, count

KILLS = 30 if FULL else 20
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

# A process that has imported and compiled everything is forked, and each child is killed.
KILLING = """
    def wait_for_change():
        before, deadline = file.stat().st_mtime_ns, time.monotonic() + 600
        while file.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    import os, signal, sys, time
    print("ready", flush=True)
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            work()
            os._exit(0)
        commits, seconds = line.split()
        wait_for_commits(int(commits))
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("killed", flush=True)
"""
SAVING = """
    import pathlib, sys, time, numpy as np, probdl
    from probdl.models import normal_normal
    file = pathlib.Path(sys.argv[1], "fit.json")
    y = [np.zeros(20_000), np.ones(20_000)]
    fits = [probdl.infer(normal_normal, np.ones(20_000), v, method="map", seed=1) for v in y]
    for fit in (*fits, fits[0]):
        fit.save(sys.argv[1])
    def wait_for_commits(commits):
        for _ in range(commits):
            wait_for_change()
    def work():
        while True:
            for fit in fits:
                fit.save(sys.argv[1])
"""
TRAINING = """
    import pathlib, sys, time, warnings, numpy as np, probdl
    from probdl.models import normal_normal
    warnings.simplefilter("ignore")
    def work(steps=5_000_000):
        method = probdl.SVI(
            steps=steps, draws=30, checkpoint=sys.argv[1], every=100, schedule="constant"
        )
        probdl.infer(normal_normal, np.ones(4), np.ones(4), method=method, seed=1)
    work(100)  # compiles, and writes the first checkpoint
    file = pathlib.Path(sys.argv[1], "checkpoint.pt")
    def wait_for_commits(commits):
        wait_for_change()
"""


@pytest.fixture
def kill(tmp_path):
    """Return a function that starts a process and returns a function that kills its next child."""
    processes = []

    def start(code):
        code = textwrap.dedent(code) + textwrap.dedent(KILLING)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "folder")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"

        def kill_after(seconds, commits=1):
            process.stdin.write(f"{commits} {seconds}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "killed\n"
            count("kill", None)

        return kill_after

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_kill_while_saving_leaves_a_fit(kill, tmp_path):
    kill_after = kill(SAVING)
    moments, found = random.Random(0), set()
    for i in range(KILLS):
        kill_after(moments.uniform(0.0, 0.1), commits=i % 3)
        fit = probdl.load(tmp_path / "folder")
        data = fit.idata.observed_data["y"].values
        assert data.std() == 0
        assert fit.draws["mu"].item() == pytest.approx(
            data[0], abs=0.01
        )  # draws and data are of one fit
        found.add(data[0])
    assert len(found) == 2  # both fits were found


def test_a_kill_while_training_leaves_a_checkpoint(kill, tmp_path):
    kill_after = kill(TRAINING)
    moments, done = random.Random(1), [100]
    for _ in range(KILLS):
        kill_after(moments.uniform(0.0, 0.1))
        done.append(Checkpoint(tmp_path / "folder", 100, {}).read(5_000_000)["done"])
    assert done == sorted(done)
    assert len(set(done)) == KILLS + 1  # each child continued from the last checkpoint
    ones, fits = np.ones(4), []
    for settings in ({"checkpoint": tmp_path / "folder", "every": 100}, {}):
        method = probdl.SVI(steps=done[-1] + 100, draws=30, schedule="constant", **settings)
        fits.append(probdl.infer(probdl.models.normal_normal, ones, ones, method=method, seed=1))
    resumed, undisturbed = fits
    np.testing.assert_array_equal(resumed.stats["elbo"], undisturbed.stats["elbo"])
    np.testing.assert_array_equal(resumed.draws["mu"], undisturbed.draws["mu"])
