"""A target is recognised by its id: what is missing, or another one, is an error until a person declares it new.

The issue's wording: "A file:// target whose disk is not mounted is made anew on the root disk, 'up to date'. A mirror
put back from an older copy is noticed, and its gap filled."
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from replicator.agent.agent_status import Link, StatusFile, TargetStatus
from replicator.agent.feeder import Feeder
from replicator.agent.target_session import TargetRole
from replicator.commands.target_commands import mark_new
from replicator.source.known_targets import TARGETS, Memory, ids_of, read_targets
from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.mirror_target import HttpTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target import Target
from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.base.mirror_access import MirrorAccess
from snapfs.base.settings.replication_settings import ReplicationSettings
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import WRITER_ID, SourceVolume
from tests.fakes.targets.mirror_process import MirrorProcess
from tests.fakes.targets.s3_server import start_obstore

REPLICATOR = [sys.executable, "-m", "replicator"]


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


class Place:
    """A kind of target, its URL, and how it is lost and put back."""

    def __init__(self, url: str, make: Callable[[], Target], lose: Callable[[], None]) -> None:
        self.url, self.make, self.lose = url, make, lose


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=41)
    yield made
    made.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[MirrorProcess]:
    process = MirrorProcess(tmp_path / "mirror")
    process.start()
    yield process
    process.stop()


@pytest.fixture(params=["folder", "mirror", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        folder = tmp_path / "target"
        return Place(f"file://{folder}", lambda: DirectoryTarget(str(folder)), lambda: shutil.rmtree(folder))
    if request.param == "bucket":
        store = MemoryStore()

        def lose() -> None:
            for batch in obstore.list(store):
                obstore.delete(store, [meta["path"] for meta in batch])

        return Place("s3://bucket/pg", lambda: ObjectStoreTarget(store), lose)
    process: MirrorProcess = request.getfixturevalue("served")
    token, url = tmp_path / "token", f"http://127.0.0.1:{process.port}/pg"
    token.write_text(process.admin)
    return Place(url, lambda: HttpTarget(url, MirrorAccess(str(token))), lambda: shutil.rmtree(process.root / "pg"))


class Pushing:
    """What an agent does for one target, in lives that end and begin."""

    def __init__(self, source: SourceVolume, place: Place) -> None:
        self._source, self._place = source, place
        self.status = TargetStatus("t", place.url)

    async def push(self) -> list[int]:
        """Bring the target up to date in a new life; the numbers there."""
        status = TargetStatus("t", self._place.url)
        file = StatusFile(str(self._source.path), self._source.identity.volume_id, [status], Disk())
        memory = Memory(str(self._source.path), Disk(), "t", self._place.url, pushed=status.newest_there > 0)
        target = self._place.make()
        feeder = Feeder(
            self._source.open(), target, status, TargetRole(ReplicationSettings(), WRITER_ID, memory),
            changed=lambda urgent: None,
        )  # fmt: skip
        try:
            await feeder.run_once()
            return [record.number for record in (await target.open(self._source.identity)).snapshots]
        finally:
            file.write(urgent=True)
            self.status = status
            await feeder.close()

    def mark_new(self) -> None:
        Memory(str(self._source.path), Disk(), "t", self._place.url).mark_new()


def test_a_missing_target_is_an_error_until_a_person_marks_it_as_new(source: SourceVolume, place: Place) -> None:
    async def story() -> None:
        pushing = Pushing(source, place)
        source.grow(2)
        if place.url.startswith("file://"):
            with pytest.raises(UserError, match="is its disk mounted"):
                await pushing.push()
            assert not Path(place.url.removeprefix("file://")).exists()
            assert pushing.status.link is Link.REFUSED
            pushing.mark_new()
        assert await pushing.push() == [1, 2]
        place.lose()
        with pytest.raises(UserError, match="target init"):
            await pushing.push()
        source.grow(1)
        with pytest.raises(UserError, match="target init"):
            await pushing.push()
        pushing.mark_new()
        assert await pushing.push() == [1, 2, 3]
        assert pushing.status.last_error is None

    run(story())


def test_another_target_in_its_place_is_refused_if_it_is_empty(source: SourceVolume, place: Place) -> None:
    """Such as what another volume's agent, or a script, has made where the disk is not mounted."""

    async def story() -> None:
        pushing = Pushing(source, place)
        pushing.mark_new()
        source.grow(2)
        await pushing.push()
        place.lose()
        stranger = place.make()
        await stranger.open(source.identity)
        await stranger.close()
        with pytest.raises(UserError, match="another target is there, and it is empty"):
            await pushing.push()
        pushing.mark_new()
        assert await pushing.push() == [1, 2]

    run(story())


