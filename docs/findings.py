"""Write docs/findings.md from the table of checks: `python docs/findings.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from probdl.findings import TOPICS

PAGE = Path(__file__).with_suffix(".md")
INTRODUCTION = """# Findings

`fit.diagnose()` returns the findings of a fit: what a diagnostic check saw, why it matters and what
to try. `infer` reports errors and warnings in one Python warning.

| severity | meaning |
| --- | --- |
| error | Do not use the result, or the part that the message names. |
| warning | The result may be unreliable; the message says which part and why. |
| info | Something to know; the result is as good as without it. |

```python
import numpy as np, probdl
from probdl.models import normal_normal

fit = probdl.infer(normal_normal, np.ones(3), np.array([1.0, 2.0, 3.0]), seed=1)
for finding in fit.diagnose():
    print(finding.severity, finding.check, finding.sites, finding.message, finding.remedy)
```

The names below are stable: a script can rely on `finding.check`. The sources are those of the
statistics. Thresholds without a source, and those marked *, are probdl's own.
"""


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for topic, checks in TOPICS.items():
        parts.append(f"\n## {topic}\n")
        for name, check in checks.items():
            rows = [
                ("Severity", " or ".join(check.severities)),
                ("Threshold", check.threshold),
                ("Source", check.source),
            ]
            parts.append(f"\n### {name}\n\n{check.meaning}\n")
            picture = Path("findings") / f"{name}.png"
            if (PAGE.parent / picture).exists():
                parts.append(f"\n![{name}]({picture})\n")
            parts.append("\n" + "".join(f"- {k}: {v}\n" for k, v in rows if v))
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}\n")
