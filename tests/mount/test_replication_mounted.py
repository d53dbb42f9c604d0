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

from snapfs.blocks import Disk
from snapfs.volume import Volume

REPLICATOR = [sys.executable, "-m", "replicator.cli"]


class Host:
    """A volume whose targets are folders, and the agent that feeds them."""

    def __init__(self, volume: Path, mount: Callable[..., Any], **settings: object) -> None:
        self.volume = volume
        targets = [{"url": f"file://{volume.parent}/copy", "name": "copy"}]
        Volume.create(str(volume), Disk(), settings={"replication": {"target": targets, **settings}})
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
            assert agent.wait(30) == 0

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


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
    told = mounted.command("snapshot late wait=replicated")
    assert told["replicated"]["targets"] == ["copy"]
    until(lambda: host.replication["targets"][0]["snapshots"] == 3)
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
    until(lambda: bool(host.replication["targets"]) and host.replication["targets"][0]["newest"] == 2)
    (host.mounted.path / "file").write_bytes(b"more")
    assert host.mounted.command("snapshot three timeout=30s")["replicated"]["targets"] == ["copy"]


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
        self.join(60)
        assert not self.is_alive()


def test_an_application_is_held_at_its_bound_and_goes_on_when_replication_does(make_host: Callable[..., Host]) -> None:
    host = make_host(mode="bounded", bound="1s")
    writer = Writer(host.mounted.path / "log")
    writer.start()
    try:
        until(lambda: host.replication["held_fsyncs"] > 0)
        assert writer.acknowledged > 0
        seen = writer.acknowledged
        assert host.replication["exposed_s"] >= 1
        time.sleep(0.5)
        assert writer.acknowledged == seen
        assert b"a line" in (host.mounted.path / "log").read_bytes()  # who reads is not held
        host.start_agent()
        until(lambda: writer.acknowledged > seen + 20)
        host.stop_agent()
        until(lambda: host.replication["held_fsyncs"] > 0)
        host.mounted.command("bound off")
        seen = writer.acknowledged
        until(lambda: writer.acknowledged > seen + 20)
    finally:
        host.mounted.command("bound off")
        writer.end()


def test_a_mount_beyond_its_bound_can_be_unmounted(
    make_host: Callable[..., Host], snapfs: Callable[..., Any]
) -> None:
    host = make_host(mode="bounded", bound="1s")
    (host.mounted.path / "file").write_bytes(b"x" * 3_000_000)
    until(lambda: host.replication["exposed_s"] > 1)
    with open(host.mounted.path / "file", "ab") as file:
        file.write(b"y" * 3_000_000)  # dirty in the kernel: the unmount writes it back
    snapfs("umount", host.mounted.path)
