"""Volumes that are mounted from a real object store over HTTP; it goes away, comes back, and fences old hosts off."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
import tomlkit

from snapfs.store.bucket.bucket_client import open_bucket
from tests.conftest import SNAPFS, Mounted, run_snapfs
from tests.fakes.mounts.hydrated import wait_whole
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.targets.bad_link import BadLink, Badness
from tests.fakes.targets.mirror_process import MirrorProcess
from tests.fakes.targets.s3_server import BUCKET, OPTIONS, s3_server, start_obstore

CHUNK = 65536


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    start_obstore()
    with s3_server() as found:
        for name, head in (("later", b'{"format": 3}'), ("broken", b"{")):
            options = {**OPTIONS, "endpoint": found}
            obstore.put(open_bucket(f"s3://{BUCKET}/{name}", options), "head.json", head, use_multipart=False)
        yield found


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


def configure(volume: Path, url: str, endpoint: str, **more: dict[str, str]) -> None:
    document = tomlkit.parse((volume / "volume.toml").read_text())
    target = tomlkit.table()
    target.update({"name": "bucket", "url": url, "options": {**OPTIONS, "endpoint": endpoint}})
    document.setdefault("replication", tomlkit.table())
    document["replication"]["target"] = tomlkit.aot()  # type: ignore[index]
    document["replication"]["target"].append(target)  # type: ignore[index, union-attr]
    for name, table in more.items():
        document["replication"][name] = table  # type: ignore[index]
    (volume / "volume.toml").write_text(tomlkit.dumps(document))


def push(volume: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "replicator", "push", "--once", str(volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert not check or done.returncode == 0, done.stderr
    return done


def store_options(endpoint: str) -> list[str]:
    options = {**OPTIONS, "endpoint": endpoint}
    return [word for name, value in options.items() for word in ("--store-option", f"{name}={value}")]


def take_over(url: str, endpoint: str, volume: Path, place: Path, *options: str) -> Mounted:
    run_snapfs("mount", *options, "--from", url, *store_options(endpoint), volume, place)
    return Mounted(volume, place)


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
    (mounted.path / "late").write_bytes(b"what no reader is to see")
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
    run_snapfs("umount", mounted.path)
    result = run_snapfs("mount", "--take-over", mounted.volume, mounted.path).stderr
    assert "generation 3 begins" in result
    assert push(lazy.volume, check=False).returncode != 0
    run_snapfs("umount", lazy.path)


def test_in_the_foreground_the_daemon_is_forked_and_reads_all_the_same(
    mounted: Mounted, endpoint: str, url: str, tmp_path: Path, other: Path
) -> None:
    content = os.urandom(3 * CHUNK)
    (mounted.path / "file").write_bytes(content)
    mounted.snapshot()
    configure(mounted.volume, url, endpoint)
    push(mounted.volume)
    options = ["-f", "-o", "hydration.background=false", "--from", url, *store_options(endpoint)]
    command = [*SNAPFS, "mount", *options, str(tmp_path / "new"), str(other)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as serving:
        try:
            eventually(lambda: serving.poll() is not None or os.path.ismount(other), "the mount")
            assert serving.poll() is None
            assert (other / "file").read_bytes() == content
        finally:
            serving.terminate()
        _, errors = serving.communicate(timeout=PATIENCE_S)
    assert b"is taken over; generation 2 begins" in errors
    assert serving.returncode == 0


def what_is_read(path: Path) -> bytes | None:
    """None where that fails: a mount that waits a moment only may find a source slow that has just come back."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def test_a_store_that_goes_away_and_comes_back(
    mounted: Mounted, endpoint: str, url: str, tmp_path: Path, other: Path
) -> None:
    content = os.urandom(30 * CHUNK)
    (mounted.path / "big").write_bytes(content)
    (mounted.path / "small").write_bytes(b"small")
    mounted.snapshot()
    configure(mounted.volume, url, endpoint)
    push(mounted.volume)
    with BadLink(int(endpoint.rpartition(":")[2]), seed=1).running() as link:
        options = ("-o", "hydration.wait=120s,hydration.background=false")
        lazy = take_over(url, f"http://127.0.0.1:{link.port}", tmp_path / "new", other, *options)
        link.badness = Badness(down=True)
        with open(lazy.path / "big", "rb") as file:
            reading = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
        time.sleep(0.5)
        assert reading.poll() is None
        link.badness = Badness()
        assert reading.communicate(timeout=PATIENCE_S)[0] == content
        run_snapfs("umount", lazy.path)
        link.badness = Badness(down=True)
        run_snapfs("mount", "-o", "hydration.wait=100ms,hydration.background=false", lazy.volume, lazy.path)
        with pytest.raises(OSError, match="Input/output"):
            (lazy.path / "small").read_bytes()
        link.badness = Badness()
        eventually(lambda: what_is_read(lazy.path / "small") == b"small", "an answer within that time")
        lazy.command("resume")
        wait_whole(lazy)
        link.badness = Badness(down=True)
        assert (lazy.path / "big").read_bytes() == content


