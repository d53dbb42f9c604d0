"""Under a service manager with a descriptor store the mount outlives the supervisor too, and a restart of its unit."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base import systemd
from snapfs.fuse.kernel import router
from tests.conftest import SNAPFS
from tests.fakes.mounts import outlive_run
from tests.fakes.mounts.service_manager import ServiceManager

pytestmark = pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not()))
UNIT = "snapfs@db.service"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manager(tmp_path: Path, volume_dir: Path, mountpoint: Path) -> Iterator[ServiceManager]:
    command = [sys.executable, "-m", "snapfs", "mount", "--foreground", "-o", "snapshots.every=1s"]
    made = ServiceManager([*command, str(volume_dir), str(mountpoint)], tmp_path, dict(os.environ))
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.send_signal(signal.SIGTERM)
        made.wait()
    made.close()


def status(mountpoint: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((mountpoint / ".snapfs/status").read_bytes())
    return facts


def test_it_goes_on_with_what_the_manager_kept(manager: ServiceManager, volume_dir: Path, mountpoint: Path) -> None:
    manager.start()
    seed = int.from_bytes(os.urandom(2))
    kills = iter(range(2))

    def strike(volume: Path) -> bool:
        if next(kills, None) is None:
            return False
        facts = outlive_run.supervisor_facts(volume)
        assert facts["supervisor"] == manager.process.pid  # type: ignore[union-attr]
        manager.hear()
        assert sorted(name for name, _ in manager.store) == ["snapfs-device", "snapfs-lock", "snapfs-state"]
        manager.kill([facts["daemon"]])
        manager.start()
        return True

    outcome = outlive_run.run(volume_dir, mountpoint, 3.0, seed, strike, (0.8, 0.8), at_least=2)
    outlive_run.check_sums(mountpoint, outcome)
    outlive_run.check_snapshots(mountpoint, outcome, seed)
    assert status(mountpoint)["daemons_before"] == 2
    manager.hear()
    assert manager.hear_during([*SNAPFS, "umount", str(mountpoint)]) == 0
    assert manager.wait() == 0
    assert manager.store == []


def test_a_restart_of_the_unit_is_no_unmount_and_a_stop_is(
    manager: ServiceManager, tmp_path: Path, mountpoint: Path
) -> None:
    jobs = tmp_path / "jobs"
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\ncat {jobs}\n")
    (tmp_path / "systemctl").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    stop = [*SNAPFS, "umount", "--unless-restarting", UNIT, str(mountpoint)]
    manager.start()
    with open(mountpoint / "file", "w+") as file:
        file.write("held")
        jobs.write_text(f"17 {UNIT} restart running\n")
        assert manager.hear_during(stop, environment) == 0
        assert manager.wait() == 0
        assert len(manager.store) == 3
        manager.start()
        file.seek(0)
        assert file.read() == "held"
    assert status(mountpoint)["daemons_before"] == 1
    jobs.write_text(f"18 {UNIT} stop running\n")
    assert manager.hear_during(stop, environment) == 0
    assert manager.wait() == 0
    assert (manager.store, os.path.ismount(mountpoint)) == ([], False)


def test_what_was_kept_of_a_mount_that_has_ended_is_given_back(
    manager: ServiceManager, volume_dir: Path, mountpoint: Path
) -> None:
    manager.start()
    (mountpoint / "file").write_text("kept")
    manager.hear()
    manager.kill([outlive_run.supervisor_facts(volume_dir)["daemon"]])
    os.system(f"umount -l {mountpoint}")
    manager.start()
    assert (mountpoint / "file").read_text() == "kept"
    assert status(mountpoint)["daemons_before"] == 0


def test_the_unit_says_what_this_needs() -> None:
    lines = (ROOT / "systemd/snapfs@.service").read_text().splitlines()
    assert "NotifyAccess=all" in lines
    assert any(line.startswith("FileDescriptorStoreMax=") and int(line.split("=")[1]) >= 3 for line in lines)
    assert any(line.startswith("ExecReload=") and "snapfs upgrade" in line for line in lines)
    assert any(line.startswith("ExecStop=") and "--unless-restarting %n" in line for line in lines)


def test_a_manager_that_does_not_listen_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    waiting = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setattr(systemd, "_SEND_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        sent = [systemd.notify("STATUS=on the way out") for _ in range(waiting + 2)]
    assert sent[0]
    assert not sent[-1]
