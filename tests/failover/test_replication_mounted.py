"""A mount and its replicas: snapshots that wait for them, an application that is held rather than a bound broken."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator.commands.target_commands import mark_new
from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from tests.fakes.patience import PATIENCE_S, eventually

REPLICATOR = [sys.executable, "-m", "replicator"]


class Host:
    """A volume whose targets are folders, and the agent that feeds them."""

    def __init__(
        self, volume: Path, mount: Callable[..., Any], limit: str = "0B", rpo: str = "off", **settings: object
    ) -> None:
        self.volume = volume
        targets = [{"url": f"file://{volume.parent}/copy", "name": "copy", "limit": limit}]
        Volume.create(
            str(volume), Disk(), settings={"replication": {"target": targets, **settings}, "objectives": {"rpo": rpo}}
        )
        mark_new(str(volume), ())
        self.mounted = mount()
        self._agent: subprocess.Popen[bytes] | None = None

    def start_agent(self) -> None:
        command = [*REPLICATOR, "agent", str(self.volume), "--listen", "off"]
        with open(self.volume.parent / "agent.log", "ab") as log:
            self._agent = subprocess.Popen(command, stderr=log)

    def stop_agent(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(PATIENCE_S) == 0

    @property
    def replication(self) -> dict[str, Any]:
        found: dict[str, Any] = self.mounted.status()["replication"]
        return found


@pytest.fixture
def make_host(volume_dir: Path, mount: Callable[..., Any]) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(**settings: object) -> Host:
        made.append(Host(volume_dir, mount, **settings))
        return made[-1]

    yield make
    for host in made:
        host.stop_agent()


def test_a_snapshot_waits_for_its_replicas(make_host: Callable[..., Host]) -> None:
    host = make_host()
    mounted = host.mounted
    (mounted.path / "file").write_bytes(b"x" * 100_000)
    with pytest.raises(OSError) as error:
        mounted.command("snapshot early wait=replicated timeout=200ms")
    assert error.value.errno == errno.ETIMEDOUT
    assert "no agent replicates it" in mounted.status()["last_error"]["message"]
    assert mounted.snapshot("plain")["snapshot"]["number"] == 2
    host.start_agent()
    reply = mounted.command("snapshot late wait=replicated")
    assert reply["replicated"]["targets"] == ["copy"]
    eventually(lambda: host.replication["targets"][0]["snapshots"] == 3)
    assert host.replication["agent"] is True
    for bad in ("wait=maybe", "wait=replicated timeout=5"):
        with pytest.raises(OSError) as error:
            mounted.command(f"snapshot {bad}")
        assert error.value.errno == errno.EINVAL


def test_in_mode_sync_a_snapshot_by_command_is_a_replicated_one(make_host: Callable[..., Host]) -> None:
    host = make_host(mode="sync", wait="200ms")
    with pytest.raises(OSError) as error:
        host.mounted.snapshot("one")
    assert error.value.errno == errno.ETIMEDOUT
    assert host.mounted.command("snapshot two wait=sealed")["snapshot"]["name"] == "two"
    host.start_agent()
    eventually(lambda: bool(host.replication["targets"]) and host.replication["targets"][0]["newest"] == 2)
    (host.mounted.path / "file").write_bytes(b"more")
    assert host.mounted.command(f"snapshot three timeout={PATIENCE_S:.0f}s")["replicated"]["targets"] == ["copy"]


def test_an_rpo_makes_the_snapshots_that_it_needs_and_says_when_nobody_takes_them(
    make_host: Callable[..., Host],
) -> None:
    host = make_host(rpo="4s")
    mounted = host.mounted

    def objectives() -> dict[str, Any]:
        found: dict[str, Any] = mounted.status()["objectives"]
        return found

    assert objectives()["rpo_state"] == "at risk"
    assert "0 of 1 targets answer, and 1 must: copy is never reached" in objectives()["rpo_why"]
    host.start_agent()
    (mounted.path / "file").write_bytes(b"x" * 100_000)
    eventually(lambda: mounted.status()["snapshots"] >= 1, "a snapshot")
    eventually(lambda: objectives()["rpo_state"] == "met" and objectives()["age_s"] == 0, "its replication")
    assert mounted.status()["last_snapshot"]["trigger"] == "objective"
    assert mounted.status()["policy"]["last"]["rule"] == "objective"
    host.stop_agent()
    eventually(lambda: objectives()["rpo_state"] == "at risk", "that nobody replicates is known")
    (mounted.path / "file").write_bytes(b"y" * 100_000)
    eventually(lambda: objectives()["rpo_state"] == "missed", "the rpo to break")
    assert objectives()["age_s"] > 4


class Writer(threading.Thread):
    """An application that appends and fsyncs, and counts what was acknowledged."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="writer")
        self._path, self._end = path, threading.Event()
        self.acknowledged = 0

    def run(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while not self._end.is_set():
                os.write(fd, b"a line\n")
                os.fsync(fd)
                self.acknowledged += 1
                time.sleep(0.01)
        finally:
            os.close(fd)

    def end(self) -> None:
        self._end.set()
        self.join(PATIENCE_S)
        assert not self.is_alive()


def test_an_application_is_held_at_its_bound_and_goes_on_when_replication_does(make_host: Callable[..., Host]) -> None:
    host = make_host(mode="bounded", bound="1s")
    writer = Writer(host.mounted.path / "log")
    writer.start()
    try:
        eventually(lambda: host.replication["held_fsyncs"] > 0)
        eventually(lambda: host.replication["exposed_s"] >= 1)
        seen = writer.acknowledged
        assert not seen, "nothing has shown yet that anything is replicated: what was answered would be here alone"
        time.sleep(0.5)
        assert writer.acknowledged == seen
        assert b"a line" in (host.mounted.path / "log").read_bytes()  # who reads is not held
        host.start_agent()
        eventually(lambda: writer.acknowledged > seen + 20)
        host.stop_agent()
        eventually(lambda: host.replication["held_fsyncs"] > 0)
        host.mounted.command("bound off")
        seen = writer.acknowledged
        eventually(lambda: writer.acknowledged > seen + 20)
    finally:
        host.mounted.command("bound off")
        writer.end()


def test_what_is_acknowledged_over_a_slow_link_is_what_it_can_ship_within_the_bound(
    make_host: Callable[..., Host],
) -> None:
    """Bound 4 s, 150 KiB/s: a writer acknowledged 14 MB in 4 s, which were here alone for 86 s."""
    host = make_host(limit="150KiB", mode="bounded", bound="4s")
    host.start_agent()
    piece, answered, most = 16384, [], 0
    fd = os.open(host.mounted.path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while len(answered) * piece < 1_500_000:
            os.write(fd, os.urandom(piece))
            os.fsync(fd)
            answered.append(time.time_ns())
            there_ns = host.replication["targets"][0]["newest_cut_ns"] or 0
            most = max(most, piece * sum(when > there_ns for when in answered))
    finally:
        host.mounted.command("bound off")
        os.close(fd)
    assert most <= 4 * 150 * 1024, "what was answered and is on this host alone"


def test_a_mount_beyond_its_bound_can_be_unmounted(make_host: Callable[..., Host], snapfs: Callable[..., Any]) -> None:
    host = make_host(mode="bounded", bound="1s")
    (host.mounted.path / "file").write_bytes(b"x" * 3_000_000)
    eventually(lambda: host.replication["exposed_s"] > 1)
    with open(host.mounted.path / "file", "ab") as file:
        file.write(b"y" * 3_000_000)  # dirty in the kernel: the unmount writes it back
    snapfs("umount", host.mounted.path)
