"""Variational autoencoders: training, shapes, likelihoods and labels."""

import numpy as np
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
    assert isinstance(trained.model.__self__, VAE)


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
