"""The finding on observations that ``missing="mask"`` leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probdl.findings import Finding
from probdl.model.imputation import imputed_arguments
from probdl.model.program import Program
from probdl.model.sites import Site
from probdl.results.fit import Fit

__all__ = ["missing_findings"]


def missing_findings(program: Program, fit: Fit) -> list[Finding]:
    """Report the number of observations that ``missing="mask"`` leaves out."""
    if not program.masks_missing:
        return []
    findings = []
    sites = fit.whole.of("observed")
    left_out = {
        site.name: int((~site.mask).sum())
        for site in sites
        if site.mask is not None and not site.mask.all()
    }
    if program.not_finite() and not left_out and not imputed_arguments(program, fit.structure):
        names = ", ".join(map(repr, program.not_finite()))
        findings.append(
            Finding(
                "warning",
                "missing",
                f"{names} has missing values, but no observation is left out: the model replaces "
                "them, so that they count as data.",
                "Observe the data as they are, or leave out the rows in the model by poutine.mask.",
            )
        )
    if sites and not sum(site.count for site in sites):
        findings.append(
            Finding(
                "warning",
                "no_data",
                "All observed values are missing, so the result reflects only the prior.",
                "Pass data that are not all NaN.",
            )
        )
    elif left_out:
        findings.append(_left_out(fit, sites, left_out))
    return findings


def _left_out(fit: Fit, sites: Sequence[Site], left_out: Mapping[str, int]) -> Finding:
    """Report the observations that are missing, and where predictions of them are."""
    of = sum(site.value.numel() for site in sites if site.name in left_out)
    names = ", ".join(map(repr, [*left_out][:3])) + (" …" if len(left_out) > 3 else "")
    if all(site.imputed for site in sites if site.name in left_out):
        remedy = "A latent site takes their place."
    elif getattr(getattr(fit, "proposal", None), "local", ()):
        remedy = "fit.reconstruct() predicts them from the other values of their rows."
    else:
        remedy = "fit.predictions() predicts them."
    return Finding(
        "info",
        "missing",
        f"{sum(left_out.values())} of {of} observed values of {names} are missing and left out.",
        remedy,
        tuple(left_out),
    )
