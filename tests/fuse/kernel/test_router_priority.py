"""The router's threads run before what computes where that is allowed, and serve all the same where it is not."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.fuse.kernel import router as routing

if routing.why_not():
    pytest.skip(routing.why_not() or "", allow_module_level=True)


def may_run_first() -> bool:
    script = "import os; os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def policies(pid: int) -> dict[str, set[tuple[int, int]]]:
    """(policy, priority) of the threads of a process, by their names without numbers."""
    found: dict[str, set[tuple[int, int]]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip().rstrip("0123456789")
        policy = os.sched_getscheduler(int(task.name)), os.sched_getparam(int(task.name)).sched_priority
        found.setdefault(name, set()).add(policy)
    return found


FIRST, USUAL = (os.SCHED_RR | os.SCHED_RESET_ON_FORK, 1), (os.SCHED_OTHER, 0)


@pytest.mark.skipif(not may_run_first(), reason="no thread may run first here")
@pytest.mark.parametrize("priority", ["realtime", "usual"])
def test_only_the_device_threads_run_first(mount: Callable[..., Any], priority: str) -> None:
    mounted = mount("-o", f"mount.priority={priority}")
    (mounted.path / "file").write_bytes(b"x" * 100_000)
    status = mounted.status()
    assert status["data_path"]["realtime"] == (priority == "realtime")
    found = policies(status["pid"])
    assert found.pop("snapfs-dev-") == {FIRST if priority == "realtime" else USUAL}
    assert set().union(*found.values()) == {USUAL}


def test_where_it_is_refused_the_mount_serves_as_ever(tmp_path: Path, mountpoint: Path) -> None:
    """In a process that may not: without CAP_SYS_NICE, and with a limit of 0."""
    script = (
        "import ctypes, os, resource, sys\n"
        f"resource.setrlimit({resource.RLIMIT_RTPRIO}, (0, 0))\n"
        "PR_CAPBSET_DROP, CAP_SYS_NICE = 24, 23\n"
        "ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'snapfs', 'mount', *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "volume"), str(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (mountpoint / "file").write_text("served")
    assert (mountpoint / "file").read_text() == "served"
    assert json.loads((mountpoint / ".snapfs/status").read_bytes())["data_path"]["realtime"] is False
