"""Roll the steps of a loop over time, which a trace repeats, into a loop again.

Python unrolls a loop: its steps are equal statements at other places in memory. A repeat of equal
statements becomes one statement that runs the block in a C loop, forward and backward alike. What
one step hands to later ones, or to the gradient, is stored by step, so that steps are at places
that a formula or a table gives. Steps that read something of another kind, such as the first one,
stay before or after the loop.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from probdl.compile.codegen.periods import MIN_TURNS, Repeat, repeats
from probdl.compile.codegen.schedule import place, schedule
from probdl.compile.codegen.statements import (
    MIN_ROW_PASS_READS,
    Buffer,
    Numbers,
    Parts,
    Statement,
    Value,
    shape_of,
    squeezed_access,
)

__all__ = ["Loop", "roll"]

MAX_TOGETHER = 4  # repeats that are tried as one turn
MAX_BLOCKS = 32  # loops that one repeat is divided into


@dataclass(eq=False)
class Loop:
    """A loop over statements.

    Attributes:
        turns: the number of turns.
        groups: the statements of a turn, as ``schedule`` orders them.
        places: the positions of what is read in the same turn only, in ``memory``.
        memory: the work space of a turn.
    """

    turns: int
    groups: list[list[Statement]]
    places: dict[Buffer, int]
    memory: Buffer


def roll(
    statements: Sequence[Statement], *, reuse: bool = True
) -> tuple[list[Statement], dict[Statement, Loop]]:
    """Replace repeated statements by loops.

    Args:
        statements: the statements.
        reuse: whether the work space of a turn is reused within it.

    Returns:
        The statements, among them one for each loop; and the loops of these.
    """
    found = list(repeats(_codes(statements)))
    if not found:
        return list(statements), {}
    readers: dict[Buffer, list[int]] = defaultdict(list)
    for i, statement in enumerate(statements):
        for value in statement.operands:
            if isinstance(value.buffer, Buffer):
                readers[value.buffer].append(i)
    rolled: list[Statement] = []
    loops: dict[Statement, Loop] = {}
    end = 0
    for repeat in found:
        for block in _blocks(statements, repeat, readers):
            rolled += statements[end : block.position(block.first)]
            statement, loop = block.rolled(reuse)
            rolled.append(statement)
            loops[statement] = loop
            end = block.position(block.last)
    return [*rolled, *statements[end:]], loops


def _blocks(
    statements: Sequence[Statement], repeat: Repeat, readers: dict[Buffer, list[int]]
) -> Iterator[_Block]:
    """Yield the parts of a repeat that loops can run, from left to right."""
    for _ in range(MAX_BLOCKS):  # each takes time in proportion to what is left
        if repeat.turns < MIN_TURNS:
            return
        # Operands of equal statements may be of several kinds in turn: such turns belong together.
        together = (
            _Block(statements, Repeat(repeat.start, repeat.period * m, turns), readers, sample)
            for m in range(1, MAX_TOGETHER + 1)
            if (turns := repeat.turns // m) >= MIN_TURNS
            for sample in (turns // 2, turns // 4, 3 * turns // 4)
        )
        block = next((b for b in together if b.last - b.first >= MIN_TURNS), None)
        if block is None:
            return
        before = Repeat(repeat.start, block.period, block.first)
        after = Repeat(block.position(block.last), block.period, len(block.turns) - block.last)
        if before.turns >= MIN_TURNS:
            yield from _blocks(statements, before, readers)
            turns = block.last - block.first
            here = Repeat(before.end, block.period, turns)
            block = _Block(statements, here, readers, turns // 2)
        yield block
        repeat = after


def _codes(statements: Sequence[Statement]) -> list[int]:
    """Return a number for each statement, equal for those that are equal but for their places."""
    known: dict[Any, int] = {}
    return [known.setdefault(_code(s), len(known)) for s in statements]


def _code(statement: Statement) -> Any:
    kinds = tuple(isinstance(v.buffer, Buffer) for v in statement.operands)
    sizes = tuple(b.size for b in statement.outputs)
    if statement.key is not None:
        if math.prod(shape_of(statement.key)) >= MIN_ROW_PASS_READS:
            return id(statement)  # for passes over rows
        text = statement.write(*(f"@{k}" for k in range(len(kinds))))
        strides = tuple(squeezed_access(v)[0] for v in statement.operands)
        return statement.key, str(statement.total), text, strides, kinds, sizes
    count = len(kinds) + len(sizes)
    reads = sum(v.layout.numel() for v in statement.operands)
    if not count or reads >= MIN_ROW_PASS_READS:
        return id(statement)
    lines = statement.write(*(lambda at, k=k: f"@{k}[{at}]" for k in range(count)))
    return ("\n".join(lines), kinds, sizes) if lines else id(statement)


@dataclass(frozen=True)
class _Source:
    """What an operand reads in one turn.

    Attributes:
        root: the buffer, or the one that it is a part of; None for a number.
        at: the position of the first element there, or the number.
        maker: the place in the block of the statement that computes it; None if it is outside.
        lag: the number of turns since then.
    """

    root: Buffer | None
    at: Any
    maker: tuple[int, int] | None = None
    lag: int = 0


class _Block:
    """A repeat of statements, and the turns of it that a loop can run.

    Attributes:
        sample: a turn; those before and after it that are of the same kind make the loop.
        first: the first turn of the loop.
        last: the turn after its last one.
    """

    def __init__(
        self,
        statements: Sequence[Statement],
        repeat: Repeat,
        readers: dict[Buffer, list[int]],
        sample: int,
    ) -> None:
        self.start, self.period, turns = repeat.start, repeat.period, repeat.turns
        self.turns = [
            statements[self.position(turn) : self.position(turn + 1)] for turn in range(turns)
        ]
        self.readers = readers
        # By buffer that the repeat computes: the turn, the statement, and the output.
        self.made = {
            buffer: (turn, j, k)
            for turn, block in enumerate(self.turns)
            for j, statement in enumerate(block)
            for k, buffer in enumerate(statement.outputs)
        }
        self.sources = [
            [
                [self._source(block[j].operands[k], turn) for turn, block in enumerate(self.turns)]
                for k in range(len(self.turns[0][j].operands))
            ]
            for j in range(self.period)
        ]
        self.sample = sample
        self.first, self.last = 0, turns
        for by_operand in self.sources:
            for sources in by_operand:
                self._narrow(sources)
        for j in range(self.period):
            for k in range(len(self.turns[0][j].outputs)):
                homes = [block[j].outputs[k].home for block in self.turns]
                self._narrow([_Source(home[0] if home else None, 0) for home in homes])

    def position(self, turn: int) -> int:
        """Return the position of a turn's first statement."""
        return self.start + turn * self.period

    def _source(self, value: Value, turn: int) -> _Source:
        buffer = value.buffer
        if not isinstance(buffer, Buffer):
            return _Source(None, buffer)
        if buffer in self.made:
            made, j, k = self.made[buffer]
            return _Source(buffer, value.start, (j, k), turn - made)
        root, at = buffer.place
        return _Source(root, at + value.start)

    def _narrow(self, sources: Sequence[_Source]) -> None:
        """Leave out turns whose source is of another kind than in the sample."""
        kind = _kind(sources, self.sample)
        first = last = self.sample
        while first > 0 and _kind(sources, first - 1, kind) == kind:
            first -= 1
        while last < len(sources) and _kind(sources, last, kind) == kind:
            last += 1
        self.first, self.last = max(self.first, first), min(self.last, last)

    def rolled(self, reuse: bool) -> tuple[Statement, Loop]:
        """Return the loop, as a statement among the others."""
        self._place_together()
        results = self._results()
        body = [self._of_one_turn(j, results) for j in range(self.period)]
        groups = schedule(body)
        places, size = place(groups, reuse=reuse)
        memory = Buffer("", max(size, 1))
        inside = [s for block in self.turns[self.first : self.last] for s in block]
        roots = {b.place[0]: None for s in inside for b in s.outputs if b.home is not None}
        statement = Statement(0, None, self._reads(inside), [*roots, memory], lambda *_: [])
        memory.producer = statement
        for one in inside:
            for buffer in one.outputs:
                buffer.producer = statement
        return statement, Loop(self.last - self.first, groups, places, memory)

    def _place_together(self) -> None:
        """Place buffers that an operand reads in turn one after the other."""
        together: list[list[Buffer]] = []
        for sources in (s[self.first : self.last] for of in self.sources for s in of):
            roots = dict.fromkeys(s.root for s in sources if s.root and s.maker is None)
            if len(roots) > 1 and not any(root.name for root in roots):
                touching = [group for group in together if any(root in roots for root in group)]
                together = [group for group in together if group not in touching]
                together.append([*roots, *(root for group in touching for root in group)])
        for group in together:
            _join(group)

    def _results(self) -> list[list[Buffer]]:
        """Return the buffers that the statements of a turn write to."""
        results: list[list[Buffer]] = []
        for j in range(self.period):
            of_statement: list[Buffer] = []
            for k, sample in enumerate(self.turns[self.first][j].outputs):
                every = [block[j].outputs[k] for block in self.turns]
                stored = any(map(self._is_read_elsewhere, every[self.first : self.last]))
                others = [*every[: self.first], *every[self.last :]]
                if stored or any(map(self._is_read_in_loop, others)):
                    _join([b for b in every if b.home is None])
                if stored:
                    parts = [buffer.place for buffer in every[self.first : self.last]]
                    of_statement.append(Parts("", sample.size, parts=parts))
                else:
                    of_statement.append(Buffer("", sample.size))
            results.append(of_statement)
        return results

    def _is_read_elsewhere(self, buffer: Buffer) -> bool:
        """Return whether a result is read outside its turn of the loop."""
        turn = self.made[buffer][0]
        mine = range(self.position(turn), self.position(turn + 1))
        elsewhere = any(i not in mine for i in self.readers.get(buffer, ()))
        return buffer.keep or buffer.home is not None or elsewhere

    def _is_read_in_loop(self, buffer: Buffer) -> bool:
        loop = range(self.position(self.first), self.position(self.last))
        return any(i in loop for i in self.readers.get(buffer, ()))

    def _of_one_turn(self, j: int, results: Sequence[Sequence[Buffer]]) -> Statement:
        sample = self.turns[self.first][j]
        operands = [
            self._operand(value, sources[self.first : self.last], results)
            for value, sources in zip(sample.operands, self.sources[j], strict=True)
        ]
        statement = Statement(j, sample.key, operands, list(results[j]), sample.write, sample.total)
        for buffer in results[j]:
            buffer.producer = statement
        return statement

    def _operand(
        self, value: Value, sources: Sequence[_Source], results: Sequence[Sequence[Buffer]]
    ) -> Value:
        source = sources[0]
        if source.root is None:
            numbers = [float(s.at) for s in sources]
            if all(repr(n) == repr(numbers[0]) for n in numbers):
                return value
            return Value(Numbers("", 1, numbers=numbers), value.layout)
        if source.maker is not None and not source.lag:
            j, k = source.maker
            return Value(results[j][k], value.layout, value.start)
        parts = []
        for s in sources:
            assert s.root is not None
            root, at = s.root.place
            parts.append((root, at + s.at))
        return Value(Parts("", value.layout.numel(), parts=parts), value.layout)

    def _reads(self, inside: Sequence[Statement]) -> list[Value]:
        """Return a value for each statement outside, or input, that the loop reads."""
        mine = set(inside)
        found: dict[Any, Value] = {}
        for value in (v for s in inside for v in s.operands):
            if isinstance(value.buffer, Buffer) and value.producer not in mine:
                found.setdefault((value.producer, value.buffer.place[0]), value)
        return list(found.values())


