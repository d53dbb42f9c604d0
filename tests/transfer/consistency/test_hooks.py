"""Hooks around a cut: `after` follows `before` whatever happens, and nothing of a hook's process group is left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import pytest
import trio

from snapfs.base.blocks import Disk
from snapfs.base.boot import boot_id
from snapfs.base.errors import SnapshotError
from snapfs.base.settings.units import Seconds
from snapfs.base.settings.volume_settings import HookSettings
from snapfs.store.log.snapshot_records import APPLICATION, CRASH
from snapfs.transfer.consistency import hook_process
from snapfs.transfer.consistency.hook_note import NAME, Begun, HookNote, born
from snapfs.transfer.consistency.hooks import DIED, FAILED, MADE, Hooks
from tests.fakes.patience import eventually


def shell(text: str) -> tuple[str, ...]:
    return ("sh", "-c", text)


class Site:
    """Hooks that write their parameters down, in `story`."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder, self.held = folder, list[float]()
        (folder / "live").mkdir(exist_ok=True)
        after = shell(f"echo after $SNAPFS_TRIGGER $SNAPFS_OUTCOME >> {folder}/story")
        before = shell(f"echo before $SNAPFS_TRIGGER >> {folder}/story")
        usual = HookSettings(before=before, after=after, timeout=Seconds(60))
        self.settings = msgspec.structs.replace(usual, **settings)
        self.hooks = self.new()

    def new(self) -> Hooks:
        """As a daemon that has just begun."""
        return Hooks(self.settings, HookNote(str(self.folder / "live"), Disk()), {"SNAPFS_X": "y"}, self.held.append)

    def story(self) -> list[str]:
        return (self.folder / "story").read_text().splitlines()

    @property
    def note(self) -> Path:
        return self.folder / "live" / NAME


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_pid(folder: Path) -> int:
    return int((folder / "left").read_text())


def test_before_and_after_run_in_order_and_the_time_is_measured(tmp_path: Path) -> None:
    site = Site(tmp_path)

    async def story() -> None:
        held = await site.hooks.begin("control")
        assert site.note.exists()
        assert held.consistency == APPLICATION
        await held.end(MADE)
        await held.end(FAILED)

    trio.run(story)
    assert site.story() == ["before control", "after control made"]
    assert len(site.held) == 1
    assert not site.note.exists()
    facts = site.hooks.facts()
    assert facts is not None
    assert facts["failures"] == 0
    assert facts["last"]["consistency"] == APPLICATION


@pytest.mark.parametrize("trigger", ["pressure", "rollback", "unmount"])
def test_a_cut_that_may_not_wait_runs_none(tmp_path: Path, trigger: str) -> None:
    site = Site(tmp_path)

    async def story() -> None:
        held = await site.hooks.begin(trigger)
        await held.end(MADE)
        assert held.held_s == 0
        assert held.consistency == CRASH

    trio.run(story)
    assert not (tmp_path / "story").exists()


def test_a_failing_before_marks_the_snapshot_with_its_last_words(tmp_path: Path) -> None:
    site = Site(tmp_path, before=shell("echo first; echo no such database >&2; exit 3"))

    async def story() -> None:
        held = await site.hooks.begin("control")
        assert (held.consistency, held.error) == (CRASH, "exit code 3: no such database")
        await held.end(MADE)

    trio.run(story)
    assert site.story() == ["after control made"]
    assert site.hooks.failures == 1


def test_a_hook_gets_little_of_the_daemon_and_gives_it_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the daemon's secrets; of a flood of lines the first few are logged, and the last is the reason."""
    monkeypatch.setenv("SECRET", "of the daemon")
    names = tmp_path / "names"
    site = Site(tmp_path, before=shell(f"env > {names}; yes line | head -c 700000; echo the reason; exit 3"))
    lines: list[str] = []
    monkeypatch.setattr(hook_process.log, "info", lambda text, *given: lines.append(text))

    async def story() -> None:
        held = await site.hooks.begin("control")
        assert held.error == "exit code 3: the reason"
        await held.end(MADE)

    trio.run(story)
    found = {line.partition("=")[0] for line in names.read_text().splitlines()} - {"PWD", "SHLVL", "_", "OLDPWD"}
    assert {name for name in found if not name.startswith("SNAPFS_")} <= {"PATH", "HOME", "LANG"}
    assert {"PATH", "SNAPFS_X", "SNAPFS_HOOK", "SNAPFS_TRIGGER"} <= found
    assert len(lines) == hook_process._MOST_LINES


@pytest.mark.parametrize("command", [shell("exit 3"), ("/nonexistent/hook",)])
def test_a_failing_before_fails_the_snapshot_where_that_is_wanted(tmp_path: Path, command: tuple[str, ...]) -> None:
    site = Site(tmp_path, before=command, on_failure="fail")
    with pytest.raises(SnapshotError, match="the hook `before` failed"):
        trio.run(site.hooks.begin, "control")
    assert site.story() == ["after control failed"]
    assert not site.note.exists()


def test_a_hook_that_takes_too_long_is_killed_with_its_group(tmp_path: Path) -> None:
    site = Site(tmp_path, before=shell(f"sleep 600 & echo $! > {tmp_path}/left; wait"), timeout=Seconds(0.5))

    async def story() -> None:
        held = await site.hooks.begin("control")
        assert held.error == "it took more than 0.5 s"
        assert not lives(left_pid(tmp_path))
        await held.end(MADE)

    trio.run(story)


def test_what_before_leaves_running_holds_until_after_has_ended(tmp_path: Path) -> None:
    leaves = shell(f"sleep 600 & echo $! > {tmp_path}/left")
    sees = shell(f"kill -0 $(cat {tmp_path}/left) && echo it lives >> {tmp_path}/story")
    site = Site(tmp_path, before=leaves, after=sees)

    async def story() -> None:
        held = await site.hooks.begin("control")
        assert lives(left_pid(tmp_path))
        await held.end(MADE)

    trio.run(story)
    assert site.story() == ["it lives"]
    assert not lives(left_pid(tmp_path))


def test_after_runs_though_the_request_is_cancelled(tmp_path: Path) -> None:
    site = Site(tmp_path, before=shell(f"touch {tmp_path}/begun; sleep 600"))

    async def story() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.hooks.begin, "control")
            while not (tmp_path / "begun").exists():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(story)
    assert site.story() == ["after control failed"]


def test_the_next_daemon_runs_after_and_ends_what_was_left(tmp_path: Path) -> None:
    leaves = shell(f"sleep 600 & echo $! > {tmp_path}/left")
    site = Site(tmp_path, before=leaves)
    child = os.fork()
    if not child:
        trio.run(site.hooks.begin, "control")
        os.kill(os.getpid(), signal.SIGKILL)  # as a daemon may die between the two
    os.waitpid(child, 0)
    assert lives(left_pid(tmp_path))
    following = site.new()
    trio.run(following.finish_left_over)
    assert site.story() == ["after control died"]
    eventually(lambda: not lives(left_pid(tmp_path)))
    assert not site.note.exists()
    trio.run(site.new().finish_left_over)
    assert site.story() == ["after control died"]


def test_a_process_that_has_the_number_of_a_hook_by_chance_is_left_alone(tmp_path: Path) -> None:
    site = Site(tmp_path)
    child = os.fork()
    if not child:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    try:
        eventually(lambda: os.getpgid(child) == child)
        HookNote(str(tmp_path / "live"), Disk()).begun(Begun(1, boot_id(), "control", child, born(child) + 1))
        trio.run(site.new().finish_left_over)
        assert lives(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert DIED in site.story()[0]
