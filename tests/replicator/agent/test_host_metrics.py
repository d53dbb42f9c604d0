"""One endpoint for a host: the agent shows the metrics of all mounts beside its own, each series with its volume."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from replicator.agent.mount_reader import MountReader
from snapfs.base.mountinfo import FUSE_TYPE, MountLine
from snapfs.base.volumes.volume_mounts import VolumeMount, volume_mounts
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.replication.agent_process import AgentProcess
from tests.fakes.targets.promtool import lint, needs_promtool

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def second(snapfs: Any, mounted: Any, other: Path, tmp_path: Path) -> Path:
    """Another volume beside `mounted`, mounted at `other`."""
    snapfs("mount", tmp_path / "second", other)
    return tmp_path / "second"


@pytest.fixture
def agent(mounted: Any) -> Iterator[AgentProcess]:
    """Of the first volume, with a target."""
    with open(mounted.volume / "volume.toml", "a", encoding="utf-8") as settings:
        settings.write(f'\n[[replication.target]]\nurl = "file://{mounted.volume.parent}/target"\n')
    process = AgentProcess(mounted.volume)
    process.start()
    eventually(lambda: b"metrics at" in process.log().encode(), "the endpoint")
    yield process
    process.end()


def scraped(agent: AgentProcess) -> str:
    code, body = agent.get("/metrics")
    assert code == 200
    return body.decode()


def series(text: str) -> Series:
    """Each series once, or it is no valid text."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def of_volume(found: Series, name: str, volume: Path) -> list[float]:
    return [value for (own, labels), value in found.items() if own == name and ("volume", str(volume)) in labels]


@needs_promtool
def test_all_mounts_are_in_one_valid_text(agent: AgentProcess, mounted: Any, second: Path) -> None:
    mounted.snapshot()
    text = scraped(agent)
    lint(text)
    described = [line for line in text.splitlines() if line.startswith(("# TYPE ", "# HELP "))]
    assert len(described) == len({line.rpartition(" ")[0] if "TYPE" in line else line for line in described})
    found = series(text)
    assert of_volume(found, "snapfs_mount_up", mounted.volume) == of_volume(found, "snapfs_mount_up", second) == [1]
    assert of_volume(found, "snapfs_snapshots", mounted.volume) == [1]
    assert of_volume(found, "snapfs_snapshots", second) == [0]
    assert of_volume(found, "snapfs_replicator_generation", mounted.volume) == [1]
    assert of_volume(found, "snapfs_store_bytes", mounted.volume)[0] > 0
    assert of_volume(found, "snapfs_damaged_snapshots", second) == [0]
    room = os.statvfs(second)
    assert of_volume(found, "snapfs_host_size_bytes", second) == [room.f_blocks * room.f_frsize]


def test_a_daemon_that_hangs_delays_no_end_of_the_agent(agent: AgentProcess, mounted: Any, second: Path) -> None:
    eventually(
        lambda: len(of_volume(series(scraped(agent)), "snapfs_epoch", mounted.volume)) == 1, "the helper's start"
    )
    pid = mounted.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:

        def only_the_other_answers() -> bool:
            """A busy machine may be late with its answer, too."""
            found = series(scraped(agent))
            assert of_volume(found, "snapfs_mount_up", mounted.volume) == [0]
            assert of_volume(found, "snapfs_epoch", mounted.volume) == []
            assert len(of_volume(found, "snapfs_replicator_generation", mounted.volume)) == 1
            return len(of_volume(found, "snapfs_epoch", second)) == 1

        eventually(only_the_other_answers, "the metrics of the other mount")
        assert agent.end(signal.SIGTERM) == 0
    finally:
        os.kill(pid, signal.SIGCONT)


def test_one_read_of_a_mount_at_a_time(mounted: Any) -> None:
    (first,) = [each for each in MountReader(PATIENCE_S).read() if each.mountpoint == str(mounted.path)]
    assert "snapfs_epoch" in (first.text or "")
    reader = MountReader(0.5)
    os.kill(pid := mounted.status()["pid"], signal.SIGSTOP)
    try:
        for _ in range(3):
            (again,) = [each for each in reader.read() if each.mountpoint == str(mounted.path)]
            assert again.text is None
            assert sum(each.mountpoint == str(mounted.path) for each in reader._stuck) == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    (own,) = [read for mount, read in reader._stuck.items() if mount.mountpoint == str(mounted.path)]
    eventually(lambda: not own.is_alive(), "the answer")
    is_own = str(mounted.path).__eq__
    eventually(
        lambda: all(each.text for each in reader.read() if is_own(each.mountpoint)), "an answer in half a second"
    )


def test_only_mounts_that_may_speak_for_a_volume_count(tmp_path: Path) -> None:
    def line(device: int, source: str, owner: int, root: str = "/", kind: str = FUSE_TYPE) -> MountLine:
        options = frozenset({f"user_id={owner}"})
        return MountLine(1, 0, device, root, f"/m{device}{root}", frozenset(), kind, source, options)

    own = str(tmp_path)
    lines = [
        line(1, own, os.getuid()), line(1, own, os.getuid()), line(1, own, os.getuid(), "/part"),
        line(2, "/not/there", 0), line(3, own, os.getuid() + 1), line(4, own, 0, kind="fuse.sshfs"),
    ]  # fmt: skip
    assert volume_mounts(lines) == [VolumeMount(own, "/m1/"), VolumeMount("/not/there", "/m2/")]
