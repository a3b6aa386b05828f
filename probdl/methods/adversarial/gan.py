"""Adversarial training: a generator learns from a discriminator that learns to find it out."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor, nn

from probdl.compile.step import BLOCK, Parameters, choose_step
from probdl.errors import ModelError
from probdl.findings import COVERED_MIN, SATURATED_MIN, VALUE_DISTANCE, Finding
from probdl.methods.adversarial.losses import (
    LOSSES,
    Critic,
    DiscriminatorLoss,
    GeneratorLoss,
    normalised,
)
from probdl.methods.base import Method
from probdl.methods.training.checkpoint import checkpoint_of
from probdl.methods.training.loop import stopped_at
from probdl.methods.training.minibatch import PlateBatches
from probdl.methods.training.optimizers import Training, check_optimizer, check_schedule
from probdl.methods.variational.guides import no_guide
from probdl.methods.variational.objective import Trainable, first_not_finite
from probdl.model.program import Program
from probdl.model.sites import Structure, data_plate, discover
from probdl.results.fit import Fit
from probdl.util.clock import look
from probdl.util.isolation import evaluation
from probdl.util.openmp import Waits, waits
from probdl.util.progress import bar
from probdl.util.seeds import stream

__all__ = ["GAN"]

_STEPS = 5000
_EQUILIBRIUM = -math.log(4.0)  # of the value function, where draws and data cannot be told apart
_NEIGHBOURS = 5
_ROWS = 1000  # that mode collapse is looked for in
_CRITICS = ("wasserstein", "hinge")  # losses without probabilities
_TOLD = ("discriminator_loss", "d_real", "d_fake", "value", "generator_loss")

adam = functools.partial(torch.optim.Adam, betas=(0.5, 0.999))
"""Adam with less momentum, without which two players circle round each other."""


@dataclass(frozen=True, repr=False)
class GAN(Method, name="gan"):
    r"""Train a generator against a discriminator.

    .. math:: \min_G \max_D V(D, G) = E_{x \sim p_{data}}[\log D(x)]
        + E_{z \sim p(z)}[\log(1 - D(G(z)))] \qquad\text{(Eqs. 3 to 6)}

    The model is a Pyro program whose ``x`` is a deterministic function of latent noise, so that
    it can be drawn but has no density: ``pyro.deterministic("x", G(z), event_dim=...)`` inside
    the data plate, where the argument ``x`` holds the data::

        def model(x=None, size=1):
            with pyro.plate("data", len(x) if x is not None else size):
                z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
                return pyro.deterministic("x", generator(z), event_dim=1)

    Networks train in their own dtype. ``fit.predict(num_samples)`` draws from the generator, and
    ``fit.divergence(x)`` measures by a discriminator of its own how far it is from data.
    ``stats`` holds for each step ``discriminator_loss``, ``generator_loss``, ``d_real`` and
    ``d_fake`` (the means of D(x) and D(G(z))) and ``value`` (the value function in nats; for
    ``"wasserstein"`` and ``"hinge"`` the mean difference of the critic), ``params``,
    ``discriminator`` (the module, as trained), and ``engine`` as for :class:`SVI`.

    Args:
        discriminator: maps x (n, *shape) to logits (n,) or (n, 1); it is copied, not changed.
        loss: ``"minimax"`` (Eq. 6), ``"non_saturating"``, ``"wasserstein"`` with a gradient
            penalty, or ``"hinge"`` with spectral normalisation of the discriminator.
        steps: how many steps of the generator; None means 5,000, or what ``epochs`` makes.
        epochs: how many times to go through the data, instead of ``steps``.
        batch_size: how many rows of data, and draws, each step takes.
        discriminator_steps: how many steps the discriminator takes for one of the generator.
        optimizer: of the generator: a class of ``torch.optim``, or its name.
        learning_rate: of the generator, at the start.
        discriminator_optimizer: of the discriminator; None is the same.
        discriminator_learning_rate: of the discriminator; None is the same.
        schedule: of both learning rates, as in :class:`SVI`.
        gradient_penalty: how much a slope above one counts in ``"wasserstein"``.
        ema: the fit holds an average of the generator's weights over the steps, this share of it
            kept at each step; 0 takes the last weights.
        site: the name of the deterministic site, and of the argument, that is x; None finds it.
        checkpoint: a folder, from which a killed run goes on to the same result, and a finished
            one to more steps (with a constant learning rate).
        every: how many steps lie between checkpoints, rounded up to whole hundreds.
        engine: ``"auto"`` for traced steps, ``"eager"`` for the losses as they are.

    Raises:
        SettingError: a setting is out of range.
        ModelError: no deterministic site bears the name and the shape of an argument.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> generator = torch.nn.Linear(1, 1)
        >>> def model(x=None, size=1):
        ...     pyro.module("generator", generator)
        ...     with pyro.plate("data", len(x) if x is not None else size):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.deterministic("x", generator(z), event_dim=1)
        >>> method = probdl.GAN(discriminator=probdl.nn.MLP([1, 8, 1]), steps=200)
        >>> fit = probdl.infer(model, torch.randn(500, 1), method=method, seed=1)
        >>> fit.predict(10)["x"].shape
        (1, 1, 10, 1)

    Source: Goodfellow et al. (2014); Arjovsky, Chintala and Bottou (2017); Gulrajani et al.
    (2017); Miyato et al. (2018).
    """

    discriminator: nn.Module | None = None
    loss: str = "non_saturating"
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 64
    discriminator_steps: int = 1
    optimizer: Any = adam
    learning_rate: float = 1e-3
    discriminator_optimizer: Any = None
    discriminator_learning_rate: float | None = None
    schedule: str | Callable[..., Any] = "constant"
    gradient_penalty: float = 10.0
    ema: float = 0.0
    site: str | None = None
    checkpoint: str | os.PathLike[str] | None = None
    every: int = 1000
    engine: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.discriminator, nn.Module):
            self._refuse("discriminator", "must be a module from x to logits, such as nn.MLP")
        self._check_int(batch_size=2, discriminator_steps=1, every=1)
        for setting in ("steps", "epochs"):
            if getattr(self, setting) is not None:
                self._check_int(**{setting: 1})
        if self.steps is not None and self.epochs is not None:
            self._refuse("epochs", "and steps both say how long to train: give one")
        self._check_choice(loss=LOSSES, engine=("auto", "eager"))
        self._check_real(learning_rate=(0, math.inf), gradient_penalty=(0, math.inf))
        if not 0 <= self.ema < 1:
            self._refuse("ema", "must be at least 0 and below 1")
        if self.discriminator_learning_rate is not None:
            self._check_real(discriminator_learning_rate=(0, math.inf))
        for setting, check in (
            ("optimizer", check_optimizer),
            ("discriminator_optimizer", check_optimizer),
            ("schedule", check_schedule),
        ):
            value = getattr(self, setting)
            if value is not None and (wrong := check(value)):
                self._refuse(setting, wrong)

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Train generator and discriminator."""
        program = program.to(_dtype(program, self.discriminator))
        structure = discover(program)
        site, index = self._find(program, structure)
        batches = PlateBatches(program, structure, self.batch_size, last=False)
        critic = copy.deepcopy(self.discriminator)
        assert critic is not None
        critic.to(program.dtype).train()
        if self.loss == "hinge":
            with torch.random.fork_rng(devices=[]):
                normalised(critic)
        with evaluation(dtype=program.dtype):
            generator = Trainable(program, program.companion(no_guide, copied=False), structure)
            if not generator.leaves:
                raise ModelError(
                    f"the model '{program.name}' has no parameter to train. Register its network "
                    "by pyro.module, or pass a module as the model."
                )
            run = _Run(self, program, generator, Critic(critic), site, index, batches, seed)
            run.train(progress)
            params = generator.finish(run.generator_weights())
        for module in program.modules:
            module.eval()
        structure = structure.with_values(params)
        draws = {s.name: s.value.numpy()[None, None] for s in structure.of("param")}
        told = {name: run.told[: run.done, i] for i, name in enumerate(_TOLD)}
        stats = {
            **told,
            "params": {name: value.numpy() for name, value in params.items()},
            "engine": run.engine,
            "site": site,
            "discriminator": critic.eval(),
        }
        fit = Fit(self, program, structure, draws, stats, seed)
        findings = [*run.findings, *_judge(self, told)]
        if not any(f.check == "loss_not_finite" for f in findings):
            findings += _collapse(fit, program.tensors()[index], site)
        return replace(fit, findings=findings)

    def _find(self, program: Program, structure: Structure) -> tuple[str, int]:
        """Find the deterministic site that is drawn, and the data that it is compared with."""
        data = program.named_data()
        shapes = {name: tuple(t.shape) for name, t in data}
        found = {s.name: s for s in structure.of("deterministic")}
        names = [self.site] if self.site is not None else [n for n in found if n in shapes]
        if len(names) != 1 or names[0] not in found or names[0] not in shapes:
            raise ModelError(
                f"the model '{program.name}' draws {_listed(found)} and has the arguments "
                f"{_listed(shapes)}: adversarial training compares a deterministic site with the "
                "argument of its name. Write pyro.deterministic('x', ..., event_dim=...) in a "
                "model with the argument x, and give site= if there are several."
            )
        (name,) = names
        if found[name].shape != shapes[name]:
            raise ModelError(
                f"the model '{program.name}' draws '{name}' of the shape {found[name].shape}, and "
                f"the data have {shapes[name]}. Both must be (rows, *shape of a row)."
            )
        data_plate(program, structure)
        return name, [n for n, _ in data].index(name)


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _dtype(program: Program, discriminator: Any) -> torch.dtype:
    """Take the dtype of the networks; a function's own are not known, but the opponent's are."""
    if program.modules:
        return program.training_dtype
    return next((p.dtype for p in discriminator.parameters()), torch.float64)


