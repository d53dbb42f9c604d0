"""What a mounted volume does with the replicator's record: waiting, a bound, and releasing."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.settings.replication_settings import ReplicationSettings, TargetSettings
from snapfs.base.settings.units import Seconds
from snapfs.base.settings.volume_settings import SnapshotSettings
from snapfs.store.log.replica_state import ErrorFacts, ReplicaReader, Replication, TargetFacts, path_of
from snapfs.transfer.failover.replication_throttle import (
    MOST_DELAY_SECONDS,
    ReplicationThrottle,
    delay_s,
    snapshot_settings,
)

ID = "ab" * 16
TARGETS = (TargetSettings("file:///a"), TargetSettings("file:///b"))


class World:
    """A volume with a replication.json, and a clock."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.now_ns = 1_000 * 10**9
        self.newest, self.changed = 0, False
        self.settings = ReplicationSettings(target=TARGETS, **settings)
        self.throttle = ReplicationThrottle(
            self.settings, ReplicaReader(str(path), ID), lambda: SnapshotNumber(self.newest), lambda: self.changed,
            lambda: self.now_ns,
        )  # fmt: skip
        self._versions = itertools.count()

    def publish(self, *targets: TargetFacts) -> None:
        record = Replication(ID, 1, self.now_ns, 1, list(targets))
        new = self.path / f"new-{next(self._versions)}"
        new.write_bytes(msgspec.json.encode(record))
        new.rename(path_of(str(self.path)))

    def at(self, seconds: float) -> None:
        self.now_ns = round((1_000 + seconds) * 10**9)
        self.throttle.look()


def target(name: str, newest: int | None, cut_s: float = 0.0, link: str = "idle", error: str = "") -> TargetFacts:
    cut_ns = None if newest is None else round((1_000 + cut_s) * 10**9)
    return TargetFacts(name, "", link, newest, cut_ns, last_error=ErrorFacts(error, 0) if error else None)


def run(story: Callable[[], Awaitable[None]]) -> None:
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0.02))


def test_a_snapshot_is_replicated_when_enough_targets_have_it_or_a_newer_one(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path, copies=2)
        world.publish(target("a", 6), target("b", 4))
        async with trio.open_nursery() as nursery:
            done: list[Any] = []

            async def wait() -> None:
                done.append(await world.throttle.replicated(SnapshotNumber(5)))

            nursery.start_soon(wait)
            await trio.sleep(1)
            assert not done
            world.publish(target("a", 6), target("b", 5))
            await trio.sleep(1)
        assert done[0]["targets"] == ["a", "b"]

    run(story)


