"""A mount whose place another host has taken: it refuses or stays alone, keeps what no other host has, and reports
it."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from replicator.mirror.tokens import Tokens
from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from tests.conftest import Mounted, run_snapfs, take_down
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.replication.agent_process import AgentProcess
from tests.fakes.targets.mirror_process import MirrorProcess


class Pair:
    """A volume with a mirror and an agent, and the place where another host takes it over."""

    def __init__(self, folder: Path, mirror: MirrorProcess, mount: Callable[..., Mounted]) -> None:
        self.folder, self.mirror, self._mount = folder, mirror, mount
        self.url = f"http://127.0.0.1:{mirror.port}/pg"
        self.agent = AgentProcess(folder / "volume")
        self.other = Mounted(folder / "new", folder / "other")
        self.other.path.mkdir()

    def begin(self, **settings: object) -> Mounted:
        target = {"url": self.url, "name": "mirror", "token_file": str(self.folder / "token")}
        volume = self.folder / "volume"
        Volume.create(str(volume), Disk(), settings={"replication": {"target": [target], **settings}})
        mounted = self._mount()
        self.agent.start()
        return mounted

    def take_over(self) -> None:
        token = str(self.folder / "token")
        run_snapfs("mount", "--from", self.url, "--token-file", token, self.other.volume, self.other.path)

    def end(self) -> None:
        self.agent.end()
        take_down(self.other.path)


@pytest.fixture
def pair(tmp_path: Path, mirror: MirrorProcess, mount: Callable[..., Mounted]) -> Iterator[Pair]:
    made = Pair(tmp_path, mirror, mount)
    yield made
    made.end()


def hashes(folder: Path) -> dict[str, bytes]:
    """All but holds, which a reader takes and lets go of."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "holds")
    return {str(path): path.read_bytes() for path in files}


def fenced(mounted: Mounted) -> dict[str, Any]:
    """Once it is, and has kept its tail."""
    eventually(lambda: (mounted.status()["fenced"] or {}).get("branch_kept", False), "the fencing")
    found: dict[str, Any] = mounted.status()["fenced"]
    return found


def replicate(mounted: Mounted, name: str) -> None:
    mounted.command(f"snapshot {name} wait=replicated timeout={PATIENCE_S:.0f}s")


def assert_refuses(mounted: Mounted) -> None:
    path = mounted.path
    changes: list[Callable[[], object]] = [
        lambda: (path / "new").write_bytes(b""),
        (path / "folder").mkdir,
        (path / "file").unlink,
        lambda: (path / "file").rename(path / "moved"),
        lambda: (path / "file").chmod(0o600),
        lambda: os.truncate(path / "file", 1),
        lambda: os.setxattr(path / "file", "user.x", b"x"),
        lambda: os.symlink("x", path / "link"),
        lambda: os.link(path / "file", path / "link"),
        lambda: os.open(path / "file", os.O_RDWR),
        lambda: os.utime(path / "file"),
        lambda: mounted.command("rollback 1"),
    ]
    for change in changes:
        with pytest.raises(OSError) as refused:
            change()
        assert refused.value.errno == errno.EROFS


def test_a_fenced_mount_refuses_changes_keeps_its_tail_and_stays_fenced(pair: Pair) -> None:
    mounted = pair.begin()
    (mounted.path / "file").write_bytes(b"replicated")
    replicate(mounted, "both")
    with pair.agent.paused():  # or it would be known, and refused, before all of this is done
        pair.take_over()
        before = hashes(pair.mirror.root / "pg")
        held = os.open(mounted.path / "file", os.O_RDWR)
        os.pwrite(held, b"only", 0)
        os.fsync(held)
        reply = mounted.snapshot("alone")
        assert reply["snapshot"]["number"] == 2
        (mounted.path / "not-sealed").write_bytes(b"not in a snapshot of ours")
    facts = fenced(mounted)
    assert (facts["generation"], facts["by_generation"], facts["read_only"]) == (1, 2, True)
    assert (facts["last_replicated"], facts["branch"]) == (1, "tail-generation-1")
    assert_refuses(mounted)
    os.pwrite(held, b"LATE", 0)
    with pytest.raises(OSError) as refused:
        os.fsync(held)
    assert refused.value.errno == errno.EROFS
    eventually(lambda: (mounted.path / "file").read_bytes() == b"onlyicated", "what is kept, shown")
    os.close(held)
    with pytest.raises(OSError) as late:
        mounted.command("snapshot x wait=replicated timeout=10s")
    assert late.value.errno == errno.ECONNREFUSED
    assert b"\nsnapfs_fenced 1.0\n" in (mounted.path / ".snapfs" / "metrics").read_bytes()
    assert "fenced off" in (mounted.volume / "daemon.log").read_text()
    tail = mounted.path / ".snapfs" / "snapshots" / "tail-generation-1"
    assert (tail / "file").read_bytes() == b"onlyicated"
    assert (tail / "not-sealed").read_bytes() == b"not in a snapshot of ours"
    assert "not-sealed" in run_snapfs("diff", mounted.path, "both", "tail-generation-1").stdout
    assert run_snapfs("drop", mounted.path, "alone", check=False).returncode == 4
    mounted.kill()
    pair.agent.end()
    run_snapfs("mount", mounted.volume, mounted.path)
    assert mounted.status()["fenced"]["branch"] == "tail-generation-1"
    assert_refuses(mounted)
    run_snapfs("umount", mounted.path)
    pair.mirror.stop()  # and a mirror that is silent makes it no writer again
    run_snapfs("mount", mounted.volume, mounted.path)
    assert_refuses(mounted)
    assert hashes(pair.mirror.root / "pg") == before
    run_snapfs("restore", mounted.volume, "tail-generation-1", pair.folder / "lost")
    assert (pair.folder / "lost" / "not-sealed").read_bytes() == b"not in a snapshot of ours"


