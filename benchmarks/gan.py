"""Adversarial training: `make bench-gan`. PROBDL_SHARED must name the folder of MNIST's images.

Writes results/gan.json, results/gan.md and two plots. Comparisons are ratios of times measured
alternately in the same run.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn import functional

import probdl
from benchmarks.parts import RESULTS, run
from probdl.models import VAE
from probdl.nn import MLP, ConvNet, TransposedConvNet
from probdl.plots import plot_images

MINUTES = 10
CHECKPOINTS = 5


def implicit(generator: nn.Module, latents: int, event_dim: int = 1) -> Callable[..., None]:
    """Return a Pyro program whose site x is the generator's output for random noise."""

    def model(x: Any = None, size: int = 1) -> None:
        pyro.module("generator", generator)
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(torch.zeros(latents), 1.0).to_event(1))
            pyro.deterministic("x", generator(z), event_dim=event_dim)

    return model


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


# -- one step ----------------------------------------------------------------------------------


def by_hand(
    generator: nn.Module, discriminator: nn.Module, x: Any, latents: int, steps: int
) -> Any:
    """Train with hand-written PyTorch code; return the seconds per step."""
    size = 64
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999))
        for net in (generator, discriminator)
    ]
    bce = functional.binary_cross_entropy_with_logits
    ones, zeros, losses = torch.ones(size, 1), torch.zeros(size, 1), []
    start = time.perf_counter()
    while len(losses) < steps:
        for rows in torch.randperm(len(x)).split(size):
            if len(rows) < size or len(losses) == steps:
                break
            optimizers[1].zero_grad()
            with torch.no_grad():
                fake = generator(torch.randn(size, latents))
            loss = bce(discriminator(x[rows]), ones) + bce(discriminator(fake), zeros)
            loss.backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            lost = bce(discriminator(generator(torch.randn(size, latents))), ones)
            lost.backward()
            optimizers[0].step()
            losses.append((loss.item(), lost.item()))
    return (time.perf_counter() - start) / steps


def step() -> dict[str, Any]:
    """Time one step of generator and discriminator, by probdl and by PyTorch."""
    cases: dict[str, Any] = {
        "ring: MLP 4-64-64-2 against 2-64-64-1": (
            lambda: (MLP([4, 64, 64, 2]), MLP([2, 64, 64, 1], leaky)),
            (torch.randn(4000, 2), 4, 2000),
        ),
        "images: two convolutions each, 16 and 32 filters": (
            lambda: (
                TransposedConvNet([64, 256], (28, 28), channels=(16, 32)),
                ConvNet((28, 28), channels=(16, 32), sizes=(1,), activation=leaky),
            ),
            (torch.rand(2000, 28, 28), 64, 200),
        ),
    }
    results = {}
    for name, (make, (x, latents, steps)) in cases.items():
        pairs = []
        for _ in range(5):
            generator, discriminator = make()

            def ours(
                count: int, net: Any = generator, against: Any = discriminator, data: Any = x,
                of: int = latents,
            ) -> float:  # fmt: skip
                method = probdl.GAN(discriminator=against, steps=count, batch_size=64)
                start = time.perf_counter()
                fit = probdl.infer(implicit(net, of, data.ndim - 1), data, method=method, seed=1)
                assert fit.stats["engine"] == "graph"
                return time.perf_counter() - start

            few = ours(100)
            mine = (ours(100 + steps) - few) / steps
            pairs.append((mine, by_hand(generator, discriminator, x, latents, steps)))
        ratios = [mine / theirs for mine, theirs in pairs]
        mine, theirs = pairs[ratios.index(statistics.median(ratios))]
        results[name] = {"ratio": mine / theirs, "ours_ms": mine * 1e3, "pytorch_ms": theirs * 1e3}
    return results


# -- eight normals on a ring -------------------------------------------------------------------

SPREAD = 0.2  # standard deviation of each component; the means lie on a circle of radius 2
ANGLES = np.arange(8) * 2 * np.pi / 8
MEANS = 2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
GAMES: dict[str, dict[str, Any]] = {
    "wasserstein": {"steps": 4000, "discriminator_steps": 3},
    "hinge": {"steps": 4000, "discriminator_steps": 3, "discriminator_learning_rate": 4e-3},
    "minimax": {"steps": 4000, "optimizer": "Adam"},  # momentum makes this loss unstable
}
slow_adam = functools.partial(torch.optim.Adam, betas=(0.0, 0.9))


def ring(rows: int, seed: int) -> torch.Tensor:
    """Draw from the mixture."""
    rng = np.random.default_rng(seed)
    x = MEANS[rng.integers(8, size=rows)] + SPREAD * rng.normal(size=(rows, 2))
    return torch.from_numpy(x.astype(np.float32))


