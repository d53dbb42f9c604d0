"""The tar archive of a snapshot, read by GNU tar and by Python: what comes out is what went in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.move_out.pax_members import acl_text
from snapfs.transfer.move_out.tar_stream import TarReport, TarStream
from tests.fakes.trees.move_world import move_in, sealed
from tests.fakes.trees.random_tree import random_tree
from tests.fakes.trees.same_tree import allocated, picture

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices take root")


def archive_of(volume: Path, path: Path) -> TarReport:
    with sealed(volume) as (repository, record), open(path, "wb") as file:
        tree = SnapshotTree(repository, record.root)
        return TarStream(repository, tree, file, threads=2, progress=lambda done, total: None).write()


@needs_root
@pytest.mark.skipif(shutil.which("tar") is None, reason="no GNU tar here")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gnu_tar_takes_all_of_it(tmp_path: Path, seed: int) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    random_tree(os.fsencode(source), seed, 50)
    before = picture(os.fsencode(source), access_times=False)
    move_in(source, tmp_path / "volume")
    report = archive_of(tmp_path / "volume", tmp_path / "all.tar")
    assert report.left_out == 0
    command = [
        "tar",
        "-x",
        "-p",
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
        "-S",
        "--warning=no-timestamp",
    ]
    done = subprocess.run(
        [*command, "-f", tmp_path / "all.tar", "-C", out], capture_output=True, text=True, errors="replace", check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert picture(os.fsencode(out), access_times=False) == before
    assert allocated(os.fsencode(out)) <= allocated(os.fsencode(source)) * 2
    assert report.archive_bytes < allocated(os.fsencode(source)) * 3


def test_python_reads_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    odd = os.fsencode(source) + b"/\xff\xfe name\n" + b"n" * 150
    for name, data in ((odd, b"odd"), (os.fsencode(source / "plain"), b"p" * 200_000)):
        with open(name, "wb") as file:
            file.write(data)
    os.utime(odd, ns=(5, -1_500_000_001))
    os.link(source / "plain", source / "second")
    with open(source / "sparse", "wb") as file:
        for at in (65_536, 5 << 20):
            file.seek(at)
            file.write(b"x" * 65_536)
        file.truncate(9_000_001)
    os.symlink("t" * 200, source / "link")
    os.setxattr(source / "plain", "user.note", b"a=b\n\0")
    move_in(source, tmp_path / "volume")
    archive_of(tmp_path / "volume", tmp_path / "all.tar")
    with tarfile.open(tmp_path / "all.tar") as archive:
        members = {each.name: each for each in archive.getmembers()}
        odd_name = "./" + os.fsdecode(os.path.basename(odd))
        assert set(members) == {".", odd_name, "./plain", "./second", "./sparse", "./link"}
        contents: dict[str, Any] = {
            name: archive.extractfile(each).read()
            for name, each in members.items()
            if each.isreg()  # type: ignore[union-attr]
        }
    assert contents[odd_name] == b"odd"
    assert contents["./plain"] == b"p" * 200_000
    assert contents["./sparse"] == (source / "sparse").read_bytes()
    assert members["./sparse"].issparse()
    assert members["./second"].linkname == "./plain"
    assert members["./link"].linkname == "t" * 200
    assert members[odd_name].pax_headers["mtime"] == "-1.500000001"
    assert members["./plain"].pax_headers["SCHILY.xattr.user.note"] == "a=b\n\0"


def test_a_socket_is_left_out_and_counted(tmp_path: Path) -> None:
    """A volume can have one, made through its mount; an archive cannot."""
    from snapfs.base.blocks import ROOT_INO, Disk
    from snapfs.base.volumes.volume import Volume
    from snapfs.daemon.volume_opening import open_repository, open_tree

    volume = Volume.create(str(tmp_path / "volume"), Disk())
    repository = open_repository(volume, Disk())
    tree = open_tree(volume, Disk(), repository)
    tree.mknod(ROOT_INO, b"socket", 0o140600, 0, 0, 0)
    tree.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0)
    tree.close()
    repository.close()
    report = archive_of(tmp_path / "volume", tmp_path / "all.tar")
    assert (report.left_out, report.examples, report.files) == (1, [b"./socket"], 1)
    with tarfile.open(tmp_path / "all.tar") as archive:
        assert archive.getnames() == [".", "./file"]


def test_an_acl_that_is_none_stays_an_attribute() -> None:
    assert acl_text(b"\2\0\0\0" + b"\1\0\7\0\xff\xff\xff\xff") == "user::rwx\n"
    assert acl_text(b"") is None
    assert acl_text(b"\3\0\0\0") is None
    assert acl_text(b"\2\0\0\0" + b"\x40\0\7\0\xff\xff\xff\xff") is None
