"""`No snapshot since` is reported with or without an interval."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.transfer.seal.seal_attempts import Attempts
from snapfs.transfer.seal.snapshot_failures import NAME, Failing


def test_the_first_failure_since_the_newest_snapshot_is_noted_and_outlives_the_process(tmp_path: Path) -> None:
    failing = Failing(str(tmp_path), Disk())
    assert (failing.since, failing.seconds(99)) == (None, 0.0)
    failing.failed("snapshot a", "no space", 1_000_000_000)
    failing.failed("snapshot b", "no space either", 2_000_000_000)
    for each in (failing, Failing(str(tmp_path), Disk())):
        assert each.facts() == {"since_ns": 1_000_000_000, "what": "snapshot b", "message": "no space either"}
        assert each.seconds(4_000_000_000) == 3.0
    failing.made()
    assert not os.listdir(tmp_path)
    assert Failing(str(tmp_path), Disk()).since is None


@pytest.mark.parametrize("damage", [b"", b"{}", b"\0" * 100])
def test_a_damaged_note_is_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / NAME).write_bytes(damage)
    failing = Failing(str(tmp_path), Disk())
    assert failing.since is None
    failing.failed("snapshot", "why", 7)
    again = Failing(str(tmp_path), Disk()).since
    assert again is not None
    assert again.since_ns == 7


def test_a_seal_that_ended_with_its_process_counts_as_failed(tmp_path: Path) -> None:
    attempts = Attempts(str(tmp_path), "boot", Disk(), lambda: "")
    failing = Failing(str(tmp_path), Disk())
    failing.died(attempts.begun_ns())
    assert failing.since is None
    with attempts.attempt(0):
        began_ns = attempts.begun_ns()
        failing.died(began_ns)
    assert failing.since is not None
    assert (failing.since.since_ns, attempts.begun_ns()) == (began_ns, None)
    assert "died" in failing.since.message
