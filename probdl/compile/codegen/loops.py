"""C loops over tensors that are described by their strides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

MAX_SHORT_SUM = 8  # GCC 12 sums a few strided numbers with a condition wrongly in vectors

__all__ = ["Access", "Element", "contiguous", "copy", "nest", "shifted"]

Access = tuple[tuple[int, ...], int]
"""How a loop runs along a tensor: its strides, and the position of its first element."""

Element = Callable[[str], str]
"""A function from a C expression of a position to one of the element there."""


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor; the last dimension varies fastest."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def shifted(at: str, offset: int) -> str:
    """Add an offset to a C expression of a position."""
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
    """Write nested loops over a shape, with as few levels as the strides allow.

    Args:
        shape: the sizes.
        accesses: the access of each tensor that the body reads or writes.
        body: takes the C position in each tensor, and returns lines.
        pragma: the clause of ``omp simd`` on the innermost loop; None for no such pragma.
        index: the prefix of the loop variables; nested calls need different ones.
        rows: C names of the first index and the index after the last along the first dimension, to
            loop over a block of rows only.
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
        short = sizes[k] <= MAX_SHORT_SUM and "reduction" in (pragma or "")
        if k == len(sizes) - 1 and pragma is not None and not short:
            lines.insert(0, f"#pragma omp simd{pragma}")
    return lines


def copy(
    source_access: Access,
    target_access: Access,
    shape: Sequence[int],
    source: Element,
    target: Element,
) -> list[str]:
    """Write loops that copy one tensor to another of the same shape."""
    return nest(
        shape,
        [source_access, target_access],
        lambda at: [f"{target(at[1])} = {source(at[0])};"],
        "",
    )