def test_a_target_of_before_there_were_ids_is_adopted_with_its_history(source: SourceVolume, place: Place) -> None:
    async def story() -> None:
        pushing = Pushing(source, place)
        pushing.mark_new()
        source.grow(2)
        await pushing.push()
        (source.path / "targets.json").unlink()  # as an earlier version left it
        source.grow(1)
        assert await pushing.push() == [1, 2, 3]
        (known,) = TARGETS.read(str(source.path / "targets.json")).targets  # type: ignore[union-attr]
        assert (known.new, len(known.id)) == (False, 32)
        (source.path / "targets.json").unlink()
        place.lose()  # by replication.json, snapshots were pushed there
        with pytest.raises(UserError, match="target init"):
            await pushing.push()

    run(story())


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    there = tmp_path / "target"
    return Place(f"file://{there}", lambda: DirectoryTarget(str(there)), lambda: shutil.rmtree(there))


def put_back(folder: Path, copy: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)


def test_a_target_put_back_from_an_older_copy_is_noticed_and_its_gap_filled(
    source: SourceVolume, folder: Place, tmp_path: Path
) -> None:
    async def story() -> None:
        pushing = Pushing(source, folder)
        pushing.mark_new()
        source.grow(2)
        await pushing.push()
        shutil.copytree(tmp_path / "target", tmp_path / "older")
        source.grow(3)
        await pushing.push()
        assert pushing.status.note is None
        put_back(tmp_path / "target", tmp_path / "older")
        assert await pushing.push() == [1, 2, 3, 4, 5]
        assert "put back from an older copy (its newest snapshot was 5 and is 2)" in (pushing.status.note or "")

    run(story())


def test_a_gap_below_the_newest_is_filled_as_well(source: SourceVolume, folder: Place, tmp_path: Path) -> None:
    """The copy was taken after the newest snapshot had come, and before the history did."""

    async def story() -> None:
        pushing = Pushing(source, folder)
        pushing.mark_new()
        source.grow(4)
        target = DirectoryTarget(str(tmp_path / "target"))
        first = Feeder(
            source.open(), target, TargetStatus("t", folder.url),
            TargetRole(ReplicationSettings(history=False), WRITER_ID),
            changed=lambda urgent: None,
        )  # fmt: skip
        await first.run_once()
        await first.close()
        shutil.copytree(tmp_path / "target", tmp_path / "older")
        assert await pushing.push() == [1, 2, 3, 4]
        assert await pushing.push() == [1, 2, 3, 4]
        put_back(tmp_path / "target", tmp_path / "older")
        assert await pushing.push() == [1, 2, 3, 4]
        assert "its log is shorter than it was" in (pushing.status.note or "")

    run(story())


@pytest.mark.parametrize("more", [0, 1], ids=["and rests", "and goes on"])
def test_a_gap_below_the_newest_that_comes_while_the_agent_runs_is_filled(
    source: SourceVolume, folder: Place, tmp_path: Path, more: int
) -> None:
    """The same, and the agent did not open the target between the history and the older copy."""

    async def story() -> None:
        source.grow(4)
        target = DirectoryTarget(str(tmp_path / "target"))
        only_newest, all_ = (TargetRole(ReplicationSettings(history=each), WRITER_ID) for each in (False, True))
        first = Feeder(source.open(), target, TargetStatus("t", folder.url), only_newest, changed=lambda urgent: None)
        await first.run_once()
        await first.close()
        shutil.copytree(tmp_path / "target", tmp_path / "older")
        target = DirectoryTarget(str(tmp_path / "target"))
        feeder = Feeder(source.open(), target, TargetStatus("t", folder.url), all_, changed=lambda urgent: None)
        await feeder.run_once()
        assert feeder.status.note is None
        put_back(tmp_path / "target", tmp_path / "older")
        source.grow(more)
        await feeder.run_once()
        assert [each.number for each in (await target.open(source.identity)).snapshots] == [*range(1, 5 + more)]
        assert "its log is shorter than it was" in (feeder.status.note or "")
        await feeder.close()

    run(story())


