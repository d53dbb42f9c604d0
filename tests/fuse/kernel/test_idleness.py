"""When a mount is quiet, and how long the pauses of its tasks are (snapfs/fuse/kernel/idleness.py)."""

from __future__ import annotations

import math
import os
import select
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
import trio
import trio.testing

from snapfs.fuse.kernel import router as routing
from snapfs.fuse.kernel.idleness import LONGEST_PAUSE_S, QUIET_AFTER_S, Idleness
from tests.fakes.patience import PATIENCE_S


class FakeRouter:
    """Reports a request as the router does: once after each `watch_activity`."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        self._is_watched = False

    def watch_activity(self) -> int:
        if select.select([self._event], [], [], 0)[0]:
            os.eventfd_read(self._event)
        self._is_watched = True
        return self._event

    def request(self) -> None:
        if self._is_watched:
            self._is_watched = False
            os.eventfd_write(self._event, 1)

    def close(self) -> None:
        os.close(self._event)


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    made = FakeRouter()
    yield made
    made.close()


def run(story: Callable[[Idleness], Awaitable[object]], router: FakeRouter | None, is_busy: bool = False) -> Any:
    async def main() -> object:
        idleness = Idleness()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(idleness.run, cast(Any, router), lambda: is_busy)
            result = await story(idleness)
            nursery.cancel_scope.cancel()
        return result

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def become_quiet(idleness: Idleness) -> None:
    await trio.sleep(QUIET_AFTER_S + 1)
    assert idleness.is_quiet


async def pause_s(idleness: Idleness, seconds: float, longest_s: float = LONGEST_PAUSE_S) -> float:
    began = trio.current_time()
    await idleness.pause(seconds, longest_s)
    return trio.current_time() - began


def test_a_pause_is_as_long_as_requested_while_requests_come(router: FakeRouter) -> None:
    async def story(idleness: Idleness) -> None:
        for _ in range(200):
            router.request()
            assert await pause_s(idleness, 0.5) == pytest.approx(0.5)

    run(story, router)


def test_a_quiet_mount_pauses_longer_but_not_for_ever(router: FakeRouter) -> None:
    async def story(idleness: Idleness) -> None:
        await become_quiet(idleness)
        assert await pause_s(idleness, 0.5) == pytest.approx(LONGEST_PAUSE_S)
        assert await pause_s(idleness, 0.5, 5.0) == pytest.approx(5.0)
        assert await pause_s(idleness, 60.0) == pytest.approx(60.0)

    run(story, router)


def test_a_request_ends_the_pause(router: FakeRouter) -> None:
    async def story(idleness: Idleness) -> float:
        await become_quiet(idleness)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request_later)
            return await pause_s(idleness, 0.5, math.inf)

    async def request_later() -> None:
        await trio.sleep(7.0)
        router.request()

    assert run(story, router) == pytest.approx(7.0)


def test_what_happens_without_a_request_ends_it_too(router: FakeRouter) -> None:
    async def story(idleness: Idleness) -> None:
        await become_quiet(idleness)
        idleness.end()
        assert await pause_s(idleness, 0.5) == pytest.approx(0.5)
        await become_quiet(idleness)

    run(story, router)


@pytest.mark.parametrize("has_router", [True, False])
def test_a_mount_that_is_busy_or_has_no_router_is_never_quiet(router: FakeRouter, has_router: bool) -> None:
    async def story(idleness: Idleness) -> None:
        await trio.sleep(10 * QUIET_AFTER_S)
        assert not idleness.is_quiet
        assert await pause_s(idleness, 0.5) == pytest.approx(0.5)

    run(story, router if has_router else None, is_busy=has_router)


@pytest.mark.skipif(routing.why_not() is not None, reason=str(routing.why_not()))
def test_the_router_reports_the_first_request_after_each_call() -> None:
    from tests.fuse.kernel.test_router_forward import LOOKUP, Both

    both = Both()
    try:
        both.request(LOOKUP, 2, b"unwatched\0")
        both.taken()
        event = both.router.watch_activity()
        assert not select.select([event], [], [], 0)[0]
        for unique in (4, 6):
            both.request(LOOKUP, unique, b"name\0")
            both.taken()
            assert select.select([event], [], [], PATIENCE_S)[0]
        assert both.router.watch_activity() == event
        assert not select.select([event], [], [], 0)[0]
        both.request(LOOKUP, 8, b"name\0")
        both.taken()
        assert select.select([event], [], [], PATIENCE_S)[0]
    finally:
        both.close()
    assert both.router.watch_activity() == -1
