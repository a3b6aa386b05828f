"""Text of unknown origin."""

from __future__ import annotations

import unicodedata

__all__ = ["has_controls"]


def has_controls(text: str) -> bool:
    r"""Return whether a text has control characters, which command terminals, or half characters.

    Files cannot hold the latter. Line breaks and tabs are none.

    >>> has_controls("a\nb"), has_controls("a\x1b[2J"), has_controls("a\0b"), has_controls("\ud800")
    (False, True, True, True)
    """
    return any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in text)