def test_a_fenced_mount_may_go_on_for_itself(pair: Pair) -> None:
    mounted = pair.begin(fenced="local")
    base = sqlite3.connect(mounted.path / "db", isolation_level=None)
    base.execute("CREATE TABLE t (k INTEGER)")
    replicate(mounted, "both")
    pair.take_over()
    before = hashes(pair.mirror.root / "pg")
    base.execute("INSERT INTO t VALUES (1)")
    mounted.snapshot("alone")
    facts = fenced(mounted)
    assert facts["read_only"] is False
    base.execute("INSERT INTO t VALUES (2)")
    base.close()
    assert mounted.snapshot("later")["fenced"]["by_generation"] == 2
    time.sleep(0.5)
    assert hashes(pair.mirror.root / "pg") == before


def test_who_was_fenced_does_not_come_back_by_rolling_back(pair: Pair) -> None:
    """A rollback begins a generation: on a host that is cut off, they could outnumber the new writer's."""
    mounted = pair.begin()
    replicate(mounted, "both")
    pair.agent.end()
    pair.take_over()
    for _ in range(3):
        mounted.command("rollback both force")
    assert mounted.status()["generation"] == 4
    before = hashes(pair.mirror.root / "pg")
    pair.agent.start()
    assert fenced(mounted)["by_generation"] == 2
    assert hashes(pair.mirror.root / "pg") == before


def test_taking_over_again_is_done_on_purpose(pair: Pair) -> None:
    mounted = pair.begin()
    (mounted.path / "file").write_bytes(b"one")
    replicate(mounted, "both")
    with pair.agent.paused():
        pair.take_over()
        (mounted.path / "file").write_bytes(b"two")
        mounted.snapshot("alone")
    fenced(mounted)
    run_snapfs("umount", mounted.path)
    (mounted.volume / "fenced.json").write_text("{damaged")
    refused = run_snapfs("mount", mounted.volume, mounted.path, check=False)
    assert (refused.returncode, "mount --take-over" in refused.stderr) == (5, True)
    done = run_snapfs("mount", "--take-over", mounted.volume, mounted.path)
    assert "generation 3 begins" in done.stderr
    assert mounted.status()["fenced"] is None
    (mounted.path / "file").write_bytes(b"three")
    replicate(mounted, "again")
    listed = run_snapfs("list", pair.mirror.root / "pg").stdout
    assert "again" in listed


def test_a_mount_may_require_that_its_mirrors_let_it_write(pair: Pair) -> None:
    mounted = pair.begin(claim="require")
    replicate(mounted, "both")
    run_snapfs("umount", mounted.path)
    pair.mirror.stop()
    refused = run_snapfs("mount", mounted.volume, mounted.path, check=False)
    assert refused.returncode == 4
    assert "claim = require" in refused.stderr
    pair.mirror.start()
    elsewhere = Tokens(str(pair.mirror.root / "tokens.json")).create({"elsewhere": "push"})[1]
    (pair.folder / "token").write_text(elsewhere)
    refused = run_snapfs("mount", mounted.volume, mounted.path, check=False)
    assert (refused.returncode, "none for this token" in refused.stderr) == (4, True)
    path = mounted.volume / "volume.toml"
    document = tomlkit.parse(path.read_text())
    document.setdefault("replication", tomlkit.table())
    document["replication"]["claim"] = "try"  # type: ignore[index]
    path.write_text(tomlkit.dumps(document))
    run_snapfs("mount", mounted.volume, mounted.path)
    assert mounted.status()["fenced"] is None
