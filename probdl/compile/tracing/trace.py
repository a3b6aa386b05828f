"""Trace a function of z and its gradient, and split the graph by what depends on z.

The nodes that do not depend on z run once per data set, in torch: log factorials, centred
predictors, and everything else that a sampler would otherwise recompute at each step. The nodes
that depend on z are compiled. Data are inputs of both parts, so that other data of the same shapes
need neither a new trace nor a new compilation.

A log density is deterministic. The loss of a variational method also draws random numbers; these
draws, which do not depend on z, are a third part that runs at each evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize

from probdl.compile.codegen import emit
from probdl.compile.codegen.operations import ALLOCATIONS, CONSTANTS
from probdl.compile.tracing.caught import catches_failures
from probdl.compile.tracing.checks import record_checked
from probdl.compile.tracing.cholesky import REPLACEMENTS
from probdl.compile.tracing.decompositions import decompositions, functional_decompositions
from probdl.compile.tracing.selections import is_selection, selecting
from probdl.compile.tracing.writes import join_writes
from probdl.errors import ProbdlError
from probdl.model.advice import where
from probdl.model.density import LogDensity
from probdl.model.recorder import (
    Branches,
    ControlFlowError,
    Graph,
    Recording,
    erase_unused,
    is_random,
    record,
)
from probdl.util.garbage import no_collection
from probdl.util.isolation import evaluation

__all__ = ["Prepared", "Traced", "UntraceableError", "WriteError", "trace", "trace_function"]

aten = torch.ops.aten


class UntraceableError(ProbdlError, RuntimeError):
    """The model cannot be represented by a fixed graph of operations."""


class WriteError(UntraceableError):
    """The model writes to tensors in a way that cannot be rewritten without writes."""


class CaughtError(UntraceableError):
    """The model catches a failure of linear algebra."""

    remedy = (
        "Add a constant that is large enough to the diagonal in each call, instead of trying with "
        "less first."
    )

    def __init__(self) -> None:
        super().__init__(
            "it catches a failure of linear algebra, such as a matrix that is not positive definite"
        )


@dataclass(frozen=True)
class Prepared:
    """What a traced function computes of the data alone.

    Attributes:
        prepare: the graph from (*data) to the arrays that the function reads.
        shapes: the shapes of the arrays.
        reads_data: whether the data are inputs. If Python code of the model branches on them,
            they are constants, and the trace is valid for these data only.
    """

    prepare: fx.GraphModule
    shapes: tuple[torch.Size, ...]
    reads_data: bool

    def arrays(self, data: Sequence[Tensor]) -> list[Tensor] | None:
        """Compute the arrays that the density reads; None if their shapes differ from the trace."""
        with evaluation(), torch.no_grad():
            arrays = list(self.prepare(*(data if self.reads_data else ())))
        return arrays if tuple(a.shape for a in arrays) == self.shapes else None


@dataclass(frozen=True)
class Traced(Prepared):
    """A function of z, a log density or a loss, as graphs.

    Attributes:
        density: the graph from (z, *arrays, *noise) to the gradient (d,) and the value.
        draw: the graph from () to the noise; None if the function is deterministic.
        draw_all: the same, with draws that nothing uses, such as the random start of a parameter.
            Its noise is that of the function itself at the same seed.
    """

    density: fx.Graph
    draw: fx.GraphModule | None = None
    draw_all: fx.GraphModule | None = None


def trace(density: LogDensity, z: Tensor, *, smallest: int = 0) -> Traced:
    """Trace a density and its gradient, at a point (d,) where both are finite.

    Args:
        density: the density.
        z: the point.
        smallest: the least number of elements of a tensor that is computed once per data set.

    Raises:
        UntraceableError: the control flow depends on the point, or the density is random.
    """
    data = density.program.tensors()

    def value_and_grad(z: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        here = density.with_tensors(data) if data else density
        with torch.enable_grad():
            value, grad = here.differentiated(z.detach().requires_grad_())
        return grad, value

    traced = trace_function(value_and_grad, z, data, smallest=smallest)
    if any(map(is_selection, traced.density.nodes)):
        return _with_selections(density, z) or traced
    return traced


def _with_selections(density: LogDensity, z: Tensor) -> Traced | None:
    """Trace a density with large selections, for these data; None if it cannot be simplified."""
    try:
        with evaluation(), torch.no_grad():
            recording = record(density, [z], decompositions(), REPLACEMENTS)
    except ControlFlowError:  # a check of values
        return None
    if recording.has_mutation:
        return None
    run = selecting(recording)

    def value_and_grad(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = run(z)
            (grad,) = torch.autograd.grad(value, z)
        return grad, value

    try:
        return replace(trace_function(value_and_grad, z, ()), reads_data=False)
    except (ProbdlError, RuntimeError, TypeError, ValueError, LookupError):
        return None  # the trace without this is right, too


@no_collection()
def trace_function(
    fn: Callable[..., tuple[Tensor, Tensor]],
    z: Tensor,
    data: Sequence[Tensor],
    *,
    random: bool = False,
    smallest: int = 0,
) -> Traced:
    """Trace a function of z and data to the gradient (d,) and the value.

    Args:
        fn: the function of z and the data; called with z alone, it uses the original data.
        z: a point where the value and the gradient are finite.
        data: the data.
        random: whether the function may draw random numbers.
        smallest: the least number of elements of a tensor that is computed once per data set.

    Raises:
        UntraceableError: the control flow depends on z, or the function is random but must not be.
    """
    with evaluation():
        recording, reads_data = _record_with_data(fn, z, data, random)
    graph = recording.graph
    if _catch_failures(graph) and catches_failures(lambda *inputs: fn(*inputs)[1], [z, *data]):
        raise CaughtError
    _fix_shapes(graph)
    erase_unused(graph)
    return _split(recording, data if reads_data else [], reads_data, smallest)


def _record_with_data(
    fn: Callable[..., Any], z: Tensor, data: Sequence[Tensor], random: bool
) -> tuple[Recording, bool]:
    """Record a function of z and data; return whether the data are inputs, not constants."""
    failures = []
    ways = (True, False) if data else (True,)
    for checked in (False, True):
        for reads_data in ways:
            try:
                inputs = [z, *data] if reads_data else [z]
                return _record(fn, inputs, random, checked), reads_data
            except ControlFlowError as error:
                failures.append(error)
    of_site = where(failures[len(ways) - 1])  # not of the data
    raise UntraceableError(
        f"its control flow in Python depends on the value of a site{of_site}"
    ) from None


def _record(
    fn: Callable[..., Any], inputs: Sequence[Tensor], random: bool, checked: bool
) -> Recording:
    def run(branches: Branches | None) -> Recording:
        return record(fn, inputs, decompositions(), REPLACEMENTS, branches)

    recording = record_checked(run) if checked else run(None)
    _draw_without_writes(recording.graph)
    # Random numbers that a training step draws and does not use keep the others in their order.
    if not random and not recording.has_mutation:
        _erase_unused_with_random(recording.graph)
    drawn = [node.target for node in recording.graph.nodes if is_random(node)]
    if drawn and not random:
        raise UntraceableError(f"its log density draws random numbers ({drawn[0]})")
    if recording.has_mutation:
        _copy_written_constants(recording.graph)
        without_writes = functionalize(recording.function())
        try:
            recording = record(without_writes, inputs, functional_decompositions())
            join_writes(recording.graph)
        except RuntimeError as error:
            if isinstance(error, ProbdlError):
                raise
            raise WriteError(
                f"torch cannot follow what it writes to views of tensors ({error})"
            ) from None
    return recording


def _draw_without_writes(graph: fx.Graph) -> None:
    """Replace ``torch.empty(n).normal_()``, by which Pyro draws, by ``torch.randn(n)``."""
    for node in list(graph.nodes):
        if node.target is not aten.normal_.default or len(node.args) > 1 or node.kwargs:
            continue
        empty = node.args[0]
        if empty.target is not aten.empty.memory_format or next(iter(empty.users)) is not node:
            continue
        val = node.meta["val"]
        with graph.inserting_before(node):
            drawn = graph.call_function(
                aten.randn.default, (list(val.shape),), {"dtype": val.dtype}
            )
        drawn.meta.update(node.meta)
        for old in (node, empty):
            old.replace_all_uses_with(drawn)
        graph.erase_node(node)
        graph.erase_node(empty)


def written_tensors(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the tensors whose memory a node writes to, also through views."""
    if node.target is aten.native_batch_norm.default and node.args[5]:  # not in its schema
        yield from (arg for arg in node.args[3:5] if isinstance(arg, fx.Node))
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    named = [(node.kwargs[a.name], a) for a in schema.arguments if a.name in node.kwargs]
    for arg, argument in [*zip(node.args, schema.arguments, strict=False), *named]:
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        while isinstance(arg, fx.Node) and emit.is_view(arg):
            arg = arg.args[0]
        if isinstance(arg, fx.Node):
            yield arg


