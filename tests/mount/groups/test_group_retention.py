"""What rules, and cuts that are given up, leave of a group's snapshots on real mounts."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.commands.groups.coordinator import Coordinator, Member, StepError
from snapfs.commands.support.locate import locate
from snapfs.store.log.snapshot_records import GroupCut
from tests.fakes.patience import eventually

Snapfs = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("-o", "retention.last=1", "-o", "retention.minimum_good=1")


@pytest.fixture
def mounts(tmp_path: Path, snapfs: Snapfs, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Of the volumes `short`, which keeps one snapshot, and `long`, which keeps all; together the group `g`."""
    monkeypatch.setenv("SNAPFS_GROUPS", str(tmp_path / "groups"))
    found = [tmp_path / "short.mnt", tmp_path / "long.mnt"]
    try:
        for mount, rules in zip(found, (SHORT, ()), strict=True):
            mount.mkdir()
            snapfs("mount", *rules, mount.with_suffix(""), mount)
        snapfs("group", "create", "g", *found)
        yield found
    finally:
        for mount in found:
            if mount.is_mount():
                snapfs("umount", mount)


def numbers(mount: Path, snapfs: Snapfs) -> list[int]:
    return [each["number"] for each in json.loads(snapfs("list", "--json", mount).stdout)]


def snapshot(mount: Path, snapfs: Snapfs) -> None:
    (mount / "file").write_text("changed")
    snapfs("snapshot", mount)


class BreaksOff(Coordinator):
    """Gives its first attempt up when the first member has sealed."""

    broken_off: list[GroupCut]

    def _seal(self, group: GroupCut) -> dict[str, dict[str, Any]]:
        if not self.broken_off:
            self.broken_off.append(group)
            self._members[0].send(f"group seal {group.cut}")
            raise StepError("long: seal: for a test", errno.ECANCELED)
        return super()._seal(group)


def coordinator(mounts: list[Path]) -> BreaksOff:
    places = [locate(str(mount)) for mount in mounts]
    ids = [(Path(place.volume_path).name, place.volume().volume_id) for place in places]
    made = BreaksOff("g", [Member(name, place) for (name, _), place in zip(ids, places, strict=True)], ids)
    made.broken_off = []
    return made


def test_a_member_goes_by_rule_when_no_other_one_stays(mounts: list[Path], snapfs: Snapfs) -> None:
    """And what is left of a cut that was given up goes as well, without having kept its name."""
    short, long = mounts
    with coordinator(mounts) as group:
        made = group.cut("release")
    assert made.attempts == 2
    cuts = json.loads(snapfs("group", "show", "g", "--json").stdout)["cuts"]
    assert [(cut["cut"], cut["name"], cut["whole"]) for cut in cuts] == [(made.group.cut, "release", True)]
    number = made.replies["short"]["snapshot"]["number"]
    eventually(lambda: numbers(short, snapfs) == [number], "the drop of what was given up")

    snapfs("snapshot", "--group", "g")
    cut = json.loads(snapfs("group", "show", "g", "--json").stdout)["cuts"][-1]
    member, other = cut["snapshots"]["short"], cut["snapshots"]["long"]
    for _ in range(3):
        snapshot(short, snapfs)
    newest = numbers(short, snapfs)[-1]
    eventually(lambda: numbers(short, snapfs) == [number, member, newest], "drops by the rule")
    shown = json.loads(snapfs("prune", "-n", "--json", *SHORT, short).stdout)["snapshots"]
    assert "whose member long stays" in next(each["protected"] for each in shown if each["number"] == member)

    snapfs("drop", long, str(other), check=False)
    assert other in numbers(long, snapfs)  # the newest
    snapshot(long, snapfs)
    snapfs("drop", long, str(other))
    snapshot(short, snapfs)
    eventually(lambda: numbers(short, snapfs) == [number, newest + 1], "the drop of a member that is alone")
