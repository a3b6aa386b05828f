"""Noise of a step drawn in C, by a generator whose numbers depend on a key and a counter."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, fx

from probdl.compile.codegen.emit import Source
from probdl.compile.runtime.library import loaded

__all__ = ["NoiseSpec", "draw_noise", "noise_source", "random_key", "specify_noise"]

aten = torch.ops.aten


class NoiseSpec(ctypes.Structure):
    """The struct ``Noise`` of noise.c."""

    _fields_ = (
        ("size", ctypes.c_uint64),
        ("normal", ctypes.c_uint64),
        ("shift", ctypes.c_double),
        ("scale", ctypes.c_double),
    )


@dataclass(frozen=True)
class _Drawn:
    """An array that is shift + scale times the numbers of a node."""

    node: fx.Node
    shift: float = 0.0
    scale: float = 1.0


def noise_source() -> str:
    """Return the C code."""
    return files("probdl.compile.kernels").joinpath("noise.c").read_text()


@functools.cache
def _fill() -> Any:
    function = loaded(Source(noise_source(), 0, 0), "fill_steps").fill_steps
    function.restype = None
    function.argtypes = [ctypes.c_void_p, *[ctypes.c_uint64] * 4, ctypes.c_void_p]
    return function


def specify_noise(graph: fx.Graph) -> list[tuple[NoiseSpec, torch.Size]] | None:
    """Return what each result of a graph without inputs is; None if C cannot draw one of them.

    The results must be separate normal or uniform numbers, shifted and scaled by numbers.
    """
    drawn: dict[fx.Node, _Drawn] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        found = _drawn_by(node, drawn)
        if found is None:
            return None
        drawn[node] = found
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = [drawn[node] for node in output.args[0]]
    if len({result.node for result in results}) < len(results):
        return None
    specs = []
    for result in results:
        size: Any = result.node.args[0]
        shape = torch.Size(size)
        normal = result.node.target is aten.randn.default
        specs.append((NoiseSpec(math.prod(shape), normal, result.shift, result.scale), shape))
    return specs


def _drawn_by(node: fx.Node, drawn: dict[fx.Node, _Drawn]) -> _Drawn | None:
    if node.target in (aten.randn.default, aten.rand.default):
        return _Drawn(node) if node.kwargs.get("dtype") == torch.float64 else None
    if node.target not in (aten.mul.Tensor, aten.add.Tensor) or node.kwargs:
        return None
    base, number = node.args
    if not isinstance(base, fx.Node) or not isinstance(number, (int, float)):
        return None
    of = drawn[base]
    if node.target is aten.mul.Tensor:
        return _Drawn(of.node, of.shift * number, of.scale * number)
    return _Drawn(of.node, of.shift + number, of.scale)


def random_key() -> int:
    """Return a key that torch's generator determines."""
    return int(torch.empty((), dtype=torch.int64).random_())


def draw_noise(
    specs: Sequence[tuple[NoiseSpec, torch.Size]], key: int, count: int, first: int = 0
) -> list[Tensor]:
    """Draw the noise of ``count`` evaluations: (count, ...) each.

    Args:
        specs: what each array is.
        key: the key of the generator, in [0, 2^63).
        count: number of evaluations.
        first: the number of the first of them.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    fill, arrays = _fill(), []
    for index, (spec, shape) in enumerate(specs):
        array = torch.empty((count, *shape), dtype=torch.float64)
        fill(ctypes.byref(spec), index, key, first, count, array.data_ptr())
        arrays.append(array)
    return arrays
