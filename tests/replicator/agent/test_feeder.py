"""A feeder brings a target up to date, whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from replicator.agent import feeder as feeding
from replicator.agent.agent_status import Link
from replicator.agent.feeder import Feeder
from replicator.source.selection import Part
from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.target import ContentHashOf, Target, TargetLimits, TargetState
from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.base.settings.replication_settings import ReplicationSettings
from snapfs.store.log.holds import Holds
from snapfs.store.log.locks import LockedSnapshot
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse
from snapfs.store.repair.duplicate_store import rebuild_log
from snapfs.store.repository.repository import Repository
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import SourceVolume, feeder, inherit
from tests.fakes.targets.target_reader import reader_of


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=11)
    yield made
    made.close()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


class Between:
    """A target whose calls are watched, and fail as `trouble` decides."""

    def __init__(self, target: Target, trouble: Callable[[str], Exception | None] = lambda call: None) -> None:
        self.target, self.trouble = target, trouble
        self.calls: list[str] = []
        self.under_way = 0
        self.most_under_way = 0
        self.sent: list[int] = []
        self.window = 8
        self.slow_s = 0.0
        self.revision: int | None = None
        """What a commit is to report instead of the target's."""

    @property
    def limits(self) -> TargetLimits:
        return TargetLimits(part_bytes=2048, window_parts=self.window)

    async def _pass(self, call: str) -> None:
        self.calls.append(call)
        error = self.trouble(call)
        if error is not None:
            raise error

    async def open(self, identity: StoreIdentity, *, make: bool = True) -> TargetState:
        await self._pass("open")
        return await self.target.open(identity, make=make)

    async def claim(
        self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None
    ) -> None:
        await self._pass("claim")
        await self.target.claim(generation, writer_id, snapshot, peers)

    async def lacks(self, numbers: NumberSet, content_hash_of: ContentHashOf | None = None) -> NumberSet:
        await self._pass("lacks")
        return await self.target.lacks(numbers, content_hash_of)

    async def send(self, part: Part) -> int:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.slow_s)
            await self._pass("send")
            self.sent += part.numbers()
            return await self.target.send(part)
        finally:
            self.under_way -= 1

    async def commit(self, records: Sequence[SnapshotRecord], *, history: bool = False) -> int:
        await self._pass("commit")
        revision = await self.target.commit(records, history=history)
        await self._pass("committed")
        return revision if self.revision is None else self.revision

    async def drop(self, numbers: Sequence[SnapshotNumber], why: str = "") -> Sequence[LockedSnapshot]:
        await self._pass("drop")
        return await self.target.drop(numbers)

    async def branch_off(self, after: SnapshotNumber, name: str) -> None:
        await self._pass("aside")
        await self.target.branch_off(after, name)

    async def close(self) -> None:
        await self.target.close()


async def assert_complete(source: SourceVolume, target: DirectoryTarget) -> None:
    state = await target.open(source.identity)
    assert list(state.snapshots) == source.records
    async with reader_of(target) as reader:
        for record in source.records:
            source.assert_equal(reader, record.number)