@pytest.mark.parametrize(
    ("targets", "number", "words"),
    [
        ((), errno.ETIMEDOUT, "no agent replicates it"),
        ((target("a", 4), target("b", None)), errno.ETIMEDOUT, "still on its way"),
        ((target("a", 4, link="fenced", error="generation 9 writes"), target("b", 4, link="refused")),
         errno.ECONNREFUSED, "generation 9 writes"),
        ((target("a", 4, link="fenced"), target("b", 4)), errno.ETIMEDOUT, "still on its way"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_reported(
    tmp_path: Path, targets: tuple[TargetFacts, ...], number: int, words: str
) -> None:
    async def story() -> None:
        world = World(tmp_path, wait=Seconds(3))
        if targets:
            world.now_ns = time.time_ns()
            world.publish(*targets)
        with pytest.raises(OSError, match=words) as error:
            await world.throttle.replicated(SnapshotNumber(5))
        assert error.value.errno == number
        assert "snapshot 5 is sealed" in error.value.strerror

    run(story)


def test_without_targets_nothing_can_be_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        throttle = ReplicationThrottle(
            ReplicationSettings(), ReplicaReader(str(tmp_path), ID), lambda: SnapshotNumber(1), bool
        )
        with pytest.raises(OSError, match="no target"):
            await throttle.replicated(SnapshotNumber(1))

    run(story)


def test_what_is_exposed_is_what_changed_after_the_last_replicated_cut(tmp_path: Path) -> None:
    world = World(tmp_path, mode="bounded", bound=Seconds(10))
    assert world.throttle.exposed_s() == 0
    world.at(50)
    assert world.throttle.exposed_s() == 0  # nothing changed: nothing is exposed
    world.changed = True
    world.at(53)
    assert world.throttle.exposed_s() == pytest.approx(3)
    world.newest, world.changed = 1, False  # sealed, not replicated
    world.at(54)
    assert world.throttle.exposed_s() == pytest.approx(4)
    world.publish(target("a", 1, 53.5), target("b", None))
    world.at(56)
    assert world.throttle.exposed_s() == 0
    world.changed = True
    world.at(57)
    assert world.throttle.exposed_s() == pytest.approx(1)


def test_the_bound_counts_as_many_copies_as_are_wanted(tmp_path: Path) -> None:
    world = World(tmp_path, mode="bounded", bound=Seconds(100), copies=2)
    world.newest, world.changed = 3, True
    world.publish(target("a", 3, 40), target("b", 2, 30))
    world.at(60)
    assert world.throttle.exposed_s() == pytest.approx(30)


def test_an_fsync_is_held_at_the_bound_and_let_go_when_replication_has_caught_up(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path, mode="bounded", bound=Seconds(10))
        world.newest, world.changed = 1, True
        world.publish(target("a", 1, 0))
        world.at(4)
        assert (world.throttle.holds, world.throttle.delay_s) == (False, 0.0)
        world.at(9)
        assert not world.throttle.holds
        assert 0 < world.throttle.delay_s < MOST_DELAY_SECONDS
        world.at(10.1)
        assert world.throttle.holds
        answered: list[int] = []

        async def fsync(which: int) -> None:
            await world.throttle.before_fsync()
            answered.append(which)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fsync, 1)
            nursery.start_soon(fsync, 2)
            await trio.sleep(5)
            assert (answered, world.throttle.held) == ([], 2)
            await world.throttle.before_write()  # slow, and not held
            world.newest = 2
            world.publish(target("a", 2, 9.9))
            world.at(10.5)
        assert sorted(answered) == [1, 2]
        assert world.throttle.held == 0

    run(story)


def test_lifting_the_bound_lets_everything_go(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path, mode="bounded", bound=Seconds(10))
        world.changed = True
        world.at(30)
        assert world.throttle.holds
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.throttle.before_fsync)
            await trio.sleep(1)
            world.throttle.lift()
        world.at(60)
        assert (world.throttle.holds, world.throttle.delay_s) == (False, 0.0)
        assert world.throttle.facts()["lifted"] is True

    run(story)


def test_other_modes_slow_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, mode="sync")
    world.changed = True
    world.at(10_000)
    assert (world.throttle.holds, world.throttle.delay_s) == (False, 0.0)


@pytest.mark.parametrize(
    ("every", "mode", "expected"),
    [(0, "async", 0), (0, "bounded", 5), (1, "bounded", 1), (60, "bounded", 5), (60, "sync", 60)],
)
def test_a_bound_needs_several_snapshots_in_its_time(every: float, mode: Any, expected: float) -> None:
    settings = snapshot_settings(
        SnapshotSettings(every=Seconds(every)), ReplicationSettings(mode=mode, bound=Seconds(20), target=TARGETS)
    )
    assert settings.every == expected


def test_writes_are_slowed_more_and_more() -> None:
    delays = [delay_s(share * 10, 10) for share in (0, 0.5, 0.6, 0.8, 0.95, 1, 5)]
    assert delays[:2] == [0, 0]
    assert delays == sorted(delays)
    assert delays[-1] == delays[-2] == MOST_DELAY_SECONDS


@pytest.mark.parametrize("text", [b"", b"{", b'{"format": 2}', b"[1]"])
def test_a_file_that_is_not_understood_says_nothing(tmp_path: Path, text: bytes) -> None:
    Path(path_of(str(tmp_path))).write_bytes(text)
    assert ReplicaReader(str(tmp_path), ID).look() is None


def test_the_file_of_another_volume_says_nothing(tmp_path: Path) -> None:
    World(tmp_path).publish(target("a", 1))
    assert ReplicaReader(str(tmp_path), ID).look() is not None
    assert ReplicaReader(str(tmp_path), "cd" * 16).look() is None
