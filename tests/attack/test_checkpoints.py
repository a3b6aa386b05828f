"""Damaged checkpoints are refused with an error that says what to do; a write loses nothing."""

import functools
import io
import os
import random
import zipfile

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.methods.training import checkpoint as checkpoints
from probdl.models import normal_normal
from tests.attack.hostile import attempt, count, paths_in, set_at, some

ONES = np.ones(4)
pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")


def generator(x=None):
    torch.manual_seed(3)
    pyro.module("net", net := torch.nn.Linear(1, 1))
    with pyro.plate("rows", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.deterministic("x", net(z), event_dim=1)


def train(folder, kind, steps):
    settings = {"steps": steps, "checkpoint": folder, "every": 100, "schedule": "constant"}
    if kind == "gan":
        torch.manual_seed(0)
        critic = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        method = probdl.GAN(discriminator=critic, **settings)
        data = np.random.default_rng(0).normal(size=(100, 1))
        return probdl.infer(generator, data, method=method, seed=1)
    options = {"svi": {}, "rmsprop": {"optimizer": torch.optim.RMSprop}}[kind]
    method = probdl.SVI(draws=30, **settings, **options)
    return probdl.infer(normal_normal, ONES, ONES, method=method, seed=1)


@pytest.fixture(scope="module", params=["svi", "rmsprop", "gan"])
def sound(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    train(folder, request.param, 200)
    return request.param, (folder / "checkpoint.pt").read_bytes()


def resumed(folder, sound, data):
    """Train from a damaged checkpoint; return the fit, or the error that says what to do."""
    kind, _ = sound
    (folder / "checkpoint.pt").write_bytes(data)
    fit = attempt(train, folder, kind, 300)
    count("checkpoint", fit)
    if isinstance(fit, probdl.ProbdlError):
        assert (
            "Delete it" in str(fit) or "delete the checkpoint" in str(fit) or "longer" in str(fit)
        ), fit
    return fit


@pytest.mark.parametrize("seed", range(12))
def test_damaged_bytes(tmp_path, sound, seed):
    rng = random.Random(seed)
    data = bytearray(sound[1])
    if seed % 3 == 0:
        data = data[: rng.randrange(len(data))]
    for _ in range(rng.choice([0, 1, 20])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    resumed(tmp_path, sound, bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04.", b"PK\x05\x06" + b"\0" * 18, b"text", b"\0" * 99]
)
def test_other_files(tmp_path, sound, data):
    assert isinstance(resumed(tmp_path, sound, data), probdl.SettingError)


BAD = [None, -1, 10**12, 0.5, float("nan"), "x", [], {}, torch.ones(1), torch.ones(3, 3), True]


def test_other_values(tmp_path, sound):
    """Every value of the state is replaced, each by two of the bad values."""
    rng = random.Random(1)
    saved = torch.load(io.BytesIO(sound[1]), weights_only=True)
    tried = 0
    for path in some(paths_in(saved)):
        for bad in rng.sample(BAD, 2) if path else ():
            tree = torch.load(io.BytesIO(sound[1]), weights_only=True)
            set_at(tree, path, bad)
            buffer = io.BytesIO()
            torch.save(tree, buffer)
            resumed(tmp_path, sound, buffer.getvalue())
            tried += 1
    assert tried > 5


def test_a_checkpoint_that_runs_code_is_refused(tmp_path, sound):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    assert isinstance(resumed(tmp_path, sound, buffer.getvalue()), probdl.SettingError)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_that_claims_much_is_refused(tmp_path, sound):
    path = tmp_path / "checkpoint.pt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("checkpoint/data/0", "w", force_zip64=True) as file,
    ):
        for _ in range(64):
            file.write(bytes(2**24))
    before = checkpoints.machine_memory
    checkpoints.machine_memory = lambda **_: 2**29
    try:
        refused = resumed(tmp_path, sound, path.read_bytes())
    finally:
        checkpoints.machine_memory = before
    assert "GiB" in str(refused)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_only_plain_files_are_read(tmp_path, kind):
    path = tmp_path / "checkpoint.pt"
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda p: os.symlink("/dev/zero", p)}[kind](
        path
    )
    assert isinstance(attempt(train, tmp_path, "svi", 200), probdl.DataError)


def test_unfinished_files_of_killed_runs_are_removed(tmp_path):
    for name in ("checkpoint.ptabc.part", "checkpoint.ptxyz.part"):
        (tmp_path / name).write_bytes(b"unfinished")
    (tmp_path / "mine.part").write_bytes(b"of another program")
    train(tmp_path, "svi", 100)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt", "mine.part"]


def test_ctrl_c_while_a_checkpoint_is_written_returns_the_fit(tmp_path, monkeypatch):
    """Simulate torch, which raises another error instead of KeyboardInterrupt."""

    def save(state, file):
        if state["state"]["done"] < 300:
            return real(state, file)
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672]")

    real = torch.save
    monkeypatch.setattr(torch, "save", save)
    fit = train(tmp_path, "svi", 1000)
    assert "interrupted" in [f.check for f in fit.diagnose()]
    assert len(fit.stats["elbo"]) == 300
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    def save(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    fit = train(tmp_path, "svi", 300)
    assert len(fit.stats["elbo"]) == 300
    assert [f.check for f in fit.diagnose()].count("checkpoint") == 1


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    assert isinstance(attempt(train, tmp_path / "file", "svi", 100), probdl.SettingError)


def line(x, y, power=1):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(slope * x**power, 1.0), obs=y)


