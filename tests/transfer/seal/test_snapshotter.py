"""The snapshotter: its order, its answers, and what a failure leaves. The tree and the seal are scripted."""

from __future__ import annotations

import errno
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from snapfs.base.blocks import Disk, Generation, Ino
from snapfs.base.counting.metrics import Metrics
from snapfs.base.errors import CorruptionError, SnapshotError, UserError
from snapfs.base.settings.units import Seconds
from snapfs.base.settings.volume_settings import SnapshotSettings
from snapfs.live.cut import Cut
from snapfs.live.namespace.namespace import Namespace
from snapfs.store.log.snapshot_records import AskedBy, CutFacts
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.tables.snapshot import RootInfo, SnapshotWriter
from snapfs.transfer.seal.cadence import Cadence
from snapfs.transfer.seal.snapshotter import Snapshotter
from snapfs.transfer.seal.whole_files import NotKeptError
from tests.fakes.patience import PATIENCE_S


@dataclass
class Script:
    """A live tree and a sealer that record what is requested of them."""

    steps: list[str] = field(default_factory=list)
    changed: bool = True
    pressed: bool = False
    failure: Exception | None = None
    gate: threading.Event | None = None
    progress: Callable[[int, int], None] | None = None

    def cut(self) -> Cut:
        self.steps.append("cut")
        return cast(Cut, None)

    def mark_all_suspect(self) -> None:
        self.steps.append("mark all suspect")

    def has_changes(self) -> bool:
        return self.changed

    def take_lost(self) -> tuple[int, int]:
        return 0, 0

    def suspects(self) -> list[Ino]:
        return []

    def compare_suspects(self, inos: list[Ino]) -> list[Ino]:
        return inos

    def mark_whole(self, inos: list[Ino]) -> None:
        self.steps.append(f"whole {inos}")

    @property
    def names(self) -> Namespace:
        raise AssertionError("nothing is excluded")

    def pressure(self) -> bool:
        return self.pressed

    async def flush(self) -> None:
        self.steps.append("flush")

    def seal(
        self, cut: Cut, repository: Repository, parent: SnapshotRecord | None, *, generation: Generation,
        name: str | None, trigger: str, progress: Callable[[int, int], None], facts: CutFacts, by: AskedBy | None,
        exclude: tuple[str, ...] = (),
    ) -> SnapshotRecord:  # fmt: skip
        self.steps.append(f"seal {name} on {parent.number if parent else None}")
        if self.gate is not None:
            self.gate.wait(PATIENCE_S)
        progress(1, 2)
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        self.pressed = self.changed = False
        transaction = repository.begin(generation)
        root = SnapshotWriter(transaction, None).finish([], extra=RootInfo(0))
        return transaction.commit(
            root, parent=parent.number if parent else None, name=name, cut_time_ns=0, trigger=trigger,
            files=0, directories=0, inodes=0, dirty_bytes=0, by=by,
        )  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    repository = Repository.create(str(tmp_path / "store"), StoreIdentity("0" * 32, 1), Disk())
    yield repository
    repository.close()


Story = Callable[[Snapshotter, Script], Awaitable[Any]]


def play(repository: Repository, story: Story, script: Script | None = None) -> tuple[Snapshotter, Script]:
    script = script or Script()
    snapshotter = Snapshotter(
        script, repository, script.seal, script.flush, Metrics(), parent=None, generation=Generation(1)
    )
    trio.run(story, snapshotter, script)
    return snapshotter, script


