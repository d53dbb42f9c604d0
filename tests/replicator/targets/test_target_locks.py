"""Locks of targets, and the right to drop.

Without a lock, a push token can erase a mirror's history. Mirrors, folders and buckets get a lock set on their side:
nothing younger is dropped on any request; the clock is the mirror's; dropping needs its own right (prune).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from replicator.mirror.tokens import Tokens
from replicator.targets.encrypted_target import EncryptedTarget
from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.mirror_target import HttpTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target import Target, live_messages
from replicator.volumes.folder_lock import FolderLock
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.base.mirror_access import MirrorAccess
from snapfs.store.log.drops import Drops
from snapfs.store.log.locks import LOCK, LONGEST_SECONDS, Lock, LockedSnapshot, Stays, changed, kept_by
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import messages
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.protocol.wire import Right
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, feeder
from tests.fakes.targets.mirror_process import MirrorProcess
from tests.fakes.targets.s3_server import start_obstore

DAY_S = 86400.0
REPLICATOR = [sys.executable, "-m", "replicator"]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=31)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


def reasons(kept: Any) -> dict[int, str]:
    return {each.number: each.reason for each in kept}


def numbers(*found: int) -> list[SnapshotNumber]:
    return [SnapshotNumber(number) for number in found]


def replicator(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REPLICATOR, *map(str, words)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


# -- the rule


def test_an_age_is_counted_from_the_receipt_and_a_lock_grows_only() -> None:
    at_s = {1: 100.0, 2: 200.0, 3: 300.0}
    kept = kept_by(numbers(1, 2, 3), lambda number: int(at_s[number] * 1e9), 100.0, int(300.0 * 1e9))
    assert kept == [LockedSnapshot(SnapshotNumber(3), Stays.LOCKED, int(400 * 1e9))]
    assert kept_by(numbers(3), lambda number: 0, 0.0, 1) == []
    known = Lock(7 * DAY_S, 1)
    assert changed(known, 14 * DAY_S, 2, shorten=False).seconds == 14 * DAY_S
    assert changed(known, DAY_S, 2, shorten=True).seconds == DAY_S
    with pytest.raises(UserError, match="--shorten"):
        changed(known, DAY_S, 2, shorten=False)
    with pytest.raises(UserError, match="100 years"):
        changed(None, 2 * LONGEST_SECONDS, 2, shorten=False)


def test_a_lock_file_with_any_flipped_bit_locks_everything(tmp_path: Path) -> None:
    there = FolderLock(str(tmp_path), Disk())
    assert there.seconds() == 0.0
    there.set(DAY_S, shorten=False)
    path = tmp_path / "lock.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
            assert there.seconds() in (LONGEST_SECONDS, DAY_S), (at, bit)
        path.write_bytes(whole[:at])
        assert there.seconds() == LONGEST_SECONDS, at
    path.write_bytes(LOCK.encode(Lock(0.0, 1, format=2)))
    assert there.seconds() == LONGEST_SECONDS
    path.write_bytes(b"?")
    with pytest.raises(UserError, match="--shorten"):
        there.set(DAY_S, shorten=False)
    there.set(DAY_S, shorten=True)
    assert FolderLock(str(tmp_path), Disk(), serve_s=2 * DAY_S).seconds() == 2 * DAY_S


# -- each kind of target


class Clocked:
    """A target, and its clock: so many seconds are added to it."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self.ahead_s, self._base_s = 0.0, 1_800_000_000.0
        self._folder = tmp_path / "target"
        self.target: DirectoryTarget | ObjectStoreTarget
        if kind == "folder":
            self.target = DirectoryTarget(str(self._folder))
        else:
            self.target = ObjectStoreTarget(MemoryStore(), clock=self.now_s)

    def now_s(self) -> float:
        return self._base_s + self.ahead_s

    async def begin(self, source: SourceVolume) -> None:
        """Push all there is."""
        await self.target.open(source.identity)
        if isinstance(self.target, DirectoryTarget):
            assert self.target.opened is not None
            self.target.opened.repository.clock = lambda: int(self.now_s() * 1e9)
            self.target.opened.repository.log._clock = lambda: int(self.now_s() * 1e9)
        made = feeder(source, self.target)
        made.target = self.target
        await made.run_once()
        await made.thread.close()

    async def lock(self, seconds: float) -> None:
        if isinstance(self.target, DirectoryTarget):
            FolderLock(str(self._folder), Disk()).set(seconds, shorten=False)
        else:
            await self.target.lock(seconds)

    async def there(self, source: SourceVolume) -> list[int]:
        return [record.number for record in (await self.target.open(source.identity)).snapshots]


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_what_is_younger_than_the_lock_stays_and_what_is_older_goes(
    source: SourceVolume, tmp_path: Path, kind: str
) -> None:
    async def story() -> None:
        there = Clocked(kind, tmp_path)
        source.grow(2)
        await there.begin(source)
        there.ahead_s = 10 * DAY_S
        source.grow(2)
        await there.begin(source)
        await there.lock(14 * DAY_S)
        assert (await there.target.open(source.identity)).lock_s == 14 * DAY_S
        assert reasons(await there.target.drop(numbers(1, 3))) == {1: "locked", 3: "locked"}
        there.ahead_s = 14 * DAY_S - 1
        assert reasons(await there.target.drop(numbers(1))) == {1: "locked"}
        there.ahead_s = 14 * DAY_S + 1
        kept = await there.target.drop(numbers(1, 3, 4, 99))
        assert reasons(kept) == {3: "locked", 4: "newest"}
        assert max(each.until_ns for each in kept) > there.now_s() * 1e9
        assert await there.there(source) == [2, 3, 4]
        there.ahead_s = 25 * DAY_S
        assert reasons(await there.target.drop(numbers(2, 3))) == {}
        assert await there.there(source) == [4]
        await there.target.close()

    run(story())


