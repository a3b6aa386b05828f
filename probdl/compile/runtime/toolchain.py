"""The system's C compiler: finding it, and compiling C code to a shared library."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probdl.compile.codegen.emit import Source
from probdl.errors import ProbdlError
from probdl.util.clock import check_time_limit, time_left

__all__ = ["Compiler", "CompilerError", "compile_to", "find_compiler", "identity"]

_FLAGS = (
    "-x", "c", "-std=gnu11", "-fPIC", "-shared", "-w", "-pthread",
    "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip

MAX_O3_STATEMENTS = 8000  # for more, -O3 takes half a minute and gains little
VERSION_TIMEOUT = 10.0  # seconds; the answer takes milliseconds
COMPILE_TIMEOUT = 600.0  # seconds; the longest code that is accepted takes a minute


class CompilerError(ProbdlError, RuntimeError):
    """There is no C compiler, it failed, or its library cannot be loaded."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler: its command, its version, and the environment variable that names it."""

    command: tuple[str, ...]
    version: str
    variable: str = ""

    def __str__(self) -> str:
        """Return the command, with the environment variable that names it."""
        name = " ".join(self.command)
        return f"{name} (from ${self.variable})" if self.variable else name


def find_compiler() -> Compiler:
    """Return a C compiler: $CC, cc, gcc, clang, or a C++ compiler that also accepts C.

    Raises:
        CompilerError: there is none, or $CC does not run.
    """
    found = _find(*(os.environ.get(name, "") for name in ("CC", "CXX", "PATH")))
    if isinstance(found, str):
        raise CompilerError(found)
    return found


@functools.lru_cache(maxsize=16)
def _find(cc: str, cxx: str, path: str) -> Compiler | str:
    """Return the compiler for these environment variables, or the reason why there is none."""
    candidates = [("CC", cc), ("", "cc"), ("", "gcc"), ("", "clang"), ("CXX", cxx), ("", "c++")]
    why = ""
    for variable, candidate in [*candidates, ("", "g++")]:
        try:
            command = tuple(shlex.split(candidate))
        except ValueError as error:
            why = why or f"${variable}={candidate!r} is not a command ({error})"
            if variable == "CC":  # the user's choice is not replaced by another compiler
                break
            continue
        if not command or not shutil.which(command[0]):
            continue
        try:
            code, output, _ = _run([*command, "--version"], b"", VERSION_TIMEOUT)
        except (OSError, CompilerError) as error:
            code, output, why = 1, "", why or f"{candidate} --version: {error}"
        if code == 0:
            return Compiler(command, next(iter(output.splitlines()), ""), variable)
        if variable == "CC":
            why = f"$CC={candidate!r} fails at --version{f' ({why})' if why else ''}"
            break
    else:
        why = f"; {why}" if why else ""
        return f"there is no C compiler: none of $CC, cc, gcc, clang, c++ runs{why}"
    return f"{why}. Set CC to a C compiler, or unset it"


@functools.cache
def _processor() -> str:
    """Describe the instruction set of this machine; code for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        flags = next(x for x in lines if x.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.system()} {platform.machine()} {flags}"


def identity(source: Source) -> str:
    """Return everything that the library compiled from a source depends on, as one string.

    Raises:
        CompilerError: there is no compiler.
    """
    compiler = find_compiler()
    parts = [source.text, _level(source), *compiler.command, compiler.version, *_FLAGS]
    return "\0".join([*parts, _processor()])


def _level(source: Source) -> str:
    """Choose the optimisation level; very long code is mostly straight-line scalar code."""
    return "-O3" if source.statements <= MAX_O3_STATEMENTS else "-O1"


def compile_to(path: Path, source: Source) -> None:
    """Compile C code to a shared library at a path.

    Raises:
        CompilerError: there is no compiler, or it failed.
        TimeUp: the time limit of the fit passed meanwhile.
    """
    compiler = find_compiler()
    failure = ""
    for target in (["-march=native"], ["-mcpu=native"], []):  # clang on Arm knows only -mcpu
        command = [*compiler.command, *_FLAGS, _level(source), *target, "-o", str(path), "-", "-lm"]
        try:
            code, _, errors = _run(command, source.text.encode(), COMPILE_TIMEOUT)
        except OSError as error:
            raise CompilerError(f"{compiler} failed: {error}") from None
        if code == 0 and path.is_file():
            return
        errors = errors or ("it wrote no library" if code == 0 else "no message")
        failure = failure or next(iter(errors.splitlines()), "")[:300]
    raise CompilerError(f"{compiler} failed: {failure}")


def _run(command: Sequence[str], given: bytes, limit: float) -> tuple[int, str, str]:
    """Run a program, and return its exit status, standard output and standard error.

    It runs in its own process group, because compilers start other processes: all of them are
    killed if the program takes too long or the user interrupts it.

    Raises:
        CompilerError: the program took longer than ``limit`` seconds.
        TimeUp: the time limit of the fit passed.
    """
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            left = time_left()
            timeout = limit if left is None else min(limit, left)
            output, errors = process.communicate(given, timeout=timeout)
        except BaseException as error:
            _kill(process)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            check_time_limit()  # the limit of the fit may have passed, not the compiler's
            passed = time.perf_counter() - started
            raise CompilerError(f"{command[0]} was not finished after {passed:.0f} s") from None
    return process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, and close its pipes."""
    with contextlib.suppress(OSError):  # it may have ended already
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):  # raised for input that it has not read
            if pipe is not None:
                pipe.close()
