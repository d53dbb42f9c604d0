"""The rules that make snapshots, on a real mount: which decided, and what its status says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import run_snapfs
from tests.fakes.patience import eventually


def cut_by(mounted: Any, rule: str) -> Callable[[], bool]:
    def made() -> bool:
        last = mounted.status()["last_snapshot"]
        return bool(last and last["trigger"] == rule)

    return made


def write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())


def test_so_much_written_is_a_snapshot(mount: Callable[..., Any]) -> None:
    mounted = mount("-o", "snapshots.dirty=1MiB")
    write_durably(mounted.path / "little", bytes(1000))
    assert mounted.status()["policy"]["written_bytes"] >= 1000
    assert mounted.status()["snapshots"] == 0
    write_durably(mounted.path / "much", os.urandom(1 << 20))
    eventually(cut_by(mounted, "dirty"), "a snapshot")
    assert mounted.status()["policy"]["last"] == {"rule": "dirty", "why": "dirty = 1MiB is written"}


def test_a_lull_is_a_snapshot_and_is_waited_for_so_long(mount: Callable[..., Any]) -> None:
    mounted = mount("-o", "snapshots.lull=200ms,snapshots.at_most=1h")
    write_durably(mounted.path / "file", b"x")
    eventually(cut_by(mounted, "lull"), "a snapshot in the lull")


def test_a_change_waits_for_its_cut_no_longer_than_at_most(mount: Callable[..., Any]) -> None:
    mounted = mount("-o", "snapshots.lull=1h,snapshots.at_most=300ms")
    write_durably(mounted.path / "file", b"x")
    eventually(cut_by(mounted, "at_most"), "a snapshot")


def test_the_calendar_is_known_to_the_status(mount: Callable[..., Any]) -> None:
    """That it makes snapshots is in tests/transfer/seal/test_cadence.py, which need not wait for a full minute."""
    mounted = mount("-o", "snapshots.calendar=* * * * *")
    write_durably(mounted.path / "file", b"x")
    eventually(lambda: mounted.status()["policy"]["rule"] == "calendar", "the rule")
    assert 0 < mounted.status()["policy"]["next_s"] <= 60


def test_an_rpo_that_nobody_can_hold_is_said_to_be_at_risk(mount: Callable[..., Any]) -> None:
    mounted = mount("-o", "objectives.rpo=2s,objectives.rto=1m")
    facts = mounted.status()["objectives"]
    assert (facts["rpo_s"], facts["rto_s"], facts["rpo_state"]) == (2.0, 60.0, "at risk")
    assert facts["rpo_why"] == "0 targets are named, and 1 must have a snapshot"
    write_durably(mounted.path / "file", b"x")
    eventually(cut_by(mounted, "objective"), "a snapshot")
    eventually(lambda: mounted.status()["objectives"]["rpo_state"] == "missed", "the objective to be missed")
    shown = run_snapfs("status", mounted.path).stdout
    assert "MISSED" in shown
    assert "0 targets are named" in shown
    metrics = (mounted.path / ".snapfs/metrics").read_text()
    for line in ("snapfs_rpo_seconds 2.0", "snapfs_rpo_met 0.0", "snapfs_rpo_at_risk 1.0", "snapfs_rto_seconds 60.0"):
        assert f"\n{line}\n" in metrics
