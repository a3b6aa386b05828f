"""Loops in C over tensors that are given by their strides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Access", "Element", "contiguous", "copy", "nest", "shifted"]

Access = tuple[tuple[int, ...], int]
"""How a loop runs along a tensor: strides, and where it starts."""

Element = Callable[[str], str]
"""From a C expression of an index to one of the element there."""


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor without gaps, the last dimension the fastest."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def shifted(at: str, offset: int) -> str:
    """Add an offset to an index."""
    if not offset:
        return at
    return str(int(at) + offset) if at.isdigit() else f"{offset} + {at}"


def nest(
    shape: Sequence[int],
    accesses: Sequence[Access],
    body: Callable[[list[str]], list[str]],
    pragma: str | None,
    index: str = "i",
    rows: tuple[str, str] | None = None,
) -> list[str]:
    """Write a nest of loops over a shape, as few as the strides allow.

    Args:
        shape: the sizes.
        accesses: strides and start of each tensor that the body touches.
        body: takes the C index into each tensor, returns lines.
        pragma: the clause of ``omp simd`` on the innermost loop; None for no such pragma.
        index: how to name the loop variables; a nest inside another needs another name.
        rows: C names of the first index of the first dimension and of the one after the last,
            where not all are wanted.
    """
    dims = [d for d, n in enumerate(shape) if n != 1]
    sizes = [shape[d] for d in dims]
    first = sizes[0] if sizes else 1
    strides = [[a[0][d] for d in dims] for a in accesses]
    d = len(sizes) - 2
    while d >= 0:
        if all(s[d] == s[d + 1] * sizes[d + 1] for s in strides):
            sizes[d : d + 2] = [sizes[d] * sizes[d + 1]]
            for s in strides:
                del s[d]
        d -= 1
    names = [f"{index}{k}" for k in range(len(sizes))]
    indices = []
    for (_, start), s in zip(accesses, strides, strict=True):
        terms = [
            name if step == 1 else f"{step} * {name}"
            for name, step in zip(names, s, strict=True)
            if step
        ]
        if start or not terms:
            terms.insert(0, str(start))
        indices.append(" + ".join(terms))
    lines = body(indices)
    if not sizes:
        return ["{", *lines, "}"]
    for k in range(len(sizes) - 1, -1, -1):
        lowest, end = "0", str(sizes[k])
        if rows is not None and k == 0:
            lowest, end = (f"{sizes[0] // first} * {name}" for name in rows)
        loop = f"for (ptrdiff_t {names[k]} = {lowest}; {names[k]} < {end}; {names[k]}++) {{"
        lines = [loop, *lines, "}"]
        if k == len(sizes) - 1 and pragma is not None:
            lines.insert(0, f"#pragma omp simd{pragma}")
    return lines


def copy(
    source_access: Access,
    target_access: Access,
    shape: Sequence[int],
    source: Element,
    target: Element,
) -> list[str]:
    """Write loops that copy one tensor to another, both over the same shape."""
    return nest(
        shape,
        [source_access, target_access],
        lambda at: [f"{target(at[1])} = {source(at[0])};"],
        "",
    )
