"""The system's C compiler: which it is, and C code to a shared library."""

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
from probdl.util.clock import look, time_left

__all__ = ["Compiler", "CompilerError", "compile_to", "find_compiler", "identity"]

_FLAGS = (
    "-x", "c", "-std=gnu11", "-fPIC", "-shared", "-w", "-pthread",
    "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip

LONG = 8000  # statements, from which on -O3 takes half a minute and gains little
ANSWER = 10.0  # seconds for a compiler to say its version, which takes milliseconds
LIMIT = 600.0  # seconds for one compilation; the longest that is tried takes a minute


class CompilerError(ProbdlError, RuntimeError):
    """There is no C compiler, it failed, or what it made cannot be loaded."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler: how to call it, what it says of itself, and where it was named."""

    command: tuple[str, ...]
    version: str
    named: str = ""

    def __str__(self) -> str:
        """Name it, with the variable of the environment that named it."""
        name = " ".join(self.command)
        return f"{name} (from ${self.named})" if self.named else name


def find_compiler() -> Compiler:
    """Find a C compiler: $CC, or else cc, gcc, clang, or a C++ compiler that takes C too.

    Raises:
        CompilerError: there is none, or the one that is named does not answer.
    """
    found = _find(*(os.environ.get(name, "") for name in ("CC", "CXX", "PATH")))
    if isinstance(found, str):
        raise CompilerError(found)
    return found


@functools.lru_cache(maxsize=16)
def _find(cc: str, cxx: str, path: str) -> Compiler | str:
    """Return the compiler for these variables of the environment, or why there is none."""
    candidates = [("CC", cc), ("", "cc"), ("", "gcc"), ("", "clang"), ("CXX", cxx), ("", "c++")]
    why = ""
    for named, candidate in [*candidates, ("", "g++")]:
        try:
            command = tuple(shlex.split(candidate))
        except ValueError as error:
            why = why or f"${named}={candidate!r} is not a command ({error})"
            if named == "CC":  # the user's choice: nothing else is taken in its place
                break
            continue
        if not command or not shutil.which(command[0]):
            continue
        try:
            code, said, _ = _run([*command, "--version"], b"", ANSWER)
        except (OSError, CompilerError) as error:
            code, said, why = 1, "", why or f"{candidate} --version: {error}"
        if code == 0:
            return Compiler(command, next(iter(said.splitlines()), ""), named)
        if named == "CC":
            why = f"$CC={candidate!r} does not answer --version{f' ({why})' if why else ''}"
            break
    else:
        why = f"; {why}" if why else ""
        return f"there is no C compiler: none of $CC, cc, gcc, clang, c++ runs{why}"
    return f"{why}. Set CC to a C compiler, or unset it"


@functools.cache
def _processor() -> str:
    """Name the instructions of this machine; code made for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        flags = next(x for x in lines if x.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.system()} {platform.machine()} {flags}"


def identity(source: Source) -> str:
    """Return all that a library compiled from a source depends on.

    Raises:
        CompilerError: there is no compiler.
    """
    compiler = find_compiler()
    parts = [source.text, _level(source), *compiler.command, compiler.version, *_FLAGS]
    return "\0".join([*parts, _processor()])


def _level(source: Source) -> str:
    """Choose how hard to optimise; very long code is mostly straight lines of single numbers."""
    return "-O3" if source.statements <= LONG else "-O1"


def compile_to(path: Path, source: Source) -> None:
    """Compile C code to a shared library at a path.

    Raises:
        CompilerError: there is no compiler, or it failed.
        TimeUp: the time limit of the fit passed meanwhile.
    """
    compiler = find_compiler()
    failure = ""
    for tuned in (["-march=native"], ["-mcpu=native"], []):  # clang on Arm knows only the second
        command = [*compiler.command, *_FLAGS, _level(source), *tuned, "-o", str(path), "-", "-lm"]
        try:
            code, _, complaint = _run(command, source.text.encode(), LIMIT)
        except OSError as error:
            raise CompilerError(f"{compiler} failed: {error}") from None
        if code == 0 and path.is_file():
            return
        complaint = complaint or ("it wrote no library" if code == 0 else "no message")
        failure = failure or next(iter(complaint.splitlines()), "")[:300]
    raise CompilerError(f"{compiler} failed: {failure}")


def _run(command: Sequence[str], given: bytes, limit: float) -> tuple[int, str, str]:
    """Run a program; return its exit status and what it said.

    It runs in a process group of its own, which is ended as a whole where it takes too long or the
    user interrupts: compilers start others.

    Raises:
        CompilerError: it took longer than ``limit`` seconds.
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
            said, complaint = process.communicate(given, timeout=timeout)
        except BaseException as error:
            _end(process)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            look()  # whose time was up: that of the fit, or the compiler's
            passed = time.perf_counter() - started
            raise CompilerError(f"{command[0]} was not done after {passed:.0f} s") from None
    return process.returncode, said.decode(errors="replace"), complaint.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started, and close its pipes."""
    with contextlib.suppress(OSError):  # it may have ended by itself
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):  # of what it had not read
            if pipe is not None:
                pipe.close()
