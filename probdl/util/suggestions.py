"""Suggestions for misspelt names: "did you mean ...?". It needs no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest", "suggest"]

SIMILARITY = 0.6  # difflib's default cutoff: 0 suggests anything, 1 only the word itself


def nearest(word: str, words: Iterable[str], *, similarity: float = SIMILARITY) -> str | None:
    """Return the word most similar to a given one, or None if none is similar enough.

    >>> nearest("nutz", ["mle", "nuts"]), nearest("hmc", ["mle", "nuts"])
    ('nuts', None)
    """
    found = difflib.get_close_matches(word, list(words), 1, similarity)
    return found[0] if found else None


def did_you_mean(
    word: str,
    words: Iterable[str],
    *,
    before: str = "",
    after: str = "",
    similarity: float = SIMILARITY,
) -> str:
    """Return "did you mean ...?" between two texts, or "" if no word is similar.

    >>> did_you_mean("nutz", ["mle", "nuts"], before="; ")
    "; did you mean 'nuts'?"
    >>> did_you_mean("hmc", ["mle", "nuts"], before="; ")
    ''
    """
    found = nearest(word, words, similarity=similarity)
    return "" if found is None else f"{before}did you mean {found!r}?{after}"


def suggest(word: str, words: Iterable[str]) -> str:
    """Return the suggestion, if there is one, and all valid words.

    >>> suggest("nutz", ["mle", "nuts"])
    "did you mean 'nuts'? (mle, nuts)"

    >>> suggest("hmc", ["mle", "nuts"])
    'choose one of (mle, nuts)'
    """
    words = list(words)
    return f"{did_you_mean(word, words) or 'choose one of'} ({', '.join(words)})"
