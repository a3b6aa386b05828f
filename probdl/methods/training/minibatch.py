"""Minibatches: rows of the model's arguments along the data plate, or batches of a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DistributedSampler

from probdl.errors import DataError, ModelError, SettingError
from probdl.model.program import Program
from probdl.model.sites import Structure, data_plate
from probdl.model.streaming import check_streamable, count_rows
from probdl.util.ranks import ALONE, Ranks

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

    def count(self, data: Data) -> int:
        """Return the weight of a batch beside those of other processes: its number of rows."""


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

    def count(self, data: Data) -> int:
        """Return 1: there is one batch."""
        return 1


class PlateBatches:
    """Minibatches of rows of those arguments that have one row per element of the data plate.

    Args:
        program: the model with all data.
        structure: its sites.
        batch_size: number of rows per batch.
        last: whether an epoch ends with a shorter batch of the remaining rows.
        ranks: the processes that divide each batch among them.
    """

    def __init__(
        self,
        program: Program,
        structure: Structure,
        batch_size: int,
        *,
        last: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self.plate, self.size = data_plate(program, structure)
        _check_discrete(structure, self.plate)
        if batch_size > self.size:
            raise SettingError(
                f"batch_size={batch_size}: the data have {self.size} rows along plate "
                f"'{self.plate}'. Use batch_size={self.size} or less."
            )
        if batch_size < ranks.count:
            raise SettingError(
                f"batch_size={batch_size}: {ranks.count} processes train together, and divide the "
                f"rows of a batch. Use batch_size={ranks.count} or more."
            )
        self.batch_size, self.ranks = batch_size, ranks
        self.per_epoch = -(-self.size // batch_size) if last else self.size // batch_size
        self._data = program.tensors()
        self._has_rows = [t.ndim > 0 and len(t) == self.size for t in self._data]
        whole = [
            name
            for name, value in program.arguments.items()
            if not isinstance(value, Tensor) and _length(value) == self.size
        ]
        if whole:
            kind = type(program.arguments[whole[0]]).__name__
            raise SettingError(
                f"batch_size={batch_size}: argument '{whole[0]}' is a {kind} with a row for each "
                f"element of plate '{self.plate}', and minibatches are rows of tensors and arrays. "
                "Pass its columns as arrays, such as df['x'].to_numpy()."
            )
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
            yield self.rows(self.ranks.part(rows))

    def count(self, data: Data) -> int:
        """Return the number of rows of a batch."""
        return next(len(t) for t, has_rows in zip(data, self._has_rows, strict=False) if has_rows)

    def rows(self, rows: Tensor) -> Data:
        """Select rows of the arguments along the plate; return other arguments whole."""
        pairs = zip(self._data, self._has_rows, strict=True)
        return [t[rows] if has_rows else t for t, has_rows in pairs]


def _length(value: Any) -> int | None:
    """Return the number of rows of a table or list; None for other objects."""
    if isinstance(value, (str, bytes, Mapping, torch.nn.Module)):
        return None
    try:
        return len(value)
    except TypeError:
        return None


class LoaderBatches:
    """The batches of a DataLoader.

    Args:
        program: the model on the first batch.
        structure: its sites.
        ranks: the processes that divide each batch among them, unless the loader has a
            DistributedSampler, by which it returns other rows to each of them.

    Raises:
        DataError: the loader has no rows of the data plate, or does not end.
        ModelError: a term of the likelihood is not in the data plate, or the model scales it.
    """

    def __init__(self, program: Program, structure: Structure, ranks: Ranks = ALONE) -> None:
        assert program.loader is not None
        sampler = program.loader.loader.sampler
        self._sampler = sampler if isinstance(sampler, DistributedSampler) else None
        self.ranks = ALONE if self._sampler is not None else ranks
        self._loader = program.loader
        self._program = program
        self.plate, _ = data_plate(program, structure)
        _check_discrete(structure, self.plate)
        self.size = count_rows(program, structure)
        self.per_epoch = self._loader.num_batches(self.size)
        check_streamable(program, structure)

    def epoch(self, seed: Callable[[], int], skip: int) -> Iterator[Data]:
        """Yield the loader's batches, shuffled by random numbers of the seed.

        Raises:
            DataError: the loader returns no batch.
        """
        i = -1
        if self._sampler is not None:
            self._sampler.set_epoch(seed())
        for i, batch in enumerate(self._loader.epoch(seed())):
            if i >= skip:
                yield self._program.on_batch(_own_rows(batch, self.ranks)).tensors()
        if i < 0:
            raise DataError(
                "The DataLoader returns no batch when it is read again. The __iter__ of its "
                "dataset must restart each time, and drop_last=True needs at least one batch."
            )

    def count(self, data: Data) -> int:
        """Return the number of rows of a batch."""
        return next((len(tensor) for tensor in data if tensor.ndim), 1)


def _own_rows(batch: Any, ranks: Ranks) -> Any:
    """Return a batch with the rows of this process: of tensors with as many rows as the first."""
    tensors = [x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.ndim]
    if ranks.count == 1 or not tensors:
        return batch
    size = len(tensors[0])

    def own(x: Any) -> Any:
        return ranks.part(x) if isinstance(x, Tensor) and x.ndim and len(x) == size else x

    return tree_map(own, batch)


def _check_discrete(structure: Structure, plate: str) -> None:
    """Check that minibatches do not depend on one another through a discrete site.

    Raises:
        ModelError: they do, so the log likelihood is not a sum over minibatches.
    """
    shared = [site.name for site in structure.of("discrete") if plate not in site.dims]
    if shared:
        raise ModelError(
            f"All rows share the discrete site '{shared[0]}', which is summed out, so the log "
            "likelihood is not a sum over minibatches. Pass all the data, without batch_size or "
            f"DataLoader, or put the site in the data plate '{plate}'."
        )