def test_once_brings_everything_and_again_sends_nothing(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(7)
        between = Between(DirectoryTarget(str(tmp_path / "target")))
        made = feeder(source, between)
        await made.run_once()
        assert made.status.link is Link.IDLE
        assert made.status.newest == source.records[-1]
        assert (made.status.behind, made.status.snapshots, made.status.last_error) == (None, 7, None)
        assert (made.status.stored_bytes or 0) > sum(record.stats.stored_bytes for record in source.records) / 2
        assert len(between.sent) == len(set(between.sent))
        await made.close()
        again = Between(DirectoryTarget(str(tmp_path / "target")))
        second = feeder(source, again)
        await second.run_once()
        assert again.sent == []
        assert again.calls == ["open", "claim"]
        await assert_complete(source, again.target)  # type: ignore[arg-type]
        await second.close()

    run(story())


def test_a_commit_that_shows_an_older_copy_has_the_target_opened_again(source: SourceVolume, tmp_path: Path) -> None:
    """A target's revision grows with each commit: another copy answers, of which what it lacks is not known."""

    async def story() -> None:
        source.grow(3)
        between = Between(DirectoryTarget(str(tmp_path / "target")))
        made = feeder(source, between)
        await made.run_once()
        assert (made.status.note, between.calls.count("open")) == (None, 1)
        source.grow(1)
        between.calls.clear()

        def older_until_opened(call: str) -> None:
            if call in ("commit", "open"):
                between.revision = 2 if call == "commit" else None

        between.trouble = older_until_opened
        await made.run_once()
        assert between.calls.count("open") == 2
        assert "put back from an older copy" in (made.status.note or "")
        await made.close()

    run(story())


def test_a_difference_sends_only_what_is_new(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(5)
        between = Between(DirectoryTarget(str(tmp_path / "target")))
        made = feeder(source, between)
        await made.run_once()
        await made.close()
        between.sent.clear()
        source.grow(1)
        second = feeder(source, between)
        await second.run_once()
        assert min(between.sent) > source.records[-2].last_number
        assert max(between.sent) == source.records[-1].last_number
        await assert_complete(source, between.target)  # type: ignore[arg-type]
        await second.close()

    run(story())


def test_new_snapshots_are_followed_and_history_gives_way(source: SourceVolume, tmp_path: Path) -> None:
    """While history is being sent a new snapshot turns up: it arrives before the history does."""

    async def story() -> None:
        source.grow(6, steps=30)
        target = DirectoryTarget(str(tmp_path / "target"))
        arrived: list[list[int]] = []
        between = Between(target)
        made = feeder(source, between)

        def trouble(call: str) -> Exception | None:
            if call == "send" and len(arrived) == 1 and not grown.is_set():
                source.grow(1)
                made.wake()
                grown.set()
            return None

        grown = asyncio.Event()
        between.trouble = trouble
        commit = target.commit

        async def watched(records: Sequence[SnapshotRecord], *, history: bool = False) -> int:
            revision = await commit(records, history=history)
            arrived.append([record.number for record in records])
            return revision

        target.commit = watched  # type: ignore[method-assign]
        task = asyncio.create_task(made.run())
        while sum(map(len, arrived)) < 7:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert arrived[:2] == [[6], [7]]
        assert sorted(number for numbers in arrived[2:] for number in numbers) == [1, 2, 3, 4, 5]
        await assert_complete(source, target)
        await made.close()

    run(story())


@pytest.mark.parametrize("seed", range(4))
def test_failures_anywhere_only_delay(source: SourceVolume, tmp_path: Path, seed: int) -> None:
    async def story() -> None:
        rng = random.Random(seed)
        troubles = [
            ConnectionResetError("cut"),
            TimeoutError("silent"),
            refuse(Refusal.BUSY, "busy", retry_after=0.01),
            refuse(Refusal.STOPPING, "stopping"),
            refuse(Refusal.DISK_FULL, "full"),
            refuse(Refusal.CORRUPT, "damaged on its way"),
        ]
        target = DirectoryTarget(str(tmp_path / "target"))
        between = Between(target, lambda call: rng.choice(troubles) if rng.random() < 0.12 else None)
        made = feeder(source, between)
        _hurry(made)
        task = asyncio.create_task(made.run())
        for _ in range(8):
            source.grow(1)
            made.wake()
            await asyncio.sleep(0.05)
        between.trouble = lambda call: None
        while made.status.link is not Link.IDLE or made.status.snapshots < 8:
            assert not task.done()
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await assert_complete(source, target)
        await made.close()

    run(story())


def _hurry(made: Feeder) -> None:
    made.waits.first_s, made.waits.longest_s = 0.001, 0.01


def test_the_window_is_kept_and_used(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(1, steps=400)
        for window, most in ((1, 1), (3, 3)):
            between = Between(DirectoryTarget(str(tmp_path / f"target-{window}")))
            between.window, between.slow_s = window, 0.01
            made = feeder(source, between)
            await made.run_once()
            assert between.most_under_way == most
            await made.close()

    run(story())


@pytest.mark.parametrize(
    ("refusal", "link"),
    [(Refusal.FENCED, Link.FENCED), (Refusal.UNAUTHORIZED, Link.REFUSED), (Refusal.BUSY, Link.WAITING)],
)
def test_a_refusal_is_reported_and_does_not_end_the_feeder(
    source: SourceVolume, tmp_path: Path, refusal: Refusal, link: Link
) -> None:
    async def story() -> None:
        source.grow(1)
        between = Between(DirectoryTarget(str(tmp_path / "target")), lambda call: refuse(refusal, "for a reason"))
        made = feeder(source, between)
        _hurry(made)
        task = asyncio.create_task(made.run())
        while made.status.link is not link:
            await asyncio.sleep(0.01)
        assert made.status.last_error == "for a reason"
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await made.close()

    run(story())


def test_once_raises_what_stops_it(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(1)
        between = Between(DirectoryTarget(str(tmp_path / "target")), lambda call: refuse(Refusal.FENCED, "no more"))
        made = feeder(source, between)
        with pytest.raises(RefusedError, match="no more"):
            await made.run_once()
        assert between.calls == ["open"]
        await made.close()

    run(story())


def test_what_a_target_needs_is_held_here(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        holds = Holds(source.volume.store_dir, Disk())
        source.grow(1)
        held: list[set[int]] = []
        between = Between(DirectoryTarget(str(tmp_path / "target")))
        between.trouble = lambda call: held.append(set(holds.held())) if call == "commit" else None  # type: ignore[func-returns-value]
        made = feeder(source, between)
        await made.run_once()
        source.grow(1)
        await made.run_once()
        assert held == [{1}, {1, 2}]
        assert holds.held() == {2}
        await made.close()

    run(story())


def test_a_snapshot_dropped_under_way_is_left_out(source: SourceVolume, tmp_path: Path) -> None:
    """The hold comes too late: the objects vanish while they are being sent."""

    async def story() -> None:
        source.grow(4)
        target = DirectoryTarget(str(tmp_path / "target"))

        def trouble(call: str) -> Exception | None:
            if call == "lacks" and len(source.records) == 4:  # history is about to be sent
                source.history.repository.drop(SnapshotNumber(2))
            return None

        made = feeder(source, Between(target, trouble))
        await made.run_once()
        assert [record.number for record in (await target.open(source.identity)).snapshots][-2:] == [3, 4]
        await made.close()

    run(story())


def test_a_damaged_snapshot_is_passed_over_and_reported(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(2)
        broken = source.records[-1]
        info = source.history.repository.index.find(broken.root.number)
        assert info is not None
        with open(info.path, "r+b") as file:
            file.seek(80)
            file.write(b"\xff" * 40)
        made = feeder(source, Between(DirectoryTarget(str(tmp_path / "target"))))
        _hurry(made)
        await made.run_once()
        newest = made.status.newest
        assert newest is not None
        assert newest.number == 1
        assert made.status.last_error is not None
        assert "damaged" in made.status.last_error
        await made.close()

    run(story())


def test_another_history_is_refused_clearly(source: SourceVolume, tmp_path: Path) -> None:
    """The volume was restored from an older copy, and goes on differently."""

    async def story() -> None:
        source.grow(2)
        target = DirectoryTarget(str(tmp_path / "target"))
        made = feeder(source, target)
        await made.run_once()
        await made.close()
        source.close()
        _forget_last(source)
        second = feeder(source, target)
        with pytest.raises(UserError, match="not in the history"):
            await second.run_once()
        await second.close()

    run(story())


def _forget_last(source: SourceVolume) -> None:
    """As a restored copy would be: the last snapshot never happened."""
    log = Path(source.volume.store_dir) / "snapshots.log"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]))
    log.with_suffix(".end").unlink()
    max((log.parent / "segments").glob("*.seg")).unlink()  # else the snapshot is recovered from it


def test_drops_are_followed_if_wanted(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(4)
        target = DirectoryTarget(str(tmp_path / "target"))
        made = feeder(source, target)
        await made.run_once()
        source.history.repository.drop(SnapshotNumber(2))
        keeping = feeder(source, target, ReplicationSettings(drops="keep"))
        await keeping.run_once()
        assert len((await target.open(source.identity)).snapshots) == 4
        await made.run_once()
        assert [record.number for record in (await target.open(source.identity)).snapshots] == [1, 3, 4]
        await keeping.close()
        await made.close()

    run(story())


@pytest.mark.parametrize("drops", ["follow", "keep"])
def test_a_name_may_be_given_anew(source: SourceVolume, tmp_path: Path, drops: str) -> None:
    """Each night's snapshot is called the same; the newest at the target still has the name when the next one comes."""

    async def story() -> None:
        settings = ReplicationSettings(drops=drops)  # type: ignore[arg-type]
        target = DirectoryTarget(str(tmp_path / "target"))
        source.history.grow(1, name="nightly")
        made = feeder(source, target, settings)
        await made.run_once()
        source.grow(1)
        source.history.repository.drop(SnapshotNumber(1))
        source.history.grow(1, name="nightly")
        await made.run_once()
        volume = target.opened
        assert volume is not None
        assert volume.find("nightly").number == 3
        kept = [1, 2, 3] if drops == "keep" else [2, 3]
        assert [record.number for record in volume.repository.snapshots()] == kept
        volume.check_invariants()
        await made.close()

    run(story())


def test_without_history_only_the_newest_is_sent(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(5)
        target = DirectoryTarget(str(tmp_path / "target"))
        made = feeder(source, target, ReplicationSettings(history=False))
        await made.run_once()
        assert [record.number for record in (await target.open(source.identity)).snapshots] == [5]
        source.grow(3)
        await made.run_once()
        assert [record.number for record in (await target.open(source.identity)).snapshots] == [5, 8]
        async with reader_of(target) as reader:
            source.assert_equal(reader, 8)
        await made.close()

    run(story())


def test_an_idle_link_is_looked_at(source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is to be sent, and yet it is noticed that the target went away, or that another host took over."""
    monkeypatch.setattr(feeding, "LOOK_SECONDS", 0.05)

    async def comes(made: Feeder, link: Link) -> None:
        while made.status.link is not link:
            await asyncio.sleep(0.01)

    async def story() -> None:
        source.grow(1)
        target = DirectoryTarget(str(tmp_path / "target"))
        between = Between(target)
        made = feeder(source, between)
        task = asyncio.create_task(made.run())
        await comes(made, Link.IDLE)
        between.trouble = lambda call: ConnectionResetError("gone") if call == "open" else None
        await comes(made, Link.WAITING)
        between.trouble = lambda call: None
        made.wake()
        await comes(made, Link.IDLE)
        assert target.opened is not None
        target.opened.claim(Generation(2), "host-b")
        await comes(made, Link.FENCED)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await made.close()

    run(story())


def test_a_target_that_was_brought_back_from_an_old_copy_gets_what_it_lost(
    source: SourceVolume, tmp_path: Path
) -> None:
    async def story() -> None:
        target = DirectoryTarget(str(tmp_path / "target"))
        source.grow(2)
        made = feeder(source, target)
        await made.run_once()
        await target.close()
        shutil.copytree(tmp_path / "target", tmp_path / "copy")
        source.grow(3)
        await made.run_once()
        assert made.status.complete_through == 5
        await target.close()
        shutil.rmtree(tmp_path / "target")
        shutil.copytree(tmp_path / "copy", tmp_path / "target")
        await made.run_once()
        await assert_complete(source, target)
        await made.close()

    run(story())


def test_another_volume_in_the_same_folder_is_not_taken_for_this_one(source: SourceVolume, tmp_path: Path) -> None:
    reading = source.open()
    source.close()
    shutil.rmtree(source.path)
    other = SourceVolume(source.path, seed=12)
    with pytest.raises(UserError, match="another volume"):
        reading.refresh()
    reading.close()
    other.close()


def test_what_a_target_drops_by_itself_is_not_sent_again(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(4)
        target = DirectoryTarget(str(tmp_path / "target"))
        made = feeder(source, target)
        await made.run_once()
        assert target.opened is not None
        target.opened.expire(2)
        source.grow(1)
        await made.run_once()
        assert [record.number for record in (await target.open(source.identity)).snapshots] == [3, 4, 5]
        await made.close()
        other = DirectoryTarget(str(tmp_path / "other"))  # in the place of the first: it has nothing at all
        again = feeder(source, other)
        again.status.complete_through = made.status.complete_through
        await again.run_once()
        await assert_complete(source, other)
        await again.close()

    run(story())


def test_what_is_known_of_a_target_is_learnt_anew_before_it_grows_too_large(
    source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        monkeypatch.setattr("replicator.agent.delivery.KNOWN_OBJECTS", 10)
        target = DirectoryTarget(str(tmp_path / "target"))
        made = feeder(source, target)
        for _ in range(12):
            source.grow(1, steps=20)
            await made.run_once()
            assert len(made.delivery.known.there) < 5 * len(source.history.numbers(source.records[-1])) + 10
        await assert_complete(source, target)
        await made.close()

    run(story())


def test_a_log_that_was_rebuilt_is_followed(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(3)
        target = DirectoryTarget(str(tmp_path / "target"))
        made = feeder(source, target)
        await made.run_once()
        source.close()
        log = Path(source.volume.store_dir) / "snapshots.log"
        log.unlink()
        rebuild_log(source.volume.store_dir, source.identity, Disk())
        source.history.repository = Repository.open(source.volume.store_dir, source.identity, Disk())
        source.grow(2)
        await made.run_once()
        state = await target.open(source.identity)
        assert [record.number for record in state.snapshots] == [1, 2, 3, 4, 5]
        async with reader_of(target) as reader:
            for record in source.records:
                source.assert_equal(reader, record.number)
        await made.close()

    run(story())


def test_a_new_writer_makes_a_branch_of_what_it_never_saw(source: SourceVolume, tmp_path: Path) -> None:
    """A failover from a copy that was one snapshot behind: the target's last one becomes a branch."""

    async def story() -> None:
        source.grow(2)
        shutil.copytree(source.path, tmp_path / "elsewhere")
        source.grow(1)
        target = DirectoryTarget(str(tmp_path / "target"))
        old = feeder(source, target)
        await old.run_once()
        await old.close()
        successor = inherit(source, tmp_path / "elsewhere", 2)
        new = feeder(successor, target)
        await new.run_once()
        successor.history.grow(2, generation=2)
        await new.run_once()
        await assert_complete(successor, target)
        assert target.opened is not None
        assert [number for _, number in target.opened.branches] == [3]
        await new.close()
        late = feeder(source, target)
        with pytest.raises(RefusedError) as error:
            await late.run_once()
        assert error.value.refusal is Refusal.FENCED
        await late.close()
        successor.close()

    run(story())
