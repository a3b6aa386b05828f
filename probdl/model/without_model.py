"""The stand-in for the program of a fit that was loaded without its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probdl.errors import ModelError
from probdl.model.encoding import Encoding
from probdl.model.program import Program

__all__ = ["WithoutModel"]


class WithoutModel(Program):
    """The program of a fit that was loaded without its model: only the data are available.

    Args:
        name: the name of the model.
        arguments: its arguments by name, as saved.
        dtype: the dtype in which the program ran.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.name = name
        self.arguments = dict(arguments)
        self.dtype = dtype
        self.encodings: dict[str, Encoding] = {}
        self.shared: dict[str, str] = {}
        self.masks_missing = False
        self.loader = None
        self.minibatch = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked up by copy.copy()
            raise AttributeError(name)
        raise ModelError(
            f"The fit of '{self.name}' was loaded without its model, which this operation needs. "
            "Load it with probdl.load(folder, model=...)."
        )

    def with_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        """Raise ModelError: the model is missing."""
        return self.model

    def with_tensors(self, tensors: Sequence[Tensor]) -> Program:
        """Raise ModelError: the model is missing."""
        return self.model

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Raise ModelError: the model is missing."""
        return self.model
