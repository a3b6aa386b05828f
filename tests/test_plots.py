"""Plots: they show the values of the fit."""

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl import plots
from probdl.models import VAE, normal_normal


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(0)
    return (torch.rand(30, 4, 4) < 0.5).float()


@pytest.fixture(scope="module")
def fit(x):
    torch.manual_seed(0)
    vae = VAE.mlp((4, 4), latent_dim=3, hidden=8)
    return probdl.infer(vae, x, method=probdl.SVI(steps=300), seed=1)


def test_the_elbo_and_its_moving_average(fit):
    ax = plots.plot_elbo(fit, window=50)
    raw, smooth = ax.get_lines()[:2]
    np.testing.assert_array_equal(raw.get_ydata(), fit.stats["elbo"])
    assert smooth.get_ydata()[-1] == pytest.approx(fit.stats["elbo"][-50:].mean())
    assert smooth.get_xdata()[-1] == 300
    given = plt.subplots()[1]
    assert plots.plot_elbo(fit, ax=given) is given


def test_positions_of_images_in_the_grid():
    images = np.arange(5)[:, None, None] / 4 * np.ones((5, 3, 2))
    grid = plots.plot_images(images, columns=2).get_images()[0].get_array()
    assert grid.shape == (3 * 4 + 1, 2 * 3 + 1)
    assert (grid[1:4, 4:6] == 0.25).all()  # the second image
    assert (grid[9:12, 1:3] == 1.0).all()  # the fifth
    colour = plots.plot_images(np.zeros((1, 1, 2, 3, 4, 4))).get_images()[0].get_array()
    assert colour.shape == (6, 11, 3)
    with pytest.raises(probdl.SettingError, match="cannot be drawn"):
        plots.plot_images(np.zeros((4, 4)))


def test_reconstructions_are_below_their_images(fit, x):
    grid = plots.plot_reconstructions(fit, x[:3], columns=2).get_images()[0].get_array()
    assert grid.shape == (4 * 5 + 1, 2 * 5 + 1)
    np.testing.assert_allclose(grid[1:5, 6:10], x[1])
    np.testing.assert_allclose(grid[6:10, 6:10], fit.reconstruct(x[:3])["x"][1], rtol=1e-5)


def test_the_latent_plot_has_a_point_for_each_row(fit, x):
    label = np.arange(30) % 3
    ax = plots.plot_latent(fit, x, color=label, dims=(2, 0))
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    codes = fit.encode(x)["z"][:, [2, 0]]
    expected = np.concatenate([codes[label == k] for k in range(3)])
    np.testing.assert_allclose(points, expected, rtol=1e-5)
    assert ax.get_xlabel() == "z[2]"
    with pytest.raises(probdl.SettingError, match="has 3 dimensions"):
        plots.plot_latent(fit, x, dims=(0, 3))


def test_other_fits_have_no_elbo():
    fit = probdl.infer(normal_normal, np.ones(2), np.ones(2), method="map", seed=1)
    with pytest.raises(probdl.ModelError, match="Fits with map do not record the ELBO"):
        plots.plot_elbo(fit)