@dataclass
class _State:
    """One player: its weights, its optimizer, its step."""

    parameters: Parameters
    training: Training
    step: Any = None


@dataclass
class _Run:
    """One training run."""

    method: GAN
    program: Program
    generator: Trainable
    critic: Critic
    site: str
    index: int
    batches: PlateBatches
    seed: int
    done: int = 0
    started: int = 0
    engine: str = ""
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        method = self.method
        self.steps = method.steps or _STEPS
        if method.epochs is not None:
            per_step = method.discriminator_steps
            self.steps = max(1, method.epochs * self.batches.per_epoch // per_step)
        self.told: NDArray[np.float64] = np.full((self.steps, len(_TOLD)), np.nan)
        made = []
        for names, leaves, optimizer, rate in (
            (self.critic.names, self.critic.leaves, method.discriminator_optimizer,
             method.discriminator_learning_rate),
            (self.generator.names, self.generator.leaves, None, None),
        ):  # fmt: skip
            parameters = Parameters(leaves)
            training = Training(
                parameters,
                names,
                optimizer or method.optimizer,
                rate or method.learning_rate,
                method.schedule,
                None,
                False,
            )
            made.append(_State(parameters, training))
        self.opponent, self.player = made
        self.average = self.player.parameters.flat.clone()
        self.good = (0, self.snapshot())
        game = (self.generator, self.critic, self.draw, self.index, method.loss,
                method.gradient_penalty)  # fmt: skip
        self.losses = (DiscriminatorLoss(*game), GeneratorLoss(*game))
        self.checkpoint = checkpoint_of(
            method, self.seed, [*self.critic.names, *self.generator.names], self.program.tensors()
        )

    def draw(self, weights: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """Draw x from the generator with these weights."""
        program = self.program.with_tensors(tensors)
        with self.program.replaced(self.generator.swap(weights)):
            trace = poutine.trace(program.handled()).get_trace(*program.args, **program.kwargs)
        nodes: Any = trace.nodes
        return nodes[self.site]["value"]

    def data(self, batch: Sequence[Tensor], of: _State) -> list[Tensor]:
        """Join a minibatch and the weights of the other player."""
        return [*batch, *(v.detach() for v in of.parameters.values)]

    def prepare(self, batch: Sequence[Tensor]) -> None:
        """Compile the steps of both."""
        pairs = ((self.opponent, self.player), (self.player, self.opponent))
        for (state, other), loss in zip(pairs, self.losses, strict=True):
            with torch.random.fork_rng(devices=[]):
                state.step, findings = choose_step(
                    loss,
                    state.parameters,
                    self.data(batch, other),
                    "eager" if self.method.engine == "eager" else self.engine or "graph",
                    self.seed,
                )
            if not self.findings:
                self.findings += findings
        self.engine = self.player.step.engine

    def train(self, progress: bool | None) -> None:
        """Take all steps."""
        self.load()
        per_step = self.method.discriminator_steps
        with bar(self.steps, "training", progress) as shown, waits() as threads:
            shown.update(self.done)
            rows = self.rows(self.done * per_step)
            try:
                while self.done < self.steps:
                    if not self.advance([next(rows) for _ in range(per_step)], threads):
                        break
                    threads.step()
                    if self.done % BLOCK == 0 or self.done == self.steps:
                        self.end_block()
                        shown.update(self.done - shown.n)
                        last = self.told[max(0, self.done - BLOCK) : self.done].mean(0)
                        shown.set_postfix(value=f"{last[3]:.3f}", refresh=False)
            except KeyboardInterrupt as stop:
                if not self.done:
                    raise
                self.findings.append(stopped_at(stop, self.done, self.steps))

    def rows(self, start: int) -> Any:
        """Go through minibatches from some number on, epoch after epoch."""
        epoch, skip = divmod(start, self.batches.per_epoch)
        while True:
            yield from self.batches.epoch(
                functools.partial(stream, self.seed, "epoch", epoch), skip
            )
            epoch, skip = epoch + 1, 0

    def advance(self, batches: Sequence[Sequence[Tensor]], threads: Waits) -> bool:
        """Take one step of both players; tell whether all is well."""
        look()
        if self.player.step is None:
            self.prepare(batches[0])
        threads.use(self.opponent.step.parallel or self.player.step.parallel)
        t = self.done
        if t % BLOCK == 0 or t == self.started:
            torch.default_generator.manual_seed(stream(self.seed, "block", t // BLOCK))
        done = t / self.steps
        for batch in batches:
            told = self.opponent.step(self.data(batch, self.player))
            if not np.isfinite(told).all():
                return self.failed("discriminator")
            self.opponent.training.step(done)
        loss = self.player.step(self.data(batches[-1], self.opponent))
        if not math.isfinite(loss):
            return self.failed("generator")
        if t < BLOCK and t & (t - 1) == 0:
            self.good = (t, self.snapshot())
        self.player.training.step(done)
        flat, keep = self.player.parameters.flat, self.method.ema
        if keep:  # less at first, when the average would be that of the start
            self.average.lerp_(flat, 1 - min(keep, (1 + t) / (10 + t)))
        self.told[t] = [*told, loss]
        self.done = t + 1
        return True

    def failed(self, what: str) -> bool:
        """Go back to the last good state; there is none before the first step."""
        culprit = "its weights are finite, so it is the data or the draws"
        for names, state, player in (
            (self.critic.names, self.opponent, "discriminator"),
            (self.generator.names, self.player, "generator"),
        ):
            if (name := first_not_finite(names, state.parameters.values)) is not None:
                culprit = f"the weight '{name}' of the {player} is not finite"
                break
        message = f"the loss of the {what} was not finite at step {self.done}: {culprit}."
        remedy = f"Lower learning_rate. {_other_loss(self.method)}".rstrip()
        if not self.done:
            raise ModelError(f"{message} {remedy}")
        step, (critic, generator, average) = self.good
        self.opponent.parameters.flat.copy_(critic)
        self.player.parameters.flat.copy_(generator)
        self.average.copy_(average)
        self.findings.append(
            Finding(
                "error",
                "loss_not_finite",
                f"{message} The fit holds the last good state, of step {step}.",
                remedy,
            )
        )
        return False

    def snapshot(self) -> tuple[Tensor, ...]:
        """Copy the weights of both players."""
        flats = (self.opponent.parameters.flat, self.player.parameters.flat, self.average)
        return tuple(flat.clone() for flat in flats)

    def end_block(self) -> None:
        """Keep the state of the block that just ended."""
        self.good = (self.done, self.snapshot())
        if self.checkpoint is None:
            return
        if self.done == self.steps or self.done % self.checkpoint.every == 0:
            self.checkpoint.write(
                {
                    "done": self.done,
                    "engine": self.engine,
                    "weights": list(self.good[1]),
                    "told": torch.from_numpy(self.told[: self.done]),
                    "buffers": list(self.losses[0].buffers),
                    "training": [self.opponent.training.state(), self.player.training.state()],
                }
            )

    def load(self) -> None:
        """Take up what a checkpoint holds."""
        state = self.checkpoint.read(self.steps) if self.checkpoint is not None else None
        if state is None:
            return
        self.done = self.started = state["done"]
        self.engine = state["engine"]
        self.told[: self.done] = state["told"][: self.done].numpy()
        flats = (self.opponent.parameters.flat, self.player.parameters.flat, self.average)
        for flat, value in zip(flats, state["weights"], strict=True):
            flat.copy_(value)
        for buffer, value in zip(self.losses[0].buffers, state["buffers"], strict=True):
            buffer.copy_(value)
        self.opponent.training.load(state["training"][0])
        self.player.training.load(state["training"][1])
        self.good = (self.done, self.snapshot())

    def generator_weights(self) -> list[Tensor]:
        """Return the weights that the fit holds; leave those of the critic in its module."""
        with torch.no_grad():
            for leaf, value in zip(
                self.critic.leaves, self.opponent.parameters.values, strict=True
            ):
                leaf.copy_(value)
        if not self.method.ema:
            return self.player.parameters.values
        return self.player.parameters.split(self.average)


def _judge(method: GAN, told: dict[str, NDArray[np.float64]]) -> list[Finding]:
    """Look at how the game stood in the last tenth of the steps."""
    count = max(1, len(told["value"]) // 10)
    real, fake, value = (
        float(told[name][-count:].mean()) if len(told[name]) else math.nan
        for name in ("d_real", "d_fake", "value")
    )
    if method.loss in _CRITICS:
        return []
    if real - fake > SATURATED_MIN:
        return [
            Finding(
                "warning",
                "saturated",
                f"the discriminator is saturated: D(x) is {real:.3f} and D(G(z)) {fake:.3f} at "
                "the end, so it tells all draws from data and the generator learns next to "
                "nothing.",
                "Use loss='wasserstein' or 'hinge', a smaller discriminator, or a lower "
                "discriminator_learning_rate.",
            )
        ]
    if abs(value - _EQUILIBRIUM) > VALUE_DISTANCE:
        return [
            Finding(
                "warning",
                "value_function",
                f"the value function is {value:.3f} at the end, and -2 log 2 = {_EQUILIBRIUM:.3f} "
                "where draws and data cannot be told apart.",
                "Train for longer, or look at fit.divergence(x) on data held out.",
            )
        ]
    return []


def _other_loss(method: GAN) -> str:
    return "" if method.loss in _CRITICS else "Use loss='wasserstein' or 'hinge'. "


def _collapse(fit: Fit, data: Tensor, site: str) -> list[Finding]:
    """Look for data that no draw is near: coverage (Naeem et al., 2020).

    A row of data is covered where a draw lies nearer than its k-th neighbour among the data. Of
    as many draws of the right distribution all but 2^-k are.
    """
    count = min(len(data), _ROWS)
    if count < 10 * _NEIGHBOURS:
        return []
    real = data[torch.randperm(len(data))[:count]].reshape(count, -1).to(torch.float64)
    drawn = torch.as_tensor(fit.predict(num_samples=count)[site]).reshape(count, -1).to(real.dtype)
    radius = torch.cdist(real, real).kthvalue(_NEIGHBOURS + 1, dim=1).values
    covered = float((torch.cdist(real, drawn).min(1).values <= radius).double().mean())
    if covered >= COVERED_MIN:
        return []
    return [
        Finding(
            "warning",
            "mode_collapse",
            f"only {covered:.0%} of the data have a draw in their neighbourhood, where "
            f"{1 - 2.0**-_NEIGHBOURS:.0%} would: the generator leaves parts of the data out, or "
            "its draws are of another kind.",
            _other_loss(fit.method) + "A larger batch_size or longer training may help too.",
        )
    ]
