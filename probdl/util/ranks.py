"""The processes that train one model together, each on its part of a minibatch.

They are the ranks of ``torch.distributed``, as ``torchrun`` starts them. After each step the
gradients are averaged, so that all ranks hold the same parameters. What a rank cannot decide alone,
such as to stop, is exchanged with the gradients.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from probdl import errors
from probdl.errors import ProbdlError
from probdl.util.clock import TimeUp, expire, has_limit

__all__ = ["ALONE", "Ranks", "alone", "current_ranks", "is_first_rank"]

_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_alone: ContextVar[bool] = ContextVar("alone", default=False)
# What a rank may say of a step, instead of a loss.
_GOES_ON, _TIME_UP, _INTERRUPTED, _FAILED = 0.0, 1.0, 2.0, 3.0


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together.

    Attributes:
        rank: its number, from 0.
        count: the number of processes.
        group: their group, of torch.distributed; None means the default group.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def index(self) -> tuple[int, ...]:
        """Numbers for the seed of the random numbers of this rank, empty for the first one."""
        return (self.rank,) if self.rank else ()

    def part(self, rows: Tensor) -> Tensor:
        """Return the rows of this rank; a row of another one if there are too few for all."""
        if self.count == 1:
            return rows
        own = rows.tensor_split(self.count)[self.rank]
        return own if len(own) else rows[self.rank % len(rows)][None]

    def average(
        self, grad: Tensor, numbers: Sequence[float], weight: float, ended: BaseException | None
    ) -> list[float]:
        """Average a gradient, in place, and numbers over the ranks, and return the numbers.

        Args:
            grad: the gradient, flat.
            numbers: the losses.
            weight: the weight of this rank, such as its number of rows.
            ended: why this rank has neither, if it has not.

        Raises:
            KeyboardInterrupt: a rank was interrupted.
            TimeUp: the time limit of a rank has passed.
            ProbdlError: a rank failed, or ended.
        """
        said = torch.zeros(4, dtype=torch.float64)
        said[int(_word_for(ended))] = 1.0
        values = torch.tensor([weight, *(weight * x for x in numbers)], dtype=torch.float64)
        if ended is not None:
            values.zero_()
            grad.zero_()
        sums = torch.cat([said, values])
        grad.mul_(weight)
        self._reduced(sums, grad)
        words, total = sums[: len(said)].tolist(), float(sums[len(said)])
        if words[0] < self.count:
            if ended is not None:
                raise ended
            self._stop(words)
        grad.div_(total)
        return (sums[len(said) + 1 :] / total).tolist()

    def _stop(self, words: Sequence[float]) -> NoReturn:
        """End this rank because of another one."""
        if words[int(_FAILED)]:
            raise ProbdlError(
                "Another process of this training failed; its error message says why."
            )
        if words[int(_TIME_UP)] and has_limit():
            raise expire()
        raise KeyboardInterrupt

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors of all ranks the values of the first one's."""
        if self.count > 1:
            with self._explained():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor.detach(), 0, group=self.group)

    def of_first(self, make: Callable[[], Any]) -> Any:
        """Return what the first rank makes, or raise its error, on all ranks."""
        if self.count == 1:
            return make()
        answer: list[Any] = [None, "", ""]
        failure: BaseException | None = None
        if not self.rank:
            try:
                answer[0] = make()
            except (Exception, KeyboardInterrupt) as error:
                answer[1:], failure = [type(error).__name__, str(error)], error
        with self._explained():
            torch.distributed.broadcast_object_list(answer, 0, group=self.group)
        if failure is not None:
            raise failure
        result, kind, message = answer
        if kind in ("KeyboardInterrupt", "TimeUp"):
            self._stop((0.0, float(kind == "TimeUp"), 1.0, 0.0))
        if kind:
            raise getattr(errors, kind, ProbdlError)(message)
        return result

    def _reduced(self, *tensors: Tensor) -> None:
        with self._explained():
            sent = [
                torch.distributed.all_reduce(tensor, group=self.group, async_op=True)
                for tensor in tensors
            ]
            for each in sent:
                each.wait()  # type: ignore[union-attr]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, ProbdlError):
                raise
            raise ProbdlError(
                "The processes of this training lost their connection: another one may have ended. "
                "With checkpoint=, the same call resumes, with any number of processes."
            ) from error


ALONE = Ranks()


def _word_for(ended: BaseException | None) -> float:
    if ended is None:
        return _GOES_ON
    if isinstance(ended, TimeUp):
        return _TIME_UP
    return _INTERRUPTED if isinstance(ended, KeyboardInterrupt) else _FAILED


def current_ranks() -> Ranks:
    """Return the place of this process, and join the others if ``torchrun`` started it."""
    available = torch.distributed.is_available()
    if _alone.get() or not available or not (_is_joined() or _started_by_torchrun(os.environ)):
        return ALONE
    if not _is_joined():
        torch.distributed.init_process_group("gloo")
        atexit.register(_leave)
    count = torch.distributed.get_world_size()
    if count == 1:
        return ALONE
    return Ranks(torch.distributed.get_rank(), count, _group_of_cpus())


def is_first_rank() -> bool:
    """Return whether this process reports: it is the first of several, or the only one."""
    if torch.distributed.is_available() and _is_joined():
        return torch.distributed.get_rank() == 0
    return not _started_by_torchrun(os.environ) or os.environ["RANK"] == "0"


def _is_joined() -> bool:
    return torch.distributed.is_initialized()


def _started_by_torchrun(environment: Mapping[str, str]) -> bool:
    """Return whether this is one of several processes, and not one that such a process started."""
    several = environment.get("WORLD_SIZE", "1") != "1"
    joins = all(name in environment for name in _SET_BY_TORCHRUN)
    return several and joins and multiprocessing.parent_process() is None


_groups: dict[Any, Any] = {}


def _group_of_cpus() -> Any:
    """Return a group that exchanges tensors on CPUs; None means that the default one does."""
    if "gloo" in torch.distributed.get_backend():
        return None
    default = torch.distributed.group.WORLD
    if default not in _groups:
        _groups[default] = torch.distributed.new_group(backend="gloo")
    return _groups[default]


def _leave() -> None:
    if _is_joined():
        torch.distributed.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Let this process train without the other ranks, as in one of many separate fits."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)
