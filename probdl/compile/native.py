"""C code to a function that a sampler can call: the system's compiler, the cache, ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import cache
from probdl.compile.emit import Source
from probdl.compile.statements import laid_out
from probdl.errors import ProbdlError

__all__ = [
    "Compiler",
    "CompilerError",
    "NativeDensity",
    "build",
    "compile_to",
    "differentiable",
    "find_compiler",
]

_FLAGS = (
    "-x", "c", "-std=gnu11", "-fPIC", "-shared", "-w", "-pthread",
    "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip

LONG = 8000  # statements, from which on -O3 takes half a minute and gains little


class CompilerError(ProbdlError, RuntimeError):
    """There is no C compiler, or it failed."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler: how to call it, and what it says of itself."""

    command: tuple[str, ...]
    version: str


@functools.cache
def find_compiler() -> Compiler | None:
    """Find a C compiler: $CC, or else cc, gcc, clang, or a C++ compiler that takes C too."""
    candidates = [os.environ.get("CC", ""), "cc", "gcc", "clang", os.environ.get("CXX", ""), "c++"]
    for candidate in [*candidates, "g++"]:
        command = shlex.split(candidate)
        if not command or not shutil.which(command[0]):
            continue
        try:
            said = subprocess.run(
                [*command, "--version"], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if said.returncode == 0:
            return Compiler(tuple(command), said.stdout.splitlines()[0])
    return None


@functools.cache
def _processor() -> str:
    """Tell what instructions this machine has; code made for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(x for x in lines if x.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.system()} {platform.machine()} {flags}"


def build(source: Source) -> Path:
    """Compile C code, or find it compiled; return the shared library.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    about = "\0".join(
        [source.text, _level(source), *compiler.command, compiler.version, *_FLAGS, _processor()]
    )
    key = hashlib.sha256(about.encode()).hexdigest()[:40]
    return cache.get(key, lambda path: compile_to(path, source))


def _compiler() -> Compiler:
    compiler = find_compiler()
    if compiler is None:
        raise CompilerError(
            "there is no C compiler: none of $CC, cc, gcc, clang, c++ runs. Install gcc or clang"
        )
    return compiler


def _level(source: Source) -> str:
    """Choose how hard to optimise; very long code is mostly straight lines of single numbers."""
    return "-O3" if source.statements <= LONG else "-O1"


def compile_to(path: Path, source: Source) -> None:
    """Compile C code to a shared library at a path.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    failure = ""
    for tuned in (["-march=native"], ["-mcpu=native"], []):  # clang on Arm knows only the second
        try:
            done = subprocess.run(
                [*compiler.command, *_FLAGS, _level(source), *tuned, "-o", str(path), "-", "-lm"],
                input=source.text,
                capture_output=True,
                text=True,
                timeout=600,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(f"{compiler.command[0]} failed: {error}") from None
        if done.returncode == 0:
            return
        failure = failure or next(iter(done.stderr.splitlines()), "no message")
    raise CompilerError(f"{compiler.command[0]} failed: {failure}")


class _Bound(ctypes.Structure):
    """The struct `Bound` of prelude.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("work", ctypes.c_void_p),
        ("busy", ctypes.c_void_p),
        ("slots", ctypes.c_uint64),
        ("threads", ctypes.c_uint64),
    )


@functools.lru_cache(maxsize=1024)
def _load(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    library.logp.restype = ctypes.c_int64
    library.logp.argtypes = [ctypes.c_uint64] + [ctypes.c_void_p] * 4
    return library


class NativeDensity:
    """A compiled log density at one set of data.

    Attributes:
        dim: d.
        address: of the C function ``int64_t logp(uint64_t dim, const double *z, double *grad,
            double *value, const void *user)``; it returns 0, or 1 where the value or the
            gradient is not finite. It may run in several threads at once.
        user: the address to pass as ``user``.
        expand: the address of an identity in the form that nutpie asks for.
    """

    engine = "native"

    def __init__(self, source: Source, dim: int, arrays: Sequence[Tensor], threads: int) -> None:
        library = _load(build(source))
        self.dim = dim
        self._function = library.logp
        self.address = ctypes.cast(library.logp, ctypes.c_void_p).value
        self.expand = ctypes.cast(library.expand, ctypes.c_void_p).value
        slots = threads if source.work else 0
        # All that the code points to is owned here.
        self._arrays = [laid_out(a.to(torch.float64)) for a in arrays]
        self._work = [np.empty(source.work) for _ in range(slots)]
        self._busy = np.zeros(max(slots, 1), np.uint32)
        self._data_pointers = np.array([a.data_ptr() for a in self._arrays] or [0], np.uintp)
        self._work_pointers = np.array([a.ctypes.data for a in self._work] or [0], np.uintp)
        self._bound = _Bound(
            self._data_pointers.ctypes.data,
            self._work_pointers.ctypes.data,
            self._busy.ctypes.data,
            slots,
            max(1, torch.get_num_threads() // threads),
        )
        self.user = ctypes.addressof(self._bound)

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density at ``z`` (d,) and its gradient (d,)."""
        point = np.ascontiguousarray(z.detach().numpy(), np.float64)
        grad, value = np.empty(self.dim), np.empty(())
        self._function(self.dim, point.ctypes.data, grad.ctypes.data, value.ctypes.data, self.user)
        return torch.from_numpy(value), torch.from_numpy(grad)

    def evaluate(self, z: Tensor, grad: Tensor, value: NDArray[np.float64]) -> None:
        """Write the gradient (d,) and the value () at ``z`` (d,) to where they are wanted."""
        self._function(self.dim, z.data_ptr(), grad.data_ptr(), value.ctypes.data, self.user)

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate the log density at ``z`` (d,), as a scalar that autograd can follow."""
        return differentiable(self, z)


def differentiable(density: Any, z: Tensor) -> Tensor:
    """Evaluate a density that knows its own gradient, as a scalar that autograd can follow."""
    return _Differentiable.apply(z, density)  # type: ignore[no-any-return]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, density: Any) -> Tensor:
        value, ctx.grad = density.value_and_grad(z)
        return value

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None]:
        return up * ctx.grad, None
