"""The branches that a takeover leaves at a target are read from there like its history, from any host.

Three hosts: A pushes snapshots 1 to 3; B and then C take over from a copy that has only the first, and push what they
made. At each target the history is 1 and C's 2; A's 2 and 3 and B's 2 are branches. No host that wrote takes part.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.log_lines import Event
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import StoreIdentity, to_fields
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.store_folders import LOG
from tests.conftest import run_snapfs
from tests.fakes.targets.mirror_process import REPLICATOR
from tests.fakes.targets.target_site import KINDS, Site, generation_at, target_site

A, B = "before-generation-2", "before-generation-3"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with target_site(tmp_path_factory.mktemp("branches"), three_writers) as made:
        yield made


def three_writers(folder: Path, sealed: str, key: list[str]) -> None:
    place, behind = folder / f"mnt{sealed}", folder / f"behind{sealed}"
    place.mkdir()
    targets = (folder / f"settings{sealed}").read_text()
    only_behind = f'{targets.partition("[[")[0]}\n[[replication.target]]\nname = "behind"\nurl = "file://{behind}"\n'
    writes(folder / f"a{sealed}", place, {"all": "of A", "a": "2" * 9000}, only_behind, targets, [])
    for host in "bc":
        take_over = ["--from", str(behind), "--force", *key]
        writes(folder / f"{host}{sealed}", place, {host: host * 9000}, targets, "", take_over)
        shutil.rmtree(folder / f"{host}{sealed}")
    shutil.rmtree(folder / f"a{sealed}")


def writes(volume: Path, place: Path, files: dict[str, str], first: str, then: str, options: list[str]) -> None:
    """A snapshot for each file, pushed with the settings `first`, and one more with `then`."""
    plain = ""
    run_snapfs("mount", *options, volume, place)
    try:
        for name, content in files.items():
            (place / name).write_text(content)
            run_snapfs("snapshot", place)
            plain = plain or (volume / "volume.toml").read_text()
            if then:
                push(volume, plain.partition("[replication")[0] + first)
                first = then
        if then:
            (place / "a").write_text("3" * 9000)
            run_snapfs("snapshot", place, "last-of-a")
    finally:
        run_snapfs("umount", place)
    push(volume, plain.partition("[replication")[0] + first)


def push(volume: Path, settings: str) -> None:
    (volume / "volume.toml").write_text(settings)
    done = subprocess.run([*REPLICATOR, "push", "--once", "--new", volume], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def listed(place: str, *options: str) -> list[tuple[str, int]]:
    found = json.loads(run_snapfs("list", place, *options, "--json").stdout)
    return [(each.get("branch", ""), each["number"]) for each in found]


EXPECTED = [("", 1), ("", 2), (A, 2), (A, 3), (B, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_put_aside_is_listed_shown_compared_and_restored(
    site: Site, kind: str, tmp_path: Path, snapfs: Any
) -> None:
    place = site.places[kind]
    assert listed(place.url, *place.options) == EXPECTED
    report = [line.split()[0] for line in snapfs("list", place.url, *place.options).stdout.splitlines()]
    assert report == ["NUMBER", "1", "2", f"{A}/2", f"{A}/3", f"{B}/2"]
    shown = json.loads(snapfs("show", place.url, f"{A}/last-of-a", *place.options, "--json").stdout)
    assert (shown["branch"], shown["number"], shown["generation"]) == (A, 3, 1)
    differs = snapfs("diff", place.url, "2", f"{A}/2", *place.options).stdout.splitlines()
    assert [line.split("  (")[0] for line in differs] == ["R c -> a"]
    for at, (ref, name, content) in enumerate([
        (f"{A}/2", "a", "2"), (f"{A}/3", "a", "3"), (A, "a", "3"), (B, "b", "b"), ("2", "c", "c"),
    ]):  # fmt: skip
        snapfs("restore", "--verify", place.url, ref, tmp_path / str(at), *place.options)
        assert {each.name for each in (tmp_path / str(at)).iterdir()} == {"all", name}
        assert (tmp_path / str(at) / name).read_text() == content * 9000
    missing = snapfs("show", place.url, f"{A}/9", *place.options, check=False)
    assert (missing.returncode, len(missing.stderr.splitlines())) == (3, 1)


def test_what_was_put_aside_is_drilled(site: Site, tmp_path: Path, snapfs: Any) -> None:
    """And compared with its own tables: the history has another snapshot of that number."""
    place = site.places[KINDS[0]]
    words = [place.url, *place.options, "--at", f"{A}/2", "--check", "files", "--scratch", tmp_path, "--json"]
    (result,) = json.loads(snapfs("drill", *words).stdout)["results"]
    assert (result["branch"], result["snapshot"], result["passed"]) == (A, 2, True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_put_aside_is_mounted_read_only_and_as_a_new_volume(
    site: Site, kind: str, tmp_path: Path, snapfs: Any, other: Path
) -> None:
    place, before = site.places[kind], generation_at(site)
    mount = ("mount", "--from", place.url, *place.options)
    snapfs(*mount, "--at", f"{A}/2", tmp_path / "view", other)
    assert (other / "a").read_text() == "2" * 9000
    with pytest.raises(OSError, match="Read-only file system"):
        (other / "new").write_text("x")
    snapfs("umount", other)
    snapfs(*mount, "--at", f"{A}/2", tmp_path / "view", other)  # it goes on
    assert (other / "a").read_text() == "2" * 9000
    snapfs("umount", other)
    refused = snapfs(*mount, "--at", "2", tmp_path / "view", other, check=False)
    assert (refused.returncode, f"was begun with snapshot {A}/2" in refused.stderr) == (3, True), refused.stderr
    stderr = snapfs(*mount, "--at", B, "--writable", tmp_path / "own", other).stderr
    assert f"snapshot {B}/2, " in stderr
    assert "begins a volume of its own; no writer is fenced off" in stderr
    (other / "mine").write_text("written")
    snapfs("snapshot", other, "mine")
    assert (other / "b").read_text() == "b" * 9000
    snapfs("umount", other)
    assert generation_at(site) == before
    assert listed(place.url, *place.options) == EXPECTED


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_put_aside_is_fetched_with_the_history(site: Site, kind: str, tmp_path: Path, snapfs: Any) -> None:
    place, folder = site.places[kind], tmp_path / "all"
    for new in (5, 0):
        report = json.loads(snapfs("fetch", place.url, folder, *place.options, "--json").stdout)
        assert (report["snapshots"], report["put_aside"], report["new"], report["left_out"]) == (2, 3, new, {})
    assert listed(str(folder)) == EXPECTED
    snapfs("verify", folder)
    for ref, name, content in ((f"{A}/2", "a", "2"), (A, "a", "3"), (B, "b", "b"), ("2", "c", "c")):
        shutil.rmtree(tmp_path / "restored", ignore_errors=True)
        snapfs("restore", folder, ref, tmp_path / "restored")
        assert (tmp_path / "restored" / name).read_text() == content * 9000


def test_a_takeover_never_goes_on_from_a_branch(site: Site, tmp_path: Path, snapfs: Any, other: Path) -> None:
    """On a copy of the folder, which is not looked at by the other tests."""
    shutil.copytree(site.folder / "copy", tmp_path / "copy")
    snapfs("mount", "--from", f"file://{tmp_path}/copy", "--force", tmp_path / "next", other)
    assert sorted(os.listdir(other)) == ["all", "c"]
    for command in (("drop", tmp_path / "copy", f"{A}/2"), ("rollback", tmp_path / "copy", A)):
        assert "there is no snapshot" in snapfs(*command, check=False).stderr


def test_a_folder_that_was_fetched_before_the_takeover_takes_its_tail_out_of_the_history(
    site: Site, tmp_path: Path, snapfs: Any
) -> None:
    """It had A's 2 and 3 as history: they become the branch, and C's 2 comes."""
    place, old = site.places["folder"], tmp_path / "old"
    snapfs("fetch", place.url, old)
    as_before(old)
    assert listed(str(old)) == [("", 1), ("", 2), ("", 3)]
    report = json.loads(snapfs("fetch", place.url, old, "--json").stdout)
    assert (report["snapshots"], report["put_aside"], report["new"], report["left_out"]) == (2, 3, 2, {})
    assert listed(str(old)) == EXPECTED
    snapfs("verify", old)
    snapfs("restore", old, f"{A}/3", tmp_path / "restored")
    assert (tmp_path / "restored" / "a").read_text() == "3" * 9000
    snapfs("restore", old, "2", tmp_path / "of-c")
    assert (tmp_path / "of-c" / "c").read_text() == "c" * 9000


def as_before(folder: Path) -> None:
    """Write its log anew, as if it had been fetched when A was the only writer."""
    volume = Volume.open(str(folder), Disk())
    repository = Repository.open(volume.store_dir, StoreIdentity(volume.volume_id, volume.seed), Disk(), readonly=True)
    tail = [each for each in repository.catalog.branches() if each.branch == A]
    lines = [Event("snapshot", 1, to_fields(each)) for each in (repository.find("1"), *tail)]
    repository.close()
    SnapshotLog.create(os.path.join(volume.store_dir, LOG), Disk(), volume.volume_id, then=lines)
