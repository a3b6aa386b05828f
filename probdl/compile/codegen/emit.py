"""Write a graph of tensor operations as C.

A tensor is a buffer with strides, so that views cost nothing: torch computes their layout on meta
tensors. Element-wise operations of the same shape, and sums over all of it, share one loop;
intermediate results that only this loop reads are not written to memory. Operations on single
numbers become straight-line code, so that an unrolled loop over time stays affordable.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, fx

from probdl.compile.codegen.calls import Call, call_of, in_memory, is_complex
from probdl.compile.codegen.loops import Access, Element, contiguous, copy, nest, shifted
from probdl.compile.codegen.operations import (
    ALLOCATIONS,
    CONSTANTS,
    EXACT,
    POINTWISE,
    REDUCTIONS,
    RULES,
    VIEWS,
    Slices,
    added,
    assembled,
    literal,
    reduction,
    special_arity,
)
from probdl.compile.codegen.periods import rule_of
from probdl.compile.codegen.roll import Loop, roll
from probdl.compile.codegen.rows import RowPass, row_passes
from probdl.compile.codegen.schedule import place, schedule
from probdl.compile.codegen.statements import (
    Buffer,
    Builder,
    ByRows,
    Numbers,
    Parts,
    Statement,
    UnsupportedError,
    Value,
    empty,
    laid_out,
    shape_of,
    squeezed_access,
)
from probdl.util.clock import check_time_limit
from probdl.util.garbage import no_collection

__all__ = ["Source", "emit", "is_view", "supports"]

aten = torch.ops.aten

CHECK_AFTER_NODES = 256  # for the time limit
MAX_FUNCTION_LINES = 250  # compile time grows faster than linearly with a function's length
MAX_STACK_NUMBERS = 4096  # of work space; they fit on any thread's stack


@dataclass(frozen=True)
class Source:
    """C code of a log density with its gradient.

    Attributes:
        text: the translation unit; it defines ``int64_t logp(dim, z, grad, logp, user)``.
        work: the size of the work space of a call, in numbers; 0 if it fits on the stack.
        statements: the number of operations, a measure of the code's length.
        uses_lapack: whether it calls BLAS and LAPACK, whose addresses ``use_lapack`` takes.
        special: functions of SciPy that it calls, whose addresses ``use_special`` takes.
        calls: operations that torch computes, by the function that ``use_torch`` takes.
    """

    text: str
    work: int
    statements: int
    uses_lapack: bool = False
    special: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()


def is_view(node: fx.Node) -> bool:
    """Return whether a node is a view of its input, or several, or one of these."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_view(node.args[0])
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and (node.target.is_view or node.target.overloadpacket in VIEWS)
        and node.target.overloadpacket is not aten.as_strided
        and node.target not in (aten.view.dtype, aten._neg_view.default)  # other numbers
    )


def supports(op: Any) -> bool:
    """Return whether an operation has a C form."""
    if not isinstance(op, torch._ops.OpOverload):
        return False
    packet = op.overloadpacket
    if op in (aten.max.default, aten.min.default, aten.view.dtype):  # only their other overloads
        return False
    return (
        packet in POINTWISE
        or packet in REDUCTIONS
        or packet in CONSTANTS
        or packet in ALLOCATIONS
        or packet in RULES
        or packet in VIEWS
        or op.is_view
    )


@no_collection()
def emit(graph: fx.Graph, dim: int, *, reuse: bool = True) -> Source:
    """Write a graph from (z, *arrays) to (gradient, value) as C.

    Args:
        graph: the graph.
        dim: the dimension of z.
        reuse: whether work space is reused, and placed on the stack if it is small.

    Raises:
        UnsupportedError: the native engine does not support an operation.
    """
    return _Emitter(graph, dim).source(reuse)


