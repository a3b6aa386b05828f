"""Minibatches: the model's arguments indexed along the data plate, or a DataLoader's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from probdl.errors import ModelError, SettingError
from probdl.model.program import Program, arguments
from probdl.model.sites import Structure, data_plate

__all__ = ["Batches", "FullData", "LoaderBatches", "PlateBatches"]

Data = Sequence[Tensor]


class Batches(Protocol):
    """What training goes through, an epoch at a time.

    Attributes:
        plate: the plate along which the data are cut; None where all are taken.
        size: how many rows there are.
        per_epoch: how many batches one epoch has.
    """

    @property
    def plate(self) -> str | None: ...  # noqa: D102

    size: int
    per_epoch: int

    def epoch(self, seed: Callable[[], int], skip: int) -> Iterator[Data]:
        """Go through each row once, in an order that the seed decides, from some batch on."""


class FullData:
    """All the data at each step."""

    def __init__(self, program: Program) -> None:
        self.plate: str | None = None
        self.size = 0
        self.per_epoch = 1
        self.data = program.tensors()

    def epoch(self, seed: Callable[[], int], skip: int) -> Iterator[Data]:
        """Give the data once."""
        yield self.data


class PlateBatches:
    """Rows of the arguments that run along the data plate.

    Args:
        program: the model on all the data.
        structure: its sites.
        batch_size: how many rows a batch has.
        last: whether to take the shorter batch that is left over at the end of an epoch.
    """

    def __init__(
        self, program: Program, structure: Structure, batch_size: int, *, last: bool = True
    ) -> None:
        self.plate, self.size = data_plate(program, structure)
        if batch_size > self.size:
            raise SettingError(
                f"batch_size={batch_size}: the data have {self.size} rows along plate "
                f"'{self.plate}'. Give a batch_size of at most that, or leave it out."
            )
        self.batch_size = batch_size
        self.per_epoch = -(-self.size // batch_size) if last else self.size // batch_size
        self._data = program.tensors()
        self._cut = [t.ndim > 0 and len(t) == self.size for t in self._data]
        if not any(self._cut):
            raise ModelError(
                f"no argument of the model '{program.name}' has {self.size} rows, the size of "
                f"plate '{self.plate}', so there is nothing to take minibatches of. Pass the data "
                "as arguments."
            )

    def epoch(self, seed: Callable[[], int], skip: int) -> Iterator[Data]:
        """Give each row once, in a random order."""
        generator = torch.Generator().manual_seed(seed())
        order = torch.randperm(self.size, generator=generator)
        for rows in order.split(self.batch_size)[skip : self.per_epoch]:
            yield self.rows(rows)

    def rows(self, rows: Tensor) -> Data:
        """Cut rows out of all arguments along the plate."""
        return [t[rows] if cut else t for t, cut in zip(self._data, self._cut, strict=True)]


class LoaderBatches:
    """The batches of a DataLoader."""

    def __init__(self, program: Program, structure: Structure, loader: DataLoader[Any]) -> None:
        self.plate, _ = data_plate(program, structure)
        self.size = len(loader.dataset)  # type: ignore[arg-type]
        self.per_epoch = len(loader)
        self._loader = loader
        self._program = program

    def epoch(self, seed: Callable[[], int], skip: int) -> Iterator[Data]:
        """Go through the loader once; shuffled by random numbers of this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed())
            batches, state = iter(self._loader), torch.get_rng_state()
        for i in range(self.per_epoch):
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                batch, state = next(batches), torch.get_rng_state()
            if i >= skip:
                args, kwargs = arguments(batch)
                yield self._program.with_arguments(args, kwargs).tensors()
