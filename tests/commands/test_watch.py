"""`status --watch`: rates between two samples, and what is shown of a mount until an interrupt."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from snapfs.commands.overview.watch_view import Sample, counts_of, lines, rates, time_left_s
from tests.fakes.patience import PATIENCE_S

STATUS: dict[str, Any] = {
    "pid": 1, "volume": "/v", "mountpoint": "/m", "dirty": {"files": 2, "bytes": 4096}, "last_snapshot": None,
}  # fmt: skip


def sample(time_s: float, requests: float, files: float = 0, **more: Any) -> Sample:
    counts = {"snapfs_requests_total": requests, "snapfs_hydrated_files_total": files}
    return Sample(time_s, STATUS | more, counts)


def test_rates_are_known_from_the_second_sample_of_one_daemon_on() -> None:
    first, second = sample(10, 100), sample(12, 150)
    assert rates(None, first)["requests_per_s"] is None
    assert rates(first, second)["requests_per_s"] == 25
    assert rates(first, second)["sealed_bytes_per_s"] is None  # a daemon that does not count it
    assert rates(first, sample(12, 150, pid=2))["requests_per_s"] is None
    assert rates(second, second)["requests_per_s"] is None


def test_counters_are_summed_over_their_series() -> None:
    name = "snapfs_requests_total"
    text = f'# TYPE a counter\n{name}{{operation="a b"}} 2.0\n{name}{{operation="c"}} 3.0\nsnapfs_x 1\n'
    assert counts_of(text) == {"snapfs_requests_total": 5.0}


@pytest.mark.parametrize(
    ("absent", "rate", "left"), [(0, None, 0.0), (10, None, None), (10, 0.0, None), (10, 5.0, 2.0)]
)
def test_time_left(absent: int, rate: float | None, left: float | None) -> None:
    assert time_left_s(absent, rate) == left


def test_what_is_shown() -> None:
    target = {"name": "m", "state": "behind", "missing": 2, "lag_s": 3.0, "bytes_per_s": 1024,
              "sending": {"done_bytes": 0, "planned_bytes": 2048}}  # fmt: skip
    now = sample(
        12, 150, 5, hydration={"absent_files": 10}, replication={"targets": [target]},
        objectives={"rpo_s": 30.0, "rpo_state": "missed", "age_s": 40.0},
        cut_pause_s={"count": 1, "last": 1e-4, "p50": 1e-4, "p99": 1e-4, "max": 1e-4},
        fenced={"by_holder": "h", "by_generation": 2},
    )  # fmt: skip
    shown = dict(lines(sample(10, 100), now))
    assert shown["requests"] == "25/s"
    assert shown["target"] == "m: behind, lacks 2 snapshots for 3.0 s, 1.0 KiB/s, 2.0 s left"
    assert shown["hydration"] == "10 files absent, -/s, about 4.0 s left"
    assert shown["rpo"] == "30.0 s, MISSED, now 40.0 s"
    assert shown["FENCED"] == "h is the writer (generation 2)"
    assert shown["cut pause"].startswith("last 0.1 ms")
    assert dict(lines(None, sample(1, 1)))["requests"] == "-/s"


def test_it_goes_on_until_it_is_interrupted(mounted: Any) -> None:
    words = [sys.executable, "-m", "snapfs", "status", "--watch", "--interval", "50ms", "--json", str(mounted.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first, second = json.loads(process.stdout.readline()), json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(PATIENCE_S) == 130
        finally:
            process.kill()
    assert first["rates"]["requests_per_s"] is None
    assert second["rates"]["requests_per_s"] >= 0
    assert second["mountpoint"] == str(mounted.path)


def test_a_terminal_shows_one_table(mounted: Any) -> None:
    mounted.snapshot()
    child, terminal = pty.fork()
    if not child:
        os.environ |= {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        words = [sys.executable, "-m", "snapfs", "status", "--watch", "--interval", "50ms", str(mounted.path)]
        os.execv(sys.executable, words)
    shown, end = b"", time.monotonic() + PATIENCE_S
    try:
        while shown.count(b"requests") < 3 and time.monotonic() < end:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 1 << 16)
        os.kill(child, signal.SIGINT)
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    assert shown.count(b"requests") >= 3
    assert re.search(rb"\x1b\[\d*A", shown)  # it goes up, and draws over what was there
    assert b"snapshot 1" in shown


def test_what_is_not_mounted_cannot_be_watched(snapfs: Any, mounted: Any) -> None:
    snapfs("umount", mounted.path)
    refused = snapfs("status", "--watch", mounted.volume, check=False)
    assert (refused.returncode, "is not mounted" in refused.stderr) == (3, True)
    assert snapfs("status", "--watch", check=False).returncode == 2
