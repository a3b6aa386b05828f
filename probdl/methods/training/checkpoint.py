"""Checkpoints of training, written atomically, from which a killed run can resume."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probdl.compile.step import BLOCK
from probdl.errors import DataError, ProbdlError, SettingError
from probdl.io.files import open_plain, try_lock
from probdl.io.identity import identify
from probdl.io.source import source_of
from probdl.model.fingerprint import fingerprint
from probdl.model.program import Program
from probdl.util.memory import machine_memory

__all__ = ["Checkpoint", "checkpoint_of", "copy_saved", "identity_of"]

FILE = "checkpoint.pt"
CHECKSUMS = ("model's source", "guide's source", "arguments", "data", "validation")  # or long texts
PART = ".part"  # the end of the names of unfinished files
_VERSION = 3
SHOWN_MAX = 60  # characters of a value in a message


class Checkpoint:
    """The state of a run, saved in a folder.

    Args:
        folder: the folder.
        every: number of steps between writes.
        identity: by name, what must be unchanged for a run to resume.
    """

    def __init__(
        self, folder: str | os.PathLike[str], every: int, identity: dict[str, str]
    ) -> None:
        self.path = Path(folder) / FILE
        self.every = every
        self.identity = identity

    def read(self, steps: int) -> dict[str, Any] | None:
        """Return the last state written, or None if there is none.

        Args:
            steps: number of steps of the run.

        Raises:
            SettingError: the checkpoint is of another run or a longer one, or cannot be read, or
                the folder cannot be written.
        """
        self._check_folder()
        self._remove_orphans()
        with self.readable():
            try:
                file = open_plain(self.path)
            except FileNotFoundError:
                return None
            with file:
                _check_archive(file)
                saved = torch.load(file, weights_only=True)
            version, identity, state = saved["version"], saved["identity"], saved["state"]
            done = state["done"]
            if type(version) is not int or type(done) is not int or done < 0:
                raise ValueError(f"it has version {version!r}, and took {done!r} steps")
            if not all(isinstance(value, str) for value in identity.values()):
                raise ValueError("it does not say of which run it is")
        if version != _VERSION:
            raise SettingError(
                f"The checkpoint {self.path} has version {version}, and this package reads "
                f"version {_VERSION}. Delete it to start from the beginning."
            )
        for name, value in self.identity.items():
            # A setting that an older checkpoint does not name had its default then.
            if (saved_value := identity.get(name, "None")) != value:
                what = f"its {name} is {saved_value}, and now it is {value}"
                if name in CHECKSUMS or len(value) > SHOWN_MAX:
                    what = f"its {name} differed"
                constant = (
                    "With schedule='constant' the number of steps may grow; other learning rates "
                    "depend on it. "
                )
                raise SettingError(
                    f"The checkpoint {self.path} is of another run: {what}. "
                    f"{constant if name in ('steps', 'epochs') else ''}"
                    "Use another folder, or delete the checkpoint to start from the beginning."
                )
        if done > steps:
            raise SettingError(
                f"The checkpoint {self.path} is of a run that took {done} steps, more "
                f"than the {steps} of this run. Use another folder, or more steps."
            )
        return state

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Report what fails while a checkpoint is read, or its state is restored.

        Raises:
            SettingError: something does. A damaged file may hold anything.
        """
        try:
            yield
        except SettingError as error:
            if str(self.path) in str(error):
                raise
            raise self._unreadable(str(error)) from None
        except ProbdlError:
            raise
        except Exception as error:
            raise self._unreadable(f"{type(error).__name__}: {error}") from None

    def _unreadable(self, reason: str) -> SettingError:
        return SettingError(
            f"The checkpoint {self.path} cannot be read ({reason.partition(chr(10))[0][:200]}). "
            "Delete it to start from the beginning."
        )

    def write(self, state: dict[str, Any]) -> None:
        """Write a state atomically: after a kill, the file holds the old state or the new one.

        Raises:
            SettingError: the folder cannot be written.
            KeyboardInterrupt: interrupted before the file was complete; the old one is unchanged.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=FILE, suffix=PART)
        except OSError as error:
            raise self._not_written(error) from None
        try:
            with os.fdopen(handle, "wb") as file:
                try_lock(file.fileno())  # for as long as it is being written
                torch.save({"version": _VERSION, "identity": self.identity, "state": state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException as error:
            Path(name).unlink(missing_ok=True)
            if _interrupted(error):
                raise KeyboardInterrupt from None
            if isinstance(error, (OSError, RuntimeError)):
                raise self._not_written(error) from None
            raise

    def _check_folder(self) -> None:
        """Check that the folder can be written, before training depends on it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path.parent).close()
        except OSError as error:
            raise self._not_written(error) from None

    def _not_written(self, error: Exception) -> SettingError:
        reason = getattr(error, "strerror", None) or "the file is not complete"
        return SettingError(
            f"The checkpoint {self.path} cannot be written: {reason}. Free disk space, or use "
            "another folder."
        )

    def _remove_orphans(self) -> None:
        """Remove unfinished files of runs that were killed while they wrote them."""
        for orphan in self.path.parent.glob(f"{FILE}*{PART}"):
            with suppress(OSError, DataError), open_plain(orphan) as file:
                if try_lock(file.fileno()):
                    orphan.unlink()


