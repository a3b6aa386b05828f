"""Minibatches: rows of the model's arguments along the data plate, or batches of a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from probdl.errors import ModelError, SettingError
from probdl.model.arguments import batch_arguments
from probdl.model.program import Program
from probdl.model.sites import Structure, data_plate

__all__ = ["Batches", "FullData", "LoaderBatches", "PlateBatches"]

Data = Sequence[Tensor]


class Batches(Protocol):
    """A source of minibatches, epoch by epoch.

    Attributes:
        plate: name of the plate along which the data are split; None if all data are used.
        size: number of rows of the data; 0 if all data are used.
        per_epoch: number of batches in an epoch.
    """

    @property
    def plate(self) -> str | None: ...  # noqa: D102

    size: int
    per_epoch: int

    def epoch(self, seed: Callable[[], int], skip: int) -> Iterator[Data]:
        """Yield the batches of an epoch in an order set by the seed, but for the first ``skip``."""


class FullData:
    """All the data at each step."""

    def __init__(self, program: Program) -> None:
        self.plate: str | None = None
        self.size = 0
        self.per_epoch = 1
        self.data = program.tensors()

    def epoch(self, seed: Callable[[], int], skip: int) -> Iterator[Data]:
        """Yield all data once."""
        yield self.data


class PlateBatches:
    """Minibatches of rows of those arguments that have one row per element of the data plate.

    Args:
        program: the model with all data.
        structure: its sites.
        batch_size: number of rows per batch.
        last: whether an epoch ends with a shorter batch of the remaining rows.
    """

    def __init__(
        self, program: Program, structure: Structure, batch_size: int, *, last: bool = True
    ) -> None:
        self.plate, self.size = data_plate(program, structure)
        if batch_size > self.size:
            raise SettingError(
                f"batch_size={batch_size}: the data have {self.size} rows along plate "
                f"'{self.plate}'. Use batch_size={self.size} or less."
            )
        self.batch_size = batch_size
        self.per_epoch = -(-self.size // batch_size) if last else self.size // batch_size
        self._data = program.tensors()
        self._has_rows = [t.ndim > 0 and len(t) == self.size for t in self._data]
        if not any(self._has_rows):
            raise ModelError(
                f"No argument of the model '{program.name}' has {self.size} rows, the size of "
                f"plate '{self.plate}', so minibatches cannot be formed. Pass the data as "
                "arguments of the model."
            )

    def epoch(self, seed: Callable[[], int], skip: int) -> Iterator[Data]:
        """Yield batches of all rows in a random order."""
        generator = torch.Generator().manual_seed(seed())
        order = torch.randperm(self.size, generator=generator)
        for rows in order.split(self.batch_size)[skip : self.per_epoch]:
            yield self.rows(rows)

    def rows(self, rows: Tensor) -> Data:
        """Select rows of the arguments along the plate; return other arguments whole."""
        pairs = zip(self._data, self._has_rows, strict=True)
        return [t[rows] if has_rows else t for t, has_rows in pairs]


class LoaderBatches:
    """The batches of a DataLoader."""

    def __init__(self, program: Program, structure: Structure, loader: DataLoader[Any]) -> None:
        self.plate, _ = data_plate(program, structure)
        self.size = len(loader.dataset)  # type: ignore[arg-type]
        self.per_epoch = len(loader)
        self._loader = loader
        self._program = program

    def epoch(self, seed: Callable[[], int], skip: int) -> Iterator[Data]:
        """Yield the loader's batches, shuffled by random numbers of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed())
            batches, state = iter(self._loader), torch.get_rng_state()
        for i in range(self.per_epoch):
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                batch, state = next(batches), torch.get_rng_state()
            if i >= skip:
                args, kwargs = batch_arguments(batch)
                yield self._program.with_arguments(args, kwargs).tensors()
