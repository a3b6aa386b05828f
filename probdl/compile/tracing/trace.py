"""Trace a function of z with its gradient: into what the data alone decide, and what z decides.

The first part runs once for each set of data, in torch; it holds the log factorials, the centred
predictors and all else that a sampler would compute again at each of its million steps. The
second part is what gets compiled. Data are inputs of both, so other data of the same shapes need
neither a new trace nor a new compilation.

A log density has no randomness. The loss of a variational method has: what it draws, whatever z
is, makes a third part, which runs anew for each evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize

from probdl.compile.codegen import emit
from probdl.compile.codegen.operations import ALLOCATIONS, CONSTANTS
from probdl.compile.tracing.decompositions import decompositions
from probdl.errors import ProbdlError
from probdl.model.density import LogDensity
from probdl.model.program import where
from probdl.model.recorder import ControlFlowError, Recording, record
from probdl.util.isolation import evaluation

__all__ = ["Traced", "UntraceableError", "is_random", "trace", "trace_function"]

aten = torch.ops.aten


class UntraceableError(ProbdlError, RuntimeError):
    """The model cannot be written as a fixed graph of operations."""


@dataclass(frozen=True)
class Traced:
    """A function of z, a log density or a loss, as graphs.

    Attributes:
        prepare: (*data) to the arrays that the density reads.
        density: (z, *arrays, *noise) to the gradient (d,) and the value.
        shapes: of the arrays.
        reads_data: whether the data are inputs. Where the Python code of the model looks at
            them they are constants, and the trace holds for these data only.
        draw: () to the noise; None where nothing is random.
    """

    prepare: fx.GraphModule
    density: fx.Graph
    shapes: tuple[torch.Size, ...]
    reads_data: bool
    draw: fx.GraphModule | None = None

    def arrays(self, data: Sequence[Tensor]) -> list[Tensor] | None:
        """Compute what the density reads of the data; None if its shapes are not those traced."""
        with evaluation(), torch.no_grad():
            arrays = list(self.prepare(*(data if self.reads_data else ())))
        return arrays if tuple(a.shape for a in arrays) == self.shapes else None


def trace(density: LogDensity, z: Tensor) -> Traced:
    """Trace a density and its gradient, at a point (d,) where both are finite.

    Raises:
        UntraceableError: the model's control flow depends on the point, or it draws at random.
    """
    data = density.program.tensors()

    def value_and_grad(z: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        here = density.with_tensors(data) if data else density
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = here(z)
            (grad,) = torch.autograd.grad(value, z)
        return grad, value

    return trace_function(value_and_grad, z, data)


def trace_function(
    fn: Callable[..., tuple[Tensor, Tensor]],
    z: Tensor,
    data: Sequence[Tensor],
    *,
    random: bool = False,
) -> Traced:
    """Trace a function of z and data to the gradient (d,) and the value.

    Args:
        fn: takes z and the data; given z alone, it has its data from elsewhere.
        z: where it is finite, with its gradient.
        data: the data.
        random: whether it may draw random numbers.

    Raises:
        UntraceableError: control flow depends on z, or the function draws where it may not.
    """
    with evaluation():
        try:
            recording, reads_data = _record(fn, [z, *data], random), True
        except ControlFlowError:
            try:
                recording, reads_data = _record(fn, [z], random), False
            except ControlFlowError as error:
                raise UntraceableError(
                    f"its control flow in Python depends on the value of a site{where(error)}"
                ) from None
    graph = recording.graph
    _catch_failures(graph)
    _fix_shapes(graph)
    graph.eliminate_dead_code()
    return _split(recording, data if reads_data else [], reads_data)


def _record(fn: Callable[..., Any], inputs: Sequence[Tensor], random: bool) -> Recording:
    recording = record(fn, inputs, decompositions())
    drawn = [node.target for node in recording.graph.nodes if is_random(node)]
    if drawn and not random:
        raise UntraceableError(f"its log density draws at random ({drawn[0]})")
    if recording.has_mutation:
        recording = record(functionalize(recording.function()), inputs, decompositions())
    return recording


def is_random(node: fx.Node) -> bool:
    """Tell whether a node draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _catch_failures(graph: fx.Graph) -> None:
    """Let a failure of linear algebra mean a density of zero, in the place of an exception."""
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


def _fix_shapes(graph: fx.Graph) -> None:
    """Replace what only takes the shape of a tensor by a constant of that shape."""
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


