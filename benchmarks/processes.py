"""Run a function in a separate process, with a time limit."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

__all__ = ["result_of"]


def result_of(target: Callable[..., None], *args: Any, seconds: float) -> Any:
    """Call a function in a forked process; return what it puts into its last argument, a queue.

    Returns None after the time limit, or if the process ends without a result.
    """
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=target, args=(*args, results))
    process.start()
    try:
        return results.get(timeout=seconds)
    except Exception:
        return None
    finally:
        process.kill()
        process.join()
