"""Computation in a short-lived thread, so that it does not slow the generation thread down permanently.

OpenMP keeps workers for every living thread that once computed with tensors. As soon as there are more of them than
cores, all sleep at every barrier instead of spinning, and a decoding step takes two to three times as long. So no
thread but the generation thread may compute with tensors and stay alive.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_passing_thread(work: Callable[[], Result]) -> Result:
    """Run the work in a new thread that ends with it, and return its result; its exceptions are raised here."""
    with ThreadPoolExecutor(1, thread_name_prefix="passing") as thread:
        return thread.submit(work).result()
