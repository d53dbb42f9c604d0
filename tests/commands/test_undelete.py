"""`cat`, `restore` of a path and `undelete` on a real mount: all comes back, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOLE = 1 << 20
TIME_NS = 1_500_000_000_123_456_789


def fill(top: Path) -> None:
    """A folder with what a folder can have."""
    (top / "d" / "in").mkdir(parents=True)
    with open(top / "d" / "sparse", "wb") as file:
        file.truncate(HOLE)
        file.seek(HOLE // 2)
        file.write(b"data" * 2000)
    (top / "d" / "in" / "one").write_text("linked")
    os.link(top / "d" / "in" / "one", top / "d" / "two")
    os.link(top / "d" / "in" / "one", top / "outside")
    os.symlink("in/one", top / "d" / "link")
    os.mkfifo(top / "d" / "fifo")
    os.setxattr(top / "d" / "sparse", "user.note", b"\xff\0")
    acl = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + mode.to_bytes(2, "little") + who.to_bytes(4, "little", signed=True)
        for tag, mode, who in ((1, 6, -1), (2, 4, 4711), (4, 4, -1), (16, 4, -1), (32, 0, -1))
    )
    os.setxattr(top / "d" / "sparse", "system.posix_acl_access", acl)
    if os.geteuid() == 0:
        os.chown(top / "d" / "in", 12, 34)
    os.chmod(top / "d" / "in" / "one", 0o604)
    os.chmod(top / "d" / "in", 0o751)
    for path in ("d/sparse", "d/in/one", "d/in", "d"):
        os.utime(top / path, ns=(TIME_NS, TIME_NS + 1))
    os.utime(top / "d" / "link", ns=(TIME_NS, TIME_NS + 2), follow_symlinks=False)


def seen(top: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of what is below."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(top):
        for name in ("", *folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            content: object = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
            if stat.S_ISREG(status.st_mode):
                content = Path(path).read_bytes()
            links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
            found[os.path.relpath(path, top)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, links, xattrs, content,
            )  # fmt: skip
    return found


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.fixture
def deleted(mounted: Any) -> Any:
    """Snapshots 1 with all, 2 with another content of a file, 3 without; `before`: what could be seen in the second."""
    fill(mounted.path)
    mounted.snapshot("all")
    (mounted.path / "d" / "changed").write_text("newer")
    os.utime(mounted.path / "d", ns=(TIME_NS, TIME_NS))
    mounted.snapshot()
    mounted.before = seen(mounted.path / "d")
    subprocess.run(["rm", "-r", mounted.path / "d"], check=True)
    mounted.snapshot()
    return mounted


def test_a_folder_comes_back_with_all_it_had(deleted: Any, snapfs: Any) -> None:
    done = snapfs("undelete", deleted.path / "d")
    assert done.stdout == "d is back as it was in snapshot 2: 2 files, 2 directories\n"
    assert done.stderr == ""
    assert seen(deleted.path / "d") == deleted.before
    assert blocks(deleted.path / "d" / "sparse") < HOLE // 4
    one = [(deleted.path / name).stat().st_ino for name in ("d/in/one", "d/two", "outside")]
    assert len(set(one)) == 1
    done = snapfs("undelete", deleted.path / "d", check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "snapfs: d is there: --overwrite puts it back to the newest snapshot\n"
    assert not list(deleted.path.glob("*.partial"))


def test_a_file_comes_back_with_the_folders_above_it(deleted: Any, snapfs: Any) -> None:
    (deleted.path / "outside").write_text("no longer what it was")
    done = snapfs("undelete", "--json", deleted.path, "d/in/one", "d/sparse")
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == ["d/in/one", "d/sparse"]
    found = seen(deleted.path / "d")
    before = {path: deleted.before[path] for path in found}
    assert set(found) == {".", "in", "in/one", "sparse"}
    for path in ("in", "sparse"):
        assert found[path] == before[path]
    assert found["in/one"] == (*before["in/one"][:4], 1, *before["in/one"][5:])
    assert "not restored: links of 1 (tree)" in done.stderr or "links of 1 (one)" in done.stderr
    assert (deleted.path / "outside").read_text() == "no longer what it was"


def test_a_pattern_brings_back_what_is_gone_and_touches_nothing(deleted: Any, snapfs: Any) -> None:
    (deleted.path / "outside").unlink()
    (deleted.path / "d").mkdir()
    (deleted.path / "d" / "two").write_text("mine")
    snapfs("undelete", deleted.path, "**")
    assert (deleted.path / "d" / "two").read_text() == "mine"
    assert (deleted.path / "d" / "changed").read_text() == "newer"
    assert (deleted.path / "outside").read_text() == "linked"
    assert (deleted.path / "d" / "in" / "one").samefile(deleted.path / "outside") is False
    assert set(seen(deleted.path / "d")) == set(deleted.before)


def test_what_is_there_is_replaced_on_request(deleted: Any, snapfs: Any) -> None:
    (deleted.path / "d").write_text("a file now")
    done = snapfs("undelete", deleted.path / "d" / "sparse", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "is no directory any more" in done.stderr
    snapfs("undelete", "--overwrite", deleted.path / "d")
    assert seen(deleted.path / "d") == deleted.before
    (deleted.path / "d" / "changed").write_text("changed again")
    (deleted.path / "d" / "mine").write_text("mine")
    snapfs("undelete", "--overwrite", deleted.path / "d" / "changed")
    assert (deleted.path / "d" / "changed").read_text() == "newer"
    assert (deleted.path / "d" / "mine").read_text() == "mine"
    assert not list(deleted.path.glob("**/*.partial"))


def test_what_cannot_come_back_is_a_line_and_leaves_nothing(deleted: Any, snapfs: Any) -> None:
    for words, line in (
        (["undelete", deleted.path, "never"], "no snapshot has never"),
        (["undelete", deleted.path, "."], "is there"),
        (["undelete", "--overwrite", deleted.path, "."], "all of a tree is put back by `snapfs rollback`"),
        (["undelete", "file:///x", "a"], "with --from"),
    ):
        done = snapfs(*words, check=False)
        assert done.returncode in (2, 3), words
        assert len(done.stderr.splitlines()) == 1
        assert line in done.stderr
    assert sorted(os.listdir(deleted.path)) == ["outside"]


def test_a_long_name_comes_back(mounted: Any, snapfs: Any) -> None:
    name = "n" * 255
    (mounted.path / name).write_text("long")
    mounted.snapshot()
    (mounted.path / name).unlink()
    snapfs("undelete", mounted.path, name)
    assert (mounted.path / name).read_text() == "long"
    assert os.listdir(mounted.path) == [name]


def test_a_path_of_a_snapshot_is_restored_elsewhere(deleted: Any, snapfs: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = snapfs("restore", "--verify", deleted.path, "2:d", out)
    assert "restored d of snapshot 2" in done.stdout
    assert "not restored: links of 1" in done.stderr  # its third name is outside
    before = {
        path: (*facts[:4], facts[4] - (facts[4] == 3), *facts[5:]) if path in ("two", "in/one") else facts
        for path, facts in deleted.before.items()
    }
    assert seen(out) == before
    snapfs("restore", "--verify", deleted.volume, "all:/d/sparse", tmp_path / "file")
    assert seen(tmp_path / "file") == {}
    assert (tmp_path / "file").read_bytes() == deleted.before["sparse"][-1]
    assert blocks(tmp_path / "file") < HOLE // 4
    snapfs("restore", deleted.path, "all:d/link", tmp_path)
    assert os.readlink(tmp_path / "link") == "in/one"
    (tmp_path / "mine").write_text("mine")
    for reference, dest, line in (
        ("2:d/two", "mine", "mine exists; restore to a new place"),
        ("2:d", "mine", "mine exists and is not an empty directory"),
        ("2:nope", "new", "snapshot 2 has no 'nope'"),
        ("all:d/link", ".", "link exists; restore to a new place"),
        ("9:d", "new", "there is no snapshot '9'"),
    ):
        done = snapfs("restore", deleted.path, reference, tmp_path / dest, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
        assert line in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_is_printed(deleted: Any, snapfs: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snapfs", "cat", deleted.path, "2:d/sparse", "all:d/in/one"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == deleted.before["sparse"][-1] + b"linked"  # type: ignore[operator]
    deleted.snapshot("odd:name")
    done = subprocess.run(
        [sys.executable, "-m", "snapfs", "cat", "odd:name:outside"], cwd=deleted.path, capture_output=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.stdout == b"linked"
    for reference, code, line in (
        ("2:d", 3, "d is a directory"), ("2:d/link", 3, "d/link is a symbolic link, to in/one"),
        ("2:d/fifo", 3, "d/fifo is no regular file"), ("3:d", 3, "snapshot 3 has no 'd'"),
        ("2", 2, "2: write SNAPSHOT:PATH."), ("2:../x", 3, "is no path in a snapshot"),
    ):  # fmt: skip
        failed = snapfs("cat", deleted.path, reference, check=False)
        assert (failed.returncode, failed.stdout, len(failed.stderr.splitlines())) == (code, "", 1)
        assert line in failed.stderr


def test_what_snapshots_hold_is_shown(deleted: Any, snapfs: Any) -> None:
    """Of the file of 8 KiB both snapshots hold the bytes, and neither alone."""
    (deleted.path / "large").write_bytes(os.urandom(50_000))
    deleted.snapshot()
    (deleted.path / "large").unlink()
    deleted.snapshot()
    facts = json.loads(snapfs("du", "--json", deleted.path).stdout)
    alone = {each["number"]: each["alone_bytes"] for each in facts["snapshots"]}
    assert alone[4] > 50_000 > max(alone[number] for number in (1, 2, 3, 5))
    assert sum(alone.values()) < facts["stored_bytes"]
    freed = json.loads(snapfs("du", "--json", deleted.volume, "4", "1-2").stdout)
    assert freed["stored_bytes"] > alone[1] + alone[2] + alone[4]  # what the first two share as well
    by_path = json.loads(snapfs("du", "--json", "--by-path", deleted.path, "all", "2", "4").stdout)["paths"]
    assert [each.get("path") for each in by_path if each["stored_bytes"] > 40_000] == ["large"]
    shown = snapfs("du", "--by-path", "--depth", "2", deleted.path)
    assert "d/sparse" in shown.stdout
    assert "all snapshots hold" in shown.stderr
    patch = snapfs("diff", "--patch", deleted.path, "1", "2").stdout
    assert "+++ b/d/changed\n@@ -0,0 +1 @@\n+newer\n\\ No newline" in patch
    changes = [
        json.loads(line) for line in snapfs("diff", "--stat", "--json", deleted.path, "2", "1").stdout.splitlines()
    ]
    assert [(each["path"], each["lines_added"], each["lines_removed"]) for each in changes[:-1]] == [
        ("d/changed", 0, 1)
    ]
    lines = snapfs("du", deleted.path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NUMBER", "1", "2", "3", "4", "5"]
