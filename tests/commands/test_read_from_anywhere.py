"""From another host any snapshot of any target is read: listed, shown, compared, restored, mounted, fetched.

Every kind of target, encrypted and not. The host that reads has nothing but a URL, a token and a key.
"""

from __future__ import annotations

import filecmp
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mounted, run_snapfs
from tests.fakes.targets.mirror_process import REPLICATOR
from tests.fakes.targets.target_site import KINDS, Site, generation_at, target_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with target_site(tmp_path_factory.mktemp("anywhere"), make_history) as made:
        yield made


def make_history(folder: Path, sealed: str, _key: list[str]) -> None:
    """Three snapshots: `old` with all, one of which some is gone and some is changed, and a newest one with nothing."""
    volume, place = folder / f"volume{sealed}", folder / f"mnt{sealed}"
    place.mkdir()
    run_snapfs("mount", volume, place)
    try:
        rng = random.Random(7)
        (place / "deep" / "er").mkdir(parents=True)
        for at in range(40):
            (place / "deep" / "er" / f"f{at}").write_bytes(rng.randbytes(3000 * at))
        (place / "big").write_bytes(rng.randbytes(3 << 20))
        (place / "link").symlink_to("deep/er/f3")
        os.truncate(place / "big", 5 << 20)
        run_snapfs("snapshot", place, "old")
        run_snapfs("restore", place, "old", folder / f"expected{sealed}")
        with open(place / "big", "r+b") as file:
            file.seek(70_000)
            file.write(b"changed")
        (place / "deep" / "er" / "f1").unlink()
        run_snapfs("snapshot", place)
        subprocess.run(["rm", "-rf", place / "deep", place / "big", place / "link"], check=True)
        run_snapfs("snapshot", place, "newest")
    finally:
        run_snapfs("umount", place)
    run_snapfs("verify", volume, "old", "2")
    run_snapfs("drill", volume, "--at", "2", "--check", "true", "--no-whole")
    with open(volume / "volume.toml", "a", encoding="utf-8") as file:
        file.write((folder / f"settings{sealed}").read_text())
    done = subprocess.run([*REPLICATOR, "push", "--once", "--new", volume], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def is_same(found: Path, expected: Path) -> bool:
    compared = filecmp.dircmp(found, expected)
    inner = [folder.name for folder in expected.iterdir() if folder.is_dir() and not folder.is_symlink()]
    _, differs, funny = filecmp.cmpfiles(found, expected, compared.common_files, shallow=False)
    flat = not (compared.left_only or compared.right_only or differs or funny)
    return flat and all(is_same(found / name, expected / name) for name in inner)


@pytest.mark.parametrize("kind", KINDS)
def test_any_snapshot_of_any_target_is_listed_shown_compared_and_restored(
    site: Site, kind: str, tmp_path: Path, snapfs: Any
) -> None:
    place = site.places[kind]
    sealed = "-encrypted" if kind.endswith("-encrypted") else ""
    listed = json.loads(snapfs("list", place.url, *place.options, "--json").stdout)
    own = json.loads(snapfs("list", site.folder / f"volume{sealed}", "--json").stdout)
    assert [each["number"] for each in listed] == [1, 2, 3]
    assert [bool(each["gates"]["verified"]) for each in own] == [True, True, False]
    assert [bool(each["gates"]["drilled"]) for each in own] == [False, True, False]
    for each in (*listed, *own):  # of one place: holds, and which targets have it
        del each["held_by"], each["gates"]["replicated"]
    assert listed == own
    shown = json.loads(snapfs("show", place.url, "old", *place.options, "--json").stdout)
    assert (shown["number"], shown["inodes"]) == (1, 45)
    shown = snapfs("diff", place.url, "old", "2", *place.options).stdout.splitlines()
    assert any(line.startswith("M big") for line in shown)
    assert any(line.startswith("- deep/er/f1") for line in shown)
    found = [json.loads(line) for line in snapfs(
        "find", place.url, "big", "deep/er/f[12]", *place.options, "--json").stdout.splitlines()]  # fmt: skip
    assert [(each["path"], [(run["first"], run["last"]) for run in each["snapshots"]]) for each in found] == [
        ("big", [("1", "1")]), ("big", [("2", "2")]), ("deep/er/f1", [("1", "1")]), ("deep/er/f2", [("1", "2")]),
    ]  # fmt: skip
    assert {each["gone"] for each in found} == {True}
    printed = snapfs("cat", place.url, "old:deep/er/f0", "2:deep/er/f0", *place.options)
    assert printed.stdout == ""  # it is empty
    snapfs("restore", "--verify", place.url, "2:deep", tmp_path / "part", *place.options)
    assert not (tmp_path / "part" / "er" / "f1").exists()
    assert (tmp_path / "part/er/f9").read_bytes() == (site.folder / f"expected{sealed}/deep/er/f9").read_bytes()
    restored, scratch = tmp_path / "restored", tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}  # others read at the same time, in /tmp
    snapfs("restore", "--verify", place.url, "old", restored, *place.options, env=environment)
    assert is_same(restored, site.folder / f"expected{sealed}")
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_any_snapshot_is_mounted_read_only_and_nobody_is_fenced_off(
    site: Site, kind: str, tmp_path: Path, snapfs: Any, other: Path
) -> None:
    place, before = site.places[kind], generation_at(site)
    sealed = "-encrypted" if kind.endswith("-encrypted") else ""
    snapfs("mount", "--from", place.url, "--at", "old", *place.options, tmp_path / "view", other)
    for change in (
        lambda: (other / "new").write_text("x"),
        lambda: (other / "deep/er/f3").write_text("x"),
        (other / "deep/er/f3").unlink,
        lambda: os.chmod(other / "deep", 0o700),
        lambda: os.rename(other / "big", other / "bigger"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    status = Mounted(tmp_path / "view", other).status()
    before_reading = status["hydration"]["fetched_bytes"]
    assert before_reading < 1 << 20  # of 5 MB: only what was looked at
    assert is_same(other, site.folder / f"expected{sealed}")
    assert Mounted(tmp_path / "view", other).status()["hydration"]["fetched_bytes"] > 3 << 20
    snapfs("umount", other)
    assert generation_at(site) == before


@pytest.mark.parametrize("kind", KINDS)
def test_any_snapshot_begins_a_writable_volume_of_its_own(
    site: Site, kind: str, tmp_path: Path, snapfs: Any, other: Path
) -> None:
    place, before = site.places[kind], generation_at(site)
    sealed = "-encrypted" if kind.endswith("-encrypted") else ""
    volume = tmp_path / "own"
    printed = snapfs("mount", "--from", place.url, "--at", "1", "--writable", *place.options, volume, other).stderr
    assert "begins a volume of its own; no writer is fenced off" in printed
    (other / "mine").write_text("written")
    (other / "deep/er/f2").write_text("changed")
    snapfs("snapshot", other, "mine")
    ids = {json.loads(snapfs("status", "--json", each).stdout).get(name) for each, name in (
        (other, "volume_id"), (site.folder / f"volume{sealed}", "id"))}  # fmt: skip
    assert len(ids) == 2
    assert (other / "big").read_bytes() == (site.folder / f"expected{sealed}" / "big").read_bytes()
    snapfs("umount", other)
    snapfs("mount", "--existing", volume, other)
    assert (other / "mine").read_text() == "written"
    assert (other / "deep/er/f5").read_bytes() == (site.folder / f"expected{sealed}" / "deep/er/f5").read_bytes()
    snapfs("umount", other)
    assert generation_at(site) == before


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_the_history_is_fetched_from_any_target(site: Site, kind: str, tmp_path: Path, snapfs: Any) -> None:
    place = site.places[kind]
    sealed = "-encrypted" if kind.endswith("-encrypted") else ""
    for new in (3, 0):
        shown = json.loads(snapfs("fetch", place.url, tmp_path / "all", *place.options, "--json").stdout)
        assert (shown["snapshots"], shown["new"], shown["left_out"]) == (3, new, {})
    assert "old" in snapfs("list", tmp_path / "all").stdout
    snapfs("verify", tmp_path / "all")
    snapfs("restore", tmp_path / "all", "old", tmp_path / "restored")
    assert is_same(tmp_path / "restored", site.folder / f"expected{sealed}")
    refused = snapfs("fetch", place.url, site.folder / f"volume{sealed}", *place.options, check=False)
    assert (refused.returncode, "with a live tree" in refused.stderr) == (3, True), refused.stderr


def test_what_is_not_read_is_not_fetched(site: Site, snapfs: Any) -> None:
    """A list and a comparison of 8 MB cost some pages."""
    from snapfs.transfer.sources.fetcher import Fetcher
    from snapfs.transfer.sources.remote_history import distant_repository
    from snapfs.transfer.sources.source_access import Access

    with distant_repository(site.places["mirror"].url, Access(str(site.folder / "token"))) as repository:
        from snapfs.store.tables.diff import diff_paths
        from snapfs.store.tables.snapshot import SnapshotTree

        trees = [SnapshotTree(repository, repository.find(name).root) for name in ("old", "2")]
        assert {change.path for change in diff_paths(*trees)} >= {b"big", b"deep/er/f1"}
        assert repository.lazy is not None
        fetcher = repository.lazy.source
        assert isinstance(fetcher, Fetcher)
        assert sum(state.bytes for state in fetcher.states.values()) < 300_000  # of 5.3 MB


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["list", "{mirror-encrypted}", "--token-file", "{token}"], 3, "is encrypted: give its key, with --key-file"),
        (["list", "{mirror}"], 3, "a token is needed"),
        (["list", "{folder-path}", "--token-file", "{token}"], 2, "--token-file belongs to a URL"),
        (["list", "{folder}", "--token-file", "{token}"], 2, "--token-file belongs to a URL"),
        (["list", "{encrypted-path}"], 3, "give its key, with --key-file"),
        (["list", "http://127.0.0.1:9/pg"], 3, "127.0.0.1:9"),
        (["list", "{mirror}x", "--token-file", "{token}"], 3, "x"),
        (["list", "ftp://host/x"], 3, "a source is a folder"),
        (["show", "{folder}", "99"], 3, "there is no snapshot '99'"),
        (["mount", "--from", "{folder}", "--at", "99", "{tmp}/v", "{tmp}/m"], 3, "no source has a snapshot 99"),
        (["mount", "--at", "1", "{tmp}/v", "{tmp}/m"], 2, "--at belongs to --from"),
        (["mount", "--from", "{folder}", "--writable", "{tmp}/v", "{tmp}/m"], 2, "--writable belongs to --at"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    site: Site, words: list[str], code: int, line: str, snapfs: Any, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    named = {kind: place.url for kind, place in site.places.items()} | {
        "token": str(site.folder / "token"), "tmp": str(tmp_path),
        "folder-path": f"{site.folder}/copy", "encrypted-path": f"{site.folder}/copy-encrypted",
    }  # fmt: skip
    for name, value in named.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    done = snapfs(*words, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert line in done.stderr
    assert not (tmp_path / "v").exists()
    assert not (tmp_path / "v.partial").exists()
