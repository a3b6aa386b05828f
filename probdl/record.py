"""Record a function of tensors as a graph of plain operations, by running it once.

``make_fx`` does this too, at about a millisecond an operation; a loop over time has thousands.
The recorder below notes what reaches the dispatcher and nothing else, some forty times faster,
and it tells which inputs an operation depends on. The graph holds for other values of the inputs
as long as no Python control flow looked at one, and that raises.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from probdl.errors import ProbdlError

__all__ = ["ControlFlowError", "has_mutation", "record"]

aten = torch.ops.aten

_SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}


class ControlFlowError(ProbdlError, RuntimeError):
    """Python looked at the value of a tensor that is an input, or depends on one."""


class _Recorder(TorchDispatchMode):
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
            node = self.graph.placeholder(f"input_{i}")
            self.nodes[tensor] = node
            self.sources[node] = frozenset([i])

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
            self.nodes[x] = node
            self.sources[node] = frozenset()
        return node

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func in self.decompositions:
            with self:
                result = self.decompositions[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if func in _SAME:
            self.nodes[result] = self.node_of(args[0])
            return result
        sources = frozenset[int]().union(
            *(
                self.sources[self.node_of(x)]
                for x in tree_leaves((args, kwargs))
                if isinstance(x, Tensor)
            )
        )
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not outputs:
            if func is aten._linalg_check_errors.default:  # looks, and raises, in C++
                self.graph.call_function(func, tree_map(self.node_of, args), kwargs)
            elif sources:
                raise ControlFlowError(
                    f"Python control flow depends on a value that is not fixed ({func})"
                )
            return result
        if isinstance(result, Tensor) and kwargs.get("dtype", result.dtype) is None:
            kwargs = {**kwargs, "dtype": result.dtype}  # or it would follow torch's default
        elif isinstance(result, Tensor) and not sources and _takes_dtype(func):
            kwargs = {"dtype": result.dtype, **kwargs}
        node = self.graph.call_function(
            func, tree_map(self.node_of, args), tree_map(self.node_of, kwargs)
        )
        self.sources[node] = sources
        if isinstance(result, Tensor):
            self._attach(result, node, sources)
        else:
            for i, x in enumerate(result):
                if isinstance(x, Tensor):
                    self._attach(x, self.graph.call_function(operator.getitem, (node, i)), sources)
        return result

    def _attach(self, tensor: Tensor, node: fx.Node, sources: frozenset[int]) -> None:
        node.meta["val"] = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        self.nodes[tensor] = node
        self.sources[node] = sources


def _takes_dtype(func: Any) -> bool:
    """Tell whether an operation makes a tensor from nothing, of torch's default dtype."""
    arguments = func._schema.arguments
    return any(a.name == "dtype" and a.kwarg_only for a in arguments) and not any(
        "Tensor" in str(a.type) for a in arguments
    )


def record(
    fn: Callable[..., Any],
    inputs: Sequence[Tensor],
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """Run ``fn(*inputs)`` and return its operations as a graph.

    Args:
        fn: takes tensors, and returns a tree of tensors.
        inputs: the values to run at. Tensors that ``fn`` has from elsewhere are constants.
        decompositions: by operation, a function of simpler ones to be recorded in its place.

    Raises:
        ControlFlowError: the Python code looked at the value of a tensor that depends on an input.
    """
    recorder = _Recorder(inputs, decompositions or {})
    with recorder:
        result = fn(*inputs)
    recorder.graph.output(tree_map(recorder.node_of, result))
    return fx.GraphModule(recorder.constants, recorder.graph)


def has_mutation(graph: fx.GraphModule) -> bool:
    """Tell whether a graph writes to a tensor in place."""
    return any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for node in graph.graph.nodes
    )
