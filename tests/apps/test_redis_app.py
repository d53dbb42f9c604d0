"""Redis on the mount, AOF fsynced always and RDB saves over the old dump."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.ports import free_port

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


class Server:
    """A redis-server over a directory, on a port of its own."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory),
             "--appendonly", "yes", "--appendfsync", "always", "--save", "1 50", "--loglevel", "warning"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.client = redis.Redis(port=self.port, socket_timeout=PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self.client.ping():
                    return
            except redis.exceptions.ConnectionError:  # also while it loads
                assert time.monotonic() < deadline, "redis does not start"
                assert self.process.poll() is None, "redis ended"
                time.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        self.client.close()
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        self.process.wait(PATIENCE_S)


def newest_key(directory: Path) -> int:
    """Load the directory into a server of its own and return the counter; every key up to it must be there."""
    server = Server(directory)
    try:
        newest = int(server.client.get("newest") or 0)
        for first in range(1, newest + 1, 500):
            numbers = range(first, min(first + 500, newest + 1))
            values = server.client.mget([f"key:{n}" for n in numbers])
            assert values == [f"value-{n}-".encode() * 20 for n in numbers]
        return newest
    finally:
        server.stop()


def put(client: redis.Redis, sequence: int) -> None:
    with client.pipeline(transaction=True) as pipe:
        pipe.set(f"key:{sequence}", f"value-{sequence}-" * 20)
        pipe.set("newest", sequence)
        pipe.execute()


def test_every_snapshot_loads_with_what_was_acknowledged(host: Any, story: Any, tmp_path: Path) -> None:
    host.mount()
    directory = host.mountpoint / "redis"
    directory.mkdir()
    server = Server(directory)
    writer = story.Writer(lambda sequence: put(server.client, sequence))
    writer.start()
    names = story.snapshots_under_load(host)
    writer.stop(at_least=21)
    assert writer.error is None
    server.stop()
    host.umount()
    records = {record["name"]: record for record in host.snapshots() if record["name"]}
    for name in names:
        restored = tmp_path / name
        host.restore(name, restored)
        manifest = restored / "redis/appendonlydir/appendonly.aof.manifest"
        # --fix cuts off a torn last command, which a crash may leave; anything worse makes it fail.
        done = subprocess.run(
            ["redis-check-aof", "--fix", str(manifest)], input="y\n", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if (dump := restored / "redis/dump.rdb").exists():
            subprocess.run(["redis-check-rdb", str(dump)], check=True, capture_output=True)
        wanted = writer.acknowledged.newest_before(records[name]["cut_time_ns"])
        assert wanted <= newest_key(restored / "redis") <= writer.acknowledged.newest + 1
    assert writer.acknowledged.newest > 20


def test_a_killed_daemon_loses_nothing_acknowledged(host: Any, story: Any) -> None:
    newest = 0
    for life in range(3):
        host.mount()
        directory = host.mountpoint / "redis"
        directory.mkdir(exist_ok=True)
        server = Server(directory)
        first = int(server.client.get("newest") or 0) + 1
        assert first > newest
        writer = story.Writer(lambda sequence, server=server: put(server.client, sequence), first)
        writer.start()
        writer.wait_for(first)
        time.sleep(0.5)
        host.snapshot(f"life-{life}")
        time.sleep(0.2 * life)
        host.kill()
        writer.join(PATIENCE_S)
        assert writer.error is not None
        newest = writer.acknowledged.newest
        server.stop(kill=True)
    host.mount()
    assert newest_key(host.mountpoint / "redis") >= newest > 0
    host.umount()