def test_reconstructions_of_images_that_the_model_flattens():
    """As in Pyro's tutorial, the images are (n, 4, 4) and the observed site is (n, 16)."""
    torch.manual_seed(0)

    class Coder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = torch.nn.Linear(16, 2), torch.nn.Linear(2, 16)

        def model(self, x):
            pyro.module("coder", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                flat = dist.Bernoulli(logits=self.decoder(z)).to_event(1)
                pyro.sample("obs", flat, obs=x.reshape(-1, 16))

        def guide(self, x):
            pyro.module("coder", self)
            with pyro.plate("data", len(x)):
                code = self.encoder(x.reshape(-1, 16))
                pyro.sample("z", dist.Normal(code, 0.5).to_event(1))

    x = (torch.rand(20, 4, 4) < 0.5).float()
    fit = probdl.infer(Coder(), x, method=probdl.SVI(steps=100), seed=1)
    drawn = plots.plot_reconstructions(fit, x[:6], columns=3).get_images()[0].get_array()
    assert drawn.shape == (21, 16)  # 4 rows of 3 images of 4 pixels, with frames


def test_labels_of_points_are_texts_numbers_or_categories(fit, x):
    labels = ["cat", "dog"] * (len(x) // 2)
    for color in (labels, np.array(labels, dtype=object), torch.arange(len(x)) % 2):
        legend = probdl.plots.plot_latent(fit, x, color=color).get_legend()
        assert len(legend.get_texts()) == 2
    assert probdl.plots.plot_latent(fit, x, color=np.linspace(0, 1, len(x))).get_legend() is None
    with pytest.raises(probdl.SettingError, match="color= has 2 labels"):
        probdl.plots.plot_latent(fit, x, color=["cat", "dog"])


def test_flattened_images_are_no_picture():
    with pytest.raises(probdl.SettingError, match=r"such as \(16, 28, 28\)"):
        probdl.plots.plot_images(np.zeros((1, 1, 16, 784)))
    probdl.plots.plot_images(np.zeros((1, 1, 28, 28)))


def counts(n, y=None):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("row", n):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def test_replicates_of_counts_are_not_drawn_at_zero_between_integers():
    y = np.random.default_rng(0).negative_binomial(2, 2 / 6, size=400)
    fit = probdl.infer(counts, len(y), y, method="laplace", seed=1)
    figure = plots.plot_fit(fit, "ppc")
    inside = [
        np.asarray(line.get_ydata())[
            (np.asarray(line.get_xdata()) > 0.5) & (np.asarray(line.get_xdata()) < 4)
        ]
        for line in figure.axes[0].get_lines()
    ]
    assert not any((of == 0).any() for of in inside if len(of))


def test_a_forest_of_days_has_short_labels_and_room_for_each():
    def model(y):
        with pyro.plate("time", len(y)):
            level = pyro.sample("level", dist.Normal(0.0, 5.0))
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    days = np.arange("2016-01", "2021-01", dtype="datetime64[M]")
    fit = probdl.infer(
        model, np.zeros(60), method="laplace", coords={"time": days.astype("datetime64[D]")}, seed=1
    )
    figure = plots.plot_fit(fit, "forest", ["level"])
    texts = [text.get_text() for ax in figure.axes for text in [*ax.get_yticklabels(), *ax.texts]]
    assert any("2016-02-01" in text for text in texts)
    assert not any("T00" in text for text in texts)
    assert figure.get_size_inches()[1] > 60 * 0.15


def test_labels_keep_their_slashes_where_a_fit_is_shown():
    def model(town, y):
        with pyro.plate("town", int(town.max()) + 1):
            level = pyro.sample("level", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(town)):
            pyro.sample("y", dist.Normal(level[town], 1.0), obs=y)

    towns = list(np.array(["A/B", *(f"town {i}" for i in range(24))]))
    fit = probdl.infer(model, towns, np.zeros(25), method="laplace", seed=1)
    assert "level[A/B]" in str(fit)
    assert "level[A/B]" in fit._repr_html_()


def test_the_elbo_of_a_fit_without_its_model_has_the_same_legend(tmp_path):
    torch.manual_seed(0)
    x = (torch.rand(60, 4, 4) < 0.2).float()
    vae = probdl.models.VAE.mlp((4, 4), latent_dim=2, hidden=4)
    method = probdl.SVI(epochs=10, batch_size=20, validation=(x[40:],))
    fit = probdl.infer(vae, x[:40], method=method, seed=1)
    loaded = probdl.load(fit.save(tmp_path / "vae"))
    for each in (fit, loaded):
        texts = [text.get_text() for text in plots.plot_elbo(each).get_legend().get_texts()]
        assert "held-out data" in texts


def test_the_labels_of_a_forest_are_inside_of_the_figure(tmp_path):
    def model(y):
        with pyro.plate("clinic", 3):
            level = pyro.sample("level_of_the_clinic", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    names = {"clinic": ["Clinic of Saint Agnes", "Clinic of Saint Bruno", "Clinic of Saint Clare"]}
    fit = probdl.infer(model, np.zeros(3), method="laplace", seed=1, coords=names)
    figure = plots.plot_fit(fit, "forest")
    figure.canvas.draw()
    width = figure.bbox.width
    for ax in figure.axes:
        for label in [*ax.get_yticklabels(), *ax.texts]:
            if label.get_visible() and label.get_text():
                box = label.get_window_extent()
                assert box.x0 >= 0
                assert box.x1 <= width


def test_ranks_are_those_of_about_independent_draws(monkeypatch):
    rng = np.random.default_rng(0)

    def normal(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    settings = {"chains": 2, "draws": 2000, "thin": 1}
    fit = probdl.infer(normal, rng.normal(size=20), method=probdl.Metropolis(**settings), seed=1)
    shown, draw = [], az.plot_rank
    monkeypatch.setattr(az, "plot_rank", lambda data, **kw: shown.append(data) or draw(data, **kw))
    plots.plot_fit(fit, "rank")
    (data,) = shown
    posterior = data["posterior"].to_dataset() if hasattr(data, "children") else data
    assert posterior["mean"].size <= 1.1 * az.ess(fit.draws["mean"]) < 2000


@pytest.mark.parametrize(("kind", "most"), [("rank", 100), ("trace", 2000), ("forest", 2000)])
def test_more_panels_than_anyone_looks_at_are_refused(kind, most):
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(most), 1.0).to_event(1))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    method = probdl.NUTS(draws=20, warmup=20, chains=2)
    fit = probdl.infer(model, method=method, seed=0)
    with pytest.raises(probdl.SettingError, match=f"1 to {most} scalars, but .* {most + 1}"):
        plots.plot_fit(fit, kind)
    assert plots.plot_fit(fit, kind, ["z"]).axes
