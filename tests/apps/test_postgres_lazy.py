"""PostgreSQL goes on, on another mount, from what its last snapshot left: at once, under load, while the rest comes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.apps.test_postgres_app import BINARIES, Cluster, prepare
from tests.fakes.mounts.hydrated import is_whole

pytestmark = [
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed"),
    pytest.mark.skipif(os.getuid() != 0, reason="starts PostgreSQL as its own user, which takes root"),
    pytest.mark.timeout(600),
]


def test_a_cluster_is_taken_over_while_its_bytes_are_still_elsewhere(host: Any, story: Any, tmp_path: Path) -> None:
    cluster = prepare(host)
    bench = cluster.pgbench("-c", "2", "-T", "3")
    with cluster.connect() as connection:
        writer = story.Writer(lambda sequence: connection.execute("INSERT INTO entry VALUES(%s)", [sequence]))
        writer.start()
        time.sleep(2.0)
        host.snapshot("handover")
        writer.stop()
    output, _ = bench.communicate()
    assert bench.returncode == 0, output
    cluster.stop("immediate")
    host.umount()
    record = next(record for record in host.snapshots() if record["name"] == "handover")
    base = tmp_path / "other"
    base.mkdir(mode=0o755)
    other = story.Host(base)
    try:
        go_on(host, other, writer.acknowledged.newest_before(record["cut_time_ns"]))
        story.eventually(lambda: is_whole(other.status()), "all of the state to be here")
        other.umount()
        host.volume.rename(tmp_path / "gone")
        other.mount()
        with Cluster(other.mountpoint / "pg").running():
            pass
    finally:
        other.clear()


def go_on(host: Any, other: Any, acknowledged: int) -> None:
    """Mount on the other host, and be a database there before the bytes are."""
    options = ("-o", "hydration.rate=4MiB", "--from", str(host.volume))
    other.run("mount", *options, str(other.volume), str(other.mountpoint))
    cluster = Cluster(other.mountpoint / "pg")
    (cluster.data / "postmaster.pid").unlink(missing_ok=True)  # of the host that is gone
    with cluster.running():
        assert other.status()["hydration"]["absent_files"] > 0
        bench = cluster.pgbench("-n", "-c", "2", "-T", "3")
        time.sleep(1.0)
        other.snapshot("under-way")
        output, _ = bench.communicate()
        assert bench.returncode == 0, output
        assert cluster.check() >= acknowledged
