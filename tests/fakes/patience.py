"""How long tests wait for what must happen: in one place, and long, since the machines that run them may be loaded.

A wait ends as soon as its condition holds, so a generous deadline costs nothing until something is really broken. How
soon a thing happens is the matter of tools/bench, never of a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 120.0
"""For a condition, the end of a process, an answer; less than what pytest gives a whole test (pyproject.toml)."""


def eventually(condition: Callable[[], object], what: str = "", seconds: float = PATIENCE_S) -> None:
    """Return when `condition` holds; AssertionError naming `what` if it does not within `seconds`."""
    deadline, step_s = time.monotonic() + seconds, 0.002
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or 'what the test waits for'} did not come about in {seconds:.0f} s")
        time.sleep(step_s)
        step_s = min(step_s * 1.5, 0.05)
