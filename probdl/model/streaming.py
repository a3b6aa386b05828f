"""Figures of all rows of a DataLoader, part by part; of other data, in one part.

A part holds consecutive rows in the dataset's order, so results have that order as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from probdl.errors import DataError, ModelError, ProbdlError, SettingError
from probdl.model import predictive
from probdl.model.elements import Elements
from probdl.model.predictive import Draws, LogLikelihood
from probdl.model.program import Program
from probdl.model.sites import Site, Structure, data_plate, discover
from probdl.util.clock import check_time_limit
from probdl.util.memory import machine_memory

__all__ = [
    "check_streamable",
    "count_rows",
    "data",
    "first_rows",
    "joint_log_likelihood",
    "log_likelihood",
    "over_rows",
    "parts",
    "sample",
    "sample_discrete",
    "sample_prior",
    "shared",
    "whole",
]

MAX_PART_NUMBERS = 2**20  # in the tensors of a part: 8 MiB in float64
MAX_COUNTED_ROWS = 10**7  # of a dataset without a length, which may be endless


def parts(program: Program, structure: Structure) -> Iterator[Program]:
    """Yield the program on consecutive parts of its data; on all data if there is no loader.

    Batches of the loader are joined to larger parts if the model runs on them.

    Raises:
        DataError: the loader has other rows than before, or batches of another structure.
    """
    if program.loader is None:
        yield program
        return
    done, joinable = 0, True
    for group in _groups(program, structure):
        check_time_limit()
        done += sum(_rows(program, structure, part) for part in group)
        if program.loader.size is not None and done > program.loader.size:
            break
        if len(group) > 1 and joinable:
            joined = _join(program, structure, group)
            try:  # a plate may have the size of a batch, instead of the length of its data
                if done == sum(_rows(program, structure, part) for part in group):
                    discover(joined)
                yield joined
                continue
            except ProbdlError:
                joinable = False
        yield from group
    if program.loader.size is not None and done != program.loader.size:
        more = "more than" if done > program.loader.size else f"{done} instead of"
        raise DataError(
            f"The DataLoader returned {more} {program.loader.size} rows. A dataset must return the "
            "same rows each time that it is read, and have its length as __len__."
        )


def _groups(program: Program, structure: Structure) -> Iterator[list[Program]]:
    """Yield the batches of the loader in groups of at most ``MAX_PART_NUMBERS`` numbers."""
    assert program.loader is not None
    group: list[Program] = []
    numbers = 0
    for batch in program.loader.in_order():
        part = program.on_batch(batch)
        size = sum(t.numel() for t in part.tensors())
        if group and (numbers + size > MAX_PART_NUMBERS or not _alike(group[0], part)):
            yield group
            group, numbers = [], 0
        group.append(part)
        numbers += size
    if group:
        yield group


def _alike(a: Program, b: Program) -> bool:
    """Return whether the tensors of two batches differ in their number of rows at most."""
    pairs = zip(a.tensors(), b.tensors(), strict=True)
    return all(s.ndim == t.ndim and s.shape[1:] == t.shape[1:] for s, t in pairs)


def _has_rows(program: Program, structure: Structure) -> list[bool]:
    """Say which tensors of the arguments have one row for each element of the data plate."""
    plate, size = data_plate(program, structure)
    found = [t.ndim > 0 and len(t) == size for t in program.tensors()]
    if not any(found):
        raise DataError(
            f"No tensor in the batches of the DataLoader has {size} rows, the size of plate "
            f"'{plate}'. A batch that is a tuple is spread over the model's arguments, and a dict "
            "over those of its keys; a single argument gets the batch as a whole."
        )
    return found


def _rows(program: Program, structure: Structure, part: Program) -> int:
    """Return the number of rows of a part."""
    has_rows = _has_rows(program, structure)
    lengths = {len(t) for t, has in zip(part.tensors(), has_rows, strict=True) if has and t.ndim}
    if len(lengths) != 1:
        raise DataError(
            f"The tensors of a batch of the DataLoader have {sorted(lengths)} rows. Each must have "
            "one row for each element of the data plate."
        )
    return lengths.pop()


def _join(program: Program, structure: Structure, group: Sequence[Program]) -> Program:
    """Return the program on the rows of several batches."""
    has_rows = _has_rows(program, structure)
    columns = zip(*(part.tensors() for part in group), strict=True)
    joined = []
    for has, column in zip(has_rows, columns, strict=True):
        if not has and any(not torch.equal(column[0], t) for t in column):
            raise DataError(
                "A tensor of the DataLoader's batches has no row for each element of the data "
                "plate, and differs from batch to batch. Repeat it for each row."
            )
        joined.append(torch.cat(column) if has else column[0])
    return group[0].with_tensors(joined)


def count_rows(program: Program, structure: Structure) -> int:
    """Return the number of rows of a loader, and keep it; reads them once if there is no length.

    Raises:
        DataError: the dataset has no length and does not end, or is no longer the same.
    """
    loader, (plate, _) = program.loader, data_plate(program, structure)
    assert loader is not None
    declared = structure.declared.get(plate)
    if loader.size is None:
        loader.size = declared
    if loader.size is None:
        size = 0
        for batch in loader.in_order():
            check_time_limit()
            size += _rows(program, structure, program.on_batch(batch))
            if size > MAX_COUNTED_ROWS:
                raise DataError(
                    f"The dataset of the DataLoader has no length, and returned more than "
                    f"{MAX_COUNTED_ROWS} rows. If it ends, declare its number of rows N in the "
                    f"model: pyro.plate('{plate}', N, subsample_size=len(x))."
                )
        loader.size = size
    if declared not in (None, loader.size):
        raise ModelError(
            f"Plate '{plate}' of the model '{program.name}' has size {declared}, but the "
            f"DataLoader has {loader.size} rows. Use len(loader.dataset) as its size."
        )
    return loader.size


def check_streamable(program: Program, structure: Structure) -> None:
    """Check that the likelihood of all rows is the product of those of the batches.

    Raises:
        DataError: the batches have no tensor with a row for each element of the data plate.
        ModelError: a term of the likelihood is not in the data plate, another plate takes a
            subsample, or the model scales the rows itself.
    """
    plate, size = data_plate(program, structure)
    _has_rows(program, structure)
    others = [name for name in structure.declared if name != plate]
    if others:
        raise ModelError(
            f"Plate '{others[0]}' takes a random subsample, which makes the log density random. "
            f"Remove its subsample_size; the minibatches are the rows of plate '{plate}'."
        )
    outside = [s.name for s in structure.terms() if plate not in s.dims]
    if outside:
        raise ModelError(
            f"{', '.join(map(repr, outside))} is computed from a minibatch but is not in the data "
            f"plate '{plate}', so it cannot be scaled to all rows. Put it in the plate, with one "
            "element for each row."
        )
    assert program.loader is not None
    if program.loader.size in (None, size):
        return
    scale = program.loader.size / size  # type: ignore[operator]

    def scaled(trace: Any) -> list[str]:
        scales = {s.name: float(trace.nodes[s.name]["scale"]) for s in structure.terms()}
        return [name for name, own in scales.items() if abs(own - scale) < 1e-6 * scale]

    with torch.random.fork_rng(devices=[]):
        names = program.run(scaled)
    if names:
        raise ModelError(
            f"Site '{names[0]}' is scaled by {scale:.6g}, the number of rows of the DataLoader "
            "over those of a batch. Minibatches are scaled to all rows anyway; remove "
            "poutine.scale from the model."
        )


# -- figures ------------------------------------------------------------------------------


def over_rows(
    program: Program,
    structure: Structure,
    evaluate: Callable[[Program], Mapping[str, Tensor]],
    axis: int,
    dims: Mapping[str, Sequence[str | None]] | None = None,
) -> dict[str, Tensor]:
    """Evaluate a function of each part, and join the results along the rows.

    Args:
        program: the model with its data.
        structure: its sites.
        evaluate: a function of the program on a part; returns tensors by name, whose dimensions
            from ``axis`` on are those of the site of this name, if there is one.
        axis: the dimension of the rows, if the name is not that of a site.
        dims: the plates of tensors that do not have those of the site of this name; read after
            the evaluation.
    """
    if program.loader is None:
        return dict(evaluate(program))
    plate, _ = data_plate(program, structure)
    blocks: list[Mapping[str, Tensor]] = []
    rows: list[int] = []
    size = 0
    for part in parts(program, structure):
        blocks.append(evaluate(part))
        rows.append(_rows(program, structure, part))
        size += sum(t.numel() * t.element_size() for t in blocks[-1].values())
        if 2 * size > machine_memory(unknown=float("inf")):
            raise SettingError(
                "The results for all rows of the DataLoader need more than the memory of this "
                "machine. Use fewer draws, or pass a part of the rows."
            )
    joined = {}
    for name in blocks[0]:
        of_name = [block[name] for block in blocks]
        site = structure.sites.get(name)
        own = (dims or {}).get(name, site.dims if site is not None else ())
        at = axis + (own.index(plate) if plate in own else 0)
        if plate in own or site is None or _along_rows(of_name, rows, at):
            joined[name] = torch.cat(of_name, at)
        elif all(torch.equal(of_name[0], other) for other in of_name):
            joined[name] = of_name[0]
    return joined


def _along_rows(blocks: Sequence[Tensor], rows: Sequence[int], axis: int) -> bool:
    """Return whether values outside the data plate are those of the rows."""
    lengths = [block.shape[axis] if block.ndim > axis else None for block in blocks]
    return lengths == list(rows) and not all(torch.equal(blocks[0], other) for other in blocks)


def log_likelihood(
    program: Program, structure: Structure, draws: Draws, elements: Elements | None = None
) -> LogLikelihood:
    """Compute the log likelihood of all rows at each draw, see ``predictive.log_likelihood``."""
    if program.loader is None:
        return predictive.log_likelihood(program, structure, draws, elements)
    total: Tensor | float = 0.0
    dims: dict[str, Sequence[str | None]] = {}
    last: LogLikelihood | None = None

    def score(part: Program) -> dict[str, Tensor]:
        nonlocal total, last
        last = predictive.log_likelihood(part, structure, draws, elements)
        total = total + last.joint
        pooled = {n: p.plates for n, p in last.plan.items() if p.plates and not p.whole}
        dims.update(pooled)
        return last.points

    points = over_rows(program, structure, score, 1, dims)
    assert last is not None
    return LogLikelihood(points, torch.as_tensor(total), last.missing, last.plan)


def joint_log_likelihood(program: Program, structure: Structure, draws: Draws) -> Tensor:
    """Compute the joint log likelihood of all rows at each draw, (n,), in bounded memory."""
    return sum(
        (
            predictive.log_likelihood(part, structure, draws, pointwise=False).joint
            for part in parts(program, structure)
        ),
        start=torch.zeros(()),
    )


def sample_discrete(
    program: Program, structure: Structure, draws: Draws, elements: Elements | None = None
) -> dict[str, Tensor]:
    """Sample the discrete sites of all rows given the data, see ``predictive``."""

    def sample_part(part: Program) -> dict[str, Tensor]:
        return predictive.sample_discrete(part, structure, draws, elements)

    return over_rows(program, structure, sample_part, 1)


def sample(
    program: Program,
    structure: Structure,
    draws: Draws,
    elements: Elements | None = None,
    given: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Sample the observed and deterministic sites of all rows, see ``predictive.sample``.

    Args:
        program: the model with its data.
        structure: its sites.
        draws: the latent and param sites.
        elements: how the elements of the plates match those of the fit.
        given: the discrete sites that are drawn given the data, which their observations share.
    """

    def sample_part(part: Program) -> dict[str, Tensor]:
        if not given:
            return predictive.sample(part, structure, draws, elements)
        found = predictive.sample_discrete(part, structure, draws)
        values = dict(draws) | {name: found[name] for name in given}
        return predictive.sample(part, structure, values, elements)

    return over_rows(program, structure, sample_part, 1)


