"""When to start another daemon, and when to give up: pure functions on the deaths so far.

Deaths without progress between them count, whatever the signal: FRUITLESS_DEATHS of them are the end. Deaths with
progress go on for ever, unless they are crashes: more than CRASHES_AN_HOUR are the end.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

STABLE_SECONDS = 0.2
"""A daemon that served for so long did not fail at what killed the one before."""
DELAYS_SECONDS = (0.0, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Before the first, second... restart after daemons that served shorter; then it is given up."""
CRASHES_AN_HOUR = 60
_HOUR_SECONDS = 3600.0
FRUITLESS_DEATHS = 16
"""So many daemons in a row that answered nothing, sealed nothing and did nothing; then it is given up."""
STEADY_SECONDS = 60.0
"""A daemon that served for so long had nothing to do: its death is independent of the ones before."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a daemon ended. `lived_s` counts from `ready`, 0 if it never was; `killed`: by SIGKILL, from outside.

    `progress`: it answered, sealed or did something; `how`: its signal or exit code in words.
    """

    time_s: float
    lived_s: float
    killed: bool
    progress: bool
    how: str = ""


def fruitless(deaths: Sequence[Death]) -> Sequence[Death]:
    """The newest deaths, with no progress between them."""
    first = len(deaths)
    while first and not deaths[first - 1].progress and deaths[first - 1].lived_s < STEADY_SECONDS:
        first -= 1
    return deaths[first:]


def delay_s(deaths: Sequence[Death]) -> float | None:
    """How long to wait before the next daemon; None: give up."""
    crashes = sum(not death.killed and death.time_s > deaths[-1].time_s - _HOUR_SECONDS for death in deaths)
    if crashes > CRASHES_AN_HOUR or len(fruitless(deaths)) >= FRUITLESS_DEATHS:
        return None
    short = 0
    for death in reversed(deaths):
        if death.lived_s >= STABLE_SECONDS:
            break
        short += 1
    return DELAYS_SECONDS[short] if short < len(DELAYS_SECONDS) else None


def how_it_ended(code: int) -> str:
    """An exit code in words; negative: the signal."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def given_up(mountpoint: str, deaths: Sequence[Death], memory: str) -> str:
    """What the user reads when no other daemon is started. `memory`: what is known of a limit, if that may be why."""
    why = f"Killed from outside: {memory}. " if memory else ""
    return (
        f"the daemon of {mountpoint} {deaths[-1].how}, {_how_often(deaths)}: given up; "
        f"the mount answers with errors from now on. {why}Its last words are in daemon.log; "
        "`snapfs doctor` looks at the volume, `snapfs mount` starts anew"
    )


def _how_often(deaths: Sequence[Death]) -> str:
    """How many deaths there were, and how many of them without progress."""
    vain = len(fruitless(deaths))
    return f"again and again ({len(deaths)} deaths, the last {vain} without progress: nothing was answered or sealed)"