def modes(draws: Any) -> tuple[int, float]:
    """Return the number of modes near at least 1 % of the draws, and the share near any mode."""
    distance = np.linalg.norm(np.reshape(draws, (-1, 1, 2)) - MEANS, axis=2)
    near = distance.min(1) < 3 * SPREAD
    counts = np.bincount(distance.argmin(1)[near], minlength=8)
    return int((counts >= 0.01 * len(near)).sum()), float(near.mean())


def play_ring(loss: str, seed: int, **settings: Any) -> probdl.Fit:
    """Train a generator on the ring."""
    torch.manual_seed(seed)
    generator, discriminator = MLP([4, 128, 128, 128, 2]), MLP([2, 64, 64, 1], leaky)
    common = {"batch_size": 128, "learning_rate": 1e-3, "schedule": "cosine", "ema": 0.99}
    method = probdl.GAN(
        discriminator=discriminator,
        loss=loss,
        **{**common, "optimizer": slow_adam, **GAMES[loss], **settings},
    )
    return probdl.infer(implicit(generator, 4), ring(4000, seed), method=method, seed=seed)


def rings() -> list[dict[str, Any]]:
    """Count the modes covered, with three losses and five seeds."""
    rows, fits = [], {}
    for loss in GAMES:
        for seed in range(5):
            start = time.perf_counter()
            fit = play_ring(loss, seed)
            taken = time.perf_counter() - start
            covered, near = modes(fit.predict(4000)["x"])
            found = [f.check for f in fit.diagnose()]
            rows.append({"loss": loss, "seed": seed, "modes": covered, "near": near,
                         "seconds": taken, "findings": found})  # fmt: skip
            print(rows[-1], flush=True)
            fits[loss, seed] = fit
    plot_rings({loss: fits[loss, 0] for loss in GAMES})
    return rows


