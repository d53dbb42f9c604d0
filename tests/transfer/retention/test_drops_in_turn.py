"""What the daemon's upkeep decides to drop, and a person's command at any step of it: what is answered is so.

The wording of the fault: "`hold` can report success for a snapshot that is just going".
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from snapfs.base.blocks import Disk, Generation
from snapfs.base.counting.metrics import Metrics
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.control.command_state import BusyWork
from snapfs.control.control_commands import Command
from snapfs.control.service_parts import ServiceParts
from snapfs.control.snapshot_commands import SnapshotCommands
from snapfs.fuse.virtual.caller import Caller
from snapfs.store.log.holds import Holds
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.retention.expiry import Keeping
from snapfs.transfer.seal import upkeep
from snapfs.transfer.seal.snapshotter import Snapshotter
from snapfs.transfer.seal.upkeep import Upkeep
from tests.fakes.histories.history import IDENTITY, History
from tests.fakes.patience import PATIENCE_S

KEEPING = Keeping(0, RetentionSettings(last=1, minimum_good=1))
HELD_LONG = 100 * 365 * 86400 * 10**9


class StepDisk(Disk):
    """Calls `step` before each durable act, and each look at what is held (`clock`)."""

    step: Callable[[], None] = staticmethod(lambda: None)

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        self.step()
        super().pwrite(label, fd, data, offset)

    def fdatasync(self, label: str, fd: int) -> None:
        self.step()
        super().fdatasync(label, fd)

    def unlink(self, label: str, path: str) -> None:
        self.step()
        super().unlink(label, path)


class World:
    """A mounted volume's parts that decide what stays. `act` is given at step `at` of the upkeep."""

    def __init__(self, store_dir: Path, act: str, at: int) -> None:
        self.disk, self.act, self.at, self.steps = StepDisk(), act, at, 0
        self.repository = Repository.open(str(store_dir), IDENTITY, self.disk)
        tree: Any = None
        self.snapshotter = Snapshotter(
            tree, self.repository, cast(Any, None), trio.lowlevel.checkpoint, Metrics(), parent=None,
            generation=Generation(1),
        )  # fmt: skip
        self.gone: list[int] = []
        self.upkeep = Upkeep(self.repository, self.snapshotter, KEEPING, (self.reasons,), self.dropped)
        parts = SimpleNamespace(
            snapshotter=self.snapshotter, repository=self.repository, reasons=(), dropped=self.dropped
        )
        self.commands = SnapshotCommands(cast(ServiceParts, parts), BusyWork(), lambda verb, caller: True)
        self.result: str | None = None

    def reasons(self) -> dict[Any, str]:
        self.step()  # a decision is just being made
        return {}

    async def dropped(self, record: SnapshotRecord) -> None:
        self.gone.append(record.number)

    def step(self) -> None:
        """In the upkeep's thread."""
        if self.result is None:
            self.steps += 1
            if self.steps == self.at:
                trio.from_thread.run(self._interleave)

    async def _interleave(self) -> None:
        """Give the command, and go on when it is answered or waits for its turn."""
        self.result = "waits"
        self.nursery.start_soon(self._command)
        with trio.fail_after(PATIENCE_S):
            while self.result == "waits" and not self.snapshotter._turn.statistics().tasks_waiting:
                await trio.sleep(0.001)

    async def _command(self) -> None:
        verb, reference = self.act.split()
        try:
            await self.commands.verbs()[verb].work(Command(verb, [reference]))
            self.result = "done"
        except FileNotFoundError:
            self.result = "gone"

    async def run(self) -> None:
        async with trio.open_nursery() as self.nursery:
            self.disk.step = self.step
            await self.upkeep._expire()


@pytest.mark.parametrize("act", ["hold 2", "drop 2"])
def test_a_command_at_any_step_of_the_upkeep_is_answered_with_what_is_so(
    act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "DROPS_A_TURN", 1)
    results = set[str | None]()
    for at in range(1, 60):
        history = History(tmp_path / str(at), seed=5)
        history.grow(4, steps=2)
        history.repository.close()
        world = World(tmp_path / str(at), act, at)
        trio.run(world.run)
        there, held = world.repository.catalog.numbers(), Holds(world.repository.store_dir, Disk()).held()
        drops = [event.fields["snapshot"] for event in world.repository.events() if event.kind == "dropped"]
        world.repository.close()
        results.add(world.result)
        if world.result is None:
            break  # no such step
        assert sorted(drops) == sorted(world.gone) == sorted({1, 2, 3} - set(there))
        if act == "hold 2":
            assert (2 in there, 2 in held) == (world.result == "done",) * 2, at
        else:
            assert there == [4]
            assert world.result in ("done", "gone")
    assert results == {"done", "gone", None}


def test_who_may_not_release_cannot_shorten_a_hold(tmp_path: Path) -> None:
    history = History(tmp_path / "store", seed=5)
    history.grow(3, steps=2)
    repository = history.repository
    snapshotter = Snapshotter(
        cast(Any, None), repository, cast(Any, None), trio.lowlevel.checkpoint, Metrics(), parent=None,
        generation=Generation(1),
    )  # fmt: skip
    parts = SimpleNamespace(snapshotter=snapshotter, repository=repository)
    allowed = {("hold", 34), ("hold", 35), ("release", 35)}
    commands = SnapshotCommands(
        cast(ServiceParts, parts), BusyWork(), lambda verb, caller: caller is not None and (verb, caller.uid) in allowed
    )

    async def hold(uid: int, **options: str) -> int:
        words = {name.rstrip("_"): value for name, value in options.items()}
        command = Command("hold", ["2"], options=words, caller=Caller(uid, uid, 1))
        held: int | None = (await commands.verbs()["hold"].work(command))["held"]["until_ns"]
        return time.time_ns() + HELD_LONG if held is None else held

    async def story() -> None:
        first = await hold(34, for_="1h")
        assert await hold(34, for_="2h", why="longer") > first
        for shorter in ("1h", "1s"):
            with pytest.raises(PermissionError) as refused:
                await hold(34, for_=shorter)
            assert refused.value.errno == errno.EPERM
            assert "release" in str(refused.value)
        assert await hold(34) > first
        with pytest.raises(PermissionError):
            await hold(34, for_="900d")
        assert await hold(35, for_="1s") < first

    trio.run(story)
    history.close()
