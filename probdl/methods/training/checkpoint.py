"""Checkpoints of training: written at once or not at all, and read back after a kill."""

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
from probdl.model.program import fingerprint

__all__ = ["Checkpoint", "checkpoint_of"]

FILE = "checkpoint.pt"
_VERSION = 1


def describe(setting: Any) -> str:
    """Write a setting in words that are the same in another process.

    >>> describe(0.01), describe(torch.optim.Adam)
    ('0.01', 'torch.optim.adam.Adam')
    """
    if setting is None or isinstance(setting, (str, int, float)):
        return repr(setting)
    if isinstance(setting, functools.partial):
        return f"{describe(setting.func)}{setting.args}{sorted(setting.keywords.items())}"
    named = setting if hasattr(setting, "__qualname__") else type(setting)
    return f"{named.__module__}.{named.__qualname__}"


class Checkpoint:
    """The state of a run in a folder.

    Args:
        folder: where it is kept.
        every: after how many steps it is written.
        identity: what must be the same for a run to be taken up again, by name.
    """

    def __init__(
        self, folder: str | os.PathLike[str], every: int, identity: dict[str, str]
    ) -> None:
        self.path = Path(folder) / FILE
        self.every = every
        self.identity = identity

    def read(self, steps: int) -> dict[str, Any] | None:
        """Return the state that was written last; None if there is none.

        Args:
            steps: how many steps the run is to have.

        Raises:
            SettingError: it is of another run or a longer one, or cannot be read.
        """
        if not self.path.exists():
            return None
        try:
            held = torch.load(self.path, weights_only=True)
            version, identity, state = held["version"], held["identity"], held["state"]
        except Exception as error:
            raise SettingError(
                f"the checkpoint {self.path} cannot be read ({str(error).splitlines()[0]}). "
                "Delete it to start anew."
            ) from None
        if version != _VERSION:
            raise SettingError(
                f"the checkpoint {self.path} is of version {version}, and this package reads "
                f"version {_VERSION}. Delete it to start anew."
            )
        for name, value in self.identity.items():
            if identity.get(name) != value:
                raise SettingError(
                    f"the checkpoint {self.path} is of another run: its {name} is "
                    f"{identity.get(name)}, and now it is {value}. Take another folder, or delete "
                    "it to start anew."
                )
        if state["done"] > steps:
            raise SettingError(
                f"the checkpoint {self.path} is of a run that took {state['done']} steps, more "
                f"than the {steps} of this one. Take another folder, or ask for more steps."
            )
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Write a state; a kill at any moment leaves the old one or the new one."""
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
    """Make the checkpoint that a method asks for; None where it asks for none.

    A run is taken up again by the same method, but for how often it saves and how many draws it
    makes at the end, with the same seed, parameters and data. It may be longer as well, unless
    the learning rate follows a schedule, of which the length is part.
    """
    if method.checkpoint is None:
        return None
    free = ["checkpoint", "every", "draws"]
    if method.schedule == "constant":
        free += ["steps", "epochs"]
    identity = {
        "seed": str(seed),
        **{f.name: describe(getattr(method, f.name)) for f in fields(method) if f.name not in free},
        "parameters": str(list(parameters)),
        "data": fingerprint(data),
    }
    return Checkpoint(method.checkpoint, -(-method.every // BLOCK) * BLOCK, identity)
