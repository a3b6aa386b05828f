"""Checkpoints of training, written atomically, from which a killed run can resume."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probdl.compile.step import BLOCK
from probdl.errors import SettingError
from probdl.model.fingerprint import fingerprint

__all__ = ["Checkpoint", "checkpoint_of"]

FILE = "checkpoint.pt"
_VERSION = 1


def describe(setting: Any) -> str:
    """Describe a setting by a text that is the same in another process.

    >>> describe(0.01), describe(torch.optim.Adam)
    ('0.01', 'torch.optim.adam.Adam')
    """
    if setting is None or isinstance(setting, (str, int, float)):
        return repr(setting)
    if isinstance(setting, functools.partial):
        return f"{describe(setting.func)}{setting.args}{sorted(setting.keywords.items())}"
    kind = setting if hasattr(setting, "__qualname__") else type(setting)
    return f"{kind.__module__}.{kind.__qualname__}"


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
            SettingError: the checkpoint is of another run or a longer one, or cannot be read.
        """
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, weights_only=True)
            version, identity, state = saved["version"], saved["identity"], saved["state"]
        except Exception as error:
            raise SettingError(
                f"The checkpoint {self.path} cannot be read ({str(error).splitlines()[0]}). "
                "Delete it to start from the beginning."
            ) from None
        if version != _VERSION:
            raise SettingError(
                f"The checkpoint {self.path} has version {version}, and this package reads "
                f"version {_VERSION}. Delete it to start from the beginning."
            )
        for name, value in self.identity.items():
            if identity.get(name) != value:
                raise SettingError(
                    f"The checkpoint {self.path} is of another run: its {name} is "
                    f"{identity.get(name)}, and now it is {value}. Use another folder, or delete "
                    "the checkpoint to start from the beginning."
                )
        if state["done"] > steps:
            raise SettingError(
                f"The checkpoint {self.path} is of a run that took {state['done']} steps, more "
                f"than the {steps} of this run. Use another folder, or more steps."
            )
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Write a state atomically: after a kill, the file holds the old state or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=FILE, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save({"version": _VERSION, "identity": self.identity, "state": state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def checkpoint_of(
    method: Any, seed: int, parameters: Sequence[Any], data: Sequence[Tensor]
) -> Checkpoint | None:
    """Make the checkpoint of a method; None if the method saves none.

    A run resumes only with the same settings, seed, parameters and data. Exempt are the settings
    of the checkpoint itself and the number of draws. The number of steps may grow as well if the
    learning rate is constant; other schedules depend on it.

    Args:
        method: the method, with the settings ``checkpoint``, ``every`` and ``schedule``.
        seed: the seed of the run.
        parameters: names, or names and shapes, of the parameters.
        data: the model's tensors.
    """
    if method.checkpoint is None:
        return None
    may_change = ["checkpoint", "every", "draws"]
    if method.schedule == "constant":
        may_change += ["steps", "epochs"]
    identity = {
        "seed": str(seed),
        **{
            f.name: describe(getattr(method, f.name))
            for f in fields(method)
            if f.name not in may_change
        },
        "parameters": str(list(parameters)),
        "data": fingerprint(data),
    }
    return Checkpoint(method.checkpoint, -(-method.every // BLOCK) * BLOCK, identity)
