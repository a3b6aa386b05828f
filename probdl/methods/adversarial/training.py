"""Adversarial training: the loop in which a discriminator and a generator take turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from probdl.compile.step import Parameters, Step, choose_step
from probdl.methods.adversarial.checks import suggest_loss
from probdl.methods.adversarial.losses import Critic, DiscriminatorLoss, GeneratorLoss
from probdl.methods.training.checkpoint import Checkpoint, copy_saved
from probdl.methods.training.loop import TrainingLoop
from probdl.methods.training.minibatch import Batches, Data
from probdl.methods.training.optimizers import ScheduledOptimizer
from probdl.methods.training.trainable import Trainable, first_not_finite
from probdl.util.openmp import WaitPolicy
from probdl.util.ranks import ALONE, Ranks

__all__ = ["RECORDED", "AdversarialTraining", "Plan"]

RECORDED = ("discriminator_loss", "d_real", "d_fake", "value", "generator_loss")
"""The values that are recorded at each step, in this order."""


MakeOptimizer = Callable[[Parameters, Sequence[str]], ScheduledOptimizer]


@dataclass(frozen=True)
class Plan:
    """Length and settings of a training.

    Attributes:
        steps: number of steps of the generator.
        discriminator_steps: number of steps of the discriminator for each of them.
        loss: name of the loss.
        gradient_penalty: weight of the gradient penalty in ``"wasserstein"``.
        ema: share of the average of the generator's weights kept at each step; 0 for no average.
        make_optimizers: make the optimizers of discriminator and generator, given the parameters
            and their names.
        engine: ``"graph"`` or ``"eager"``.
        seed: all random numbers derive from it.
        checkpoint: where the state is saved.
        ranks: the processes that train together.
    """

    steps: int
    discriminator_steps: int
    loss: str
    gradient_penalty: float
    ema: float
    make_optimizers: tuple[MakeOptimizer, MakeOptimizer]
    engine: str
    seed: int
    checkpoint: Checkpoint | None = None
    ranks: Ranks = ALONE


class _Player:
    """Discriminator or generator: its parameters, its loss, its optimizer and its step."""

    def __init__(
        self,
        owner: Critic | Trainable,
        loss: DiscriminatorLoss | GeneratorLoss,
        make_optimizer: MakeOptimizer,
    ) -> None:
        self.names = owner.names
        self.parameters = Parameters(owner.leaves)
        self.loss = loss
        self.optimizer = make_optimizer(self.parameters, self.names)
        self.steps: dict[Any, Any] = {}  # compiled, by the shapes of a minibatch

    @property
    def weights(self) -> list[Tensor]:
        """The weights, without gradients."""
        return [value.detach() for value in self.parameters.values]


class AdversarialTraining(TrainingLoop):
    """One training of a generator against a discriminator.

    Args:
        generator: the model with its parameters.
        critic: the discriminator.
        site: name of the site that the generator draws.
        index: position of the data of that site among the model's tensors.
        batches: the minibatches.
        plan: length and settings.
    """

    record_key: ClassVar[str] = "told"  # part of the format of checkpoints

    def __init__(
        self,
        generator: Trainable,
        critic: Critic,
        site: str,
        index: int,
        batches: Batches,
        plan: Plan,
    ) -> None:
        self.trainable = generator
        self.critic = critic
        self.site = site
        self.plan = plan
        self.wanted_engine = plan.engine
        game = (generator, critic, self.draw, index, plan.loss, plan.gradient_penalty)
        for_discriminator, for_generator = plan.make_optimizers
        self.discriminator = _Player(critic, DiscriminatorLoss(*game), for_discriminator)
        self.generator = _Player(generator, GeneratorLoss(*game), for_generator)
        self.average = self.generator.parameters.flat.clone()
        super().__init__(
            plan.steps,
            batches,
            plan.seed,
            plan.checkpoint,
            batches_per_step=plan.discriminator_steps,
            values_per_step=len(RECORDED),
            ranks=plan.ranks,
        )

    @property
    def weights(self) -> list[Tensor]:
        """The weights of discriminator and generator, and the average of the generator's."""
        return [
            self.discriminator.parameters.flat,
            self.generator.parameters.flat,
            self.average,
        ]

    @property
    def buffers(self) -> list[Tensor]:
        """The running statistics of both networks."""
        return self.discriminator.loss.buffers

    @property
    def engine(self) -> str:
        """The engine of the steps; before the first step, the engine to use."""
        steps = self.generator.steps
        return next(iter(steps.values())).engine if steps else self.wanted_engine

    def progress(self, recent: NDArray[np.float64]) -> dict[str, str]:
        """Return the value function, averaged over a block."""
        return {"value": f"{recent[:, RECORDED.index('value')].mean():.3f}"}

    # -- one step -------------------------------------------------------------------------

    def draw(self, weights: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """Draw x from the generator with these weights."""
        program = self.trainable.program.with_tensors(tensors)
        with self.trainable.replaced(self.trainable.swap(weights)):
            trace = poutine.trace(program.handled()).get_trace(*program.args, **program.kwargs)
        nodes: Any = trace.nodes
        return nodes[self.site]["value"]

    def step_for(self, player: _Player, batch: Data) -> Any:
        """Return the step of a player for minibatches of these shapes.

        The last batch of a DataLoader may be shorter than the others.
        """
        key = tuple(t.shape for t in batch)
        if key not in player.steps:
            opponent = self.generator if player is self.discriminator else self.discriminator
            with torch.random.fork_rng(devices=[]):
                player.steps[key], findings = choose_step(
                    player.loss,
                    player.parameters,
                    [*batch, *opponent.weights],
                    self.wanted_engine,
                    self.seed,
                    functions=[self.trainable.program.model, self.critic.module],
                )
            if not self.findings:
                self.findings += findings
        return player.steps[key]

    def take_step(self, batches: Sequence[Data], threads: WaitPolicy) -> list[float] | None:
        """Take one step of both players; return the values to record, or None if not finite."""
        discriminator, generator = self.discriminator, self.generator
        of_discriminator = [self.step_for(discriminator, batch) for batch in batches]
        of_generator = self.step_for(generator, batches[-1])
        needed = max(of_generator.threads, *(step.threads for step in of_discriminator))
        elementwise = generator.optimizer.elementwise and discriminator.optimizer.elementwise
        threads.use(needed if elementwise else needed.fixed)
        self.seed_block()
        share_done = self.done / self.steps
        values: list[float] = []
        for batch, step in zip(batches, of_discriminator, strict=True):
            data = [*batch, *generator.weights]
            values = self.evaluated(discriminator, step, data, batch, len(RECORDED) - 1)
            if not np.isfinite(values).all():
                self.fail_at("discriminator")
                return None
            discriminator.optimizer.step(share_done)
        data = [*batches[-1], *discriminator.weights]
        (loss,) = self.evaluated(generator, of_generator, data, batches[-1], 1)
        if not math.isfinite(loss):
            self.fail_at("generator")
            return None
        self.keep_early_state()
        generator.optimizer.step(share_done)
        if self.plan.ema:
            # Fewer steps are averaged at first, when an average would be that of the start.
            kept = min(self.plan.ema, (1 + self.done) / (10 + self.done))
            self.average.lerp_(generator.parameters.flat, 1 - kept)
        return [*values, loss]

    def evaluated(
        self, player: _Player, step: Step, data: Data, batch: Data, count: int
    ) -> list[float]:
        """Return the losses of a step, and leave the gradient in the parameters of a player."""

        def evaluate() -> list[float]:
            return np.atleast_1d(step(data)).tolist()  # type: ignore[no-any-return]

        return list(self.averaged(evaluate, player.parameters, batch, count))

    def fail_at(self, player: str) -> None:
        """End the training with the last good state, and name the weight that is not finite."""
        cause = "all weights are finite, so the data or the draws caused it"
        for name, each in (("discriminator", self.discriminator), ("generator", self.generator)):
            weight = first_not_finite(each.names, each.parameters.values)
            if weight is not None:
                cause = f"the weight '{weight}' of the {name} is not finite"
                break
        self.fail(
            f"The loss of the {player} was not finite at step {self.done}: {cause}.",
            f"Lower learning_rate. {suggest_loss(self.plan.loss)}".rstrip(),
        )

    # -- checkpoints and the result -------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the weights and the optimizers of both players."""
        return {
            "weights": [flat.clone() for flat in self.weights],
            "training": [
                self.discriminator.optimizer.state(),
                self.generator.optimizer.state(),
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned, and the engine."""
        self.wanted_engine = state["engine"]
        for flat, value in zip(self.weights, state["weights"], strict=True):
            copy_saved(flat, value)
        for player, saved in zip(
            (self.discriminator, self.generator), state["training"], strict=True
        ):
            player.optimizer.load(saved)

    def write_discriminator(self) -> None:
        """Write the trained weights of the discriminator to its module."""
        values = self.discriminator.parameters.values
        with torch.no_grad():
            for leaf, value in zip(self.critic.leaves, values, strict=True):
                leaf.copy_(value)

    def generator_weights(self) -> list[Tensor]:
        """Return the weights of the generator, or their average over the steps."""
        parameters = self.generator.parameters
        return parameters.split(self.average) if self.plan.ema else parameters.values