def test_what_is_encrypted_there_is_followed_by_a_standby_and_taken_over(
    mounted: Mounted, endpoint: str, url: str, tmp_path: Path, other: Path
) -> None:
    key = tmp_path / "owners.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    content = os.urandom(5 * CHUNK)
    (mounted.path / "secret").write_bytes(content)
    mounted.snapshot()
    configure(mounted.volume, url, endpoint, encryption={"key_file": str(key)})
    push(mounted.volume)
    run_snapfs("umount", mounted.path)
    options = store_options(endpoint)
    without = run_snapfs("mount", "--from", url, *options, tmp_path / "new", other, check=False)
    assert (without.returncode, "is encrypted: give its key" in without.stderr) == (3, True)
    known = ("--from", url, *options, "--key-file", key)
    run_snapfs("mount", "-o", "hydration.background=false", *known, tmp_path / "lazy", other)
    assert (other / "secret").read_bytes() == content
    run_snapfs("umount", other)
    result = run_snapfs("standby", "--once", *known, tmp_path / "warm")
    assert "snapshot 1 is in place" in result.stderr
    assert "generation 3 begins" in run_snapfs("mount", tmp_path / "warm", other).stderr
    assert (other / "secret").read_bytes() == content


def test_a_mirror_goes_on_where_the_store_is_gone(
    mounted: Mounted, endpoint: str, url: str, mirror: MirrorProcess, tmp_path: Path, other: Path
) -> None:
    content = os.urandom(60 * CHUNK)
    (mounted.path / "big").write_bytes(content)
    mounted.snapshot()
    with BadLink(int(endpoint.rpartition(":")[2]), seed=1).running() as link:
        configure(mounted.volume, url, endpoint)
        document = tomlkit.parse((mounted.volume / "volume.toml").read_text())
        (tmp_path / "token").write_text(mirror.admin)
        at_mirror = {"url": f"http://127.0.0.1:{mirror.port}/pg", "token_file": str(tmp_path / "token")}
        document["replication"]["target"].append(at_mirror)  # type: ignore[index, union-attr]
        (mounted.volume / "volume.toml").write_text(tomlkit.dumps(document))
        push(mounted.volume)
        more = ("-o", "hydration.background=false", "--from", at_mirror["url"], "--token-file", at_mirror["token_file"])
        lazy = take_over(url, f"http://127.0.0.1:{link.port}", tmp_path / "new", other, *more)
        mirror.stop()
        with open(lazy.path / "big", "rb", buffering=0) as file:  # too little for a read ahead
            assert file.read(4096) == content[:4096]
        mirror.start()
        link.badness = Badness(down=True)
        assert (lazy.path / "big").read_bytes() == content
        fetched = {source["name"]: source["objects"] for source in lazy.status()["hydration"]["sources"]}
        assert min(fetched.values()) > 0, fetched


def test_a_repair_brings_back_what_the_store_has(mounted: Mounted, endpoint: str, url: str) -> None:
    (mounted.path / "file").write_bytes(os.urandom(2 * CHUNK))
    mounted.snapshot()
    configure(mounted.volume, url, endpoint)
    push(mounted.volume)
    (mounted.path / "file").write_bytes(b"another content")
    mounted.snapshot()
    run_snapfs("umount", mounted.path)
    segment = min((mounted.volume / "store" / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[1000] ^= 1
    segment.write_bytes(data)
    assert run_snapfs("verify", mounted.volume, check=False).returncode == 5
    result = run_snapfs("verify", "--repair", mounted.volume).stderr
    assert "requesting from bucket" in result
    assert "objects; rewrote" in result


@pytest.mark.parametrize(
    ("place", "changed", "words", "code"),
    [
        ("s3://no-such-bucket/x", {}, "no such bucket", 3),
        (f"s3://{BUCKET}/nothing", {}, "no head.json below this prefix", 3),
        (f"s3://{BUCKET}/nothing", {"endpoint": "http://127.0.0.1:1"}, "cannot be reached", 3),
        (f"s3://{BUCKET}/later", {}, "use a newer snapfs", 6),
        (f"s3://{BUCKET}/broken", {}, "is damaged", 5),
    ],
)
def test_why_it_cannot_be_mounted_is_one_line(
    endpoint: str, tmp_path: Path, other: Path, place: str, changed: dict[str, str], words: str, code: int
) -> None:
    options = store_options(changed.pop("endpoint", endpoint))
    more = [word for name, value in changed.items() for word in ("--store-option", f"{name}={value}")]
    done = run_snapfs("mount", "--from", place, *options, *more, tmp_path / "new", other, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert words in done.stderr
    assert not list(tmp_path.glob("new*"))


def test_nobody_waits_for_obstore_who_does_not_use_it() -> None:
    modules = (
        "sys, snapfs.daemon.daemon, snapfs.commands.mount, snapfs.transfer.lazy.remount, "
        "snapfs.transfer.failover.writer_claims"
    )
    program = f"import {modules}; print('obstore' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout == "False\n"
