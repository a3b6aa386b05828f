"""Write a graph of tensor operations as C.

Each tensor is a stretch of memory with strides, so that views cost nothing: their layout is
computed by torch itself, on tensors without storage. Element-wise operations of one shape, and
sums over all of it, share one loop; what only that loop reads never reaches memory. Work on
single numbers is straight-line code, which keeps an unrolled loop over time affordable.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, fx

from probdl.compile.operations import ALLOCATIONS, CONSTANTS, POINTWISE, REDUCTIONS, literal
from probdl.errors import ProbdlError

__all__ = ["Source", "UnsupportedError", "emit", "is_view", "supports"]

aten = torch.ops.aten

PART_LINES = 250  # of a C function; compilers take more than linear time over long ones
LOOP_STATEMENTS = 400  # that share a loop, for the same reason
REUSED = 512  # numbers from which on memory is worth using twice
STACK = 4096  # numbers of work space that fit on any thread's stack

Access = tuple[tuple[int, ...], int]  # strides along a loop, and where it starts


class UnsupportedError(ProbdlError, RuntimeError):
    """The graph has an operation that has no C form here."""


@dataclass(frozen=True)
class Source:
    """C code of a log density with its gradient.

    Attributes:
        text: the translation unit; it defines ``int64_t logp(dim, z, grad, logp, user)``.
        work: how many numbers of work space a call needs, 0 where the stack will do.
        statements: how many operations there are, a measure of the code's length.
    """

    text: str
    work: int
    statements: int


@dataclass(eq=False)
class Buffer:
    """A stretch of memory: the point, an array of data, or work space."""

    name: str  # the C expression that it starts at; of work space, once it has a place
    size: int
    producer: Statement | None = None
    keep: bool = False  # is read after the last statement


@dataclass(frozen=True)
class Value:
    """A tensor: a layout over a buffer, or one number everywhere."""

    buffer: Buffer | float
    layout: Tensor  # on the meta device; its storage stands for the buffer

    def like(self, layout: Tensor) -> Value:
        return Value(self.buffer, layout)

    @property
    def access(self) -> Access:
        return tuple(self.layout.stride()), int(self.layout.storage_offset())


@dataclass(eq=False)
class Statement:
    """An operation that computes something."""

    index: int
    key: Any  # statements of one key may share a loop: the shape; None where none may
    operands: list[Value]
    outputs: list[Buffer]
    write: Callable[..., Any]  # loops: operand names to an expression; else code
    total: Any = None  # the operation, of a reduction to one number
    consumers: list[tuple[Statement, bool]] = field(default_factory=list)
    group: int = -1

    @property
    def name(self) -> str:
        return f"t{self.index}"


def is_view(node: fx.Node) -> bool:
    """Tell whether a node is another layout of its input."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and (node.target.is_view or node.target.overloadpacket in _VIEWS)
        and node.target.overloadpacket is not aten.as_strided
    )


def supports(op: Any) -> bool:
    """Tell whether an operation can be written as C."""
    if not isinstance(op, torch._ops.OpOverload):
        return False
    packet = op.overloadpacket
    if op in (aten.max.default, aten.min.default):  # only those along a dimension
        return False
    return (
        packet in POINTWISE
        or packet in REDUCTIONS
        or packet in CONSTANTS
        or packet in ALLOCATIONS
        or packet in _HANDLERS
        or packet in _VIEWS
        or op.is_view
    )


def emit(graph: fx.Graph, dim: int) -> Source:
    """Write a graph (z, *arrays) to (gradient, value) as C.

    Raises:
        UnsupportedError: an operation is not known here.
    """
    return _Emitter(graph, dim).source()