def test_a_buckets_snapshots_of_before_are_locked_from_the_lock_on(source: SourceVolume, tmp_path: Path) -> None:
    """The head of an earlier version does not record when a snapshot was received."""

    async def story() -> None:
        there = Clocked("bucket", tmp_path)
        source.grow(2)
        await there.begin(source)
        assert isinstance(there.target, ObjectStoreTarget)
        there.target._heads.catalog.received_ns.clear()
        there.ahead_s = 30 * DAY_S
        await there.lock(14 * DAY_S)
        assert reasons(await there.target.drop(numbers(1))) == {1: "locked"}
        await there.target.close()

    run(story())


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_an_agent_goes_on_over_refused_drops_and_reports_them(source: SourceVolume, tmp_path: Path, kind: str) -> None:
    async def story() -> None:
        there = Clocked(kind, tmp_path)
        source.grow(3)
        await there.begin(source)
        await there.lock(14 * DAY_S)
        source.history.repository.drop(SnapshotNumber(1))
        source.history.repository.drop(SnapshotNumber(2))
        made = feeder(source, there.target)
        for _ in range(2):
            source.grow(1)
            await made.run_once()
        assert made.status.last_error is None
        assert made.status.newest == source.records[-1]
        (kept,) = made.status.facts(0, 0.0).kept
        assert (kept.reason, kept.count, kept.first) == ("locked", 2, 1)
        assert await there.there(source) == [1, 2, 3, 4, 5]
        there.ahead_s = 40 * DAY_S
        made.session.kept.clear()  # the agent's own clock reaches their time
        await made.run_once()
        assert await there.there(source) == [3, 4, 5]
        assert made.status.facts(0, 0.0).kept == []
        await made.close()

    run(story())


# -- a mirror


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MirrorProcess]:
    process = MirrorProcess(tmp_path / "mirror", *getattr(request, "param", ()))
    process.start()
    yield process
    process.stop()