def test_a_snapshot_is_flushed_cut_and_sealed(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        record = await snapshotter.snapshot("x", "control", flush=True)
        assert (record.number, record.name, record.trigger) == (1, "x", "control")
        assert snapshotter.parent == record

    snapshotter, script = play(repository, story)
    assert script.steps == ["flush", "cut", "seal x on None"]
    assert len(snapshotter.pauses_s) == 1
    assert snapshotter.running is None


def test_requests_are_served_one_after_another_in_their_order(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(lambda name=name: snapshotter.snapshot(name, "control", flush=False))
                await trio.testing.wait_all_tasks_blocked()

    _, script = play(repository, story)
    assert script.steps == ["cut", "seal a on None", "cut", "seal b on 1", "cut", "seal c on 2"]


def test_progress_shows_while_it_seals(repository: Repository) -> None:
    gate = threading.Event()

    async def story(snapshotter: Snapshotter, script: Script) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: snapshotter.snapshot("x", "control", flush=False))
            while not script.steps[1:]:
                await trio.sleep(0.001)
            assert snapshotter.busy
            assert snapshotter.running is not None
            assert (snapshotter.running.name, snapshotter.running.phase.value) == ("x", "seal")
            gate.set()

    play(repository, story, Script(gate=gate))


def test_a_failure_is_reported_and_the_next_one_has_the_same_parent(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        await snapshotter.snapshot("a", "control", flush=False)
        script.failure = SnapshotError("the disk is full", errno.ENOSPC)
        with pytest.raises(SnapshotError, match="full"):
            await snapshotter.snapshot("b", "control", flush=False)
        assert snapshotter.last_error is not None
        assert (snapshotter.last_error.what, snapshotter.last_error.errno) == ("snapshot b", errno.ENOSPC)
        await snapshotter.snapshot("b", "control", flush=False)

    _, script = play(repository, story)
    assert script.steps[-1] == "seal b on 1"


def test_a_file_that_is_no_longer_excluded_and_was_not_kept_takes_another_cut(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        script.failure = SnapshotError("not kept", errno.EIO)
        script.failure.__cause__ = NotKeptError([Ino(5)])
        record = await snapshotter.snapshot("a", "control", flush=False)
        assert record.number == 1

    _, script = play(repository, story)
    assert script.steps == ["cut", "seal a on None", "whole [5]", "cut", "seal a on None"]


@pytest.mark.parametrize("step", ["cut", "flush"])
def test_a_disk_without_room_for_the_cut_is_a_failed_snapshot(
    repository: Repository, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not just an errno: its exit code and its words are those of a snapshot that failed while it was sealed."""

    def fail(*ignored: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def story(snapshotter: Snapshotter, script: Script) -> None:
        with pytest.raises(SnapshotError, match="no snapshot was made: no space is left") as failure_info:
            await snapshotter.snapshot("a", "control", flush=True)
        assert (failure_info.value.errno, failure_info.value.exit_code) == (errno.ENOSPC, 7)
        assert snapshotter.last_error is not None
        assert snapshotter.last_error.message == str(failure_info.value)

    monkeypatch.setattr(Script, step, fail)
    play(repository, story)


def test_a_damaged_parent_is_given_up_and_everything_stored_anew(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        await snapshotter.snapshot("a", "control", flush=False)
        script.failure = SnapshotError("damaged", errno.EIO)
        script.failure.__cause__ = CorruptionError("object 1", "a segment", "a bit fell over")
        record = await snapshotter.snapshot("b", "control", flush=False)
        assert record.parent is None

    _, script = play(repository, story)
    assert script.steps[2:] == ["cut", "seal b on 1", "mark all suspect", "cut", "seal b on None"]
    assert [record.state for record in repository.snapshots()] == ["damaged", "good"]


def test_a_name_that_is_taken_or_none_is_refused_before_anything_is_done(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        await snapshotter.snapshot("a", "control", flush=False)
        with pytest.raises(FileExistsError):
            await snapshotter.snapshot("a", "control", flush=False)
        for name in ("17", "a/b", "", ".."):
            with pytest.raises(UserError):
                await snapshotter.snapshot(name, "control", flush=False)

    _, script = play(repository, story)
    assert script.steps == ["cut", "seal a on None"]


def test_a_seal_that_is_ordered_to_stop_fails_with_eintr(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        snapshotter.stop()
        with pytest.raises(SnapshotError) as caught:
            await snapshotter.snapshot("a", "control", flush=False)
        assert caught.value.errno == errno.EINTR

    play(repository, story)
    assert repository.latest() is None


EVERY = SnapshotSettings(every=Seconds(0.01), flush=False)


async def _policy_until(snapshotter: Snapshotter, settings: SnapshotSettings, done: Callable[[], bool]) -> None:
    cadence = Cadence(settings, cast(Script, snapshotter._tree))
    snapshotter._sealed = lambda record: cadence.sealed(record.number, snapshotter.last_cut, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(snapshotter.run_policy, cadence)
        while not done():
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()


def test_the_interval_makes_one_where_something_changed(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        await _policy_until(snapshotter, EVERY, lambda: snapshotter.parent is not None)
        assert snapshotter.parent is not None
        assert snapshotter.parent.trigger == "interval"
        assert snapshotter.parent.name is None

    play(repository, story)


def test_the_interval_skips_what_did_not_change(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        skipped = snapshotter._metrics.skipped
        await _policy_until(snapshotter, EVERY, lambda: skipped.value >= 3)

    _, script = play(repository, story, Script(changed=False))
    assert script.steps == []


def test_what_the_kernel_still_holds_counts_as_changed(repository: Repository) -> None:
    script = Script(changed=False)

    async def flush() -> None:
        script.changed = True

    async def story(snapshotter: Snapshotter, script: Script) -> None:
        snapshotter._flush = flush
        settings = SnapshotSettings(every=Seconds(0.01), flush=True)
        await _policy_until(snapshotter, settings, lambda: snapshotter.parent is not None)

    play(repository, story, script)


def test_pressure_cuts_without_an_interval(repository: Repository) -> None:
    async def story(snapshotter: Snapshotter, script: Script) -> None:
        await _policy_until(snapshotter, SnapshotSettings(), lambda: snapshotter.parent is not None)
        assert snapshotter.parent is not None
        assert snapshotter.parent.trigger == "pressure"

    play(repository, story, Script(pressed=True))
