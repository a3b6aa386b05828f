"""SVI and VAEs: `make bench-svi`. PROBDL_SHARED must name the folder of images and posteriors.

Writes results/svi.json, results/svi.md and two grids of images. Every comparison is a ratio of two
times measured alternately in the same run.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn import functional

import probdl
from benchmarks import svi_accuracy
from benchmarks.models import SCHOOLS
from probdl.compile.step import Parameters, choose_step
from probdl.methods.training.optimizers import ScheduledOptimizer
from probdl.methods.variational.guides import make_guide
from probdl.methods.variational.objective import Objective, resolve_elbo
from probdl.model.program import Program
from probdl.model.sites import discover
from probdl.models import VAE, eight_schools, linear_regression
from probdl.plots import plot_images, plot_latent, plot_reconstructions
from probdl.util.isolation import evaluation, isolated
from tests.reference.files import read, scalars
from tests.reference.posteriors import POSTERIORS

RESULTS = Path(__file__).parent / "results"
EPOCHS = 200


class Plain(nn.Module):
    """The VAE 784-400-20 in hand-written PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(784, 400)
        self.mean = nn.Linear(400, 20)
        self.log_variance = nn.Linear(400, 20)
        self.back = nn.Linear(20, 400)
        self.out = nn.Linear(400, 784)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.into(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        logits = self.out(functional.relu(self.back(z)))
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return cross_entropy + kl


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int = 400) -> dict[str, float]:
    """Return the median seconds of each call; the calls alternate."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[rounds // 10 :]) for name, taken in times.items()}


def vae_step() -> dict[str, Any]:
    """Time one step of the VAE with probdl, hand-written PyTorch and Pyro."""
    torch.manual_seed(0)
    x = (torch.rand(128, 784) < 0.2).float()
    plain = Plain()
    adam = torch.optim.Adam(plain.parameters(), lr=1e-6)

    def by_hand() -> float:
        adam.zero_grad()
        loss = plain.loss(x)
        loss.backward()
        adam.step()
        return loss.item()

    calls: dict[str, Callable[[], Any]] = {"PyTorch": by_hand}
    compiled: dict[str, float] = {}
    program = Program(VAE.mlp((784,)), (x,), dtype=torch.float32)
    structure = discover(program)
    for elbo in ("mean_field", "trace"):
        with isolated(0), evaluation(dtype=torch.float32):
            guide = make_guide(program, structure, None, {})
            estimator = resolve_elbo(elbo, 1, structure)
            objective = Objective(program, guide, structure, estimator)
            parameters = Parameters(objective.leaves)
            data = program.tensors()
            training = ScheduledOptimizer(
                parameters, objective.names, "Adam", 1e-6, "constant", None, False
            )
            for engine in ("graph", "inductor"):
                begun = time.perf_counter()
                step, _ = choose_step(objective, parameters, data, engine, 0)
                compiled[engine] = time.perf_counter() - begun
                assert step.engine == engine

                def ours(step: Any = step, data: Any = data, training: Any = training) -> float:
                    loss = step(data)
                    training.step(0.0)
                    return loss

                calls[f"ours, {elbo}, {engine}"] = ours
    vae = VAE.mlp((784,))
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-6}), Trace_ELBO())
    calls["Pyro"] = lambda: svi.step(x)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        times = in_turn(calls)
    return {"compile_s": compiled, **{f"{k} ms": v * 1e3 for k, v in times.items()}} | {
        f"{k} / PyTorch": v / times["PyTorch"] for k, v in times.items() if k != "PyTorch"
    }


def schools_step() -> dict[str, Any]:
    """Time one step on eight schools with a mean-field guide, with Pyro and probdl."""
    few, many = 1000, 101_000

    def ours(steps: int) -> float:
        start = time.perf_counter()
        fit = probdl.infer(
            eight_schools, *SCHOOLS, method=probdl.SVI(guide="normal", steps=steps), seed=0
        )
        assert fit.stats["engine"] == "native"
        return time.perf_counter() - start

    ours(few)
    tensors = [torch.as_tensor(a) for a in SCHOOLS]
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        svi = SVI(
            eight_schools, AutoNormal(eight_schools), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()
        )
        svi.step(*tensors)
        pairs = []
        for _ in range(3):
            taken = (ours(many) - ours(few)) / (many - few)
            start = time.perf_counter()
            for _ in range(200):
                svi.step(*tensors)
            pairs.append(((time.perf_counter() - start) / 200, taken))
    ratios = [theirs / mine for theirs, mine in pairs]
    theirs, mine = pairs[ratios.index(statistics.median(ratios))]
    return {"pyro_us": theirs * 1e6, "ours_us": mine * 1e6, "ratio": theirs / mine}


def mnist(shared: Path) -> dict[str, Any]:
    """Train a VAE on 8,000 images; evaluate 2,000 held-out images by importance sampling."""
    with np.load(shared / "data" / "mnist-t10k" / "mnist_t10k.npz") as data:
        rates = torch.from_numpy(data["images"].astype(np.float32) / 255)
        labels = data["labels"]
    images = torch.bernoulli(rates, generator=torch.Generator().manual_seed(0))
    train, test = images[:8000], images[8000:]
    torch.manual_seed(0)
    vae = VAE.mlp((28, 28), latent_dim=20, hidden=400)
    method = probdl.SVI(
        epochs=EPOCHS,
        batch_size=128,
        learning_rate=1e-3,
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=0.1),
    )
    start = time.perf_counter()
    fit = probdl.infer(vae, train, method=method, seed=0)
    trained = time.perf_counter() - start
    start = time.perf_counter()
    evidence = fit.log_evidence(test, num_samples=1000)
    scored = time.perf_counter() - start
    elbo = fit.elbo(test, num_samples=20)
    figure, axes = mpl.pyplot.subplots(1, 2, figsize=(14, 7))
    plot_reconstructions(fit, test[:50], ax=axes[0])
    axes[0].set_title("held-out images, each above its reconstruction")
    plot_images(fit.decode(np.random.default_rng(0).normal(size=(100, 20)))["x"], ax=axes[1])
    axes[1].set_title("new images: p(x = 1 | z) at z from the prior")
    figure.tight_layout()
    figure.savefig(RESULTS / "vae_images.png", dpi=80, bbox_inches="tight")
    ax = plot_latent(fit, test, color=labels[8000:], dims=widest(fit, test))
    ax.figure.savefig(RESULTS / "vae_latent.png", dpi=80, bbox_inches="tight")
    return {
        "architecture": "784-400-20-400-784, ReLU",
        "epochs": EPOCHS,
        "train_s": trained,
        "score_s": scored,
        "log_evidence_per_image": evidence.total / len(test),
        "standard_error": float(evidence.pointwise.std() / len(test) ** 0.5),
        "pareto_k_above_0.7": float((evidence.pareto_k > 0.7).mean()),
        "elbo_per_image": elbo.total / len(test),
        "reconstruction": float(elbo.reconstruction.mean()),
        "kl": float(elbo.kl.mean()),
    }


def widest(fit: Any, x: torch.Tensor) -> tuple[int, int]:
    """Return the two latent dimensions with the largest standard deviation."""
    spread = fit.encode(x)["z"].std(0)
    first, second = np.argsort(spread)[::-1][:2]
    return int(first), int(second)


def posteriors(shared: Path) -> list[dict[str, Any]]:
    """Compare the means of a full-rank guide with all thirteen reference posteriors."""
    rows = []
    method = probdl.SVI(guide="multivariate_normal", steps=50_000, learning_rate=0.02, draws=4000)
    for name, posterior in POSTERIORS.items():
        data, reference, _ = read(shared / "posteriordb", name)
        start = time.perf_counter()
        fit = probdl.infer(posterior.model, *posterior.arguments(data), method=method, seed=1)
        taken = time.perf_counter() - start
        draws = scalars(posterior.parameters(fit.draws, data))
        errors = [abs(draws[k].mean() - v["mean"]) / v["sd"] for k, v in reference.items()]
        rows.append(
            {
                "posterior": name.split("-")[-1],
                "error": float(max(errors)),
                "pareto_k": fit.stats["pareto_k"],
                "seconds": taken,
            }
        )
        print(rows[-1], flush=True)
    return rows


def k_hat() -> dict[str, float]:
    """Return k-hat on the centred eight schools and on a regression."""

    def centred(sigma, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", len(sigma)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = x @ rng.normal(size=5) + 0.5 * rng.normal(size=200)
    method = probdl.SVI(guide="multivariate_normal")
    return {
        "centred eight schools": probdl.infer(
            centred, *SCHOOLS, method=probdl.SVI(guide="normal"), seed=0
        ).stats["pareto_k"],
        "regression": probdl.infer(linear_regression, x, y, method=method, seed=0).stats[
            "pareto_k"
        ],
    }


def write(results: dict[str, Any]) -> None:
    """Write results/svi.json and results/svi.md."""
    (RESULTS / "svi.json").write_text(json.dumps(results, indent=1) + "\n")
    step, schools, images = results["vae_step"], results["schools_step"], results["mnist"]
    right = [r for r in results["posteriors"] if r["error"] <= 0.1]
    lines = [
        f"Measured by `make bench-svi` on {os.cpu_count()} cores with torch {torch.__version__}.",
        "",
        "| quantity | measured |",
        "| --- | --- |",
        "| step of a VAE 784-400-20, batch 128: probdl / hand-written PyTorch, both with the exact "
        "KL term, compiled by Inductor (used for training of 12,000 steps or more) | "
        f"{step['ours, mean_field, inductor / PyTorch']:.2f} |",
        "| the same as a traced graph (used for shorter training) | "
        f"{step['ours, mean_field, graph / PyTorch']:.2f} |",
        "| the same with Monte Carlo estimates of all terms (`Trace_ELBO`): Inductor, graph | "
        f"{step['ours, trace, inductor / PyTorch']:.2f}, "
        f"{step['ours, trace, graph / PyTorch']:.2f} |",
        f"| the same, Pyro / hand-written PyTorch | {step['Pyro / PyTorch']:.2f} |",
        "| step of eight schools, mean-field guide: Pyro / probdl | "
        f"{schools['ratio']:.0f} ({schools['pyro_us']:.0f} µs / {schools['ours_us']:.1f} µs) |",
        "| log p(x) of 2,000 held-out images, K = 1000, nats per image | "
        f"{images['log_evidence_per_image']:.1f} ± {images['standard_error']:.1f} |",
        f"| training of this VAE, {images['epochs']} epochs of 8,000 images, seconds | "
        f"{images['train_s']:.0f} |",
        "| reference posteriors whose means a full-rank guide estimates within 0.1 sd | "
        f"{len(right)} "
        f"of {len(results['posteriors'])} |",
        f"| k-hat of the centred eight schools | {results['k_hat']['centred eight schools']:.2f} |",
        f"| k-hat of a regression | {results['k_hat']['regression']:.2f} |",
        "",
        f"The VAE is {images['architecture']}, AdamW with weight decay 0.1. Its ELBO on the "
        f"held-out images is {images['elbo_per_image']:.1f} (reconstruction "
        f"{images['reconstruction']:.1f}, KL {images['kl']:.1f}); k-hat is above 0.7 for "
        f"{images['pareto_k_above_0.7']:.0%} of them, where the estimate of log p(x) is still a "
        "lower bound.",
        "",
        "![held-out images, reconstructions and new images](vae_images.png)",
        "",
        "A full-rank guide after 50,000 steps, compared with the reference posteriors:",
        "",
        "| posterior | largest error of a mean, in posterior sd | k-hat | seconds |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['posterior']} | {r['error']:.3f} | {r['pareto_k']:.2f} | {r['seconds']:.1f} |"
        for r in results["posteriors"]
    ]
    lines += svi_accuracy.report(results["accuracy"], results["steps_to_elbo"])
    (RESULTS / "svi.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    shared = os.environ.get("PROBDL_SHARED")
    if not shared:
        raise SystemExit("Set PROBDL_SHARED to the folder of images and reference posteriors.")
    mpl.use("Agg")
    warnings.simplefilter("ignore", probdl.FindingWarning)
    RESULTS.mkdir(exist_ok=True)
    parts: dict[str, Callable[[], Any]] = {
        "vae_step": vae_step,
        "schools_step": schools_step,
        "k_hat": k_hat,
        "posteriors": lambda: posteriors(Path(shared)),
        "accuracy": lambda: svi_accuracy.accuracy(Path(shared)),
        "steps_to_elbo": svi_accuracy.steps_to_elbo,
        "mnist": lambda: mnist(Path(shared)),
    }
    wanted = sys.argv[1:] or list(parts)  # the others keep their earlier results
    results: dict[str, Any] = {}
    if len(wanted) < len(parts):
        results = json.loads((RESULTS / "svi.json").read_text())
    for name in wanted:
        results[name] = parts[name]()
        print(name, results[name], flush=True)
    write(results)
    print((RESULTS / "svi.md").read_text())


if __name__ == "__main__":
    main()