def _copy_written_constants(graph: fx.Graph) -> None:
    """Let a program write to copies of its constants, such as ``torch.tensor([0.0, 0.0])``."""
    constants = {
        written
        for node in graph.nodes
        for written in written_tensors(node)
        if written.op == "get_attr"
    }
    for node in constants:
        val = node.meta["val"]
        with graph.inserting_after(node):
            new = graph.call_function(aten.full.default, (list(val.shape), 0), {"dtype": val.dtype})
        with graph.inserting_after(new):  # a copy of a constant alone would be a constant
            copied = graph.call_function(aten.add.Tensor, (new, node))
        new.meta["val"] = copied.meta["val"] = val
        for user in list(node.users):
            if user is not copied:
                user.replace_input_with(node, copied)


def _erase_unused_with_random(graph: fx.Graph) -> None:
    """Erase what the result does not depend on, such as the random start of a parameter.

    ``eliminate_dead_code`` keeps random numbers.
    """
    for node in reversed(graph.nodes):
        checks = node.target is aten._linalg_check_errors.default
        if node.op == "call_function" and not node.users and not checks:
            graph.erase_node(node)


def _catch_failures(graph: fx.Graph) -> bool:
    """Make a failure of linear algebra a log density of -inf; return whether one is possible."""
    before = len(graph.nodes)
    output = next(iter(reversed(graph.nodes)))
    results: Any = output.args[0]
    grad, value = results
    for node in list(graph.nodes):
        if node.target is not aten._linalg_check_errors.default:
            continue
        with graph.inserting_before(output):
            failed = graph.call_function(aten.ne.Scalar, (node.args[0], 0))
            failed.meta["val"] = torch.empty(
                node.args[0].meta["val"].shape, dtype=torch.bool, device="meta"
            )
            any_failed = graph.call_function(aten.any.default, (failed,))
            any_failed.meta["val"] = torch.empty((), dtype=torch.bool, device="meta")
            checked = graph.call_function(aten.masked_fill.Scalar, (value, any_failed, -math.inf))
            checked.meta["val"] = torch.empty((), dtype=torch.float64, device="meta")
        value = checked
        graph.erase_node(node)
    output.args = ((grad, value),)
    return len(graph.nodes) > before


