"""Judge a fit by a known answer: right, told, silent, or a false alarm.

A figure is right if
    a posterior mean is within 0.1 posterior standard deviations of the known one, or, if that is
    more, within 4 of its Monte Carlo standard errors;
    a posterior standard deviation is within 15 %, or 4 of its standard errors;
    an estimate is within 0.1 of its known standard errors, and its standard error within 15 %;
    a log evidence is within 0.5 nats.

A wrong figure counts as reported (told) if the call raised a ``ProbdlError``, or if
``fit.diagnose()`` has a warning or an error that concerns it: one about the whole fit, or about its
site. Findings about the model, its data and the machine do not concern the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import arviz as az
import numpy as np

from benchmarks.honesty.case import POINT, Answer, Case, Known
from probdl.findings import Finding
from probdl.io.idata import to_idata
from probdl.results.fit import Fit

RIGHT, TOLD, SILENT, ALARM, FAILED = "right", "told", "silent", "false alarm", "failed"
VERDICTS = (RIGHT, TOLD, SILENT, ALARM, FAILED)

MEAN_MAX = 0.1  # in posterior standard deviations, or in standard errors of an estimate
SD_MAX = 0.15  # as a share
ERRORS_MAX = 4.0
EVIDENCE_MAX = 0.5  # nats: a Bayes factor of 1.6
# With larger Monte Carlo standard errors, in posterior sd, a warning about them is no false alarm.
PRECISE = 0.05

# Findings that say nothing against the figures of a fit to the model and data as they are.
NOT_ABOUT_FIGURES = {"engine", "cache", "prior_conflict", "no_data", "identification", "undeclared"}
# Findings that name sites, but are about chains, which move in all sites together.
ABOUT_CHAINS = {"rhat", "multimodal"}
EVIDENCE = "log evidence"


@dataclass(frozen=True)
class Figure:
    """What a fit reports about one scalar, with Monte Carlo standard errors (0 for estimates)."""

    value: float
    sd: float
    value_error: float = 0.0
    sd_error: float = 0.0


@dataclass(frozen=True)
class Judgement:
    """The verdict, what was wrong, and the findings that concern the figures."""

    verdict: str
    wrong: list[str]
    findings: list[str]


def judge(case: Case, method: str, fit: Fit) -> Judgement:
    """Compare a fit with the known answer of its case."""
    answer = case.answer(method)
    assert answer is not None
    found = figures(case, method, fit)
    wrong = compare(method, answer, found)
    evidence = fit.stats.get("log_evidence") if method not in POINT else None
    known = case.log_evidence
    if None not in (evidence, known) and not abs(evidence - known) <= EVIDENCE_MAX:
        wrong[EVIDENCE] = f"{EVIDENCE} {evidence:.5g} for {known:.5g}"
    precise = all(
        max(found[k].value_error, found[k].sd_error) <= PRECISE * answer[k].sd
        for k in answer
        if k in found
    )
    sites = {label: case.sites.get(label, label.split("[")[0]) for label in answer}
    return classify(wrong, fit.diagnose(), sites, precise=precise, defined=bool(answer))


def classify(
    wrong: dict[str, str],
    findings: Iterable[Finding],
    sites: Mapping[str, str],
    *,
    precise: bool = True,
    defined: bool = True,
) -> Judgement:
    """Return the verdict.

    Args:
        wrong: what is wrong, by label of the scalar.
        findings: all findings of the fit.
        sites: the site of each label.
        precise: whether all Monte Carlo standard errors are small.
        defined: whether there is a right answer.
    """
    about = [f for f in findings if f.severity != "info" and f.check not in NOT_ABOUT_FIGURES]
    names = sorted({f"{f.check} ({f.severity})" for f in about})
    if not defined:
        wrong = {"": "there is no right answer"}
    if wrong:
        told = all(any(_concerns(f, sites.get(label)) for f in about) for label in wrong)
        return Judgement(TOLD if told else SILENT, [*wrong.values()], names)
    if about:
        return Judgement(ALARM if precise else TOLD, [], names)
    return Judgement(RIGHT, [], [])


def _concerns(finding: Finding, site: str | None) -> bool:
    """Return whether a finding is about a site; None stands for the whole fit."""
    everything = not finding.sites or finding.check in ABOUT_CHAINS or site is None
    return everything or site in {label.split("[")[0] for label in finding.sites}


def figures(case: Case, method: str, fit: Fit) -> dict[str, Figure]:
    """Return what the fit reports, by label."""
    draws = dict(case.scalars(fit.draws))
    if method in POINT:
        errors = (
            {k: np.asarray(v)[None, None] for k, v in fit.stats["standard_error"].items()}
            if ("standard_error" in fit.stats)
            else {}
        )
        of = case.scalars(errors)
        return {k: Figure(float(v[0, 0]), _scalar(of.get(k))) for k, v in draws.items()}
    kept = to_idata({"posterior": draws})
    mean_error, sd_error = (az.mcse(kept, method=what) for what in ("mean", "sd"))
    return {
        k: Figure(float(v.mean()), float(v.std()), float(mean_error[k]), float(sd_error[k]))
        for k, v in draws.items()
    }


def _scalar(array: Any) -> float:
    return float("nan") if array is None else float(array[0, 0])


def compare(method: str, answer: Answer, found: dict[str, Figure]) -> dict[str, str]:
    """Return by label what is outside the tolerance, in words."""
    wrong = {}
    for label, known in answer.items():
        if label not in found:
            wrong[label] = f"{label} is missing"
            continue
        figure = found[label]
        if not right(method, known, figure):
            wrong[label] = (
                f"{label} {figure.value:.5g} ± {figure.sd:.3g} for {known.value:.5g} ± "
                f"{known.sd:.3g}"
            )
    return wrong


def right(method: str, known: Known, figure: Figure) -> bool:
    """Return whether a figure is within the tolerance; NaN is not."""
    if np.isnan(known.sd):  # an estimate without a standard error
        return False
    value_max, sd_max = MEAN_MAX * known.sd, SD_MAX * known.sd
    if method not in POINT:
        value_max = max(value_max, ERRORS_MAX * float(np.hypot(figure.value_error, known.error)))
        sd_max = max(sd_max, ERRORS_MAX * figure.sd_error)
    return bool(
        abs(figure.value - known.value) <= value_max and abs(figure.sd - known.sd) <= sd_max
    )


def summarise(verdicts: Sequence[str]) -> dict[str, int]:
    """Count the verdicts."""
    return {verdict: sum(v == verdict for v in verdicts) for verdict in VERDICTS}
