"""Several sources tried in turn, those of this host first, until one delivers; each with its state.

A source that failed is tried last for BACK_OFF_S, as long as others answer. A round in which a source failed is
repeated, less and less often, for `wait_s`.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from snapfs.base.blocks import Number
from snapfs.base.errors import SnapfsError
from snapfs.store.objects import payload_types
from snapfs.store.protocol.object_stream import Item
from snapfs.transfer.sources.sources import Source

log = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.05, 2.0
BACK_OFF_S = 5.0


class NoRoomError(OSError):
    """This host's disk is full, which is no fault of a source."""


@dataclass(slots=True)
class SourceState:
    """What is known of a source, for the status."""

    name: str
    objects: int = 0
    bytes: int = 0
    failures: int = 0
    last_error: str | None = None
    back_off_until_s: float = 0.0
    """Until then, by the monotonic clock, it is tried last."""

    def count(self, item: Item) -> None:
        """Count an object that it delivered."""
        self.objects += 1
        self.bytes += len(item.framed)


class SourcePool:
    """The sources of one volume. Any thread."""

    def __init__(self, sources: Sequence[Source], wait_s: float) -> None:
        self.sources = list(sources)
        self.states = {source.name: SourceState(source.name) for source in sources}
        self._wait_s = wait_s
        self.closing = threading.Event()

    def in_order(self) -> list[Source]:
        """Near sources first; those that failed just now last."""
        now_s = time.monotonic()
        states = self.states
        return sorted(self.sources, key=lambda each: (states[each.name].back_off_until_s > now_s, not each.is_near))

    def deliver(
        self, left: Collection[Number], is_complete: Callable[[], bool], take: Callable[[Source, SourceState], None]
    ) -> None:
        """Let the sources deliver until nothing is left. `left`: what is missing, which `take` makes smaller.

        Raises OSError (EIO) if all sources answered and the objects are not complete, and after `wait_s`; and
        NoRoomError.
        """
        deadline, delay = time.monotonic() + self._wait_s, FIRST_RETRY_S
        while True:
            answered = True
            for source in self.in_order():
                answered &= self._try(source, take)
                if not left:
                    return
            if answered and is_complete():
                return
            some = next(iter(left))
            if answered:
                raise OSError(errno.EIO, f"object {some:#x} is at none of {', '.join(self.states)}")
            if time.monotonic() + delay > deadline or self.closing.wait(delay):
                errors = "; ".join(f"{state.name}: {state.last_error}" for state in self.states.values())
                raise OSError(errno.EIO, f"no source could deliver object {some:#x} ({errors})")
            delay = min(delay * 2, LAST_RETRY_S)

    def _try(self, source: Source, take: Callable[[Source, SourceState], None]) -> bool:
        """Take what the source has; False if it failed."""
        state = self.states[source.name]
        try:
            take(source, state)
        except NoRoomError:
            raise
        except (OSError, SnapfsError, payload_types.DecodeError) as error:
            state.failures += 1
            state.back_off_until_s = time.monotonic() + BACK_OFF_S
            if state.last_error != str(error):
                log.warning("%s: %s", source.name, error)
            state.last_error = str(error)
            return False
        if state.last_error is not None and not source.is_near:
            log.info("%s answers again", source.name)
        state.last_error, state.back_off_until_s = None, 0.0
        return True

    def close(self) -> None:
        """Close all sources."""
        for source in self.sources:
            source.close()