def _fix_shapes(graph: fx.Graph) -> None:
    """Replace operations that use only the shape of a tensor by constants of that shape."""
    for node in list(graph.nodes):
        kind = getattr(node.target, "overloadpacket", None)
        if kind in CONSTANTS:
            fill = CONSTANTS[kind]
        elif kind in ALLOCATIONS:
            fill = 0.0
        elif kind is aten.full_like:
            fill = node.args[1]
        elif kind is aten.new_full:
            fill = node.args[2]
        else:
            continue
        if isinstance(fill, fx.Node):
            continue
        val = node.meta["val"]
        with graph.inserting_before(node):
            constant = graph.call_function(
                aten.full.default, (list(val.shape), fill), {"dtype": val.dtype}
            )
        constant.meta["val"] = val
        node.replace_all_uses_with(constant)
        graph.erase_node(node)


@dataclass(frozen=True)
class _Dependence:
    """The nodes that depend on z, on the data, and on random numbers; the last two without z."""

    on_z: set[fx.Node]
    on_data: set[fx.Node]
    on_noise: set[fx.Node]


def _dependence(z: fx.Node, inner: Sequence[fx.Node]) -> _Dependence:
    """Sort the nodes between z and the output by what they depend on.

    Raises:
        UntraceableError: random numbers depend on z or on the data.
    """
    on_z, on_data, on_noise = {z}, set[fx.Node](), set[fx.Node]()
    for node in inner:
        inputs = node.all_input_nodes
        if any(n in on_z for n in inputs):
            on_z.add(node)
            if is_random(node):
                raise UntraceableError(
                    f"it draws from a distribution that depends on what is fitted ({node.target})"
                )
            continue
        if node.op == "placeholder" or any(n in on_data for n in inputs):
            on_data.add(node)
        if is_random(node) or any(n in on_noise for n in inputs):
            on_noise.add(node)
    if on_data & on_noise:
        raise UntraceableError("its random numbers depend on the data")
    return _Dependence(on_z, on_data, on_noise)


_Kept = Callable[[fx.Node], bool]


def _is_input(node: fx.Node) -> bool:
    return node.op == "placeholder"


def _is_nothing(node: fx.Node) -> bool:
    return False


