"""Check whether a posterior reaches closer to an edge of its support than numbers do.

Next to 1, numbers are 1e-16 apart; next to 0, they are not. A Beta(0.05, 0.05) distribution has 8%
of its probability between the largest number below 1 and 1, where no draw can be.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Transform

from probdl.findings import EDGE_SHARE_MAX, Finding
from probdl.model.density import Block, LogDensity
from probdl.model.sites import scalar_labels
from probdl.util.columns import slices

__all__ = ["check_edges"]

LAST = 2  # numbers before an edge
FAR = (500.0, 700.0)  # on R^d: a transform with the same value there has reached an edge


def check_edges(density: LogDensity, z: NDArray[np.float64]) -> list[Finding]:
    """Report sites of which many draws are at the last numbers before an edge of the support.

    Args:
        density: the log density on R^d.
        z: draws (..., d).
    """
    points = torch.from_numpy(z.reshape(-1, density.dim))
    found: list[tuple[float, str, float, str]] = []
    for name, block in density.blocks.items():
        shares, edges = _shares(block, points)
        if len(shares) and shares.max() > EDGE_SHARE_MAX:
            i = int(shares.argmax())
            found.append((shares[i], scalar_labels(name, block.site.shape)[i], edges[i], name))
    if not found:
        return []
    share, label, edge, _ = max(found)
    also = f" (the worst of {len(found)} such sites)" if len(found) > 1 else ""
    return [
        Finding(
            "warning",
            "edge",
            f"{share:.2g} of the draws of '{label}'{also} are at the last numbers before {edge:g}, "
            "the edge of the support. The posterior reaches closer to the edge than numbers do, "
            "and what is there is lost: the mean and other expectations are off.",
            "Use a prior with less probability at the edge, or write the model with the distance "
            "to the edge (1 - x) or with logits as the site: numbers are dense around 0.",
            tuple(name for *_, name in found),
        )
    ]


def _shares(block: Block, points: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each scalar of a site the largest share of draws at an edge, and that edge."""
    transform = block.site.transform
    nothing = np.empty(0)
    if transform is None or block.coordinates == "plain":
        return nothing, nothing
    if tuple(block.shape) != tuple(block.site.shape):  # numbers near 0 say how far an edge is
        return nothing, nothing
    edges = [edge for sign in (-1, 1) if (edge := _edge(transform, block.shape, sign)) is not None]
    if not edges:
        return nothing, nothing
    all_edges = torch.stack(edges)
    counts = torch.zeros(all_edges.shape)
    for some in slices(len(points), len(points) * block.size):
        x = transform(block.of(points[some]))
        counts += torch.stack([_last(x, edge).sum(0) for edge in edges])
    most, which = counts.reshape(len(edges), -1).max(0)
    edge_of = all_edges.reshape(len(edges), -1).gather(0, which[None])[0]
    return most.numpy() / len(points), edge_of.numpy()


def _edge(transform: Transform, shape: tuple[int, ...], sign: int) -> Tensor | None:
    """Return the last value of each scalar in a direction on R^d, NaN where there is none."""
    near, far = (
        torch.as_tensor(transform(torch.full(shape, sign * at, dtype=torch.float64))) for at in FAR
    )
    edge = torch.where((near == far) & torch.isfinite(far), far, torch.nan)
    return None if edge.isnan().all() else edge


def _last(x: Tensor, edge: Tensor) -> Tensor:
    """Return which values are among the last before an edge."""
    spacing = torch.nextafter(edge, torch.full_like(edge, torch.inf)) - edge
    return (x - edge).abs() <= LAST * spacing
