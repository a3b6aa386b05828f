"""Record a function of tensors as a graph of plain operations, by running it once.

``make_fx`` does the same, but takes about a millisecond per operation, and a loop over time has
thousands. This recorder only records the operations that reach the dispatcher, which is about
forty times faster, and the inputs that each operation depends on. The graph is valid for other
values of the inputs, and for other random numbers: Python code that reads the value of a tensor
that depends on either raises an error.
"""

from __future__ import annotations

import dis
import functools
import operator
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

import pyro.util
import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from probdl.errors import ProbdlError
from probdl.util.calls import frame_outside
from probdl.util.clock import check_time_limit

__all__ = [
    "Branches",
    "ControlFlowError",
    "DispatchMode",
    "Graph",
    "Recording",
    "calls",
    "erase_unused",
    "is_random",
    "record",
    "without_nan_checks",
]

aten = torch.ops.aten

# Their results depend only on the shape of the input.
_SHAPE_ONLY = {
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty,
}  # fmt: skip
_IDENTITIES = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}

# They read the memory of tensors without the dispatcher.
_READ_VALUES = {
    Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.__repr__,
    Tensor.__reduce_ex__, Tensor.__deepcopy__,
    torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor,
}  # fmt: skip
_COPY_TENSOR = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}

# The shape of their result depends on the values of their first argument, and Python code uses
# shapes. Autograd calls aten.nonzero, but does not depend on the shape of its result.
_SHAPE_OF_VALUES = {
    aten.bincount, aten._unique, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive,
}  # fmt: skip
_NONZERO = {torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere}
_WITH_JITTER = {"linear_operator.utils.cholesky"}
_EQUAL = {torch.equal, Tensor.equal}
_ANY = {torch.any, Tensor.any}
_WHERE = {torch.where, Tensor.where}  # with one argument, the same as nonzero

_PRECALL, _TO_CALL = dis.opmap.get("PRECALL"), 4

_CHANGES = "Python control flow depends on the value of a tensor that changes between evaluations"

CHECK_AFTER_NODES = 256  # for the time limit

# Modes and wrappers between Python code and the dispatcher.
_BETWEEN = (
    *("probdl.model.", "probdl.compile.", "probdl.methods.", "probdl.util."),
    *("torch._", "torch.utils.", "torch.overrides"),
)

_RANDOM = -1  # stands for the random numbers among the inputs that a node depends on


class ControlFlowError(ProbdlError, RuntimeError):
    """Python code read the value of a tensor that depends on an input or on random numbers."""


@dataclass
class Branches:
    """What Python code does where it asks for the truth of a tensor that depends on an input.

    Attributes:
        other_side: the question, counted from 0, whose answer is the opposite of the truth.
        required: the questions whose answers must be those at the recorded inputs: elsewhere, the
            graph fails like a factorisation of linear algebra.
        asked: the questions.
    """

    other_side: int | None = None
    required: frozenset[int] = frozenset()
    asked: list[Question] = field(default_factory=list)

    @property
    def on_other_side(self) -> bool:
        """Whether the question with the other answer has been asked.

        Values may be read then, as for the message of an error.
        """
        return self.other_side is not None and len(self.asked) > self.other_side


Place = tuple[tuple[types.CodeType, int], ...]


class Question(NamedTuple):
    """A question of Python code for the truth of a tensor.

    Attributes:
        place: the calls on the way to it, the innermost first.
        truth: the answer at the recorded inputs.
        names: the global names of the innermost function.
    """

    place: Place
    truth: bool
    names: dict[str, Any]