def copy_saved(to: Tensor, saved: Any) -> None:
    """Copy a saved tensor, which must have the same shape and dtype.

    Raises:
        ValueError: it has not.
    """
    if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (to.shape, to.dtype):
        raise ValueError(f"a tensor of shape {tuple(to.shape)} is missing")
    to.copy_(saved)


def _interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error: torch raises another error instead of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_archive(file: BufferedReader) -> None:
    """Check that a file is an archive as torch writes it, undamaged, that fits into memory."""
    with zipfile.ZipFile(file) as archive:
        size = sum(info.file_size for info in archive.infolist())
        if size > machine_memory(unknown=2**36):
            raise MemoryError(f"its contents need {size / 2**30:.4g} GiB")
        if (damaged := archive.testzip()) is not None:  # torch does not read the checksums
            raise ValueError(f"its part {damaged} is damaged")
    file.seek(0)


def checkpoint_of(
    method: Any, seed: int, parameters: Sequence[Any], program: Program
) -> Checkpoint | None:
    """Make the checkpoint of a method; None if the method saves none.

    A run resumes only with the same settings, seed, parameters and data, and the same source of
    model and guide. Exempt are the settings of the checkpoint itself and the number of draws. The
    number of steps may grow as well if the learning rate is constant; other schedules depend on it.

    Args:
        method: the method, with the settings ``checkpoint``, ``every`` and ``schedule``.
        seed: the seed of the run.
        parameters: names, or names and shapes, of the parameters.
        program: the model with its data.
    """
    if method.checkpoint is None:
        return None
    may_change = ["checkpoint", "every", "draws"]
    if method.schedule == "constant":
        may_change += ["steps", "epochs"]
    identity = identity_of(method, seed, parameters, program, may_change)
    return Checkpoint(method.checkpoint, -(-method.every // BLOCK) * BLOCK, identity)


def identity_of(
    method: Any, seed: int, parameters: Sequence[Any], program: Program, exempt: Sequence[str]
) -> dict[str, str]:
    """Return what must be unchanged for a run to resume, by name.

    Args:
        method: the method.
        seed: the seed of the run.
        parameters: names, or names and shapes, of the parameters.
        program: the model with its data.
        exempt: settings of the method that may change.
    """
    guide = getattr(method, "guide", None)
    return {
        "seed": str(seed),
        **{
            f.name: identify(getattr(method, f.name))
            for f in fields(method)
            if f.name not in exempt
        },
        "parameters": str(list(parameters)),
        "model's source": str(source_of(program.original)["source_sha256"]),
        "model's captured values": identify(program.original),
        "guide's source": str(source_of(guide)["source_sha256"]) if callable(guide) else "",
        "data": fingerprint(program.tensors()),
        "arguments": identify(program.all_arguments),
    }
