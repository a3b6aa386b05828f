"""A short hash of data, to recognise the same data again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fingerprint"]


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """Return a hash of the shapes, dtypes and values of tensors, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().cpu().resolve_conj().contiguous().flatten()
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
