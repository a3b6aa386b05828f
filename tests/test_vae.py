"""Variational autoencoders: training, shapes, likelihoods and labels."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

import probdl
from probdl.models import VAE


def squares(n, seed=0):
    """Return images with a bright square in one of four corners, and the corners as labels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, n)
    rate = np.full((n, 8, 8), 0.05)
    for i, corner in enumerate(label):
        top, left = 4 * (corner // 2), 4 * (corner % 2)
        rate[i, top : top + 4, left : left + 4] = 0.95
    x = (rng.random((n, 8, 8)) < rate).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(label)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x, _ = squares(1000)
    vae = VAE.mlp((8, 8), latent_dim=2, hidden=32)
    method = probdl.SVI(epochs=60, batch_size=100, learning_rate=5e-3, elbo="mean_field")
    return probdl.infer(vae, x, method=method, seed=1)


def test_a_trained_vae_is_close_to_the_true_distribution(trained):
    x, label = squares(500, seed=1)
    assert trained.stats["engine"] == "graph"
    evidence = trained.log_evidence(x, num_samples=200)
    # log p(x) of the true mixture of four corners
    rate = np.full((4, 8, 8), 0.05)
    for corner in range(4):
        rate[corner, 4 * (corner // 2) :, 4 * (corner % 2) :][:4, :4] = 0.95
    log_p = stats.bernoulli.logpmf(x.numpy()[:, None].astype(int), rate).sum((2, 3))
    truth = np.log(np.exp(log_p).mean(1)).mean()
    assert truth - 5 < evidence.pointwise.mean() < truth + 0.5
    elbo = trained.elbo(x)
    assert elbo.total < evidence.total
    assert (elbo.kl > 0).all()
    assert elbo.kl.mean() > np.log(4) * 0.7  # the corner alone has log 4 nats
    means = trained.reconstruct(x)["x"]
    for corner in range(4):
        np.testing.assert_allclose(means[label == corner].mean(0), rate[corner], atol=0.12)


def test_generated_images_resemble_the_data(trained):
    images = trained.predict(size=400)["x"]
    assert images.shape == (1, 1, 400, 8, 8)
    assert set(np.unique(images)) == {0.0, 1.0}
    quarters = images[0, 0].reshape(400, 2, 4, 2, 4).mean((2, 4)).reshape(400, 4)
    assert (quarters.max(1) > 0.7).mean() > 0.5  # not for codes between those of two corners
    assert len(set(quarters.argmax(1))) == 4


def test_codes_separate_the_corners(trained):
    x, label = squares(400, seed=2)
    codes = trained.encode(x)["z"]
    centres = np.stack([codes[label == k].mean(0) for k in range(4)])
    nearest = np.linalg.norm(codes[:, None] - centres, axis=2).argmin(1)
    assert (nearest == label.numpy()).mean() > 0.9


def test_draws_are_the_weights_of_the_decoder(trained):
    assert trained.is_point
    assert all(name.startswith(("encoder", "decoder")) for name in trained.stats["params"])
    assert all(name.startswith("decoder") for name in trained.draws)
    assert "VAE" in repr(trained)
    assert isinstance(trained.model, VAE)


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_convolutions_keep_the_shape(shape):
    torch.manual_seed(0)
    x = (torch.rand(20, *shape) < 0.3).float()
    vae = VAE.conv(shape, latent_dim=3, channels=(4, 8), hidden=16)
    fit = probdl.infer(vae, x, method=probdl.SVI(steps=30), seed=1)
    assert fit.encode(x)["z"].shape == (20, 3)
    assert fit.reconstruct(x)["x"].shape == (20, *shape)
    assert fit.predict(size=2)["x"].shape == (1, 1, 2, *shape)
    assert fit.stats["engine"] == "graph"
    assert vae.decoder.second[0].weight.shape == (16, 3)
    with pytest.raises(probdl.SettingError, match="divisible by 8"):
        VAE.conv((10, 8), channels=(4, 8, 8))


@pytest.mark.parametrize("make", [VAE.mlp, VAE.conv])
def test_generated_images_match_the_label(make):
    torch.manual_seed(0)
    x, label = squares(600)
    kind = {"hidden": 32} if make == VAE.mlp else {"hidden": 32, "channels": (8,)}
    vae = make((8, 8), latent_dim=2, num_classes=4, **kind)
    method = probdl.SVI(epochs=100, batch_size=100, learning_rate=5e-3)
    fit = probdl.infer(vae, x, label, method=method, seed=1)
    wanted = torch.arange(4).repeat(50)
    images = fit.predict(label=wanted)["x"][0, 0]
    quarters = images.reshape(200, 2, 4, 2, 4).mean((2, 4)).reshape(200, 4)
    assert (quarters.argmax(1) == wanted.numpy()).mean() > 0.95
    assert fit.reconstruct(x[:7], label[:7])["x"].shape == (7, 8, 8)
    with pytest.raises(probdl.ModelError, match="Pass label="):
        fit.elbo(x)


@pytest.mark.parametrize("likelihood", ["normal", "poisson", "continuous_bernoulli"])
def test_other_likelihoods(likelihood):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    means = {"normal": 3.0, "poisson": 3.0, "continuous_bernoulli": 0.4}
    draw = {
        "normal": lambda: rng.normal(3.0, 0.5, (300, 6)),
        "poisson": lambda: rng.poisson(3.0, (300, 6)),
        "continuous_bernoulli": lambda: rng.beta(2.0, 3.0, (300, 6)),
    }[likelihood]
    x = torch.from_numpy(draw().astype(np.float32))
    vae = VAE.mlp((6,), latent_dim=1, hidden=8, likelihood=likelihood)
    method = probdl.SVI(steps=1500, learning_rate=0.01)
    fit = probdl.infer(vae, x, method=method, seed=1)
    assert fit.reconstruct(x)["x"].mean() == pytest.approx(means[likelihood], rel=0.1)
    if likelihood == "normal":
        assert fit.stats["params"]["noise"] == pytest.approx(0.5, rel=0.15)


def test_images_outside_the_support_are_errors():
    vae = VAE.mlp((4,), latent_dim=1, hidden=4)
    for bad in (torch.full((3, 4), 1.5), torch.full((3, 4), 200, dtype=torch.uint8)):
        with pytest.raises(probdl.DataError, match=r"Site 'x': 12 of 12 values .* Bernoulli"):
            probdl.infer(vae, bad, method=probdl.SVI(steps=1), seed=1)
    with pytest.raises(probdl.DataError, match="ContinuousBernoulli"):
        probdl.infer(vae, torch.full((3, 4), 0.5), method=probdl.SVI(steps=1), seed=1)
    with pytest.raises(ValueError, match="'bernoulli'"):
        VAE.mlp((4,), likelihood="gauss")


def test_custom_networks():
    torch.manual_seed(0)
    x, _ = squares(50)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    decoder = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (8, 8)))
    fit = probdl.infer(VAE(encoder, decoder, 2), x, method=probdl.SVI(steps=50), seed=1)
    assert set(fit.draws) == {"decoder.0.weight", "decoder.0.bias"}


BAD_LABELS = {
    "too large": (torch.tensor([0, 1, 2, 3, 4, 0]), r"1 of 6 values .* index 4 = 4"),
    "negative": (torch.tensor([0, -1, 2, -3, 1, 0]), r"2 of 6 values .* index 1 = -1"),
    "fractions": (np.array([0.0, 0.5, 2.0, 1.0, 1.0, 0.0]), r"1 of 6 values .* index 1 = 0.5"),
    "a column": (torch.zeros(6, 1, dtype=torch.long), r"shape \(6, 1\); it must be \(6,\)"),
    "one-hot": (torch.eye(4)[torch.arange(6) % 4], r"shape \(6, 4\).*argmax"),
    "too few": (torch.zeros(5, dtype=torch.long), r"shape \(5,\); it must be \(6,\)"),
    "a number": (torch.tensor(2), r"shape \(\); it must be"),
}


@pytest.fixture(scope="module")
def conditional():
    torch.manual_seed(0)
    x = (torch.rand(6, 4) < 0.5).float()
    vae = VAE.mlp((4,), latent_dim=2, hidden=4, num_classes=4)
    label = torch.tensor([0, 1, 2, 3, 1, 0])
    return x, vae, probdl.infer(vae, x, label, method=probdl.SVI(steps=20), seed=1)


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_labels_that_are_not_classes_are_errors(conditional, kind):
    x, vae, fit = conditional
    label, message = BAD_LABELS[kind]
    calls = [
        lambda: probdl.infer(vae, x, label, method=probdl.SVI(steps=2), seed=1),
        lambda: probdl.infer(vae, x, label, method=probdl.SVI(steps=2, batch_size=3), seed=1),
        lambda: fit.elbo(x, label),
        lambda: fit.encode(x, label),
        lambda: fit.reconstruct(x, label),
        lambda: fit.decode(np.zeros((6, 2)), x, label),
        lambda: fit.log_evidence(x, label),
        lambda: fit.log_predictive(x, label),
        lambda: fit.predict(x, label),
    ]
    if kind != "too few":
        calls.append(lambda: fit.predict(label=label))
    for call in calls:
        with pytest.raises(probdl.DataError, match=f"Argument 'label'.*{message}"):
            call()


def test_labels_of_another_dtype(conditional):
    x, _, fit = conditional
    label = torch.tensor([0, 1, 2, 3, 1, 0])
    expected = fit.encode(x, label)["z"]
    for other in (label.float(), label.int(), label.numpy().astype(np.uint8)):
        np.testing.assert_array_equal(fit.encode(x, other)["z"], expected)


def test_labels_of_an_unconditional_vae_are_an_error():
    x = (torch.rand(6, 4) < 0.5).float()
    vae = VAE.mlp((4,), latent_dim=2, hidden=4)
    with pytest.raises(probdl.DataError, match="not conditional"):
        probdl.infer(vae, x, torch.zeros(6).long(), method=probdl.SVI(steps=2), seed=1)
    with pytest.raises(probdl.SettingError, match="num_classes"):
        VAE(nn.Linear(4, 2), nn.Linear(1, 4), 1, num_classes=0)


def test_a_bad_label_in_a_later_batch_ends_the_training(conditional):
    x, vae, _ = conditional
    rows = torch.arange(64) % 6
    label = rows % 4
    label[40] = 9
    data = torch.utils.data.TensorDataset(x[rows], label)
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    with pytest.warns(probdl.FindingWarning, match="values are not integers from 0 to 3"):
        fit = probdl.infer(vae, loader, method=probdl.SVI(steps=8), seed=1)
    assert "loss_not_finite" in [f.check for f in fit.diagnose()]


class TwoFactors(nn.Module):
    """x depends on one of two latent dimensions."""

    def __init__(self, weight, start=0.0):
        super().__init__()
        self.weight = torch.tensor([weight, 0.0])
        self.loc = nn.Parameter(torch.full((2,), start))
        self.log_scale = nn.Parameter(torch.zeros(2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 3.0).to_event(1))
            pyro.sample("x", dist.Normal((z * self.weight).sum(-1), 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            fn = dist.Normal(x[:, None] * self.loc, 3.0 * self.log_scale.exp())
            pyro.sample("z", fn.to_event(1))


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_plain_torch_modules_without_param_statements_are_trained(engine):
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 3.0, 200).astype(np.float32))
    method = probdl.SVI(steps=1000, learning_rate=0.02, engine=engine)
    fit = probdl.infer(TwoFactors(1.0), x, method=method, seed=1)
    # The posterior of the first factor is N(9 x / 9.25, 2.25 / 9.25).
    assert fit.stats["params"]["loc"] == pytest.approx([9 / 9.25, 0.0], abs=0.02)
    scale = 3.0 * np.exp(fit.stats["params"]["log_scale"])
    assert scale == pytest.approx([(2.25 / 9.25) ** 0.5, 3.0], rel=0.1)


def collapse(fit):
    return [f for f in fit.diagnose() if f.check == "posterior_collapse"]


@pytest.mark.parametrize("rows", [200, 3000])
def test_posterior_collapse_is_found_with_its_dimensions(rows):
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 3.0, rows).astype(np.float32))
    method = probdl.SVI(steps=1500, learning_rate=0.02, batch_size=200)
    (partial,) = collapse(probdl.infer(TwoFactors(1.0), x, method=method, seed=1))
    assert partial.severity == "info"
    assert "1 of 2 latent dimensions of the rows (z[1]) are not used" in partial.message
    (total,) = collapse(probdl.infer(TwoFactors(0.0), x, method=method, seed=1))
    assert total.severity == "warning"
    assert "all 2 latent dimensions of the rows (z[0], z[1])" in total.message
    assert total.sites == ("z",)


def test_a_trained_vae_has_not_collapsed(trained):
    assert not collapse(trained)


def test_annealing_that_does_not_end_is_a_finding():
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 3.0, 50).astype(np.float32))
    fit = probdl.infer(TwoFactors(1.0), x, method=probdl.SVI(steps=50, kl_annealing=5000), seed=1)
    (finding,) = [f for f in fit.diagnose() if f.check == "kl_annealing"]
    assert "weight of the KL term was 0.01 at the end" in finding.message
    for annealing in (0, 50):
        method = probdl.SVI(steps=50, kl_annealing=annealing)
        found = probdl.infer(TwoFactors(1.0), x, method=method, seed=1).diagnose()
        assert "kl_annealing" not in [f.check for f in found]
