"""Volumes that are mounted from a real mirror process, which dies, comes back, and fences the old host off."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import tomlkit

from tests.conftest import Mounted, run_snapfs
from tests.fakes.mounts.hydrated import wait_whole
from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.mirror_process import MirrorProcess

CHUNK = 65536


def push(volume: Path, mirror: MirrorProcess, check: bool = True) -> subprocess.CompletedProcess[str]:
    token = volume.parent / "token"
    token.write_text(mirror.admin)
    path = volume / "volume.toml"
    document = tomlkit.parse(path.read_text())
    target = tomlkit.table()
    target.update({"name": "mirror", "url": url(mirror), "token_file": str(token)})
    document.setdefault("replication", tomlkit.table())
    document["replication"]["target"] = tomlkit.aot()  # type: ignore[index]
    document["replication"]["target"].append(target)  # type: ignore[index, union-attr]
    path.write_text(tomlkit.dumps(document))
    command = [sys.executable, "-m", "replicator", "push", "--once", str(volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert not check or done.returncode == 0, done.stderr
    return done


def url(mirror: MirrorProcess) -> str:
    return f"http://127.0.0.1:{mirror.port}/pg"


def take_over(mirror: MirrorProcess, volume: Path, place: Path, *options: str) -> Mounted:
    token = str(volume.parent / "token")
    run_snapfs("mount", *options, "--from", url(mirror), "--token-file", token, volume, place)
    return Mounted(volume, place)


def test_a_database_goes_on_from_a_mirror_and_the_old_host_is_fenced_off(
    mounted: Mounted, mirror: MirrorProcess, tmp_path: Path, other: Path
) -> None:
    base = sqlite3.connect(mounted.path / "db")
    base.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
    with base:
        base.executemany("INSERT INTO t VALUES (?, randomblob(1000))", ((k,) for k in range(3000)))
    base.close()
    mounted.snapshot("replicated")
    push(mounted.volume, mirror)
    lazy = take_over(mirror, tmp_path / "new", other)
    base = sqlite3.connect(lazy.path / "db")
    with base:
        base.execute("DELETE FROM t WHERE k % 3 = 0")
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()
    lazy.snapshot("anew")
    assert lazy.status()["generation"] == 2
    (mounted.path / "late").write_bytes(b"what no reader is to see")
    mounted.snapshot("late")
    refused = push(mounted.volume, mirror, check=False)
    assert refused.returncode != 0
    assert "generation" in refused.stderr
    wait_whole(lazy)
    push(lazy.volume, mirror)
    listed = run_snapfs("list", tmp_path / "mirror" / "pg", check=False).stdout
    assert "anew" in listed
    assert "late" not in listed


def test_a_mirror_that_goes_away_and_comes_back(
    mounted: Mounted, mirror: MirrorProcess, tmp_path: Path, other: Path
) -> None:
    content = os.urandom(60 * CHUNK)
    (mounted.path / "big").write_bytes(content)
    mounted.snapshot()
    push(mounted.volume, mirror)
    options = ("-o", "hydration.wait=120s,hydration.rate=16KiB")  # minutes for all of it, without the reader
    lazy = take_over(mirror, tmp_path / "new", other, *options)
    mirror.kill()
    assert lazy.status()["hydration"]["absent_files"] == 1
    with open(lazy.path / "big", "rb") as file:
        reading = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
    time.sleep(0.5)
    assert reading.poll() is None
    mirror.start()
    assert reading.communicate(timeout=PATIENCE_S)[0] == content
    run_snapfs("umount", lazy.path)
    run_snapfs("mount", lazy.volume, lazy.path)
    wait_whole(lazy)
    mirror.stop()
    assert (lazy.path / "big").read_bytes() == content


def test_what_an_older_copy_on_this_host_has_is_not_fetched(
    mounted: Mounted, mirror: MirrorProcess, tmp_path: Path, other: Path
) -> None:
    (mounted.path / "big").write_bytes(os.urandom(60 * CHUNK))
    mounted.snapshot()
    run_snapfs("umount", mounted.path)
    subprocess.run(["cp", "-a", mounted.volume, tmp_path / "older"], check=True)
    run_snapfs("mount", mounted.volume, mounted.path)
    (mounted.path / "new").write_bytes(os.urandom(3 * CHUNK))
    mounted.snapshot()
    push(mounted.volume, mirror)
    lazy = take_over(mirror, tmp_path / "new", other, "--from", str(tmp_path / "older"))
    wait_whole(lazy)
    fetched = {source["name"]: source["bytes"] for source in lazy.status()["hydration"]["sources"]}
    assert fetched[str(tmp_path / "older")] > 59 * CHUNK
    assert fetched[url(mirror)] < 10 * CHUNK
    assert len((lazy.path / "new").read_bytes()) == 3 * CHUNK
