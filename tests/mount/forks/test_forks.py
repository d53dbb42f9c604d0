"""Forks on real mounts: a state that goes two ways, and the end of one without a trace."""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import Mounted, run_snapfs
from tests.fakes.patience import PATIENCE_S, eventually
from tests.mount.forks.conftest import Fork, contents, fill


def test_two_ways_from_one_state(mounted: Mounted, fork: Fork, tmp_path: Path) -> None:
    """The origin drops the snapshot, is written to, unmounted and removed: the fork has what was there, and its own."""
    fill(mounted.path, random.Random(1))
    before = contents(mounted.path)
    forked = fork(mounted.path, "fork")
    (forked.path / "c/own").write_bytes(b"the fork's")
    shutil.rmtree(forked.path / "a/b")
    with open(forked.path / "c/file2", "r+b") as file:
        file.write(b"changed")
    assert contents(mounted.path) == before
    for number in range(6):  # what the fork shares is merged and collected at the origin
        (mounted.path / "a/b/file1").write_bytes(random.Random(number).randbytes(100_000))
        mounted.snapshot()
    assert mounted.command("drop 1")["dropped"]["number"] == 1
    expected = {path: found for path, found in before.items() if not path.startswith("a/b")}
    expected["c/own"] = (0o100644, b"the fork's")
    expected["c/file2"] = (before["c/file2"][0], b"changed" + before["c/file2"][1][7:])
    run_snapfs("umount", mounted.path)
    shutil.rmtree(mounted.volume)
    assert contents(forked.path) == expected
    own = forked.snapshot()["snapshot"]
    assert own["parent"] == 1
    forked.kill()
    run_snapfs("mount", forked.volume, forked.path)
    assert contents(forked.path) == expected
    run_snapfs("restore", "--verify", forked.path, str(own["number"]), tmp_path / "plain")
    assert filecmp.dircmp(tmp_path / "plain", forked.path).diff_files == []
    assert run_snapfs("verify", forked.path).returncode == 0


def test_a_fork_is_shown_as_one(mounted: Mounted, fork: Fork) -> None:
    (mounted.path / "file").write_bytes(b"1")
    mounted.snapshot("named")
    (mounted.path / "file").write_bytes(b"2")
    forked = fork(mounted.path, "fork", "--at", "named")
    assert (forked.path / "file").read_bytes() == b"1"
    fact = forked.status()["fork"]
    assert (fact["origin"], fact["snapshot"], fact["name"]) == (str(mounted.volume), 1, "named")
    assert mounted.status()["fork"] is None
    assert f"fork of     {mounted.volume}, snapshot 1 (named)" in run_snapfs("status", forked.path).stdout
    assert f"a fork of {mounted.volume}, snapshot 1" in run_snapfs("list", forked.path).stderr
    assert "a fork" not in run_snapfs("list", mounted.path).stderr
    run_snapfs("umount", forked.path)
    shown = json.loads(run_snapfs("volumes", "--json", mounted.path, forked.volume).stdout)["volumes"]
    assert [each["fork"] and each["fork"]["origin"] for each in shown] == [None, str(mounted.volume)]
    assert f"unmounted, fork of {mounted.volume}, snapshot 1 (named)" in run_snapfs("volumes", check=False).stdout


def test_the_newest_snapshot_will_do_where_nothing_changed_since(mounted: Mounted, fork: Fork) -> None:
    (mounted.path / "file").write_bytes(b"1")
    fork(mounted.path, "one")
    fork(mounted.path, "two")
    assert mounted.status()["snapshots"] == 1
    with open(mounted.path / "file", "ab") as file:  # not synced: it is in the kernel when the fork begins
        file.write(b"2")
        file.flush()
        assert (fork(mounted.path, "three").path / "file").read_bytes() == b"12"
    assert mounted.status()["snapshots"] == 2


