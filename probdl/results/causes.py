"""One finding for one cause: what follows from another finding becomes a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from probdl.findings import SEVERITIES, Finding

__all__ = ["by_cause"]

# Causes whose consequences add nothing to what they say about the draws, even as errors.
FATAL = ("stuck_chain", "multimodal")
# What a cause leads to. A funnel, for example, makes transitions diverge and chains mix slowly.
CONSEQUENCES = {
    "stuck_chain": {"rhat", "ess", "mcse", "bfmi"},
    "multimodal": {"rhat", "ess", "mcse"},
    "divergences": {"bfmi", "rhat", "ess", "mcse"},
    "rhat": {"ess", "mcse"},
}


def by_cause(findings: Sequence[Finding]) -> list[Finding]:
    """Join findings with their cause, unless they are more severe, or errors that may have another.

    >>> slow = Finding("warning", "ess", "The effective sample size is 9. Unstable.")
    >>> apart = Finding("error", "rhat", "The chains do not agree.", "Run longer chains.")
    >>> print(*by_cause([slow, apart]))
    error (rhat): The chains do not agree. Also: The effective sample size is 9. Run longer chains.
    """
    left = list(findings)
    for cause, consequences in CONSEQUENCES.items():
        main = next((f for f in left if f.check == cause), None)
        if main is None:
            continue
        rank = SEVERITIES.index(main.severity)
        parts = [
            f
            for f in left
            if f.check in consequences
            and SEVERITIES.index(f.severity) >= rank
            and (f.severity != "error" or cause in FATAL)
        ]
        if not parts:
            continue
        seen = " ".join(f"{f.message.split('. ')[0].rstrip('.')}." for f in parts)
        sites = tuple(dict.fromkeys(site for f in (main, *parts) for site in f.sites))
        joined = replace(main, message=f"{main.message} Also: {seen}", sites=sites)
        left = [joined if f is main else f for f in left if f not in parts]
    return left
