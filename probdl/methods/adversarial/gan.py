"""Adversarial training: the settings of ``GAN``, and the fit that it returns."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from probdl.compile.step import Parameters
from probdl.errors import ModelError
from probdl.methods.adversarial.checks import (
    COVERAGE_ROWS_MAX,
    check_coverage,
    check_game,
    returns_probabilities,
)
from probdl.methods.adversarial.losses import LOSSES, Critic, normalise_spectrally
from probdl.methods.adversarial.training import RECORDED, AdversarialTraining, Plan
from probdl.methods.base import Method
from probdl.methods.guide_sites import no_guide
from probdl.methods.training.checkpoint import checkpoint_of
from probdl.methods.training.minibatch import Batches, LoaderBatches, PlateBatches
from probdl.methods.training.optimizers import ScheduledOptimizer, check_optimizer, check_schedule
from probdl.methods.training.trainable import Trainable
from probdl.model.advice import explained
from probdl.model.program import Program
from probdl.model.sites import Structure, data_plate, discover
from probdl.results.adversarial import AdversarialFit
from probdl.results.fit import Fit
from probdl.util.isolation import evaluation
from probdl.util.ranks import Ranks, current_ranks
from probdl.util.seeds import stream
from probdl.util.settings import check_path, is_real

__all__ = ["GAN"]

DEFAULT_STEPS = 5000
DEFAULT_BATCH_SIZE = 64

adam = functools.partial(torch.optim.Adam, betas=(0.5, 0.999))
"""Adam with less momentum: with more, generator and discriminator tend to oscillate."""


@dataclass(frozen=True, repr=False)
class GAN(Method, name="gan"):
    r"""Adversarial training of a generator against a discriminator.

    .. math:: \min_G \max_D V(D, G) = E_{x \sim p_{data}}[\log D(x)]
        + E_{z \sim p(z)}[\log(1 - D(G(z)))] \qquad\text{(Eqs. 3 to 6)}

    The model is a Pyro program in which ``x`` is a deterministic function of latent noise, so that
    it can be sampled but has no density: ``pyro.deterministic("x", G(z), event_dim=...)`` inside
    the data plate. The argument ``x`` holds the data::

        def model(x=None, size=1):
            with pyro.plate("data", len(x) if x is not None else size):
                z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
                return pyro.deterministic("x", generator(z), event_dim=1)

    Networks train in their own dtype. ``fit.predict(num_samples)`` draws from the generator, and
    ``fit.divergence(x)`` estimates how far its draws are from data, with a new discriminator.
    ``stats`` holds for each step ``discriminator_loss``, ``generator_loss``, ``d_real`` and
    ``d_fake`` (the means of D(x) and D(G(z))) and ``value`` (the value function in nats; for
    ``"wasserstein"`` and ``"hinge"`` the mean difference of the critic), and further ``params``,
    ``discriminator`` (the trained module) and ``engine`` as for :class:`SVI`.

    Args:
        discriminator: a module that maps x (n, *shape) to logits (n,) or (n, 1), without a sigmoid
            at its end. A copy of it is trained.
        loss: ``"minimax"`` (Eq. 6), ``"non_saturating"``, ``"wasserstein"`` with a gradient
            penalty, or ``"hinge"`` with spectral normalisation of the discriminator.
            Default: ``"non_saturating"``.
        steps: number of steps of the generator. None means 5,000, or the number that follows from
            ``epochs``. Default: None.
        epochs: number of passes through the data, instead of ``steps``. Default: None.
        batch_size: number of rows of data, and of draws, in each step; None means 64. A DataLoader
            as the model's only argument has its own: rows are read from it in minibatches. Under
            ``torchrun``, the processes divide the rows of each batch. Default: None.
        discriminator_steps: number of steps of the discriminator for each step of the generator.
            Default: 1.
        optimizer: optimizer of the generator: a class of ``torch.optim``, or its name.
            Default: Adam with betas=(0.5, 0.999).
        learning_rate: initial learning rate of the generator. Default: 0.001.
        discriminator_optimizer: optimizer of the discriminator; None means the same. Default: None.
        discriminator_learning_rate: initial learning rate of the discriminator; None means the
            same. Default: None.
        schedule: schedule of both learning rates, as in :class:`SVI`. Default: ``"constant"``.
        gradient_penalty: weight of the penalty on slopes above one in ``"wasserstein"``.
            Default: 10.0.
        ema: if positive, the fit holds an exponential moving average of the generator's weights
            over the steps, of which this share is kept at each step; with 0, the last weights.
            Default: 0.0.
        site: name of the deterministic site, and of the argument, that is x. None finds it.
            Default: None.
        checkpoint: a folder in which the training is saved. After a kill the same call resumes
            there and gives the same result; a finished training continues to a larger number of
            steps (with a constant learning rate). Default: None.
        every: number of steps between checkpoints, rounded up to a multiple of 100. Default: 1000.
        engine: ``"auto"`` for traced steps, ``"eager"`` for the losses without tracing.
            Default: ``"auto"``.

    Raises:
        SettingError: a setting is out of range, or the discriminator returns probabilities.
        ModelError: no deterministic site has the name and the shape of an argument.

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

    takes_loader: ClassVar[bool] = True
    trains_networks: ClassVar[bool] = True
    fit_type: ClassVar[type[Fit]] = AdversarialFit

    discriminator: nn.Module | None = None
    loss: str = "non_saturating"
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
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
        check_path(type(self).__name__, checkpoint=self.checkpoint)
        if not isinstance(self.discriminator, nn.Module):
            self._refuse(
                "discriminator", "must be a module from x to logits, such as probdl.nn.MLP"
            )
        self._check_int(discriminator_steps=1, every=1)
        if self.batch_size is not None:
            self._check_int(batch_size=2)
        for setting in ("steps", "epochs"):
            if getattr(self, setting) is not None:
                self._check_int(**{setting: 1})
        if self.steps is not None and self.epochs is not None:
            self._refuse("epochs", "cannot be combined with steps; pass one of them")
        self._check_choice(loss=LOSSES, engine=("auto", "eager"))
        self._check_real(learning_rate=(0, math.inf), gradient_penalty=(0, math.inf))
        if not (is_real(self.ema) and 0 <= self.ema < 1):
            self._refuse("ema", "must be at least 0 and below 1")
        self._make_plain(["ema"])
        if self.discriminator_learning_rate is not None:
            self._check_real(discriminator_learning_rate=(0, math.inf))
        for setting, check in (
            ("optimizer", check_optimizer),
            ("discriminator_optimizer", check_optimizer),
            ("schedule", check_schedule),
        ):
            value = getattr(self, setting)
            if value is None and setting == "discriminator_optimizer":
                continue  # that of the generator
            if wrong := check(value):
                self._refuse(setting, wrong)
        if self.site is not None and not isinstance(self.site, str):
            self._refuse("site", "must be the name of a deterministic site, or None")

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Train generator and discriminator."""
        program = program.to(_networks_dtype(program, self.discriminator))
        structure = discover(program)
        site, index = _find_site(program, structure, self.site)
        ranks = current_ranks()
        batches = self._batches(program, structure, ranks)
        discriminator = copy.deepcopy(self.discriminator)
        assert discriminator is not None
        discriminator.to(program.dtype).train()
        with explained("The discriminator, at the data,"):
            probabilities = returns_probabilities(discriminator, program.tensors()[index])
        if probabilities:
            self._refuse(
                "discriminator",
                "must return logits, but it returns probabilities: remove the sigmoid at its end, "
                "which the losses contain where they need it",
            )
        if self.loss == "hinge":
            with torch.random.fork_rng(devices=[]):
                normalise_spectrally(discriminator)
        with evaluation(dtype=program.dtype):
            generator = Trainable(program, program.companion(no_guide, copied=False), structure)
            if not generator.leaves:
                raise ModelError(
                    f"The model '{program.name}' has no parameter to train. Register its network "
                    "with pyro.module, or pass a module as the model."
                )
            critic = Critic(discriminator)
            names = [*critic.names, *generator.names]
            plan = replace(self._plan(program, names, batches.per_epoch, seed), ranks=ranks)
            training = AdversarialTraining(generator, critic, site, index, batches, plan)
            training.run(progress)
            training.write_discriminator()
            params = generator.finish(training.generator_weights())
        for module in program.modules:
            module.eval()
        structure = structure.with_values(params)
        draws = {s.name: s.value.numpy()[None, None] for s in structure.of("param")}
        recorded = {name: training.records[: training.done, i] for i, name in enumerate(RECORDED)}
        stats = {
            **recorded,
            "params": {name: value.numpy() for name, value in params.items()},
            "engine": training.engine,
            "site": site,
            "discriminator": discriminator.eval(),
        }
        fit = AdversarialFit(self, program, structure, draws, stats, seed)
        findings = [*training.findings, *check_game(self.loss, recorded)]
        if not training.failed:
            rows = _sample_rows(batches, index, program, seed)
            findings += check_coverage(fit, rows, site, self.loss)
        return replace(fit, findings=findings)

    def _divides_batches(self, args: Sequence[Any]) -> bool:
        """Return True: there are always minibatches."""
        return True

    def _batches(self, program: Program, structure: Structure, ranks: Ranks) -> Batches:
        if program.loader is None:
            size = DEFAULT_BATCH_SIZE if self.batch_size is None else self.batch_size
            return PlateBatches(program, structure, size, last=False, ranks=ranks)
        if self.batch_size is not None:
            self._refuse("batch_size", "is the DataLoader's; leave it out")
        return LoaderBatches(program, structure, ranks)

    def _plan(self, program: Program, names: Sequence[str], per_epoch: int, seed: int) -> Plan:
        """Make the plan of a training of these parameters, with so many batches per epoch."""
        steps = self.steps or DEFAULT_STEPS
        if self.epochs is not None:
            steps = max(1, self.epochs * per_epoch // self.discriminator_steps)
        for_discriminator = functools.partial(
            self._optimizer, self.discriminator_optimizer, self.discriminator_learning_rate
        )
        for_generator = functools.partial(self._optimizer, None, None)
        return Plan(
            steps,
            self.discriminator_steps,
            self.loss,
            self.gradient_penalty,
            self.ema,
            (for_discriminator, for_generator),
            "eager" if self.engine == "eager" else "graph",
            seed,
            checkpoint_of(self, seed, names, program),
        )

    def _optimizer(
        self, optimizer: Any, rate: float | None, parameters: Parameters, names: Sequence[str]
    ) -> ScheduledOptimizer:
        """Make an optimizer; None means that of the generator."""
        return ScheduledOptimizer(
            parameters,
            names,
            optimizer or self.optimizer,
            rate or self.learning_rate,
            self.schedule,
            None,
            False,
        )


def _find_site(program: Program, structure: Structure, wanted: str | None) -> tuple[str, int]:
    """Find the deterministic site that the generator draws, and the position of its data.

    Raises:
        ModelError: there is none, there are several, or site and data differ in shape.
    """
    data = program.named_data()
    shapes = {name: tuple(t.shape) for name, t in data}
    found = {s.name: s for s in structure.of("deterministic")}
    names = [wanted] if wanted is not None else [n for n in found if n in shapes]
    if len(names) != 1 or names[0] not in found or names[0] not in shapes:
        raise ModelError(
            f"The model '{program.name}' draws {_listed(found)} and has the arguments "
            f"{_listed(shapes)}, but adversarial training compares a deterministic site with the "
            "argument of the same name. Write pyro.deterministic('x', ..., event_dim=...) in a "
            "model with the argument x, and pass site= if there are several."
        )
    (name,) = names
    if found[name].shape != shapes[name]:
        raise ModelError(
            f"The model '{program.name}' draws '{name}' of the shape {found[name].shape}, and "
            f"the data have the shape {shapes[name]}. Both must be (rows, *shape of a row)."
        )
    data_plate(program, structure)
    return name, [n for n, _ in data].index(name)


def _sample_rows(batches: Batches, index: int, program: Program, seed: int) -> Tensor:
    """Return a random sample of the rows of the data, or all of them if there are few."""
    if program.loader is None:
        return program.tensors()[index]
    chosen = torch.randperm(batches.size)[:COVERAGE_ROWS_MAX].sort().values
    found, start = [], 0
    for batch in batches.epoch(lambda: stream(seed, "coverage"), 0):
        rows = batch[index]
        here = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
        found.append(rows[here])
        start += len(rows)
    return torch.cat(found)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _networks_dtype(program: Program, discriminator: Any) -> torch.dtype:
    """Return the dtype of the model's modules, or of the discriminator if there are none."""
    if program.modules:
        return program.training_dtype
    return next((p.dtype for p in discriminator.parameters()), torch.float64)