def sample_prior(program: Program, structure: Structure, count: int) -> dict[str, Tensor]:
    """Sample all sites from the prior, the observed ones of all rows, see ``predictive``."""
    if program.loader is None:
        return predictive.sample_prior(program, structure, count)
    plate, _ = data_plate(program, structure)
    batch = program.with_arguments(program.args, program.kwargs)
    drawn = predictive.sample_prior(batch, structure, count)
    names = {s.name for s in structure.of("latent", "discrete") if plate not in s.dims}
    values = {n: v for n, v in drawn.items() if n in names}
    params = {s.name: s.value.expand(count, *s.shape) for s in structure.of("param")}
    return values | sample(program, structure, params | values)


def shared(
    program: Program, structure: Structure, values: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """Return values without those sites that have one value for each row of a loader.

    Args:
        program: the model with its data.
        structure: its sites.
        values: of the sites on the first batch, (n, *shape).
        names: the deterministic sites among them.
    """
    if program.loader is None or not names:
        return dict(values)
    plate, _ = data_plate(program, structure)
    params = {s.name: s.value.expand(2, *s.shape) for s in structure.of("param")}
    draws = params | {n: v[:2].expand(2, *v.shape[1:]) for n, v in values.items() if n not in names}
    local = {n for n in names if plate in structure.sites[n].dims}
    for part in itertools.islice(parts(program, structure), 2):
        found = predictive.sample(part, structure, draws)
        for name in names:
            a, b = found[name], values[name][:2]
            if a.shape[1:] != b.shape[1:] or not torch.allclose(a.to(b.dtype), b):
                local.add(name)
    return {n: v for n, v in values.items() if n not in local}


def first_rows(program: Program, structure: Structure, count: int) -> Program:
    """Return the program on this number of rows, repeating its data if it has fewer."""
    held = program
    if program.loader is not None:
        group: list[Program] = []
        rows = 0
        for part in parts(program, structure):
            group.append(part)
            rows += _rows(program, structure, part)
            if rows >= count:
                break
        held = _join(program, structure, group)
        has_rows = _has_rows(program, structure)
    else:
        rows = data_plate(program, structure)[1]
        has_rows = [t.ndim > 0 and len(t) == rows for t in program.tensors()]
    index = torch.arange(count) % rows
    pairs = zip(held.tensors(), has_rows, strict=True)
    return held.with_tensors([t[index] if has else t for t, has in pairs])


def data(program: Program, structure: Structure) -> list[tuple[str, Tensor]]:
    """List the tensors among the arguments, with all rows, each with a name."""
    if program.loader is None:
        return program.named_data()
    return _join(program, structure, list(parts(program, structure))).named_data()


def whole(program: Program, structure: Structure) -> Structure:
    """Return the sites with the data, masks and counts of all rows."""
    if program.loader is None:
        return structure
    found: list[Structure] = [discover(part) for part in parts(program, structure)]
    terms = {
        site.name: _joined_site([of.sites[site.name] for of in found]) for site in structure.terms()
    }
    return replace(structure, sites=structure.sites | terms)


def _joined_site(blocks: list[Site]) -> Site:
    """Join the observations of a site in the data plate, its first dimension."""
    value = torch.cat([site.value for site in blocks])
    mask = None
    if any(site.mask is not None for site in blocks):
        full = [
            torch.ones(site.shape[: len(site.shape) - (site.kind == "factor")], dtype=torch.bool)
            if site.mask is None
            else site.mask
            for site in blocks
        ]
        mask = torch.cat(full)
    return replace(
        blocks[0],
        value=value,
        shape=tuple(value.shape),
        mask=mask,
        count=sum(site.count for site in blocks),
    )
