"""`find` on a real mount: by the paths of files, there and gone, of any names, and on a history with damage."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def found(done: subprocess.CompletedProcess[str]) -> list[tuple[str, list[tuple[str, str]], bool]]:
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [(each["path"], [(run["first"], run["last"]) for run in each["snapshots"]], each["gone"]) for each in lines]


def test_a_path_below_the_mount_is_found_there_or_gone(mounted: Any, snapfs: Any, tmp_path: Path) -> None:
    (mounted.path / "etc").mkdir()
    (mounted.path / "etc" / "a.conf").write_text("one")
    (mounted.path / "etc" / "log").write_bytes(b"x" * 300_000)
    mounted.snapshot()
    (mounted.path / "etc" / "a.conf").write_text("two")
    mounted.snapshot()
    (mounted.path / "etc" / "new").write_text("one")
    (mounted.path / "etc" / "new").rename(mounted.path / "etc" / "a.conf")  # what it was, as another inode
    with open(mounted.path / "etc" / "log", "r+b") as file:
        file.write(b"y")
    mounted.snapshot()
    with open(mounted.path / "etc" / "log", "r+b") as file:
        file.write(b"x")  # stored anew, and no other content
    os.link(mounted.path / "etc" / "a.conf", mounted.path / "b.conf")
    mounted.snapshot()
    subprocess.run(["rm", "-r", mounted.path / "etc"], check=True)
    mounted.snapshot()
    etc = mounted.path / "etc"
    wanted = [
        ("etc/a.conf", [("1", "1"), ("3", "4")], True), ("etc/a.conf", [("2", "2")], True),
        ("etc/log", [("1", "2"), ("4", "4")], True), ("etc/log", [("3", "3")], True),
    ]  # fmt: skip
    assert found(snapfs("find", "--json", etc / "a.conf", etc / "log")) == wanted
    assert found(snapfs("find", "--json", etc / "*")) == wanted
    assert found(snapfs("find", "--json", mounted.volume, "/etc/a.conf", "./etc//log")) == wanted
    assert found(snapfs("find", "--json", "--gone", mounted.path, "*", "**/*.conf")) == [
        ("etc", [("1", "4")], True),
        *wanted[:2],
    ]
    done = snapfs("find", "--json", "--attributes", mounted.path, "etc/a.conf")
    assert len(found(done)) >= 3  # the new one has a time of its own
    (tmp_path / "to").symlink_to(mounted.path)
    assert found(snapfs("find", "--json", tmp_path / "to" / "b.conf")) == [("b.conf", [("4", "5")], False)]
    mounted.command("drop 4")
    assert found(snapfs("find", "--json", etc / "log"))[0][1] == [("1", "2")]


def test_names_of_any_bytes_are_printed_and_found(mounted: Any, snapfs: Any) -> None:
    for name in (b"odd \xff\n\x1b[31m", b"a[1]", b"a1", "\N{RIGHT-TO-LEFT OVERRIDE}x".encode()):
        Path(os.fsdecode(bytes(mounted.path) + b"/" + name)).write_text("x")
    os.symlink(b"to \xfe", bytes(mounted.path) + b"/link")
    mounted.snapshot()
    done = subprocess.run(snapfs_words("find", mounted.path, "**"), capture_output=True, check=True)
    lines = [line.rpartition(b"  ")[2] for line in done.stdout.splitlines()[1:]]
    assert lines == [b"a1", b"a[1]", rb"link -> to \xfe", rb"odd \xff\x0a\x1b[31m", rb"\xe2\x80\xaex"]
    assert found(snapfs("find", "--json", mounted.path, "a[1]")) == [("a1", [("1", "1")], False)]
    assert found(snapfs("find", "--json", "--exact", mounted.path, "a[1]")) == [("a[1]", [("1", "1")], False)]
    done = subprocess.run(
        snapfs_words("find", "--json", bytes(mounted.path) + b"/odd \xff*"), capture_output=True, check=True
    )
    assert json.loads(done.stdout)["path_hex"] == b"odd \xff\n\x1b[31m".hex()


def snapfs_words(*words: Any) -> list[Any]:
    import sys

    return [sys.executable, "-m", "snapfs", *words]


def test_damage_is_a_line_and_the_rest_is_found(snapfs: Any, tmp_path: Path, mountpoint: Path) -> None:
    volume = tmp_path / "volume"
    snapfs("mount", volume, mountpoint)
    for text in ("one", "two", "three"):
        (mountpoint / "a").write_text(text)
        snapfs("snapshot", mountpoint)
    snapfs("umount", mountpoint)
    segment = sorted((volume / "store" / "segments").iterdir())[1]
    data = bytearray(segment.read_bytes())
    data[64 : len(data) // 2] = bytes(len(data) // 2 - 64)
    segment.write_bytes(data)
    done = snapfs("find", "--json", volume, "a", check=False)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert "snapshot 2 cannot be read: object " in done.stderr
    assert [runs for _, runs, _ in found(done)] == [[("1", "1")], [("3", "3")]]