class DispatchMode(TorchDispatchMode):
    """A mode that does not make torch import its compiler, which takes a second."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Graph(fx.Graph):
    """A graph that skips the search for symbolic numbers in arguments, which is slow."""

    def create_node(
        self, op: str, target: Any, args: Any = None, kwargs: Any = None, *rest: Any, **named: Any
    ) -> fx.Node:
        """Add a node, and its arguments afterwards."""
        node = super().create_node(op, target, None, None, *rest, **named)
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node


class _Recorder(DispatchMode):
    """Append each dispatched operation to a graph."""

    def __init__(
        self,
        inputs: Sequence[Tensor],
        decompositions: Mapping[Any, Callable[..., Any]],
        branches: Branches | None,
    ) -> None:
        super().__init__()
        self.branches = branches
        self.decompositions = decompositions
        self.graph = Graph()
        self.constants: dict[str, Tensor] = {}
        self.held: dict[int, list[str]] = {}  # the constants in each memory
        self.default_dtype = torch.get_default_dtype()
        self.nodes: Any = WeakIdKeyDictionary()  # by tensor, for the tensors that are alive
        self.sources: dict[fx.Node, frozenset[int]] = {}  # the inputs that a node depends on
        # By memory that was written to through a view: the memory, and what it depends on.
        self.written: dict[int, tuple[Any, frozenset[int]]] = {}
        for i, tensor in enumerate(inputs):
            self._attach(tensor, self.graph.placeholder(f"input_{i}"), frozenset([i]))

    def node_of(self, x: Any) -> Any:
        """Return the node of a tensor; a tensor from outside becomes a constant."""
        if not isinstance(x, Tensor):
            return x
        node = self.nodes.get(x)
        if node is None:
            name = f"constant_{len(self.constants)}"
            # Copy a parameter: it may change after the recording.
            self.constants[name] = x.detach().clone() if x.requires_grad else x
            self.held.setdefault(x.untyped_storage()._cdata, []).append(name)
            node = self.graph.get_attr(name)
            self._attach(x, node, frozenset())
        return node

    def _dispatch(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if any(map(self.depends, tree_leaves(_decides_shape(func, args, kwargs)))):
            self.refuse()
        if func in self.decompositions:
            with self:
                result = self.decompositions[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if self.decompositions and _is_composite(func):
            # Autograd decomposes these, but a decomposition runs below autograd.
            with self:
                return func.decompose(*args, **kwargs)
        if func._schema.is_mutable:
            self._keep_constants(args)
        result = func(*args, **kwargs)
        if any(isinstance(x, torch.UntypedStorage) for x in args):  # copy.deepcopy of a tensor
            self.nodes.pop(args[0], None)
            return result
        if func in _IDENTITIES:
            self.nodes[result] = self.node_of(args[0])
            return result
        if len(self.sources) % CHECK_AFTER_NODES == 0:
            check_time_limit()
        inputs: list[fx.Node] = []
        node_args = tuple(self._as_nodes(x, inputs) for x in args)
        node_kwargs = {name: self._as_nodes(x, inputs) for name, x in kwargs.items()}
        sources = frozenset[int]()
        if getattr(func, "overloadpacket", None) not in _SHAPE_ONLY:
            sources = sources.union(*map(self.sources.__getitem__, inputs))
            if self.written:
                sources = sources.union(*map(self._written_from, tree_leaves((args, kwargs))))
        if _draws(func):
            sources |= {_RANDOM}
        if isinstance(result, Tensor):
            if result.is_floating_point() and inputs and not any(map(_is_floating, inputs)):
                self.default_dtype = torch.get_default_dtype()
            if func._schema.is_mutable and _owns_memory(args, func):
                func = _out_of_place(func)  # `result` is the only view of the memory
            elif not inputs and node_kwargs.get("dtype") is None and _takes_dtype(func):
                node_kwargs["dtype"] = result.dtype  # otherwise it would depend on torch's default
            node = self.graph.call_function(func, node_args, node_kwargs)
            self._attach(result, node, sources)
        elif isinstance(result, (tuple, list)):
            node = self.graph.call_function(func, node_args, node_kwargs)
            self.sources[node] = sources
            node.meta["vals"] = [
                torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x for x in result
            ]
            for i, x in enumerate(result):
                if isinstance(x, Tensor):
                    part = self.graph.call_function(operator.getitem, (node, i))
                    self._attach(x, part, sources)
        elif func is aten._linalg_check_errors.default:  # it reads the values, and raises, in C++
            self.graph.call_function(func, node_args, node_kwargs)
        elif sources:
            asked = inputs[0] if func is aten._local_scalar_dense.default else None
            return self._answer(result, asked, sources)
        if func._schema.is_mutable and sources:
            self._note_writes(func, args, kwargs, sources)
        return result

    def refuse(self) -> None:
        """Raise an error: Python code reads a value that changes."""
        if self.branches is None or not self.branches.on_other_side:
            raise ControlFlowError(_CHANGES)

    def _answer(self, truth: Any, asked: fx.Node | None, sources: frozenset[int]) -> Any:
        """Answer Python code that reads a number."""
        asks = isinstance(truth, bool) and not sources.isdisjoint((0, _RANDOM))
        frame: Any = None
        if asks and self.branches is not None:
            frame = frame_outside(sys._getframe(1), _BETWEEN, record.__code__)
        place = calls(frame, record.__code__)
        if self.branches is None or asked is None or not place:
            self.refuse()
            return truth
        position = len(self.branches.asked)
        self.branches.asked.append(Question(place, truth, frame.f_globals))
        if position in self.branches.required:
            failed = self.graph.call_function(aten.ne.Scalar, (asked, truth))
            code = self.graph.call_function(
                aten._to_copy.default, (failed,), {"dtype": torch.int32}
            )
            for node, dtype in ((failed, torch.bool), (code, torch.int32)):
                node.meta["val"] = torch.empty((), dtype=dtype, device="meta")
            self.graph.call_function(
                aten._linalg_check_errors.default, (code, "check"), {"is_matrix": True}
            )
        return truth != (position == self.branches.other_side)

    def _keep_constants(self, args: Sequence[Any]) -> None:
        """Copy constants that an operation is about to write to; they are recorded as they were."""
        if any(isinstance(x, torch.UntypedStorage) for x in args):
            return
        for x in args:
            if isinstance(x, Tensor):
                self.node_of(x)
                for name in self.held.pop(x.untyped_storage()._cdata, ()):
                    self.constants[name] = self.constants[name].detach().clone()

    def depends(self, x: Any) -> bool:
        """Return whether a value is a tensor that depends on an input or on random numbers."""
        if not isinstance(x, Tensor):
            return False
        return bool(self.sources.get(self.nodes.get(x)) or self._written_from(x))

    def computed_alike(self, x: Tensor, y: Tensor) -> bool:
        """Return whether two tensors are the same computation of the same tensors."""
        pairs: list[tuple[Any, Any]] = [(self.nodes.get(x), self.nodes.get(y))]
        seen = set()
        while pairs:
            a, b = pairs.pop()
            if a is b or (a, b) in seen:
                continue
            seen.add((a, b))
            if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
                if isinstance(a, fx.Node) or isinstance(b, fx.Node) or a != b:
                    return False
                continue
            different = a.op != b.op or a.target is not b.target or a.op != "call_function"
            of_a: tuple[Any, ...] = a.args
            of_b: tuple[Any, ...] = b.args
            if different or is_random(a) or len(of_a) != len(of_b) or a.kwargs != b.kwargs:
                return False
            each: Any
            other: Any
            for each, other in zip(of_a, of_b, strict=True):
                nested = isinstance(each, (list, tuple)) and isinstance(other, (list, tuple))
                if nested and len(each) == len(other):
                    pairs += zip(each, other, strict=True)
                else:
                    pairs.append((each, other))
        return not self.written

    def is_error_code(self, x: Tensor) -> bool:
        """Return whether a tensor says where a factorisation failed."""
        node = self.nodes.get(x)
        source = node.args[0] if node is not None and node.target is operator.getitem else None
        return isinstance(source, fx.Node) and source.target is aten.linalg_cholesky_ex.default

    def _note_writes(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], sources: frozenset[int]
    ) -> None:
        """Remember what the memory that an operation writes to depends on, for its other views."""
        named = {a.name: a for a in func._schema.arguments}
        given = [*zip(args, func._schema.arguments, strict=False)]
        for value, argument in [*given, *((v, named[k]) for k, v in kwargs.items())]:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for x in tree_leaves(value):
                    if isinstance(x, Tensor):
                        memory = x.untyped_storage()
                        before = self._written_from(x)
                        self.written[memory._cdata] = (memory, before | sources)

    def _written_from(self, x: Any) -> frozenset[int]:
        if not (self.written and isinstance(x, Tensor)):
            return frozenset()
        return self.written.get(x.untyped_storage()._cdata, (None, frozenset[int]()))[1]

    def _as_nodes(self, x: Any, inputs: list[fx.Node]) -> Any:
        """Replace tensors by their nodes, and append these to ``inputs``."""
        if isinstance(x, Tensor):
            node = self.node_of(x)
            inputs.append(node)
            return node
        if isinstance(x, (list, tuple)):
            return [self._as_nodes(item, inputs) for item in x]
        return x

    def _attach(self, tensor: Tensor, node: fx.Node, sources: frozenset[int]) -> None:
        node.meta["val"] = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        size = tensor.numel() * tensor.element_size()
        node.meta["whole"] = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == size
        self.nodes[tensor] = node
        self.sources[node] = sources


class _ReadsValues(TorchFunctionMode):
    """Raise an error for calls from Python that use values and that the dispatcher does not see."""

    def __init__(
        self,
        recorder: _Recorder,
        replacements: Mapping[Callable[..., Any], Callable[..., Any]],
    ) -> None:
        super().__init__()
        self.recorder = recorder
        self.replacements = replacements

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in self.replacements:
            return self.replacements[func](*args, **(kwargs or {}))
        if func in _READ_VALUES:
            read = args[1:] if func is Tensor.new_tensor else args
            # A whole tensor, unlike a list of tensors, is copied by the dispatcher.
            if not (func in _COPY_TENSOR and read and isinstance(read[0], Tensor)):
                self._refuse_changing((read, kwargs))
        elif func in _NONZERO or (func in _WHERE and len(args) + len(kwargs or {}) == 1):
            self._refuse_changing((args, kwargs))
        elif func is Tensor.__getitem__:
            args = self._without_numbers(*args)
        elif func in _EQUAL and all(isinstance(x, Tensor) for x in args):
            if args[0] is args[1] or self.recorder.computed_alike(*args):
                return True
        elif func in _ANY and len(args) == 1 and self._asks_for_failure(args[0]):
            info = args[0]  # as in torch.linalg.cholesky, a failure is an error
            aten._linalg_check_errors(info, "linalg.cholesky", is_matrix=info.ndim == 0)
            return torch.tensor(False)
        return func(*args, **(kwargs or {}))

    def _asks_for_failure(self, x: Any) -> bool:
        """Return whether GPyTorch asks if a factorisation failed; it would add jitter then."""
        frame = frame_outside(sys._getframe(1), ("probdl.",))  # other modes may stand between
        asks = frame.f_globals.get("__name__") in _WITH_JITTER
        return asks and self.recorder.is_error_code(x)

    def _without_numbers(self, x: Tensor, index: Any) -> tuple[Tensor, Any]:
        """Return a tensor and an index in which changing numbers are replaced.

        Of ``x[i]`` with a tensor without dimensions, torch reads the value.
        """
        items = list(index) if isinstance(index, tuple) else [index]
        if not all(map(_takes_one_axis, items)):
            return x, index
        for position, item in enumerate(items):
            if not isinstance(item, Tensor) or not self.recorder.depends(item):
                continue
            if item.dtype == torch.bool:  # a further axis
                return x, index
            rest = len(items) - position
            dim = x.ndim - rest if Ellipsis in map(_plain, items[:position]) else position
            x = x[(slice(None),) * dim + (item.reshape(1),)]
            items[position] = 0
        return x, tuple(items)

    def _refuse_changing(self, values: Any) -> None:
        if any(map(self.recorder.depends, tree_leaves(values))):
            self.recorder.refuse()


def calls(frame: Any, until: types.CodeType | None = None) -> Place:
    """Return the calls on the way to a frame, the innermost first, up to that of a function."""
    found = []
    while frame is not None and frame.f_code is not until:
        code, at = frame.f_code, frame.f_lasti
        # Python 3.11 makes a call in the instruction before it, once it has seen what is called.
        found.append((code, at + _TO_CALL if code.co_code[at] == _PRECALL else at))
        frame = frame.f_back
    return tuple(found)


def _takes_one_axis(item: Any) -> bool:
    """Return whether an item of an index is a number, a slice or the ellipsis."""
    if isinstance(item, Tensor):
        return not item.ndim
    return isinstance(item, (int, slice, type(Ellipsis))) and not isinstance(item, bool)


def without_nan_checks() -> Any:
    """Turn off Pyro's checks for NaN, which read the values of tensors."""
    return patch.object(pyro.util, "torch_isnan", lambda x: False)