class _Emitter:
    def __init__(self, graph: fx.Graph, dim: int) -> None:
        self.dim = dim
        self.values: dict[fx.Node, Any] = {}
        self.statements: list[Statement] = []
        self.work: list[Buffer] = []
        arrays = 0
        for node in graph.nodes:
            if node.op == "placeholder":
                name = "z" if node.name == "z" else f"d[{arrays}]"
                arrays += node.name != "z"
                layout = _empty(node.meta["val"].shape)
                self.values[node] = Value(Buffer(name, layout.numel()), layout)
            elif node.op == "output":
                grad, value = (self.values[n] for n in node.args[0])
                self.grad, self.value = self.stored(grad), self.stored(value)
            else:
                self.visit(node)

    # -- reading the graph ----------------------------------------------------------------

    def visit(self, node: fx.Node) -> None:
        args = [self.operand(a) for a in node.args]
        kwargs = {k: self.operand(v) for k, v in node.kwargs.items()}
        if not isinstance(node.target, torch._ops.OpOverload):  # operator.getitem
            self.values[node] = args[0][args[1]]
            return
        op = node.target.overloadpacket
        self.shape = tuple(node.meta["val"].shape) if "val" in node.meta else ()
        self.dtype = node.meta["val"].dtype if "val" in node.meta else None
        source = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
        self.contiguous = isinstance(source, Tensor) and source.is_contiguous()
        single = self.dtype in (torch.float32, torch.float16, torch.bfloat16)
        exact = op in _CONSTANT or is_view(node)  # a number is the same in double precision
        if (single and not exact) or (self.dtype is not None and self.dtype.is_complex):
            raise UnsupportedError(f"{node.target} computes in {self.dtype}, not in float64")
        try:
            if is_view(node):
                self.values[node] = self.view(node.target, args, kwargs)
            elif op in _HANDLERS:
                self.values[node] = _HANDLERS[op](self, *args, **kwargs)
            elif op in POINTWISE:
                kwargs = {k: v for k, v in kwargs.items() if k in ("alpha", "rounding_mode")}
                self.values[node] = self.pointwise(op, args, kwargs)
            elif op in REDUCTIONS:
                kwargs.pop("dtype", None)
                self.values[node] = self.reduction(op, *args, **kwargs)
            else:
                raise UnsupportedError(f"the operation {node.target} has no C form")
        except (TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            if isinstance(error, UnsupportedError):
                raise
            raise UnsupportedError(f"{node.target}: {error}") from error

    def operand(self, x: Any) -> Any:
        if isinstance(x, fx.Node):
            return self.values[x]
        if isinstance(x, (list, tuple)):
            return [self.operand(item) for item in x]
        return x

    def buffer(self, size: int) -> Buffer:
        self.work.append(Buffer("", size))
        return self.work[-1]

    def statement(
        self,
        key: Any,
        operands: Sequence[Value],
        shapes: Sequence[Sequence[int]],
        write: Callable[..., Any],
        total: Any = None,
    ) -> list[Value]:
        """Add a statement; return its results, each in a contiguous buffer of its own."""
        layouts = [_empty(shape) for shape in shapes]
        buffers = [self.buffer(layout.numel()) for layout in layouts]
        statement = Statement(len(self.statements), key, list(operands), buffers, write, total)
        for buffer in buffers:
            buffer.producer = statement
        self.statements.append(statement)
        return [Value(b, layout) for b, layout in zip(buffers, layouts, strict=True)]

    def view(self, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        value = args[0]
        try:
            layout = op(value.layout, *args[1:], **kwargs)
        except RuntimeError:  # a view in torch's layout, not in ours, which is contiguous
            value = self.copied(value)
            layout = op(value.layout, *args[1:], **kwargs)
        if isinstance(layout, Tensor):
            return value.like(layout)
        return [value.like(part) for part in layout]

    def copied(self, value: Value) -> Value:
        """Write a value out, one element after the other."""
        shape = tuple(value.layout.shape)
        return self.statement(_squeezed(shape), [value], [shape], lambda x: x)[0]

    def in_memory(self, value: Value) -> Value:
        return value if isinstance(value.buffer, Buffer) else self.copied(value)

    def stored(self, value: Value) -> Value:
        """Make a value one that lies in memory to the end."""
        value = self.in_memory(value)
        assert isinstance(value.buffer, Buffer)
        value.buffer.keep = True
        return value

    def elementwise(
        self, expression: Callable[..., str], operands: Sequence[Value], shape: tuple[int, ...]
    ) -> Value:
        expanded = [v.like(v.layout.expand(shape)) for v in operands]
        # Along dimensions in which nothing varies, once is enough.
        small = list(shape)
        for d, n in enumerate(shape):
            if n > 1 and not any(v.layout.stride(d) for v in expanded):
                small[d] = 1
                expanded = [v.like(v.layout.narrow(d, 0, 1)) for v in expanded]
        (result,) = self.statement(_squeezed(small), expanded, [small], expression)
        return result.like(result.layout.expand(shape))

    def pointwise(self, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Value:
        operands = [a for a in args if isinstance(a, Value)]
        holes = [None if isinstance(a, Value) else a for a in args]
        is_value = [isinstance(a, Value) for a in args]
        if op is aten.bitwise_not and self.dtype != torch.bool:
            raise UnsupportedError("bitwise_not of integers has no C form")

        same = _neutral(op, args, kwargs)
        if same is not None:
            return same.like(same.layout.expand(self.shape))

        def expression(*names: str) -> str:
            given = iter(names)
            parts = [
                next(given) if value else (literal(hole) if _is_number(hole) else hole)
                for value, hole in zip(is_value, holes, strict=True)
            ]
            return POINTWISE[op](*parts, **kwargs)

        return self.elementwise(expression, operands, self.shape)

    def reduction(self, op: Any, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
        shape = tuple(x.layout.shape)
        if dims is None or dims == []:
            dims = list(range(len(shape)))
        axes = (
            {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims)}
            if shape
            else set()
        )
        if op is aten.sum:
            for d in axes:  # what does not vary along a dimension is its size times that
                n = x.layout.shape[d]
                if n > 1 and x.layout.stride(d) == 0:
                    one = x.like(x.layout.narrow(d, 0, 1))
                    times = literal(n)
                    x = self.elementwise(
                        lambda v, times=times: f"({v} * {times})", [one], tuple(one.layout.shape)
                    )
            shape = tuple(x.layout.shape)
        if x.layout.numel() == 1:
            return self.elementwise(lambda v: v, [x.like(x.layout.reshape(self.shape))], self.shape)
        if all(n == 1 for i, n in enumerate(shape) if i not in axes):
            key = _squeezed(shape)
            kind = "sum" if op is aten.sum else str(op)
            return self.statement(
                key if kind == "sum" else (*key, kind), [x], [self.shape], lambda v: v, total=op
            )[0]
        kept = [i for i in range(len(shape)) if i not in axes]
        start, step = REDUCTIONS[op]
        outer = x.layout.permute(*kept, *sorted(axes))
        sizes, strides = tuple(outer.shape), outer.stride()
        k = len(kept)
        inner_first = min(
            (s for s, n in zip(strides[k:], sizes[k:], strict=True) if n > 1), default=0
        ) <= min((s for s, n in zip(strides[:k], sizes[:k], strict=True) if n > 1), default=0)
        offset = int(outer.storage_offset())
        contiguous = _contiguous(sizes[:k])

        def write(source: Callable[[str], str], target: Callable[[str], str]) -> list[str]:
            if inner_first:
                clause = " reduction(+ : sum)" if op is aten.sum else None
                return _nest(
                    sizes[:k],
                    [(tuple(strides[:k]), offset), (contiguous, 0)],
                    lambda at: [
                        f"double sum = {start};",
                        *_nest(
                            sizes[k:],
                            [(tuple(strides[k:]), 0)],
                            lambda inner: [step.format("sum", source(f"{at[0]} + {inner[0]}"))],
                            clause,
                            "j",
                        ),
                        f"{target(at[1])} = sum;",
                    ],
                    None,
                )
            fill = _nest(
                sizes[:k], [(contiguous, 0)], lambda at: [f"{target(at[0])} = {start};"], ""
            )
            return fill + _nest(
                sizes[k:],
                [(tuple(strides[k:]), offset)],
                lambda outer_at: _nest(
                    sizes[:k],
                    [(tuple(strides[:k]), 0), (contiguous, 0)],
                    lambda at: [step.format(target(at[1]), source(f"{outer_at[0]} + {at[0]}"))],
                    "",
                    "j",
                ),
                None,
            )

        return self.statement(None, [x], [self.shape], write)[0]

    def assembled(self, base: Value | float, pieces: Sequence[tuple[Tensor, Value]]) -> Value:
        """Make a tensor of ``self.shape`` from a base and values written over parts of it.

        Each part is a layout over a contiguous tensor of that shape.
        """
        shape = self.shape
        whole = _empty(shape)

        def write(*names: Callable[[str], str]) -> list[str]:
            *sources, target = names
            lines: list[str] = []
            if isinstance(base, Value):
                lines += _copy(base.access, (tuple(whole.stride()), 0), shape, sources[0], target)
                sources = sources[1:]
            elif sum(part.numel() for part, _ in pieces) < whole.numel():
                lines += _nest(
                    shape,
                    [(tuple(whole.stride()), 0)],
                    lambda at: [f"{target(at[0])} = {literal(base)};"],
                    "",
                )
            for (part, value), source in zip(pieces, sources, strict=True):
                to = (tuple(part.stride()), int(part.storage_offset()))
                expanded = value.layout.expand(part.shape)
                access = (tuple(expanded.stride()), int(expanded.storage_offset()))
                lines += _copy(access, to, tuple(part.shape), source, target)
            return lines

        operands = [base] if isinstance(base, Value) else []
        return self.statement(None, [*operands, *(v for _, v in pieces)], [shape], write)[0]

    # -- putting statements in order ------------------------------------------------------

    def schedule(self) -> list[list[Statement]]:
        """Order the statements so that those of one shape come together, as far as they can."""
        waiting = [0] * len(self.statements)
        for statement in self.statements:
            for value in statement.operands:
                producer = value.buffer.producer if isinstance(value.buffer, Buffer) else None
                if producer is not None:
                    waiting[statement.index] += 1
                    producer.consumers.append((statement, _aligned(value, producer, statement)))
        ready: dict[Any, list[int]] = defaultdict(list)
        order: list[tuple[int, int, Any]] = []  # keys by size, the smallest first

        def release(statement: Statement) -> None:
            key = statement.key if statement.key is not None else ("alone", statement.index)
            if not ready[key]:
                size = math.prod(statement.key) if _is_shape(statement.key) else 2
                heapq.heappush(order, (size, statement.index, key))
            heapq.heappush(ready[key], statement.index)

        for statement in self.statements:
            if not waiting[statement.index]:
                release(statement)
        groups: list[list[Statement]] = []
        while order:
            _, _, key = heapq.heappop(order)
            if not ready[key]:
                continue
            group: list[Statement] = []
            later: list[Statement] = []
            while ready[key] and len(group) < LOOP_STATEMENTS:
                statement = self.statements[heapq.heappop(ready[key])]
                statement.group = len(groups)
                group.append(statement)
                for consumer, aligned in statement.consumers:
                    if not aligned:
                        later.append(consumer)
                        continue
                    waiting[consumer.index] -= 1
                    if not waiting[consumer.index]:
                        heapq.heappush(ready[key], consumer.index)
            if ready[key]:
                rest = self.statements[ready[key][0]]
                size = math.prod(rest.key) if _is_shape(rest.key) else 2
                heapq.heappush(order, (size, rest.index, key))
            for consumer in later:
                waiting[consumer.index] -= 1
                if not waiting[consumer.index]:
                    release(consumer)
            groups.append(group)
        return groups

    def place(self, groups: list[list[Statement]]) -> int:
        """Give each buffer that is read outside its loop a place in the work space."""
        last: dict[Buffer, int] = {}
        for statement in self.statements:
            for value in statement.operands:
                if isinstance(value.buffer, Buffer) and value.buffer.producer is not None:
                    last[value.buffer] = max(last.get(value.buffer, 0), statement.group)
        ends: dict[int, list[Buffer]] = defaultdict(list)
        self.offsets: dict[Buffer, int] = {}
        free: list[tuple[int, int]] = []  # (size, offset)
        top = 0
        for i, group in enumerate(groups):
            for statement in group:
                for buffer in statement.outputs:
                    inside = all(c.group == i and aligned for c, aligned in statement.consumers)
                    if (
                        inside
                        and statement.key is not None
                        and not buffer.keep
                        and not statement.total
                    ):
                        continue
                    fitting = [f for f in free if f[0] >= buffer.size >= REUSED]
                    if fitting:
                        size, offset = min(fitting)
                        free.remove((size, offset))
                        if size > buffer.size:
                            free.append((size - buffer.size, offset + buffer.size))
                    else:
                        offset, top = top, top + buffer.size
                    self.offsets[buffer] = offset
                    if not buffer.keep:
                        ends[last.get(buffer, i)].append(buffer)
            for buffer in ends.pop(i, []):
                if buffer.size >= REUSED:
                    free.append((buffer.size, self.offsets[buffer]))
        return top

    # -- writing --------------------------------------------------------------------------

    def source(self) -> Source:
        groups = self.schedule()
        work = self.place(groups)
        parts: list[list[str]] = [[]]
        for group in groups:
            lines = self.group(group)
            if parts[-1] and len(parts[-1]) + len(lines) > PART_LINES:
                parts.append([])
            parts[-1] += lines
        signature = "const double *restrict z, const double *const *restrict d, double *restrict w"
        text = [files("probdl.compile").joinpath("prelude.h").read_text()]
        for i, lines in enumerate(parts):
            text += [f"static void part{i}({signature}) {{", *lines, "}"]
        text += [
            "int64_t logp(uint64_t dim, const double *z, double *grad, double *value,"
            " const void *user) {",
            "(void)dim;",
            "const Bound *bound = user;",
            "const double *const *d = bound->data;",
        ]
        on_stack = work <= STACK
        text += (
            [f"double w[{max(work, 1)}];"] if on_stack else [_ACQUIRE.replace("WORK", str(work))]
        )
        text += [f"part{i}(z, d, w);" for i in range(len(parts))]
        grad, value = self.grad, self.value
        text += _copy(
            grad.access, ((1,), 0), (self.dim,), self.reader(grad.buffer), lambda i: f"grad[{i}]"
        )
        text += [
            f"*value = {self.reader(value.buffer)(str(value.access[1]))};",
            "int fine = __builtin_isfinite(*value);",
            "for (size_t i = 0; i < dim; i++) fine &= __builtin_isfinite(grad[i]) != 0;",
            *([] if on_stack else [_RELEASE]),
            "return fine ? 0 : 1;",
            "}",
        ]
        return Source("\n".join(text) + "\n", 0 if on_stack else work, len(self.statements))

    def reader(self, buffer: Buffer | float) -> Callable[[str], str]:
        """Return how a C expression of an index becomes one of the element there."""
        if not isinstance(buffer, Buffer):
            return lambda at: literal(buffer)
        if buffer.producer is None:
            return lambda at: f"{buffer.name}[{at}]"
        offset = self.offsets[buffer]
        return lambda at: f"w[{_plus(at, offset)}]"

    def group(self, group: list[Statement]) -> list[str]:
        first = group[0]
        if first.key is None:
            names = [self.reader(v.buffer) for v in first.operands]
            names += [self.reader(b) for b in first.outputs]
            return ["{", *first.write(*names), "}"]
        return self.scalars(group) if math.prod(_shape_of(first.key)) == 1 else self.loop(group)

    def scalars(self, group: list[Statement]) -> list[str]:
        lines = ["{"]
        inside = {s.outputs[0]: s.name for s in group}
        for statement in group:
            names = []
            for value in statement.operands:
                if not isinstance(value.buffer, Buffer):
                    names.append(literal(value.buffer))
                elif value.buffer in inside:
                    names.append(inside[value.buffer])
                else:
                    names.append(self.reader(value.buffer)(str(value.access[1])))
            lines.append(f"const double {statement.name} = {statement.write(*names)};")
            if statement.outputs[0] in self.offsets:
                lines.append(f"{self.reader(statement.outputs[0])('0')} = {statement.name};")
        return [*lines, "}"]

    def loop(self, group: list[Statement]) -> list[str]:
        shape = _shape_of(group[0].key)
        contiguous = (_contiguous(shape), 0)
        inside = {s.outputs[0]: s for s in group if not s.total}
        before: list[str] = []
        body: list[tuple[Statement, list[Any]]] = []
        accesses: list[Access] = []
        loads: dict[tuple[Buffer, Access], str] = {}  # names of what is read from memory
        for statement in group:
            names: list[Any] = []
            for value in statement.operands:
                buffer, access = value.buffer, _squeezed_access(value, shape)
                if not isinstance(buffer, Buffer):
                    names.append(literal(buffer))
                elif buffer in inside and inside[buffer] is not statement:
                    names.append(inside[buffer].name)
                elif (buffer, access) in loads:
                    names.append(loads[buffer, access])
                else:
                    name = loads[buffer, access] = f"x{statement.index}_{len(names)}"
                    names.append(name)
                    if not any(access[0]):
                        at = self.reader(buffer)(str(access[1]))
                        before.append(f"const double {name} = {at};")
            body.append((statement, names))
        varying = [(b, a, name) for (b, a), name in loads.items() if any(a[0])]
        accesses = [*(a for _, a, _ in varying), contiguous]
        sums = [s.name for s in group if s.total]
        plain_sums = all(s.total is aten.sum for s in group if s.total)

        def write(at: list[str]) -> list[str]:
            lines = [
                f"const double {name} = {self.reader(buffer)(index)};"
                for (buffer, _, name), index in zip(varying, at, strict=False)
            ]
            for statement, names in body:
                expression = statement.write(*names)
                if statement.total:
                    lines.append(REDUCTIONS[statement.total][1].format(statement.name, expression))
                    continue
                lines.append(f"const double {statement.name} = {expression};")
                if statement.outputs[0] in self.offsets:
                    lines.append(f"{self.reader(statement.outputs[0])(at[-1])} = {statement.name};")
            return lines

        before += [f"double {s.name} = {REDUCTIONS[s.total][0]};" for s in group if s.total]
        clause = f" reduction(+ : {', '.join(sums)})" if sums else ""
        loops = _nest(shape, accesses, write, clause if plain_sums else None)
        after = [f"{self.reader(s.outputs[0])('0')} = {s.name};" for s in group if s.total]
        return ["{", *before, *loops, *after, "}"]


_ACQUIRE = """uint64_t slot = 0;
while (slot < bound->slots && __atomic_exchange_n(bound->busy + slot, 1, __ATOMIC_ACQUIRE)) slot++;
double *w = slot < bound->slots ? bound->work[slot] : malloc(WORK * sizeof(double));
if (!w) return -1;"""
_RELEASE = """if (slot < bound->slots) __atomic_store_n(bound->busy + slot, 0, __ATOMIC_RELEASE);
else free(w);"""


def _empty(shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), device="meta", dtype=torch.float64)


def _is_number(x: Any) -> bool:
    return isinstance(x, (bool, int, float))


def _neutral(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Value | None:
    """Return the operand that an operation leaves as it is: x + 0, x - 0, x * 1, x / 1, a copy."""
    if op is aten.clone:
        return args[0]  # type: ignore[no-any-return]
    if op not in _NEUTRAL or kwargs.get("rounding_mode") is not None:
        return None
    numbers = [a.buffer if isinstance(a, Value) else a for a in args]
    for i in (1, 0) if op in (aten.add, aten.mul) else (1,):
        other = args[1 - i]
        if numbers[i] == _NEUTRAL[op] and isinstance(other, Value):
            return other if i == 1 or float(kwargs.get("alpha", 1)) == 1 else None
    return None


_NEUTRAL: dict[Any, float] = {aten.add: 0.0, aten.sub: 0.0, aten.mul: 1.0, aten.div: 1.0}


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _is_shape(key: Any) -> bool:
    return isinstance(key, tuple) and all(isinstance(n, int) for n in key)


def _shape_of(key: Any) -> tuple[int, ...]:
    return tuple(n for n in key if isinstance(n, int))


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _squeezed_access(value: Value, shape: tuple[int, ...]) -> Access:
    layout = value.layout
    strides = tuple(s for s, n in zip(layout.stride(), layout.shape, strict=True) if n != 1)
    return strides, int(layout.storage_offset())


def _aligned(value: Value, producer: Statement, consumer: Statement) -> bool:
    """Tell whether a statement reads just the elements that another computes beside it."""
    if producer.total or producer.key is None or producer.key != consumer.key:
        return False
    shape = _shape_of(producer.key)
    return not shape or _squeezed_access(value, shape) == (_contiguous(shape), 0)


def _plus(at: str, offset: int) -> str:
    if not offset:
        return at
    return str(int(at) + offset) if at.isdigit() else f"{offset} + {at}"


def _nest(
    shape: Sequence[int],
    accesses: Sequence[Access],
    body: Callable[[list[str]], list[str]],
    pragma: str | None,
    index: str = "i",
) -> list[str]:
    """Write a nest of loops over a shape, as few as the strides allow.

    Args:
        shape: the sizes.
        accesses: strides and start of each tensor that the body touches.
        body: takes the C index into each tensor, returns lines.
        pragma: the clause of ``omp simd`` on the innermost loop; None for no such pragma.
        index: how to name the loop variables; a nest inside another needs another name.
    """
    dims = [d for d, n in enumerate(shape) if n != 1]
    sizes = [shape[d] for d in dims]
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
        loop = f"for (ptrdiff_t {names[k]} = 0; {names[k]} < {sizes[k]}; {names[k]}++) {{"
        lines = [loop, *lines, "}"]
        if k == len(sizes) - 1 and pragma is not None:
            lines.insert(0, f"#pragma omp simd{pragma}")
    return lines


def _copy(
    source_access: Access,
    target_access: Access,
    shape: Sequence[int],
    source: Callable[[str], str],
    target: Callable[[str], str],
) -> list[str]:
    return _nest(
        shape,
        [source_access, target_access],
        lambda at: [f"{target(at[1])} = {source(at[0])};"],
        "",
    )


# -- operations with loops of their own ---------------------------------------------------


def _full(e: _Emitter, shape: Any, fill: Any = None, **_: Any) -> Value:
    number = shape if fill is None else fill
    if isinstance(number, Value):
        return number.like(number.layout.expand(e.shape))
    return Value(float(number), torch.empty((), device="meta").expand(e.shape))


def _to_copy(e: _Emitter, x: Value, dtype: Any = None, **_: Any) -> Value:
    if e.dtype is torch.bool:
        return e.elementwise(lambda v: f"(double)({v} != 0)", [x], e.shape)
    if e.dtype is not None and not e.dtype.is_floating_point:
        return e.elementwise(lambda v: f"trunc({v})", [x], e.shape)
    return x


def _part(e: _Emitter, view: Any, *args: Any) -> Tensor:
    return view(_empty(e.shape), *args)


def _cat(e: _Emitter, tensors: Sequence[Value], dim: int = 0) -> Value:
    pieces, start = [], 0
    for value in tensors:
        if value.layout.shape == (0,) and len(e.shape) != 1:  # torch lets these pass
            continue
        length = value.layout.shape[dim]
        pieces.append((_part(e, torch.narrow, dim, start, length), value))
        start += length
    return e.assembled(0.0, pieces)


def _stack(e: _Emitter, tensors: Sequence[Value], dim: int = 0) -> Value:
    return e.assembled(
        0.0, [(_part(e, torch.select, dim, i), value) for i, value in enumerate(tensors)]
    )


def _pad(e: _Emitter, x: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    part, layout = _empty(e.shape), x.layout
    for k in range(len(pad) // 2):
        dim, before, after = layout.ndim - 1 - k, pad[2 * k], pad[2 * k + 1]
        layout = layout.narrow(
            dim, max(-before, 0), layout.shape[dim] + min(before, 0) + min(after, 0)
        )
        part = part.narrow(dim, max(before, 0), part.shape[dim] - max(before, 0) - max(after, 0))
    return e.assembled(value, [(part, x.like(layout))])


def _slice_backward(
    e: _Emitter, grad: Value, sizes: Any, dim: int, start: int, end: int, step: int
) -> Value:
    return e.assembled(0.0, [(aten.slice(_empty(e.shape), dim, start, end, step), grad)])


def _select_backward(e: _Emitter, grad: Value, sizes: Any, dim: int, index: int) -> Value:
    return e.assembled(0.0, [(_part(e, torch.select, dim, index), grad)])


def _diagonal_backward(
    e: _Emitter, grad: Value, sizes: Any, offset: int, dim1: int, dim2: int
) -> Value:
    return e.assembled(0.0, [(_part(e, torch.diagonal, offset, dim1, dim2), grad)])


def _scatter(view: Callable[..., Tensor]) -> Callable[..., Value]:
    def write(e: _Emitter, base: Value, source: Value, *args: Any) -> Value:
        return e.assembled(base, [(view(_empty(e.shape), *args), source)])

    return write


def _copy_(e: _Emitter, target: Value, source: Value, *_: Any) -> Value:
    return source.like(source.layout.expand(e.shape))


def _as_strided(
    e: _Emitter, x: Value, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Value:
    if not e.contiguous:
        raise UnsupportedError("as_strided of a tensor that is not contiguous has no C form")
    x = e.copied(x)
    return x.like(x.layout.as_strided(size, stride, offset or 0))


def _flip(e: _Emitter, x: Value, dims: Sequence[int]) -> Value:
    flipped = {d % x.layout.ndim for d in dims}
    strides, start = list(x.layout.stride()), int(x.layout.storage_offset())
    for d in flipped:
        start += strides[d] * (x.layout.shape[d] - 1)
        strides[d] = -strides[d]
    shape = e.shape
    target_access = (_contiguous(shape), 0)
    return e.statement(
        None,
        [x],
        [shape],
        lambda source, target: _copy((tuple(strides), start), target_access, shape, source, target),
    )[0]


def _triangle(keep: str) -> Callable[..., Value]:
    def write(e: _Emitter, x: Value, diagonal: int = 0) -> Value:
        *batch, rows, columns = e.shape
        *outer, row_stride, column_stride = x.layout.stride()
        access = (tuple(outer), int(x.layout.storage_offset()))
        whole = tuple(s * rows * columns for s in _contiguous(batch))

        def lines(source: Callable[[str], str], target: Callable[[str], str]) -> list[str]:
            return _nest(
                batch,
                [access, (whole, 0)],
                lambda at: [
                    f"for (ptrdiff_t r = 0; r < {rows}; r++)",
                    f"for (ptrdiff_t c = 0; c < {columns}; c++)",
                    f"{target(f'{at[1]} + {columns} * r + c')} = c - r {keep} {diagonal} ? "
                    f"{source(f'{at[0]} + {row_stride} * r + {column_stride} * c')} : 0.0;",
                ],
                None,
            )

        return e.statement(None, [x], [e.shape], lines)[0]

    return write


def _scan(sign: str, start: str) -> Callable[..., Value]:
    def write(e: _Emitter, x: Value, dim: int, **_: Any) -> Value:
        shape = e.shape
        if not shape:
            return x
        dim %= len(shape)
        others = [n for d, n in enumerate(shape) if d != dim]
        strides, to = list(x.layout.stride()), list(_contiguous(shape))
        step, to_step = strides.pop(dim), to.pop(dim)
        access = (tuple(strides), int(x.layout.storage_offset()))

        def lines(source: Callable[[str], str], target: Callable[[str], str]) -> list[str]:
            return _nest(
                others,
                [access, (tuple(to), 0)],
                lambda at: [
                    f"double total = {start};",
                    f"for (ptrdiff_t k = 0; k < {shape[dim]}; k++) {{",
                    f"total {sign}= {source(f'{at[0]} + {step} * k')};",
                    f"{target(f'{at[1]} + {to_step} * k')} = total;",
                    "}",
                ],
                None,
            )

        return e.statement(None, [x], [shape], lines)[0]

    return write


def _extreme(sign: str) -> Callable[..., list[Value]]:
    def write(e: _Emitter, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
        shape = tuple(x.layout.shape)
        if not shape:
            return [x, Value(0.0, _empty(()))]
        dim %= len(shape)
        others = [n for d, n in enumerate(shape) if d != dim]
        result = tuple(1 if d == dim else n for d, n in enumerate(shape) if d != dim or keepdim)
        strides = list(x.layout.stride())
        step = strides.pop(dim)
        access = (tuple(strides), int(x.layout.storage_offset()))

        def lines(
            source: Callable[[str], str],
            best: Callable[[str], str],
            where: Callable[[str], str],
        ) -> list[str]:
            return _nest(
                others,
                [access, (_contiguous(others), 0)],
                lambda at: [
                    f"double found = {source(at[0])};",
                    "ptrdiff_t place = 0;",
                    f"for (ptrdiff_t k = 1; k < {shape[dim]}; k++) {{",
                    f"const double v = {source(f'{at[0]} + {step} * k')};",
                    f"if (v {sign} found || (v != v && found == found)) found = v, place = k;",
                    "}",
                    f"{best(at[1])} = found;",
                    f"{where(at[1])} = (double)place;",
                ],
                None,
            )

        return e.statement(None, [x], [result, result], lines)

    return write


def _product(e: _Emitter, a: Value, b: Value) -> Value:
    """Multiply matrices (…, m, k) and (…, k, n); vectors get the dimension they lack."""
    shape = e.shape
    left = a.layout if a.layout.ndim > 1 else a.layout[None]
    right = b.layout if b.layout.ndim > 1 else b.layout[:, None]
    *batch, m, k = left.shape
    n = right.shape[-1]
    ar, ac = left.stride()[-2:]
    br, bc = right.stride()[-2:]
    a_access = (tuple(left.stride()[:-2]), int(left.storage_offset()))
    b_access = (tuple(right.stride()[:-2]), int(right.storage_offset()))
    to = tuple(s * m * n for s in _contiguous(batch))

    def lines(*names: Callable[[str], str]) -> list[str]:
        x, y, z = names
        return _nest(
            batch,
            [a_access, b_access, (to, 0)],
            lambda at: [
                f"multiply({m}, {n}, {k}, &{x(at[0])}, {ar}, {ac}, "
                f"&{y(at[1])}, {br}, {bc}, &{z(at[2])});"
            ],
            None,
        )

    return e.statement(None, [e.in_memory(a), e.in_memory(b)], [shape], lines)[0]


def _cholesky(
    e: _Emitter, a: Value, *, upper: bool = False, check_errors: bool = False
) -> list[Value]:
    if upper:
        raise UnsupportedError("an upper Cholesky factor has no C form; use the lower one")
    a = e.copied(a)
    shape = tuple(a.layout.shape)
    *batch, n, _ = shape
    step = tuple(s * n * n for s in _contiguous(batch))

    def lines(*names: Callable[[str], str]) -> list[str]:
        source, factor, info = names
        return _nest(
            batch,
            [(step, 0), (_contiguous(batch), 0)],
            lambda at: [f"{info(at[1])} = cholesky({n}, &{source(at[0])}, &{factor(at[0])});"],
            None,
        )

    return e.statement(None, [a], [shape, batch], lines)


def _solve_triangular(
    e: _Emitter,
    a: Value,
    b: Value,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Value:
    shape = e.shape
    if not left:  # x a = b is a' x' = b'
        e.shape = (*shape[:-2], shape[-1], shape[-2])
        x = _solve_triangular(
            e, a.like(a.layout.mT), b.like(b.layout.mT), upper=not upper,
            unitriangular=unitriangular,
        )  # fmt: skip
        e.shape = shape
        return x.like(x.layout.mT)
    a = e.in_memory(a)
    *batch, n, m = shape
    matrix = a.layout.expand(*batch, n, n)
    ar, ac = matrix.stride()[-2:]
    a_access = (tuple(matrix.stride()[:-2]), int(matrix.storage_offset()))
    right = b.layout.expand(shape)
    b_access = (tuple(right.stride()), int(right.storage_offset()))
    to = tuple(s * n * m for s in _contiguous(batch))

    def lines(*names: Callable[[str], str]) -> list[str]:
        source, given, target = names
        return _copy(b_access, (_contiguous(shape), 0), shape, given, target) + _nest(
            batch,
            [a_access, (to, 0)],
            lambda at: [
                f"solve_triangular({n}, {m}, &{source(at[0])}, {ar}, {ac}, {int(upper)}, "
                f"{int(unitriangular)}, &{target(at[1])});"
            ],
            None,
        )

    return e.statement(None, [a, b], [shape], lines)[0]


def _places(
    indices: Sequence[Value | None], layout: Tensor
) -> tuple[tuple[int, ...], list[int], Tensor]:
    """Return the shape of the indices together, the indexed dims, and the layout of the rest."""
    indexed = [d for d, i in enumerate(indices) if i is not None]
    if indexed != list(range(indexed[0], indexed[-1] + 1)):
        raise UnsupportedError("indices with a slice between them have no C form")
    shape = torch.broadcast_shapes(*(i.layout.shape for i in indices if i is not None))
    rest = layout
    for d in reversed(indexed):
        rest = rest.select(d, 0)
    return tuple(shape), indexed, rest


def _index_code(
    e: _Emitter, x_layout: Tensor, indices: Sequence[Value | None]
) -> tuple[tuple[int, ...], int, list[Value], list[Access], Callable[..., Any]]:
    """Prepare loops over the elements that indices pick out of a tensor.

    Returns the shape of the result, operands and their accesses along it, and a function from
    the names of the operands and the C indices to the lines that compute the place ``p``.
    """
    picked, indexed, rest = _places(indices, x_layout)
    first = indexed[0]
    shape = (*rest.shape[:first], *picked, *rest.shape[first:])
    used = [e.in_memory(i) for i in indices if i is not None]
    accesses: list[Access] = []
    for value in used:
        expanded = value.layout.expand(picked)
        strides = [0] * len(shape)
        strides[first : first + len(picked)] = expanded.stride()
        accesses.append((tuple(strides), int(expanded.storage_offset())))
    along = [0] * len(shape)
    along[:first] = rest.stride()[:first]
    along[first + len(picked) :] = rest.stride()[first:]
    accesses.append((tuple(along), int(rest.storage_offset())))
    sizes = [x_layout.shape[d] for d in indexed]
    steps = [x_layout.stride()[d] for d in indexed]

    def place(names: Sequence[Callable[[str], str]], at: Sequence[str]) -> list[str]:
        lines = [f"ptrdiff_t p = {at[len(used)]};"]
        for name, where, size, step in zip(names, at, sizes, steps, strict=False):
            lines += [
                "{",
                f"ptrdiff_t q = (ptrdiff_t){name(where)};",
                f"q += q < 0 ? {size} : 0;",
                f"p += {step} * (q < 0 ? 0 : q >= {size} ? {size - 1} : q);",
                "}",
            ]
        return lines

    return shape, first, used, accesses, place


def _index(e: _Emitter, x: Value, indices: Sequence[Value | None]) -> Value:
    x = e.in_memory(x)
    shape, _, used, accesses, place = _index_code(e, x.layout, indices)

    def lines(*names: Callable[[str], str]) -> list[str]:
        source, *of_indices, target = names
        return _nest(
            shape,
            [*accesses, (_contiguous(shape), 0)],
            lambda at: [*place(of_indices, at), f"{target(at[-1])} = {source('p')};"],
            None,
        )

    return e.statement(None, [x, *used], [shape], lines)[0]


def _index_put(
    e: _Emitter, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    whole = _empty(e.shape)
    shape, _, used, accesses, place = _index_code(e, whole, indices)
    spread = values.layout.expand(shape)
    of_values = (tuple(spread.stride()), int(spread.storage_offset()))
    sign = "+=" if accumulate else "="
    result = e.shape

    def lines(*names: Callable[[str], str]) -> list[str]:
        base, given, *of_indices, target = names
        return _copy(x.access, (_contiguous(result), 0), result, base, target) + _nest(
            shape,
            [*accesses, of_values],
            lambda at: [*place(of_indices, at), f"{target('p')} {sign} {given(at[-1])};"],
            None,
        )

    return e.statement(None, [x, values, *used], [result], lines)[0]


def _along(
    e: _Emitter, layout: Tensor, dim: int, index: Value
) -> tuple[tuple[int, ...], list[Access], Callable[..., list[str]]]:
    """Prepare loops over an index whose entries are places along one dimension of a tensor."""
    shape = tuple(index.layout.shape)
    if not shape:
        raise UnsupportedError("gather and scatter of single numbers have no C form")
    dim %= len(shape)
    strides, size = list(layout.stride()), layout.shape[dim]
    step, strides[dim] = strides[dim], 0

    def place(name: Callable[[str], str], at: Sequence[str]) -> list[str]:
        return [
            f"ptrdiff_t q = (ptrdiff_t){name(at[0])};",
            f"const ptrdiff_t p = {at[1]} + {step} * (q < 0 ? 0 : q >= {size} ? {size - 1} : q);",
        ]

    return shape, [index.access, (tuple(strides), int(layout.storage_offset()))], place


def _gather(e: _Emitter, x: Value, dim: int, index: Value, **_: Any) -> Value:
    x, index = e.in_memory(x), e.in_memory(index)
    shape, accesses, place = _along(e, x.layout, dim, index)

    def lines(*names: Callable[[str], str]) -> list[str]:
        source, of_index, target = names
        return _nest(
            shape,
            [*accesses, (_contiguous(shape), 0)],
            lambda at: [*place(of_index, at), f"{target(at[2])} = {source('p')};"],
            None,
        )

    return e.statement(None, [x, index], [shape], lines)[0]


def _scatter_along(sign: str) -> Callable[..., Value]:
    def write(
        e: _Emitter, x: Value, dim: int, index: Value, source: Any, reduce: Any = None
    ) -> Value:
        if reduce is not None:
            raise UnsupportedError("scatter with reduce has no C form")
        result, index = e.shape, e.in_memory(index)
        shape, accesses, place = _along(e, _empty(result), dim, index)
        if not isinstance(source, Value):
            source = Value(float(source), torch.empty((), device="meta").expand(shape))
        part = source.layout[tuple(slice(n) for n in shape)]
        of_source = (tuple(part.stride()), int(part.storage_offset()))

        def lines(*names: Callable[[str], str]) -> list[str]:
            base, of_index, given, target = names
            return _copy(x.access, (_contiguous(result), 0), result, base, target) + _nest(
                shape,
                [*accesses, of_source],
                lambda at: [*place(of_index, at), f"{target('p')} {sign} {given(at[2])};"],
                None,
            )

        return e.statement(None, [x, index, source], [result], lines)[0]

    return write


_CONSTANT = {aten.full, aten.scalar_tensor}
_VIEWS = {aten._unsafe_view, aten.expand, aten.reshape}
_HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.full: _full,
    aten.scalar_tensor: _full,
    aten._to_copy: _to_copy,
    aten.copy: _copy_,
    aten.cat: _cat,
    aten.stack: _stack,
    aten.constant_pad_nd: _pad,
    aten.slice_backward: _slice_backward,
    aten.select_backward: _select_backward,
    aten.diagonal_backward: _diagonal_backward,
    aten.slice_scatter: _scatter(aten.slice),
    aten.select_scatter: _scatter(torch.select),
    aten.diagonal_scatter: _scatter(torch.diagonal),
    aten.as_strided_scatter: _scatter(torch.as_strided),
    aten.as_strided: _as_strided,
    aten.flip: _flip,
    aten.tril: _triangle("<="),
    aten.triu: _triangle(">="),
    aten.cumsum: _scan("+", "0.0"),
    aten.cumprod: _scan("*", "1.0"),
    aten.max: _extreme(">"),
    aten.min: _extreme("<"),
    aten.mm: _product,
    aten.bmm: _product,
    aten.mv: _product,
    aten.dot: _product,
    aten.linalg_cholesky_ex: _cholesky,
    aten.linalg_solve_triangular: _solve_triangular,
    aten.index: _index,
    aten._unsafe_index: _index,
    aten.index_put: _index_put,
    aten.gather: _gather,
    aten.scatter: _scatter_along("="),
    aten.scatter_add: _scatter_along("+="),
    aten._unsafe_index_put: _index_put,
}
