"""What a daemon counts as progress, and how it reports it (snapfs/daemon/supervision/daemon_progress.py)."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from snapfs.daemon.supervision import daemon_progress


@pytest.mark.parametrize(
    ("requests", "in_flight", "virtual", "least"),
    [
        ({"read": 3, "lookup": 2}, 0, 0, 5),
        ({"read": 3}, 3, 0, 0),  # taken, and not answered
        ({"read": 4, "lookup": 4, "write": 1}, 0, 9, 0),  # a command that waits
        ({"open": 9, "flush": 9, "fsync": 9, "release": 9, "statfs": 9, "forget": 9}, 0, 0, 0),  # of flushes
    ],
)
def test_requests_that_count(requests: dict[str, int], in_flight: int, virtual: int, least: int) -> None:
    assert daemon_progress.answered(requests, in_flight, virtual) == least


def test_progress_is_said_once_when_a_counter_moves_and_not_before() -> None:
    async def main() -> list[str]:
        counters, reported = [7, 0], list[str]()
        clock = trio.current_time
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon_progress.watch, [lambda: counters[0], lambda: counters[1]], reported.append)
            began = clock()
            while clock() < began + 3600.0:
                await trio.sleep(60.0)
            assert reported == []
            counters[1] += 1
        return reported

    assert trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.0)) == ["progress"]