def _split(recording: Recording, data: Sequence[Tensor], reads_data: bool, smallest: int) -> Traced:
    """Split a recorded graph into preparation of the data, noise, and the density itself."""
    z, *inner, output = recording.graph.nodes
    depends = _dependence(z, inner)
    _compute_small(inner, depends, smallest)
    given = _GraphCopy()
    for node in inner:
        if node not in depends.on_z:
            given.add(node)
    frontier, views = _frontier([*inner, output], depends.on_z, given)
    noise = [same for same in frontier if same[0] in depends.on_noise]
    known = [same for same in frontier if same[0] not in depends.on_noise]

    def part_of_given(nodes: Sequence[fx.Node], kept: _Kept = _is_input) -> fx.GraphModule:
        part = _extract(given.graph, [given.of[node] for node in nodes], kept)
        return fx.GraphModule(recording.constants, part)

    with evaluation(), torch.no_grad():
        values = part_of_given([same[0] for same in known])(*data)
    numbers: dict[fx.Node, float] = {}
    arrays: dict[fx.Node, torch.Size] = {}
    for (node, *_), value in zip(known, values, strict=True):
        if node not in depends.on_data and _is_constant(value):
            numbers[node] = value.reshape(-1)[0].item()
        else:
            arrays[node] = value.shape

    density = _GraphCopy()
    density.add_input(z, "z")
    for i, node in enumerate(arrays):
        density.add_input(node, f"array_{i}")
    for i, (node, *_) in enumerate(noise):
        density.add_input(node, f"noise_{i}")
    for node, number in numbers.items():
        density.add_number(node, number)
    for node, *others in [*known, *noise]:
        density.of.update(dict.fromkeys(others, density.of[node]))
    for node in inner:
        if node in depends.on_z or (node in views and node not in density.of):
            density.add(node)
    density.graph.output(fx.node.map_arg(output.args[0], density.of.__getitem__))
    density.graph.eliminate_dead_code()
    return Traced(
        part_of_given(list(arrays)),
        tuple(arrays.values()),
        reads_data,
        density.graph,
        *(
            part_of_given([same[0] for same in noise], kept) if noise else None
            for kept in (_is_nothing, is_random)
        ),
    )


def _compute_small(inner: Sequence[fx.Node], depends: _Dependence, smallest: int) -> None:
    """Let the density compute small tensors of the data, and what depends on them."""
    moved = set[fx.Node]()
    for node in inner:
        if node not in depends.on_data or node.op != "call_function":
            continue
        small = "val" in node.meta and node.meta["val"].numel() < smallest
        if (small and not emit.is_view(node)) or any(n in moved for n in node.all_input_nodes):
            moved.add(node)
    depends.on_z.update(moved)


def _is_constant(value: Tensor) -> bool:
    """Return whether all elements of a tensor are equal."""
    return bool(value.numel()) and bool((value == value.reshape(-1)[0]).all())


def _extract(graph: fx.Graph, results: Sequence[fx.Node], kept: _Kept) -> fx.Graph:
    """Copy the part of a graph that computes some results, and other nodes that are kept."""
    wanted = {*results, *filter(kept, graph.nodes)}
    for node in reversed(graph.nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    part, of = Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node in wanted:
            of[node] = part.node_copy(node, of.__getitem__)
    part.output([of[node] for node in results])
    return part


class _GraphCopy:
    """A graph to which nodes of another are copied; equal computations are copied once.

    Attributes:
        graph: the graph.
        of: for each node of the other graph, its copy.
    """

    def __init__(self) -> None:
        self.graph = Graph()
        self.of: dict[fx.Node, fx.Node] = {}
        self._seen: dict[Any, fx.Node] = {}

    def add(self, node: fx.Node) -> None:
        """Copy a node, whose inputs have been copied."""
        args = fx.node.map_arg(node.args, self.of.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.of.__getitem__)
        # The repr distinguishes 1, 1.0 and True, which compare equal.
        key = (node.op, node.target, repr(args), repr(kwargs))
        if key not in self._seen or node.op == "placeholder" or is_random(node):
            self._seen[key] = self.graph.node_copy(node, self.of.__getitem__)
        self.of[node] = self._seen[key]

    def add_input(self, node: fx.Node, name: str) -> None:
        """Add an input in the place of a node."""
        self.of[node] = self.graph.placeholder(name)
        self.of[node].meta = node.meta

    def add_number(self, node: fx.Node, number: float) -> None:
        """Add a constant tensor in the place of a node."""
        val = node.meta["val"]
        self.of[node] = self.graph.call_function(
            aten.full.default, (list(val.shape), number), {"dtype": val.dtype}
        )
        self.of[node].meta = node.meta


def _frontier(
    nodes: Sequence[fx.Node], of_z: set[fx.Node], given: _GraphCopy
) -> tuple[list[list[fx.Node]], set[fx.Node]]:
    """Find the nodes without z that nodes with z read, grouped by equal copies, through views.

    Views are free and stay with the density: a transposed matrix is not stored twice, and each
    step of a loop over a series does not read its own array.

    Returns:
        The groups of nodes that compute the same, and the views of them that are read.
    """
    pending = [
        n
        for node in nodes
        if node in of_z or node.op == "output"
        for n in node.all_input_nodes
        if n not in of_z
    ]
    views: set[fx.Node] = set()
    found: dict[fx.Node, list[fx.Node]] = {}  # by copy
    pending.reverse()
    seen: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if emit.is_view(node):
            views.add(node)
            pending.extend(node.all_input_nodes)
        else:
            found.setdefault(given.of[node], []).append(node)
    return list(found.values()), views