def narrow(x, y, power=1):
    slope = pyro.sample("slope", dist.Normal(0.0, 0.1))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(slope * x**power, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "arguments", "part"),
    [(narrow, {}, "model's source"), (line, {"power": 3}, "arguments")],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, model, arguments, part):
    method = probdl.SVI(steps=200, draws=30, checkpoint=tmp_path)
    x = np.array([1.0, 2.0])
    probdl.infer(line, x, 2 * x, method=method, seed=1)
    with pytest.raises(probdl.SettingError, match=part):
        probdl.infer(model, x, 2 * x, method=method, seed=1, **arguments)


def test_a_checkpoint_of_other_captured_values_is_refused(tmp_path):
    def line_with(scale):
        def model(x, y):
            slope = pyro.sample("slope", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(slope * x, 1.0).to_event(1), obs=y)

        return model

    method = probdl.SVI(steps=200, draws=30, checkpoint=tmp_path)
    x = np.array([1.0, 2.0])
    first = probdl.infer(line_with(1.0), x, 2 * x, method=method, seed=1)
    again = probdl.infer(line_with(1.0), x, 2 * x, method=method, seed=1)
    np.testing.assert_array_equal(again.draws["slope"], first.draws["slope"])
    with pytest.raises(probdl.SettingError, match="model's captured values"):
        probdl.infer(line_with(2.0), x, 2 * x, method=method, seed=1)


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, self.scale))
        pyro.sample("y", dist.Normal(slope * x, 1.0).to_event(1), obs=y)

    def method(self, x, y):
        self(x, y)


def of_table(table, y):
    Scaled(1.0)(torch.as_tensor(table["x"].to_numpy()), y)


def of_function(function, y):
    Scaled(1.0)(function(torch.ones(2)), y)


X = np.array([1.0, 2.0])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((Scaled(1.0), X), (Scaled(2.0), X)),
        ((Scaled(1.0).method, X), (Scaled(2.0).method, X)),
        ((functools.partial(line, power=1), X), (functools.partial(line, power=2), X)),
        (
            (of_table, pd.DataFrame({"x": [1.0, 2.0]})),
            (of_table, pd.DataFrame({"x": [2.0, 1.0]})),
        ),
        ((of_function, lambda x: x), (of_function, lambda x: -x)),
    ],
)
def test_a_checkpoint_of_another_object_is_refused(tmp_path, before, after):
    method = probdl.SVI(steps=200, draws=30, checkpoint=tmp_path)
    first, again = (probdl.infer(*before, 2 * X, method=method, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.draws["slope"], again.draws["slope"])
    with pytest.raises(probdl.SettingError, match="of another run"):
        probdl.infer(*after, 2 * X, method=method, seed=1)


@pytest.mark.parametrize("rate", [0.01, 0.02])
def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path, rate):
    def method(own):
        sgd = lambda p, lr: torch.optim.SGD(p, lr=own)  # noqa: E731
        return probdl.SVI(steps=200, draws=30, checkpoint=tmp_path, optimizer=sgd)

    x = np.array([1.0, 2.0])
    probdl.infer(line, x, 2 * x, method=method(0.01), seed=1)
    if rate == 0.01:
        probdl.infer(line, x, 2 * x, method=method(rate), seed=1)
    else:
        with pytest.raises(probdl.SettingError, match="its optimizer"):
            probdl.infer(line, x, 2 * x, method=method(rate), seed=1)


def test_a_checkpoint_of_another_guide_is_refused(tmp_path):
    def guide(x, y, power=1):
        pyro.sample("slope", dist.Normal(pyro.param("m", torch.tensor(1.0)), 0.1))

    def mirrored(x, y, power=1):
        pyro.sample("slope", dist.Normal(-pyro.param("m", torch.tensor(1.0)), 0.1))

    x = np.array([1.0, 2.0])

    def fit(own):
        method = probdl.SVI(guide=own, steps=200, draws=30, checkpoint=tmp_path)
        return probdl.infer(line, x, 2 * x, method=method, seed=1)

    fit(guide)
    with pytest.raises(probdl.SettingError, match="of another run"):
        fit(mirrored)
