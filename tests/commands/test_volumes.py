"""`snapfs volumes`: which volumes a host has, what counts as wrong, and the page itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from snapfs.commands.overview.attention import problems
from snapfs.commands.overview.known_volumes import KnownVolume, known_volumes
from snapfs.commands.overview.volume_facts import look_at, objectives
from snapfs.commands.support.locate import MountEntry
from tests.conftest import SNAPFS
from tests.fakes.patience import PATIENCE_S

FINE: dict[str, Any] = {
    "error": None, "state": "mounted", "wanted_at": "", "named_by": "mount", "daemon_died": None, "fenced": None,
    "host": {"refuses": None, "since_ns": None, "errors": {"sync": 0}}, "snapshot_failing": None, "overdue_s": 0.0,
    "damaged_snapshots": 0, "stray_damage": False, "mode": "async", "bound": "30s", "objectives": None, "drill": None,
    "targets": [{"name": "m", "state": "current", "why": "", "missing": 0, "lag_s": 0.0}],
    "space": {"store_bytes": 1, "available_bytes": 50, "size_bytes": 100},
}  # fmt: skip
DRILL = {"snapshot": 7, "passed": True, "time_ns": 10**18, "why": None, "recovery_s": 95.0}
BEHIND = {"name": "m", "state": "behind", "why": "on their way", "missing": 2, "lag_s": 45.0}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"error": "gone"}, "gone"),
    ({"state": "dead", "daemon_died": "it died"}, "it died"),
    ({"state": "unmounted"}, ""),
    ({"state": "in use", "held_by": "process 7, served by snapfs-replicator"}, ""),
    ({"state": "in use", "held_by": "process 7, mounted at /m"}, "its mount is not to be seen from here"),
    ({"state": "unmounted", "wanted_at": "/m", "named_by": "/etc/fstab"}, "it is not mounted, and /etc/fstab has"),
    ({"fenced": {"by_holder": "h", "by_generation": 3}}, "FENCED: h is the writer"),
    ({"host": {"refuses": "EROFS", "since_ns": None, "errors": {}}}, "cannot be written to (EROFS)"),
    ({"host": {"refuses": None, "errors": {"sync": 2}}}, "failed at 2 syncs"),
    ({"snapshot_failing": {"since_ns": 0, "message": "full"}, "overdue_s": 9.0}, "no snapshot since"),
    ({"overdue_s": 9.0}, "a snapshot is due for 9.0 s"),
    ({"damaged_snapshots": 2}, "2 snapshots are damaged"),
    ({"stray_damage": True}, "are lost"),
    ({"targets": [BEHIND]}, ""),  # as usual
    ({"targets": [BEHIND | {"lag_s": 61.0}]}, "target m is behind: lacks 2 snapshots"),
    ({"targets": [BEHIND], "mode": "bounded"}, "target m is behind"),
    ({"targets": [BEHIND], "objectives": {"rpo_s": 60.0, "met": True}}, ""),
    ({"targets": [BEHIND], "objectives": {"rpo_s": 30.0, "met": True}}, "target m is behind"),
    ({"targets": [BEHIND | {"state": "stale", "why": "no agent"}]}, "target m: stale (no agent)"),
    ({"objectives": {"rpo_s": 30.0, "met": False, "age_s": 40.0}}, "the objective of at most 30.0 s of loss"),
    ({"objectives": {"rpo_s": 30.0, "met": False, "age_s": None}}, "nothing is replicated yet"),
    ({"drill": DRILL, "objectives": {"rpo_s": None, "rto_s": 100.0}}, ""),
    ({"drill": DRILL, "objectives": {"rpo_s": None, "rto_s": 60.0}}, "the objective of 60.0 s until recovery (rto)"),
    ({"drill": DRILL | {"passed": False, "why": "a test"}}, "snapshot 7 did not recover in the drill of 2001-"),
    ({"space": {"store_bytes": 1, "available_bytes": 4, "size_bytes": 100}}, "its disk is full but for 4 B (4.0%)"),
    ({"space": {}} | {"space": {"store_bytes": 0, "available_bytes": 0, "size_bytes": 0}}, ""),
]


@pytest.mark.parametrize(("facts", "line"), WRONG, ids=[f"{number}" for number in range(len(WRONG))])
def test_what_needs_attention(facts: dict[str, Any], line: str) -> None:
    found = problems(FINE | facts)
    assert len(found) == bool(line)
    assert all(line in each for each in found)


def test_objectives_are_met_by_age_or_because_nothing_is_lacking() -> None:
    settings = {"objectives": {"rpo": "30s", "rto": "off"}}
    assert objectives({}, None, is_all_there=False) is None
    assert objectives({"objectives": {"rpo": "off", "rto": "off"}}, None, is_all_there=False) is None
    for age_s, is_all_there, met in ((10.0, False, True), (40.0, False, False), (40.0, True, True)):
        found = objectives(settings, {"number": 1, "age_s": age_s}, is_all_there=is_all_there)
        assert found is not None
        assert (found["rpo_s"], found["rto_s"], found["met"]) == (30.0, None, met)
    nothing = objectives(settings, None, is_all_there=False)
    assert nothing is not None
    assert (nothing["age_s"], nothing["met"]) == (None, False)


def test_volumes_are_known_from_mounts_units_and_fstab(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    (etc / "snapfs").mkdir(parents=True)
    (etc / "snapfs" / "db.env").write_text('# ours\nVOLUME="/v/db one"\nMOUNTPOINT=/m/db\nOPTIONS=x=y\n')
    (etc / "snapfs" / "agent.env").write_text("VOLUMES=/v/queue '/v/db one' relative\n")
    (etc / "snapfs" / "token").write_text("VOLUME=/no\n")
    (etc / "fstab").write_text(
        "# /v/no /m fuse.snapfs\n/dev/sda1 / ext4 defaults 0 1\n/v/tab\\0401 /m/tab fuse.snapfs nofail 0 0\n"
        "/v/later /m/later fuse.snapfs noauto\nshort\n"
    )
    mounts = [
        MountEntry("/m/mounted", "/v/mounted", 0), MountEntry("/m/db", "/v/db one", 0),
        MountEntry("/m/false", "/v/false", os.getuid() + 1),
    ]  # fmt: skip
    found = {each.path: (each.mountpoint, each.is_mounted, each.is_wanted) for each in known_volumes(mounts, str(etc))}
    assert found == {
        "/v/db one": ("/m/db", True, False),
        "/v/later": ("", False, False),
        "/v/mounted": ("/m/mounted", True, False),
        "/v/queue": ("", False, False),
        "/v/tab 1": ("/m/tab", False, True),
    }
    assert known_volumes([], str(tmp_path / "nothing")) == []


def test_one_page_of_a_host(snapfs: Any, mounted: Any, tmp_path: Path) -> None:
    (mounted.path / "file").write_bytes(b"x" * 100_000)
    mounted.snapshot("one")
    fine = snapfs("volumes", mounted.path)
    assert fine.stdout.splitlines()[0].split() == [
        "VOLUME",
        "STATE",
        "NEWEST",
        "REPLICATED",
        "OBJECTIVES",
        "STORE",
        "FREE",
    ]
    (facts,) = json.loads(snapfs("volumes", "--json", mounted.volume).stdout)["volumes"]
    assert (facts["ok"], facts["problems"], facts["state"], facts["mountpoint"]) == (
        True,
        [],
        "mounted",
        str(mounted.path),
    )
    assert (facts["newest"]["number"], facts["snapshots"], facts["replicated"]) == (1, 1, None)
    assert facts["space"]["store_bytes"] > 0
    everything = json.loads(snapfs("status", "--json", check=False).stdout)["volumes"]
    assert str(mounted.volume) in [each["volume"] for each in everything]

    with open(mounted.volume / "volume.toml", "a", encoding="utf-8") as settings:
        settings.write('\n[[replication.target]]\nurl = "file:///nowhere"\n')
    wrong = snapfs("volumes", mounted.path, check=False)
    assert (wrong.returncode, wrong.stderr) == (8, "")
    assert f"{mounted.volume}: target nowhere: never" in wrong.stdout
    snapfs("umount", mounted.path)
    (unmounted,) = json.loads(snapfs("volumes", "--json", mounted.volume, check=False).stdout)["volumes"]
    assert (unmounted["state"], unmounted["newest"]["number"], unmounted["targets"][0]["state"]) == (
        "unmounted",
        1,
        "never",
    )
    refused = snapfs("volumes", tmp_path, check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1)


def test_a_daemon_that_hangs_takes_only_its_own_facts(mounted: Any, tmp_path: Path) -> None:
    pid = mounted.status()["pid"]
    gone = KnownVolume(str(tmp_path / "gone"), "", False, "/etc/fstab")
    os.kill(pid, signal.SIGSTOP)
    try:
        known = [KnownVolume(str(mounted.volume), str(mounted.path), True, "mount"), gone]
        hung, missing = look_at(known, 10.0)  # what the look at the other one may take
        looks = [subprocess.Popen([*SNAPFS, *words], stdout=-1, stderr=-1, text=True) for words in (
            ("status", str(mounted.path)), ("metrics",), ("metrics", str(mounted.path)), ("doctor", "--json"),
            ("list", str(mounted.volume)),
        )]  # fmt: skip
        said = [(*each.communicate(timeout=PATIENCE_S), each.returncode) for each in looks]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert hung["problems"] == ["neither its daemon nor its disk answers"]
    assert "does not exist" in missing["problems"][0]
    assert (hung["mountpoint"], hung["volume"], hung["ok"]) == (str(mounted.path), str(mounted.volume), False)
    assert [code for *_, code in said[:3]] == [3, 0, 3]
    for _, line, _ in said[:3]:
        assert line.count(f"{mounted.path}: ") == line.count("its daemon does not answer") == 1, line
    assert f"{mounted.path}: its daemon does not answer" in said[3][0]
    assert said[4][2] == 0, "the store alone is read"
