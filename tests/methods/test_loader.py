"""Fits of a DataLoader: all figures cover all rows, in the dataset's order."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import probdl
from probdl.io.idata import ARVIZ_1, groups, loo

N, BATCH = 1037, 100
X = torch.from_numpy(np.random.default_rng(0).normal(size=N))
Y = 2 * X + torch.from_numpy(np.random.default_rng(1).normal(0, 0.7, N))


def line(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    pyro.deterministic("double", 2 * b)
    with pyro.plate("rows", len(x)):
        mean = pyro.deterministic("mean", b * x)
        pyro.sample("y", dist.Normal(mean, 0.7), obs=y)


def declared(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", N, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(b * x, 0.7), obs=y)


def whole_batch(batch):
    x, y = batch
    line(x, y)


def by_name(batch):
    line(batch["x"], batch["y"])


PRECISION = 1 / 100 + float((X**2).sum()) / 0.49
MEAN = float((X * Y).sum()) / 0.49 / PRECISION
EVIDENCE = stats.norm.logpdf(Y, 0, 0.7).sum() + 0.5 * (
    PRECISION * MEAN**2 - np.log(100 * PRECISION)
)


def guide(*args, **kwargs):
    """The exact posterior, so that the tests do not depend on how well SVI converges."""
    scale = pyro.param("scale", torch.tensor(PRECISION**-0.5), dist.constraints.positive)
    pyro.sample("b", dist.Normal(pyro.param("loc", torch.tensor(MEAN)), scale))


METHOD = probdl.SVI(guide=guide, steps=44, learning_rate=1e-9, draws=300)


def exact_elpd():
    total = 0.0
    for x, y in zip(X.tolist(), Y.tolist(), strict=True):
        precision = PRECISION - x**2 / 0.49
        mean = (MEAN * PRECISION - x * y / 0.49) / precision
        total += stats.norm.logpdf(y, mean * x, np.sqrt(0.49 + x**2 / precision))
    return total


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"x": X[i], "y": Y[i]}


class Stream(IterableDataset):
    """A dataset without a length."""

    def __iter__(self):
        return iter(zip(X, Y, strict=True))


TABLE = TensorDataset(X, Y)
LOADERS = {
    "shuffled": (line, lambda: DataLoader(TABLE, BATCH, shuffle=True)),
    "drop_last": (line, lambda: DataLoader(TABLE, BATCH, shuffle=True, drop_last=True)),
    "tuples as a whole": (whole_batch, lambda: DataLoader(TABLE, BATCH, shuffle=True)),
    "dicts": (line, lambda: DataLoader(Rows(), BATCH, shuffle=True)),
    "dicts as a whole": (by_name, lambda: DataLoader(Rows(), BATCH, shuffle=True)),
    "a declared plate": (declared, lambda: DataLoader(TABLE, BATCH, shuffle=True)),
    "without a length": (line, lambda: DataLoader(Stream(), BATCH)),
    "without a length, declared": (declared, lambda: DataLoader(Stream(), BATCH)),
    "own generator": (
        line,
        lambda: DataLoader(TABLE, BATCH, shuffle=True, generator=torch.Generator()),
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_figure_covers_all_rows(name):
    model, make = LOADERS[name]
    fit = probdl.infer(model, make(), method=METHOD, seed=1)
    assert not fit.diagnose()
    # The ELBO of the exact posterior is the log evidence, up to the noise of 44 minibatches.
    assert fit.stats["elbo"].mean() == pytest.approx(EVIDENCE, abs=4 * 0.71 * N / 4400**0.5)
    assert fit.stats["log_evidence"] == pytest.approx(EVIDENCE, abs=0.05)
    assert fit.log_evidence(num_samples=200).total == pytest.approx(EVIDENCE, abs=0.05)
    b = fit.draws["b"]
    points = fit.log_likelihood()["y"]
    np.testing.assert_allclose(points, stats.norm(b[..., None] * X.numpy(), 0.7).logpdf(Y))
    lp = stats.norm(0, 10).logpdf(b) + points.sum(-1)
    np.testing.assert_allclose(fit.stats["lp"], lp)
    drawn = fit.predict()["y"].mean((0, 1))  # in the dataset's order
    np.testing.assert_allclose(drawn, MEAN * X, atol=5 * 0.7 / 300**0.5)
    np.testing.assert_array_equal(fit.idata.observed_data["y"], Y)
    result = loo(fit.idata, "y")
    assert (result.elpd if ARVIZ_1 else result["elpd_loo"]) == pytest.approx(exact_elpd(), abs=0.2)
    score = fit.log_predictive()
    assert score.pointwise["y"].shape == (N,)
    assert score.count == N
    assert fit.to_idata(prior=10).prior_predictive["y"].shape == (1, 10, N)


def test_deterministic_sites_of_rows_are_predicted():
    fit = probdl.infer(line, DataLoader(TABLE, BATCH), method=METHOD, seed=1)
    assert set(fit.draws) == {"b", "double"}
    np.testing.assert_allclose(fit.predict()["mean"], fit.draws["b"][..., None] * X.numpy())
    np.testing.assert_array_equal(fit.idata.constant_data["x"], X)
    assert fit.predict(num_samples=150)["y"].shape[-1] == 150
    means = fit.predict(num_samples=N + 3)["mean"]
    np.testing.assert_allclose(means[..., N:], means[..., :3])


def test_the_result_is_that_of_all_data_and_repeats():
    loaders = [DataLoader(TABLE, BATCH, shuffle=True) for _ in range(2)]
    a, b = (probdl.infer(line, loader, method=METHOD, seed=1) for loader in loaders)
    np.testing.assert_array_equal(a.draws["b"], b.draws["b"])
    np.testing.assert_array_equal(a.predict()["y"], b.predict()["y"])
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    own = DataLoader(TABLE, BATCH, shuffle=True, generator=generator)
    fits = [probdl.infer(line, own, method=METHOD, seed=1) for _ in range(2)]
    np.testing.assert_array_equal(fits[0].draws["b"], fits[1].draws["b"])
    assert torch.equal(generator.get_state(), state)


def test_batch_size_scales_a_declared_plate_once():
    method = probdl.SVI(**{**vars(METHOD), "batch_size": BATCH})
    fit = probdl.infer(declared, X, Y, method=method, seed=1)
    assert fit.stats["elbo"].mean() == pytest.approx(EVIDENCE, abs=4 * 0.71 * N / 4400**0.5)
    assert fit.stats["log_evidence"] == pytest.approx(EVIDENCE, abs=0.05)


def test_a_scale_of_the_users_own_is_refused():
    def scaled(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with poutine.scale(scale=N / len(x)), pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(b * x, 0.7), obs=y)

    with pytest.raises(probdl.ModelError, match=r"'y' is scaled by 10\.37"):
        probdl.infer(scaled, DataLoader(TABLE, BATCH), method=METHOD, seed=1)


def test_a_declared_size_must_be_that_of_the_data():
    loader = DataLoader(TensorDataset(X[:500], Y[:500]), BATCH)
    with pytest.raises(probdl.ModelError, match="has size 1037, but the DataLoader has 500 rows"):
        probdl.infer(declared, loader, method=METHOD, seed=1)


def test_factors_outside_the_data_plate_are_refused():
    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(b * x, 0.7), obs=y)
        pyro.factor("more", -((b * x - y) ** 2).sum())

    with pytest.raises(probdl.ModelError, match="'more' is computed from a minibatch"):
        probdl.infer(model, DataLoader(TABLE, BATCH), method=METHOD, seed=1)


def test_factors_in_the_data_plate_count():
    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x)):
            pyro.factor("y", dist.Normal(b * x, 0.7).log_prob(y))

    fit = probdl.infer(model, DataLoader(TABLE, BATCH), method=METHOD, seed=1)
    assert fit.stats["log_evidence"] == pytest.approx(EVIDENCE, abs=0.05)
    assert fit.idata.log_likelihood["y"].shape[-1] == N


def test_masked_rows_of_a_loader():
    seen = torch.arange(N) % 3 > 0

    def model(x, y, seen):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x)), poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(b * x, 0.7), obs=y)

    filled = torch.where(seen, Y, -100.0)
    loader = DataLoader(TensorDataset(X, filled, seen), BATCH)
    fit = probdl.infer(model, loader, method=METHOD, seed=1)
    assert {f.check for f in fit.diagnose()} <= {"biased_moments"}  # the guide is not trained
    np.testing.assert_array_equal(fit.idata.observed_data["y"], Y[seen])
    assert fit.idata.log_likelihood["y"].shape[-1] == int(seen.sum())


def test_samplers():
    rows = torch.randperm(N)[:500].tolist()
    loader = DataLoader(TABLE, BATCH, sampler=SubsetRandomSampler(rows))
    fit = probdl.infer(line, loader, method=METHOD, seed=1)
    assert "loader" not in {f.check for f in fit.diagnose()}
    np.testing.assert_array_equal(fit.idata.observed_data["y"], Y[sorted(rows)])
    uneven = {
        "reads some rows more often": {"sampler": WeightedRandomSampler(X.abs(), N)},
        "the last 37 of the 1037 rows": {"drop_last": True},
    }
    for message, options in uneven.items():
        loader = DataLoader(TABLE, BATCH, **options)
        with pytest.warns(probdl.FindingWarning, match=message):
            fit = probdl.infer(line, loader, method=METHOD, seed=1)
        assert fit.log_likelihood()["y"].shape[-1] == N


def test_a_plate_of_the_size_of_a_batch():
    def fixed(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", 61):
            pyro.sample("y", dist.Normal(b * x, 0.7), obs=y)

    fit = probdl.infer(fixed, DataLoader(TABLE, 61, shuffle=True), method=METHOD, seed=1)
    assert fit.stats["log_evidence"] == pytest.approx(EVIDENCE, abs=0.05)
    # Without a full last batch, the model does not run on it: the figures are left out, and told.
    loader = DataLoader(TABLE, 50, shuffle=True, drop_last=True)

    def short(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", 50):
            pyro.sample("y", dist.Normal(b * x, 0.7), obs=y)

    with pytest.warns(probdl.FindingWarning, match="but no lp, log_evidence and pareto_k"):
        fit = probdl.infer(short, loader, method=METHOD, seed=1)
    assert "log_evidence" not in fit.stats
    with pytest.raises(probdl.ModelError):
        fit.log_likelihood()


def test_a_guide_that_reads_the_batch_has_no_figures():
    def of_batch(x, y):
        scale = pyro.param("scale", torch.tensor(0.1).double(), dist.constraints.positive)
        pyro.sample("b", dist.Normal((x * y).sum() / (x * x).sum(), scale))

    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(b * x, 0.7), obs=y)

    with pytest.warns(probdl.FindingWarning, match="The guide computes 'b'"):
        fit = probdl.infer(
            model, DataLoader(TABLE, BATCH), method=probdl.SVI(guide=of_batch, steps=200), seed=1
        )
    assert "log_evidence" not in fit.stats


def test_datasets_that_cannot_be_read_again():
    class Once(IterableDataset):
        def __init__(self):
            self.rows = iter(zip(X, Y, strict=True))

        def __iter__(self):
            return self.rows

    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.zeros(100_000), torch.zeros(100_000)

    class Empty(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(probdl.DataError, match="is read again"):
        probdl.infer(line, DataLoader(Once(), BATCH), method=METHOD, seed=1)
    with pytest.raises(probdl.DataError, match="more than 10000000 rows"):
        probdl.infer(line, DataLoader(Endless(), None), method=METHOD, seed=1)
    with pytest.raises(probdl.DataError, match="The DataLoader is empty"):
        probdl.infer(line, DataLoader(Empty(), BATCH), method=METHOD, seed=1)
    with pytest.raises(probdl.DataError, match="no batch when it is read again"):
        probdl.infer(line, DataLoader(TABLE, 2 * N, drop_last=True), method=METHOD, seed=1)


def test_batches_must_differ_in_their_tensors_only():
    def collate(rows):
        x, y = (torch.stack(column) for column in zip(*rows, strict=True))
        return x, y, len(rows)

    def model(x, y, size):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", size):
            pyro.sample("y", dist.Normal(b * x, 0.7), obs=y)

    loader = DataLoader(TABLE, BATCH, collate_fn=collate)
    with pytest.raises(probdl.DataError, match=r"\['size'\] is a int in the first"):
        probdl.infer(model, loader, method=METHOD, seed=1)


def test_tuples_are_spread_and_the_error_says_so():
    def model(batch):  # a loader of one tensor: the batch is spread, so this is its first row
        y = batch[0]
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(b, 0.7), obs=y)

    table = torch.stack([X, Y, X], 1)
    with pytest.raises(probdl.DataError, match="a tuple is spread over the model's arguments"):
        probdl.infer(model, DataLoader(TensorDataset(table), BATCH), method=METHOD, seed=1)


def test_a_mixture_and_a_change_point():
    def mixture(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(mu + 3 * k, 0.7), obs=y)

    loader = DataLoader(TensorDataset(Y), BATCH, shuffle=True)
    method = probdl.SVI(steps=44, draws=30)
    with pytest.warns(probdl.FindingWarning):  # it has not converged
        fit = probdl.infer(mixture, loader, method=method, seed=1)
    mu = fit.draws["mu"][0, :20, None]
    density = 0.7 * stats.norm(mu, 0.7).pdf(Y) + 0.3 * stats.norm(mu + 3, 0.7).pdf(Y)
    lp = stats.norm(0, 10).logpdf(mu[:, 0]) + np.log(density).sum(1)
    np.testing.assert_allclose(fit.stats["lp"][0, :20], lp)

    def shared(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu + 3 * k, 0.7), obs=y)

    with pytest.raises(probdl.ModelError, match="All rows share the discrete site 'k'"):
        probdl.infer(shared, loader, method=method, seed=1)
    with pytest.raises(probdl.ModelError, match="All rows share the discrete site 'k'"):
        probdl.infer(shared, Y, method=probdl.SVI(steps=44, batch_size=50), seed=1)


def test_a_saved_fit(tmp_path):
    loader = DataLoader(TABLE, BATCH, shuffle=True)
    fit = probdl.infer(declared, loader, method=METHOD, seed=1)
    fit.save(tmp_path / "fit")
    for options in ({}, {"model": declared}):
        loaded = probdl.load(tmp_path / "fit", **options)
        np.testing.assert_array_equal(loaded.log_likelihood()["y"], fit.log_likelihood()["y"])
        np.testing.assert_array_equal(loaded.predict()["y"], fit.predict()["y"])
        assert loaded.idata.observed_data["y"].shape == (N,)
    with pytest.raises(probdl.ModelError, match="came from a DataLoader, which is not saved"):
        loaded.log_predictive()
    again = probdl.load(tmp_path / "fit", loader, model=declared)
    assert again.log_predictive().total == fit.log_predictive().total
    assert loaded.predict(X[:7])["y"].shape[-1] == 7


def test_refitting_needs_all_the_data():
    fit = probdl.infer(line, DataLoader(TABLE, BATCH), method=METHOD, seed=1)
    with pytest.raises(probdl.SettingError, match="needs all the data at once"):
        fit.cross_validate(5)
    whole = probdl.infer(line, X, Y, method="laplace", seed=1)
    table = probdl.compare({"loader": fit, "whole": whole})
    assert table["elpd"].iloc[0] == pytest.approx(exact_elpd(), abs=0.2)


def test_a_vae_covers_all_rows():
    x = (torch.rand(70, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    vae = probdl.models.VAE.mlp((4, 4), latent_dim=2, hidden=8)
    loader = DataLoader(TensorDataset(x), 32, shuffle=True)
    fit = probdl.infer(vae, loader, method=probdl.SVI(steps=100), seed=1)
    assert fit.elbo(num_samples=5).pointwise.shape == (70,)
    assert fit.log_evidence(num_samples=30).pointwise.shape == (70,)
    np.testing.assert_allclose(fit.encode()["z"], fit.encode(x)["z"], rtol=1e-5)
    assert fit.encode(num_samples=3)["z"].shape == (3, 70, 2)
    np.testing.assert_allclose(fit.reconstruct()["x"], fit.reconstruct(x)["x"], rtol=1e-5)
    assert fit.posterior_predictive()["x"].shape == (1, 1, 70, 4, 4)
    assert fit.decode(torch.zeros(3, 2))["x"].shape == (3, 4, 4)
    assert "log_likelihood" not in groups(fit.idata)
    np.testing.assert_array_equal(fit.idata.observed_data["x"], x)
    close = fit.log_predictive().total
    assert close == pytest.approx(fit.log_predictive(x).total, rel=0.01)
