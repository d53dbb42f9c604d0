"""Volumes that are mounted from a real object store over HTTP: it goes away, comes back, and fences the old host off."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit

from tests.conftest import Mounted, run_snapfs, take_down
from tests.fakes.bad_link import BadLink, Badness
from tests.fakes.s3_server import BUCKET, OPTIONS, s3_server

CHUNK = 65536


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "other"
    place.mkdir()
    yield place
    take_down(place)


def configure(volume: Path, url: str, endpoint: str, **more: dict[str, str]) -> None:
    document = tomlkit.parse((volume / "volume.toml").read_text())
    target = tomlkit.table()
    target.update({"name": "bucket", "url": url, "options": {**OPTIONS, "endpoint": endpoint}})
    document["replication"]["target"] = tomlkit.aot()  # type: ignore[index]
    document["replication"]["target"].append(target)  # type: ignore[index, union-attr]
    for name, table in more.items():
        document["replication"][name] = table  # type: ignore[index]
    (volume / "volume.toml").write_text(tomlkit.dumps(document))


def push(volume: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "replicator.cli", "push", "--once", str(volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done


def store_options(endpoint: str) -> list[str]:
    options = {**OPTIONS, "endpoint": endpoint}
    return [word for name, value in options.items() for word in ("--store-option", f"{name}={value}")]


def take_over(url: str, endpoint: str, volume: Path, place: Path, *options: str) -> Mounted:
    run_snapfs("mount", *options, "--from", url, *store_options(endpoint), volume, place)
    return Mounted(volume, place)


def wait_whole(mounted: Mounted) -> None:
    deadline = time.monotonic() + 60
    while mounted.status()["hydration"].get("phase") != "done":
        assert time.monotonic() < deadline, mounted.status()["hydration"]
        time.sleep(0.05)


def test_a_database_goes_on_from_a_bucket_and_the_old_host_is_fenced_off(
    mounted: Mounted, endpoint: str, url: str, tmp_path: Path, other: Path
) -> None:
    base = sqlite3.connect(mounted.path / "db")
    base.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
    with base:
        base.executemany("INSERT INTO t VALUES (?, randomblob(1000))", ((k,) for k in range(3000)))
    base.close()
    mounted.snapshot("replicated")
    configure(mounted.volume, url, endpoint)
    push(mounted.volume)
    lazy = take_over(url, endpoint, tmp_path / "new", other)
    base = sqlite3.connect(lazy.path / "db")
    with base:
        base.execute("DELETE FROM t WHERE k % 3 = 0")
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()
    lazy.snapshot("anew")
    assert lazy.status()["generation"] == 2
    (mounted.path / "late").write_bytes(b"what nobody is to see")
    mounted.snapshot("late")
    refused = push(mounted.volume, check=False)
    assert refused.returncode != 0
    assert "generation" in refused.stderr
    wait_whole(lazy)
    configure(lazy.volume, url, endpoint)
    push(lazy.volume)
    run_snapfs("umount", mounted.path)
    run_snapfs("mount", mounted.volume, mounted.path)
    with pytest.raises(OSError, match="Read-only"):
        (mounted.path / "later").write_bytes(b"x")
    run_snapfs("umount", lazy.path)
    third = take_over(url, endpoint, tmp_path / "third", lazy.path)
    assert sorted(os.listdir(third.path)) == ["db"]
    base = sqlite3.connect(third.path / "db")
    assert base.execute("SELECT count(*) FROM t").fetchone() == (2000,)
    base.close()


def test_a_store_that_goes_away_and_comes_back(
    mounted: Mounted, endpoint: str, url: str, tmp_path: Path, other: Path
) -> None:
    content = os.urandom(60 * CHUNK)
    (mounted.path / "big").write_bytes(content)
    mounted.snapshot()
    configure(mounted.volume, url, endpoint)
    push(mounted.volume)
    with BadLink(int(endpoint.rpartition(":")[2]), seed=1).running() as link:
        options = ("-o", "hydration.wait=20s,hydration.rate=1MiB")
        lazy = take_over(url, f"http://127.0.0.1:{link.port}", tmp_path / "new", other, *options)
        link.badness = Badness(down=True)
        with open(lazy.path / "big", "rb") as file:
            reading = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
        time.sleep(0.5)
        assert reading.poll() is None
        link.badness = Badness()
        assert reading.communicate(timeout=60)[0] == content
        run_snapfs("umount", lazy.path)
        run_snapfs("mount", lazy.volume, lazy.path)
        wait_whole(lazy)
        link.badness = Badness(down=True)
        assert (lazy.path / "big").read_bytes() == content
