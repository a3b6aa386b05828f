"""Training of SVI: the loop with the best state kept, an early end, and blocks in native code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile.kernels.adam import NativeAdam
from probdl.compile.kernels.noise import random_key
from probdl.compile.runtime.toolchain import CompilerError
from probdl.compile.step import BLOCK, NativeStep, Parameters, Step, choose_step
from probdl.findings import Finding
from probdl.methods.training.checkpoint import Checkpoint, copy_saved
from probdl.methods.training.loop import TrainingLoop
from probdl.methods.training.minibatch import Batches, Data, FullData
from probdl.methods.training.optimizers import FlatAdam, ScheduledOptimizer
from probdl.methods.variational.convergence import RISE_MIN, check_convergence
from probdl.methods.variational.objective import Objective
from probdl.methods.variational.validation import Validation
from probdl.util.clock import check_time_limit
from probdl.util.openmp import WaitPolicy, wait_policy
from probdl.util.ranks import ALONE, Ranks
from probdl.util.seeds import stream

__all__ = ["Outcome", "Plan", "VariationalTraining", "train"]

# Ours, about 95%: standard errors by which the last block may be worse than the best one.
WORSE_THAN_BEST_ERRORS = 2.0
PEAK_SHARE = 0.8  # of the training; a best held-out ELBO before it is a peak, and no chance
VALIDATION_INTERVAL = 0.03  # of the steps so far
BLOCKS_MIN = 20  # of a training, unless they are shorter than BLOCK
BLOCK_MAX = 1000
RESPONSE_S = 0.1  # time between checks of the time limit and of Ctrl-C


@dataclass(frozen=True)
class Plan:
    """Length and settings of a training.

    Attributes:
        steps: number of steps.
        make_optimizer: makes the optimizer; called with whether all parameters may be one vector.
        engine: as for a method.
        seed: all random numbers derive from it.
        progress: whether to show progress.
        rates: learning rates at given shares of the steps, if the optimizer is plain Adam, which
            native code can run; None for any other optimizer.
        decays: whether the learning rate decreases along a schedule that has a name.
        clip_norm: gradients are clipped to this norm; None leaves them.
        annealing: number of steps over which the temperature rises to 1; 0 for no annealing.
        patience: number of steps without improvement that end the training; None for no limit.
        checkpoint: where the state is saved.
        validation: the held-out data; None without any.
        ranks: the processes that train together.
    """

    steps: int
    make_optimizer: Callable[[bool], ScheduledOptimizer]
    engine: str
    seed: int
    progress: bool | None
    rates: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None
    decays: bool = False
    clip_norm: float | None = None
    annealing: int = 0
    patience: int | None = None
    checkpoint: Checkpoint | None = None
    validation: Validation | None = None
    ranks: Ranks = ALONE


@dataclass
class Outcome:
    """Result of a training; the parameters hold the best state.

    Attributes:
        losses: the loss of each step, in nats.
        best_step: the step of the state that was kept.
        engine: the engine that evaluated the steps.
        held_out: steps, and the held-out ELBO after them in nats per row.
        findings: the findings of the training.
    """

    losses: NDArray[np.float64]
    best_step: int
    engine: str
    held_out: list[tuple[int, float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass
class _Best:
    """The state at the end of the best block of steps, or at the best held-out ELBO."""

    state: list[Tensor]
    loss: float = math.inf
    error: float = math.inf  # standard error of the block's mean
    step: int = 0
    improved_at: int = 0  # the last step with an improvement larger than the noise
    improved_loss: float = math.inf  # the loss at that step


class VariationalTraining(TrainingLoop):
    """One training of the parameters of model and guide."""

    record_key: ClassVar[str] = "losses"

    def __init__(
        self, loss: Objective, parameters: Parameters, batches: Batches, plan: Plan
    ) -> None:
        self.loss = loss
        self.parameters = parameters
        self.plan = plan
        self.compiled: dict[Any, Step] = {}  # by the shapes of a minibatch
        self.optimizer: ScheduledOptimizer | FlatAdam | None = None
        self.saved_optimizer: dict[str, Any] | None = None  # of a checkpoint, until it is made
        self.wanted_engine = plan.engine
        self.adam: NativeAdam | None = None
        self.adam_data: Data = ()
        self.seconds_per_step = RESPONSE_S / BLOCK  # of the last call of native Adam
        self.block_start: int | None = None  # the step; None outside training
        self.held_out: list[tuple[int, float]] = []  # steps, and the ELBO in nats per row
        super().__init__(plan.steps, batches, plan.seed, plan.checkpoint, ranks=plan.ranks)
        self.best = _Best(self.snapshot())

    @property
    def weights(self) -> list[Tensor]:
        """The vector of all parameters."""
        return [self.parameters.flat]

    @property
    def buffers(self) -> list[Tensor]:
        """The running statistics of the networks."""
        return list(self.loss.buffers)

    @property
    def engine(self) -> str:
        """The engine of the first step; before it, the engine to use."""
        return next(iter(self.compiled.values())).engine if self.compiled else self.wanted_engine

    def progress(self, recent: NDArray[np.float64]) -> dict[str, str]:
        """Return the ELBO, averaged over a block."""
        return {"elbo": f"{-float(np.mean(recent)):.4g}"}

    def end_epoch(self) -> None:
        """Let the schedulers of Pyro's optimizers know."""
        if self.optimizer is not None:
            self.optimizer.end_epoch()

    # -- one step -------------------------------------------------------------------------

    def step_for(self, data: Data) -> Step:
        """Return the step for minibatches of these shapes."""
        key = tuple(t.shape for t in data)
        if key not in self.compiled:
            with torch.random.fork_rng(devices=[]):  # it may come in the middle of a block
                step, findings = choose_step(
                    self.loss,
                    self.parameters,
                    data,
                    self.wanted_engine,
                    self.seed,
                    self.steps,
                    len(self.batches.data) if isinstance(self.batches, FullData) else 0,
                    [self.loss.program.model, self.loss.guide.model],
                )
            if not self.compiled:
                self.findings += findings
            self.compiled[key] = step
            self._begin_block(key)
        return self.compiled[key]

    def take_step(self, batches: Sequence[Data], threads: WaitPolicy) -> float | None:
        """Take one step, and return the loss; None if it was not finite."""
        data = self._with_temperature(batches[0])
        block = self.done if self.seed_block() else None
        loss = self.evaluate(data, threads, block is not None, block)
        if not math.isfinite(loss):
            self.fail_at(data, loss)
            return None
        self.keep_early_state()
        assert self.optimizer is not None
        self.optimizer.step(self.done / self.steps)
        return loss

    def evaluate(
        self,
        data: Data,
        threads: WaitPolicy,
        starts_block: bool,
        block: int | None = None,
    ) -> float:
        """Return the loss, and leave its gradient in the parameters.

        Args:
            data: the minibatch.
            threads: the wait policy to set.
            starts_block: whether to discard noise that was drawn before.
            block: the number of the step where a block of the training starts.
        """

        def evaluate() -> list[float]:
            step = self.step_for(data)
            if self.optimizer is None:
                self.optimizer = self._make_optimizer(step.engine == "native")
                if self.saved_optimizer is not None:
                    self._restore_optimizer(self.optimizer)
            if starts_block:
                self.block_start = block
                for key in self.compiled:
                    self._begin_block(key)
            threads.use(step.threads if self.optimizer.elementwise else step.threads.fixed)
            return [float(step(data))]

        (loss,) = self.averaged(evaluate, self.parameters, data)
        return loss

    def _make_optimizer(self, native: bool) -> ScheduledOptimizer | FlatAdam:
        plan = self.plan
        if native and plan.rates is not None:
            return FlatAdam(self.parameters, plan.rates, plan.clip_norm)
        return plan.make_optimizer(native)

    def _begin_block(self, shapes: Any) -> None:
        """Let a step draw new noise; in C it depends on the shapes of its minibatches too."""
        first = self.block_start
        noise = None if first is None else (self.noise_key(shapes), first)
        self.compiled[shapes].begin_block(BLOCK, noise)

    def noise_key(self, shapes: Any) -> int:
        """Return the key of the noise of minibatches of these shapes."""
        sizes = (size for shape in shapes for size in shape)
        return stream(self.seed, "noise", *sizes, *self.ranks.index)

    def _with_temperature(self, data: Data) -> Data:
        if not self.plan.annealing:
            return data
        temperature = min(1.0, (self.done + 1) / self.plan.annealing)
        return [*data, torch.tensor(temperature, dtype=self.parameters.flat.dtype)]

    def _restore_optimizer(self, optimizer: Any) -> None:
        assert self.checkpoint is not None
        with self.checkpoint.readable():
            optimizer.load(self.saved_optimizer)

    def fail_at(self, data: Data, loss: float) -> None:
        """End the training with the last good state, and say what made the loss not finite."""
        cause = self.loss.blame(self.parameters.values, data)
        self.fail(
            f"The loss became {loss} at step {self.done}: {cause}.",
            "Lower learning_rate, clip gradients (clip_norm=10.0), or check the scale of that "
            "site's prior.",
        )

    def rewind(self) -> int:
        """Restore the weights of the best block, or of the last good state before the first."""
        if self.best.step:
            self.last_good = (self.best.step, self.best.state)
        step = super().rewind()
        self.best = _Best(self.last_good[1], step=step)
        return step

    # -- a block of steps in native code --------------------------------------------------

    def prepare(self) -> None:
        """Set up native Adam, which takes a whole block of steps at once, where possible."""
        if self.over or self.plan.rates is None or self.plan.annealing:
            return
        if not isinstance(self.batches, FullData):
            return
        data = self.batches.data
        step = self.step_for(data)
        if not isinstance(step, NativeStep):
            return
        try:
            key = self.noise_key([t.shape for t in data])
            self.adam = NativeAdam(self.parameters, step, self.plan.clip_norm, key)
        except CompilerError as error:
            self.findings.append(
                Finding(
                    "warning",
                    "engine",
                    "Training takes its steps one at a time, which is slower than blocks of steps "
                    f"in native code: {error}.",
                    "Run probdl.doctor() to see what is available and what is missing.",
                )
            )
            return
        self.adam_data = data
        plan = self.plan
        if self.adam.draws_noise and not (plan.patience or plan.validation):
            self.block = min(max(self.steps // BLOCKS_MIN // BLOCK * BLOCK, BLOCK), BLOCK_MAX)
        if self.saved_optimizer is not None:
            self._restore_optimizer(self.adam)

    def advance(self, batches: Iterator[Data], threads: WaitPolicy) -> None:
        """Take the next step, or with native Adam the remaining steps of a block."""
        if self.adam is None:
            super().advance(batches, threads)
            return
        check_time_limit()
        start = self.done
        if self.seed_block():
            self.adam.begin_block(start, self.block)
        ends = [self.block, self.checkpoint.every] if self.checkpoint else [self.block]
        left = min(self.steps - start, *(end - start % end for end in ends))
        count = min(left, max(1, int(RESPONSE_S / self.seconds_per_step)))
        assert self.plan.rates is not None
        began = time.perf_counter()
        losses = self.adam.run(start, self.plan.rates(np.arange(start, start + count) / self.steps))
        self.seconds_per_step = (time.perf_counter() - began) / count
        self.done += len(losses)
        self.records[start : self.done] = losses
        if len(losses) < count:
            self.last_good = (max(self.done - 1, 0), [self.adam.good, *self.buffers])
            self.fail_at(self.adam_data, math.nan)

    # -- a trial of more steps ------------------------------------------------------------

    def try_more(self, count: int, evaluations: int) -> NDArray[np.float64]:
        """Repeat the schedule in a few more steps, and then put the weights back.

        Args:
            count: the number of steps.
            evaluations: the number of losses to compare.

        Returns:
            By how much the steps lowered the loss, (evaluations,): differences of losses with the
            same random numbers and minibatches. Empty if a loss was not finite.
        """
        kept = self.snapshot()
        try:
            with wait_policy() as threads:
                tried = self._losses("trial", count, threads, moving=True)
                after = self._losses("comparison", evaluations, threads, moving=False)
                self.put_back(kept)
                before = self._losses("comparison", evaluations, threads, moving=False)
        finally:
            self.put_back(kept)
        if len(tried) < count or not len(before) == len(after) == evaluations:
            return np.zeros(0)
        return np.array(before) - np.array(after)

    def _losses(self, key: str, count: int, threads: WaitPolicy, moving: bool) -> list[float]:
        """Return the losses of steps along the whole schedule, or at fixed weights."""
        losses: list[float] = []
        batches = self.stream_batches()
        while len(losses) < count:
            self.check_time_limit()
            index = len(losses), *self.ranks.index
            torch.default_generator.manual_seed(stream(self.seed, key, *index))
            shares = np.arange(len(losses), min(len(losses) + BLOCK, count)) / count
            block = self._losses_of_block(shares, batches, threads, moving)
            losses += block
            if len(block) < len(shares):
                break
        return losses

    def _losses_of_block(
        self,
        shares: NDArray[np.float64],
        batches: Iterator[Data],
        threads: WaitPolicy,
        moving: bool,
    ) -> list[float]:
        if self.adam is not None:
            assert self.plan.rates is not None
            self.adam.begin_block(self.done, len(shares))
            rates = self.plan.rates(shares) * moving
            return list(self.adam.run(self.done, rates, key=random_key()))
        losses: list[float] = []
        for share in shares:
            self.check_time_limit()
            data = self._with_temperature(next(batches))
            loss = self.evaluate(data, threads, starts_block=not losses)
            if not math.isfinite(loss):
                break
            if moving:
                assert self.optimizer is not None
                self.optimizer.step(float(share))
            losses.append(loss)
        return losses

    # -- the best state -------------------------------------------------------------------

    def check_block(self) -> None:
        """Compare the block with the best one; end the training if it no longer improves."""
        best, losses, plan = self.best, self.last_block, self.plan
        annealed = self.done - len(losses) < plan.annealing  # with another objective
        if annealed and (plan.validation is None or self.done < self.steps):
            return
        validated = plan.validation is not None and self._is_validated()
        if validated:
            self.held_out.append((self.done, self.ranks.of_first(self._validate)))
        if not self.selects_validated:
            what, mean, error = "smoothed", float(losses.mean()), _standard_error(losses)
        elif validated:
            what, mean, error = "held-out", -self.held_out[-1][1], 0.0
        else:
            return
        if mean < best.improved_loss - error:
            best.improved_loss, best.improved_at = mean, self.done
        if mean < best.loss:
            best.loss, best.error, best.step = mean, error, self.done
            best.state = self.last_good[1]
        if plan.patience is not None and self.done - best.improved_at >= plan.patience:
            self.over = True
            self.findings.append(
                Finding(
                    "info",
                    "early_stopping",
                    f"Training ended after {self.done} of {self.steps} steps: the {what} ELBO "
                    f"had not improved for {plan.patience} steps.",
                )
            )

    def _validate(self) -> float:
        assert self.plan.validation is not None
        return float(self.plan.validation.elbo_of_rows(self.parameters.values).mean())

    @property
    def selects_validated(self) -> bool:
        """Whether the best state is that of the best held-out ELBO."""
        return self.plan.validation is not None and self.plan.validation.selects

    def _is_validated(self) -> bool:
        """Return whether the held-out ELBO is due after this block.

        It is evaluated once in an epoch, and in long runs at steps that are a few percent apart.
        """
        last = self.held_out[-1][0] if self.held_out else 0
        interval = max(self.batches.per_epoch, BLOCK, VALIDATION_INTERVAL * last)
        return self.done == self.steps or self.done - last >= interval

    def keep_best(self) -> None:
        """Restore the best state if the last block is worse by more than noise."""
        losses = self.last_block
        if not len(losses):
            return
        if any(step.has_state for step in self.compiled.values()):  # earlier losses may be others
            self.best.step = self.done
            return
        if self.held_out and not np.isfinite([value for _, value in self.held_out]).any():
            self._report_not_finite()
        if self.held_out and self.selects_validated:
            self._keep_best_validated()
            return
        error = math.hypot(self.best.error, _standard_error(losses))
        # The best of many blocks is expected to be lower than the others by noise alone.
        luck = math.sqrt(2 * math.log(max(1, self.done / self.block)))
        limit = self.best.loss + (luck + WORSE_THAN_BEST_ERRORS) * error
        if self.best.step and float(losses.mean()) > limit:
            self.put_back(self.best.state)
        else:
            self.best.step = self.done

    @property
    def is_past_best(self) -> bool:
        """Whether the held-out ELBO has fallen clearly since the state that is kept."""
        if not (self.held_out and self.selects_validated and self.best.step):
            return False
        best, last = -self.best.loss, self.held_out[-1][1]
        fell = not best - last <= RISE_MIN * abs(best)
        return fell or self.best.step < PEAK_SHARE * self.done

    def _report_not_finite(self) -> None:
        self.findings.append(
            Finding(
                "warning",
                "validation",
                f"The held-out ELBO was {self.held_out[-1][1]} at each of {len(self.held_out)} "
                "evaluations.",
                "Check that the model gives the held-out data a positive density.",
            )
        )

    def _keep_best_validated(self) -> None:
        """Restore the state with the best held-out ELBO."""
        best, (_, last) = self.best, self.held_out[-1]
        if not best.step:
            best.step = self.done
            return
        if best.step == self.done:
            return
        self.put_back(best.state)
        self.findings.append(
            Finding(
                "info",
                "validation",
                f"The fit holds the parameters of step {best.step} of {self.done}, where the "
                f"held-out ELBO was highest: {-best.loss:.5g} nats per row, and at the last "
                f"evaluation {last:.5g}.",
            )
        )

    # -- checkpoints ----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return parameters, optimizer and best state."""
        best, optimizer = self.best, self.adam or self.optimizer
        assert optimizer is not None
        return {
            "over": self.over,
            "flat": self.parameters.flat,
            "training": optimizer.state(),
            "best_state": best.state,
            "held_out": self.held_out,
            "best": [
                best.loss,
                best.error,
                best.step,
                best.improved_at,
                best.improved_loss,
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned, and the engine."""
        self.over, self.wanted_engine = state["over"], state["engine"]
        copy_saved(self.parameters.flat, state["flat"])
        self.saved_optimizer = state["training"]
        numbers, held_out = state["best"], state["held_out"]
        if not all(
            type(number) in (int, float) for pair in (numbers, *held_out) for number in pair
        ):
            raise ValueError("the best state has no loss")
        for kept, saved in zip(self.best.state, state["best_state"], strict=True):
            copy_saved(kept, saved)
        self.best = _Best(self.best.state, *numbers)
        self.held_out = [(step, value) for step, value in held_out]


def train(loss: Objective, parameters: Parameters, batches: Batches, plan: Plan) -> Outcome:
    """Train parameters by stochastic gradients of a loss, in nats.

    Args:
        loss: minus the ELBO.
        parameters: the parameters to train; they hold the best state afterwards.
        batches: the data that the loss is evaluated at.
        plan: length and settings.

    Raises:
        ModelError: the loss is not finite at the first step, or the model fails.
        KeyboardInterrupt: interrupted before the first step.
    """
    training = VariationalTraining(loss, parameters, batches, plan)
    training.run(plan.progress)
    if not training.failed:
        training.keep_best()
    losses = training.records[: training.done]
    findings = list(training.findings)
    ended = training.selects_validated and "early_stopping" in {f.check for f in findings}
    if not (ended or training.is_past_best):  # else the loss of the training is expected to fall
        complete = training.done == plan.steps
        complete &= training.selects_validated or training.best.step == plan.steps
        findings += check_convergence(
            losses[plan.annealing :],
            training.try_more if plan.decays and complete else None,
            validated=training.selects_validated,
        )
    return Outcome(losses, training.best.step, training.engine, training.held_out, findings)


def _standard_error(losses: NDArray[np.float64]) -> float:
    return float(losses.std() / math.sqrt(len(losses)))