def test_discarded_without_a_trace(mounted: Mounted, fork: Fork, tmp_path: Path) -> None:
    (mounted.path / "file").write_bytes(b"1")
    forked = fork(mounted.path, "fork")
    (forked.path / "more").write_bytes(b"2")
    again = fork(forked.path, "again")
    assert (again.path / "more").read_bytes() == b"2"
    assert again.volume.parent == forked.volume.parent == Path(f"{mounted.volume}.forks")
    run_snapfs("umount", "--discard", forked.path)
    (again.path / "more").write_bytes(b"3")  # lives on without what it was forked from
    with open(again.path / "more", "rb") as held:
        refused = run_snapfs("umount", "--discard", again.path, check=False)
        assert refused.returncode == 4, refused.stderr
        run_snapfs("umount", "--discard", "--lazy", again.path)
        assert held.name
    for place in (mounted.path, mounted.volume):
        refused = run_snapfs("umount", "--discard", place, check=False)
        assert (refused.returncode, "is no fork" in refused.stderr) == (3, True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mnt", "volume"]
    assert (mounted.path / "file").read_bytes() == b"1"


def test_what_is_unmounted_or_half_gone_is_discarded_too(mounted: Mounted, fork: Fork, tmp_path: Path) -> None:
    forked, other = fork(mounted.path, "fork"), fork(mounted.path, "other", "--volume", tmp_path / "elsewhere")
    run_snapfs("umount", forked.path)
    left = Path(f"{forked.volume}-x.discarded")
    shutil.copytree(forked.volume, left)
    partial = Path(f"{forked.volume}-y.partial")
    partial.mkdir()
    words = run_snapfs("doctor", mounted.path, check=False).stdout
    assert f"{left} is what an interrupted `umount --discard` left" in words
    assert f"{partial} is what an interrupted fork left" in words
    partial.rmdir()
    run_snapfs("umount", "--discard", forked.path)  # where it was mounted
    run_snapfs("umount", other.path)
    os.rename(other.volume, f"{other.volume}.discarded")
    run_snapfs("umount", "--discard", other.volume)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mnt", "other", "volume"]


def test_a_fork_rolls_back(mounted: Mounted, fork: Fork) -> None:
    """Names that are only in the store are loaded for it."""
    fill(mounted.path, random.Random(5))
    before = contents(mounted.path)
    forked = fork(mounted.path, "fork")
    (forked.path / "a/b/file1").write_bytes(b"gone soon")
    (forked.path / "a/own").mkdir()
    run_snapfs("rollback", forked.path, "1")
    assert contents(forked.path) == before
    assert forked.snapshot()["snapshot"]["state"] == "good"


def test_a_failed_fork_leaves_nothing(mounted: Mounted, tmp_path: Path) -> None:
    (mounted.path / "file").write_bytes(b"1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for words in (["nowhere/deep"], ["full"], ["new", "--at", "17"], ["new", "-o", "no.such=1"]):
        refused = run_snapfs("fork", mounted.path, tmp_path / words[0], *words[1:], check=False)
        assert refused.returncode == 3, refused.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["full", "mnt", "volume"]
    run_snapfs("umount", mounted.path)
    refused = run_snapfs("fork", mounted.volume, tmp_path / "new", check=False)
    assert refused.returncode == 3
    assert "is not mounted" in refused.stderr


def test_an_origin_that_is_not_whole_is_forked_when_it_is(
    mounted: Mounted, fork: Fork, tmp_path: Path, other: Path
) -> None:
    """Else the fork would lack what its origin has not fetched, and the origin could not go."""
    fill(mounted.path, random.Random(6))
    before = contents(mounted.path)
    mounted.snapshot()
    run_snapfs("umount", mounted.path)
    run_snapfs("mount", "--from", mounted.volume, "-o", "hydration.background=false", tmp_path / "lazy", other)
    refused = run_snapfs("fork", other, tmp_path / "fork", check=False)
    assert (refused.returncode, "it can be forked when all is here" in refused.stderr) == (4, True), refused.stderr
    assert not (tmp_path / "fork").exists()
    (other / ".snapfs/control").write_text("resume\n")
    eventually(lambda: Mounted(tmp_path / "lazy", other).status()["hydration"]["phase"] == "done")
    forked = fork(other, "fork")
    run_snapfs("umount", other)
    shutil.rmtree(tmp_path / "lazy")
    assert contents(forked.path) == before


def test_killed_daemons(mounted: Mounted, fork: Fork) -> None:
    """A daemon of the origin or of the fork that is killed is followed by another, and both go on."""
    fill(mounted.path, random.Random(7))
    before = contents(mounted.path)
    forked = fork(mounted.path, "fork")
    for one in (mounted, forked):
        pid = one.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda one=one, pid=pid: one.status()["pid"] != pid, PATIENCE_S)  # type: ignore[misc]
    assert contents(forked.path) == contents(mounted.path) == before


@pytest.mark.parametrize("seed", range(int(os.environ.get("SNAPFS_FORK_SEEDS", "1"))))
def test_forks_of_forks_against_plain_copies(mounted: Mounted, fork: Fork, tmp_path: Path, seed: int) -> None:
    """A seeded model: each state has a plain copy beside it, that is changed alike."""
    chance = random.Random(seed)
    plain = tmp_path / "plain"
    plain.mkdir()
    worlds = {"0": (mounted, plain / "0")}
    (plain / "0").mkdir()
    for place in (mounted.path, plain / "0"):
        fill(place, random.Random(seed + 100))
    for step in range(int(os.environ.get("SNAPFS_FORK_STEPS", "24"))):
        name = chance.choice(sorted(worlds))
        one, copy = worlds[name]
        if step % 6 == 5 and len(worlds) < 4:
            new = f"{name}.{step}"
            shutil.copytree(copy, plain / new, symlinks=True)
            worlds[new] = fork(one.path, new), plain / new
        elif step % 12 == 10:
            one.snapshot()
        else:
            change = chance.getrandbits(64)
            for place in (one.path, copy):
                _change(place, random.Random(change))
    for one, copy in worlds.values():
        assert contents(one.path) == contents(copy)
    for name in sorted(worlds)[1:]:
        run_snapfs("umount", "--discard", worlds[name][0].path)
    assert contents(mounted.path) == contents(plain / "0")
    assert not Path(f"{mounted.volume}.forks").exists()


def _change(top: Path, chance: random.Random) -> None:
    """One change, the same for the same seed and tree."""
    files = sorted(each for each in top.rglob("*") if each.is_file() and not each.is_symlink())
    folders = sorted(each for each in top.rglob("*") if each.is_dir() and not each.is_symlink())
    act, folder = chance.randrange(6), chance.choice(folders or [top])
    if act == 0 or not files:
        (folder / f"made{chance.randrange(20)}").write_bytes(chance.randbytes(chance.randrange(150_000)))
    elif act == 1:
        with open(chance.choice(files), "r+b") as file:
            file.seek(chance.randrange(100_000))
            file.write(chance.randbytes(chance.randrange(10_000)))
    elif act == 2:
        chance.choice(files).unlink()
    elif act == 3:
        (folder / f"folder{chance.randrange(5)}").mkdir(exist_ok=True)
    elif act == 4:
        os.truncate(chance.choice(files), chance.randrange(200_000))
    else:
        source = chance.choice(files)
        os.rename(source, folder / f"moved{chance.randrange(9)}")
