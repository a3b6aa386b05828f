"""The training loop: blocks of steps with checkpoints, progress, interruptions and failures."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile.step import BLOCK, Parameters
from probdl.errors import ModelError, SettingError
from probdl.findings import Finding
from probdl.methods.training.checkpoint import Checkpoint, copy_saved
from probdl.methods.training.minibatch import Batches, Data
from probdl.results.diagnostics import interrupted
from probdl.util.clock import check_time_limit
from probdl.util.openmp import WaitPolicy, wait_policy
from probdl.util.progress import bar
from probdl.util.ranks import ALONE, Ranks
from probdl.util.seeds import stream

__all__ = ["TrainingLoop"]


class TrainingLoop(ABC):
    """Training in blocks of steps.

    The random numbers of a block derive from the seed and the number of the block, and those of an
    epoch from the seed and the number of the epoch. So a run that resumes from a checkpoint, which
    is written at the end of a block, gives the same result as an uninterrupted run.

    A subclass takes the steps and says what else a checkpoint holds.

    Args:
        steps: number of steps.
        batches: the minibatches.
        seed: all random numbers derive from it.
        checkpoint: where the state is saved; None saves nothing.
        batches_per_step: number of minibatches that one step uses.
        values_per_step: number of values to record at each step; None records a single number.
        ranks: the processes that train together.

    Attributes:
        block: number of steps of a block.
        done: number of steps taken.
        records: what was recorded at each step, (steps,) or (steps, values_per_step).
        last_good: a step, and the weights and buffers after it, with which the loss was finite.
        over: whether training ended before all steps were taken.
        findings: findings so far.
    """

    record_key: ClassVar[str]  # the name of the records in a checkpoint

    def __init__(
        self,
        steps: int,
        batches: Batches,
        seed: int,
        checkpoint: Checkpoint | None,
        *,
        batches_per_step: int = 1,
        values_per_step: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.steps = steps
        self.batches = batches
        self.seed = seed
        self.checkpoint = checkpoint
        self.ranks = ranks
        self.batches_per_step = batches_per_step
        shape = (steps,) if values_per_step is None else (steps, values_per_step)
        self.records: NDArray[np.float64] = np.full(shape, np.nan)
        self.block = BLOCK
        self.done = 0
        self.resumed_at = 0
        self.last_good: tuple[int, list[Tensor]] = (0, self.snapshot())
        self.over = False
        self.findings: list[Finding] = []

    # -- what a subclass defines ----------------------------------------------------------

    @property
    @abstractmethod
    def weights(self) -> list[Tensor]:
        """The flat vectors that training changes."""

    @property
    @abstractmethod
    def buffers(self) -> list[Tensor]:
        """The tensors that networks update as they run, such as running statistics."""

    @property
    @abstractmethod
    def engine(self) -> str:
        """The engine of the steps; before the first step, the engine to use."""

    @abstractmethod
    def take_step(self, batches: Sequence[Data], threads: WaitPolicy) -> Any:
        """Take one step, and return what to record; None if the loss was not finite."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside what all loops save."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned, and the engine."""

    @abstractmethod
    def progress(self, recent: NDArray[np.float64]) -> dict[str, str]:
        """Return what the progress bar shows, given the records of the last block."""

    def prepare(self) -> None:  # noqa: B027
        """Prepare for training, after a checkpoint was loaded."""

    def check_block(self) -> None:  # noqa: B027
        """Check the block that has just ended; setting ``over`` ends the training."""

    def end_epoch(self) -> None:  # noqa: B027
        """Update what changes after each epoch, such as schedules."""

    # -- the loop -------------------------------------------------------------------------

    def run(self, progress: bool | None) -> None:
        """Take all steps that are left.

        Args:
            progress: whether to show progress.

        Raises:
            ModelError: the loss is not finite at the first step, or the model fails.
            KeyboardInterrupt: interrupted before the first step.
        """
        self.load()
        self.prepare()
        self.ranks.same([*self.weights, *self.buffers])
        with bar(self.steps, "training", progress) as progress_bar, wait_policy() as threads:
            progress_bar.update(self.done)
            batches = self.stream_batches()
            try:
                while self.done < self.steps and not self.over:
                    with self._resuming():
                        self.advance(batches, threads)
                    if self.over:
                        break
                    if self.done % self.block == 0 or self.done == self.steps:
                        self.end_block()
                        progress_bar.update(self.done - progress_bar.n)
                        progress_bar.set_postfix(self.progress(self.last_block), refresh=False)
                    self._save_if_due()
            except KeyboardInterrupt as stop:
                if not self.done:
                    raise
                self.findings.append(
                    interrupted(
                        stop,
                        self.done,
                        f"{self.steps} steps",
                        "the fit holds the state reached",
                        "take all steps; with checkpoint=, training resumes where it stopped",
                    )
                )

    def _resuming(self) -> AbstractContextManager[None]:
        """Report a failing first step as a damaged checkpoint: optimizers read theirs only then."""
        if self.checkpoint is None or not self.done == self.resumed_at > 0:
            return nullcontext()
        return self.checkpoint.readable()

    def stream_batches(self) -> Iterator[Data]:
        """Yield minibatches, epoch after epoch, from the next step on."""
        epoch, skip = divmod(self.done * self.batches_per_step, self.batches.per_epoch)
        while True:
            seed = functools.partial(stream, self.seed, "epoch", epoch)
            yield from self.batches.epoch(seed, skip)
            self.end_epoch()
            epoch, skip = epoch + 1, 0

    def advance(self, batches: Iterator[Data], threads: WaitPolicy) -> None:
        """Take the next step."""
        self.check_time_limit()
        record = self.take_step([next(batches) for _ in range(self.batches_per_step)], threads)
        if record is None:
            return
        self.records[self.done] = record
        self.done += 1
        threads.step()

    def check_time_limit(self) -> None:
        """Raise TimeUp if the time limit has passed; of several ranks, all do so in a step."""
        if self.ranks.count == 1:
            check_time_limit()

    def averaged(
        self,
        evaluate: Callable[[], Sequence[float]],
        parameters: Parameters,
        data: Data,
        count: int = 1,
    ) -> Sequence[float]:
        """Return the losses of an evaluation; with several ranks, their average over all.

        Args:
            evaluate: evaluates them, and leaves the gradient in the parameters.
            parameters: the parameters, whose gradient is averaged too.
            data: the minibatch of this rank.
            count: the number of losses.
        """
        if self.ranks.count == 1:
            return evaluate()
        losses: Sequence[float] = [0.0] * count
        ended: BaseException | None = None
        try:
            check_time_limit()
            losses = evaluate()
        except (Exception, KeyboardInterrupt) as error:
            ended = error
        grad = torch.zeros_like(parameters.flat) if ended is not None else parameters.grad()
        found = self.ranks.average(grad, losses, self.batches.count(data), ended)
        parameters.set_grad(grad)
        return found

    def seed_block(self) -> bool:
        """Seed torch's generator if a block starts; return whether one does."""
        if self.done % self.block and self.done != self.resumed_at:
            return False
        index = self.done // self.block, *self.ranks.index
        torch.default_generator.manual_seed(stream(self.seed, "block", *index))
        return True

    def end_block(self) -> None:
        """Keep the state of the block that has just ended, and check the block."""
        self.ranks.same(self.buffers)
        self.last_good = (self.done, self.snapshot())
        self.check_block()

    def _save_if_due(self) -> None:
        """Write the checkpoint every so many steps; a full disk must not cost the training."""
        if self.checkpoint is None or self.ranks.rank:
            return
        if not (self.over or self.done == self.steps or self.done % self.checkpoint.every == 0):
            return
        try:
            self.save(self.checkpoint)
        except SettingError as error:
            if not any(finding.check == "checkpoint" for finding in self.findings):
                self.findings.append(Finding("warning", "checkpoint", str(error)))

    @property
    def last_block(self) -> NDArray[np.float64]:
        """The records of the last block of steps."""
        return self.records[max(0, self.done - self.block) : self.done]

    # -- good states and failures ---------------------------------------------------------

    def snapshot(self) -> list[Tensor]:
        """Copy the weights and buffers."""
        return [tensor.clone() for tensor in (*self.weights, *self.buffers)]

    def put_back(self, snapshot: Sequence[Tensor]) -> None:
        """Restore the weights and buffers of a snapshot."""
        for tensor, value in zip((*self.weights, *self.buffers), snapshot, strict=True):
            tensor.copy_(value)

    def keep_early_state(self) -> None:
        """Keep a snapshot at steps 0, 1, 2, 4, ...: the first block has no good state before."""
        if self.done < BLOCK and self.done & (self.done - 1) == 0:
            self.last_good = (self.done, self.snapshot())

    def fail(self, message: str, remedy: str) -> None:
        """End the training with the last good state, because the loss is not finite.

        Raises:
            ModelError: no step was taken yet, so there is no good state.
        """
        if not self.done:
            raise ModelError(f"{message} {remedy}")
        step = self.rewind()
        self.findings.append(
            Finding(
                "error",
                "loss_not_finite",
                f"{message} The fit holds the parameters from step {step}.",
                remedy,
            )
        )
        self.over = True

    def rewind(self) -> int:
        """Restore the last good state, and return its step."""
        step, good = self.last_good
        self.put_back(good)
        return step

    @property
    def failed(self) -> bool:
        """Whether training ended because the loss was not finite."""
        return any(finding.check == "loss_not_finite" for finding in self.findings)

    # -- checkpoints ----------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint) -> None:
        """Write everything that the remaining steps depend on."""
        checkpoint.write(
            {
                "done": self.done,
                "engine": self.engine,
                self.record_key: torch.from_numpy(self.records[: self.done]),
                "buffers": self.buffers,
                **self.state(),
            }
        )

    def load(self) -> None:
        """Load the checkpoint, if there is one."""
        checkpoint = self.checkpoint
        if checkpoint is None:
            return
        state = self.ranks.of_first(lambda: checkpoint.read(self.steps))
        if state is None:
            return
        with checkpoint.readable():
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        self.done = self.resumed_at = state["done"]
        records = torch.from_numpy(self.records[: self.done])
        copy_saved(records, state[self.record_key][: self.done])
        for buffer, value in zip(self.buffers, state["buffers"], strict=True):
            copy_saved(buffer, value)
        if state["engine"] not in ("native", "graph", "eager"):
            raise ValueError(f"the engine is {state['engine']!r}")
        self.restore(state)
        self.last_good = (self.done, self.snapshot())