def test_a_copy_that_was_put_in_its_place_is_taken_and_reported(
    source: SourceVolume, folder: Place, tmp_path: Path
) -> None:
    async def story() -> None:
        pushing = Pushing(source, folder)
        pushing.mark_new()
        source.grow(2)
        await pushing.push()
        (tmp_path / "target" / "target.json").unlink()  # it gets another id
        source.grow(1)
        assert await pushing.push() == [1, 2, 3]
        assert "another target than before" in (pushing.status.note or "")

    run(story())


def test_a_disk_that_goes_away_while_it_is_open_is_noticed(source: SourceVolume, tmp_path: Path) -> None:
    """What is open stays open; the folder of the path is another one, or none."""

    async def story() -> None:
        source.grow(1)
        target = DirectoryTarget(str(tmp_path / "disk" / "pg"))
        (tmp_path / "disk").mkdir()
        await target.open(source.identity)
        (tmp_path / "disk").rename(tmp_path / "elsewhere")
        (tmp_path / "disk").mkdir()
        with pytest.raises(Exception, match="no volume's history"):
            await target.open(source.identity, make=False)
        assert not (tmp_path / "disk" / "pg").exists()
        await target.close()

    run(story())


def test_targets_that_are_opened_at_the_same_time_are_all_remembered(tmp_path: Path) -> None:
    """A volume's feeders are threads, and `target init` is another process: none loses what another has noted."""
    writing = threading.Barrier(2)

    class Together(Disk):
        """Waits with each change of the file for another one, if one may come at the same time."""

        def replace_file(self, *arguments: Any, **options: Any) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                writing.wait(0.5)
            super().replace_file(*arguments, **options)

    memories = [Memory(str(tmp_path), Together(), name, f"file:///{name}") for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda memory: memory.judge("0" * 32, is_empty=False), memories))
    assert sorted(ids_of(str(tmp_path))) == [("a", "file:///a"), ("b", "file:///b")]
    writing.reset()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(memories[0].judge, "1" * 32, is_empty=False)
        pool.submit(memories[1].mark_new)
    found = {each.name: each for each in read_targets(str(tmp_path / "targets.json"))}
    assert (found["a"].id, found["b"].new) == ("1" * 32, True)


def test_the_command_marks_it_and_names_what_is_wrong(tmp_path: Path) -> None:
    settings = {"target": [{"name": "disk", "url": f"file://{tmp_path}/target"}]}
    source = SourceVolume(tmp_path / "volume", 7, settings)
    source.grow(1)

    def replicator(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*REPLICATOR, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)

    refused = replicator("push", "--once", str(source.path))
    assert refused.returncode == 3
    assert f"snapfs-replicator target init {source.path} disk" in refused.stderr
    assert len(refused.stderr.splitlines()) <= 3, refused.stderr
    assert replicator("target", "init", str(source.path), "tape").returncode == 3
    assert replicator("target", "init", str(source.path)).stdout.startswith("disk is new")
    assert replicator("push", "--once", str(source.path)).returncode == 0
    assert mark_new(str(source.path), ()) == []
    assert replicator("target", "init", str(source.path), "disk").stdout.startswith("disk was pushed to before")
    assert replicator("push", "--once", str(source.path)).returncode == 0
    shutil.rmtree(tmp_path / "target")
    assert replicator("push", "--once", "--new", str(source.path)).returncode == 3, "it was pushed to before"
    assert not (tmp_path / "target").exists()
    source.close()