def http(served: MirrorProcess, tmp_path: Path, right: str) -> HttpTarget:
    token = tmp_path / f"token-{right}"
    made = replicator("token", "create", "--root", served.root, *(f"--grant=pg:{each}" for each in right.split("+")))
    token.write_text(made.stdout)
    return HttpTarget(f"http://127.0.0.1:{served.port}/pg", MirrorAccess(str(token)))


async def push(source: SourceVolume, target: Target) -> None:
    made = feeder(source, target)
    try:
        await made.run_once()
    finally:
        await made.close()


async def there(source: SourceVolume, target: Target) -> list[int]:
    found = [record.number for record in (await target.open(source.identity)).snapshots]
    await target.close()
    return found


def test_a_push_token_drops_nothing_and_replication_goes_on(
    source: SourceVolume, served: MirrorProcess, tmp_path: Path
) -> None:
    async def story() -> None:
        pushing = http(served, tmp_path, "push")
        source.grow(3)
        await push(source, pushing)
        source.history.repository.drop(SnapshotNumber(1))
        source.grow(1)
        made = feeder(source, pushing)
        await made.run_once()
        (kept,) = made.status.facts(0, 0.0).kept
        assert (kept.reason, kept.first, made.status.last_error) == ("right", 1, None)
        assert made.status.newest == source.records[-1]
        await made.close()
        assert await there(source, pushing) == [1, 2, 3, 4]
        both = http(served, tmp_path, "push+prune")
        await push(source, both)
        assert await there(source, both) == [2, 3, 4]

    run(story())


def test_an_agent_of_an_earlier_version_is_not_stopped_by_the_right_it_lacks(
    source: SourceVolume, served: MirrorProcess, tmp_path: Path
) -> None:
    """To it the answer is a list of snapshots, as ever: a refusal would have ended its session."""

    async def story() -> None:
        pushing = http(served, tmp_path, "push")
        source.grow(2)
        await push(source, pushing)
        await pushing.open(source.identity)
        await pushing.claim(GENERATION, WRITER_ID)
        answer = await pushing._query("POST", ("drop",), messages.SnapshotList, messages.Drop([1]), fenced=True)
        assert [each.record["number"] for each in answer.snapshots] == [1, 2]
        await pushing.close()

    run(story())


def test_who_may_prune_and_not_push_drops_and_changes_nothing_else(
    source: SourceVolume, served: MirrorProcess, tmp_path: Path
) -> None:
    async def story() -> None:
        source.grow(3)
        await push(source, http(served, tmp_path, "push"))
        pruning = http(served, tmp_path, "prune")
        assert [record.number for record in await pruning.snapshots()] == [1, 2, 3]
        assert reasons(await pruning.prune(numbers(1, 3))) == {3: "newest"}
        with pytest.raises(RefusedError) as refused:
            await pruning.claim(Generation(2), "somebody")
        assert refused.value.refusal is Refusal.FORBIDDEN
        await pruning.close()
        reading = http(served, tmp_path, "read")
        assert [record.number for record in await reading.snapshots()] == [2, 3]
        with pytest.raises(RefusedError) as refused:
            await reading.prune(numbers(2))
        assert refused.value.refusal is Refusal.FORBIDDEN
        await reading.close()

    run(story())


LOCKED = ("--lock", "14d", "--lock", "free=0s", "--keep", "1", "--upkeep", "0.1")


@pytest.mark.parametrize("served", [LOCKED], indirect=True)
def test_a_host_that_was_taken_over_cannot_empty_a_locked_mirror(
    source: SourceVolume, served: MirrorProcess, tmp_path: Path
) -> None:
    """With all rights, and the mirror's own --keep: everything stays for its time. A volume of its own lock is free."""

    async def story() -> None:
        admin = http(served, tmp_path, "admin")
        source.grow(4)
        await push(source, admin)
        state = await admin.open(source.identity)
        assert state.lock_s == 14 * DAY_S
        await admin.claim(GENERATION, WRITER_ID)
        assert set(reasons(await admin.drop(numbers(1, 2, 3))).values()) == {"locked"}
        assert set(reasons(await admin.prune(numbers(1, 2, 3))).values()) == {"locked"}
        for _ in range(4):
            source.grow(1)  # the oldest would be flushed by --keep
            await push(source, admin)
            await asyncio.sleep(0.2)  # for an upkeep
        assert await there(source, admin) == [1, 2, 3, 4, 5, 6, 7, 8]
        token = tmp_path / "token-admin"
        free = HttpTarget(f"http://127.0.0.1:{served.port}/free", MirrorAccess(str(token)))
        token.write_text(served.admin)
        assert (await free.open(source.identity)).lock_s == 0.0
        await free.close()

    run(story())


