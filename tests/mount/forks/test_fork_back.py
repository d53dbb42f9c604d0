"""A fork that is brought back into its origin by a rollback, on real mounts."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.conftest import Mounted, run_snapfs
from tests.control.test_control_permissions import NOBODY, as_user
from tests.mount.forks.conftest import Fork, contents, fill


def work(top: Path) -> None:
    """What is done in the fork: a file of each kind of change."""
    (top / "c/own").write_bytes(b"the fork's" * 10_000)
    (top / "new").mkdir()
    (top / "new/file").write_bytes(b"below")
    shutil.rmtree(top / "a/b")
    with open(top / "c/file2", "r+b") as file:
        file.write(b"changed")
    os.rename(top / "c/file3", top / "moved")
    os.setxattr(top / "c/file4", "user.note", b"of the fork")


def test_the_origin_becomes_what_the_fork_is(mounted: Mounted, fork: Fork) -> None:
    """Both are mounted and have gone on; what the origin had since is a snapshot, and the fork stays as it is."""
    fill(mounted.path, random.Random(1))
    forked = fork(mounted.path, "fork")
    work(forked.path)
    (mounted.path / "c/of the origin").write_bytes(b"meanwhile")
    (mounted.path / "c/file2").write_bytes(b"changed here, too")
    before, wanted = contents(mounted.path), contents(forked.path)
    facts = json.loads(run_snapfs("rollback", "--json", mounted.path, "--to", forked.path).stdout)
    assert (facts["fork"], facts["target"]) == (str(forked.volume), 2)
    assert contents(mounted.path) == wanted
    assert os.getxattr(mounted.path / "c/file4", "user.note") == b"of the fork"
    assert contents(mounted.path / f".snapfs/snapshots/{facts['kept']}") == before
    assert contents(mounted.path / f".snapfs/snapshots/{facts['now']}") == wanted
    (mounted.path / "new/made since").write_bytes(b"1")
    again = fork(mounted.path, "again")
    run_snapfs("umount", "--discard", forked.path)
    assert run_snapfs("verify", mounted.path).returncode == 0
    mounted.kill()
    run_snapfs("mount", mounted.volume, mounted.path)
    assert contents(mounted.path) == contents(again.path) == wanted | {"new/made since": (0o100644, b"1")}


def test_while_neither_is_mounted_a_snapshot_is_named(mounted: Mounted, fork: Fork) -> None:
    fill(mounted.path, random.Random(2))
    forked = fork(mounted.path, "fork")
    work(forked.path)
    wanted = contents(forked.path)
    run_snapfs("snapshot", forked.path, "done")
    for each in (forked, mounted):
        run_snapfs("umount", each.path)
    refused = run_snapfs("rollback", mounted.volume, "--to", forked.volume, check=False)
    assert (refused.returncode, "name a snapshot of it" in refused.stderr) == (3, True)
    said = run_snapfs("rollback", mounted.volume, "done", "--to", forked.volume).stdout
    assert said == f"rolled back to snapshot 2 of the fork {forked.volume}; what was there is snapshot 2\n"
    run_snapfs("mount", mounted.volume, mounted.path)
    assert contents(mounted.path) == wanted


def test_only_a_fork_is_brought_back_and_only_to_its_origin(mounted: Mounted, fork: Fork) -> None:
    (mounted.path / "file").write_bytes(b"1")
    forked = fork(mounted.path, "fork")
    second = fork(forked.path, "second")
    for place, other in ((forked.path, mounted.path), (mounted.path, second.path)):
        refused = run_snapfs("rollback", place, "--to", other, check=False)
        assert (refused.returncode, "is no fork of" in refused.stderr) == (3, True)
    with pytest.raises(OSError, match="Invalid argument"):
        mounted.command(f"rollback 1 fork={mounted.volume}")
    (second.path / "file").write_bytes(b"22")
    run_snapfs("rollback", forked.path, "--to", second.path)
    run_snapfs("rollback", mounted.path, "--to", forked.path)
    assert (mounted.path / "file").read_bytes() == b"22"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_who_may_roll_back_brings_no_fork(mounted: Mounted, fork: Fork) -> None:
    """He could have put anything into it."""
    (mounted.path / "file").write_bytes(b"1")
    forked = fork(mounted.path, "fork")
    toml = mounted.volume / "volume.toml"
    allow = f'[control]\nallow = {{rollback = ["{NOBODY}"]}}\n'
    toml.write_text(toml.read_text().replace("[control]\n", allow))
    run_snapfs("umount", mounted.path)
    run_snapfs("mount", mounted.volume, mounted.path)
    mounted.path.chmod(0o755)
    assert as_user(NOBODY, mounted.path, f"rollback 1 fork={forked.volume}") == errno.EPERM
    assert as_user(NOBODY, mounted.path, "rollback 1") == 0
