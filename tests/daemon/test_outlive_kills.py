"""A mount outlives its daemons: applications work on, each of their requests is done once, every snapshot is right."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from snapfs.fuse.kernel import router
from tests.fakes.mounts import outlive_run

pytestmark = pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not()))


@pytest.mark.parametrize("data_path", ["native", "python"])
def test_an_application_does_not_notice_that_daemons_die(mount: Callable[..., Any], data_path: str) -> None:
    seed = int.from_bytes(os.urandom(2))
    mounted = mount("-o", f"snapshots.every=1s,live.data_path={data_path}")
    seconds = float(os.environ.get("SNAPFS_SECONDS", "6"))
    outcome = outlive_run.run(mounted.volume, mounted.path, seconds, seed, at_least=3)
    log = (mounted.volume / "daemon.log").read_text()
    gaps = sorted(map(float, re.findall(r"no daemon did for ([\d.]+) s", log)))
    print(f"unanswered for {gaps[len(gaps) // 2]:.3f} s (median), {gaps[-1]:.3f} s (longest)")
    print(f"seed {seed}: {outcome.operations} operations, {outcome.kills} kills, longest stall {outcome.stall_s:.3f} s")
    assert outcome.kills >= 3
    status = mounted.status()
    assert status["daemons_before"] >= outcome.kills
    outlive_run.check_sums(mounted.path, outcome)
    mounted.snapshot("last")  # a loaded machine may seal none between the deaths
    outlive_run.check_snapshots(mounted.path, outcome, seed)
    assert outcome.snapshots >= 1
