"""The report of a fit: one page that is complete and needs nothing else."""

import base64
import io
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from PIL import Image

import probdl
from probdl.models import VAE, eight_schools

SIGMA = np.full(8, 10.0)
Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


class Page(HTMLParser):
    """The parts of a page, whose tags must be closed in order."""

    VOID = ("meta", "img", "br", "link", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "img":
            self.images.append(given["src"])
        self.links += [given[name] for name in ("href", "src") if name in given and tag != "img"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(fit, folder):
    path = fit.report(folder / "fit.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert page.links == []
    assert "could not be drawn" not in page.text
    assert len(text) < 5_000_000
    for source in page.images:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert np.asarray(picture.convert("L")).std() > 0  # not blank
    return page


@pytest.fixture(scope="module")
def fit():
    method = probdl.NUTS(draws=200, warmup=200, chains=2)
    coords = {"school": [f"<{name}>" for name in "ABCDEFGH"]}
    return probdl.infer(eight_schools, SIGMA, Y, method=method, seed=1, coords=coords)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_fit_with_draws(fit, tmp_path):
    page = page_of(fit, tmp_path)
    assert len(page.images) == 5
    for part in (
        *("Findings", "Summary", "theta[<A>]", "Ranks", "Leave-one-out", "def eight_schools"),
        *("sigma", "(8,), float64", "NUTS(draws=200", "seed", "native", "torch", "sampling"),
    ):
        assert part in page.text, part


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_fits(tmp_path):
    point = page_of(probdl.infer(eight_schools, SIGMA, Y, method="map", seed=1), tmp_path)
    assert "no draws to plot" in point.text
    images = (torch.rand(64, 6) < 0.5).float()
    vae = VAE.mlp((6,), latent_dim=2, hidden=[8])
    svi = probdl.infer(vae, images, method=probdl.SVI(steps=100, draws=50), seed=1)
    assert len(page_of(svi, tmp_path).images) == 1
    assert "nats in the last 5" in repr(svi)

    def joint(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("likelihood", -((y - mean) ** 2).sum())

    factor = probdl.infer(joint, Y / 10, method="laplace", seed=1)
    assert "mean" in page_of(factor, tmp_path).text


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_saved_fit_without_its_model(fit, tmp_path):
    loaded = probdl.load(fit.save(tmp_path / "fit"))
    page = page_of(loaded, tmp_path)
    assert len(page.images) == 5
    assert "source is not available" in page.text


def test_a_file_that_cannot_be_written(fit, tmp_path):
    for file in (tmp_path, tmp_path / "none" / "fit.html"):
        with pytest.raises(probdl.SettingError, match=r"fit\.html"):
            fit.report(file)


@pytest.mark.skipif(BROWSER is None, reason="no browser on this machine")
def test_a_browser_shows_it_without_a_message(fit, tmp_path):
    path = fit.report(tmp_path / "fit.html")
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.count("<img") == 5
    assert "CONSOLE" not in done.stderr