def plot_rings(fits: dict[str, probdl.Fit]) -> None:
    """Plot data and draws side by side, all with the axis limits of the data."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), sharex=True, sharey=True)
    samples = {"data": ring(1000, 0)} | {
        loss: fit.predict(1000)["x"].reshape(-1, 2) for loss, fit in fits.items()
    }
    for ax, (name, x) in zip(axes, samples.items(), strict=True):
        outside = int((np.abs(np.asarray(x)) > 3.5).any(1).sum())
        ax.plot(x[:, 0], x[:, 1], ".", markersize=2)
        ax.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")
        ax.set_title(f"{name} ({outside:,} of 1,000 outside)" if outside else name)
    figure.tight_layout()
    figure.savefig(RESULTS / "gan_ring.png", dpi=80)


# -- MNIST -------------------------------------------------------------------------------------


class Digits(nn.Module):
    """A Pyro program whose site x is an image, made from noise by transposed convolutions."""

    latents = 64

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(self.latents, 64 * 7 * 7),
            nn.Unflatten(1, (64, 7, 7)),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, 2, 1),
            nn.Flatten(1, 2),
            nn.Sigmoid(),
        )

    def forward(self, x: Any = None) -> None:
        with pyro.plate("data", len(x) if x is not None else 1):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latents), 1.0).to_event(1))
            pyro.deterministic("x", self.network(z), event_dim=2)


def digits(shared: Path) -> dict[str, Any]:
    """Train on 8,000 images for ten minutes; compare draws with 2,000 held-out images and a VAE."""
    with np.load(shared / "data" / "mnist-t10k" / "mnist_t10k.npz") as data:
        images = torch.from_numpy(data["images"].astype(np.float32) / 255)
    # Shuffle: the two halves of the file were written by different people, and a classifier can
    # distinguish them.
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(1))]
    train, test = images[:8000], images[8000:]
    torch.manual_seed(0)
    model = Digits()
    discriminator = ConvNet((28, 28), channels=(32, 64), sizes=(1,), activation=leaky)
    shown, per_step, steps, taken = [], 0.0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for part in range(1 + CHECKPOINTS):
            # The first 500 steps give the time per step; then the same run continues.
            share = part / CHECKPOINTS * MINUTES * 60
            steps = 500 if not part else max(steps, 100 * int(share / per_step / 100))
            method = probdl.GAN(
                discriminator=discriminator,
                loss="hinge",
                steps=steps,
                optimizer=slow_adam,
                learning_rate=2e-4,
                discriminator_learning_rate=4e-4,
                ema=0.999,
                checkpoint=folder,
                every=1_000_000,
            )
            start = time.perf_counter()
            fit = probdl.infer(model, train, method=method, seed=0)
            taken += time.perf_counter() - start
            per_step = taken / steps
            if part:
                shown.append((steps, fit.predict(64)["x"][0, 0]))
            print(steps, f"{taken:.0f} s", *fit.diagnose(), flush=True)
    figure, axes = plt.subplots(1, CHECKPOINTS + 1, figsize=(4 * (CHECKPOINTS + 1), 4.4))
    for ax, (done, x) in zip(axes, [(0, test[:64]), *shown], strict=True):
        plot_images(x, ax=ax)
        ax.set_title(f"after {done:,} steps" if done else "held-out images")
    figure.tight_layout()
    figure.savefig(RESULTS / "gan_images.png", dpi=60)
    vae = VAE.mlp((28, 28), latent_dim=20, hidden=400)
    decay = functools.partial(torch.optim.AdamW, weight_decay=0.1)
    by_svi = probdl.SVI(epochs=200, batch_size=128, learning_rate=1e-3, optimizer=decay)
    black = torch.bernoulli(images, generator=torch.Generator().manual_seed(0))
    vae_fit = probdl.infer(vae, black[:8000], method=by_svi, seed=0)
    rng = np.random.default_rng(0)
    means = vae_fit.decode(rng.normal(size=(2000, 20)))["x"]
    drawn = fit.predict(2000)["x"][0, 0]
    samples = {
        "other data": (train[:2000], black[:2000]),
        "GAN": (drawn, rng.random(drawn.shape) < drawn),
        "VAE": (means, rng.random(means.shape) < means),
    }
    rows = {}
    for name, (grey, binary) in samples.items():
        for kind, x, held in (("grey", grey, test), ("binary", binary, black[8000:])):
            x = np.asarray(x, dtype=np.float32)
            against = ConvNet((28, 28), channels=(16, 32), sizes=(1,), activation=leaky)
            mmd = probdl.mmd_test(held, x, max_rows=1000, seed=1)
            classified = probdl.classifier_test(held, x, against, seed=1)
            rows[f"{name}, {kind}"] = {
                "mmd2": mmd.statistic, "mmd_p": mmd.p_value, "bandwidth": mmd.scale,
                "accuracy": classified.statistic, "accuracy_p": classified.p_value,
            }  # fmt: skip
            print(name, kind, mmd, classified, flush=True)
    return {
        "train_s": taken,
        "steps": steps,
        "js": repr(fit.divergence(test)),
        "findings": [f.check for f in fit.diagnose()],
        "samples": rows,
    }


def write(results: dict[str, Any]) -> None:
    """Write the results as tables."""
    images = results["digits"]
    lines = [
        f"Measured by `make bench-gan` on {os.cpu_count()} cores with torch {torch.__version__}.",
        "",
        "One training step of generator and discriminator, probdl / hand-written eager PyTorch. "
        "All recurring costs of a run are included, one-time costs are not:",
        "",
        "| networks | probdl / PyTorch | probdl, ms | PyTorch, ms |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {r['ratio']:.2f} | {r['ours_ms']:.2f} | {r['pytorch_ms']:.2f} |"
        for name, r in results["step"].items()
    ]
    lines += [
        "",
        f"A mixture of eight normal distributions with standard deviation {SPREAD} on a circle of "
        "radius 2: 4,000 rows of data, and 4,000 draws from a generator 4-128-128-128-2:",
        "",
        "| loss | seed | modes covered | share of draws within 3 sd of a mode | seconds "
        "| findings |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['loss']} | {r['seed']} | {r['modes']} | {r['near']:.3f} | {r['seconds']:.0f} | "
        f"{', '.join(r['findings']) or '-'} |"
        for r in results["rings"]
    ]
    lines += [
        "",
        "![data and draws on the ring](gan_ring.png)",
        "",
        f"MNIST in random order: {images['train_s']:.0f} seconds of training ({images['steps']:,} "
        "steps) on 8,000 images, evaluated on 2,000 held-out images. Jensen-Shannon divergence, "
        f"estimated with a newly trained discriminator: {images['js']}. Findings: "
        f"{', '.join(images['findings']) or 'none'}.",
        "",
        "![draws at five checkpoints](gan_images.png)",
        "",
        "Two-sample tests against the held-out images, on grey images and on binary images whose "
        "pixels are drawn with their grey values as probabilities. The VAE was fitted to binary "
        "images, and its grey images are its means. *Other data*, a part of the training images, "
        "are the baseline:",
        "",
        "| sample | MMD² | p-value | classifier accuracy | p-value |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {r['mmd2']:.4f} | {r['mmd_p']:.3f} | {r['accuracy']:.3f} | "
        f"{r['accuracy_p']:.2g} |"
        for name, r in images["samples"].items()
    ]
    (RESULTS / "gan.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    shared = os.environ.get("PROBDL_SHARED")
    if not shared:
        raise SystemExit("Set PROBDL_SHARED to the folder that contains MNIST's images.")
    run("gan", {"step": step, "rings": rings, "digits": lambda: digits(Path(shared))}, write)


if __name__ == "__main__":
    main()
