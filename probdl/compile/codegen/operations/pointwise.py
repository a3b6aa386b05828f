"""Element-wise operations, each as a C expression of its operands in double precision.

Truth values are 0.0 and 1.0. NaN propagates as it does in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["POINTWISE", "literal", "special_arity"]

aten = torch.ops.aten


def literal(x: Any) -> str:
    """Write a number as an exact C literal.

    >>> literal(0.1), literal(-float("inf")), literal(True)
    ('0.1', '(-INFINITY)', '1.0')
    """
    x = float(x)
    if math.isnan(x):
        return "NAN"
    text = "INFINITY" if math.isinf(x) else repr(abs(x))
    return f"(-{text})" if math.copysign(1.0, x) < 0 else text


def _function(name: str) -> Callable[..., str]:
    return lambda x: f"{name}({x})"


def _scaled(x: str, alpha: Any) -> str:
    return x if float(alpha) == 1 else f"{literal(alpha)} * {x}"


def _power(x: str, exponent: str) -> str:
    try:
        k = float(exponent.strip("()"))
    except ValueError:
        return f"pow({x}, {exponent})"
    if k == 0.5:
        return f"sqrt({x})"
    if abs(k) in (1, 2, 3, 4):
        product = " * ".join([x] * int(abs(k)))
        return f"({product})" if k > 0 else f"(1.0 / ({product}))"
    return {0.0: "1.0", -0.5: f"(1.0 / sqrt({x}))"}.get(k, f"pow({x}, {exponent})")


def _clamp(x: str, low: str | None = None, high: str | None = None) -> str:
    if low is not None:
        x = f"at_least({x}, {low})"
    return x if high is None else f"at_most({x}, {high})"


def _divide(a: str, b: str, rounding_mode: str | None = None) -> str:
    if rounding_mode == "floor":
        return f"floor_quotient({a}, {b})"
    return f"trunc({a} / {b})" if rounding_mode else f"({a} / {b})"


def _sign(x: str) -> str:
    return f"({x} != {x} ? {x} : (double)(({x} > 0) - ({x} < 0)))"


def _compare(sign: str) -> Callable[..., str]:
    return lambda a, b: f"(double)({a} {sign} {b})"


# By operation. The operands are C expressions, in torch's order; a number is a literal.
POINTWISE: dict[Any, Callable[..., str]] = {
    aten.add: lambda a, b, alpha=1: f"({a} + {_scaled(b, alpha)})",
    aten.sub: lambda a, b, alpha=1: f"({a} - {_scaled(b, alpha)})",
    aten.rsub: lambda a, b, alpha=1: f"({b} - {_scaled(a, alpha)})",
    aten.mul: lambda a, b: f"({a} * {b})",
    aten.div: _divide,
    aten._neg_view: lambda x: f"(-{x})",
    aten.neg: lambda x: f"(-{x})",
    aten.reciprocal: lambda x: f"(1.0 / {x})",
    aten.square: lambda x: f"({x} * {x})",
    aten.pow: _power,
    aten.rsqrt: lambda x: f"(1.0 / sqrt({x}))",
    aten.abs: _function("fabs"),
    aten.sgn: _sign,
    aten.sign: _sign,
    aten.sigmoid: _function("sigmoid"),
    aten.lgamma: _function("log_gamma"),
    aten.digamma: _function("digamma"),
    aten.round: _function("nearbyint"),
    aten.atan2: lambda a, b: f"atan2({a}, {b})",
    aten.remainder: lambda a, b: f"floor_remainder({a}, {b})",
    aten.fmod: lambda a, b: f"fmod({a}, {b})",
    aten.floor_divide: lambda a, b: f"floor_quotient({a}, {b})",
    aten.maximum: lambda a, b: f"at_least({a}, {b})",
    aten.minimum: lambda a, b: f"at_most({a}, {b})",
    aten.clamp: _clamp,
    aten.clamp_min: _clamp,
    aten.clamp_max: lambda x, high: _clamp(x, None, high),
    aten.where: lambda condition, a, b: f"({condition} != 0 ? {a} : {b})",
    aten.masked_fill: lambda x, mask, value: f"({mask} != 0 ? {value} : {x})",
    aten.xlogy: lambda a, b: f"({a} == 0 && {b} == {b} ? 0.0 : {a} * log({b}))",
    aten.eq: _compare("=="),
    aten.ne: _compare("!="),
    aten.lt: _compare("<"),
    aten.le: _compare("<="),
    aten.gt: _compare(">"),
    aten.ge: _compare(">="),
    aten.logical_not: lambda x: f"(double)({x} == 0)",
    aten.bitwise_not: lambda x: f"(double)({x} == 0)",  # of truth values only; see emit.py
    aten.isnan: lambda x: f"(double)({x} != {x})",
    aten.isinf: lambda x: f"(double)(fabs({x}) == INFINITY)",
    aten.relu: lambda x: f"at_least({x}, 0.0)",
    aten.clone: lambda x: x,
    aten.hypot: lambda a, b: f"hypot({a}, {b})",
    aten.copysign: lambda a, b: f"copysign({a}, {b})",
    aten.polygamma: lambda n, x: f"polygamma({n}, {x})",
    aten.special_zeta: lambda s, q: f"zeta({s}, {q})",
}
for _name in ("and", "or", "xor"):
    _symbol = {"and": "&", "or": "|", "xor": "^"}[_name]
    for _kind in ("logical", "bitwise"):
        POINTWISE[getattr(aten, f"{_kind}_{_name}")] = lambda a, b, sign=_symbol: (
            f"(double)(({a} != 0) {sign} ({b} != 0))"
        )
_SAME_NAME = """
    exp expm1 exp2 log log1p log2 log10 sqrt sin cos tan asin acos atan sinh cosh asinh acosh
    atanh erf erfc floor ceil trunc
"""
for _name in _SAME_NAME.split():
    POINTWISE[getattr(aten, _name)] = _function(_name)

POINTWISE[aten.tanh] = _function("tanh_of")

# SciPy's functions, by those of torch; see compile/runtime/special.py.
_SCIPY = {
    "erfinv": "erfinv", "i0": "i0", "igamma": "gammainc", "igammac": "gammaincc",
    "special_bessel_j0": "j0", "special_bessel_j1": "j1", "special_bessel_y0": "y0",
    "special_bessel_y1": "y1", "special_erfcx": "erfcx", "special_i0e": "i0e",
    "special_i1": "i1", "special_i1e": "i1e", "special_modified_bessel_i0": "i0",
    "special_modified_bessel_i1": "i1", "special_modified_bessel_k0": "k0",
    "special_modified_bessel_k1": "k1", "special_ndtri": "ndtri",
    "special_scaled_modified_bessel_k0": "k0e", "special_scaled_modified_bessel_k1": "k1e",
}  # fmt: skip


def special_arity(name: str) -> int:
    """Return the number of arguments of one of SciPy's functions."""
    return 2 if name.startswith("gammainc") else 1


def _scipy(name: str) -> Callable[..., str]:
    return lambda *xs: f"scipy_{name}({', '.join(xs)}, 0)"


for _name, _exported in _SCIPY.items():
    POINTWISE[getattr(aten, _name)] = _scipy(_exported)