def test_a_mirrors_own_retention_passes_over_what_is_locked(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        there = Clocked("folder", tmp_path)
        source.grow(4)
        await there.begin(source)
        await there.lock(14 * DAY_S)
        assert isinstance(there.target, DirectoryTarget)
        volume = there.target.opened
        assert volume is not None
        assert volume.expire(1) == []
        there.ahead_s = 15 * DAY_S
        assert volume.expire(1) == [1, 2, 3]
        drops = Drops(str(tmp_path / "target/store/snapshots.log"), Disk())
        assert not drops.among(numbers(1, 2, 3), [], by_rules=True)  # it says nothing about other places
        drops.close()
        await there.target.close()

    run(story())


def test_a_mirror_keeps_its_newest_good_snapshot(source: SourceVolume, tmp_path: Path) -> None:
    """What it found damaged since is newer, and nothing to take over from. Until it is repaired, no rule or person."""

    async def story() -> None:
        there = Clocked("folder", tmp_path)
        source.grow(4)
        await there.begin(source)
        assert isinstance(there.target, DirectoryTarget)
        volume = there.target.opened
        assert volume is not None
        for number in (3, 4):
            volume.repository.mark(SnapshotNumber(number), "damaged", "for a test")
        assert [each.number for each in volume.prune([1, 2, 3, 4], "a person")] == [2, 4]
        assert [record.number for record in volume.repository.snapshots()] == [2, 4]
        await there.target.close()

    run(story())


# -- ciphertext


def test_a_lying_writer_frees_nothing_that_a_locked_snapshot_needs(source: SourceVolume, tmp_path: Path) -> None:
    """Of an encrypted volume the writer lists what lives. Under a lock a list counts when as old as the lock."""

    async def story() -> None:
        source.encrypt()
        key = str(tmp_path / "owners.key")
        target = EncryptedTarget(DirectoryTarget(str(tmp_path / "target")), source.new_keys(key), "t")
        source.grow(3, steps=30)
        await push(source, target)
        await target.close()
        now = [1_800_000_000.0]
        with closing(MirrorVolume.open(str(tmp_path / "target"), Disk(), lock_s=14 * DAY_S)) as volume:
            volume.repository.clock = lambda: int(now[0] * 1e9)
            liar = volume.generation, volume.writer_id
            here = [record.number for record in volume.repository.snapshots()]
            everything = sum(info.count for info in volume.repository.index.segments())

            def lie() -> int:
                for message in live_messages(NumberSet(), here):
                    done = volume.collect_by_manifest(message, *liar)
                return done.freed_bytes

            for day in (0, 1, 13):
                now[0] = 1_800_000_000.0 + day * DAY_S
                assert lie() == 0, day
            assert sum(info.count for info in volume.repository.index.segments()) == everything
            volume.claim(Generation(volume.generation + 1), "next")
            volume.claim(Generation(volume.generation + 1), WRITER_ID)
            liar = volume.generation, volume.writer_id
            now[0] += 2 * DAY_S
            assert lie() == 0, "with another writer the time begins anew"
            now[0] += 15 * DAY_S
            assert lie() > 0

    run(story())


def test_what_is_dead_under_a_lock_is_freed_in_the_end(source: SourceVolume, tmp_path: Path) -> None:
    """An honest writer gets its space back, a lock later, and all that its snapshots need stays readable."""

    async def story() -> None:
        source.encrypt()
        key = str(tmp_path / "owners.key")
        target = EncryptedTarget(DirectoryTarget(str(tmp_path / "target")), source.new_keys(key), "t")
        source.grow(8, steps=30)
        await push(source, target)
        await target.close()
        now = [1_900_000_000.0]
        with closing(MirrorVolume.open(str(tmp_path / "target"), Disk(), lock_s=DAY_S)) as volume:
            volume.repository.clock = lambda: int(now[0] * 1e9)
            writer = volume.generation, volume.writer_id
            assert volume.drop([1, 2, 3, 4, 5, 6], *writer) == []
            live = source.history.numbers(*source.records[-2:])
            freed = []
            for _ in range(6):
                now[0] += 0.3 * DAY_S
                for message in live_messages(live, numbers(7, 8)):
                    done = volume.collect_by_manifest(message, *writer)
                freed.append(done.freed_bytes)
            assert freed[:3] == [0, 0, 0]
            assert sum(freed) > 0
            there = {row.number for info in volume.repository.index.segments()
                     for row in volume.repository.index.reader(info.first).rows()}  # type: ignore[union-attr]  # fmt: skip
            assert set(live) <= there

    run(story())


# -- the commands


def test_the_commands_lock_and_drop_in_a_folder(source: SourceVolume, tmp_path: Path) -> None:
    folder = tmp_path / "target"
    source.grow(3)
    run(_pushed(source, DirectoryTarget(str(folder))))
    assert "no lock" in replicator("lock", folder).stdout
    assert "14d" in replicator("lock", folder, "14d").stdout
    shorter = replicator("lock", f"file://{folder}", "1d")
    assert (shorter.returncode, "--shorten" in shorter.stderr) == (3, True)
    done = replicator("drop", folder, "1")
    assert done.returncode == 4
    assert "snapshot 1 stays: it is locked there until" in done.stderr
    assert json.loads(replicator("lock", folder, "0s", "--shorten", "--json").stdout)["seconds"] == 0.0
    assert replicator("drop", folder, "--dry-run", "1").stdout == "would drop 1\n"
    assert replicator("drop", folder, "1").stdout == "dropped 1\n"
    newest = replicator("drop", folder, "--json", "2", "3")
    answer = json.loads(newest.stdout)
    assert (newest.returncode, answer["dropped"], [each["reason"] for each in answer["kept"]]) == (4, [2], ["newest"])
    assert replicator("drop", folder, "77").returncode == 3
    refused = replicator("lock", "https://mirror:8700/pg", "14d")
    assert (refused.returncode, "serve --lock" in refused.stderr) == (3, True)


def test_a_person_drops_at_a_mirror(source: SourceVolume, served: MirrorProcess, tmp_path: Path) -> None:
    source.grow(3)
    run(_pushed(source, http(served, tmp_path, "push")))
    http(served, tmp_path, "prune")
    url = f"http://127.0.0.1:{served.port}/pg"
    refused = replicator("drop", url, "1", "--token-file", tmp_path / "token-push")
    assert refused.returncode == 4
    assert "the right to prune" in refused.stderr
    done = replicator("drop", url, "1", "--token-file", tmp_path / "token-prune")
    assert done.stdout == "dropped 1\n", done.stderr
    log = [json.loads(line) for line in (served.root / "pg/store/snapshots.log").read_text().splitlines()]
    (dropped,) = (line for line in log if line["kind"] == "dropped")
    assert (dropped["snapshot"], dropped["by"]) == (1, "person")


async def _pushed(source: SourceVolume, target: Target) -> None:
    await push(source, target)


def test_rights_are_joined_and_push_alone_does_not_prune(tmp_path: Path) -> None:
    tokens = Tokens(str(tmp_path / "tokens.json"))
    made = tokens.create({"pg": "push+prune", "redis": "push"})[0]
    assert made.right_on("pg") == Right.READ | Right.PUSH | Right.PRUNE
    assert Right.PRUNE not in made.right_on("redis")
    with pytest.raises(UserError, match="joined by"):
        tokens.create({"pg": "push+drop"})