class _Emitter(Builder):
    """Translates a graph to statements, and writes them as C."""

    def __init__(self, graph: fx.Graph, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.values: dict[fx.Node, Any] = {}
        self.passes: list[list[str]] = []  # C functions
        # Of the row pass that is being written; see RowPass.
        self.chunk_buffers: dict[Buffer, tuple[int, int]] = {}
        self.rows: tuple[str, str] | None = None
        self.by_rows: dict[Statement, ByRows] = {}
        self.loops: dict[Statement, Loop] = {}
        self.calls: dict[str, tuple[int, Call]] = {}  # with their numbers, by description
        self.tables: list[str] = []  # C arrays of numbers by turn of the loop that is written
        arrays = 0
        for i, node in enumerate(graph.nodes):
            if i % CHECK_AFTER_NODES == 0:
                check_time_limit()
            if node.op == "placeholder":
                name = "z" if node.name == "z" else f"d[{arrays}]"
                arrays += node.name != "z"
                layout = laid_out(empty(in_memory(node.meta["val"])))
                self.values[node] = Value(Buffer(name, layout.numel()), layout)
            elif node.op == "output":
                grad, value = (self.operand(n) for n in node.args[0])
                self.grad, self.value = self.stored(grad), self.stored(value)
            else:
                self.visit(node)

    # -- reading the graph ----------------------------------------------------------------

    def visit(self, node: fx.Node) -> None:
        if (total := self.sum_of_slices(node)) is not None:
            self.values[node] = total
            return
        if not isinstance(node.target, torch._ops.OpOverload):  # operator.getitem
            self.values[node] = self.operand(node.args[0])[node.args[1]]
            return
        op = node.target.overloadpacket
        self.shape = tuple(node.meta["val"].shape) if "val" in node.meta else ()
        self.dtype = node.meta["val"].dtype if "val" in node.meta else None
        first = node.all_input_nodes[:1]
        self.input_fills_storage = bool(first) and first[0].meta.get("whole", False)
        self.check_dtype(node)
        try:
            args = [self.operand(a) for a in node.args]
            kwargs = {k: self.operand(v) for k, v in node.kwargs.items()}
            if is_complex(node):
                self.values[node] = self.with_parts(node, args)
            elif is_view(node):
                self.values[node] = self.view(node.target, args, kwargs)
            elif op in RULES:
                self.values[node] = RULES[op](self, *args, **kwargs)
            elif op in POINTWISE:
                kwargs.pop("memory_format", None)
                self.values[node] = self.pointwise(op, args, kwargs)
            elif op in REDUCTIONS:
                kwargs.pop("dtype", None)
                if self.dtype is torch.bool and op in (aten.sum, aten.prod):
                    raise UnsupportedError(
                        f"{node.target} on Boolean tensors is not supported by the native engine"
                    )
                self.values[node] = reduction(self, op, *args, **kwargs)
            else:
                self.values[node] = self.called(node)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            if isinstance(error, UnsupportedError):
                raise
            raise UnsupportedError(f"{node.target}: {error}") from error

    def with_parts(self, node: fx.Node, args: list[Any]) -> Any:
        """Return a node with complex operands or results, which are their parts in memory."""
        if node.target in (aten.view_as_real.default, aten.view_as_complex.default):
            return args[0]
        return self.called(node)

    def called(self, node: fx.Node) -> Any:
        """Let torch compute a node, in a call from the C code."""
        found = call_of(node)
        if found is None:
            raise UnsupportedError(
                f"the operation {node.target} is not supported by the native engine"
            )
        call, nodes = found
        number = self.calls.setdefault(call.description, (len(self.calls), call))[0]
        operands = [self.copied(self.in_memory(self.operand(n))) for n in nodes]
        count = len(operands)

        def write(*names: Element) -> list[str]:
            given = ", ".join(f"&{name('0')}" for name in names[:count]) or "w"
            to = ", ".join(f"&{name('0')}" for name in names[count:])
            return [
                f"/* {call.description} */",
                f"call_torch({number}, (const double *[]){{{given}}}, (double *[]){{{to}}});",
            ]

        results = iter(self.statement(None, operands, call.shapes, write))
        every = [None if shape is None else next(results) for shape in call.results]
        return every if "vals" in node.meta else every[0]

    def check_dtype(self, node: fx.Node) -> None:
        """Refuse results that differ from those computed in float64."""
        if self.dtype is None:
            return
        if self.dtype in (torch.uint8, torch.int8, torch.int16):
            raise UnsupportedError(f"{node.target} computes in {self.dtype}, which wraps around")
        single = self.dtype in (torch.float32, torch.float16, torch.bfloat16)
        exact = node.target.overloadpacket in EXACT or is_view(node)  # type: ignore[union-attr]
        if (single and not exact) or self.dtype is torch.complex64:
            raise UnsupportedError(f"{node.target} computes in {self.dtype}, not in float64")

    def sum_of_slices(self, node: fx.Node) -> Slices | None:
        """Return the sum of two tensors that consist of slices, if the node is one."""
        if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
            return None
        a, b = (self.values.get(arg) if isinstance(arg, fx.Node) else None for arg in node.args)
        alone = all(isinstance(arg, fx.Node) and len(arg.users) == 1 for arg in node.args)
        if alone and isinstance(a, Slices) and isinstance(b, (Slices, Value)):
            return added(self, a, b)
        if alone and isinstance(b, Slices) and isinstance(a, Value):
            return added(self, b, a)
        return None

    def operand(self, x: Any) -> Any:
        if isinstance(x, fx.Node):
            if isinstance(self.values[x], Slices):
                self.values[x] = assembled(self, self.values[x])
            return self.values[x]
        if isinstance(x, (list, tuple)):
            return [self.operand(item) for item in x]
        return x

    def view(self, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        value = args[0]
        try:
            layout = op(value.layout, *args[1:], **kwargs)
        except RuntimeError:  # a view of torch's layout, but not of ours
            value = self.copied(value)
            layout = op(value.layout, *args[1:], **kwargs)
        if isinstance(layout, Tensor):
            return value.like(layout)
        return [value.like(part) for part in layout]

    def pointwise(self, op: Any, args: list[Any], kwargs: dict[str, Any]) -> Value:
        if op in _SUMS and len(args) == 3:  # alpha may be positional
            *args, kwargs["alpha"] = args
        if op in _SUMS and self.dtype is torch.bool:
            raise UnsupportedError(
                f"{op.__name__} on Boolean tensors is not supported by the native engine"
            )
        # A number may be another one in each step of a loop, as a tensor may.
        args = [Value(float(a), _SCALAR) if _is_number(a) else a for a in args]
        operands = [a for a in args if isinstance(a, Value)]
        if op in _BITWISE and self.dtype != torch.bool:
            raise UnsupportedError(
                f"{op.__name__} on integers is not supported by the native engine"
            )
        unchanged = _unchanged_operand(op, args, kwargs)
        if unchanged is not None:
            return unchanged.like(unchanged.layout.expand(self.shape))

        def expression(*names: str) -> str:
            given = iter(names)
            parts = [next(given) if isinstance(a, Value) else a for a in args]
            return POINTWISE[op](*parts, **kwargs)

        expression(*("x" for _ in operands))  # so that an error is raised here and not later
        return self.elementwise(expression, operands, self.shape)

    # -- writing --------------------------------------------------------------------------

    def source(self, reuse: bool) -> Source:
        rolled, self.loops = roll(self.statements, reuse=reuse)
        statements, passes = row_passes(rolled)
        groups = schedule([*statements, *map(self.row_statement, passes)])
        self.in_grad = self.whole_buffer(self.grad)
        self.offsets, work = place(groups, reuse=reuse, outside=self.in_grad)
        parts: list[list[str]] = [[]]
        for group in groups:
            lines = self.group(group)
            if parts[-1] and len(parts[-1]) + len(lines) > MAX_FUNCTION_LINES:
                parts.append([])
            parts[-1] += lines
        signature = (
            "const double *restrict z, const double *const *restrict d, double *restrict w,"
            " double *restrict g"
        )
        headers = ["prelude.h", *(["lapack.h"] if self.uses_lapack else [])]
        headers += ["torch.h"] if self.calls else []
        text = [files("probdl.compile.codegen").joinpath(name).read_text() for name in headers]
        body = "\n".join(line for lines in [*self.passes, *parts] for line in lines)
        special = tuple(sorted(set(_SPECIAL.findall(body))))
        text += _declared(special)
        for i, lines in enumerate(self.passes):
            own_parameters = "ptrdiff_t first, ptrdiff_t last, double *restrict own"
            text += [f"static void pass{i}({signature}, {own_parameters}) {{", *lines, "}"]
        for i, lines in enumerate(parts):
            text += [f"static void part{i}({signature}, uint64_t threads) {{", *lines, "}"]
        text += [
            "int64_t logp(uint64_t dim, const double *z, double *grad, double *value,"
            " const void *user) {",
            "(void)dim;",
            "const Bound *bound = user;",
            "const double *const *d = bound->data;",
        ]
        on_stack = reuse and work <= MAX_STACK_NUMBERS
        text += (
            [f"double w[{max(work, 1)}];"] if on_stack else [_ACQUIRE.replace("WORK", str(work))]
        )
        matrices = self.uses_lapack
        text += ["const unsigned before = flush_subnormals();"] if matrices else []
        text += [f"part{i}(z, d, w, grad, bound->threads);" for i in range(len(parts))]
        text += ["restore(before);"] if matrices else []
        grad, value = self.grad, self.value
        if self.in_grad is None:
            text += copy(
                grad.access, ((1,), 0), (self.dim,), self.elements(grad), lambda i: f"grad[{i}]"
            )
        text += [
            f"*value = {self.elements(value)('0')};",
            "int fine = __builtin_isfinite(*value);",
            "for (size_t i = 0; i < dim; i++) fine &= __builtin_isfinite(grad[i]) != 0;",
            *([] if on_stack else [_RELEASE]),
            "return fine ? 0 : 1;",
            "}",
        ]
        length = len(rolled) + sum(map(len, (g for x in self.loops.values() for g in x.groups)))
        return Source(
            "\n".join(text) + "\n",
            0 if on_stack else max(work, 1),
            length,
            self.uses_lapack,
            special,
            tuple(call for _, call in self.calls.values()),
        )

    def whole_buffer(self, grad: Value) -> Buffer | None:
        """Return the gradient's buffer if it has all of it in order, and nothing else in it.

        The memory that the gradient is returned in can be this buffer.
        """
        buffer = grad.buffer
        assert isinstance(buffer, Buffer)
        is_whole = (
            buffer.producer is not None
            and buffer.home is None
            and buffer.size == self.dim
            and grad.start == 0
            and grad.layout.is_contiguous()
            and buffer is not self.value.buffer
        )
        return buffer if is_whole else None

    def memory(self, root: Buffer) -> str:
        """Return the C array that has a result in it."""
        return "g" if root is self.in_grad else "w"

    def reader(self, buffer: Buffer | float) -> Element:
        """Return the function from a C expression of a position to one of a buffer's element."""
        if not isinstance(buffer, Buffer):
            return lambda at: literal(buffer)
        if isinstance(buffer, Numbers):
            number = self.by_turn("double", [literal(x) for x in buffer.numbers])
            return lambda at: number
        if isinstance(buffer, Parts):
            return self.part(buffer)
        if buffer.producer is None:
            return lambda at: f"{buffer.name}[{at}]"
        if buffer in self.chunk_buffers:
            start, row = self.chunk_buffers[buffer]
            return lambda at: f"own[{start} + {at}{f' - {row} * lo' if row else ''}]"
        root, start = buffer.place
        offset, array = self.offsets[root] + start, self.memory(root)
        return lambda at: f"{array}[{shifted(at, offset)}]"

    def part(self, buffer: Parts) -> Element:
        """Return the same for memory that is another part of some buffers in each turn."""
        root, _ = buffer.parts[0]
        if not root.name and any(other is not root for other, _ in buffer.parts):
            raise UnsupportedError("steps of a loop read memory of several kinds")
        start = self.by_turn("ptrdiff_t", [at for _, at in buffer.parts])
        if not root.name:
            offset, array = self.offsets[root], self.memory(root)
            return lambda at: f"{array}[{shifted(f'{start} + {at}', offset)}]"
        array = root.name
        if root.name != "z":
            arrays = [int(root.name[2:-1]) for root, _ in buffer.parts]
            array = f"d[{self.by_turn('ptrdiff_t', arrays)}]"
        return lambda at: f"{array}[{start} + {at}]"

    def by_turn(self, kind: str, numbers: Sequence[Any]) -> str:
        """Return a C expression of a number in a turn; of a table, if there is no formula."""
        rule = rule_of(numbers)
        if rule is None:
            return f"{self.table(kind, numbers)}[turn]"
        head, cycle, step = rule
        turn = f"(turn - {len(head)})" if head else "turn"
        if len(cycle) == 1:
            text = f"{cycle[0]} + {step} * {turn}" if step else str(cycle[0])
        else:
            text = f"{self.table(kind, cycle)}[{turn} % {len(cycle)}]"
            text += f" + {step} * ({turn} / {len(cycle)})" if step else ""
        return f"(turn < {len(head)} ? {self.table(kind, head)}[turn] : {text})" if head else text

    def table(self, kind: str, numbers: Sequence[Any]) -> str:
        """Add a table of numbers, and return its name."""
        name = f"by_turn{len(self.tables)}"
        self.tables.append(f"static const {kind} {name}[] = {{{', '.join(map(str, numbers))}}};")
        return name

    def turns(self, loop: Loop) -> list[str]:
        """Write a loop."""
        start = self.offsets[loop.memory]
        self.offsets.update((buffer, start + at) for buffer, at in loop.places.items())
        self.tables = []
        body = [line for group in loop.groups for line in self.group(group)]
        head = f"for (ptrdiff_t turn = 0; turn < {loop.turns}; turn++) {{"
        return ["{", *self.tables, head, *body, "}", "}"]

    def is_stored(self, buffer: Buffer) -> bool:
        """Return whether a result of a loop is written to memory."""
        return buffer in self.offsets or buffer in self.chunk_buffers or isinstance(buffer, Parts)

    def elements(self, value: Value) -> Element:
        """Return the function from a C position, counted from a value's first element."""
        read = self.reader(value.buffer)
        return (lambda at: read(shifted(at, value.start))) if value.start else read

    def group(self, group: list[Statement]) -> list[str]:
        first = group[0]
        if first in self.loops:
            return self.turns(self.loops[first])
        if first.key is None:
            names = [self.elements(v) for v in first.operands]
            names += [self.reader(b) for b in first.outputs]
            if self.rows is not None:
                return ["{", *self.by_rows[first].write(*names, *self.rows), "}"]
            return ["{", *first.write(*names), "}"]
        return self.scalars(group) if math.prod(shape_of(first.key)) == 1 else self.loop(group)

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
                    names.append(self.reader(value.buffer)(str(value.start)))
            lines.append(f"const double {statement.name} = {statement.write(*names)};")
            if self.is_stored(statement.outputs[0]):
                lines.append(f"{self.reader(statement.outputs[0])('0')} = {statement.name};")
        return [*lines, "}"]

    def loop(self, group: list[Statement]) -> list[str]:
        shape = shape_of(group[0].key)
        along = (contiguous(shape), 0)
        inside = {s.outputs[0]: s for s in group if not s.total}
        before: list[str] = []
        body: list[tuple[Statement, list[Any]]] = []
        loads: dict[tuple[Buffer, Access], str] = {}  # C names of the elements read from memory
        for statement in group:
            names: list[Any] = []
            for value in statement.operands:
                buffer, access = value.buffer, squeezed_access(value)
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
        accesses = [*(a for _, a, _ in varying), along]
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
                if self.is_stored(statement.outputs[0]):
                    lines.append(f"{self.reader(statement.outputs[0])(at[-1])} = {statement.name};")
            return lines

        before += [f"double {s.name} = {REDUCTIONS[s.total][0]};" for s in group if s.total]
        clause = f" reduction(+ : {', '.join(sums)})" if sums else ""
        loops = nest(shape, accesses, write, clause if plain_sums else None, rows=self.rows)
        sign = "=" if self.rows is None else "+="
        after = [f"{self.reader(s.outputs[0])('0')} {sign} {s.name};" for s in group if s.total]
        return ["{", *before, *loops, *after, "}"]

    def row_statement(self, row_pass: RowPass) -> Statement:
        """Return a row pass as one statement among the others."""
        statement = Statement(
            0,
            None,
            row_pass.reads,
            [*row_pass.results, row_pass.memory],
            lambda *_: self.row_pass(row_pass),
        )
        for buffer in statement.outputs:
            buffer.producer = statement
        return statement

    def row_pass(self, row_pass: RowPass) -> list[str]:
        """Write a row pass as a C function, and return the code that calls it."""
        self.chunk_buffers, self.rows, self.by_rows = (
            row_pass.chunk_buffers,
            ("lo", "hi"),
            row_pass.by_rows,
        )
        groups = [line for group in row_pass.groups for line in self.group(group)]
        self.chunk_buffers, self.rows = {}, None
        block = row_pass.block
        self.passes.append(
            [
                f"for (ptrdiff_t i = 0; i < {row_pass.totals}; i++) own[i] = 0.0;",
                f"for (ptrdiff_t lo = first; lo < last; lo += {block}) {{",
                f"const ptrdiff_t hi = lo + {block} < last ? lo + {block} : last;",
                *groups,
                "}",
            ]
        )
        memory, size = self.reader(row_pass.memory), row_pass.size
        lines = [
            f"over_rows((Rows){{pass{len(self.passes) - 1}, z, d, w, g, {row_pass.rows}, "
            f"{row_pass.chunks}, &{memory('0')}, {size}, 0}}, threads);"
        ]
        for buffer, (start, row) in row_pass.chunk_buffers.items():
            if row:
                continue
            total = self.reader(buffer)
            lines += [
                f"for (ptrdiff_t i = 0; i < {buffer.size}; i++) {{",
                "double sum = 0.0;",
                f"for (ptrdiff_t c = 0; c < {row_pass.chunks}; c++)",
                f"sum += {memory(f'{size} * c + {start} + i')};",
                f"{total('i')} = sum;",
                "}",
            ]
        return ["{", *lines, "}"]


_ACQUIRE = """uint64_t slot = 0;
while (slot < bound->slots && __atomic_exchange_n(bound->busy + slot, 1, __ATOMIC_ACQUIRE)) slot++;
double *w = slot < bound->slots ? bound->work[slot] : malloc(WORK * sizeof(double));
if (!w) return -1;"""
_RELEASE = """if (slot < bound->slots) __atomic_store_n(bound->busy + slot, 0, __ATOMIC_RELEASE);
else free(w);"""


def _declared(special: Sequence[str]) -> list[str]:
    """Declare SciPy's functions, and the function that takes their addresses."""
    if not special:
        return []
    types = {name: "double, " * special_arity(name) for name in special}
    return [
        *(f"static double (*scipy_{name})({types[name]}int);" for name in special),
        "void use_special(void *const *table) {",
        *(
            f"scipy_{name} = (double (*)({types[name]}int))table[{i}];"
            for i, name in enumerate(special)
        ),
        "}",
    ]


def _is_number(x: Any) -> bool:
    return isinstance(x, (bool, int, float))


def _unchanged_operand(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Value | None:
    """Return the operand that equals the result: of x + 0, x - 0, x * 1, x / 1, or a copy."""
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


_SCALAR = empty(())
_SPECIAL = re.compile(r"\bscipy_(\w+)\(")
_SUMS = {aten.add, aten.sub, aten.rsub}
_BITWISE = {aten.bitwise_and, aten.bitwise_not, aten.bitwise_or, aten.bitwise_xor}
_NEUTRAL: dict[Any, float] = {aten.add: 0.0, aten.sub: 0.0, aten.mul: 1.0, aten.div: 1.0}
