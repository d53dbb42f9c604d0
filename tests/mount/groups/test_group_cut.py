"""Cuts of a group of mounted volumes: one instant over all of them, whatever is written and whichever dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.commands.groups.coordinator import Coordinator, Member
from snapfs.commands.support.locate import locate
from tests.fakes.mounts.group_ledger import GroupLedger, missing
from tests.fakes.patience import eventually

Snapfs = Callable[..., subprocess.CompletedProcess[str]]
MEMBERS = 3
CUTS = 6


class OneByControlFile(Coordinator):
    """All members have a line; the first is not used: its steps go by its control file."""

    def _accept(self, listener: socket.socket) -> None:
        super()._accept(listener)
        lines = [member.line for member in self._members]
        assert all(lines)
        assert lines[0] is not None
        lines[0].close()
        self._members[0].line = None


class Site:
    """Three mounted volumes and their group `g`."""

    def __init__(self, folder: Path, snapfs: Snapfs) -> None:
        self.folder, self.snapfs = folder, snapfs
        self.volumes = [folder / f"v{number}" for number in range(MEMBERS)]
        self.mounts = [folder / f"m{number}" for number in range(MEMBERS)]
        for volume, mount in zip(self.volumes, self.mounts, strict=True):
            mount.mkdir()
            snapfs("mount", volume, mount)
        snapfs("group", "create", "g", *self.volumes)

    def coordinator(self, kind: type[Coordinator] = Coordinator) -> Coordinator:
        places = [locate(str(mount)) for mount in self.mounts]
        ids = [(Path(place.volume_path).name, place.volume().volume_id) for place in places]
        return kind("g", [Member(name, place) for (name, _), place in zip(ids, places, strict=True)], ids)

    def cuts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.snapfs("group", "show", "g", "--json").stdout)["cuts"]
        return found

    def views(self, cut: dict[str, Any]) -> list[Path]:
        numbers = [cut["snapshots"][volume.name] for volume in self.volumes]
        return [mount / ".snapfs/snapshots" / str(n) for mount, n in zip(self.mounts, numbers, strict=True)]

    def status(self, member: int) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.mounts[member] / ".snapfs/status").read_text())
        return facts


@pytest.fixture
def site(tmp_path: Path, snapfs: Snapfs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("SNAPFS_GROUPS", str(tmp_path / "groups"))
    made = None
    try:
        made = Site(tmp_path, snapfs)
        yield made
    finally:
        for number in range(MEMBERS):
            if os.path.ismount(tmp_path / f"m{number}"):
                snapfs("umount", tmp_path / f"m{number}")


@contextlib.contextmanager
def ledgers(site: Site, **synced: bool) -> Iterator[list[GroupLedger]]:
    made = [GroupLedger(site.mounts, name, synced=name in synced, busy=name == "plain") for name in ("plain", *synced)]
    for each in made:
        each.start()
    try:
        yield made
    finally:
        for each in made:
            each.stop()


def wait_for_entries(running: list[GroupLedger], count: int) -> None:
    eventually(lambda: all(each.written > count for each in running), "entries")


def check_cuts(site: Site, names: list[str]) -> None:
    cuts = site.cuts()
    assert len(cuts) == CUTS
    before = 0
    for cut in cuts:
        assert cut["whole"]
        for name in names:
            newest, lacking = missing(site.views(cut), name)
            assert not lacking, (
                f"{name} in cut {cut['cut']}: entry {newest} is there, and of those before not {lacking}"
            )
            before = max(before, newest)
    assert before > 0


def test_no_cut_has_a_write_without_one_that_returned_before_it(site: Site, snapfs: Snapfs, tmp_path: Path) -> None:
    with ledgers(site, synced=True) as running:
        for number in range(CUTS):
            wait_for_entries(running, 50 * number)
            with site.coordinator(OneByControlFile if number % 2 else Coordinator) as coordinator:
                coordinator.cut(f"cut-{number}")
    assert all(each.error is None for each in running)
    check_cuts(site, ["plain", "synced"])
    assert {cut["promise"] for cut in site.cuts()} == {"written"}
    # What is dropped of one member takes the cut from what is offered.
    first = site.cuts()[0]
    snapfs("drop", site.volumes[1], str(first["snapshots"]["v1"]))
    assert [cut["whole"] for cut in site.cuts()] == [False, *[True] * (CUTS - 1)]
    refused = snapfs("group", "restore", "g", first["cut"], tmp_path / "out", check=False)
    assert refused.returncode == 3
    assert "v1" in refused.stderr
    newest = site.cuts()[-1]
    snapfs("group", "restore", "g", "cut-5", tmp_path / "out")
    assert missing([tmp_path / "out" / volume.name for volume in site.volumes], "plain") == missing(
        site.views(newest), "plain"
    )