def _split(recording: Recording, data: Sequence[Tensor], reads_data: bool) -> Traced:
    nodes = list(recording.graph.nodes)
    z, output = nodes[0], nodes[-1]
    of_z, of_data, of_noise = {z}, set[fx.Node](), set[fx.Node]()
    for node in nodes[1:-1]:
        inputs = node.all_input_nodes
        if any(n in of_z for n in inputs):
            of_z.add(node)
            if is_random(node):
                raise UntraceableError(
                    f"it draws from a distribution that depends on what is fitted ({node.target})"
                )
            continue
        if node.op == "placeholder" or any(n in of_data for n in inputs):
            of_data.add(node)
        if is_random(node) or any(n in of_noise for n in inputs):
            of_noise.add(node)
    if of_data & of_noise:
        raise UntraceableError("what it draws at random depends on the data")

    first = _Copy()
    for node in nodes[1:-1]:
        if node not in of_z:
            first.add(node)
    frontier, views = _frontier(nodes, of_z, first)
    noise = [same for same in frontier if same[0] in of_noise]
    frontier = [same for same in frontier if same[0] not in of_noise]
    prepare = _extract(first.graph, [first.of[same[0]] for same in frontier])
    with evaluation(), torch.no_grad():
        values = fx.GraphModule(recording.constants, prepare)(*data)

    second = _Copy()
    second.of[z] = second.graph.placeholder("z")
    second.of[z].meta = z.meta
    numbers: dict[fx.Node, float] = {}
    arrays: dict[fx.Node, torch.Size] = {}
    for (node, *_), value in zip(frontier, values, strict=True):
        if node not in of_data and value.numel() and bool((value == value.reshape(-1)[0]).all()):
            numbers[node] = value.reshape(-1)[0].item()
        else:
            second.of[node] = second.graph.placeholder(f"array_{len(arrays)}")
            second.of[node].meta = node.meta
            arrays[node] = value.shape
    for i, (node, *_) in enumerate(noise):
        second.of[node] = second.graph.placeholder(f"noise_{i}")
        second.of[node].meta = node.meta
    for node, number in numbers.items():
        val = node.meta["val"]
        second.of[node] = second.graph.call_function(
            aten.full.default, (list(val.shape), number), {"dtype": val.dtype}
        )
        second.of[node].meta = node.meta
    for node, *others in [*frontier, *noise]:
        second.of.update(dict.fromkeys(others, second.of[node]))
    for node in nodes[1:-1]:
        if node in of_z or (node in views and node not in second.of):
            second.add(node)
    second.graph.output(fx.node.map_arg(output.args[0], second.of.__getitem__))
    second.graph.eliminate_dead_code()

    prepare = _extract(first.graph, [first.of[node] for node in arrays])
    draw = _extract(first.graph, [first.of[same[0]] for same in noise], inputs=False)
    return Traced(
        fx.GraphModule(recording.constants, prepare),
        second.graph,
        tuple(arrays.values()),
        reads_data,
        fx.GraphModule(recording.constants, draw) if noise else None,
    )


def _extract(graph: fx.Graph, results: Sequence[fx.Node], *, inputs: bool = True) -> fx.Graph:
    """Copy the part of a graph that computes some results."""
    wanted = set(results)
    for node in reversed(graph.nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    part, of = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node in wanted or (inputs and node.op == "placeholder"):
            of[node] = part.node_copy(node, of.__getitem__)
    part.output([of[node] for node in results])
    return part


class _Copy:
    """A graph into which nodes of another are copied, those that compute the same only once."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.of: dict[fx.Node, fx.Node] = {}
        self._seen: dict[Any, fx.Node] = {}

    def add(self, node: fx.Node) -> None:
        args = fx.node.map_arg(node.args, self.of.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.of.__getitem__)
        # The repr tells 1 from 1.0 and True, which are equal.
        key = (node.op, node.target, repr(args), repr(kwargs))
        if key not in self._seen or node.op == "placeholder" or is_random(node):
            self._seen[key] = self.graph.node_copy(node, self.of.__getitem__)
        self.of[node] = self._seen[key]


def _frontier(
    nodes: Sequence[fx.Node], of_z: set[fx.Node], first: _Copy
) -> tuple[list[list[fx.Node]], set[fx.Node]]:
    """Find what the second part reads of the first, and the views in between.

    Views are free, and stay in the second part: a transposed matrix is not stored twice, nor
    does each step of a loop over a series read an array of its own.
    """
    pending = [
        n
        for node in nodes
        if node in of_z or node.op == "output"
        for n in node.all_input_nodes
        if n not in of_z
    ]
    views: set[fx.Node] = set()
    found: dict[fx.Node, list[fx.Node]] = {}  # by copy: what is the same is read once
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
            found.setdefault(first.of[node], []).append(node)
    return list(found.values()), views
