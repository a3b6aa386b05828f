"""Training: steps over minibatches, with the best state kept, checkpoints, and an end in time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile.kernels.adam import NativeAdam
from probdl.compile.runtime.toolchain import CompilerError
from probdl.compile.step import BLOCK, Loss, NativeStep, Parameters, Step, choose_step
from probdl.errors import ModelError
from probdl.findings import RISING_ERRORS, Finding
from probdl.methods.training.checkpoint import Checkpoint
from probdl.methods.training.minibatch import Batches, FullData
from probdl.methods.training.optimizers import Training
from probdl.results.diagnostics import interrupted
from probdl.util.clock import look
from probdl.util.openmp import Waits, waits
from probdl.util.progress import bar
from probdl.util.seeds import stream

__all__ = ["Outcome", "Plan", "stopped_at", "train"]

_SHORT = 2.0  # standard errors by which the end may fall short of the best block; ours, about 95 %


@dataclass(frozen=True)
class Plan:
    """How long and how to train.

    Attributes:
        steps: how many steps in all.
        make_training: makes the optimizer, once it is known whether one vector will do.
        engine: as of a method.
        seed: of the random numbers; each block of steps and each epoch has a stream of its own.
        progress: whether to show progress.
        rates: the learning rate at shares of the steps, where the optimizer is plain Adam, so that
            native code can run it; None where it is another.
        clip_norm: gradients are shortened to this length.
        annealing: over how many steps the temperature rises to 1; 0 leaves it out.
        patience: how many steps without an improvement end the training; None never.
        checkpoint: where the state is kept.
    """

    steps: int
    make_training: Any
    engine: str
    seed: int
    progress: bool | None
    rates: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None
    clip_norm: float | None = None
    annealing: int = 0
    patience: int | None = None
    checkpoint: Checkpoint | None = None


@dataclass
class Outcome:
    """What came of training; the parameters hold the best state.

    Attributes:
        losses: the loss of each step, in nats.
        best_step: the step whose state was kept.
        engine: which engine evaluated the steps.
        findings: what was seen.
    """

    losses: NDArray[np.float64]
    best_step: int
    engine: str
    findings: list[Finding] = field(default_factory=list)


@dataclass
class _Best:
    """The state at the end of the best block of steps."""

    flat: Tensor
    loss: float = math.inf
    error: float = math.inf  # standard error of the block's mean
    step: int = 0
    improved: int = 0  # the step at which it last improved by more than noise
    kept: float = math.inf  # the loss at that step


def stopped_at(stop: KeyboardInterrupt, done: int, steps: int) -> Finding:
    """Tell that Ctrl-C or the time limit ended a training."""
    return interrupted(
        stop,
        done,
        f"{steps} steps",
        "the fit holds the state reached",
        "steps; with checkpoint= it goes on where it was",
    )


class _Run:
    """One training run."""

    def __init__(self, loss: Loss, parameters: Parameters, batches: Batches, plan: Plan) -> None:
        self.loss = loss
        self.parameters = parameters
        self.batches = batches
        self.plan = plan
        self.done = 0
        self.losses = np.full(plan.steps, np.nan)
        self.best = _Best(parameters.flat.clone())
        self.good = (0, parameters.flat.clone())  # a state with a finite loss
        self.steps: dict[Any, Step] = {}
        self.training: Training | None = None
        self.findings: list[Finding] = []
        self.waiting: dict[str, Any] | None = None  # of an optimizer that is not yet made
        self.over = False
        self.engine = plan.engine
        self.started = 0
        self.adam: NativeAdam | None = None

    # -- one step -------------------------------------------------------------------------

    def step_for(self, data: Sequence[Tensor]) -> Step:
        """Return the step for minibatches of these shapes."""
        key = tuple(t.shape for t in data)
        if key not in self.steps:
            with torch.random.fork_rng(devices=[]):  # it may come in the middle of a block
                step, findings = choose_step(
                    self.loss,
                    self.parameters,
                    data,
                    self.engine,
                    self.plan.seed,
                    self.plan.steps,
                )
            if not self.steps:
                self.findings += findings
            self.steps[key] = step
        return self.steps[key]

    def advance(self, data: Sequence[Tensor], threads: Waits) -> None:
        """Take one step."""
        look()
        t, plan = self.done, self.plan
        if plan.annealing:
            heat = min(1.0, (t + 1) / plan.annealing)
            data = [*data, torch.tensor(heat, dtype=self.parameters.flat.dtype)]
        step = self.step_for(data)
        if self.training is None:
            self.training = plan.make_training(step.engine == "native")
            if self.waiting is not None:
                self.training.load(self.waiting)
        if t % BLOCK == 0 or t == self.started:
            torch.default_generator.manual_seed(stream(plan.seed, "block", t // BLOCK))
            for each in self.steps.values():
                each.begin_block()
        threads.use(step.parallel)
        loss = step(data)
        if not math.isfinite(loss):
            self.failed(data, loss)
            return
        if t < BLOCK and t & (t - 1) == 0:
            self.good = (t, self.parameters.flat.clone())
        self.losses[t] = loss
        self.training.step(t / plan.steps)
        self.done = t + 1

    def failed(self, data: Sequence[Tensor], loss: float) -> None:
        """Go back to the last good state where there is one."""
        why = self.loss.blame(self.parameters.values, data)  # type: ignore[attr-defined]
        message = f"the loss became {loss} at step {self.done}: {why}."
        remedy = (
            "Lower learning_rate, clip gradients (clip_norm=10.0), or look at the scale of that "
            "site's prior."
        )
        if not self.done:
            raise ModelError(f"{message} {remedy}")
        step, flat = (self.best.step, self.best.flat) if self.best.step else self.good
        self.best = _Best(flat, step=step)
        self.parameters.flat.copy_(flat)
        self.findings.append(
            Finding(
                "error",
                "loss_not_finite",
                f"{message} The fit holds the last good state, of step {step}.",
                remedy,
            )
        )
        self.over = True

    # -- a block of steps in native code ----------------------------------------------------

    def make_adam(self) -> Sequence[Tensor] | None:
        """Set native Adam up where it can be; return the data that it then always sees."""
        plan = self.plan
        if plan.rates is None or plan.annealing or not isinstance(self.batches, FullData):
            return None
        data = self.batches.data
        step = self.step_for(data)
        if not isinstance(step, NativeStep):
            return None
        try:
            self.adam = NativeAdam(self.parameters, step, plan.clip_norm)
        except CompilerError as error:
            self.findings.append(
                Finding(
                    "warning",
                    "engine",
                    f"each step is taken by itself, which is slower than a block of them: {error}.",
                    "probdl.doctor() shows what is available and what is missing.",
                )
            )
            return None
        if self.waiting is not None:
            self.adam.load(self.waiting)
        return data

    def advance_block(self, adam: NativeAdam, data: Sequence[Tensor]) -> None:
        """Take the steps that are left of a block."""
        look()
        t, plan = self.done, self.plan
        count = min(BLOCK - t % BLOCK, plan.steps - t)
        torch.default_generator.manual_seed(stream(plan.seed, "block", t // BLOCK))
        assert plan.rates is not None
        losses = adam.run(t, plan.rates(np.arange(t, t + count) / plan.steps))
        self.losses[t : t + len(losses)] = losses
        self.done = t + len(losses)
        if len(losses) < count:
            self.good = (max(self.done - 1, 0), adam.good)
            self.failed(data, math.nan)

    # -- one block ------------------------------------------------------------------------

    def end_block(self) -> None:
        """Judge the block of steps that just ended."""
        t, plan, best = self.done, self.plan, self.best
        last = self.losses[max(0, t - BLOCK) : t]
        mean, error = float(last.mean()), float(last.std() / math.sqrt(len(last)))
        self.good = (t, self.parameters.flat.clone())
        if t - len(last) >= plan.annealing:
            if mean < best.kept - error:
                best.kept, best.improved = mean, t
            if mean < best.loss:
                best.loss, best.error, best.step = mean, error, t
                best.flat = self.good[1]
            if plan.patience is not None and t - best.improved >= plan.patience:
                self.over = True
                self.findings.append(
                    Finding(
                        "info",
                        "early_stopping",
                        f"stopped after {t} of {plan.steps} steps: the smoothed ELBO had not "
                        f"improved for {plan.patience}.",
                    )
                )
        last_block = self.over or t == plan.steps
        if plan.checkpoint is not None and (last_block or t % plan.checkpoint.every == 0):
            self.save()

    def finish(self) -> None:
        """Take the best state where the end falls short of it by more than noise."""
        last = self.losses[max(0, self.done - BLOCK) : self.done]
        if not len(last):
            return
        error = math.hypot(self.best.error, float(last.std()) / math.sqrt(len(last)))
        if self.best.step and float(last.mean()) > self.best.loss + _SHORT * error:
            self.parameters.flat.copy_(self.best.flat)
        else:
            self.best.step = self.done

    # -- checkpoints ----------------------------------------------------------------------

    def save(self) -> None:
        """Write all that the rest of the run depends on."""
        assert self.plan.checkpoint is not None
        training = self.adam or self.training
        assert training is not None
        best = self.best
        self.plan.checkpoint.write(
            {
                "done": self.done,
                "over": self.over,
                "engine": next(iter(self.steps.values())).engine,
                "flat": self.parameters.flat,
                "losses": torch.from_numpy(self.losses[: self.done]),
                "buffers": list(self.loss.buffers),
                "training": training.state(),
                "best": [best.flat, best.loss, best.error, best.step, best.improved, best.kept],
            }
        )

    def load(self) -> None:
        """Take up what a checkpoint holds."""
        plan = self.plan
        state = plan.checkpoint.read(plan.steps) if plan.checkpoint is not None else None
        if state is None:
            return
        self.done, self.over, self.engine = state["done"], state["over"], state["engine"]
        self.parameters.flat.copy_(state["flat"])
        self.losses[: self.done] = state["losses"][: self.done].numpy()
        for buffer, value in zip(self.loss.buffers, state["buffers"], strict=True):
            buffer.copy_(value)
        self.waiting = state["training"]
        self.best = _Best(*state["best"])
        self.good = (self.done, self.parameters.flat.clone())

    # -- all of it ------------------------------------------------------------------------

    def __call__(self) -> Outcome:
        plan, batches = self.plan, self.batches
        self.load()
        self.started = self.done
        fixed = None if self.over else self.make_adam()
        with bar(plan.steps, "training", plan.progress) as progress, waits() as threads:
            progress.update(self.done)
            try:
                while self.done < plan.steps and not self.over:
                    if self.adam is not None and fixed is not None:
                        self.advance_block(self.adam, fixed)
                        if not self.over:
                            self.end_block()
                        self.show(progress)
                        continue
                    epoch, skip = divmod(self.done, batches.per_epoch)
                    seed = functools.partial(stream, plan.seed, "epoch", epoch)
                    for data in batches.epoch(seed, skip):
                        self.advance(data, threads)
                        threads.step()
                        if self.over:
                            break
                        if self.done % BLOCK == 0 or self.done == plan.steps:
                            self.end_block()
                            self.show(progress)
                        if self.over or self.done == plan.steps:
                            break
                    else:
                        if self.training is not None:
                            self.training.end_epoch()
            except KeyboardInterrupt as stop:
                if not self.done:
                    raise
                self.findings.append(stopped_at(stop, self.done, plan.steps))
        if not any(f.check == "loss_not_finite" for f in self.findings):
            self.finish()
        losses = self.losses[: self.done]
        engine = next(iter(self.steps.values())).engine if self.steps else self.engine
        findings = [*self.findings, *_rising(losses[plan.annealing :])]
        return Outcome(losses, self.best.step, engine, findings)

    def show(self, progress: Any) -> None:
        """Show how far the training is."""
        progress.update(self.done - progress.n)
        smoothed = float(np.mean(self.losses[max(0, self.done - BLOCK) : self.done]))
        progress.set_postfix(elbo=f"{-smoothed:.4g}", refresh=False)


def train(loss: Loss, parameters: Parameters, batches: Batches, plan: Plan) -> Outcome:
    """Train parameters by stochastic gradients of a loss.

    Args:
        loss: in nats; it can be evaluated and, where it is not finite, tells what is to blame.
        parameters: what to train; they hold the best state afterwards.
        batches: what the loss is evaluated at.
        plan: how long and how.

    Raises:
        ModelError: the loss is not finite at the first step, or the model fails.
        KeyboardInterrupt: interrupted before the first step.
    """
    return _Run(loss, parameters, batches, plan)()


def _rising(losses: NDArray[np.float64]) -> list[Finding]:
    """Tell where the ELBO still rose when the training ended.

    The last tenth of the steps is compared with the tenth before, when a schedule that ends at
    zero has little left to average out.
    """
    tenth = len(losses) // 10
    if tenth < 2:
        return []
    before, after = losses[-2 * tenth : -tenth], losses[-tenth:]
    gain = float(before.mean() - after.mean())
    error = math.hypot(before.std(), after.std()) / math.sqrt(tenth)
    if gain < max(RISING_ERRORS * error, 0.1, 1e-3 * abs(float(after.mean()))):
        return []
    return [
        Finding(
            "warning",
            "not_converged",
            f"the ELBO still rose when the training ended: by {gain:.4g} nats from the last but "
            f"one tenth of the steps to the last, to {-after.mean():.6g}.",
            "Train for more steps, or raise learning_rate.",
        )
    ]