def _kind(sources: Sequence[_Source], turn: int, like: Any = None) -> Any:
    """Return what must be equal in all turns of a loop.

    Args:
        sources: what an operand reads, by turn.
        turn: the turn.
        like: the kind in the sample; None to find it.
    """
    source = sources[turn]
    root = source.root
    if root is None:
        return "number"
    if source.maker is not None:
        return source.maker, min(source.lag, 1), source.at, root.home and root.home[0]
    if root.name and root.name != "z":
        return "array"
    if like is not None and like[0] == "loose":
        return ("loose", root.size) if _is_loose(root) else ("root", root)
    near = [*sources[max(turn - 1, 0) : turn], *sources[turn + 1 : turn + 2]]
    if like is None and _is_loose(root) and all(s.root is not root for s in near):
        return "loose", root.size
    return "root", root


def _is_loose(buffer: Buffer) -> bool:
    """Return whether a place for a buffer can still be chosen."""
    return buffer.home is None and not buffer.name and not buffer.whole


def _join(buffers: Iterable[Buffer]) -> None:
    """Place buffers of the same size one after the other."""
    distinct = list(dict.fromkeys(buffers))
    if not distinct:
        return
    size = distinct[0].size
    root = Buffer("", size * len(distinct), keep=any(b.keep for b in distinct))
    root.whole = True
    for i, buffer in enumerate(distinct):
        buffer.home = (root, i * size)
