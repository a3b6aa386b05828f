"""Record a function of tensors as a graph of plain operations, by running it once.

``make_fx`` does this too, at about a millisecond an operation; a loop over time has thousands.
The recorder below notes what reaches the dispatcher and nothing else, some forty times faster,
and it tells which inputs an operation depends on. The graph holds for other values of the inputs
as long as no Python control flow looked at one, and that raises.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from probdl.errors import ProbdlError

__all__ = ["ControlFlowError", "DispatchMode", "Recording", "record"]

aten = torch.ops.aten

# These take no more than the shape of their input.
_SHAPE_ONLY = {
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty,
}  # fmt: skip
_SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}


class ControlFlowError(ProbdlError, RuntimeError):
    """Python looked at the value of a tensor that is an input, or depends on one."""


class DispatchMode(TorchDispatchMode):
    """A mode for whose sake torch does not import its compiler, which takes a second."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Recorder(DispatchMode):
    """Append each operation that is dispatched to a graph."""

    def __init__(
        self, inputs: Sequence[Tensor], decompositions: Mapping[Any, Callable[..., Any]]
    ) -> None:
        super().__init__()
        self.decompositions = decompositions
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.nodes: Any = WeakIdKeyDictionary()  # of the tensors that are alive
        self.sources: dict[fx.Node, frozenset[int]] = {}  # the inputs that a node depends on
        for i, tensor in enumerate(inputs):
            self._attach(tensor, self.graph.placeholder(f"input_{i}"), frozenset([i]))

    def node_of(self, x: Any) -> Any:
        """Return the node of a tensor; one that was not made here is a constant."""
        if not isinstance(x, Tensor):
            return x
        node = self.nodes.get(x)
        if node is None:
            name = f"constant_{len(self.constants)}"
            # A parameter can change after the recording, and its graph must not follow.
            self.constants[name] = x.detach().clone() if x.requires_grad else x
            node = self.graph.get_attr(name)
            self._attach(x, node, frozenset())
        return node

    def _dispatch(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func in self.decompositions:
            with self:
                result = self.decompositions[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if self.decompositions and _is_composite(func):
            # Autograd takes these apart; below it, where a decomposition runs, nobody has.
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _SAME:
            self.nodes[result] = self.node_of(args[0])
            return result
        inputs: list[fx.Node] = []
        of_args = tuple(self._noted(x, inputs) for x in args)
        of_kwargs = {name: self._noted(x, inputs) for name, x in kwargs.items()}
        sources = frozenset[int]()
        if getattr(func, "overloadpacket", None) not in _SHAPE_ONLY:
            sources = sources.union(*map(self.sources.__getitem__, inputs))
        if isinstance(result, Tensor):
            if func._schema.is_mutable and _is_alone(args, func):
                func = _out_of_place(func)
            elif not inputs and of_kwargs.get("dtype") is None and _takes_dtype(func):
                of_kwargs["dtype"] = result.dtype  # or it would follow torch's default
            node = self.graph.call_function(func, of_args, of_kwargs)
            self._attach(result, node, sources)
        elif isinstance(result, (tuple, list)):
            node = self.graph.call_function(func, of_args, of_kwargs)
            self.sources[node] = sources
            for i, x in enumerate(result):
                if isinstance(x, Tensor):
                    part = self.graph.call_function(operator.getitem, (node, i))
                    self._attach(x, part, sources)
        elif func is aten._linalg_check_errors.default:  # looks, and raises, in C++
            self.graph.call_function(func, of_args, of_kwargs)
        elif sources:
            raise ControlFlowError("Python looks at the value of a tensor that is not fixed")
        return result

    def _noted(self, x: Any, inputs: list[fx.Node]) -> Any:
        """Replace tensors by their nodes, and list those."""
        if isinstance(x, Tensor):
            node = self.node_of(x)
            inputs.append(node)
            return node
        if isinstance(x, (list, tuple)):
            return [self._noted(item, inputs) for item in x]
        return x

    def _attach(self, tensor: Tensor, node: fx.Node, sources: frozenset[int]) -> None:
        node.meta["val"] = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        size = tensor.numel() * tensor.element_size()
        node.meta["whole"] = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == size
        self.nodes[tensor] = node
        self.sources[node] = sources


@functools.cache
def _is_composite(func: Any) -> bool:
    """Return whether an operation is no more than a function of others, which C++ calls."""
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _is_alone(args: Sequence[Any], func: Any) -> bool:
    """Tell whether an operation in place can be taken as its twin that is not.

    It can where no other tensor shares the memory that it writes to, and where the twin gives
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
    """Count what holds the memory of a tensor."""
    return int(torch._C._storage_Use_Count(x.untyped_storage()._cdata))  # type: ignore[attr-defined]


@functools.cache
def _uses_alone() -> int:
    """Return the count of a tensor that shares its memory with none.

    One use is by the tensor; in some releases of torch, one more by the object made to ask.
    """
    return _uses(torch.empty(1, device="cpu"))


@functools.cache
def _out_of_place(func: Any) -> Any:
    """Return the operation that computes what this one writes to its first argument, or None."""
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
    """Tell whether an operation makes a tensor from nothing, of torch's default dtype."""
    arguments = func._schema.arguments
    return any(a.name == "dtype" and a.kwarg_only for a in arguments) and not any(
        "Tensor" in str(a.type) for a in arguments
    )


# Set here, since torch wraps one that is in the class body in a guard against its own compiler,
# which takes a second to import.
_Recorder.__torch_dispatch__ = _Recorder._dispatch  # type: ignore[method-assign,assignment]


@dataclass(frozen=True)
class Recording:
    """A graph of operations, and the tensors that are constants in it."""

    graph: fx.Graph
    constants: dict[str, Tensor]

    @property
    def has_mutation(self) -> bool:
        """Whether an operation writes to a tensor in place."""
        return any(
            isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
            for node in self.graph.nodes
        )

    def function(self) -> fx.GraphModule:
        """Make a function of the inputs."""
        return fx.GraphModule(self.constants, self.graph)


def record(
    fn: Callable[..., Any],
    inputs: Sequence[Tensor],
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
) -> Recording:
    """Run ``fn(*inputs)`` and return its operations as a graph.

    Args:
        fn: takes tensors, and returns a tree of tensors.
        inputs: the values to run at. Tensors that ``fn`` has from elsewhere are constants.
        decompositions: by operation, a function of simpler ones to be recorded in its place.

    Raises:
        ControlFlowError: the Python code looked at the value of a tensor that depends on an input.

    >>> recording = record(lambda x: x.exp() + 1, [torch.zeros(2)])
    >>> [str(node.target) for node in recording.graph.nodes][1:-1]
    ['aten.exp.default', 'aten.add.Tensor']
    >>> recording.function()(torch.zeros(2))
    tensor([2., 2.])
    """
    recorder = _Recorder(inputs, decompositions or {})
    with recorder:
        result = fn(*inputs)
    recorder.graph.output(tree_map(recorder.node_of, result))
    return Recording(recorder.graph, recorder.constants)
