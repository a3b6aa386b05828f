"""The rows of a DataLoader: its batches, and all rows in the dataset's order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from probdl.errors import DataError, ModelError
from probdl.util.ranks import current_ranks

__all__ = ["LoaderRows", "MissingLoader"]


class LoaderRows:
    """A DataLoader as a source of rows.

    Its own batches are for training. For figures of all the data, :meth:`in_order` reads each row
    once, in the order of the dataset, whatever the loader's sampler and ``drop_last``.

    Args:
        loader: the DataLoader.

    Attributes:
        uneven: a sentence if training does not use each row equally often, else empty.
        size: the number of rows; None as long as it is not known.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.uneven = ""
        self.size: int | None = None
        self._ordered = self._in_order()

    def in_order(self) -> Iterator[Any]:
        """Yield batches of all rows in the dataset's order."""
        with torch.random.fork_rng(devices=[]):  # the loader draws a seed for its workers
            return iter(self._ordered)

    def first(self) -> Any:
        """Return the first batch in the dataset's order.

        Raises:
            DataError: the DataLoader is empty.
        """
        try:
            return next(self.in_order())
        except StopIteration:
            raise DataError("The DataLoader is empty: it has no batch to train on.") from None

    def epoch(self, seed: int) -> Iterator[Any]:
        """Yield the loader's own batches, shuffled by random numbers of the seed."""
        with _seeded(self.loader, seed, None) as state:
            batches = iter(self.loader)
        while True:
            with _seeded(self.loader, None, state) as state:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def num_batches(self, size: int) -> int:
        """Return the number of batches in an epoch, given the number of rows."""
        try:
            return max(1, len(self.loader))
        except TypeError:  # a dataset or sampler without a length
            pass
        batch = self.loader.batch_size
        if batch is None:
            return sum(1 for _ in self.in_order())
        return max(1, size // batch if self.loader.drop_last else -(-size // batch))

    def _in_order(self) -> DataLoader[Any]:
        """Return a loader of the same rows in the dataset's order, none dropped."""
        loader = self.loader
        options: dict[str, Any] = {
            "collate_fn": loader.collate_fn,
            "num_workers": loader.num_workers,
            "worker_init_fn": loader.worker_init_fn,
            "multiprocessing_context": loader.multiprocessing_context,
        }
        dataset: Any = loader.dataset
        if isinstance(dataset, IterableDataset):
            if hasattr(dataset, "__len__"):
                self.size = len(dataset) if loader.batch_size is not None else None
            return DataLoader(dataset, batch_size=loader.batch_size, **options)
        if not hasattr(dataset, "__len__"):
            raise DataError(
                f"The dataset of the DataLoader, a {type(dataset).__name__}, has no __len__, so "
                "its rows cannot be listed. Define __len__, or derive it from IterableDataset."
            )
        rows = self._rows(len(dataset))
        if loader.batch_sampler is None:  # the dataset itself returns batches
            return DataLoader(dataset, batch_size=None, sampler=rows, **options)
        self.size = len(rows)
        size = loader.batch_size
        if size is None:
            with torch.random.fork_rng(devices=[]):
                size = len(next(iter(loader.batch_sampler), [0]))
        batches: Any = [rows[i : i + size] for i in range(0, len(rows), size)]
        return DataLoader(dataset, batch_sampler=batches, **options)

    def _rows(self, count: int) -> list[int]:
        """List the rows that the loader reads, sorted; note if some are read more than others."""
        loader, sampler = self.loader, self.loader.sampler
        every = list(range(count))
        batched: Any = loader.batch_sampler
        plain = batched is None or type(batched) is BatchSampler
        if plain and isinstance(sampler, RandomSampler):
            return every
        if plain and isinstance(sampler, DistributedSampler):
            together = sampler.num_replicas == current_ranks().count
            if together:  # the ranks read every row
                return every
        if plain and isinstance(sampler, SequentialSampler):
            left = count % (loader.batch_size or 1) if loader.drop_last else 0
            if left:
                self.uneven = (
                    f"With drop_last=True and without shuffle=True, the last {left} of the "
                    f"{count} rows are in no batch."
                )
            return every
        with torch.random.fork_rng(devices=[]):
            source = sampler if plain else itertools.chain.from_iterable(batched)
            read = list(itertools.islice(source, 2 * count + 1))  # a sampler may be endless
        rows = sorted(set(read))
        if len(rows) < len(read):
            name = type(sampler if plain else batched).__name__
            self.uneven = f"The sampler {name} reads some rows more often than others."
            return every
        return rows


class MissingLoader(LoaderRows):
    """The loader of a fit that was loaded without it: only the first batch is available."""

    def __init__(self) -> None:
        self.uneven = ""
        self.size = None

    def in_order(self) -> Iterator[Any]:
        """Raise ModelError: the loader is missing."""
        raise ModelError(
            "The data of this fit came from a DataLoader, which is not saved. Pass it: "
            "probdl.load(folder, loader, model=...)."
        )


@contextmanager
def _seeded(loader: DataLoader[Any], seed: int | None, state: Any) -> Iterator[list[Any]]:
    """Set the generators that a loader draws from, and restore them; yield their state after.

    Args:
        loader: the loader, which may have a separate generator.
        seed: the seed to start from; None continues from ``state``.
        state: the states of an earlier context.
    """
    generators = [torch.default_generator]
    if loader.generator is not None:
        generators.append(loader.generator)
    before = [generator.get_state() for generator in generators]
    after: list[Any] = []
    try:
        for i, generator in enumerate(generators):
            if seed is None:
                generator.set_state(state[i])
            else:
                generator.manual_seed(seed)
        yield after
    finally:
        after[:] = [generator.get_state() for generator in generators]
        for generator, old in zip(generators, before, strict=True):
            generator.set_state(old)