def _plain(item: Any) -> Any:
    return None if isinstance(item, Tensor) else item


def _is_floating(node: fx.Node) -> bool:
    return bool(node.meta["val"].is_floating_point())


def _decides_shape(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the arguments whose values decide the shape of the result of an operation."""
    if func is aten.index.Tensor:
        return [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
    if func is aten.masked_select.default:
        return args[1]
    if func is aten.repeat_interleave.Tensor:
        return args[0] if kwargs.get("output_size") is None else None
    return args[0] if getattr(func, "overloadpacket", None) in _SHAPE_OF_VALUES else None


def _draws(func: Any) -> bool:
    """Return whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


def erase_unused(graph: fx.Graph) -> None:
    """Erase operations whose result nothing uses, but for random numbers.

    Drawing those as the function does leaves the others in their order; some releases of torch
    erase them.
    """
    for node in reversed(graph.nodes):
        used = node.users or node.op in ("placeholder", "output") or node.is_impure()
        if not (used or is_random(node)):
            graph.erase_node(node)


def is_random(node: fx.Node) -> bool:
    """Return whether a node draws random numbers."""
    return _draws(node.target)


@functools.cache
def _is_composite(func: Any) -> bool:
    """Return whether C++ implements an operation by calls of other operations."""
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _owns_memory(args: Sequence[Any], func: Any) -> bool:
    """Return whether the out-of-place version can replace an in-place operation.

    It can if no other tensor shares the memory that the operation writes to, and if its result has
    the same dtype.
    """
    x = args[0]
    dtypes = {a.dtype for a in args if isinstance(a, Tensor)} - {torch.bool}
    return (
        isinstance(x, Tensor)
        and dtypes <= {x.dtype}
        and _out_of_place(func) is not None
        and _uses(x) <= _uses_alone()
    )


def _uses(x: Tensor) -> int:
    """Return the reference count of a tensor's memory."""
    return int(torch._C._storage_Use_Count(x.untyped_storage()._cdata))  # type: ignore[attr-defined]


@functools.cache
def _uses_alone() -> int:
    """Return the reference count of a tensor that does not share its memory.

    In some releases of torch it is two: the object that reads the count is also counted.
    """
    return _uses(torch.empty(1, device="cpu"))


@functools.cache
def _out_of_place(func: Any) -> Any:
    """Return the out-of-place version of an in-place operation, or None."""
    name = func.overloadpacket.__name__
    if not name.endswith("_") or name.startswith("__"):
        return None
    twin = getattr(getattr(aten, name[:-1], None), func._overloadname, None)
    if twin is None or [a.name for a in twin._schema.arguments] != [
        a.name for a in func._schema.arguments
    ]:
        return None
    return twin


@functools.cache
def _takes_dtype(func: Any) -> bool:
    """Return whether an operation creates a tensor in torch's default dtype."""
    arguments = func._schema.arguments
    return any(a.name == "dtype" and a.kwarg_only for a in arguments) and not any(
        "Tensor" in str(a.type) for a in arguments
    )


# Set outside the class body, where torch would wrap it and import its compiler for that, 1 s.
_Recorder.__torch_dispatch__ = _Recorder._dispatch  # type: ignore[method-assign,assignment]


@dataclass(frozen=True)
class Recording:
    """A graph of operations.

    Attributes:
        graph: the graph.
        constants: the tensors that are constants in it.
        default_dtype: torch's default dtype to run it in: that of the results that were computed
            from integers.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    default_dtype: torch.dtype

    @property
    def has_mutation(self) -> bool:
        """Whether an operation writes to a tensor in place."""
        return any(
            isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
            for node in self.graph.nodes
        )

    def function(self) -> fx.GraphModule:
        """Return the graph as a function of the inputs."""
        return fx.GraphModule(self.constants, self.graph)


def record(
    fn: Callable[..., Any],
    inputs: Sequence[Tensor],
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
    replacements: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    branches: Branches | None = None,
) -> Recording:
    """Run ``fn(*inputs)`` and return its operations as a graph.

    Args:
        fn: a function of tensors that returns a tree of tensors.
        inputs: the values to run at. Other tensors that ``fn`` uses become constants.
        decompositions: functions of simpler operations to record instead, by operation.
        replacements: functions to call instead of functions of torch, which may have other
            gradients.
        branches: what Python code does that asks for the truth of a tensor that depends on the
            first input or on random numbers. By default, this is an error.

    Raises:
        ControlFlowError: Python code read the value of a tensor that depends on an input or on
            random numbers.

    >>> recording = record(lambda x: x.exp() + 1, [torch.zeros(2)])
    >>> [str(node.target) for node in recording.graph.nodes][1:-1]
    ['aten.exp.default', 'aten.add.Tensor']
    >>> recording.function()(torch.zeros(2))
    tensor([2., 2.])
    """
    recorder = _Recorder(inputs, decompositions or {}, branches)
    with _ReadsValues(recorder, replacements or {}), recorder, without_nan_checks():
        result = fn(*inputs)
    recorder.graph.output(tree_map(recorder.node_of, result))
    return Recording(recorder.graph, recorder.constants, recorder.default_dtype)
